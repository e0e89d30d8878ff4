"""Choices of served networks, made again from a file of accuracies."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.choosing import choices, main
from benchmarks.nas_bench_macro import CHOICES, cost, equivalents, name_of
from src.files import write_jsonl

LIMIT = 50.0


@pytest.fixture(scope="module")
def accuracies():
    """Without noise, of a sum over layers, as the regression of a choice supposes."""
    worth = np.random.default_rng(0).random((8, len(CHOICES)))
    return {
        name: 50 + sum(worth[layer][int(digit)] for layer, digit in enumerate(name))
        for name in equivalents()
        if cost(name).macs / 1e6 <= LIMIT
    }


def write(path, accuracies):
    lines = [
        {"decisions": [CHOICES[int(digit)] for digit in name], "top1": top1}
        for name, top1 in accuracies.items()
    ]
    assert [name_of(line["decisions"]) for line in lines] == list(accuracies)
    write_jsonl(path, lines)


def test_a_part_of_the_evaluations_finds_the_best(accuracies):
    ranked = sorted(accuracies, key=accuracies.__getitem__)
    assert len(ranked) > 100
    assert set(choices(accuracies, LIMIT, 60, seeds=1)) <= set(ranked[-3:])


def test_the_table_and_what_is_missing(accuracies, tmp_path, capsys):
    file = tmp_path / "accuracies.jsonl"
    write(file, accuracies)
    flags = [str(file), "--limit", str(LIMIT), "--seeds", "1", "--evaluations", "60"]
    assert main(flags) == 0
    rows = {line[:22].strip(): line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert float(rows["60"][2]) < 0.1 and float(rows["random network"][-2]) > 0.5

    write(file, dict(list(accuracies.items())[:40]))
    assert main(flags) == 2
    assert f"has 40 of the {len(accuracies)} networks" in capsys.readouterr().err
    assert main([str(file), "--limit", "10"]) == 2
    assert "has 0 of the 0 networks" in capsys.readouterr().err
