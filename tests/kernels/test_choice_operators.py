"""Layers of one-shot supernets as operators, against float64 NumPy and against switched cells."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn, ops

from src.arch.blocks import ConvLayer, ShuffleBlock, decode_block
from src.arch.cost import conv_out
from src.kernels import available
from src.layers.shuffle import ShuffleLayer
from tests.conftest import mode_of
from tests.kernels.reference import (
    assert_near,
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

KINDS = ("shuffle_k3", "shuffle_k5", "shuffle_k7", "xception_k3")
LAYERS = [  # (N, C, H, W, O, stride)
    (3, 8, 8, 10, 8, 1),
    (2, 64, 9, 7, 64, 1),
    (2, 70, 20, 17, 90, 1),
    (9, 4, 1, 2, 6, 1),
    (3, 8, 8, 10, 20, 2),
    (2, 6, 17, 35, 40, 2),
    (5, 34, 3, 1, 68, 2),
]
EPSILON, MOMENTUM = 1e-5, 0.9
OPTIONS = np.array([EPSILON, MOMENTUM, 0, np.inf], np.float32)


def blocks_of(channels: int, outputs: int, stride: int) -> list[ShuffleBlock]:
    return [decode_block(f"{kind}_s{stride}{stride}_i{channels}_o{outputs}") for kind in KINDS]


def chain64(x, layers: tuple[ConvLayer, ...], weights, dy, statistics=None, factor=np.asarray):
    """A chain of convolutions with their normalisations in float64.

    Args:
        factor: rounds the factors of 1x1 convolutions.

    Returns:
        Output, gradient of x, gradients of the weights, mean and variance of each convolution.
    """
    if not layers:
        return x, dy, [], []
    layer, weight = layers[0], weights[0]
    convolve = dense64 if layer.groups == 1 else depthwise64
    size = [conv_out(side, layer.stride) for side in x.shape[2:]]
    empty = np.zeros((len(x), layer.out_channels, *size))
    rounds = factor if layer.groups == 1 else np.asarray
    z = convolve(rounds(x), rounds(weight), layer.stride, empty)[0]
    norm = np.ones(layer.out_channels), np.zeros(layer.out_channels)
    own = None if statistics is None else tuple(statistics[:2])
    h, *_, mean, variance = norm64(z, *norm, empty, layer.relu, EPSILON, own)
    rest = None if statistics is None else statistics[2:]
    y, dh, gradients, others = chain64(h, layers[1:], weights[1:], dy, rest, factor)
    _, dz, *_ = norm64(z, *norm, dh, layer.relu, EPSILON, own)
    _, dx, dweight = convolve(x, weight, layer.stride, dz)
    return y, dx, [dweight, *gradients], [mean, variance, *others]


class LayerCase:
    """A layer that chooses among four blocks, and the calls of its operators."""

    def __init__(self, shape) -> None:
        self.n, self.channels, h, w, self.outputs, self.stride = shape
        self.size = conv_out(h, self.stride), conv_out(w, self.stride)
        self.blocks = blocks_of(self.channels, self.outputs, self.stride)
        self.x = normal(1, self.n, self.channels, h, w) + 0.3
        self.dy = normal(2, self.n, self.outputs, *self.size)
        self.counts = [(len(block.branch), len(block.projection)) for block in self.blocks]
        layers = [layer for block in self.blocks for layer in block.branch + block.projection]
        self.weights, self.moving = [], []
        for i, layer in enumerate(layers):
            shape = layer.in_channels // layer.groups, layer.kernel_size, layer.kernel_size
            weight = normal(10 + i, layer.out_channels, *shape) / np.sqrt(np.prod(shape))
            self.weights.append(weight.astype(np.float32))
            self.moving.append(normal(40 + i, layer.out_channels))
            self.moving.append(0.5 + np.abs(normal(70 + i, layer.out_channels)))
        self.y_shape = (self.n, *self.size, self.outputs)

    def places(self, choice: int) -> slice:
        """Numbers of a block's weights."""
        begin = sum(map(sum, self.counts[:choice]))
        return slice(begin, begin + sum(self.counts[choice]))

    def tail(self, choice: int) -> list[np.ndarray]:
        return [np.array(self.counts, np.float32), np.array(choice, np.float32)]

    def forward(self, kind: str, choice: int, shapes, library=None) -> tuple[list, list]:
        """Results, and moving statistics afterwards."""
        moving = [a.copy() for a in self.moving]
        inputs = [last(self.x), *self.weights, *moving, OPTIONS, *self.tail(choice)]
        return run(f"Choice{kind}{self.stride}", inputs, shapes, library=library), moving

    def train(self, choice: int, library=None, kind="Train") -> tuple[np.ndarray, np.ndarray, list]:
        """The output, what is left to backward, moving statistics."""
        pixels = self.n * self.x[0, 0].size
        most = 8 * (pixels + 2) * (max(self.channels, self.outputs) + 16)
        (y, saved), moving = self.forward(kind, choice, [self.y_shape, (most,)], library)
        return y, saved, moving

    def backward(self, choice: int, saved, library=None) -> list[np.ndarray]:
        inputs = [last(self.x), *self.weights, *self.tail(choice), saved, last(self.dy)]
        shapes = [a.shape for a in inputs[: 1 + len(self.weights)]]
        dx, *gradients = run(f"ChoiceBackward{self.stride}", inputs, shapes, library=library)
        return [first(dx), *gradients]

    def expected(self, choice: int, statistics=None, factor=np.asarray):
        """Output, gradients of x and of the block's weights, its statistics, in float64."""
        block, weights = self.blocks[choice], self.weights[self.places(choice)]
        count = len(block.branch)
        dkept, dy = np.split(self.dy, [block.kept_channels], 1)
        if self.stride == 1:
            own = (self.x[:, 1::2], block.branch, weights, dy, statistics, factor)
            y, dbranch, gradients, moments = chain64(*own)
            dx = np.zeros(self.x.shape)
            dx[:, ::2], dx[:, 1::2] = dkept, dbranch
            return np.concatenate([self.x[:, ::2], y], 1), [dx, *gradients], moments
        parts = (None, None)
        if statistics is not None:
            parts = statistics[: 2 * count], statistics[2 * count :]
        own = (self.x, block.branch, weights[:count], dy, parts[0], factor)
        y, dx, gradients, moments = chain64(*own)
        own = (self.x, block.projection, weights[count:], dkept, parts[1], factor)
        kept, dother, more, others = chain64(*own)
        return np.concatenate([kept, y], 1), [dx + dother, *gradients, *more], moments + others


@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_layer_equals_float64(shape):
    """Output, gradients and moving statistics of each block, and those of the others."""
    case = LayerCase(shape)
    for choice in range(4):
        y, gradients, statistics = case.expected(choice)
        actual, saved, moving = case.train(choice)
        assert_near(first(actual), y, 1e-5)
        places = case.places(choice)
        dx, *dweights = case.backward(choice, saved)
        for a, e in zip([dx, *dweights[places]], gradients, strict=True):
            assert_near(a, e, 3e-5)
        del dweights[places]
        assert not any(gradient.any() for gradient in dweights)
        for i, (old, new) in enumerate(zip(case.moving, moving, strict=True)):
            if places.start <= i // 2 < places.stop:
                value = statistics[i - 2 * places.start]
                layers = case.blocks[choice].branch + case.blocks[choice].projection
                small = any(layer.stride == 2 for layer in chain_up_to(case, choice, i // 2))
                count = case.n * (np.prod(case.size) if small else case.x[0, 0].size)
                value = value * count / max(1, count - 1) if i % 2 else value
                assert layers and not np.array_equal(old, new)
                assert_near(new, MOMENTUM * old + (1 - MOMENTUM) * value, 1e-5)
            else:
                assert np.array_equal(old, new)


def chain_up_to(case: LayerCase, choice: int, number: int) -> tuple[ConvLayer, ...]:
    """Layers from the beginning of a chain to that of a weight."""
    block, at = case.blocks[choice], number - case.places(choice).start
    chain, at = (
        (block.branch, at) if at < len(block.branch) else (block.projection, at - len(block.branch))
    )
    return chain[: at + 1]


@pytest.mark.parametrize("shape", LAYERS[1::3], ids=str)
def test_inference_equals_float64(shape):
    case = LayerCase(shape)
    for choice in range(4):
        places = case.places(choice)
        statistics = case.moving[2 * places.start : 2 * places.stop]
        (y,), moving = case.forward("Infer", choice, [case.y_shape])
        assert_near(first(y), case.expected(choice, statistics)[0], 1e-5)
        assert all(np.array_equal(a, b) for a, b in zip(case.moving, moving, strict=True))


@pytest.mark.parametrize("shape", LAYERS[1::3], ids=str)
def test_products_of_bfloat16_equal_float64_of_rounded_factors(shape):
    """What lies near the middle of two bfloat16 may be rounded to the other one."""
    case = LayerCase(shape)
    for choice in range(4):
        y, _, statistics = case.expected(choice, factor=rounded)
        actual, _, moving = case.train(choice, kind="Bfloat16Train")
        exact = case.expected(choice)[0]
        assert_near(first(actual), y, 2e-3)
        assert np.abs(first(actual) - exact).max() > 1e-4 * np.abs(exact).max()
        places = case.places(choice)
        for i in range(places.start, places.stop):
            old, batch = case.moving[2 * i], statistics[2 * (i - places.start)]
            assert_near(moving[2 * i], MOMENTUM * old + (1 - MOMENTUM) * batch, 1e-3)
        own = case.moving[2 * places.start : 2 * places.stop]
        (y,), _ = case.forward("Bfloat16Infer", choice, [case.y_shape])
        assert_near(first(y), case.expected(choice, own, rounded)[0], 2e-3)


def test_momentum_changes_the_chosen_block_alone():
    case = LayerCase(LAYERS[4])
    moments = [normal(90 + i, *w.shape) for i, w in enumerate(case.weights)]
    gradients = [normal(120 + i, *w.shape) for i, w in enumerate(case.weights)]
    rate, momentum, decay = factors = np.array([0.1, 0.9, 0.01], np.float32)
    for choice in range(4):
        arrays = [a.copy() for a in case.weights + moments]
        run("ChoiceMomentum", [*arrays, *gradients, factors, *case.tail(choice)], [(1,)])
        new_weights, new_moments = arrays[: len(moments)], arrays[len(moments) :]
        places = case.places(choice)
        for i, (weight, moment, gradient) in enumerate(
            zip(case.weights, moments, gradients, strict=True)
        ):
            if places.start <= i < places.stop:
                moment = momentum * moment + gradient + decay * weight
                weight = weight - rate * moment
                assert_near(new_moments[i], moment)
                assert_near(new_weights[i], weight)
            else:
                assert np.array_equal(new_moments[i], moment)
                assert np.array_equal(new_weights[i], weight)


def test_nan_passes():
    case = LayerCase(LAYERS[0])
    case.x[1, 3, 4, 4] = np.nan
    y, saved, _ = case.train(0)
    kept = case.channels // 2
    assert np.isnan(y[..., kept:]).all() and not np.isnan(y[..., :kept]).any()
    assert np.isnan(case.backward(0, saved)[0][:, 1::2]).all()
    (y,), _ = case.forward("Infer", 0, [case.y_shape])
    assert np.isnan(y[1, 4, 4, kept:]).all() and not np.isnan(y[0]).any()


def test_wrong_shapes_types_and_choices_are_refused():
    case = LayerCase(LAYERS[0])
    good = [last(case.x), *case.weights, *case.moving, OPTIONS, *case.tail(0)]
    run("ChoiceInfer1", good, [case.y_shape])

    def refused(inputs, shapes=(case.y_shape,)):
        with pytest.raises(ValueError, match="returned"):
            run("ChoiceInfer1", inputs, shapes)

    def replaced(place, value):
        return [value if i == place % len(good) else a for i, a in enumerate(good)]

    own = case.places(0)
    moving = range(1 + len(case.weights), 1 + len(case.weights) + 2 * own.stop)
    for place in (0, *range(1, 1 + own.stop), *moving, -3, -2):
        refused(replaced(place, good[place][1:]))
        refused(replaced(place, good[place].astype(np.float64)))
    for choice in (-1, 4):
        refused(replaced(-1, np.array(choice, np.float32)))
    refused(replaced(-2, np.array(case.counts, np.float32) + 1))
    refused(good[:-1])
    refused(good, [(case.n, *case.size, case.outputs + 1)])
    with pytest.raises(ValueError, match="returned"):
        run("ChoiceTrain1", good, [case.y_shape, (100,)])  # too little for what backward needs


def test_results_do_not_depend_on_threads(library_of):
    def results(library):
        out = []
        for shape in LAYERS[2], LAYERS[5]:
            case = LayerCase(shape)
            for choice in range(4):
                y, saved, moving = case.train(choice, library)
                out += [y, *moving, *case.backward(choice, saved, library)]
                out += case.forward("Infer", choice, [case.y_shape], library)[0]
        return out

    one, several = (results(library_of(threads)) for threads in (1, 8))
    assert [a.tobytes() for a in one] == [a.tobytes() for a in several]


class Chosen(nn.Cell):
    """Weighted sum of a layer's output for a choice, with its gradients."""

    def __init__(self, layer: ShuffleLayer) -> None:
        super().__init__(auto_prefix=False)
        self.layer, self.weights = layer, ParameterTuple(layer.trainable_params())
        self.gradient = ops.value_and_grad(self.forward, 0, self.weights)

    def forward(self, x: Tensor, factor: Tensor, choice: Tensor) -> Tensor:
        return (self.layer(x, choice) * factor).sum()

    def construct(self, x: Tensor, factor: Tensor, choice: Tensor):
        return self.gradient(x, factor, choice)


def test_layer_equals_switched_layer(mode):
    """With stride 2; tests/search/test_one_shot.py has a network of layers with stride 1."""
    switched, fused = (
        ShuffleLayer(blocks_of(8, 20, 2), fused=fused, affine=False) for fused in (False, True)
    )
    assert list(parameters(switched)) == list(parameters(fused))
    for p, q in zip(switched.get_parameters(), fused.get_parameters(), strict=True):
        q.set_data(Tensor(p.asnumpy()))
    x, factor = normal(1, 3, 8, 9, 9), normal(2, 3, 20, 5, 5)
    steps = {layer: Chosen(layer.set_train()) for layer in (switched, fused)}
    names = [p.name for p in fused.trainable_params()]
    for choice in range(4):
        before, number = parameters(fused), Tensor(choice, ms.int32)
        with mode_of(ms.PYNATIVE_MODE):  # which spares its compilation
            value, (dx, dweights) = steps[switched](Tensor(x), Tensor(factor), choice)
        actual = steps[fused](Tensor(last(x)), Tensor(last(factor)), number)
        assert_near(actual[0].asnumpy(), value.asnumpy(), 1e-5)
        assert_near(first(actual[1][0].asnumpy()), dx.asnumpy(), 1e-5)
        for name, a, e in zip(names, actual[1][1], dweights, strict=True):
            assert_near(a.asnumpy(), e.asnumpy(), 3e-5)
            assert a.asnumpy().any() == name.startswith(f"{choice}.")
        moved = parameters(switched)
        for name, value in parameters(fused).items():
            assert_near(value, moved[name], 1e-5)
            moves = "moving" in name and name.startswith(f"{choice}.")
            assert np.array_equal(value, before[name]) != moves, name
