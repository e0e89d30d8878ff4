"""Elastic supernets: their networks, the training step, what it leaves alone, and whole runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops
from scipy.special import log_softmax, softmax

from src.arch.cost_table import arithmetic_table
from src.arch.space import SKIP, SearchSpace, load_space
from src.checkpoint.format import Checkpoint, Meta, read_checkpoint, write_checkpoint
from src.checkpoint.restore import cell_weights, load_weights, open_source, overwrite
from src.cli import build_config
from src.config import SubnetConfig, TrainConfig
from src.errors import UserError
from src.files import read_jsonl
from src.kernels import available
from src.search.elastic_step import UsedParts
from src.search.elastic_training import ElasticTraining, Subnets
from src.search.subnet_evaluation import SuperkernelEvaluator, open_images, parts
from src.search.superkernel import inherit
from src.spnasnet import SPNASNet
from src.training.evaluation import evaluate
from src.training.run import prepare
from tests.conftest import mode_of, run_in_this_process
from tests.kernels.reference import assert_near, dense64, norm64, normal

SPACE = {
    "format": "spnas-space",
    "version": 1,
    "name": "tiny",
    "image_size": 16,
    "stem_channels": 8,
    "stem_stride": 1,
    "layers": [
        "r1_k3_s11_e1_i8_o8_se0.25_noskip",
        {
            "stride": 2,
            "in_channels": 8,
            "out_channels": 12,
            "kernel_sizes": [3, 5],
            "expansions": [3, 6],
            "skippable": False,
        },
        {
            "stride": 1,
            "in_channels": 12,
            "out_channels": 12,
            "kernel_sizes": [3, 5, 7],
            "expansions": [2, 4],
            "skippable": True,
        },
    ],
    "head_channels": 24,
    "bn_epsilon": 1e-5,
    "provenance": {},
}
BATCH = 20
KEYS = {
    "dataset_name": "digits",
    "image_height": 16,
    "image_width": 16,
    "resize": 16,
    "batch_size": BATCH,
    "epoch_size": 2,
    "lr_init": 0.5,
    "lr_scheduler": "constant",
    "calibration_images": 50,
    "log_steps": 1,
}
VALIDATED = ["largest", "smallest", "random_1", "random_2", "random_3"]


@pytest.fixture(scope="module")
def space_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("space") / "tiny.json"
    file.write_text(json.dumps(SPACE))
    return file


@pytest.fixture(scope="module")
def space(space_file) -> SearchSpace:
    return load_space(space_file)


@pytest.fixture
def configure(few_digits, space_file, tmp_path):
    """Makes the configuration of a training of the tiny space."""

    def build(**keys) -> TrainConfig:
        given = {
            **KEYS,
            "data_path": str(few_digits),
            "space": str(space_file),
            "checkpoint_path": str(tmp_path),
            **keys,
        }
        return build_config(TrainConfig, {**TrainConfig.preset(given), **given})

    return build


@pytest.fixture
def task_of(configure, space):
    """Makes the task of such a training."""

    def build(**keys) -> ElasticTraining:
        config = configure(**keys)
        run = prepare(config, space.largest(), space)
        ms.set_seed(config.seed)
        return ElasticTraining(run, space)

    return build


def randomise(network, seed: int = 0) -> None:
    """Random scales and shifts: at the start those of residual blocks switch them off."""
    random = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        if parameter.name.endswith(("gamma", "beta")):
            low, high = (0.5, 1.5) if parameter.name.endswith("gamma") else (-0.2, 0.8)
            value = random.uniform(low, high, parameter.shape)
            overwrite(parameter, Tensor(value.astype(np.float32)))


def a_batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(seed).integers(0, 10, BATCH).astype(np.int32)
    return normal(seed, BATCH, 3, 16, 16), labels


def state_of(step) -> dict[str, np.ndarray]:
    """Copies of all parameters: ``asnumpy`` alone shares memory that a step writes to."""
    return {parameter.name: parameter.asnumpy().copy() for parameter in step.get_parameters()}


def logits_and_gradients(network, images, factor, dropout=None, decisions=None):
    """Logits, and by name the gradients of their sum weighted by ``factor``, without compiling.

    Args:
        network: in training mode.
        images: (N, 3, H, W).
        factor: (N, classes), or makes that of the logits.
        dropout: factors of the pooled features.
        decisions: as the network takes them, None for all of it.
    """
    weights = ParameterTuple(network.trainable_params())

    def weighted(images, factor):
        logits = network(images, dropout, decisions)
        return (logits * factor).sum(), logits

    with mode_of(ms.PYNATIVE_MODE):
        if callable(factor):
            factor = factor(network(Tensor(images), dropout, decisions).asnumpy())
        step = ops.value_and_grad(weighted, None, weights, has_aux=True)
        (_, logits), values = step(Tensor(images), Tensor(factor.astype(np.float32)))
    named = zip(weights, values, strict=True)
    return logits.asnumpy(), {parameter.name: value.asnumpy() for parameter, value in named}


def places_of(shapes, space, decisions) -> dict[str, np.ndarray]:
    """Numbers that the parameters of a derived network have in all of the supernet's together."""
    ends = np.cumsum([0, *(np.prod(shape, dtype=int) for shape in shapes.values())])
    numbered = {
        name: np.arange(*bounds).reshape(shape)
        for (name, shape), bounds in zip(shapes.items(), pairwise(ends), strict=True)
    }
    return inherit(numbered, space, decisions)


def used_of(shapes, space, decisions) -> dict[str, np.ndarray]:
    """Whether the derived network has an element, for each parameter of the supernet."""
    used = np.zeros(sum(np.prod(shape, dtype=int) for shape in shapes.values()), bool)
    for numbers in places_of(shapes, space, decisions).values():
        used[numbers] = True
    sizes = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
    split = np.split(used, sizes[:-1])
    return {
        name: own.reshape(shape) for (name, shape), own in zip(shapes.items(), split, strict=True)
    }


def assert_close(actual, expected, tolerance=1e-4) -> None:
    """Near in every parameter, unless it hardly counts.

    A shift that is normalised away has a gradient of rounding alone.
    """
    whole = np.sqrt(sum(np.square(value).sum() for value in expected.values()))
    for name, value in expected.items():
        error = np.linalg.norm(actual[name] - value)
        assert error <= tolerance * (np.linalg.norm(value) + 0.1 * whole), name


@pytest.mark.skipif(not available(), reason="no CPU operators here")
@pytest.mark.parametrize("name, size", [("nas_bench_macro", 32), ("imagenet_k7", 64)])
def test_masked_active_and_derived_networks_train_alike(name, size):
    """Logits and gradients; what the derived network lacks has a gradient of exactly 0."""
    space, random = load_space(name), np.random.default_rng(1)
    layers = list(space.searched.values())
    drawn = space.canonical([random.choice(layer.names) for layer in layers])
    assert SKIP in drawn and len(set(drawn)) > 2
    ms.set_seed(1)
    supernets = [SPNASNet(space.largest(), 4, kernels=kernels) for kernels in (False, True)]
    randomise(supernets[0])
    weights = state_of(supernets[0])
    load_weights(supernets[1], weights, name)
    derived = SPNASNet(space.derive(drawn, "derived"), 4).set_train()
    load_weights(derived, inherit(weights, space, drawn), name)
    images, factor = normal(1, 4, 3, size, size), normal(2, 4, 4)
    expected, derived_gradients = logits_and_gradients(derived, images, factor)
    for supernet in supernets:
        logits, gradients = logits_and_gradients(
            supernet.set_train(), images, factor, decisions=parts(space, drawn)
        )
        assert_near(logits, expected, 2e-5)
        places = places_of({n: g.shape for n, g in gradients.items()}, space, drawn)
        assert places.keys() == derived_gradients.keys()
        flat = np.concatenate([gradient.ravel() for gradient in gradients.values()])
        sliced = {n: flat[numbers] for n, numbers in places.items()}
        # One ReLU that switches by rounding changes a gradient by some thousandths.
        assert_close(sliced, derived_gradients, 0.02)
        rest = np.delete(flat, np.concatenate([numbers.ravel() for numbers in places.values()]))
        assert rest.size > 1e5 and not rest.any()


def test_used_parts_are_those_of_the_derived_network(space):
    network = SPNASNet(space.largest(), 10)
    trained = network.trainable_params()
    shapes = {parameter.name: parameter.shape for parameter in trained}
    used = UsedParts(space.largest(), trained)
    networks = list(space.networks())
    assert len(networks) == 4 * 7
    for decisions in (*networks[::5], space.smallest_choices, space.largest_choices):
        expected = used_of(shapes, space, decisions)
        got = used(parts(space, decisions))
        assert len(got) == len(shapes)
        for (name, shape), own in zip(shapes.items(), got, strict=True):
            spread = np.broadcast_to(own.asnumpy(), shape)
            np.testing.assert_array_equal(spread, expected[name], err_msg=name)
    assert all(own.all() for own in expected.values())  # of the largest


def test_used_parts_of_the_largest_spaces_compile(graph_mode):
    arch = load_space("imagenet").largest()
    trained = SPNASNet(arch, 10).trainable_params()
    decisions = np.array([(block.kernel_size, block.mid_channels, 1) for block in arch.blocks])
    assert len(UsedParts(arch, trained)(Tensor(decisions.astype(np.float32)))) == len(trained) > 200


def test_which_networks_learn_and_are_validated(configure, space):
    table = arithmetic_table(space, "macs", 10)
    sandwich = Subnets(space, configure(), 10)
    largest, smallest, *drawn = sandwich.of_step(1, 3)
    assert (largest, smallest) == (space.largest_choices, space.smallest_choices)
    assert len(sandwich) == 4 and len(drawn) == 2
    alone = Subnets(space, configure(subnets="random"), 10)
    assert len(alone) == len(alone.of_step(1, 3)) == 1
    for subnets in (sandwich, alone):
        again = [[subnets.of_step(epoch, step) for step in range(20)] for epoch in range(2)]
        assert again == [[subnets.of_step(epoch, step) for step in range(20)] for epoch in range(2)]
        assert len({networks[-1] for epoch in again for networks in epoch}) > 10
        assert again[0] != again[1]
    other = Subnets(space, configure(seed=2), 10)
    assert other.of_step(1, 3)[2:] != drawn and other.validated != sandwich.validated
    assert alone.validated == sandwich.validated
    assert list(sandwich.validated) == VALIDATED
    costs = [table.total(sandwich.validated[name]) for name in VALIDATED]
    assert costs[1] <= costs[2] <= costs[3] <= costs[4] <= costs[0]


def cross_entropy(logits, labels, smoothing):
    """Loss, and its gradient for the logits."""
    target = np.eye(10)[labels] * (1 - smoothing) + smoothing / 10
    loss = -(target * log_softmax(logits.astype(np.float64), -1)).sum(-1).mean()
    return loss, (softmax(logits.astype(np.float64), -1) - target) / len(labels)


def divergence(logits, teacher):
    """Kullback-Leibler divergence from the teacher, and its gradient for the logits."""
    logits, teacher = logits.astype(np.float64), teacher.astype(np.float64)
    told = softmax(teacher, -1)
    loss = (told * (np.log(told) - log_softmax(logits, -1))).sum(-1).mean()
    return loss, (softmax(logits, -1) - told) / len(logits)


@pytest.mark.parametrize(
    "keys",
    [
        {"accumulate_steps": 2, "drop_rate": 0.3, "clip_norm": 0.0},
        {"clip_norm": 0.1, "distill": False, "random_subnets": 1},
    ],
    ids=("distilled", "clipped"),
)
def test_an_update_has_the_sum_of_the_gradients_of_all_networks(task_of, space, keys):
    """By plain SGD: of each batch the sum over its networks, of the batches the mean.

    The largest learns the labels, with dropout; the others learn what it says, or the labels.
    Clipping comes last, once. Moving statistics stay as they are.
    """
    task = task_of(momentum=0.0, weight_decay=0.0, val_while_train=False, **keys)
    randomise(task.step.network)
    config, before = task._run.config, state_of(task.step)
    reference = SPNASNet(space.largest(), 10, kernels=True).set_train()  # rounds as the task does
    load_weights(reference, before, "task")
    total = {parameter.name: 0.0 for parameter in reference.trainable_params()}
    networks = Subnets(space, config, 10).of_step(0, 0)
    for batch in range(1, config.accumulate_steps + 1):
        images, labels = a_batch(batch)
        found = task.train_batch(Tensor(images), Tensor(labels), 0, batch)
        teacher = None
        for decisions in networks:
            losses, dropout = [], None
            if config.drop_rate and teacher is None:
                dropout = task._run.dropout(config.drop_rate, 0, batch)
                assert (dropout.asnumpy() == 0).any()

            def factor(logits, teacher=teacher, labels=labels, losses=losses):
                if teacher is None or not config.distill:
                    loss, slope = cross_entropy(logits, labels, config.label_smooth_factor)
                else:
                    loss, slope = divergence(logits, teacher)
                losses.append(loss)
                return slope

            logits, gradients = logits_and_gradients(
                reference, images, factor, dropout, parts(space, decisions)
            )
            if teacher is None:
                teacher = logits
                assert float(found[0].asnumpy()) == pytest.approx(losses[0], rel=1e-4)
                assert float(found[1].asnumpy()) == (logits.argmax(1) == labels).sum()
            total = {name: total[name] + gradients[name] for name in total}
        assert float(found[2].asnumpy()) == pytest.approx(losses[0], rel=1e-3)
        after = state_of(task.step)
        moved = {name for name in total if not np.array_equal(after[name], before[name])}
        weights = {name for name in total if name.endswith(".weight")}
        assert moved >= weights if batch == config.accumulate_steps else not moved
    expected = {
        name: -config.lr_init * gradient / config.accumulate_steps
        for name, gradient in total.items()
    }
    change = {name: after[name].astype(np.float64) - before[name] for name in total}

    def norm(values):
        return np.sqrt(sum(np.square(value).sum() for value in values.values()))

    if config.clip_norm:
        limit = config.lr_init * config.clip_norm
        assert norm(expected) > 2 * limit and norm(change) == pytest.approx(limit, rel=1e-3)
        expected = {name: value * limit / norm(expected) for name, value in expected.items()}
    assert_close(change, expected)
    assert int(after["global_step"][0]) == 1
    statistics = [name for name in after if "moving_" in name]
    assert len(statistics) == 2 * (2 + 2 + 2 * 3)
    for name in statistics:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_what_a_random_network_does_not_use_keeps_every_bit(task_of, space):
    """Weights and the optimizer's state, with weight decay and momentum; the rest by formulas."""
    accumulated = 2
    task = task_of(
        subnets="random",
        accumulate_steps=accumulated,
        weight_decay=0.1,
        lr_init=0.1,
        clip_norm=0.0,
        val_while_train=False,
    )
    randomise(task.step.network)
    config = task._run.config
    reference = SPNASNet(space.largest(), 10, kernels=True).set_train()  # rounds as the task does
    trained = {parameter.name: parameter.shape for parameter in reference.trainable_params()}
    steps = [("K5E3", "K5E4"), ("K3E6", SKIP), ("K5E3", "K7E2")]
    for number, decisions in enumerate(steps):
        before, own = state_of(task.step), parts(space, decisions)
        load_weights(reference, before, "task")
        total = dict.fromkeys(trained, 0.0)
        for batch in range(accumulated):
            images, labels = a_batch(10 * number + batch)
            task.step(
                *map(Tensor, (images, labels)), task._undropped, own, task._no_teacher, task._labels
            )

            def factor(logits, labels=labels):
                return cross_entropy(logits, labels, config.label_smooth_factor)[1]

            _, gradients = logits_and_gradients(reference, images, factor, decisions=own)
            total = {name: total[name] + gradients[name] / accumulated for name in total}
        after, used = state_of(task.step), used_of(trained, space, decisions)
        change, expected = {}, {}
        for name, gradient in total.items():
            is_used, weight = used[name], before[name]
            gradient = gradient + 0.1 * weight * name.endswith(".weight")
            moment = 0.9 * before[f"moments.{name}"] + gradient
            for key, value in {name: weight - 0.1 * moment, f"moments.{name}": moment}.items():
                unmoved = np.where(is_used, after[key], before[key])
                np.testing.assert_array_equal(after[key], unmoved, err_msg=key)
                change[key] = (after[key] - before[key])[is_used]
                expected[key] = (value - before[key])[is_used]
        assert_close(change, expected)
        weights = [name for name in trained if name.endswith(".weight")]
        assert all((change[name] != 0).all() for name in weights)
        assert sum((~is_used).sum() for is_used in used.values()) > 1000
    assert int(after["global_step"][0]) == len(steps)
    for name, value in after.items():
        assert "moving_" not in name or np.array_equal(value, before[name]), name


@pytest.mark.parametrize("pre_trained", [False, True], ids=("new", "pre-trained"))
def test_residual_blocks_start_as_identities_or_as_they_were_trained(
    task_of, space, tmp_path, pre_trained
):
    file, trained = tmp_path / "largest.ckpt", SPNASNet(space.largest(), 10)
    for number, parameter in enumerate(trained.get_parameters()):
        parameter.set_data(Tensor(np.abs(normal(number, *parameter.shape)) + 0.1))
    keys = {}
    if pre_trained:
        keys["pre_trained"] = str(file)
        task = task_of(val_while_train=False)
        write_checkpoint(file, cell_weights(trained), task._run.meta)
    network = task_of(val_while_train=False, **keys).step.network
    found = cell_weights(network)
    if pre_trained:
        for name, value in cell_weights(trained).items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        return
    residual = [i for i, block in enumerate(space.largest().blocks) if block.residual]
    assert residual == [2]
    for name, value in found.items():
        if name.endswith("gamma"):
            assert (value == (name != "blocks.2.project.bn.gamma")).all(), name


def mean_statistics(network, batches) -> dict[str, np.ndarray]:
    """The mean over batches of the statistics of each, of a network whose momentum is 0."""
    seen = []
    for images in batches:
        network(Tensor(images))
        seen.append(state_of(network))
    return {name: np.mean([own[name] for own in seen], 0) for name in seen[0] if "moving_" in name}


def test_validated_networks_have_the_mean_statistics_of_batches(task_of, space):
    task = task_of()
    run, network = task._run, task.network
    assert (len(run.loader), len(run.val_loader)) == (110, 10)
    randomise(network)
    weights = state_of(network)
    batches = [images.copy() for images, _ in task._calibration().epoch()]
    assert [len(images) for images in batches] == [BATCH, BATCH, 10]
    del batches[-1]  # is too short
    with mode_of(ms.PYNATIVE_MODE):  # which spares all compilation
        result = task.evaluate(run.val_loader)
        after = state_of(network)
        assert list(result.networks) == VALIDATED and result.images == 10
        assert result.top1 == pytest.approx(np.mean(list(result.networks.values())))
        for name, decisions in task._subnets.validated.items():
            own = inherit(weights, space, decisions)
            arch = space.derive(decisions, name)
            sampler, alone = (SPNASNet(arch, 10, momentum=0.0) for _ in range(2))
            load_weights(sampler, own, name)
            statistics = mean_statistics(sampler.set_train(), batches)
            load_weights(alone, {**own, **statistics}, name)
            assert evaluate(alone.set_train(False), run.val_loader).top1 == result.networks[name]
    # The last one's are still there.
    for name, value in inherit(after, space, decisions).items():
        if "moving_" in name:
            assert_near(value, statistics[name], 1e-5)
    # Those of the stem in plain NumPy.
    moments = []
    for images in batches:
        stem = np.zeros((BATCH, 8, 16, 16))
        values = dense64(images, weights["stem.conv.weight"], 1, stem)[0]
        *_, mean, variance = norm64(values, np.ones(8), np.zeros(8), stem, True)
        moments.append((mean, variance * stem[:, 0].size / (stem[:, 0].size - 1)))
    for name, value in zip(("mean", "variance"), np.mean(moments, 0), strict=True):
        assert_near(after[f"stem.bn.moving_{name}"], value, 1e-5)


def test_held_out_images_are_found_again_from_a_checkpoint(configure, space, few_digits, tmp_path):
    def names(source):
        return [source.name(index) for index in range(len(source))]

    config = configure(holdout=0.25, seed=5)
    run = prepare(config, space.largest(), space)
    checkpoint = Checkpoint(tmp_path / "a.ckpt", Meta.from_json(run.meta.to_json(), "a.ckpt"), {})
    train, held, val = (
        names(open_source(checkpoint, SubnetConfig(), split)) for split in ("train", "held", "val")
    )
    assert train == names(run.loader.source) and held == names(run.val_loader.source)
    assert (len(train), len(held), len(val)) == (90, 30, 50)
    assert not set(train) & set(held)
    assert val == [name.replace("train", "val") for name in val]
    # In another folder the same images are found again; others cannot be told apart.
    shutil.copytree(few_digits, tmp_path / "copy")
    copy = SubnetConfig(data_path=str(tmp_path / "copy"))
    assert len(open_source(checkpoint, copy, "held")) == 30
    for number in range(5):
        (tmp_path / f"copy/train/3/another_{number}.jpg").touch()
    with pytest.raises(UserError, match=r"train: holds other images than those of .*a\.ckpt, so"):
        open_source(checkpoint, copy, "held")
    # What is named to be evaluated is evaluated, or missing, but never replaced.
    own = Checkpoint(
        checkpoint.path,
        replace(checkpoint.meta, config={**checkpoint.meta.config, "dataset_name": "folder"}),
        {},
    )
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_source(own, SubnetConfig(val_data_path="nowhere"), "val")
    run = prepare(configure(holdout=0), space.largest(), space)
    assert names(run.val_loader.source) == val
    checkpoint = Checkpoint(tmp_path / "a.ckpt", run.meta, {})
    assert sorted(names(open_source(checkpoint, SubnetConfig(), "train"))) == sorted(train + held)
    with pytest.raises(UserError, match="a.ckpt: its training has kept no images apart"):
        open_source(checkpoint, SubnetConfig(), "held")


@pytest.fixture(scope="module")
def flags(few_digits, space_file):
    """Of a training with state of all kinds."""
    keys = {**KEYS, "data_path": few_digits, "space": space_file, "save_checkpoint_steps": 3}
    keys |= {"subnets": "random", "accumulate_steps": 2, "drop_rate": 0.2, "ema_decay": 0.9}
    return [word for key, value in keys.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="module")
def reference(flags, tmp_path_factory):
    """The folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("reference")
    run = run_in_this_process("train.py", *flags, "--checkpoint_path", folder, cwd=folder)
    assert run.returncode == 0, run.stderr
    return folder / "ckpt_0"


def lines_of(folder, kind):
    return [line for line in read_jsonl(folder / "metrics.jsonl") if line["kind"] == kind]


@pytest.mark.slow
def test_a_resumed_training_equals_the_uninterrupted_one(reference, flags, call_program, tmp_path):
    """Bit for bit, from a checkpoint between the two batches of an update."""
    whole, middle = reference, "digits-1_3.ckpt"
    (tmp_path / "ckpt_0").mkdir()
    shutil.copy(whole / middle, tmp_path / "ckpt_0")
    own = ("--val_while_train", False, "--resume", "--checkpoint_path", tmp_path)
    run = call_program("train.py", *flags, *own)
    assert run.returncode == 0 and f"resumed from {tmp_path}" in run.stdout, run.stderr
    ours, theirs = lines_of(tmp_path / "ckpt_0", "train"), lines_of(whole, "train")
    assert 0 < len(ours) < len(theirs)
    for line, other in zip(ours, theirs[-len(ours) :], strict=True):
        assert {**line, "images_per_second": 0} == {**other, "images_per_second": 0}
    (last,) = (file.name for file in whole.glob("digits-2_[45].ckpt"))
    ours, theirs = (read_checkpoint(place / last).weights for place in (tmp_path / "ckpt_0", whole))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    start = read_checkpoint(whole / middle).weights
    assert any("moving_" in name for name in start)
    for name, value in start.items():  # nowhere do moving statistics move, nor their average
        if "moving_" in name:
            assert (value == name.endswith("variance")).all(), name
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
        elif name.endswith(".weight") and "gradient_sum" not in name:
            assert not np.array_equal(ours[name], value), name


@pytest.mark.slow
def test_a_run_says_how_good_its_networks_are(reference, space):
    """Its best checkpoint gives the same accuracies again."""
    folder = reference
    assert {"best.ckpt", "space.json", "config.yaml", "metrics.jsonl"} <= {
        file.name for file in folder.iterdir()
    }
    lines = lines_of(folder, "val")
    assert [line["epoch"] for line in lines] == [1, 2]
    own = [[line[f"top1_{name}"] for name in VALIDATED] for line in lines]
    assert [line["top1"] for line in lines] == pytest.approx(np.mean(own, 1).tolist())
    assert all(line["images"] == 10 for line in lines)
    best = read_checkpoint(folder / "best.ckpt")
    assert best.meta.space == space and best.meta.arch == space.largest()
    (line,) = (line for line in lines if line["epoch"] == best.meta.epoch)
    assert best.meta.metrics == {key: line[key] for key in best.meta.metrics}
    assert line["top1"] == max(line["top1"] for line in lines)
    config = SubnetConfig(batch_size=BATCH, calibration_images=50, compile_cache=False)
    images = open_images(config, best, space, "held")
    evaluator = SuperkernelEvaluator(best, images)
    subnets = Subnets(space, build_config(TrainConfig, best.meta.config), 10)
    with mode_of(ms.PYNATIVE_MODE):
        results = [evaluator(subnets.validated[name]) for name in VALIDATED]
    assert [result.top1 for result in results] == [line[f"top1_{name}"] for name in VALIDATED]
    assert line["loss"] == pytest.approx(np.mean([result.loss for result in results]), rel=1e-4)


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (("--arch", "spnas_pixel1"), "arch and space are both given"),
        (("--space", "one_shot_32"), "is that of a one-shot supernet"),
        (("--space", "imagenet_33"), "imagenet_33"),
        (("--holdout", 0.99), "has 12 image(s), too few to hold out 0.99 of them; --holdout 0"),
        (("--holdout", 1), "holdout is 1"),
        (("--subnets", "sandwhich"), "subnets is 'sandwhich'"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, call_program, tmp_path, wrong, reason):
    run = call_program("train.py", *flags, "--checkpoint_path", tmp_path / "run", *wrong)
    assert run.returncode == 2 and reason in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert not (tmp_path / "run").exists()
