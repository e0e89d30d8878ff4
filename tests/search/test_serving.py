"""Networks served from an elastic supernet: how they are chosen, and that they are what it has."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors import SafetensorError
from safetensors.numpy import save_file

from src.arch.architecture import load_architecture
from src.arch.cost_table import CostTableError, arithmetic_table
from src.arch.space import load_space
from src.checkpoint.format import read_checkpoint
from src.checkpoint.packed import find_packed, read_packed, statistics_file, write_packed
from src.checkpoint.restore import build_network, cell_weights
from src.config import ServeConfig, SubnetConfig
from src.errors import Fault, UserError
from src.files import read_json, read_jsonl, write_json, write_jsonl
from src.search.budget import check_limit
from src.search.choosing import Chooser, Predictor
from src.search.packing import along_costs
from src.search.subnet_accuracies import choose
from src.search.subnet_evaluation import (
    LayerOutputs,
    SuperkernelEvaluator,
    open_images,
    parts,
    read_supernet,
)
from src.search.superkernel import inherit
from tests.conftest import mode_of, run_in_this_process
from tests.deployment.test_export import assert_close, logits_by, logits_of
from tests.search.test_search import SPACE

MACRO = load_space("nas_bench_macro")
TABLE = arithmetic_table(MACRO, "macs", 10)
DIGITS = (
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
)
IMAGES = {"dataset_name": "digits", "num_classes": 10, "image_size": [16, 16]}
SERVE = ("--cost", "macs", "--evaluations", 10, "--calibration_images", 40, "--batch_size", 20)


def additive(network: tuple[str, ...]) -> float:
    """An accuracy that is a sum over layers, in which later layers count less."""
    values = {"SKIP": 0.0, "K3E3": 1.0, "K5E6": 1.5}
    return 80 + sum(values[choice] / (1 + layer) for layer, choice in enumerate(network))


def random_networks(count: int) -> list[tuple[str, ...]]:
    every = list(MACRO.networks())
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))[:count]]


def test_regression_predicts_what_is_additive():
    networks = random_networks(150)
    known = {network: additive(network) for network in networks[:100]}
    predictor = Predictor(MACRO, known)
    expected = np.array([additive(network) for network in networks[100:]])
    np.testing.assert_allclose(predictor(networks[100:]), expected, atol=0.05)
    assert predictor.error(np.ones(100)) < 0.05


def test_error_is_that_of_networks_that_the_regression_has_not_seen():
    noise = np.random.default_rng(1).normal(0, 1, 60)
    known = dict(zip(random_networks(60), noise.tolist(), strict=True))
    # What is noise cannot be predicted, though a regression fits a part of it.
    assert Predictor(MACRO, known).error(np.ones(60)) > 0.9 * noise.std()


@pytest.mark.parametrize("limits", [[60.0], [30.0, 60.0, 90.0]])
def test_chosen_networks_keep_their_limits_and_are_near_the_best(limits):
    noise = np.random.default_rng(2)
    asked: list[tuple[str, ...]] = []

    def measured(network):
        asked.append(network)
        return additive(network) + noise.normal(0, 0.1)

    choices = Chooser(MACRO, TABLE, limits, measured, seed=3).choose(45)
    assert len(asked) == len(set(asked)) == 45
    assert [choice.limit for choice in choices] == limits
    for choice in choices:
        assert choice.decisions == MACRO.canonical(choice.decisions)
        assert choice.cost == TABLE.total(choice.decisions) <= choice.limit
        best = max(
            additive(network)
            for network in MACRO.networks()
            if TABLE.total(network) <= choice.limit
        )
        assert additive(choice.decisions) > best - 0.15
        assert 0.02 < choice.error < 0.4


def test_networks_of_all_costs_are_packed():
    known = {network: additive(network) for network in random_networks(400)}
    chosen = along_costs(Predictor(MACRO, known), TABLE, 10)
    costs = [TABLE.total(network) for network in chosen]
    edges = np.linspace(*(bound(map(TABLE.total, known)) for bound in (min, max)), 11)
    assert len(chosen) == 10 and costs == sorted(costs)
    for network, cost, low, high in zip(chosen, costs, edges, edges[1:], strict=False):
        assert low <= cost <= high + 1e-9
        inside = [additive(other) for other in known if low <= TABLE.total(other) < high]
        assert additive(network) > max(inside) - 0.15


def test_the_same_seed_makes_the_same_choices():
    found = []
    for seed in (1, 1, 2):
        chooser = Chooser(MACRO, TABLE, [60.0], additive, seed)
        found.append((chooser.choose(20), chooser.known))
    assert found[0] == found[1] != found[2]


def test_as_many_networks_as_asked_for_are_evaluated():
    chosen = choose(MACRO, TABLE, SubnetConfig(near="60", even=184))
    assert len(set(chosen)) == len(chosen) == 280
    spread = [TABLE.total(network) for network in chosen[96:]]  # after those near 60
    counts, _ = np.histogram(spread, bins=4, range=TABLE.range())
    assert counts.min() >= 30
    with pytest.raises(CostTableError, match="cost 20.68 to 105.7"):
        choose(MACRO, TABLE, SubnetConfig(near="500"))


def test_a_limit_that_no_network_exceeds_allows_all():
    check_limit(TABLE, 1000)
    with pytest.raises(CostTableError):
        check_limit(TABLE, math.nan)
    with pytest.raises(CostTableError):
        check_limit(TABLE, 20)
    chooser = Chooser(MACRO, TABLE, [1000], additive, 0)
    (choice,) = chooser.choose(60)
    assert choice.cost > 95 and len(chooser.known) == 60


def test_a_limit_with_few_networks_ends_early():
    lowest = TABLE.range()[0]
    chooser = Chooser(MACRO, TABLE, [lowest], additive, 1)
    (choice,) = chooser.choose(50)
    assert list(chooser.known) == [choice.decisions] == [MACRO.smallest_choices]


def test_the_cheapest_network_need_not_be_the_smallest():
    """As by a measured table of a device to which the size of a kernel makes no difference."""
    layers = {name: dict(costs) for name, costs in TABLE.layers.items()}
    first = next(iter(layers.values()))
    first["K3E3"], first["K5E6"] = first["K5E6"], first["K3E3"]
    table = replace(TABLE, layers=layers)
    assert table.digest() != TABLE.digest() == replace(TABLE, name="other").digest()
    (choice,) = Chooser(MACRO, table, [table.range()[0]], additive, 1).choose(50)
    assert choice.decisions == ("K5E6", *MACRO.smallest_choices[1:])


@pytest.fixture(scope="module")
def space_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("space") / "tiny.json"
    file.write_text(json.dumps(SPACE))
    return file


@pytest.fixture(scope="module")
def supernet(space_file, few_digits, tmp_path_factory):
    """The folder of a short training."""
    folder = tmp_path_factory.mktemp("elastic")
    run = run_in_this_process(
        "train.py",
        *DIGITS,
        *("--data_path", few_digits, "--space", space_file, "--epoch_size", 6),
        *("--val_while_train", "false", "--checkpoint_path", folder),
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def served(supernet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    run = run_in_this_process(
        "search.py",
        *("--from_supernet", supernet, *SERVE, "--sweep", "0.3,0.5", "--checkpoint_path", folder),
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr
    return folder


def test_each_limit_has_its_network(served):
    front = json.loads((served / "front.json").read_text())
    assert front["unit"] == "million multiply-adds"
    for row, limit in zip(front["networks"], (0.3, 0.5), strict=True):
        place = served / f"target_{limit}"
        assert row["target"] == limit and row["macs"] == pytest.approx(row["cost"], abs=1e-6)
        assert row["cost"] <= limit
        arch = load_architecture(place / "arch.json")
        assert arch.provenance["top1"] == row["top1"]
        assert read_checkpoint(place / "inherited.ckpt").meta.arch == arch
    page = (served / "report.html").read_text(encoding="utf-8")
    assert all(load_architecture(row["arch"]).name in page for row in front["networks"])
    assert len(read_jsonl(served / "subnets.jsonl")) == 1 + 10
    assert json.loads((served / "serve.json").read_text())["images"] == IMAGES


def test_an_interrupted_command_goes_on_and_finds_the_same(
    served, supernet, call_program, tmp_path
):
    folder = tmp_path / "again"
    flags = ("--from_supernet", supernet, *SERVE, "--sweep", "0.3,0.5")
    folder.mkdir()
    lines = (served / "subnets.jsonl").read_text().splitlines(keepends=True)
    # Cut short in the middle of the fifth network, and of a time when headers named no images.
    header = json.loads(lines[0])
    assert header.pop("images") == IMAGES
    begun = [json.dumps(header) + "\n", *lines[1:5], lines[5][:20]]
    (folder / "subnets.jsonl").write_text("".join(begun))
    run = call_program("search.py", *flags, "--checkpoint_path", folder)
    assert run.returncode == 0, run.stderr
    assert (folder / "subnets.jsonl").read_text() == "".join(lines)
    for name in ("target_0.3", "target_0.5"):
        mine, theirs = (read_checkpoint(at / name / "inherited.ckpt") for at in (folder, served))
        assert mine.meta.arch == theirs.meta.arch
        for key, value in theirs.weights.items():
            np.testing.assert_array_equal(mine.weights[key], value)


def test_a_served_network_is_what_the_supernet_has(served, supernet):
    """Masked by MindSpore's layers, active alone by the operators, and derived."""
    checkpoint, space = read_supernet(str(supernet))
    derived = read_checkpoint(served / "target_0.5/inherited.ckpt")
    decisions = derived.meta.arch.provenance["decisions"]
    pixels = np.random.default_rng(0).normal(size=(20, 3, 16, 16)).astype(np.float32)
    expected = build_network(derived)(Tensor(pixels)).asnumpy()
    scale = np.abs(expected).max()
    for kernels in ("off", "auto"):
        config = ServeConfig(calibration_images=40, batch_size=20, cpu_kernels=kernels)
        images = open_images(config, checkpoint, space, "held")
        evaluator = SuperkernelEvaluator(checkpoint, images)
        evaluator.calibrate(decisions)
        logits = evaluator.network(Tensor(pixels), None, parts(space, decisions)).asnumpy()
        assert np.abs(logits - expected).max() <= 1e-5 * scale
        own = inherit(cell_weights(evaluator.network), space, decisions)
        for name, value in derived.weights.items():
            np.testing.assert_allclose(own[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_layers_that_networks_share_are_computed_once(monkeypatch):
    calls = []

    def layer(name):
        return lambda x, *others: calls.append(name) or np.float32(x + sum(filter(None, others)))

    network = SimpleNamespace(
        stem=layer("stem"), blocks=[layer("first"), layer("second")], classify=lambda x: 10 * x
    )

    def logits(kept, *decisions):
        calls.clear()
        outputs.restart(kept)
        return [int(outputs.logits(np.float32(batch), decisions)) for batch in (1, 2)]

    everything = ["stem", "first", "second"] * 2
    outputs = LayerOutputs(network)
    assert logits(0, 3, 4) == [80, 90] and calls == everything  # tells how much there is
    assert logits(2, 3, 5) == [90, 100] and calls == everything
    assert logits(2, 3, 6) == [100, 110] and calls == ["second"] * 2
    assert logits(1, 4, 6) == [110, 120] and calls == ["first", "second"] * 2
    assert logits(0, 4, 5) == [100, 110] and calls == everything
    monkeypatch.setattr(LayerOutputs, "MOST_BYTES", 2 * 3 * np.float32().nbytes - 1)
    outputs = LayerOutputs(network)
    for last in range(3):
        assert logits(2, 4, last) == [50 + 10 * last, 60 + 10 * last] and calls == everything


def test_networks_do_not_depend_on_those_evaluated_before(supernet, monkeypatch):
    """To the last bit, though what they have in common is computed once."""
    checkpoint, space = read_supernet(str(supernet))
    config = ServeConfig(calibration_images=40, batch_size=20)
    networks = sorted(space.networks())[:40:3]
    again = networks[4::7]
    evaluator, *alone = (
        SuperkernelEvaluator(checkpoint, open_images(config, checkpoint, space, "held"))
        for _ in range(1 + len(again))
    )

    def state(evaluator, network):
        result = evaluator(network)
        own = inherit(cell_weights(evaluator.network), space, network)
        return result.loss, {name: value.copy() for name, value in own.items()}

    with mode_of(ms.PYNATIVE_MODE):
        shared = {network: state(evaluator, network) for network in networks}
        monkeypatch.setattr(LayerOutputs, "MOST_BYTES", 0)
        for network, own_evaluator in zip(again, alone, strict=True):
            loss, own = state(own_evaluator, network)
            assert loss == shared[network][0]
            for name, value in own.items():
                np.testing.assert_array_equal(value, shared[network][1][name], err_msg=name)


def test_a_served_network_answers_in_cpp_as_the_supernet(
    served, supernet, few_digits, classify, call_program, tmp_path
):
    place = served / "target_0.5"
    model = tmp_path / "model.mindir"
    run = call_program(
        "export.py",
        *("--ckpt_file", place / "inherited.ckpt", "--file_name", model.with_suffix("")),
    )
    assert run.returncode == 0, run.stderr
    process, answers = classify(model, few_digits / "val")
    assert process.returncode == 0 and len(answers) == 50, process.stderr
    checkpoint, space = read_supernet(str(supernet))
    config = ServeConfig(calibration_images=40, batch_size=20)
    evaluator = SuperkernelEvaluator(checkpoint, open_images(config, checkpoint, space, "held"))
    decisions = load_architecture(place / "arch.json").provenance["decisions"]
    evaluator.calibrate(decisions)

    def masked(images):
        return evaluator.network(images, None, parts(space, decisions))

    for file, logits in logits_by(masked, checkpoint, few_digits / "val").items():
        assert_close(logits_of(tmp_path, file), logits, 1e-5)


def test_a_network_is_trained_on(supernet, call_program, tmp_path):
    flags = ("--from_supernet", supernet, *SERVE, "--target", 0.4, "--finetune_epochs", 1)
    flags = (*flags, "--checkpoint_path", tmp_path / "run")
    run = call_program("search.py", *flags)
    assert run.returncode == 0, run.stderr
    tuned = read_checkpoint(tmp_path / "run/finetuned/ckpt_0/best.ckpt")
    assert call_program("search.py", *flags).returncode == 0  # nothing is left to do
    assert tuned.meta.arch == load_architecture(tmp_path / "run/arch.json")
    assert tuned.meta.config["holdout"] == 0.1 and tuned.meta.config["lr_init"] == pytest.approx(
        0.01
    )


@pytest.fixture(scope="module")
def packed(supernet, tmp_path_factory):
    """The supernet packed, with all of its networks' accuracies."""
    folder = tmp_path_factory.mktemp("packed")
    accuracies, file = folder / "subnets.jsonl", folder / "tiny.safetensors"
    images = ("--calibration_images", 40, "--batch_size", 20)
    for program, *flags in (
        ("scripts/evaluate_subnets.py", "--val_images", 40, "--out", accuracies),
        ("scripts/pack_supernet.py", "--accuracies", accuracies, "--networks", 5, "--out", file),
    ):
        run = run_in_this_process(program, "--ckpt", supernet, *images, *flags, cwd=folder)
        assert run.returncode == 0, run.stderr
    return file


def test_a_packed_supernet_serves_without_images(packed, supernet, call_program, tmp_path):
    run = call_program(
        "search.py",
        *("--from_supernet", packed, "--cost", "macs", "--target", 0.5),
        *("--checkpoint_path", tmp_path),
    )
    assert run.returncode == 0, run.stderr
    network = read_checkpoint(tmp_path / "inherited.ckpt")
    decisions = tuple(network.meta.arch.provenance["decisions"])
    contents = read_packed(packed)
    assert decisions in contents.statistics and contents.meta.space.name == "tiny"
    assert "data_path" not in network.meta.config
    assert network.meta.metrics["top1"] == contents.accuracies[decisions]
    run = call_program("eval.py", "--checkpoint_path", tmp_path / "inherited.ckpt")
    assert run.returncode == 2 and "does not say where its images are" in run.stderr

    # The same network by the supernet itself: weights differ by the rounding to float16.
    checkpoint, space = read_supernet(str(supernet))
    config = ServeConfig(calibration_images=40, batch_size=20)
    evaluator = SuperkernelEvaluator(checkpoint, open_images(config, checkpoint, space, "val"))
    assert len(contents.statistics) >= 3
    for each, statistics in contents.statistics.items():
        evaluator.calibrate(each)
        own = inherit(cell_weights(evaluator.network), space, each)
        got = network.weights if each == decisions else statistics
        assert each != decisions or set(got) == set(own)
        for name, value in got.items():
            scale = max(np.abs(own[name]).max(), 1e-3)
            np.testing.assert_allclose(value, own[name], atol=2e-3 * scale, err_msg=name)


def test_test_images_do_not_choose_what_a_packed_supernet_serves(
    packed, supernet, call_program, tmp_path
):
    header, *lines = read_jsonl(packed.with_name("subnets.jsonl"))
    assert header["split"] == "held"
    tested, out = tmp_path / "tested.jsonl", tmp_path / "out.safetensors"
    write_jsonl(tested, [{**header, "split": "val"}, *lines])
    run = call_program(
        "scripts/pack_supernet.py", "--ckpt", supernet, "--accuracies", tested, "--out", out
    )
    assert run.returncode == 2 and "split is 'val', should be 'held'" in run.stderr
    held = read_jsonl(packed.with_name("subnets.jsonl"))
    for change in ({"top1": None}, {"top1": math.nan}, {"decisions": lines[0]["decisions"][:-1]}):
        write_jsonl(tested, [*held, {**lines[0], **change}])
        run = call_program(
            *("scripts/pack_supernet.py", "--ckpt", supernet, "--accuracies", tested, "--out", out)
        )
        assert run.returncode == 2 and "is a line of no network of space" in run.stderr, run.stderr
    write_jsonl(tested, [header, *lines, header])
    for flags, reason in (
        (("--accuracies", tested), "is a line of no network"),
        ((), "accuracies is not given"),
        (("--accuracies", tested, "--val_images", 9), "packing evaluates nothing"),
    ):
        run = call_program("scripts/pack_supernet.py", "--ckpt", supernet, "--out", out, *flags)
        assert run.returncode == 2 and reason in run.stderr, run.stderr
    assert not out.exists()


def test_a_packed_supernet_is_evaluated_with_images(packed, few_digits, call_program, tmp_path):
    run = call_program(
        "scripts/evaluate_subnets.py",
        *("--ckpt", packed, "--even", 2, "--out", tmp_path / "subnets.jsonl"),
        *("--data_path", few_digits, "--calibration_images", 40, "--batch_size", 20),
    )
    assert run.returncode == 0, run.stderr
    lines = read_jsonl(tmp_path / "subnets.jsonl")[1:]
    known = read_packed(packed).accuracies
    assert len(lines) == 2
    for line in lines:  # the same 12 images, of which rounded weights may turn one
        assert line["top1"] == pytest.approx(known[tuple(line["decisions"])], abs=100 / 12 + 0.1)


@pytest.mark.parametrize(
    "flags, reason",
    [
        (("--cost", "macs", "--target", 0.01), "networks of space 'tiny' cost 0.2221 to 0.6389"),
        (("--cost", "macs", "--target", 0.5, "--finetune_epochs", 1), "needs images to train on"),
        (("--cost", "macs", "--target", 0.5, "--seed", 3), "seed is for evaluations"),
        (
            ("--cost", "macs", "--target", 0.5, "--dataset_name", "digits"),
            "dataset_name is for evaluations",
        ),
    ],
)
def test_mistakes_with_a_packed_supernet(packed, call_program, tmp_path, flags, reason):
    folder = tmp_path / "run"
    run = call_program("search.py", "--from_supernet", packed, *flags, "--checkpoint_path", folder)
    assert run.returncode == 2 and reason in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert not folder.exists()


def test_files_of_a_packed_supernet_belong_together(packed, tmp_path):
    whole, statistics = packed.read_bytes(), statistics_file(packed).read_bytes()
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(whole)
    with pytest.raises(UserError, match="copy.statistics.safetensors: no such file"):
        read_packed(copy)
    statistics_file(copy).write_bytes(statistics[:-2] + b"\0\1")
    with pytest.raises(UserError, match="is not the file that was written with copy.safetensors"):
        read_packed(copy)
    copy.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
    with pytest.raises(UserError, match="copy.safetensors: is damaged"):
        read_packed(copy)
    copy.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read as a packed supernet"):
        read_packed(copy)


def test_both_files_of_a_packed_supernet_are_replaced_or_none(packed, tmp_path, monkeypatch):
    contents, copy = read_packed(packed), tmp_path / "copy.safetensors"
    write_packed(replace(contents, path=copy))
    assert read_packed(copy).accuracies == contents.accuracies
    largest = contents.meta.space.largest_choices
    few = {largest: contents.statistics[largest]}

    def full(arrays, path, texts):
        if ".statistics." in path.name:
            return save_file(arrays, path, texts)
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("src.checkpoint.packed.save_file", full)
    with pytest.raises(Fault, match="copy.safetensors: cannot be written .No space left"):
        write_packed(replace(contents, path=copy, statistics=few))
    assert read_packed(copy).statistics.keys() == contents.statistics.keys()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_beside_a_packed_file_of_its_name_is_the_folder(tmp_path):
    for name in ("cifar10", str(tmp_path / "own")):
        (tmp_path / "own.safetensors").touch()
        found = find_packed(name)
        assert (found is not None) == (name == "cifar10")


def test_results_of_other_commands_are_not_replaced(packed, supernet, call_program, tmp_path):
    flags = ("--cost", "macs", "--target", 0.5, "--checkpoint_path", tmp_path)
    (tmp_path / "arch.json").write_text("of a search")
    run = call_program("search.py", "--from_supernet", packed, *flags)
    assert run.returncode == 2 and "arch.json: is there already" in run.stderr, run.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["arch.json"]
    (tmp_path / "arch.json").unlink()
    assert call_program("search.py", "--from_supernet", packed, *flags).returncode == 0
    before = (tmp_path / "inherited.ckpt").read_bytes()
    run = call_program("search.py", "--from_supernet", supernet, *SERVE, *flags[2:])
    assert run.returncode == 2 and "serve.json: " in run.stderr, run.stderr
    settings = json.loads((tmp_path / "serve.json").read_text())
    (tmp_path / "serve.json").write_text(json.dumps({**settings, "weights": "others"}))
    run = call_program("search.py", "--from_supernet", packed, *flags)
    assert run.returncode == 2 and "weights was 'others'" in run.stderr, run.stderr
    assert (tmp_path / "inherited.ckpt").read_bytes() == before


def test_accuracies_of_another_supernet_are_not_packed(packed, supernet, call_program, tmp_path):
    lines = read_jsonl(packed.with_name("subnets.jsonl"))
    lines[0]["seed"] = 7
    write_jsonl(tmp_path / "subnets.jsonl", lines)
    flags = ("--ckpt", supernet, "--out", tmp_path / "out.safetensors")
    for file, reason in (("subnets.jsonl", "seed is 7 there, and 1 in"), ("none", "should be a")):
        run = call_program("scripts/pack_supernet.py", *flags, "--accuracies", tmp_path / file)
        assert run.returncode == 2 and reason in run.stderr, run.stderr
        assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "flags, reason",
    [
        (("--cost", "macs", "--target", 0.01), "networks of space 'tiny' cost 0.2221 to 0.6389"),
        (("--cost", "macs", "--target", 0.5, "--front", 3), "one of target_latency_ms"),
        (("--cost", "macs", "--front", 1), "front is 1, should be 2 or more"),
        (("--cost", "macs", "--target", "inf"), "target is 'inf': input should be a finite number"),
        (("--cost", "macs", "--sweep", "0.4,inf"), "should be numbers with commas"),
        (("--cost", "macs"), "one of target_latency_ms"),
        (("--latency_table", "pixel1", "--target_latency_ms", 60), "made for space 'imagenet'"),
        (("--target_latency_ms", 60), "latency_table is not given"),
        (("--cost", "macs", "--target", 0.5, "--resume", "true"), "unknown flag '--resume'"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(
    supernet, call_program, tmp_path, flags, reason
):
    run = call_program(
        "search.py", "--from_supernet", supernet, *flags, "--checkpoint_path", tmp_path / "run"
    )
    assert run.returncode == 2 and reason in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert not (tmp_path / "run").exists()


def test_supernets_of_another_kind_are_refused(served, supernet, call_program, tmp_path):
    flags = ("--cost", "macs", "--target", 0.5, "--checkpoint_path", tmp_path / "run")
    network = served / "target_0.3/inherited.ckpt"
    run = call_program("search.py", "--from_supernet", network, *flags)
    assert run.returncode == 2 and "holds a single network" in run.stderr
    run = call_program("eval.py", "--checkpoint_path", supernet / "ckpt_0")
    assert run.returncode == 2 and "search.py --from_supernet" in run.stderr


def test_other_settings_need_another_folder(served, supernet, call_program):
    run = call_program(
        "search.py",
        *("--from_supernet", supernet, *SERVE, "--target", 0.4, "--checkpoint_path", served),
    )
    assert run.returncode == 2 and "serve.json: " in run.stderr
    assert "another --checkpoint_path starts beside them" in run.stderr
    settings = read_json(served / "serve.json")
    write_json(served / "serve.json", {**settings, "costs": "of another table"})
    run = call_program(
        *("search.py", "--from_supernet", supernet, *SERVE, "--sweep", settings["sweep"]),
        *("--checkpoint_path", served),
    )
    write_json(served / "serve.json", settings)
    assert run.returncode == 2 and "costs was 'of another table'" in run.stderr, run.stderr
