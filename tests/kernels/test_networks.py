"""Networks of the CPU operators against MindSpore's own and against float64."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from PIL import Image

from src.arch.architecture import Architecture
from src.arch.blocks import decode_block
from src.arch.cost import conv_out
from src.config import TrainConfig
from src.CrossEntropySmooth import CrossEntropySmooth
from src.kernels import available, supports_bfloat16
from src.layers.ends import trains_in_bfloat16
from src.spnasnet import SPNASNet
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep, Update
from tests.conftest import mode_of
from tests.kernels.reference import (
    Gradients,
    assert_near,
    dense64,
    depthwise64,
    gradients,
    norm64,
    normal,
    parameters,
)

pytestmark = pytest.mark.skipif(not available(), reason="no CPU operators here")
needs_bfloat16 = pytest.mark.skipif(
    not supports_bfloat16(), reason="the processor does not multiply bfloat16"
)


def small_architecture(*more: str) -> Architecture:
    return network_of("r1_k3_s22_e3_i8_o12", "r1_k5_s11_e3_i12_o12", *more, "r1_k7_s22_e6_i12_o16")


def network_of(*blocks: str) -> Architecture:
    return Architecture(
        "small",
        32,
        tuple(decode_block(b) for b in blocks),
        stem_channels=8,
        stem_stride=1,
        head_channels=20,
        bn_epsilon=1e-3,
    )


def random_pair(arch: Architecture, *, folded: bool = False) -> tuple[nn.Cell, nn.Cell]:
    """A network with MindSpore's operators and with ours, of equal random weights."""
    stock, ours = (SPNASNet(arch, 4, kernels=kernels, folded=folded) for kernels in (False, True))
    assert list(parameters(stock)) == list(parameters(ours))
    for network in (stock, ours):
        for i, p in enumerate(network.get_parameters()):
            value = 0.3 * normal(i, *p.shape) + (0.5 if p.ndim == 1 else 0)
            p.set_data(Tensor(np.abs(value) if "variance" in p.name else value))
    return stock, ours


def small_pair(*, folded: bool = False) -> tuple[nn.Cell, nn.Cell]:
    """With a block without expansion, and one with squeeze-and-excitation."""
    arch = small_architecture("r1_k3_s11_e1_i12_o12", "r1_k5_s11_e3_i12_o12_se0.25")
    stock, ours = random_pair(arch, folded=folded)
    assert ours.stem.fused and ours.head.fused
    assert [block.fused for block in ours.blocks] == [True, True, True, False, True]
    return stock, ours


def test_training_equals_stock(mode):
    stock, ours = small_pair()
    x, factor = normal(1, 4, 3, 32, 32), normal(2, 4, 4)
    before = parameters(stock)
    with mode_of(ms.PYNATIVE_MODE):  # which spares its compilation
        expected = gradients(stock.set_train(), x, factor)
    actual = gradients(ours.set_train(), x, factor)
    for name, value in expected.items():
        assert_near(actual[name], value, 2e-5)
    moved = parameters(stock)
    for name, value in parameters(ours).items():  # moving statistics have moved once, others not
        np.testing.assert_allclose(value, moved[name], rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.array_equal(value, before[name]) != ("moving" in name), name


@pytest.mark.parametrize("folded", (False, True), ids=("moving statistics", "folded"))
def test_inference_equals_stock(mode, folded):
    stock, ours = (network.set_train(False) for network in small_pair(folded=folded))
    for n, size in ((1, 32), (3, 41)):
        x = Tensor(normal(1, n, 3, size, size))
        with mode_of(ms.PYNATIVE_MODE):
            expected = stock(x).asnumpy()
        assert_near(ours(x).asnumpy(), expected, 1e-5)


def test_other_types_use_stock_operators(mode):
    network = small_pair()[1].to_float(ms.float16).set_train(False)
    y = network(Tensor(normal(1, 2, 3, 32, 32))).asnumpy()
    assert y.dtype == np.float16 and np.isfinite(y).all()


class Float64Network:
    """The network of an architecture and its gradients in float64, after ``gradients`` above.

    Each layer computes its output, hands it to the ``rest`` of the network, and gets its gradient
    back.
    """

    def __init__(
        self, arch: Architecture, values: dict[str, np.ndarray], factor: np.ndarray
    ) -> None:
        self.arch, self.values, self.factor, self.results = arch, values, factor, {}

    def layer(self, name: str, x, stride: int, conv, relu: bool, rest):
        weight, gamma, beta = (
            self.values[f"{name}.{part}"] for part in ("conv.weight", "bn.gamma", "bn.beta")
        )
        size = [conv_out(side, stride) for side in x.shape[2:]]
        z = conv(x, weight, stride, np.zeros((len(x), len(weight), *size)))[0]
        epsilon = self.arch.bn_epsilon
        dy = rest(norm64(z, gamma, beta, np.zeros(z.shape), relu, epsilon)[0])
        _, dz, dgamma, dbeta, _, _ = norm64(z, gamma, beta, dy, relu, epsilon)
        _, dx, dweight = conv(x, weight, stride, dz)
        self.results.update(
            {f"{name}.conv.weight": dweight, f"{name}.bn.gamma": dgamma, f"{name}.bn.beta": dbeta}
        )
        return dx

    def block(self, index: int, x):
        if index == len(self.arch.blocks):
            return self.layer("head", x, 1, dense64, True, self.classifier)
        block, name, after = self.arch.blocks[index], f"blocks.{index}", []

        def rest(y):
            after.append(self.block(index + 1, x + y if block.residual else y))
            return after[0]

        def project(h):
            return self.layer(f"{name}.project", h, 1, dense64, False, rest)

        def depthwise(h):
            return self.layer(f"{name}.depthwise", h, block.stride, depthwise64, True, project)

        dx = self.layer(f"{name}.expand", x, 1, dense64, True, depthwise)
        return dx + after[0] if block.residual else dx

    def classifier(self, x):
        weight, pooled = self.values["classifier.weight"], x.mean((2, 3))
        self.results.update(
            {"classifier.weight": self.factor.T @ pooled, "classifier.bias": self.factor.sum(0)}
        )
        self.results["value"] = (
            (pooled @ weight.T + self.values["classifier.bias"]) * self.factor
        ).sum()
        return np.broadcast_to((self.factor @ weight)[:, :, None, None] / x[0, 0].size, x.shape)

    def run(self, x) -> dict[str, np.ndarray]:
        dx = self.layer("stem", x, self.arch.stem_stride, dense64, True, lambda y: self.block(0, y))
        return {**self.results, "x": dx}


def test_network_is_about_as_near_to_float64_as_stock():
    pair = random_pair(small_architecture())  # blocks that Float64Network knows
    errors = {network: [] for network in pair}
    for seed in range(6):
        x, factor = normal(seed, 4, 3, 32, 32), normal(seed + 9, 4, 4)
        values = {name: value.astype(np.float64) for name, value in parameters(pair[0]).items()}
        expected = Float64Network(small_architecture(), values, factor.astype(np.float64)).run(
            x.astype(np.float64)
        )
        for network in pair:
            actual = gradients(network.set_train(), x, factor)
            assert actual.keys() == expected.keys()
            # A shift of what is normalised next has a gradient of zero, which tells nothing of
            # rounding.
            errors[network].append(
                [
                    np.linalg.norm(actual[name] - value) / norm
                    for name, value in expected.items()
                    if (norm := np.linalg.norm(value)) > 1e-9
                ]
            )
    stock, ours = (np.array(errors[network]) for network in pair)
    # The operators' results are the same on all processors. MindSpore's depend on it: with AVX-512
    # they sum in twice as many parts, and the operators' error is 1.1 to 1.35 times theirs.
    assert stock.max() < 1e-4 and ours.mean() <= 1.5 * stock.mean(), (stock.mean(), ours.mean())


def bfloat16_network(arch: Architecture) -> nn.Cell:
    """With the weights of ``random_pair``."""
    network = SPNASNet(arch, 4, kernels=True, bfloat16=True)
    for p, q in zip(network.get_parameters(), random_pair(arch)[1].get_parameters(), strict=True):
        p.set_data(q)
    return network


@needs_bfloat16
def test_bfloat16_network_is_near_to_float32(mode):
    arch = small_architecture("r1_k3_s11_e1_i12_o12")
    ours, half = random_pair(arch)[1], bfloat16_network(arch)
    assert half.stem.bfloat16 and half.head.bfloat16 and all(b.bfloat16 for b in half.blocks)
    assert list(parameters(half)) == list(parameters(ours))
    batches = [(normal(2 * i + 1, 8, 3, 32, 32), normal(2 * i + 2, 8, 4)) for i in range(4)]
    with mode_of(ms.PYNATIVE_MODE):  # which spares its compilation
        exact = Gradients(ours.set_train())
        expected = [exact.named(*batch) for batch in batches]
    rounded = Gradients(half.set_train())
    actual = [rounded.named(*batch) for batch in batches]
    # Rounding moves values to the other side of 0, where ReLU has another gradient, in layer after
    # layer: by chance it is much in a batch, so that several are compared. The gradient of a shift
    # that is normalised next is 0 but for rounding.
    errors = {
        name: np.linalg.norm([a[name] - e[name] for a, e in zip(actual, expected, strict=True)])
        / np.linalg.norm([e[name] for e in expected])
        for name in expected[0]
        if not name.endswith("project.bn.beta")
    }
    assert max(errors.values()) < 0.3 and np.median(list(errors.values())) < 0.16, errors
    assert {a.dtype for a in actual[0].values()} == {np.dtype(np.float32)}
    moved = parameters(ours)
    for name, value in parameters(half).items():
        assert value.dtype == np.float32
        if "moving" in name:
            np.testing.assert_allclose(value, moved[name], rtol=0.02, atol=0.005, err_msg=name)
    # Inference is that of float32: it differs by the moving statistics alone.
    x = Tensor(batches[0][0])
    y = half.set_train(False)(x).asnumpy()
    assert_near(y, ours.set_train(False)(x).asnumpy(), 0.01)


@needs_bfloat16
def test_bfloat16_subnet_is_the_network_that_it_derives():
    arch = small_architecture()
    derived = network_of("r1_k3_s22_e3_i8_o12", "r1_k3_s11_e2_i12_o12", "r1_k5_s22_e3_i12_o16")
    decisions = [(b.kernel_size, b.mid_channels, 1) for b in derived.blocks]
    network = bfloat16_network(arch).set_train()
    own = SPNASNet(derived, 4, kernels=True, bfloat16=True).set_train()
    values = parameters(network)
    for p in own.get_parameters():
        value = values[p.name]
        if p.name.endswith("depthwise.conv.weight"):
            trim = (value.shape[-1] - p.shape[-1]) // 2
            value = value[:, :, trim : value.shape[2] - trim, trim : value.shape[3] - trim]
        p.set_data(Tensor(np.ascontiguousarray(value[tuple(map(slice, p.shape))])))
    x = Tensor(normal(1, 4, 3, 32, 32))
    y = network(x, None, Tensor(np.array(decisions, np.float32))).asnumpy()
    assert np.array_equal(y, own(x).asnumpy())


def test_bfloat16_is_for_blocks_that_operators_know():
    gated = small_architecture("r1_k5_s11_e3_i12_o12_se0.25")
    assert trains_in_bfloat16(small_architecture()) == supports_bfloat16()
    assert not trains_in_bfloat16(gated)
    network = SPNASNet(gated, 4, kernels=True, bfloat16=True)
    assert network.stem.fused and not network.stem.bfloat16


@pytest.mark.slow
def test_loss_curve_on_digits_equals_stock(few_digits, graph_mode):
    files = sorted((few_digits / "train").glob("*/*"))
    images = np.stack(
        [np.asarray(Image.open(file).convert("RGB").resize((32, 32)), np.float32) for file in files]
    )
    images = (images.transpose(0, 3, 1, 2) - 128) / 64
    labels = np.array([int(file.parent.name) for file in files], np.int32)
    order = np.random.default_rng(0).permutation(len(files))
    config, keep = TrainConfig(), Tensor(np.ones(1, np.float32))
    curves = []
    for kernels, bfloat16 in ((False, False), (True, False), (True, True)):
        ms.set_seed(1)
        network = SPNASNet(small_architecture(), 10, kernels=kernels, bfloat16=bfloat16)
        rates = np.full(20, 0.2, np.float32)
        optimizer = create_optimizer(network, config, rates, kernels=kernels)
        update = Update(network, optimizer, config, mixed_precision=False)
        step = TrainStep(network, CrossEntropySmooth(0.1), update).set_train()
        batches = [order[i % 3 * 40 :][:40] for i in range(20)]
        curves.append(
            [float(step(Tensor(images[b]), Tensor(labels[b]), keep)[0].asnumpy()) for b in batches]
        )
    stock, ours, half = curves
    assert stock[-1] < 0.95 * stock[0]
    # Differences by rounding grow from step to step.
    np.testing.assert_allclose(ours[:5], stock[:5], rtol=1e-4)
    np.testing.assert_allclose(ours, stock, rtol=0.02)
    np.testing.assert_allclose(half, stock, rtol=0.05)


@pytest.mark.parametrize(
    "bfloat16",
    (False, pytest.param(True, marks=needs_bfloat16)),
    ids=("float32", "bfloat16"),
)
def test_graph_and_pynative_agree(bfloat16):
    x, factor = normal(1, 4, 3, 32, 32), normal(2, 4, 4)
    results = []
    before = ms.get_context("mode")
    try:
        for mode in (ms.GRAPH_MODE, ms.PYNATIVE_MODE):
            ms.set_context(mode=mode)
            network = bfloat16_network(small_architecture()) if bfloat16 else small_pair()[1]
            network.set_train()
            results.append({**gradients(network, x, factor), **parameters(network)})
    finally:
        ms.set_context(mode=before)
    for name, value in results[0].items():
        assert_near(results[1][name], value, 1e-5)


@pytest.mark.parametrize("bfloat16", (False, True), ids=("float32", "bfloat16"))
def test_repeated_steps_are_bit_equal(bfloat16):
    x, factor = normal(1, 4, 3, 32, 32), normal(2, 4, 4)
    network = bfloat16_network(small_architecture()) if bfloat16 else small_pair()[1]
    step = Gradients(network.set_train())
    first, second = ([a.asnumpy() for a in step(Tensor(x), Tensor(factor))[1][1]] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
