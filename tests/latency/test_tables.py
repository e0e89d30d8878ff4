"""Latency tables side by side: compared and merged."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from scripts import latency_tables
from src.arch.cost_table import load_table, write_table
from src.arch.space import load_space
from src.errors import UserError


@pytest.fixture
def two_tables(tmp_path):
    """Two tables of the shipped space: the second costs 1.2 times the first, and 2 ms more."""
    space = load_space("imagenet")
    first = load_table("pixel1", space)
    provenance = {
        "threads": 1,
        "image_size": 224,
        "num_classes": 1000,
        "date": "2026-01-01",
        "noise": 0.02,
    }
    layers = {
        layer: {name: 1.2 * cost for name, cost in entries.items()}
        for layer, entries in first.layers.items()
    }
    for name, changes in (("a", {}), ("b", {"layers": layers, "constant": first.constant + 2})):
        write_table(
            tmp_path / f"{name}.json", replace(first, name=name, provenance=provenance, **changes)
        )
    return tmp_path


def test_tables_are_compared_and_merged(two_tables, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.chdir(two_tables)
    assert latency_tables.main(["--diff", "a.json", "b.json"]) == 0
    rows = [
        message.split()
        for message in caplog.messages
        if message.startswith("layer") and "second" not in message
    ]
    assert len(rows) == 20 and all(row[1:] == ["1.200"] * 4 for row in rows)
    assert "constant 19.600 -> 21.600 ms" in caplog.text and "Kendall's tau 1.000" in caplog.text
    assert latency_tables.main(["--merge", "a.json", "b.json", "--out", "merged.json"]) == 0
    space = load_space("imagenet")
    a, b, merged = (load_table(f"{name}.json", space) for name in ("a", "b", "merged"))
    largest = [layer.largest for layer in space.searched.values()]
    assert merged.total(largest) == pytest.approx(
        (a.total(largest) + b.total(largest)) / 2, rel=1e-4
    )
    assert merged.provenance["threads"] == 1
    assert merged.provenance["widest_spread_of_an_entry"] == pytest.approx(0.2 / 1.1, abs=1e-3)
    assert [entry["name"] for entry in merged.provenance["merged"]] == ["a", "b"]


@pytest.mark.parametrize(
    "flags, reason",
    [
        (
            ("--merge", "a.json", "c.json", "--out", "m.json"),
            "c.json: measured with threads 4, a.json with 1",
        ),
        (("--diff", "a.json", "b.json", "--out", "m.json"), "--out is for --merge; --diff prints"),
        (("--merge", "a.json", "b.json"), "out is 'None', should be a file that ends in .json"),
        (
            ("--diff", "a.json", "none.json"),
            "latency table 'none.json' is neither a file nor one of",
        ),
    ],
)
def test_mistakes_with_tables_are_named(two_tables, monkeypatch, flags, reason):
    monkeypatch.chdir(two_tables)
    data = json.loads((two_tables / "b.json").read_text())
    data["provenance"]["threads"] = 4
    (two_tables / "c.json").write_text(json.dumps(data))
    before = sorted(two_tables.iterdir())
    with pytest.raises(UserError, match=re.escape(reason)):
        latency_tables.main(list(flags))
    assert sorted(two_tables.iterdir()) == before
