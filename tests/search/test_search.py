"""The search through the command line on real images: its files, resume, targets, mistakes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from scripts.explain_search import fallen
from src.arch.architecture import load_architecture
from src.arch.cost import network_cost
from src.arch.cost_table import arithmetic_table
from src.arch.space import SKIP, load_space
from src.checkpoint.format import read_checkpoint
from src.checkpoint.restore import cell_weights, load_weights, overwrite
from src.config import SubnetConfig
from src.files import read_jsonl, write_jsonl
from src.search.indicators import FREE, indicator_costs, missing_indicators, part_name
from src.search.subnet_evaluation import open_batches, read_supernet
from src.search.superkernel import inherit
from src.search.superkernel_search import REACH, Phases, SuperkernelSearch
from src.search.superkernel_step import SearchStep
from src.spnasnet import SPNASNet
from src.training.evaluation import evaluate
from tests.conftest import ROOT, assert_nothing_deprecated

SPACE = {
    "format": "spnas-space",
    "version": 1,
    "name": "tiny",
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
            for stride, before, after in ((2, 8, 12), (1, 12, 12), (2, 12, 16))
        ),
    ],
    "head_channels": 32,
    "bn_epsilon": 1e-5,
    "provenance": {},
}
SEARCH = (
    "--dataset_name",
    "digits",
    "--image_height",
    16,
    "--image_width",
    16,
    "--resize",
    16,
    "--batch_size",
    20,
    "--epoch_size",
    4,
    "--latency_free_epochs",
    1,
    "--log_steps",
    2,
)


@pytest.fixture(scope="module")
def space_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("space") / "tiny.json"
    file.write_text(json.dumps(SPACE))
    return file


@pytest.fixture(scope="module")
def flags(space_file, few_digits):
    return [*map(str, SEARCH), "--space", str(space_file), "--data_path", str(few_digits)]


def macs_table(space_file):
    """Multiply-adds of networks for the ten digits."""
    return arithmetic_table(load_space(space_file), "macs", 10)


def history(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(flags, tmp_path_factory):
    """An uninterrupted search for a target, one of two, with checkpoints on the way."""
    folder = tmp_path_factory.mktemp("search")
    run = subprocess.run(
        [
            sys.executable,
            str(ROOT / "search.py"),
            *flags,
            "--sweep",
            "0.4,0.5",
            "--save_checkpoint_steps",
            "2",
            "--checkpoint_path",
            str(folder),
        ],
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return folder / "target_0.4"


@pytest.mark.slow
def test_a_search_ends_near_its_target_and_explains_itself(reference, space_file):
    names = {file.name for file in reference.iterdir()}
    assert {
        "arch.json",
        "history.jsonl",
        "inherited.ckpt",
        "ckpt_0",
    } <= names
    arch, lines = load_architecture(reference / "arch.json"), history(reference)
    space = load_space(space_file)
    cost = macs_table(space_file).total(arch.provenance["decisions"])
    assert abs(cost / 0.4 - 1) <= 0.03 and arch.provenance["cost"] == pytest.approx(cost)
    assert space.decisions_of(arch) == arch.provenance["decisions"] == lines[-1]["decisions"]
    assert len(lines) == 4 * 6 and lines[0]["decisions"] == ["K5E6"] * 3
    assert {"loss", "cross_entropy", "cost", "latency_weight"} <= set(lines[0])
    # The cost of a line is that of its decisions.
    for line in lines:
        assert line["cost"] == pytest.approx(
            macs_table(space_file).total(line["decisions"]), rel=1e-5
        )
    # The penalty: from the seventh step on, above a budget that falls from the largest network.
    weights, costs, losses, entropies = (
        np.array([line[key] for line in lines])
        for key in ("latency_weight", "cost", "loss", "cross_entropy")
    )
    largest = macs_table(space_file).range()[1]
    assert (weights[:6] == 0).all() and weights[6] > 0 and (weights[6:] == weights[6]).all()
    assert arch.provenance["latency_weight"] == pytest.approx(weights[6])
    ramp = np.clip((np.arange(24) - 6) / 15, 0, 1)
    above = np.maximum(np.log(costs / largest) - ramp * np.log(0.4 / largest), 0)
    penalty = np.where(above < 0.05, above**2 / 0.1, above - 0.025)
    np.testing.assert_allclose(losses - entropies, 1000 * weights * penalty, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_inherited_weights_classify_as_the_supernet_and_can_be_trained(
    reference, call_program, few_digits, tmp_path
):
    run = call_program(
        "eval.py", "--checkpoint_path", reference, "--output", tmp_path / "eval.json"
    )
    assert run.returncode == 0, run.stderr
    evaluated = json.loads((tmp_path / "eval.json").read_text())["results"][0]
    metrics = [
        json.loads(line)
        for line in (reference / "ckpt_0" / "metrics.jsonl").read_text().splitlines()
    ]
    last = [line for line in metrics if line["kind"] == "val"][-1]
    assert evaluated["top1"] == last["top1"] and evaluated["loss"] == pytest.approx(
        last["loss"], rel=1e-5
    )
    run = call_program(
        "train.py",
        "--dataset_name",
        "digits",
        "--data_path",
        few_digits,
        "--image_height",
        16,
        "--image_width",
        16,
        "--resize",
        16,
        "--arch",
        reference / "arch.json",
        "--pre_trained",
        reference / "inherited.ckpt",
        "--batch_size",
        20,
        "--epoch_size",
        1,
        *("--lr_init", 1e-30, "--ema_decay", 0.9),
        "--checkpoint_path",
        tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert re.search(r"(\d+) of \1 parameters loaded \(project names\)", run.stdout), run.stdout
    best = read_checkpoint(tmp_path / "ckpt_0" / "best.ckpt")
    assert best.meta.arch == load_architecture(reference / "arch.json")
    # At this rate the weights, and their average, are those that the training began with.
    given = read_checkpoint(reference / "inherited.ckpt").weights
    for name, value in best.network_weights().items():
        if ".moving_" not in name:
            np.testing.assert_allclose(value, given[name], rtol=1e-6, err_msg=name)
    run = call_program("eval.py", "--checkpoint_path", reference / "ckpt_0")
    assert run.returncode == 2 and "inherited.ckpt" in run.stderr


@pytest.mark.slow
def test_resume_after_kill_equals_the_uninterrupted_search(
    reference, flags, run_program, call_program, tmp_path
):
    own = [
        *flags,
        "--target",
        "0.4",
        "--save_checkpoint_steps",
        "2",
        "--checkpoint_path",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "search.py"), *own],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while (
        not (tmp_path / "ckpt_0" / "digits-3_2.ckpt").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = run_program("search.py", *own, "--resume", GLOG_v="2")
    assert resumed.returncode == 0 and "resumed from" in resumed.stdout, resumed.stderr
    assert_nothing_deprecated(resumed)
    assert (tmp_path / "report.html").is_file()
    assert history(tmp_path) == history(reference)
    table = json.loads((tmp_path / "ckpt_0/latency_table.json").read_text())
    table["constant"] += 1
    (tmp_path / "ckpt_0/latency_table.json").write_text(json.dumps(table))
    again = call_program("search.py", *own, "--resume")
    assert again.returncode == 2 and "latency_table.json: the search that" in again.stderr
    longer = call_program("search.py", *own[:-1], reference, "--epoch_size", 8, "--resume")
    assert longer.returncode == 2 and "decisions are fixed in the search" in longer.stderr
    ours, theirs = (
        read_checkpoint(folder / "inherited.ckpt").weights for folder in (tmp_path, reference)
    )
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.parametrize("done, before, kept", [(6, 5, False), (9, 0, False), (9, 5, True)])
def test_the_cost_is_weighed_where_it_begins_to_count_or_later(space_file, done, before, kept):
    """Later when a search that did not count it yet is resumed with shorter phases."""
    space = load_space(space_file)
    free = missing_indicators(space) == FREE
    weight = Parameter(Tensor(np.float32(before)), name="latency_weight")
    task = SimpleNamespace(
        _space=space,
        _table=macs_table(space_file),
        _free=free,
        _phases=Phases(6, 18),
        _margins=lambda: (None, np.ones(free.shape)),
        _run=SimpleNamespace(config=SimpleNamespace(threshold_lr=1.0)),
        step=SimpleNamespace(latency_weight=weight),
    )
    SuperkernelSearch._weigh_cost(task, done)
    table = macs_table(space_file)
    prices = indicator_costs(space, table) / table.range()[1]
    # Each margin is 1, the ramp has 12 steps, and its weights add up to REACH times the median.
    needed = REACH * np.median(1 / prices[free & (prices > 0)]) / (1000 * 12)
    assert task._weighed
    assert weight.asnumpy() == pytest.approx(before if kept else needed, rel=1e-5)


def test_thresholds_take_plain_steps_and_leave_out_what_is_no_number():
    thresholds = Parameter(Tensor(np.array([1.0, 2.0], np.float32)))
    step = SimpleNamespace(thresholds=thresholds, threshold_rate=0.5, reduce_thresholds=None)
    SearchStep.move_thresholds(step, Tensor(np.array([3.0, np.nan], np.float32)))
    assert thresholds.asnumpy().tolist() == [-0.5, 2.0]


@pytest.mark.slow
def test_cost_falls_as_its_weight_grows(flags, call_program, tmp_path):
    """From the largest network, while the cross-entropy alone could change it, to the smallest.

    Of two layers, one of which can be skipped.
    """
    file = tmp_path / "smaller.json"
    file.write_text(json.dumps({**SPACE, "layers": SPACE["layers"][:3]}))
    flags = (*flags, "--space", file, "--latency_weight", 100, "--checkpoint_path", tmp_path)
    run = call_program("search.py", *flags)
    assert run.returncode == 0, run.stderr
    low, high = macs_table(file).range()
    costs = [line["cost"] for line in history(tmp_path)]
    assert costs[:6] == pytest.approx([high] * 6)  # of the epoch in which the cost does not count
    cost = load_architecture(tmp_path / "arch.json").provenance["cost"]
    assert (costs[-1], cost) == pytest.approx((low, low))


@pytest.mark.slow
def test_a_sweep_has_a_table_and_a_page_of_all_networks(reference):
    rows = json.loads((reference.parent / "pareto.json").read_text())["networks"]
    assert [row["target"] for row in rows] == [0.4, 0.5]
    assert all(abs(row["cost"] / row["target"] - 1) <= 0.03 for row in rows)
    page = (reference.parent / "report.html").read_text(encoding="utf-8")
    assert all(load_architecture(row["arch"]).name in page for row in rows)


def test_random_networks_have_the_target_as_their_cost(flags, call_program, tmp_path, space_file):
    run = call_program(
        "search.py",
        *flags,
        "--random",
        4,
        "--target",
        0.4,
        "--checkpoint_path",
        tmp_path / "random",
    )
    assert run.returncode == 0, run.stderr
    table = macs_table(space_file)
    archs = [load_architecture(file) for file in sorted((tmp_path / "random").glob("*.json"))]
    assert len({tuple(arch.provenance["decisions"]) for arch in archs}) == 4
    assert all(abs(table.total(arch.provenance["decisions"]) / 0.4 - 1) <= 0.02 for arch in archs)


def own_accuracy(weights, arch, batches, validation) -> float:
    """Top-1 of a network by itself, with the mean of the statistics of batches."""
    sampler = SPNASNet(arch, 10, momentum=0.0).set_train()
    network = SPNASNet(arch, 10).set_train(False)
    for cell in (sampler, network):
        load_weights(cell, weights, Path("inherited"))
    sums = {}
    for images in batches:
        sampler(Tensor(images))
        for name, value in cell_weights(sampler).items():
            sums[name] = sums.get(name, 0) + value.astype(np.float64)
    for name, parameter in network.parameters_dict().items():
        if ".moving_" in name:
            overwrite(parameter, Tensor((sums[name] / len(batches)).astype(np.float32)))
    return evaluate(network, validation).top1


@pytest.mark.slow
def test_subnets_have_the_accuracies_of_their_networks(
    reference, space_file, tmp_path, call_program
):
    flags = "--ckpt", reference / "ckpt_0", "--val_images", 100, "--calibration_images", 40
    flags = *flags, "--batch_size", 20, "--out", tmp_path / "subnets.jsonl"
    run = call_program("scripts/evaluate_subnets.py", *flags, "--even", 3)
    assert run.returncode == 0, run.stderr
    header, *lines = read_jsonl(tmp_path / "subnets.jsonl")
    assert header["format"] == "spnas-subnets" and len(lines) == 3

    # The same networks by themselves.
    checkpoint, space = read_supernet(str(reference / "ckpt_0"))
    config = SubnetConfig(batch_size=20)
    batches = [images for images, _ in open_batches(config, checkpoint, "train", 40).epoch()]
    validation = open_batches(config, checkpoint, "val", 100)
    for line in lines:
        decisions = line["decisions"]
        assert list(space.canonical(decisions)) == decisions
        assert line["macs"] == pytest.approx(macs_table(space_file).total(decisions))
        weights = inherit(checkpoint.network_weights(), space, decisions)
        expected = own_accuracy(weights, space.derive(decisions, "own"), batches, validation)
        assert line["top1"] == pytest.approx(expected, abs=1)  # one image may fall the other way

    # Again, with further networks; then for another number of images.
    near = f"{lines[0]['macs']:.6f}"
    run = call_program("scripts/evaluate_subnets.py", *flags, "--even", 3, "--near", near)
    assert run.returncode == 0, run.stderr
    again = read_jsonl(tmp_path / "subnets.jsonl")
    assert again[:4] == [header, *lines] and lines[0] in again
    assert len({tuple(line["decisions"]) for line in again[1:]}) == len(again) - 1
    run = call_program("scripts/evaluate_subnets.py", *flags, "--val_images", 50)
    assert run.returncode == 2 and "val_images is 100 there, and 50 now" in run.stderr
    write_jsonl(tmp_path / "others.jsonl", [{**header, "names": "others"}, *lines])
    run = call_program("scripts/evaluate_subnets.py", *flags, "--out", tmp_path / "others.jsonl")
    assert run.returncode == 2 and "names is 'others' there" in run.stderr
    for text in ("notes\n", '{"kind": "train"}\n'):
        (tmp_path / "other.txt").write_text(text)
        run = call_program("scripts/evaluate_subnets.py", *flags, "--out", tmp_path / "other.txt")
        assert run.returncode == 2 and "is there already, and holds no accuracies" in run.stderr
        assert (tmp_path / "other.txt").read_text() == text


def test_parts_fall_when_the_history_says_so():
    space = load_space("nas_bench_macro")
    rest = ["K3E3"] * 6
    history = [
        {"decisions": ["K5E6", "K5E6", *rest]},
        {"decisions": ["K3E3", "K3E3", *rest]},
        {"decisions": ["K5E6", SKIP, *rest]},
    ]
    steps = fallen(space, history)
    # The pair of layer 0 came back; that of layer 1 fell before the layer itself.
    assert steps[0, 0] == 4 and steps[1, 0] == 2 and steps[1, 2] == 3
    assert part_name(space, (1, 0)) == "layer1 K5E6" and part_name(space, (1, 2)) == "layer1"
    assert len(steps) == 8 + 5


@pytest.mark.slow
def test_a_search_is_explained(reference, space_file, tmp_path, call_program):
    parts = tmp_path / "parts.jsonl"
    flags = "--ckpt", reference / "ckpt_0", "--val_images", 100, "--calibration_images", 40
    run = call_program(
        "scripts/evaluate_subnets.py", *flags, "--batch_size", 20, "--parts", "true", "--out", parts
    )
    assert run.returncode == 0, run.stderr
    space, table = load_space(space_file), macs_table(space_file)
    top1 = {tuple(line["decisions"]): line["top1"] for line in read_jsonl(parts)[1:]}
    assert len(top1) == 1 + 7  # two parts of three layers, one of which can be skipped

    run = call_program("scripts/explain_search.py", reference, parts, "--out", tmp_path / "a.png")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "a.png").is_file() and "Kendall's tau" in run.stdout
    whole, without = ("K5E6",) * 3, ("K3E6", "K5E6", "K5E6")
    worth = (top1[whole] - top1[without]) / (table.total(whole) - table.total(without))
    name = f"layer{list(space.searched)[0].removeprefix('layer')} K5"
    (line,) = (line for line in run.stdout.splitlines() if line.startswith(name))
    assert line.split()[-1] == f"{worth:+.3f}"

    parts.write_text("\n".join(parts.read_text().splitlines()[:3]) + "\n")
    run = call_program("scripts/explain_search.py", reference, parts, "--out", tmp_path / "b.png")
    assert run.returncode == 2 and "the accuracies lack the network" in run.stderr


def test_parameters_are_those_of_the_classes(flags, call_program, tmp_path, space_file):
    target = np.mean(arithmetic_table(load_space(space_file), "params", 10).range())
    run = call_program(
        "search.py",
        *flags,
        "--random",
        1,
        "--cost",
        "params",
        "--target",
        target,
        "--checkpoint_path",
        tmp_path,
    )
    assert run.returncode == 0, run.stderr
    params = network_cost(load_architecture(tmp_path / "random_0.json"), 10).params / 1e6
    assert params == pytest.approx(target, rel=0.02)


def test_cifar10_has_ten_classes_where_its_folder_is_not_given(call_program, tmp_path):
    flags = "--dataset_name cifar10 --cost params --target 3 --random 1".split()
    run = call_program("search.py", *flags, "--checkpoint_path", tmp_path)
    assert run.returncode == 0, run.stderr
    params = network_cost(load_architecture(tmp_path / "random_0.json"), 10).params / 1e6
    assert params == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (("--target", 9), "networks of space 'tiny' cost"),
        (("--cost", "latency"), "latency_table is not given"),
        (
            ("--cost", "latency", "--latency_table", "pixel1"),
            "made for space 'imagenet', the space searched is 'tiny'",
        ),
        (
            ("--cost", "latency", "--latency_table", "nokia"),
            "neither a file nor one of epyc_1thread",
        ),
        (("--target_latency_ms", 9), "target_latency_ms is for --cost latency"),
        (("--random", 3), "random networks need a target"),
        (("--sweep", "a,b"), "should be numbers with commas"),
        (("--sweep", "40,60,60.001"), "should be numbers that differ in their first 4 digits"),
        (("--space", "moon"), "space 'moon' is neither a file nor one of imagenet"),
        (("--latency_free_epochs", 4), "together are more than the 4 of epoch_size"),
    ],
)
def test_mistakes_are_told_before_any_training(flags, call_program, tmp_path, wrong, reason):
    run = call_program("search.py", *flags, "--checkpoint_path", tmp_path / "run", *wrong)
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
    assert reason in run.stderr
    assert not (tmp_path / "run").exists()


def test_trained_networks_are_compared(run_program, call_program, tmp_path):
    for name, arch, top1 in (
        ("random_0", "spnas_smallest_32", 50.0),
        ("random_1", "spnas_smallest_32", 53.0),
        ("largest", "spnas_largest_32", 60.0),
    ):
        folder = tmp_path / name / "ckpt_0"
        folder.mkdir(parents=True)
        (folder / "arch.json").write_text(json.dumps(load_architecture(arch).to_dict()))
        lines = [{"kind": "train", "progress": 0.5, "loss": 2.0}] + [
            {"kind": "val", "progress": epoch, "top1": value, "top5": 90.0, "loss": 1.0}
            for epoch, value in ((1, 99.0), (2, top1))
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = run_program("scripts/compare_runs.py", "random_0", "random_1", "largest")
    assert run.returncode == 0, run.stderr
    assert (
        "random: top-1 51.50 +- 2.12 (mean and standard deviation of 2), 50.00 to 53.00"
        in run.stdout
    )
    assert re.search(r"largest +4.83M +162.6M +2 +60.00", run.stdout)
    run = call_program("scripts/compare_runs.py", "random_0/ckpt_0", "largest/ckpt_0")
    assert {"random_0/ckpt_0", "largest/ckpt_0"} <= set(run.stdout.split()), run.stdout
    run = call_program("scripts/compare_runs.py", "largest", "--num_classes", 10)
    assert re.search(r"largest +3.57M +161.3M", run.stdout)
    config = tmp_path / "largest/ckpt_0/config.yaml"
    config.write_text("image_height: 64\nimage_width: 64\n")
    run = call_program("scripts/compare_runs.py", "largest", "--num_classes", 10)
    size = network_cost(load_architecture("spnas_largest_32"), 10, (64, 64)).macs / 1e6
    assert size > 600 and f"{size:.1f}M" in run.stdout
    run = call_program("scripts/compare_runs.py", "random_2")
    assert run.returncode == 2 and run.stderr.startswith(
        "compare_runs.py: error: random_2: should be"
    )
