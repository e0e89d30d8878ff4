"""One-shot supernets: blocks, paths, training, search, and what is found, on real small images."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.arch.architecture import load_architecture
from src.arch.blocks import XceptionBlock, decode_block
from src.arch.cost import block_cost, network_cost
from src.arch.cost_table import CostTable, arithmetic_table
from src.arch.space import load_space
from src.checkpoint.folder import CheckpointFolder
from src.checkpoint.format import read_checkpoint
from src.checkpoint.restore import load_weights, open_source
from src.config import OneShotConfig, OneShotSearchConfig
from src.CrossEntropySmooth import CrossEntropySmooth
from src.data.preprocessing import CIFAR10_MEAN
from src.data.sources import ImageFolder, cifar10
from src.dataset import Loader
from src.errors import UserError
from src.files import read_json, write_json
from src.kernels import available, supports_bfloat16
from src.layers.shuffle import ShuffleUnit
from src.search.one_shot import (
    OneShotStep,
    OneShotSupernet,
    PathMomentum,
    draw_path,
    inherit,
    path_names,
)
from src.search.one_shot_search import PathDraws, _cross, _evolve, _mutate
from src.search.one_shot_training import RandomPaths, one_shot_space
from src.spnasnet import SPNASNet
from src.training.evaluation import evaluate
from src.training.step import Update
from tests.conftest import ROOT, mode_of, run_in_this_process
from tests.kernels.reference import assert_near, gradients, normal

REFERENCE = [1, 0, 3, 1, 3, 0, 3, 0, 0, 3, 3, 0, 1, 0, 1, 2, 2, 1, 1, 3]
BLOCKS = [
    "shuffle_k3_s22_i8_o20",
    "shuffle_k5_s11_i8_o20",
    "shuffle_k7_s11_i8_o8",
    "xception_k3_s11_i8_o8",
    "xception_k3_s22_i8_o20",
]
# What results are compared with is computed in PYNATIVE mode, which spares its compilation.
pytestmark = pytest.mark.usefixtures("graph_mode")
needs_operators = pytest.mark.skipif(not available(), reason="no CPU operators here")


def test_counts_of_the_reference_path_and_the_supernet():
    space = load_space("one_shot_32")
    arch = space.derive(path_names(space, REFERENCE), "one_shot_cifar10")
    assert network_cost(arch, 10) == (2_257_232, 173_211_648)
    assert arch == load_architecture("one_shot_cifar10")
    assert sum(parameter.size for parameter in SPNASNet(arch, 10).trainable_params()) == 2_257_232
    network = OneShotSupernet(space, 10)
    assert sum(parameter.size for parameter in network.trainable_params()) == 6_931_368
    # All paths of a layer have their own weights: 4 ** 20 networks.
    assert space.size() == 4**20


def test_strides_of_the_spaces():
    for name, stem, halving in (("one_shot_32", 1, [4, 8]), ("one_shot_224", 2, [0, 4, 8, 16])):
        space = load_space(name)
        assert (
            space.stem_stride,
            [i for i, layer in enumerate(space.layers) if layer.stride == 2],
        ) == (stem, halving)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("shuffle_k3_s11_i8", "'o' is missing"),
        ("shuffle_k3_s11_e3_i8_o8", "unknown token 'e3'"),
        ("xception_k5_s11_i8_o8", "kernel size 5 is not 3"),
        ("shuffle_k3_s11_i7_o8", "not positive and even"),
        ("shuffle_k3_s22_i8_o8", "leave none to the branch"),
        ("shuffle_s11_k3_i8_o8", "out of order"),
        ("shuffle", "unknown token ''"),
        ("shuffle_k9_s11_i8_o8", "kernel size 9"),
    ],
)
def test_malformed_shuffle_blocks_are_refused(text, reason):
    with pytest.raises(UserError, match=reason):
        decode_block(text)


class Plain(nn.Cell):
    """A block in plain operations, with the weights of a cell in its order.

    It is normalised with the batch's statistics.
    """

    def __init__(self, block, cell):
        super().__init__()
        self.block = block
        # Not by slices: the gradient of a slice with a step fails on CPU.
        self.even, self.odd = (Tensor(np.arange(first, block.in_channels, 2)) for first in (0, 1))
        # d: depthwise convolution and normalisation; p: 1x1 convolution, normalisation, ReLU; 2:
        # stride 2.
        first = "d2" if block.stride == 2 else "d"
        self.branch = (
            (first, "p", "d", "p", "d", "p")
            if isinstance(block, XceptionBlock)
            else ("p", first, "p")
        )
        self.weights = ms.ParameterTuple(
            [ms.Parameter(p.clone(), name=p.name) for p in cell.trainable_params()]
        )

    def layers(self, x, kinds, first):
        for i, kind in enumerate(kinds):
            weight = self.weights[first + i]
            x = ops.conv2d(
                x,
                weight,
                stride=2 if kind == "d2" else 1,
                pad_mode="pad",
                padding=weight.shape[-1] // 2,
                groups=1 if kind == "p" else x.shape[1],
            )
            mean = x.mean((0, 2, 3), True)
            x = (x - mean) / ops.sqrt(ops.square(x - mean).mean((0, 2, 3), True) + 1e-5)
            if kind == "p":
                x = ops.relu(x)
        return x

    def construct(self, x):
        if self.block.stride == 1:
            kept, new = (
                ops.gather(x, self.even, 1),
                self.layers(ops.gather(x, self.odd, 1), self.branch, 0),
            )
            return ops.concat((kept, new), 1)
        return ops.concat(
            (self.layers(x, ("d2", "p"), len(self.branch)), self.layers(x, self.branch, 0)), 1
        )


@pytest.mark.parametrize(
    "kernels", (False, pytest.param(True, marks=needs_operators)), ids=("stock", "operators")
)
@pytest.mark.parametrize("text", BLOCKS)
def test_every_block_equals_a_plain_reference(text, kernels):
    """Output, gradients, and parameters as the arithmetic counts them."""
    block = decode_block(text)
    cell = ShuffleUnit(block, affine=False, kernels=kernels).set_train()
    plain = Plain(block, cell)
    params = sum(parameter.size for parameter in cell.trainable_params())
    affine = ShuffleUnit(block, kernels=False)
    assert (
        sum(parameter.size for parameter in affine.trainable_params())
        == block_cost(block, 8, 8).params
    )
    channels = sum(p.size for p in affine.trainable_params() if p.name.endswith("gamma"))
    assert params == block_cost(block, 8, 8).params - 2 * channels
    x = normal(1, 3, block.in_channels, 8, 10)
    factor = normal(2, 3, block.out_channels, 8 // block.stride, 10 // block.stride)
    results = gradients(cell, x, factor)
    with mode_of(ms.PYNATIVE_MODE):
        expected = gradients(plain, x, factor)
        assert_near(cell(Tensor(x)).asnumpy(), plain(Tensor(x)).asnumpy(), 1e-5)
    assert len(results) == len(expected)
    for value, reference in zip(results.values(), expected.values(), strict=True):
        assert_near(value, reference, 3e-5)


def tiny_space(layers=3, choices=3):
    return one_shot_space("one_shot_32", layers, choices)


class LossAndGradient(nn.Cell):
    """Cross-entropy of a network and its gradients."""

    def __init__(self, network):
        super().__init__()
        self.network, self.loss_fn = network, CrossEntropySmooth(0.0)
        self.gradient = ops.value_and_grad(
            self.loss, None, ms.ParameterTuple(network.trainable_params())
        )

    def loss(self, x, labels):
        return self.loss_fn(self.network(x), labels)

    def construct(self, x, labels):
        return self.gradient(x, labels)


def step_of_its_network(space, path, supernet, x, labels, kernels):
    """Loss, gradients and moving statistics by name: of a path's own network.

    Args:
        space: that of the supernet.
        path: indices of the chosen blocks.
        supernet: its weights by name.
        x: images.
        labels: their classes.
        kernels: whether the CPU operators compute.
    """
    arch = space.derive(path_names(space, path), "derived")
    network = SPNASNet(arch, 10, affine=False, kernels=kernels)
    own = {p.name: p for p in network.get_parameters()}  # wrapping it in a cell renames them
    for name, parameter in own.items():
        parameter.set_data(Tensor(inherit(supernet, path)[name]))
    trained = [p.name for p in network.trainable_params()]
    with mode_of(ms.PYNATIVE_MODE):
        loss, values = LossAndGradient(network).set_train()(x, labels)
    gradient = dict(zip(trained, (value.asnumpy() for value in values), strict=True))
    statistics = {name: p.asnumpy() for name, p in own.items() if "moving" in name}
    return loss.asnumpy(), gradient, statistics


@needs_operators
def test_a_seed_gives_both_forms_the_same_weights():
    """And optimizers of the same names and shapes: checkpoints fit both forms."""
    made = []
    for kernels in (False, True):
        ms.set_seed(1)
        network = OneShotSupernet(tiny_space(), 10, kernels=kernels)
        optimizer = PathMomentum(network, np.full(9, 0.1, np.float32), 0.9, 0.01)
        saved = [*network.get_parameters(), *optimizer.get_parameters()]
        made.append({own.name: own.asnumpy() for own in saved})
    stock, operators = made
    assert stock.keys() == operators.keys()
    for name, value in stock.items():
        np.testing.assert_array_equal(value, operators[name], err_msg=name)


@pytest.mark.parametrize(
    "kernels", (False, pytest.param(True, marks=needs_operators)), ids=("stock", "operators")
)
def test_a_step_trains_and_computes_exactly_the_blocks_on_its_path(kernels):
    """Over several steps with momentum and weight decay: weights, momenta and statistics.

    Those of the path are near what its network alone gives, all others keep every bit. Layers
    differ in the number of their blocks and of their weights.
    """
    space, names = tiny_space(), (("K3", "K5", "K7"), ("K3", "X"), ("K5", "K7", "X"))
    layers = [replace(layer, names=own) for layer, own in zip(space.layers, names, strict=True)]
    space = replace(space, layers=tuple(layers))
    ms.set_seed(1)
    network = OneShotSupernet(space, 10, kernels=kernels)
    optimizer = PathMomentum(network, np.full(9, 0.1, np.float32), 0.9, 0.01)
    update = Update(network, optimizer, OneShotConfig(), mixed_precision=False)
    step = OneShotStep(network, CrossEntropySmooth(0.0), update).set_train()

    def state():
        return {p.name: p.asnumpy().copy() for p in step.get_parameters()}

    # With a compiled cell, MindSpore forgets what other cells were compiled for: none of an earlier
    # test may be collected between two steps.
    gc.collect()
    compiled, trained = [], []
    random = np.random.default_rng(0)
    for path in ([0, 1, 2], [1, 1, 0], [2, 0, 2], [0, 1, 2], [1, 0, 1]):
        x = Tensor(normal(sum(path), 6, 3, 8, 8))
        labels = Tensor(random.integers(0, 10, 6).astype(np.int32))
        before = state()
        loss = step(x, labels, Tensor(np.array(path, np.int32)))[0].asnumpy()
        trained.append((path, x, labels, before, loss, state()))
        compiled.append(len(step.compile_cache))
    assert compiled == [1] * 5  # a new path compiles nothing

    momenta = {}  # by SGD's formula
    for path, x, labels, before, loss, after in trained:
        expected, gradient, statistics = step_of_its_network(
            space, path, before, x, labels, kernels
        )
        assert_near(loss, expected, 1e-5)
        for name in before:
            plain = name.removeprefix("moments.")
            if name in ("global_step", "learning_rate"):
                continue
            words = plain.split(".")
            if words[0] == "blocks" and path[int(words[1])] != int(words[2]):
                np.testing.assert_array_equal(after[name], before[name], err_msg=name)
                continue
            own = ".".join((words[:2] + words[3:]) if words[0] == "blocks" else words)
            if "moving" in name:
                assert_near(after[name], statistics[own], 1e-5)
                assert not np.array_equal(after[name], before[name]), name
            elif name.startswith("moments."):
                momenta[plain] = 0.9 * momenta.get(plain, 0) + gradient[own] + 0.01 * before[plain]
                assert_near(after[name], momenta[plain], 1e-4)
                assert_near(after[plain], before[plain] - 0.1 * after[name], 1e-6)


def test_paths_are_uniform_and_depend_on_their_key_alone():
    space = one_shot_space("one_shot_32", 20, 4)
    paths = np.array([draw_path(space, 0, 0, 1, batch) for batch in range(2000)])
    counts = np.array([np.bincount(column, minlength=4) for column in paths.T])
    assert (
        counts.shape == (20, 4) and counts.min() > 400 and counts.max() < 600
    )  # 500 +- 5 standard deviations
    np.testing.assert_array_equal(draw_path(space, 0, 0, 1, 7), paths[7])


@pytest.mark.parametrize(
    "layers, choices, reason",
    [(21, 4, "layers is 21"), (20, 5, "num_choices is 5"), (0, 4, "layers is 0")],
)
def test_spaces_have_only_so_many_layers_and_choices(layers, choices, reason):
    with pytest.raises(UserError, match=reason):
        one_shot_space("one_shot_32", layers, choices)
    with pytest.raises(UserError, match="none of a one-shot supernet"):
        one_shot_space("imagenet_32", 3, 3)


@pytest.fixture(scope="session")
def cifar(few_digits, tmp_path_factory):
    """The digits as CIFAR-10 in its binary version, one folder below: 120 images and 50 of test."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    for split, names in (
        ("train", [f"data_batch_{i}" for i in range(1, 6)]),
        ("val", ["test_batch"]),
    ):
        source = ImageFolder(few_digits / split)
        records = [
            bytes([source.labels[i]]) + source.read(i).transpose(2, 0, 1).tobytes()
            for i in range(len(source))
        ]
        for part, name in enumerate(names):
            (folder / f"{name}.bin").write_bytes(b"".join(records[part :: len(names)]))
    return folder.parent


SUPERNET = (
    "--layers",
    2,
    "--num_choices",
    2,
    "--batch_size",
    20,
    "--epochs",
    3,
    "--num_steps",
    4,
    "--lr",
    0.1,
    "--val_interval",
    1,
    "--print_freq",
    2,
    "--save_path",
    "runs",
    "--exp_name",
    "tiny",
)


def training(cifar):
    """The command of a training with everything that augments."""
    return [
        sys.executable,
        str(ROOT / "scripts/run_spnas.py"),
        *map(str, SUPERNET),
        "--data_path",
        str(cifar),
        "--cutout",
        "--auto_aug",
    ]


@pytest.fixture(scope="module")
def supernet(cifar, tmp_path_factory):
    """The folder of an uninterrupted training of a tiny supernet, and what it printed."""
    folder = tmp_path_factory.mktemp("supernet")
    run = subprocess.run(
        training(cifar), cwd=folder, text=True, capture_output=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    return folder / "runs/tiny/ckpt_0", run.stdout


def step_losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["epoch"], line["step"], line["loss"]) for line in lines if line["kind"] == "train"
    ]


def test_training_writes_every_step_and_prints_some(supernet):
    folder, output = supernet
    names = {file.name for file in folder.iterdir()}
    assert {
        "train.log",
        "metrics.jsonl",
        "curves.png",
        "config.yaml",
        "space.json",
        "tiny-3_4.ckpt",
    } <= names
    text = (folder / "train.log").read_text()
    for epoch in range(3):
        for step in range(1, 5):
            line = f"Epoch: {epoch} Iteration: {step} rank : 0 train.loss : "
            assert text.count(line) == 1 and output.count(line) == (step % 2 == 0)
    losses = step_losses(folder)
    assert len(losses) == 12
    assert read_checkpoint(folder / "tiny-3_4.ckpt").meta.space.name == "one_shot_32_2x2"


def test_every_validation_is_that_of_the_weights_of_its_epoch(supernet, cifar):
    """A validation network that has run before must see the new weights within its branches."""
    (folder, _), lines = supernet, []
    source = cifar10(cifar, "val")
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        if line["kind"] == "val":
            checkpoint = read_checkpoint(folder / f"tiny-{line['epoch']}_4.ckpt")
            space = one_shot_space("one_shot_32", 2, 2)
            network = OneShotSupernet(space, 10, kernels=available()).set_train(False)
            load_weights(network, checkpoint.network_weights(), checkpoint.path)
            loader = Loader(source, checkpoint.meta.preprocessing, batch_size=20, training=False)
            lines.append((line["loss"], evaluate(RandomPaths(network, space, 0), loader).loss))
    assert len(lines) == 3
    np.testing.assert_allclose(*zip(*lines, strict=True), rtol=1e-5)


@pytest.mark.slow
def test_the_same_command_again_continues_bit_for_bit(supernet, cifar, run_program, tmp_path):
    command = training(cifar)
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder, deadline = tmp_path / "runs/tiny/ckpt_0", time.monotonic() + 200
    while (
        not (folder / "tiny-1_4.ckpt").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run = subprocess.run(
        command, cwd=tmp_path, text=True, capture_output=True, timeout=300, check=False
    )
    assert run.returncode == 0 and "resumed from" in run.stdout, run.stderr
    assert step_losses(folder) == step_losses(supernet[0])
    ours, theirs = (
        read_checkpoint(place / "tiny-3_4.ckpt").weights for place in (folder, supernet[0])
    )
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.parametrize(
    "flags, reason",
    [
        (("--layers", 30), "layers is 30, space 'one_shot_32' has 20"),
        (("--classes", 7), "num_classes is 7"),
        (("--dataset", "mnist"), "dataset is 'mnist': input should be 'cifar10' or 'imagenet'"),
        (("--resume",), "unknown flag '--resume', did you mean '--resize'?"),
        (("--data_path", "nowhere"), "nowhere: no such file or folder"),
        (("--epochs", 0), "epochs is 0"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, reason, cifar, call_program, tmp_path):
    run = call_program("scripts/run_spnas.py", *SUPERNET, "--data_path", cifar, *flags)
    assert run.returncode == 2 and reason in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert not (tmp_path / "runs").exists()


def test_flags_and_defaults_of_the_training():
    from scripts.run_spnas import configure, parse_arguments

    assert vars(parse_arguments([])) == {
        "exp_name": "spos_c10_train_supernet",
        "layers": 20,
        "num_choices": 4,
        "batch_size": 64,
        "epochs": 600,
        "num_steps": 100,
        "lr": 0.025,
        "momentum": 0.9,
        "weight_decay": 0.0003,
        "print_freq": 100,
        "val_interval": 5,
        "save_path": "./checkpoints/",
        "seed": 0,
        "data_path": "data/teco-data/",
        "classes": 10,
        "dataset": "cifar10",
        "cutout": False,
        "cutout_length": 16,
        "auto_aug": False,
        "resize": False,
        "holdout": 0.0,
    }
    config = configure(
        parse_arguments(["--cutout", "--auto_aug", "--resize", "--weight-decay", "0.1"])
    )
    assert (config.image_height, config.space, config.resize, config.crop_scale) == (
        224,
        "one_shot_224",
        224,
        0.08,
    )
    assert (config.cutout, config.auto_augment, config.weight_decay, config.crop_padding) == (
        16,
        "cifar10",
        0.1,
        0,
    )
    config = configure(parse_arguments(["--dataset", "imagenet", "--auto_aug"]))
    assert (config.image_height, config.space) == (224, "one_shot_224")
    assert (config.resize, config.auto_augment) == (256, "imagenet")
    config = configure(parse_arguments([]))
    assert (config.image_height, config.crop_padding, config.cutout, config.auto_augment) == (
        32,
        4,
        0,
        None,
    )
    assert (config.label_smooth_factor, config.lr_scheduler, config.eta_min) == (0, "cosine", 0)
    assert config.flip and config.mean == CIFAR10_MEAN and config.holdout == 0


SEARCH = ("--calibration_images", 40, "--batch_size", 20)
EVOLUTION = (
    "--population",
    3,
    "--generations",
    2,
    "--crossover",
    1,
    "--mutation",
    2,
    "--top_k",
    2,
)


def search(supernet, folder, *flags):
    own = () if "random" in flags else EVOLUTION
    flags = ("--method", "one_shot", "--ckpt", supernet[0], *SEARCH, *own, *flags)
    flags = (*flags, "--checkpoint_path", folder)
    return run_in_this_process("search.py", *flags, cwd=folder.parent)


def paths_of(folder):
    return [json.loads(line) for line in (folder / "paths.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def found(supernet, tmp_path_factory):
    """The folder of a random search among all four paths."""
    folder = tmp_path_factory.mktemp("found")
    run = search(supernet, folder, "--strategy", "random", "--search_num", 9)
    assert run.returncode == 0, run.stderr
    return folder


def test_random_search_visits_each_path_once_and_writes_the_best(found):
    lines = paths_of(found)
    assert sorted(tuple(line["path"]) for line in lines) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    best = max(lines, key=lambda line: (line["top1"], -line["loss"]))
    arch, space = load_architecture(found / "arch.json"), one_shot_space("one_shot_32", 2, 2)
    assert (
        space.decisions_of(arch) == path_names(space, best["path"])
        and arch.provenance["top1"] == best["top1"]
    )
    assert {line["images"] for line in lines} == {50}
    for line in lines:
        derived = space.derive(path_names(space, line["path"]), "x")
        assert line["cost"] == pytest.approx(network_cost(derived, 10).macs / 1e6)
    assert arch.name in (found / "report.html").read_text(encoding="utf-8")
    settings = json.loads((found / "search.json").read_text())
    assert settings["images"] == {
        "dataset_name": "cifar10",
        "num_classes": 10,
        "image_size": [32, 32],
    }


@pytest.mark.slow
@pytest.mark.skipif(not supports_bfloat16(), reason="the processor multiplies no bfloat16")
def test_paths_are_evaluated_in_bfloat16(found, supernet, tmp_path):
    run = search(supernet, tmp_path / "run", "--precision", "bfloat16")
    assert run.returncode == 0, run.stderr
    exact = {tuple(line["path"]): line["loss"] for line in paths_of(found)}
    for line in paths_of(tmp_path / "run"):
        loss = exact[tuple(line["path"])]
        assert line["loss"] != loss and line["loss"] == pytest.approx(loss, rel=0.02)
    arch = load_architecture(tmp_path / "run/arch.json")
    assert arch.provenance["precision"] == "bfloat16"
    run = search(supernet, tmp_path / "run", "--resume")
    assert run.returncode == 2 and "precision is 'bfloat16'" in run.stderr


def test_held_out_images_choose_a_path_where_there_are_any(cifar, tmp_path):
    training = (*SUPERNET, "--epochs", 1, "--num_steps", 1, "--holdout", 0.5, "--data_path", cifar)
    run = run_in_this_process("scripts/run_spnas.py", *training, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "runs/tiny/ckpt_0"
    run = search((folder,), tmp_path / "run", "--strategy", "random", "--search_num", 1)
    assert run.returncode == 0 and "chosen by the validation images" not in run.stderr, run.stderr
    assert read_json(tmp_path / "run/search.json")["split"] == "held"
    (line,) = paths_of(tmp_path / "run")
    checkpoint = CheckpointFolder(folder).newest()
    held = open_source(checkpoint, None, "held")
    assert line["images"] == len(held) != 50  # of the test images
    # Another choice of images to hold out would have trained on some of them.
    again = run_in_this_process("scripts/run_spnas.py", *training, "--seed", 1, cwd=tmp_path)
    assert again.returncode == 2 and "other images would be held out" in again.stderr


def test_statistics_are_those_of_the_path(found, supernet, call_program, cifar, tmp_path):
    """The found network alone scores what the search said, in stock operators too."""
    for kernels in ("auto", "off"):
        run = call_program(
            "eval.py",
            "--checkpoint_path",
            found / "inherited.ckpt",
            "--cpu_kernels",
            kernels,
            "--output",
            tmp_path / "eval.json",
        )
        assert run.returncode == 0, run.stderr
        (row,) = json.loads((tmp_path / "eval.json").read_text())["results"]
        best = max(paths_of(found), key=lambda line: (line["top1"], -line["loss"]))
        assert row["top1"] == best["top1"] and row["loss"] == pytest.approx(best["loss"], rel=1e-4)
    ours, theirs = (
        read_checkpoint(found / "inherited.ckpt"),
        read_checkpoint(supernet[0] / "best.ckpt"),
    )
    layer = "blocks.1.branch.0.bn.moving_mean"
    choice = best["path"][1]
    assert not np.array_equal(
        ours.weights[layer],
        theirs.weights[f"blocks.1.{choice}.branch.0.bn.moving_mean"],
    )


@pytest.mark.slow
def test_an_interrupted_search_is_taken_up(supernet, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run = search(supernet, whole)
    assert run.returncode == 0, run.stderr
    lines = paths_of(whole)
    assert len(lines) == 4 and {line["generation"] for line in lines} == {
        0,
        1,
    }  # there are no more paths
    broken.mkdir()
    (broken / "search.json").write_text((whole / "search.json").read_text())
    history = (whole / "paths.jsonl").read_text().splitlines(True)
    (broken / "paths.jsonl").write_text("".join(history[:2]) + history[2][:10])
    run = search(supernet, broken, "--resume")
    assert run.returncode == 0 and "2 paths are evaluated already" in run.stdout, run.stderr
    assert paths_of(broken) == lines
    assert load_architecture(broken / "arch.json") == load_architecture(whole / "arch.json")
    run = search(supernet, whole)
    assert run.returncode == 2 and "holds an earlier search" in run.stderr
    run = search(supernet, whole, "--resume", "--seed", 9)
    assert (
        run.returncode == 2 and "seed is 1 in the search that is resumed, and 9 now" in run.stderr
    )
    settings = read_json(whole / "search.json")
    write_json(whole / "search.json", {**settings, "costs": "of another table"})
    run = search(supernet, whole, "--resume")
    assert run.returncode == 2 and "costs is 'of another table'" in run.stderr
    run = search(supernet, whole, "--search_num", 9)
    assert run.returncode == 2 and "search_num is for --strategy random" in run.stderr
    # A supernet that was moved is the same one, another of as many steps in its place is not.
    write_json(whole / "search.json", {**settings, "ckpt": "elsewhere"})
    assert search(supernet, whole, "--resume").returncode == 0
    write_json(whole / "search.json", {**settings, "weights": "others"})
    run = search(supernet, whole, "--resume")
    assert run.returncode == 2 and "weights is 'others'" in run.stderr


class SumOfPath:
    """Stands for a history: the accuracy of a path is the sum of its choices."""

    def __init__(self) -> None:
        self.lines = []

    def evaluate(self, path, generation):
        line = {"path": list(path), "generation": generation, "top1": sum(path), "loss": 0.0}
        self.lines.append(line)

    def ranked(self):
        return sorted(self.lines, key=lambda line: -line["top1"])


def test_an_evolution_finds_better_paths_than_it_begins_with():
    space = one_shot_space("one_shot_32", 8, 4)
    draws = PathDraws(space, arithmetic_table(space, "macs", 10), None, np.random.default_rng(0))
    sizes = {"population": 20, "crossover": 10, "mutation": 10, "top_k": 5}
    history = SumOfPath()
    _evolve(OneShotSearchConfig(generations=6, **sizes), draws, history)
    assert len({tuple(line["path"]) for line in history.lines}) == len(history.lines) == 120
    first, last = (
        np.mean([line["top1"] for line in history.lines if line["generation"] == generation])
        for generation in (0, 5)
    )
    assert 10 < first < 14 and last > first + 5  # random paths have 12 on average, the best one 24


def test_children_have_the_layers_of_their_parents():
    space = one_shot_space("one_shot_32", 8, 4)
    random = np.random.default_rng(0)
    low, high = np.zeros(8, int), np.full(8, 3)
    crossed = np.array([_cross(random, [low, high]) for _ in range(200)])
    assert set(crossed.ravel()) == {0, 3} and abs(crossed.mean() - 1.5) < 0.15
    assert (crossed.min(0) == 0).all() and (crossed.max(0) == 3).all()
    draws = PathDraws(space, arithmetic_table(space, "macs", 10), None, random)
    mutated = np.array([_mutate(draws, [low], 0.4) for _ in range(500)])
    # A layer that is drawn anew is as before in one case of four.
    assert abs((mutated != 0).mean() - 0.4 * 0.75) < 0.03


@pytest.mark.slow
def test_no_path_exceeds_a_limit(supernet, tmp_path, monkeypatch):
    # Enough among four paths; the limits leave less than the population asks for.
    monkeypatch.setattr("src.search.one_shot_search._TRIES", 1000)
    space = one_shot_space("one_shot_32", 2, 2)
    costs = sorted(
        network_cost(space.derive([a, b], "x"), 10).macs / 1e6
        for a in ("K3", "K5")
        for b in ("K3", "K5")
    )
    draws = PathDraws(
        space, arithmetic_table(space, "macs", 10), costs[1], np.random.default_rng(1)
    )
    drawn = sorted(draws.cost(path) for path in draws.first(4))
    assert drawn == pytest.approx([cost for cost in costs if cost <= costs[1]]) and len(drawn) < 4
    layers = {"layer0": {"K3": 1.0, "K5": 2.0}, "layer1": {"K3": 1.0, "K5": 4.0}}
    table = CostTable("mine", space.name, "device", "runtime", 1, "ms", 1.0, layers).to_dict()
    (tmp_path / "table.json").write_text(json.dumps(table))
    run = search(
        supernet,
        tmp_path / "ms",
        "--cost",
        "latency",
        "--latency_table",
        tmp_path / "table.json",
        "--target_latency_ms",
        4,
    )
    assert run.returncode == 0, run.stderr
    assert sorted(tuple(line["path"]) for line in paths_of(tmp_path / "ms")) == [(0, 0), (1, 0)]
    assert load_architecture(tmp_path / "ms/arch.json").provenance["unit"] == "ms"


@pytest.mark.parametrize(
    "flags, reason",
    [
        (("--target", 0.1), "target of 0.1 million multiply-adds"),
        (("--target_latency_ms", 5), "target_latency_ms is for --cost latency"),
        (("--cost", "latency"), "latency_table is not given"),
        (("--precision", "bfloat16", "--cpu_kernels", "off"), "precision is 'bfloat16', which"),
        (("--ckpt", "nothing.ckpt"), "nothing.ckpt: no such checkpoint"),
        (("--epoch_size", 3), "unknown flag '--epoch_size'"),
        (("--population", 2), "crossover and mutation are 3 paths together, population is 2"),
    ],
)
def test_mistakes_of_a_search_are_told(supernet, tmp_path, flags, reason):
    run = search(supernet, tmp_path / "run", *flags)
    assert run.returncode == 2 and reason in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert not (tmp_path / "run").exists()


def test_supernets_and_superkernels_are_not_mixed_up(supernet, found, call_program):
    run = call_program("eval.py", "--checkpoint_path", supernet[0])
    assert run.returncode == 2 and "--method one_shot" in run.stderr
    run = call_program("search.py", "--space", "one_shot_32", "--cost", "macs")
    assert run.returncode == 2 and "that of a one-shot supernet" in run.stderr
    run = call_program("search.py", "--method", "one_shot", "--ckpt", found / "inherited.ckpt")
    assert run.returncode == 2 and "holds a single network" in run.stderr
    run = call_program(
        "search.py", "--from_supernet", supernet[0], "--cost", "macs", "--target", 100
    )
    assert run.returncode == 2 and "holds a one-shot supernet" in run.stderr


def test_the_found_network_is_retrained_from_its_weights(found, cifar, call_program, tmp_path):
    run = call_program(
        "train.py",
        "--dataset_name",
        "cifar10",
        "--data_path",
        cifar,
        "--arch",
        found / "arch.json",
        "--pre_trained",
        found / "inherited.ckpt",
        "--batch_size",
        20,
        "--epoch_size",
        1,
        "--cutout",
        16,
        "--epoch_steps",
        3,
        "--checkpoint_path",
        tmp_path,
    )
    assert run.returncode == 0, run.stderr
    checkpoint = read_checkpoint(tmp_path / "ckpt_0/best.ckpt")
    assert checkpoint.meta.arch == load_architecture(found / "arch.json")
    gammas = [
        value
        for name, value in checkpoint.weights.items()
        if name.startswith("blocks") and name.endswith("gamma")
    ]
    assert any((gamma != 1).any() for gamma in gammas)  # scale and shift are trained
    assert "classifier.bias" not in checkpoint.weights


@pytest.mark.parametrize(
    "text, losses",
    [
        (
            "x Epoch: 0 Iteration: 1 rank : 0 "
            "train.loss : 2.2649757862091064 train.ips : 2431.3 imgs/s\n"
            "x Epoch: 0 Iteration: 2 rank : 0 train.loss : 2.5 train.ips : 1 imgs/s\nother\n"
            "x Epoch: 0 Iteration: 2 rank : 0 train.loss : 1e-1 train.ips : 1 imgs/s\n"
            "x Epoch: 1 Iteration: 1 rank : 0 train.loss : nan train.ips",
            [2.2649757862091064, 0.1, float("nan")],
        ),
        (
            '{"kind": "train", "epoch": 0, "step": 1, "loss": 3}\n'
            '{"kind": "val", "epoch": 1, "step": 0, "loss": 9}\n'
            '{"kind": "train", "epoch": 1, "step": 0, "loss": 2}\n'
            '{"kind": "train", "epoch": 1, "step": 1, "loss": 1}\n{"kind',
            [3, 2, 1],
        ),
    ],
)
def test_losses_are_read_from_both_kinds_of_logs(tmp_path, text, losses):
    from scripts.loss import read_losses

    (tmp_path / "log").write_text(text)
    np.testing.assert_equal(list(read_losses(tmp_path / "log").values()), losses)


@pytest.mark.parametrize(
    "factor, verdict, code",
    [(1.0, "pass", 0), (1.049, "pass", 0), (1.06, "fail", 1), (0.9, "fail", 1)],
)
def test_verdict_on_two_runs(supernet, call_program, tmp_path, factor, verdict, code):
    """Of the training's own log against itself, scaled, in the form of other programs."""
    lines = [
        f"INFO Epoch: {epoch} Iteration: {step} rank : 0 train.loss : {loss} train.ips : 1.0 imgs/s"
        for step, (epoch, _, loss) in enumerate(step_losses(supernet[0]))
    ]
    reference = tmp_path / "reference.log"
    reference.write_text("\n".join(lines).replace("Epoch: 3", "Epoch: 2"))
    losses = [loss for _, _, loss in step_losses(supernet[0])]
    mine = tmp_path / "mine.log"
    mine.write_text(
        "\n".join(
            f"Epoch: 0 Iteration: {i} train.loss : {factor * loss!r}"
            for i, loss in enumerate(losses)
        )
    )
    run = call_program("scripts/loss.py", mine, reference)
    assert run.returncode == code and verdict in run.stdout.splitlines()[-1], run.stderr
    relative = float(run.stdout.split("MeanRelativeError: ")[1].split()[0])
    assert relative == pytest.approx(factor - 1, abs=1e-5)
    assert (tmp_path / "loss.png").is_file()


@pytest.mark.parametrize("last, code", [(1.04, 0), (0.8, 1), (float("nan"), 1)])
def test_every_epoch_has_to_be_near(call_program, tmp_path, last, code):
    """Errors of opposite sign, which a mean over the run would hide."""
    mine, reference = tmp_path / "mine.log", tmp_path / "reference.log"
    reference.write_text("Epoch: 1 Iteration: 9 loss: 2.0\nEpoch: 2 Iteration: 9 loss: 1.0\n")
    steps = [(1, 1, 1.92), (1, 2, 1.92), (2, 1, last - 0.1), (2, 2, last + 0.1)]
    mine.write_text("\n".join("Epoch: {} Iteration: {} loss: {}".format(*step) for step in steps))
    run = call_program("scripts/loss.py", mine, reference, "--by_epoch")
    assert run.returncode == code, run.stderr
    first, second, verdict = run.stdout.splitlines()[1:]
    assert first.split() == ["1", "1.920", "2.000", "-4.0%"]
    assert second.split()[-1] == f"{last - 1:+.1%}" and verdict.startswith(("pass", "fail")[code])


def test_a_small_mean_absolute_error_passes_too(run_program, call_program, tmp_path):
    for name, losses in (("a", (0.0003, 0.0001)), ("b", (0.0001, 0.0001))):
        (tmp_path / name).write_text(
            "\n".join(f"Epoch: 0 Iteration: {i} loss: {x}" for i, x in enumerate(losses))
        )
    assert run_program("scripts/loss.py", "a", "b").stdout.splitlines()[-1].startswith("pass")
    (tmp_path / "empty").write_text("nothing")
    run = call_program("scripts/loss.py", "a", "empty")
    assert run.returncode == 2 and "empty: holds no training losses" in run.stderr
