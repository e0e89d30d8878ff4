"""From a space to a table: plans, interrupted and finished profiles, verification."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
from dataclasses import replace

import mindspore
import pytest

from src.arch.architecture import load_architecture
from src.arch.blocks import Block
from src.arch.cost_table import CostTable, arithmetic_table, load_table, write_table
from src.arch.space import SKIP, load_space
from src.config import ProfileConfig
from src.errors import UserError
from src.latency.drift import scaled, with_conditions_of
from src.latency.plan import ProfilePlan
from src.latency.profile import profile
from src.latency.runtimes import installed_version
from src.latency.session import SAMPLES, Session
from src.latency.statistics import judge
from src.latency.tables import conditions
from src.search.one_shot_training import one_shot_space
from tests.conftest import run_in_own_process, run_in_this_process

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
FLAGS = ("--num_classes", 10, "--max_rounds", 40, "--fit_networks", 6)
SMALLER = (
    SPACE
    | {  # 4 blocks to measure
        "name": "smaller",
        "layers": [
            SPACE["layers"][0],
            *(layer | {"kernel_sizes": [3]} for layer in SPACE["layers"][1:3]),
        ],
    }
)


@pytest.fixture(scope="module")
def space_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("space") / "two.json"
    file.write_text(json.dumps(SPACE))
    return file


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
    names = ("spnas_smallest", "spnas_largest")
    for decisions, name in zip(plan.extremes(), names, strict=True):
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
def run(space_file, tmp_path_factory):
    """Runs the profiler in C++ on the small space; returns it as a finished process."""
    script, folder = "scripts/profile_latency.py", tmp_path_factory.mktemp("run")
    return functools.partial(run_in_this_process, script, "--space", space_file, *FLAGS, cwd=folder)


@pytest.fixture(scope="module")
def table_file(application, run, space_file, tmp_path_factory):
    """A table whose profile was interrupted once and continued."""
    out = tmp_path_factory.mktemp("tables") / "mine.json"
    partial, add = out.with_suffix(".partial"), Session.add

    def add_and_interrupt(session, samples):
        add(session, samples)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as where a program starts
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "add", add_and_interrupt)
        first = run("--out", out)
    assert first.returncode == 1 and not out.exists(), first.stderr
    assert first.stderr.splitlines()[-1] == (
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
    other = run("--out", out, "--fit_networks", 7)
    assert other.returncode == 2 and "with fit_networks 6, now 7" in other.stderr
    assert models == {file.name: file.stat().st_mtime_ns for file in partial.glob("*.mindir")}
    flags = ("--space", space_file, *FLAGS, "--out", out)
    done = run_in_own_process("scripts/profile_latency.py", *flags, cwd=out.parent)
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
    # The largest network, which is given, is one to which the table was fitted: it is not judged.
    own = record["measured"].pop(arch.name)
    measured = [entry["median_ms"] for entry in record["measured"].values()]
    predicted = [entry["predicted_ms"] for entry in record["measured"].values()]
    verdict = judge(predicted, measured, record["machine_factor"])
    assert record["networks"] == len(measured) >= 3 and record["rmse"] == pytest.approx(
        verdict.rmse, abs=5e-3
    )
    (line,) = (line for line in done.stdout.splitlines() if line.endswith("fitted"))
    assert line.startswith(arch.name)
    assert "machine: the smallest and the largest network took" in done.stdout
    printed = re.search(r"mean error .* RMSE ([0-9.]+) %", done.stdout)
    assert printed and printed[1] == f"{100 * record['rmse']:.1f}"
    table = load_table(out, load_space(space_file))
    assert own["predicted_ms"] == pytest.approx(table.total(own["decisions"].split()), abs=1e-3)
    fitted = {
        entry["decisions"]
        for entry in json.loads(out.read_text())["provenance"]["networks"].values()
    }
    assert not fitted & {entry["decisions"] for entry in record["measured"].values()}
    assert f"scripts/report.py {out} draws it" in done.stdout
    (tmp_path / "again.json").write_text(json.dumps({**arch.to_dict(), "name": "again"}))
    given = f"{tmp_path}/arch.json,{tmp_path}/again.json"
    done = run("--out", out, "--verify", 1, "--verify_arch", given)
    assert done.returncode == 2 and "of those chosen there are 1; choose more" in done.stderr
    assert not (tmp_path / "mine.partial").exists()


def test_networks_to_verify_are_told_apart_and_named_before_a_measurement(
    space_file, run, tmp_path
):
    space = load_space(space_file)
    for name, arch in (("a", space.largest()), ("b", space.derive(space.smallest_choices, "b"))):
        (tmp_path / f"{name}.json").write_text(json.dumps({**arch.to_dict(), "name": "mine"}))
    done = run(
        "--out", "new.json", "--verify", 4, "--verify_arch", f"{tmp_path}/a.json,{tmp_path}/b.json"
    )
    assert done.returncode == 2 and "b.json: another network to verify has the name" in done.stderr
    renamed = {**json.loads((tmp_path / "a.json").read_text()), "name": "network0"}
    (tmp_path / "a.json").write_text(json.dumps(renamed))
    done = run("--out", "new.json", "--verify", 4, "--verify_arch", tmp_path / "a.json")
    assert done.returncode == 2 and "the name 'network0' is one of those" in done.stderr
    done = run("--out", "new.json", "--verify", 4, "--verify_arch", "c.json")
    assert done.returncode == 2 and "c.json" in done.stderr
    assert not (tmp_path / "new.json").exists() and not (tmp_path / "new.partial").exists()
    config = ProfileConfig(space=str(space_file), verify=9, verify_draw="uniform", seed=5)
    drawn = [
        list(ProfilePlan(space, replaced).networks_to_verify(()).values())
        for replaced in (config, config, config.model_copy(update={"seed": 6}))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    evenly = config.model_copy(update={"verify_draw": "range"})
    assert list(ProfilePlan(space, evenly).networks_to_verify(()).values()) != drawn[0]


def test_a_search_takes_the_table(table_file, space_file, call_program, tmp_path):
    space = load_space(space_file)
    table = load_table(table_file, space)
    # Of a network in the middle: noise may have left no other near the middle of the range.
    target = table.total(["K3E6", "K3E3", SKIP])
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
    done = call_program("search.py", *flags, "--checkpoint_path", tmp_path)
    assert done.returncode == 0 and "installed is" not in done.stdout, done.stderr
    age, advice = "table 'mine': for the machine's speed of 0 days ago (20", "--rescale measures it"
    assert age in done.stdout and advice in done.stdout
    decisions = load_architecture(tmp_path / "random_0.json").provenance["decisions"]
    assert abs(table.total(decisions) / target - 1) <= 0.02
    foreign = {**table.provenance, "date": "2019-04-05"}  # of another program
    write_table(tmp_path / "foreign.json", replace(table, provenance=foreign))
    done = call_program(
        "search.py",
        *(*flags, "--latency_table", tmp_path / "foreign.json", "--checkpoint_path", tmp_path),
    )
    assert done.returncode == 0 and "days ago" not in done.stdout, done.stderr
    old = replace(table, runtime="MindSpore Lite 1.9.0", device="another one")
    write_table(tmp_path / "old.json", old)
    done = call_program(
        "search.py", *flags, "--latency_table", tmp_path / "old.json", "--checkpoint_path", tmp_path
    )
    assert "was made with MindSpore Lite 1.9.0, installed is MindSpore Lite 2.0.0" in done.stdout
    assert age in done.stdout and advice not in done.stdout
    isolated = dict(table.provenance["isolated"])
    missing = isolated.popitem()[0]
    for provenance, reason in (
        ({"image_size": 32}, "is of images of 32x32, these are of 16x16"),
        ({"isolated": isolated}, f"has been edited since: it lacks block {missing}"),
    ):
        other = replace(table, provenance={**table.provenance, **provenance})
        write_table(tmp_path / "other.json", other)
        done = call_program("search.py", *flags, "--latency_table", tmp_path / "other.json")
        assert done.returncode == 2 and reason in done.stderr
    done = call_program("search.py", *flags, "--cost", "macs", "--checkpoint_path", tmp_path)
    assert done.returncode == 2 and "latency_table is for --cost latency" in done.stderr


def test_a_table_is_scaled_to_the_speed_of_now(table_file, space_file, tmp_path):
    """Under the conditions of the table, which are not given again."""

    def run(*flags):
        words = ("--space", space_file, *flags)
        return run_in_this_process("scripts/profile_latency.py", *words, cwd=tmp_path)

    space = load_space(space_file)
    table, out = load_table(table_file, space), tmp_path / "today.json"
    # As if the machine had been three times as slow, and the table had been scaled for it.
    write_table(tmp_path / "slow.json", scaled(scaled(table, 2.0), 1.5))
    slow = load_table(tmp_path / "slow.json", space)
    assert slow.provenance["rescaled"]["factor"] == 3
    done = run("--rescale", tmp_path / "slow.json", "--out", out, "--max_rounds", 40)
    assert done.returncode == 0, done.stderr
    found = load_table(out, space)
    factor = found.provenance["rescaled"]["factor"]
    told = re.search(r"today\.json: scaled by ([0-9.]+)", done.stdout)
    assert told and float(told[1]) == pytest.approx(factor / 3, abs=1e-3)
    assert found.constant == pytest.approx(factor * table.constant, abs=1e-4)
    assert found.total(["K5E6"] * 3) == pytest.approx(factor * table.total(["K5E6"] * 3), rel=1e-3)
    assert found.provenance["networks"] == table.provenance["networks"]
    done = run("--rescale", table_file, "--out", out)
    assert done.returncode == 2 and "today.json: is there already" in done.stderr
    merged = replace(table, provenance={**table.provenance, "networks": {}})
    write_table(tmp_path / "merged.json", merged)
    done = run("--rescale", tmp_path / "merged.json", "--out", tmp_path / "merged.json")
    assert done.returncode == 2 and "merged.json: holds no measured networks" in done.stderr
    today = out.read_text()
    done = run("--rescale", out, "--max_rounds", 40)  # in its place
    assert done.returncode == 0 and out.read_text() != today, done.stderr
    done = run("--rescale", out, "--out", out, "--num_classes", 11)
    assert done.returncode == 2 and "with num_classes 10, now it is 11" in done.stderr
    for flags, message in (
        (("--verify", 3), "rescale and verify are both given"),
        (("--fit_networks", 3), "fit_networks is for a new table, not for --rescale"),
        (("--verify_arch", "a.json"), "verify_arch is for --verify N, which is not given"),
    ):
        done = run("--rescale", out, *flags)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    with pytest.raises(UserError, match=r"today.json: space 'two' is not shipped; .* by --space"):
        with_conditions_of(str(out), ProfileConfig())


def test_the_conditions_of_a_shipped_table_are_those_of_its_file():
    config = with_conditions_of("epyc_1thread_macro_bfloat16", ProfileConfig(batch_size=2))
    found = config.model_dump(include={"space", "runtime", "precision", "device", "batch_size"})
    assert found == {
        "space": "nas_bench_macro",
        "runtime": "openvino",
        "precision": "bfloat16",
        "device": "CPU",
        "batch_size": 2,  # which is given, and refused later
    }
    assert (config.threads, config.num_classes, config.input_size) == (1, 10, 32)


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
    damaged = tmp_path / "damaged.partial" / "r1_k3_s22_e3_i8_o12_16x16.mindir"  # the first one
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
    "space",
    (SMALLER, one_shot_space("one_shot_32", 2, 2).to_dict()),
    ids=lambda space: space["name"],
)
def test_a_profile_of_the_training_runtime(space, tmp_path, monkeypatch):
    """In this process: the networks that eval.py runs, with either kind of blocks."""
    monkeypatch.setenv("SPNAS_KERNEL_THREADS", "1")  # as the profile sets it, for this test only
    warnings: list[str] = []
    monkeypatch.setattr(mindspore.log, "warning", lambda text, *_: warnings.append(text))
    out, space_file = tmp_path / "training.json", tmp_path / "space.json"
    space_file.write_text(json.dumps(space))
    assert (
        profile(
            ProfileConfig(
                space=str(space_file),
                runtime="mindspore",
                num_classes=10,
                fit_networks=2,
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
    assert not [text for text in warnings if "deprecated" in text]


def test_a_profile_of_another_runtime_says_its_precision(with_openvino, tmp_path):
    space_file, out = tmp_path / "smaller.json", tmp_path / "rounded.json"
    space_file.write_text(json.dumps(SMALLER))
    flags = ("--space", space_file, "--num_classes", 10, "--runtime", "openvino", "--out", out)
    run = functools.partial(run_in_this_process, "scripts/profile_latency.py", *flags, cwd=tmp_path)
    done = run("--precision", "bfloat16", "--max_rounds", 20, "--fit_networks", 2)
    if "this processor does not compute in" in done.stderr:
        pytest.skip("the processor has no bfloat16")
    assert done.returncode == 0, done.stderr
    table = load_table(out, load_space(space_file))
    assert table.runtime.startswith("OpenVINO 20") and conditions(table)["precision"] == "bfloat16"
    assert installed_version(table.runtime) == table.runtime
    done = run("--rescale", out, "--precision", "float32")
    assert done.returncode == 2
    assert "measured with precision 'bfloat16', now it is 'float32'" in done.stderr
