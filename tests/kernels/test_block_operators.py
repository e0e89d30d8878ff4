"""Stem, MBConv blocks and head as operators, against float64 NumPy and against masked cells."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn, ops

from src.arch.blocks import decode_block
from src.arch.cost import conv_out
from src.kernels import available, block_operator, build, head_operator, stem_operator
from src.layers.mbconv import MBConv
from tests.conftest import mode_of
from tests.kernels.reference import (
    assert_near,
    block64,
    dense64,
    depthwise64,
    first,
    last,
    norm64,
    normal,
    parameters,
    rounded,
    run,
)

pytestmark = pytest.mark.skipif(not available(), reason="no CPU operators here")

BLOCKS = [  # (N, C, H, W, M, O, k, stride), M == C without expansion
    (2, 16, 8, 8, 48, 16, 3, 1),
    (2, 24, 14, 14, 72, 24, 5, 1),
    (3, 8, 9, 7, 24, 12, 3, 2),
    (2, 5, 15, 18, 19, 7, 5, 2),
    (2, 40, 7, 7, 120, 40, 7, 1),
    (2, 12, 10, 9, 72, 56, 5, 2),  # of so many channels that a gradient is kept
    (1, 6, 31, 33, 20, 9, 7, 2),
    (2, 32, 16, 16, 32, 16, 3, 1),
    (2, 19, 12, 12, 19, 19, 5, 1),
    (9, 17, 4, 4, 34, 17, 3, 1),
    (1, 32, 9, 7, 64, 48, 3, 1),  # pixels that fill all but one row of two matrix tiles
    (40, 3, 2, 2, 9, 20, 5, 1),
    (3, 3, 17, 1, 9, 20, 7, 2),
    (1, 4, 70, 33, 20, 4, 5, 1),  # larger than what is computed at a time
    (1, 4, 64, 63, 18, 9, 3, 2),
    (1, 9, 61, 40, 9, 9, 3, 1),
]
EPSILON, MOMENTUM = 1e-5, 0.9
ROUNDING = 2.0**-8  # the most by which rounding to bfloat16 changes a value, relatively


def options(residual: bool = False, ceiling: float = np.inf) -> np.ndarray:
    return np.array([EPSILON, MOMENTUM, residual, ceiling], np.float32)


class BlockCase:
    """A block with parameters that keep values near 1, and the calls of its operators."""

    def __init__(self, shape, seed: int = 0, bfloat16: bool = False) -> None:
        self.shape = shape
        n, c, h, w, mid, out, k, stride = shape
        self.expands, self.residual = mid != c, stride == 1 and c == out
        self.size = (n, conv_out(h, stride), conv_out(w, stride))
        self.x = normal(seed + 1, n, c, h, w) + 0.3
        self.dy = normal(seed + 2, n, out, *self.size[1:])

        def layer(number, *weight):
            sigma, channels = np.sqrt(np.prod(weight[1:])), weight[0]
            return [
                (normal(seed + number, *weight) / sigma).astype(np.float32),
                1 + 0.3 * normal(seed + number + 1, channels),
                0.5 + normal(seed + number + 2, channels),
            ]

        self.layers = [layer(6, mid, 1, k, k), layer(9, out, mid, 1, 1)]
        if self.expands:
            self.layers.insert(0, layer(3, mid, c, 1, 1))
        self.moving = [
            (normal(seed + 20 + i, len(w)), 0.5 + np.abs(normal(seed + 30 + i, len(w))))
            for i, (w, _, _) in enumerate(self.layers)
        ]
        self.stride, self.prefix = stride, "Block" if self.expands else "BlockPlain"
        self.bfloat16 = bfloat16
        if bfloat16:
            self.x, self.dy = rounded(self.x), rounded(self.dy)

    def inputs(self, decision) -> list:
        arrays = [last(self.x)]
        for layer, moving in zip(self.layers, self.moving, strict=True):
            arrays += [*layer, *moving]
        return [*arrays, options(self.residual), np.array(decision, np.float32)]

    def train(self, decision, library=None) -> list:
        n, c, _, _, mid, out, _, _ = self.shape
        y, pixels = (*self.size, out), int(np.prod(self.size))
        saved = [(c,), (mid, c)] if self.expands else []
        moving = [(mid,)] * (2 * len(self.layers) - 2) + [(out,)] * 2
        shapes = [y, (-(-mid // 16), pixels, 16), y, *saved, (len(moving) - 2, mid), (2, out)]
        inputs = self.inputs(decision)
        return self.run("Train", inputs, [*shapes, *moving], library, (0, 1, 2))

    def backward(self, decision, results, library=None) -> list:
        saved = results[1 : 7 if self.expands else 5]
        arrays = [last(self.x)] + [a for layer in self.layers for a in layer]
        arrays = arrays[:-1]  # beta of the last normalisation is not needed
        inputs = [*arrays, *saved, *self.inputs(decision)[-2:], last(self.dy)]
        shapes = [last(self.x).shape] + [a.shape for layer in self.layers for a in layer]
        halves = (len(arrays), len(arrays) + 1, -len(shapes) - 1)  # z, the projection's output, dy
        dx, *gradients = self.run("Backward", inputs, shapes, library, (0,), halves)
        return [first(dx), *gradients]

    def run(self, name, inputs, shapes, library, outputs, more=()) -> list:
        """Calls an operator, of which x, some outputs and ``more`` may be bfloat16."""
        halves = [0, *(len(inputs) + i for i in outputs), *more] if self.bfloat16 else []
        kind = "Bfloat16" if self.bfloat16 else ""
        name = f"{self.prefix}{kind}{name}{self.stride}"
        return run(name, inputs, shapes, library=library, bfloat16=halves)

    def active(self, results) -> list:
        """Where the ReLUs of a block in training were active in bfloat16."""
        n, _, _, _, mid, _, _, _ = self.shape
        z = results[1].transpose(1, 0, 2).reshape(*self.size[:1], *self.size[1:], -1)[..., :mid]
        wide = results[5 if self.expands else 3]

        def affine(layer, mean, inverse):
            _, gamma, beta = layer
            scale = gamma * inverse
            return scale, beta - mean * scale

        scale, shift = affine(self.layers[-2], *wide[:2])
        inner = first(z * scale + shift > 0)
        if not self.expands:
            return [True, inner]
        scale, shift = affine(self.layers[0], *wide[2:])
        weight = rounded(self.layers[0][0][:, :, 0, 0] * scale[:, None])
        e = np.einsum("nchw,mc->nmhw", self.x.astype(np.float64), weight)
        return [e + shift[:, None, None] > 0, inner]

    def everything(self) -> tuple:
        return self.shape[6], self.shape[4], 1


def assert_moved(case: BlockCase, moved, expected, tolerance: float = 1e-5) -> None:
    """New moving statistics follow from these means and variances of the batch."""
    n, _, h, w = case.x.shape
    counts = [n * h * w] * (len(case.layers) - 2) + [np.prod(case.size)] * 2
    for i, (old, count) in enumerate(zip(case.moving, counts, strict=True)):
        unbiased = (1, count / max(1, count - 1))
        for j in range(2):
            value = MOMENTUM * old[j] + (1 - MOMENTUM) * unbiased[j] * expected[2 * i + j]
            assert_near(moved[2 * i + j], value, tolerance)


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_block_equals_float64(shape):
    case = BlockCase(shape)
    y, gradients, statistics = block64(case.x, case.layers, shape[-1], case.residual, case.dy)
    results = case.train(case.everything())
    assert_near(first(results[0]), y, 5e-6)
    assert_moved(case, results[7 if case.expands else 5 :], statistics)
    for actual, expected in zip(case.backward(case.everything(), results), gradients, strict=True):
        assert_near(actual, expected, 1e-5)


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_bfloat16_block_equals_float64(shape):
    case = BlockCase(shape, bfloat16=True)
    results = case.train(case.everything())
    # Rounding may move a value to the other side of 0, where its gradient is another one.
    y, gradients, statistics = block64(
        case.x, case.layers, shape[-1], case.residual, case.dy, case.active(results)
    )
    assert_near(first(results[0]), y, 3 * ROUNDING)
    assert_moved(case, results[7 if case.expands else 5 :], statistics, ROUNDING)
    for actual, expected in zip(case.backward(case.everything(), results), gradients, strict=True):
        assert_near(actual, expected, 8 * ROUNDING)


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_inference_equals_float64(shape):
    case = BlockCase(shape)
    *expansion, depthwise, project = zip(case.layers, case.moving, strict=True)

    def layer(x, pair, stride, conv, relu):
        (weight, gamma, beta), moving = pair
        size = [conv_out(side, stride) for side in x.shape[2:]]
        z = conv(x, weight, stride, np.zeros((len(x), len(weight), *size)))[0]
        return norm64(z, gamma, beta, np.zeros(z.shape), relu, statistics=moving)[0]

    hidden = layer(case.x, expansion[0], 1, dense64, True) if expansion else case.x
    hidden = layer(hidden, depthwise, shape[-1], depthwise64, True)
    expected = layer(hidden, project, 1, dense64, False) + (case.x if case.residual else 0)
    inputs, y = case.inputs(case.everything()), [(*case.size, shape[5])]
    assert_near(first(run(f"{case.prefix}Infer{case.stride}", inputs, y)[0]), expected, 5e-6)
    folded = [inputs[0]]
    for (weight, gamma, beta), (mean, variance) in zip(case.layers, case.moving, strict=True):
        scale = gamma / np.sqrt(variance + EPSILON)
        folded += [weight * scale[:, None, None, None], beta - mean * scale]
    folded = [a.astype(np.float32) for a in folded] + inputs[-2:]
    assert_near(first(run(f"{case.prefix}Folded{case.stride}", folded, y)[0]), expected, 5e-6)


def active_part(case: BlockCase, side: int, channels: int):
    """Layers of the block that a decision derives, and where each parameter lies in the largest."""
    largest = case.layers[1][0].shape[-1]
    trim = (largest - side) // 2
    taps = slice(trim, largest - trim)
    places = [np.s_[:channels]] * 3 + [np.s_[:channels, :, taps, taps]] + [np.s_[:channels]] * 2
    places += [np.s_[:, :channels], np.s_[:], np.s_[:]]
    flat = [a for layer in case.layers for a in layer]
    values = [a[place] for a, place in zip(flat, places, strict=True)]
    return [values[:3], values[3:6], values[6:]], places


@pytest.mark.parametrize("bfloat16", (False, True), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("decision", [(3, 48, 1), (5, 24, 1), (3, 20, 1), (5, 48, 0)], ids=str)
def test_active_part_is_the_block_that_it_derives(decision, bfloat16):
    side, channels, presence = decision
    case = BlockCase((2, 16, 9, 8, 48, 16, 5, 1), bfloat16=bfloat16)
    results = case.train(decision)
    gradients, moved = case.backward(decision, results), results[7:]
    kept = [a for pair in case.moving for a in pair]
    if not presence:
        assert np.array_equal(first(results[0]), case.x) and np.array_equal(gradients[0], case.dy)
        assert not any(gradient.any() for gradient in gradients[1:])
        assert all(np.array_equal(a, b) for a, b in zip(moved, kept, strict=True))
        return
    small = BlockCase((2, 16, 9, 8, channels, 16, side, 1), bfloat16=bfloat16)
    small.layers, places = active_part(case, side, channels)
    small.moving = [(mean[:channels], variance[:channels]) for mean, variance in case.moving]
    expected = small.train(small.everything())
    assert np.array_equal(results[0], expected[0])
    for value, own, old in zip(moved, expected[7:], kept, strict=True):
        assert np.array_equal(value, np.concatenate([own, old[len(own) :]]))
    dx, *own = small.backward(small.everything(), expected)
    assert np.array_equal(gradients[0], dx)
    for whole, place, value in zip(gradients[1:], places, own, strict=True):
        assert np.array_equal(whole[place], value)
        whole[place] = 0
        assert not whole.any()


class Decided(nn.Cell):
    """Weighted sum of a block's output for a decision, with its gradients."""

    def __init__(self, block: MBConv) -> None:
        super().__init__(auto_prefix=False)
        self.block, self.weights = block, ParameterTuple(block.trainable_params())
        self.gradient = ops.value_and_grad(self.forward, 0, self.weights)

    def forward(self, x: Tensor, factor: Tensor, decision: Tensor) -> Tensor:
        return (self.block(x, None, None, None, decision) * factor).sum()

    def construct(self, x: Tensor, factor: Tensor, decision: Tensor):
        return self.gradient(x, factor, decision)


@pytest.mark.parametrize("name", ["r1_k5_s11_e6_i8_o8", "r1_k7_s22_e3_i8_o12"])
def test_active_block_equals_masked_block(mode, name):
    masked, active = (MBConv(decode_block(name), fused=fused) for fused in (False, True))
    for i, (p, q) in enumerate(zip(masked.get_parameters(), active.get_parameters(), strict=True)):
        value = 0.3 * normal(i, *p.shape) + (0.5 if p.ndim == 1 else 0)
        for parameter in (p, q):
            parameter.set_data(Tensor(np.abs(value) if "variance" in p.name else value))
    stride, size = (1, 9) if masked.residual else (2, 5)
    x, factor = normal(1, 3, 8, 9, 9), normal(2, 3, masked.project.conv.out_channels, size, size)
    largest, mid = masked.depthwise.conv.kernel_size[0], masked.numbers.shape[1]
    cases = [(3, mid // 2, 1), (largest, mid, 1), (5, mid - 3, 1)]
    cases += [(largest, mid, 0)] if masked.residual else []
    steps = {block: Decided(block.set_train()) for block in (masked, active)}
    for decision in cases:
        d = Tensor(np.array(decision, np.float32))
        with mode_of(ms.PYNATIVE_MODE):  # which spares its compilation
            value, (dx, dweights) = steps[masked](Tensor(x), Tensor(factor), d)
        actual, (dx_active, dactive) = steps[active](Tensor(last(x)), Tensor(last(factor)), d)
        assert_near(actual.asnumpy(), value.asnumpy(), 1e-5)
        assert_near(first(dx_active.asnumpy()), dx.asnumpy(), 1e-5)
        for a, e in zip(dactive, dweights, strict=True):
            assert_near(a.asnumpy(), e.asnumpy(), 2e-5)
            assert decision[2] or not a.asnumpy().any()
        if decision == cases[0]:  # later ones move different channels
            moved = parameters(masked)
            for parameter, value in parameters(active).items():
                if "moving" in parameter:
                    count = len(value) if "project" in parameter else decision[1]
                    assert_near(value[:count], moved[parameter][:count], 1e-5)


STEMS = [  # (N, C, H, W, O, k, stride)
    (2, 3, 32, 32, 32, 3, 2),
    (2, 3, 9, 11, 8, 3, 1),
    (3, 1, 7, 5, 21, 5, 2),
    (1, 4, 6, 13, 16, 7, 1),
]
HEADS = [(2, 24, 7, 7, 96), (5, 3, 1, 1, 20), (3, 40, 17, 16, 35)]  # (N, C, H, W, O)


def stem_case(n, c, h, w, out, k, stride):
    x, weight = normal(1, n, c, h, w), normal(2, out, c, k, k) / k
    gamma, beta = 1 + 0.3 * normal(3, out), normal(4, out)
    moving = normal(5, out), 0.5 + np.abs(normal(6, out))
    dy = normal(7, n, out, conv_out(h, stride), conv_out(w, stride))
    return x, weight, gamma, beta, moving, dy


@pytest.mark.parametrize("shape", STEMS, ids=str)
def test_stem_equals_float64(shape):
    n, c, h, w, out, k, stride = shape
    x, weight, gamma, beta, moving, dy = stem_case(*shape)
    s = dense64(x, weight, stride, dy)[0]
    y, ds, dgamma, dbeta, mean, variance = norm64(s, gamma, beta, dy, True)
    _, dx, dweight = dense64(x, weight, stride, ds)
    size, pixels = dy.shape[2:], n * dy[0, 0].size
    inputs = [x, weight, gamma, beta, *moving, options()]
    shapes = [(n, *size, out), (-(-out // 16), pixels, 16), (2, out), (out,), (out,)]
    results = run(f"StemTrain{stride}", inputs, shapes)
    assert_near(first(results[0]), y, 5e-6)
    assert_near(results[3], 0.9 * moving[0] + 0.1 * mean, 1e-5)
    assert_near(results[4], 0.9 * moving[1] + 0.1 * variance * pixels / (pixels - 1), 1e-5)
    saved = [x, weight, gamma, beta, results[1], results[2], options(), last(dy)]
    actual = run(f"StemBackward{stride}", saved, [weight.shape, (out,), (out,)])
    for a, e in zip(actual, (dweight, dgamma, dbeta), strict=True):
        assert_near(a, e, 1e-5)
    assert_near(run(f"StemInputGradient{stride}", [*saved, *actual[1:]], [x.shape])[0], dx, 1e-5)
    y = norm64(s, gamma, beta, dy, True, statistics=moving)[0]
    assert_near(first(run(f"StemInfer{stride}", inputs, shapes[:1])[0]), y, 5e-6)
    scale = gamma / np.sqrt(moving[1] + EPSILON)
    folded = [weight * scale[:, None, None, None], beta - moving[0] * scale]
    inputs = [x, *(a.astype(np.float32) for a in folded), options()]
    assert_near(first(run(f"StemFolded{stride}", inputs, shapes[:1])[0]), y, 5e-6)


@pytest.mark.parametrize("shape", STEMS, ids=str)
def test_bfloat16_stem_equals_float64(shape):
    n, c, h, w, out, k, stride = shape
    x, weight, gamma, beta, moving, dy = stem_case(*shape)
    weight, dy = weight.astype(np.float32), rounded(dy)
    size, pixels = dy.shape[2:], n * dy[0, 0].size
    inputs = [x, weight, gamma, beta, *moving, options()]
    shapes = [(n, *size, out), (-(-out // 16), pixels, 16), (2, out), (out,), (out,)]
    results = run(f"StemBfloat16Train{stride}", inputs, shapes, bfloat16=(7, 8))
    s = results[1].transpose(1, 0, 2).reshape(n, *size, -1)[..., :out]
    scale = gamma * results[2][1]
    active = first(s * scale + (beta - results[2][0] * scale) > 0)
    exact = dense64(x, weight, stride, dy)[0]
    assert_near(first(s), exact, ROUNDING)
    y, ds, dgamma, dbeta, mean, _ = norm64(exact, gamma, beta, dy, active)
    _, dx, dweight = dense64(x, weight, stride, ds)
    assert_near(first(results[0]), y, 3 * ROUNDING)
    assert_near(results[3], 0.9 * moving[0] + 0.1 * mean, ROUNDING)
    saved = [x, weight, gamma, beta, results[1], results[2], options(), last(dy)]
    shapes = [weight.shape, (out,), (out,)]
    actual = run(f"StemBfloat16Backward{stride}", saved, shapes, bfloat16=(4, 7))
    for a, e in zip(actual, (dweight, dgamma, dbeta), strict=True):
        assert_near(a, e, 4 * ROUNDING)
    name = f"StemBfloat16InputGradient{stride}"
    assert_near(run(name, [*saved, *actual[1:]], [x.shape], bfloat16=(4, 7))[0], dx, 4 * ROUNDING)


def head_case(n, c, h, w, out):
    x, weight = normal(1, n, c, h, w), (normal(2, out, c, 1, 1) / np.sqrt(c)).astype(np.float32)
    gamma, beta = 1 + 0.3 * normal(3, out), normal(4, out)
    # The mean over the pixels divides dy: without the factor a tolerance would exceed gradients.
    moving, dy = (normal(5, out), 0.5 + np.abs(normal(6, out))), normal(7, n, out) * h * w
    return x, weight, gamma, beta, moving, dy


@pytest.mark.parametrize("shape", HEADS, ids=str)
def test_bfloat16_head_equals_float64(shape):
    n, c, h, w, out = shape
    x, weight, gamma, beta, moving, dy = head_case(*shape)
    x = rounded(x)
    inputs = [last(x), weight, gamma, beta, *moving, options()]
    shapes = [(n, out), (-(-out // 16), n * h * w, 16), (2, out), (out,), (out,)]
    results = run("HeadBfloat16Train", inputs, shapes, bfloat16=(0, 8))
    q = first(results[1].transpose(1, 0, 2).reshape(n, h, w, -1)[..., :out])
    # Products of bfloat16 are exact in float32, so that only their sum is rounded.
    assert_near(q, dense64(x, rounded(weight), 1, np.zeros((n, out, h, w)))[0], 1.001 * ROUNDING)
    spread = np.broadcast_to(dy[:, :, None, None] / (h * w), (n, out, h, w))
    scale = gamma * results[2][1]
    shift = beta - results[2][0] * scale
    active = q * scale[:, None, None] + shift[:, None, None] > 0
    exact = dense64(x, weight, 1, np.zeros((n, out, h, w)))[0]
    y, dq, dgamma, dbeta, mean, _ = norm64(exact, gamma, beta, spread, active)
    _, dx, dweight = dense64(x, weight, 1, dq)
    assert_near(results[0], y.mean((2, 3)), 2 * ROUNDING)
    assert_near(results[3], 0.9 * moving[0] + 0.1 * mean, ROUNDING)
    saved = [last(x), weight, gamma, beta, results[1], results[2], options(), dy]
    shapes = [last(x).shape, weight.shape, (out,), (out,)]
    actual = run("HeadBfloat16Backward", saved, shapes, bfloat16=(0, 4, 8))
    assert_near(first(actual[0]), dx, 4 * ROUNDING)
    for a, e in zip(actual[1:], (dweight, dgamma, dbeta), strict=True):
        assert_near(a, e, 4 * ROUNDING)


@pytest.mark.parametrize("shape", HEADS, ids=str)
def test_head_equals_float64(shape):
    n, c, h, w, out = shape
    x, weight, gamma, beta, moving, dy = head_case(*shape)
    spread = np.broadcast_to(dy[:, :, None, None] / (h * w), (n, out, h, w))
    q = dense64(x, weight, 1, np.zeros((n, out, h, w)))[0]
    y, dq, dgamma, dbeta, mean, variance = norm64(q, gamma, beta, spread, True)
    _, dx, dweight = dense64(x, weight, 1, dq)
    inputs = [last(x), weight, gamma, beta, *moving, options()]
    shapes = [(n, out), (-(-out // 16), n * h * w, 16), (2, out), (out,), (out,)]
    results = run("HeadTrain", inputs, shapes)
    assert_near(results[0], y.mean((2, 3)), 5e-6)
    assert_near(results[3], 0.9 * moving[0] + 0.1 * mean, 1e-5)
    count = n * h * w
    assert_near(results[4], 0.9 * moving[1] + 0.1 * variance * count / (count - 1), 1e-5)
    saved = [last(x), weight, gamma, beta, results[1], results[2], options(), dy]
    actual = run("HeadBackward", saved, [last(x).shape, weight.shape, (out,), (out,)])
    assert_near(first(actual[0]), dx, 1e-5)
    for a, e in zip(actual[1:], (dweight, dgamma, dbeta), strict=True):
        assert_near(a, e, 1e-5)
    y = norm64(q, gamma, beta, q, True, statistics=moving)[0].mean((2, 3))
    assert_near(run("HeadInfer", inputs, shapes[:1])[0], y, 5e-6)


CEILING = 0.7


def test_ceiling_of_stem_and_head():
    """ReLU6 for values that are smaller: nothing above the ceiling, and no gradient there."""
    x, weight, gamma, beta, moving, dy = stem_case(*STEMS[0])
    s = dense64(x, weight, 2, dy)[0]
    y = norm64(s, gamma, beta, dy, False)[0]
    active = (y > 0) & (y < CEILING)
    assert active.mean() > 0.1 and (y > CEILING).mean() > 0.1
    _, ds, dgamma, dbeta, *_ = norm64(s, gamma, beta, dy, active)
    inputs = [x, weight, gamma, beta, *moving, options(ceiling=CEILING)]
    pixels, out = dy[0, 0].size * len(dy), len(weight)
    shapes = [last(dy).shape, (-(-out // 16), pixels, 16), (2, out), (out,), (out,)]
    results = run("StemTrain2", inputs, shapes)
    assert_near(first(results[0]), y.clip(0, CEILING), 5e-6)
    saved = [*inputs[:4], *results[1:3], inputs[-1], last(dy)]
    actual = run("StemBackward2", saved, [weight.shape, (out,), (out,)])
    dx, dweight = dense64(x, weight, 2, ds)[1:]
    for a, e in zip(actual, (dweight, dgamma, dbeta), strict=True):
        assert_near(a, e, 1e-5)
    assert_near(run("StemInputGradient2", [*saved, *actual[1:]], [x.shape])[0], dx, 1e-5)
    y = norm64(s, gamma, beta, dy, False, statistics=moving)[0].clip(0, CEILING)
    assert_near(first(run("StemInfer2", inputs, shapes[:1])[0]), y, 5e-6)

    x, weight, gamma, beta, moving, dy = head_case(*HEADS[0])
    n, _, h, w = x.shape
    out = len(weight)
    q = dense64(x, weight, 1, np.zeros((n, out, h, w)))[0]
    spread = np.broadcast_to(dy[:, :, None, None] / (h * w), q.shape)
    y = norm64(q, gamma, beta, spread, False)[0]
    _, dq, dgamma, dbeta, *_ = norm64(q, gamma, beta, spread, (y > 0) & (y < CEILING))
    inputs = [last(x), weight, gamma, beta, *moving, options(ceiling=CEILING)]
    shapes = [(n, out), (-(-out // 16), n * h * w, 16), (2, out), (out,), (out,)]
    results = run("HeadTrain", inputs, shapes)
    assert_near(results[0], y.clip(0, CEILING).mean((2, 3)), 5e-6)
    saved = [*inputs[:4], *results[1:3], inputs[-1], dy]
    actual = run("HeadBackward", saved, [last(x).shape, weight.shape, (out,), (out,)])
    expected = [*dense64(x, weight, 1, dq)[1:], dgamma, dbeta]
    for a, e in zip([first(actual[0]), *actual[1:]], expected, strict=True):
        assert_near(a, e, 1e-5)
    y = norm64(q, gamma, beta, q, False, statistics=moving)[0].clip(0, CEILING).mean((2, 3))
    assert_near(run("HeadInfer", inputs, shapes[:1])[0], y, 5e-6)


def test_statistics_of_values_far_from_zero():
    case = BlockCase((4, 8, 9, 9, 24, 8, 3, 1))
    case.x += np.array([1e3, -300, 0, 5, 20, -50, 1, 0], np.float32)[:, None, None]
    _, _, statistics = block64(case.x, case.layers, 1, True, case.dy)
    variance = (case.train(case.everything())[8] - 0.9 * case.moving[0][1]) / 0.1
    np.testing.assert_allclose(variance, statistics[1] * 324 / 323, rtol=1e-4)


def test_nan_passes():
    case = BlockCase((2, 8, 9, 9, 24, 8, 3, 1))
    case.x[1, 3, 4, 4] = np.nan
    assert np.isnan(case.train(case.everything())[0]).all()
    y = run("BlockInfer1", case.inputs(case.everything()), [(2, 9, 9, 8)])[0]
    assert np.isnan(y[1, 4, 4]).all() and not np.isnan(y[0]).any()


def test_nan_passes_in_bfloat16_and_other_types_are_refused():
    case = BlockCase((2, 8, 9, 9, 24, 8, 3, 1), bfloat16=True)
    case.x[1, 3, 4, 4] = np.nan
    results = case.train(case.everything())
    assert np.isnan(results[0]).all()
    assert np.isnan(case.backward(case.everything(), results)[0]).all()
    inputs, shapes = case.inputs(case.everything()), [a.shape for a in results]
    places = [0, *(len(inputs) + i for i in range(3))]
    run("BlockBfloat16Train1", inputs, shapes, bfloat16=places)
    for wrong in (places[1:], places[:-1], [*places, 1], [len(inputs)]):
        with pytest.raises(ValueError, match="returned"):
            run("BlockBfloat16Train1", inputs, shapes, bfloat16=wrong)


def test_wrong_shapes_types_and_decisions_are_refused():
    case = BlockCase((2, 8, 9, 9, 24, 8, 5, 1))
    good, y = case.inputs(case.everything()), [(2, 9, 9, 8)]
    run("BlockInfer1", good, y)

    def refused(inputs, shapes=y):
        with pytest.raises(ValueError, match="returned"):
            run("BlockInfer1", inputs, shapes)

    for place in range(len(good)):
        refused(good[:place] + [good[place][1:]] + good[place + 1 :])
        refused(good[:place] + [good[place].astype(np.float64)] + good[place + 1 :])
    refused(good[:-1])
    refused(good, [(2, 9, 8, 8)])
    for decision in ((4, 24, 1), (7, 24, 1), (5, 0, 1), (5, 25, 1), (1, 24, 1)):
        refused([*good[:-1], np.array(decision, np.float32)])
    # A block that adds nothing to its input cannot be left out.
    refused([*good[:-2], options(), np.array((5, 24, 0), np.float32)])
    plain = BlockCase((2, 24, 9, 9, 24, 8, 5, 1))
    with pytest.raises(ValueError, match="returned"):
        run("BlockPlainInfer1", plain.inputs((5, 16, 1)), y)


def test_wrong_shapes_are_named(mode):
    x, weight = Tensor(normal(1, 1, 8, 8, 3)), Tensor(normal(2, 4, 3, 4, 4))
    norm, more = [Tensor(normal(3, 4))] * 4, Tensor(options())
    with pytest.raises(ValueError, match="a stem does not take the shapes"):
        stem_operator("Infer", 1)(x, weight, *norm, more).asnumpy()
    with pytest.raises(ValueError, match="a head does not take the shapes"):
        head_operator("Infer")(x, weight, *norm, more).asnumpy()
    with pytest.raises(ValueError, match="an MBConv block does not take the shapes"):
        block_operator("Infer", 1, expands=False)(
            x, weight, *norm, weight, *norm, more, Tensor(normal(1, 3))
        ).asnumpy()


def training_of_blocks(library: str | None, bfloat16: bool) -> list[np.ndarray]:
    out = []
    for shape in ((5, 24, 9, 9, 72, 24, 5, 1), (9, 16, 36, 36, 40, 20, 3, 2), BLOCKS[6]):
        case = BlockCase(shape, bfloat16=bfloat16)
        results = case.train(case.everything(), library)
        out += results + case.backward(case.everything(), results, library)
    return out


def results_of_all_operators(library: str | None) -> list[np.ndarray]:
    out = training_of_blocks(library, bfloat16=False)
    for shape in ((5, 24, 9, 9, 72, 24, 5, 1), (9, 16, 36, 36, 40, 20, 3, 2), BLOCKS[6]):
        case = BlockCase(shape)
        results = case.train(case.everything(), library)
        shapes = [results[0].shape]
        inputs = case.inputs(case.everything())
        out += run(f"{case.prefix}Infer{case.stride}", inputs, shapes, library=library)
    return out


def test_results_do_not_depend_on_threads(library_of):
    one, several = (
        results_of_all_operators(library) + training_of_blocks(library, bfloat16=True)
        for library in (library_of(threads) for threads in (1, 8))
    )
    assert [a.tobytes() for a in one] == [a.tobytes() for a in several]


def test_builds_for_other_processors_give_the_same():
    expected = results_of_all_operators(None)
    for target in build.OTHER_TARGETS:
        actual = results_of_all_operators(str(build.compile_library(target)))
        for a, e in zip(actual, expected, strict=True):
            assert_near(a, e, 1e-5)


def test_matrix_tiles_are_used_where_there_are_any():
    """Without them the same is computed, several times as slowly, which no other test would see."""
    compiler = shutil.which(os.environ.get("CXX") or "g++") or "c++"
    words = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    defined = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    tiles = ctypes.CDLL(build.library()).spnas_multiplies_by_tiles()
    assert bool(tiles) == ("__AMX_BF16__" in defined)


def test_bfloat16_of_other_processors_is_about_the_same():
    expected = training_of_blocks(None, bfloat16=True)
    for target in build.OTHER_TARGETS:
        actual = training_of_blocks(str(build.compile_library(target)), bfloat16=True)
        for a, e in zip(actual, expected, strict=True):
            # Rounding may move a value to the other side of 0, and its gradient with it.
            assert np.linalg.norm(a - e) <= ROUNDING * np.linalg.norm(e)
