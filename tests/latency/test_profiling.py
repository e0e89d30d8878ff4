"""Latency tables of one's own device: statistics, plans, interrupted and finished profiles, tables side by side."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scripts import latency_tables
from src.arch.architecture import load_architecture
from src.arch.blocks import Block
from src.arch.cost_table import CostTable, arithmetic_table, load_table, write_table
from src.arch.space import SKIP, load_space
from src.config import ProfileConfig
from src.deployment.export import write_model
from src.errors import UserError
from src.latency.profile import SAMPLES, ProfilePlan, Session, profile
from src.latency.runtimes import Model
from src.latency.statistics import fit_correction, judge, machine_slowness, summarise, summarise_all
from src.search.one_shot_training import one_shot_space
from tests.conftest import ENVIRONMENT, ROOT

SPACE = {
    "format": "spnas-space",
    "version": 1,
    "name": "two",
    "image_size": 16,
    "stem_channels": 8,
    "stem_stride": 1,
    "layers": [
        "r1_k3_s11_e1_i8_o8_noskip",
        *(
            {
                "stride": stride,
                "in_channels": before,
                "out_channels": after,
                "kernel_sizes": [3, 5],
                "expansions": [3, 6],
                "skippable": before == after,
            }
            for stride, before, after in ((2, 8, 12), (1, 12, 12), (1, 12, 12))
        ),
    ],
    "head_channels": 32,
    "bn_epsilon": 1e-5,
    "provenance": {},
}
FLAGS = ("--num_classes", 10, "--max_rounds", 40)


@pytest.fixture(scope="module")
def space_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("space") / "two.json"
    file.write_text(json.dumps(SPACE))
    return file


# Statistics.


def test_summary_is_that_of_numpy_and_of_order_statistics():
    values = np.random.default_rng(0).permutation(np.arange(1.0, 10.0))
    summary = summarise(values)
    # Of 9 values the 2nd to the 8th hold the median with 96 %, the 3rd to the 7th with 82 %.
    assert summary.median_ms == np.median(values) == 5 and summary.margin == pytest.approx(
        (8 - 2) / 2 / 5
    )
    assert summary.spread == pytest.approx((7 - 3) / 5) and summary.outliers == 0
    # With two more at the ends the quartiles are 2.5 and 7.5, and three times their distance 15.
    assert summarise(np.append(values, [22.6, -12.6])).outliers == 2
    assert summarise(np.append(values, [22.4, -12.4])).outliers == 0
    assert summarise(values[:5]).margin == np.inf
    random = np.random.default_rng(1)
    hits = [
        abs(np.median(x) - 1) <= summarise(x).margin * np.median(x) * 1.5
        for x in random.lognormal(0, 0.1, (300, 101))
    ]
    assert np.mean(hits) > 0.9  # the interval is not quite symmetric about the median


def test_bursts_of_a_busy_machine_do_not_move_medians():
    random, true = np.random.default_rng(0), np.linspace(1, 3, 8)
    models = np.concatenate([random.permutation(8) for _ in range(200)])
    busy = np.repeat(
        np.arange(20) % 2 == 0, 80
    )  # half of the time, so that a plain median lies anywhere in between
    samples = true[models] * np.where(busy, 1.5, 1.0) * random.lognormal(0, 0.02, 1600)
    slowness = machine_slowness(models, samples)
    assert np.median(slowness[busy]) / np.median(slowness[~busy]) == pytest.approx(1.5, rel=0.02)
    summaries, noise = summarise_all(models, samples)
    raw = [summarise(samples[models == model]) for model in range(8)]
    assert np.ptp(np.log([summary.median_ms for summary in summaries] / true)) < 0.02
    assert (
        max(summary.margin for summary in summaries)
        < 0.01
        < 0.1
        < min(summary.margin for summary in raw)
    )
    assert noise == pytest.approx(0.4, abs=0.1)


def test_correction_is_the_least_squares_of_numpy_and_never_negative():
    random = np.random.default_rng(0)
    isolated = [list(random.uniform(0.2, 2, count)) for count in (3, 8, 5, 6, 7, 4)]
    weights = [list(random.uniform(0.01, 0.6, len(blocks))) for blocks in isolated]
    exact = [
        2 + sum(1.1 * block + 0.3 * millions - 0.05 for block, millions in zip(blocks, own))
        for blocks, own in zip(isolated, weights)
    ]
    noisy = np.array(exact) * random.lognormal(0, 0.002, 6)
    columns = np.array(
        [(1, sum(blocks), sum(own), len(blocks)) for blocks, own in zip(isolated, weights)]
    )
    expected = np.linalg.lstsq(columns / noisy[:, None], np.ones(6), rcond=None)[0]
    for whole, values in ((exact, (2, 1.1, 0.3, -0.05)), (noisy, expected)):
        found = fit_correction(isolated, weights, whole)
        assert (found.constant_ms, found.slope, found.weight_ms, found.offset_ms) == pytest.approx(
            tuple(values), rel=1e-6
        )
    steep = fit_correction(
        isolated, weights, [max(0.1, 3 * sum(blocks) - 2 * len(blocks)) for blocks in isolated]
    )
    assert steep.constant_ms >= 0
    assert (
        min(steep.entry(block, own) for block, own in zip(sum(isolated, []), sum(weights, []))) >= 0
    )


def test_verdict_counts_pairs_and_errors():
    predicted, measured = [1.1, 2.0, 2.9, 4.4], [1.0, 2.0, 3.0, 2.5]
    verdict = judge(predicted, measured)
    pairs = list(itertools.combinations(range(4), 2))
    agree = [np.sign((predicted[a] - predicted[b]) * (measured[a] - measured[b])) for a, b in pairs]
    assert verdict.kendall_tau == pytest.approx(np.mean(agree))
    errors = np.array(predicted) - measured
    assert verdict.rmse == pytest.approx(np.sqrt(np.mean(errors**2)) / np.mean(measured))
    assert verdict.mean_error == pytest.approx(
        np.mean(errors / measured)
    ) and verdict.worst == pytest.approx(0.76)
    assert not verdict.passed and judge([1, 2, 3.1], [1, 2, 3]).passed


# What is measured.


def test_a_plan_measures_each_shape_once_at_the_size_that_it_has_in_the_network():
    plan = ProfilePlan(load_space("imagenet"), ProfileConfig(input_size=200, batch_size=2))
    blocks = plan.blocks()
    models = [model for entries in blocks.values() for model in entries.values()]
    assert len(models) == 80 and len({model.name for model in models}) == len(set(models)) == 40
    # 200 is halved by the stem and at layers 1, 5, 9 and 17.
    assert [
        blocks[name]["K5E6"].shape for name in ("layer1", "layer2", "layer9", "layer10", "layer20")
    ] == [(2, 16, 100, 100), (2, 24, 50, 50), (2, 40, 25, 25), (2, 80, 13, 13), (2, 192, 7, 7)]
    assert blocks["layer5"]["K5E3"].network == Block(5, 2, 3, 24, 40)
    for decisions, name in zip(plan.extremes(), ("spnas_smallest", "spnas_largest")):
        assert plan.network(decisions, "any").network.blocks == load_architecture(name).blocks


def test_random_networks_spread_over_the_range():
    plan = ProfilePlan(load_space("imagenet"), ProfileConfig())
    table, drawn = arithmetic_table(plan.space, "macs"), plan.evenly_spaced(10, 3)
    low, high = table.range()
    places = [(table.total(decisions) - low) / (high - low) for decisions in drawn]
    assert [int(10 * place) for place in places] == list(range(10))
    assert drawn == plan.evenly_spaced(10, 3) != plan.evenly_spaced(10, 4)


def test_a_session_continues_and_refuses_other_settings(tmp_path):
    settings, folder = {"threads": 1, "seed": 0}, tmp_path / "table.partial"
    session = Session(folder, settings)
    for offset in range(3):
        session.add([(model, 1.0 + model + offset / 100) for model in (1, 0) * 40])
    summaries, _ = session.summaries()
    with open(folder / SAMPLES, "a", encoding="utf-8") as file:
        file.write('{"samples": [[0, 1.')  # as after a crash
    again = Session(folder, settings)
    assert again.summaries()[0] == summaries and len(again.batches) == 3
    with pytest.raises(
        UserError, match=r"table.partial: of an interrupted measurement with threads 1, now 2"
    ):
        Session(folder, {**settings, "threads": 2})
    again.close()
    assert not folder.exists()
    Session(folder, {**settings, "threads": 2})
    (folder / "model.mindir").touch()
    Session(folder, settings)  # nothing had been measured
    assert [file.name for file in folder.iterdir()] == ["settings.json"]


# Profiles.


@pytest.fixture(scope="module")
def run(space_file):
    """Runs the profiler in C++ on the small space; returns the finished process."""

    def call(*flags):
        command = [
            sys.executable,
            str(ROOT / "scripts/profile_latency.py"),
            "--space",
            str(space_file),
            *map(str, FLAGS),
            *map(str, flags),
        ]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False
        )

    return call


@pytest.fixture(scope="module")
def table_file(application, run, space_file, tmp_path_factory):
    """A table whose profile was killed once and continued."""
    out = tmp_path_factory.mktemp("tables") / "mine.json"
    command = [
        sys.executable,
        str(ROOT / "scripts/profile_latency.py"),
        "--space",
        str(space_file),
        *map(str, FLAGS),
        "--out",
        str(out),
    ]
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    partial, deadline = out.with_suffix(".partial"), time.monotonic() + 200
    while not (partial / SAMPLES).exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=200)
    assert first.returncode == 1 and not out.exists(), errors
    assert errors.splitlines()[-1] == (
        "profile_latency.py: error: interrupted; the same command continues from "
        f"{partial}, {out} is not written"
    )
    models = {file.name: file.stat().st_mtime_ns for file in partial.glob("*.mindir")}
    before = json.loads((partial / SAMPLES).read_text().splitlines()[0])
    assert len(before["samples"]) == 20 * 2 * len(models)
    other = run("--out", out, "--threads", 2)
    assert (
        other.returncode == 2
        and "of an interrupted measurement with threads 1, now 2" in other.stderr
    )
    assert models == {file.name: file.stat().st_mtime_ns for file in partial.glob("*.mindir")}
    done = run("--out", out)
    assert done.returncode == 0, done.stderr
    assert (
        f"{partial}: continued after 20 rounds" in done.stdout and "noise: half of" in done.stdout
    )
    assert sorted(file.name for file in out.parent.iterdir()) == ["mine.json"]
    return out


def test_a_profile_of_the_deployments_runtime(table_file, space_file):
    space = load_space(space_file)
    table = load_table(table_file, space)
    assert (
        table.runtime == "MindSpore Lite 2.0.0" and table.batch_size == 1 and table.name == "mine"
    )
    facts = table.provenance
    assert (facts["threads"], facts["image_size"], facts["num_classes"], facts["rounds"]) == (
        1,
        16,
        10,
        40,
    )
    assert (
        facts["date"].startswith("20")
        and set(facts["versions"]) >= {"mindspore", "python"}
        and facts["noise"] > 0
    )
    assert len(facts["isolated"]) == 8 and all(
        entry["samples"] == 80 for entry in facts["isolated"].values()
    )
    # Layers 2 and 3 have the same shapes; entries are the corrected isolated ones.
    assert table.layers["layer2"] == table.layers["layer3"]
    rule, name = facts["correction"], "r1_k5_s22_e6_i8_o12_16x16"
    weights = (8 * 48 + 2 * 48 + 25 * 48 + 2 * 48 + 48 * 12 + 2 * 12) / 1e6
    assert table.layers["layer1"]["K5E6"] == pytest.approx(
        max(
            0,
            rule["slope"] * facts["isolated"][name]["median_ms"]
            + rule["weight_ms"] * weights
            + rule["offset_ms"],
        ),
        abs=1e-4,
    )
    network = facts["networks"]["network0"]
    assert space.derive(network["decisions"].split(), "any") and SKIP in network["decisions"]
    assert CostTable.from_dict(json.loads(table_file.read_text())) == table


def test_verification_stores_its_verdict(table_file, run, space_file, tmp_path):
    out = tmp_path / "mine.json"
    out.write_text(table_file.read_text())
    arch = load_space(space_file).largest()
    (tmp_path / "arch.json").write_text(json.dumps(arch.to_dict()))
    done = run("--out", out, "--verify", 4, "--verify_arch", tmp_path / "arch.json")
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())["provenance"]["verification"]
    measured = [entry["median_ms"] for entry in record["measured"].values()]
    predicted = [entry["predicted_ms"] for entry in record["measured"].values()]
    verdict = judge(predicted, measured)
    assert record["networks"] == len(measured) >= 3 and record["rmse"] == pytest.approx(
        verdict.rmse, abs=1e-3
    )
    assert "mean error" in done.stdout and f"{100 * record['rmse']:.1f} %" in done.stdout
    assert record["measured"].pop(arch.name)["predicted_ms"] == pytest.approx(
        load_table(out, load_space(space_file)).range()[1], rel=0.2
    )
    fitted = {
        entry["decisions"]
        for entry in json.loads(out.read_text())["provenance"]["networks"].values()
    }
    assert not fitted & {entry["decisions"] for entry in record["measured"].values()}
    assert (tmp_path / "mine.png").is_file() and not (tmp_path / "mine.partial").exists()


def test_a_search_takes_the_table(table_file, space_file, run_program, tmp_path):
    space = load_space(space_file)
    table = load_table(table_file, space)
    target = float(np.mean(table.range()))
    flags = (
        "--dataset_name",
        "digits",
        "--image_height",
        16,
        "--image_width",
        16,
        "--space",
        space_file,
        "--latency_table",
        table_file,
        "--target_latency_ms",
        target,
        "--random",
        1,
    )
    done = run_program("search.py", *flags, "--checkpoint_path", tmp_path)
    assert done.returncode == 0 and "latency table" not in done.stdout, done.stderr
    decisions = load_architecture(tmp_path / "random_0.json").provenance["decisions"]
    assert abs(table.total(decisions) / target - 1) <= 0.02
    write_table(
        tmp_path / "old.json",
        replace(
            table, runtime="MindSpore Lite 1.9.0", provenance={**table.provenance, "image_size": 32}
        ),
    )
    done = run_program(
        "search.py", *flags, "--latency_table", tmp_path / "old.json", "--checkpoint_path", tmp_path
    )
    assert "was made with MindSpore Lite 1.9.0, installed is MindSpore Lite 2.0.0" in done.stdout
    assert "is of images of 32x32, the search of 16x16" in done.stdout
    done = run_program("search.py", *flags, "--cost", "macs", "--checkpoint_path", tmp_path)
    assert done.returncode == 2 and "latency_table is for --cost latency" in done.stderr


@pytest.mark.slow
def test_mistakes_leave_no_table(table_file, run, tmp_path):
    def mistake(*flags):
        done = run(*flags)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    out = tmp_path / "new.json"
    assert "device Ascend310 0: not there" in mistake("--out", out, "--device", "Ascend310")
    assert "device is Ascend; with --runtime lite it should be CPU or Ascend310" in mistake(
        "--out", out, "--device", "Ascend"
    )
    assert "mine.json: is there already" in mistake("--out", table_file)
    assert "out is 'new.txt'" in mistake("--out", "new.txt")
    assert not out.exists()
    damaged = tmp_path / "damaged.partial" / "r1_k5_s11_e3_i12_o12_8x8.mindir"
    damaged.parent.mkdir()
    damaged.write_bytes(b"damaged")
    assert f"{damaged}: the runtime cannot load it" in mistake("--out", tmp_path / "damaged.json")
    assert not (tmp_path / "damaged.json").exists()
    old = json.loads(table_file.read_text()) | {"runtime": "MindSpore Lite 1.9.0"}
    out.write_text(json.dumps(old))
    assert (
        "measured with runtime 'MindSpore Lite 1.9.0', now it is 'MindSpore Lite 2.0.0'"
        in mistake("--out", out, "--verify", 3)
    )
    assert json.loads(out.read_text()) == old


@pytest.mark.parametrize(
    "space", (SPACE, one_shot_space("one_shot_32", 2, 2).to_dict()), ids=lambda space: space["name"]
)
def test_a_profile_of_the_training_runtime(space, tmp_path, monkeypatch):
    """In this process: the networks that eval.py runs, by the same statistics; with either kind of blocks."""
    monkeypatch.setattr("src.latency.profile.FIT_NETWORKS", 2)
    out, space_file = tmp_path / "training.json", tmp_path / "space.json"
    space_file.write_text(json.dumps(space))
    assert (
        profile(
            ProfileConfig(
                space=str(space_file),
                runtime="mindspore",
                num_classes=10,
                max_rounds=20,
                out=str(out),
            )
        )
        == 0
    )
    table = load_table(out, load_space(space_file))
    assert table.runtime.startswith("MindSpore 2.") and all(
        entry["samples"] == 40 and entry["median_ms"] > 0
        for entry in table.provenance["isolated"].values()
    )


# Tables.


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


def test_tables_are_compared_merged_and_drawn(two_tables, caplog, monkeypatch):
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
    assert latency_tables.main(["--plot", "pixel1", "b.json", "--out", "tables.png"]) == 0
    assert Image.open("tables.png").size[1] > 400


@pytest.mark.parametrize(
    "flags, reason",
    [
        (
            ("--merge", "a.json", "c.json", "--out", "m.json"),
            "c.json: measured with threads 4, a.json with 1",
        ),
        (("--merge", "a.json", "b.json"), "out is 'None', should be a file that ends in .json"),
        (
            ("--diff", "a.json", "none.json"),
            "latency table 'none.json' is neither a file nor one of",
        ),
        (("--plot", "a.json", "--out", "x.txt"), "should be a file that ends in .png or .svg"),
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


def test_the_program_takes_the_samples_it_is_asked_for(application, tmp_path):
    files = []
    for name, kernel_size in (("small", 3), ("large", 7)):
        model = Model(name, Block(kernel_size, 1, 6, 8, 8), (1, 8, 12, 12))
        files.append(str(tmp_path / f"{name}.mindir"))
        write_model(model.cell(folded=True), model.shape, tmp_path / f"{name}.mindir", "MINDIR", 1)
    command = [
        str(application.parent / "profile"),
        "--device",
        "CPU",
        "--rounds",
        "5",
        "--repeats",
        "3",
    ]
    done = subprocess.run(
        [*command, *files], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["round"] for line in lines] == sorted([*range(5)] * 6) and all(
        line["ms"] > 0 for line in lines
    )
    for index in range(2):
        assert sum(line["model"] == index for line in lines) == 15
    missing = subprocess.run(
        [*command, "no.mindir"], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert missing.returncode == 2 and missing.stdout == ""
    assert (
        missing.stderr
        == "profile: error: no.mindir: the runtime cannot load it; GLOG_v=2 shows its reason\n"
    )
