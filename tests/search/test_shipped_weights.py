"""The shipped supernet: its files, its card, and a network of it on the way to C++."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from mindspore import Tensor

from src.arch.cost_table import arithmetic_table
from src.checkpoint.format import read_checkpoint
from src.checkpoint.packed import find_packed, read_packed, statistics_file
from src.checkpoint.restore import build_network
from src.data.sources import CIFAR10_CLASSES
from src.files import sha256
from tests.conftest import ROOT, run_in_this_process
from tests.deployment.test_export import assert_close, logits_by, logits_of

NAME = "cifar10"
FILE = ROOT / "weights" / f"{NAME}.safetensors"
CARD = (ROOT / "weights/README.md").read_text(encoding="utf-8")
FRONT = ROOT / "docs/results/train_once/front_macs"
GOLDEN = json.loads((Path(__file__).parent / "cifar10_logits.json").read_text())


@pytest.fixture(scope="module")
def contents():
    return read_packed(FILE)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The folder of a network, chosen without images."""
    folder = tmp_path_factory.mktemp("served")
    run = run_in_this_process(
        "search.py",
        *("--from_supernet", NAME, "--latency_table", "epyc_1thread_macro"),
        *("--target_latency_ms", 2, "--checkpoint_path", folder),
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr
    return folder


def test_files_are_small_and_those_of_the_card():
    assert find_packed(NAME) == FILE
    for file, most in ((FILE, 6e6), (statistics_file(FILE), 2e6)):
        size = file.stat().st_size
        assert size <= most
        assert f"| `{file.name}` | {size / 1e6:.2f} MB | `{sha256(file)}` |" in CARD


def test_it_says_what_it_is(contents):
    meta = contents.meta
    assert meta.space.name == "nas_bench_macro" and len(meta.classes) == 10
    assert (meta.preprocessing.height, meta.preprocessing.width) == (32, 32)
    # No path of the machine that trained it.
    assert not [value for value in meta.config.values() if isinstance(value, str) and "/" in value]
    assert len(contents.accuracies) == len(list(meta.space.networks())) == 1176
    assert len(contents.statistics) >= 35
    macs = arithmetic_table(meta.space, "macs", 10)
    costs = sorted(macs.total(network) for network in contents.statistics)
    assert costs[0] < 21 and costs[-1] > 105


def test_card_has_the_metadata_and_the_accuracies_of_the_front():
    metadata = yaml.safe_load(CARD.split("---")[1])
    assert metadata["license"] == "apache-2.0" and metadata["datasets"] == [NAME]
    assert metadata["pipeline_tag"] == "image-classification"
    # Of limits that the same network serves, the card names the first.
    rows = {
        row["macs"]: row for row in json.loads((FRONT / "front.json").read_text())["networks"]
    }.values()
    results = {
        result["name"]: result["results"][0]["metrics"][0]["value"]
        for result in metadata["model-index"]
    }
    assert len(results) == len(rows) >= 9
    for row in rows:
        place = FRONT / Path(row["arch"]).parent.name
        (tested,) = json.loads((place / "eval.json").read_text())["results"]
        assert tested["images"] == 2000
        assert results[f"{row['macs']:.1f}M"] == tested["top1"]
        assert re.search(rf"^\| {row['macs']:.1f} \|.* {tested['top1']:.2f} \|", CARD, re.M), row[
            "macs"
        ]


def test_a_served_network_answers_as_when_it_was_packed(served):
    network = read_checkpoint(served / "inherited.ckpt")
    assert network.meta.arch.provenance["decisions"] == GOLDEN["decisions"]
    pixels = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    logits = build_network(network)(Tensor(pixels)).asnumpy()
    expected = np.array(GOLDEN["logits"])
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_a_served_network_names_the_classes_of_its_card(served, few_digits, call_program):
    run = call_program("predict.py", served / "inherited.ckpt", few_digits / "val/7", "--top", 1)
    assert run.returncode == 0, run.stderr
    assert re.search("|".join(CIFAR10_CLASSES), run.stdout), run.stdout


def test_a_served_network_answers_in_cpp(served, few_digits, classify, call_program, tmp_path):
    """Images of digits will do: what they are taken for does not count."""
    checkpoint = read_checkpoint(served / "inherited.ckpt")
    model = tmp_path / "model.mindir"
    run = call_program(
        *("export.py", "--ckpt_file", checkpoint.path, "--file_name", model.with_suffix(""))
    )
    assert run.returncode == 0, run.stderr
    process, answers = classify(model, few_digits / "val")
    assert process.returncode == 0 and len(answers) == 50, process.stderr
    expected = logits_by(build_network(checkpoint), checkpoint, few_digits / "val")
    for file, logits in expected.items():
        assert_close(logits_of(tmp_path, file), logits, 1e-5)
