"""What the tests of the CPU operators compare with: layers in float64, and calls of operators."""

from __future__ import annotations

import ctypes

import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from src.arch.cost import conv_out
from src.kernels import build


def last(x: np.ndarray) -> np.ndarray:
    """(N, C, H, W) with channels last."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def first(x: np.ndarray) -> np.ndarray:
    """(N, H, W, C) with channels first."""
    return x.transpose(0, 3, 1, 2)


def depthwise64(x, weight, stride, dy):
    """y, dx and dweight of a depthwise convolution, tap by tap, in float64."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    k, (ho, wo) = weight.shape[-1], dy.shape[2:]
    pad = k // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    y, dpadded, dweight = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    for ky in range(k):
        for kx in range(k):
            window = np.s_[
                :,
                :,
                ky : ky + stride * (ho - 1) + 1 : stride,
                kx : kx + stride * (wo - 1) + 1 : stride,
            ]
            y += padded[window] * weight[:, 0, ky, kx, None, None]
            dpadded[window] += dy * weight[:, 0, ky, kx, None, None]
            dweight[:, 0, ky, kx] = (padded[window] * dy).sum((0, 2, 3))
    return y, dpadded[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]], dweight


def dense64(x, weight, stride, dy):
    """y, dx and dweight of a convolution with one group, channel by channel of its input."""
    y, dx, dweight = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(weight.shape)
    for o in range(len(weight)):
        repeated = np.repeat(dy[:, o : o + 1], x.shape[1], 1)
        products, dx_o, dweight_o = depthwise64(
            x, weight[o : o + 1].swapaxes(0, 1), stride, repeated
        )
        y[:, o], dx, dweight[o] = products.sum(1), dx + dx_o, dweight_o[:, 0]
    return y, dx, dweight


def norm64(x, gamma, beta, dy, relu, epsilon=1e-5, statistics=None):
    """y, dx, dgamma, dbeta, mean, variance.

    Args:
        x: (N, C, H, W).
        gamma: (C,).
        beta: (C,).
        dy: gradient of y.
        relu: whether ReLU follows, or where it is active.
        epsilon: added to the variance.
        statistics: mean and variance of inference; those of x where omitted.
    """
    x, gamma, beta, dy = (a.astype(np.float64) for a in (x, gamma, beta, dy))

    def channel(a):
        return np.asarray(a, np.float64)[:, None, None]

    mean, variance = statistics or (x.mean((0, 2, 3)), x.var((0, 2, 3)))
    deviation = np.sqrt(channel(variance) + epsilon)
    normal = (x - channel(mean)) / deviation
    y = normal * channel(gamma) + channel(beta)
    active = relu if isinstance(relu, np.ndarray) else (y > 0) | (not relu)
    g = np.where(active, dy, 0)
    dgamma, dbeta = (g * normal).sum((0, 2, 3)), g.sum((0, 2, 3))
    dx = g
    if statistics is None:
        dx = (
            dx
            - g.mean((0, 2, 3), keepdims=True)
            - normal * (g * normal).mean((0, 2, 3), keepdims=True)
        )
    return (
        np.where(active, y, 0),
        dx * channel(gamma) / deviation,
        dgamma,
        dbeta,
        mean,
        variance,
    )


def core64(x, weight, stride, norms, dy, statistics=(None, None)):
    """BN + ReLU -> depthwise -> BN.

    Returns:
        y, (dx, dweight, both dgamma and dbeta), both means and variances.
    """
    (gamma, beta), (next_gamma, next_beta) = norms
    h, _, _, _, mean, variance = norm64(
        x, gamma, beta, np.zeros(x.shape), True, statistics=statistics[0]
    )
    z = depthwise64(h, weight, stride, dy)[0]
    y, dz, next_dgamma, next_dbeta, next_mean, next_variance = norm64(
        z, next_gamma, next_beta, dy, False, statistics=statistics[1]
    )
    _, dh, dweight = depthwise64(h, weight, stride, dz)
    _, dx, dgamma, dbeta, _, _ = norm64(x, gamma, beta, dh, True, statistics=statistics[0])
    return (
        y,
        (dx, dweight, dgamma, dbeta, next_dgamma, next_dbeta),
        (mean, variance, next_mean, next_variance),
    )


def block64(x, layers, stride, residual, dy, active=(True, True)):
    """An MBConv block in training, in float64.

    Args:
        x: (N, C, H, W).
        layers: weight, gamma and beta of expansion (or none), depthwise convolution, projection.
        stride: of the depthwise convolution.
        residual: whether x is added.
        dy: gradient of y.
        active: of both ReLUs where they are active; True for where their input is above 0.

    Returns:
        y, gradients of x and, in the order of ``layers``, of all parameters, and of each
        normalisation mean and variance.
    """
    *expansion, (depthwise, *wide_norm), (project, *last_norm) = layers
    size = [conv_out(side, stride) for side in x.shape[2:]]

    def empty(weight, size):
        return np.zeros((len(x), len(weight), *size))

    hidden, statistics = x, []
    if expansion:
        expand, *norm = expansion[0]
        expanded = dense64(x, expand, 1, empty(expand, x.shape[2:]))[0]
        hidden, _, _, _, *moments = norm64(expanded, *norm, np.zeros(expanded.shape), active[0])
        statistics += moments
    z = depthwise64(hidden, depthwise, stride, empty(depthwise, size))[0]
    h, _, _, _, *moments = norm64(z, *wide_norm, np.zeros(z.shape), active[1])
    statistics += moments
    projected = dense64(h, project, 1, empty(project, size))[0]
    y, dprojected, *dlast_norm, mean, variance = norm64(projected, *last_norm, dy, False)
    _, dh, dproject = dense64(h, project, 1, dprojected)
    _, dz, *dwide_norm, _, _ = norm64(z, *wide_norm, dh, active[1])
    _, dx, ddepthwise = depthwise64(hidden, depthwise, stride, dz)
    gradients = []
    if expansion:
        _, dexpanded, *dnorm, _, _ = norm64(expanded, *norm, dx, active[0])
        _, dx, dexpand = dense64(x, expand, 1, dexpanded)
        gradients = [dexpand, *dnorm]
    gradients += [ddepthwise, *dwide_norm, dproject, *dlast_norm]
    if residual:
        y, dx = y + x, dx + dy
    return y, [dx, *gradients], [*statistics, mean, variance]


def to_bfloat16(x) -> np.ndarray:
    """The bits of the nearest bfloat16, of two equally near the even one, as uint16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x) -> np.ndarray:
    """Float32 whose values are those of bfloat16."""
    return from_bfloat16(to_bfloat16(x))


def run(
    name: str, inputs: list, output_shapes: list, types=None, library=None, bfloat16=()
) -> list:
    """Calls an operator of the library directly.

    Args:
        bfloat16: places of the parameters of this type, negative ones counted from the end. They
            are given and returned as float32.
    """
    outputs = [np.full(shape, np.nan, np.float32) for shape in output_shapes]
    arrays = [np.ascontiguousarray(a) for a in inputs] + outputs
    if bfloat16:
        places = [place % len(arrays) for place in bfloat16]
        arrays = [to_bfloat16(a) if i in places else a for i, a in enumerate(arrays)]
        types = [b"bfloat16" if i in places else b"float32" for i in range(len(arrays))]
    shapes = [(ctypes.c_int64 * a.ndim)(*a.shape) for a in arrays]
    n = len(arrays)
    status = getattr(ctypes.CDLL(library or build.library()), name)(
        n,
        (ctypes.c_void_p * n)(*(a.ctypes.data for a in arrays)),
        (ctypes.c_int * n)(*(a.ndim for a in arrays)),
        (ctypes.POINTER(ctypes.c_int64) * n)(
            *(ctypes.cast(s, ctypes.POINTER(ctypes.c_int64)) for s in shapes)
        ),
        (ctypes.c_char_p * n)(*(types or [str(a.dtype).encode() for a in arrays])),
        None,
        None,
    )
    if status:
        raise ValueError(f"{name} returned {status}")
    return [from_bfloat16(a) if a.dtype == np.uint16 else a for a in arrays[len(inputs) :]]


def assert_near(actual, expected, tolerance=2e-6) -> None:
    """Largest difference within ``tolerance`` of the largest value."""
    expected = np.asarray(expected)
    assert np.shape(actual) == expected.shape
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max())
    )


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Gradients(nn.Cell):
    """Weighted sum of a network's output, and its gradients for input and weights."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.weights = network, ParameterTuple(network.trainable_params())
        self.gradient = ops.value_and_grad(self.forward, 0, self.weights)

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return (self.network(x) * factor).sum()

    def construct(self, x: Tensor, factor: Tensor):
        return self.gradient(x, factor)

    def named(self, x: np.ndarray, factor: np.ndarray) -> dict[str, np.ndarray]:
        value, (dx, dweights) = self(Tensor(x), Tensor(factor))
        return {
            "value": value.asnumpy(),
            "x": dx.asnumpy(),
            **{p.name: d.asnumpy() for p, d in zip(self.weights, dweights, strict=True)},
        }


def gradients(network: nn.Cell, x, factor) -> dict[str, np.ndarray]:
    return Gradients(network).named(x, factor)


def parameters(network: nn.Cell) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in network.get_parameters()}
