"""Layers of folded networks as operators, against float64 NumPy."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from src.arch.cost import conv_out
from src.kernels import available
from tests.kernels.reference import assert_near, normal, run

pytestmark = pytest.mark.skipif(not available(), reason="no CPU operators here")

CONVOLUTIONS = [  # (N, C, H, W, O, k, stride)
    (1, 1, 1, 1, 1, 1, 1),
    (2, 5, 3, 3, 7, 1, 1),
    (1, 37, 7, 7, 9, 1, 1),
    (3, 4, 14, 14, 24, 1, 1),
    (1, 3, 1, 51, 8, 1, 1),
    (1, 320, 7, 7, 64, 1, 1),
    (1, 3, 32, 32, 32, 3, 2),
    (2, 3, 33, 31, 17, 3, 2),
    (1, 3, 5, 4, 8, 7, 2),
    (1, 2, 1, 1, 3, 5, 1),
    (1, 3, 64, 300, 8, 3, 1),
    (2, 3, 16, 16, 12, 5, 1),
]


def conv64(x, weight, bias, stride=1):
    """A convolution padded by k // 2, with bias, in float64."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    k, (h, w) = weight.shape[-1], x.shape[2:]
    ho, wo = conv_out(h, stride), conv_out(w, stride)
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2,) * 2, (k // 2,) * 2))
    y = np.zeros((x.shape[0], weight.shape[0], ho, wo))
    for ky in range(k):
        for kx in range(k):
            window = padded[
                :,
                :,
                ky : ky + stride * (ho - 1) + 1 : stride,
                kx : kx + stride * (wo - 1) + 1 : stride,
            ]
            tap = weight[:, :, ky : ky + 1, kx : kx + 1]
            y += np.einsum("nchw,oc->nohw", window, tap[..., 0, 0], optimize=True)
    return y + bias.astype(np.float64)[:, None, None]


@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolution_equals_float64(shape):
    n, c, h, w, out, k, stride = shape
    x, weight, bias = normal(1, n, c, h, w), normal(2, out, c, k, k), normal(3, out)
    expected = np.maximum(conv64(x, weight, bias, stride), 0)
    name = "PointwiseRelu" if k == 1 else f"ConvRelu{stride}"
    assert_near(run(name, [x, weight, bias], [expected.shape])[0], expected)


def test_nan_passes():
    x = np.full((1, 3, 7, 7), np.nan, np.float32)
    assert np.isnan(
        run("PointwiseRelu", [x, normal(1, 9, 3, 1, 1), normal(2, 9)], [(1, 9, 7, 7)])[0]
    ).all()


def test_wrong_types_and_shapes_are_refused():
    x, weight, bias = normal(1, 1, 3, 8, 8), normal(2, 5, 3, 3, 3), normal(3, 5)
    run("ConvRelu2", [x, weight, bias], [(1, 5, 4, 4)])
    for inputs, shape in (
        ([x, weight, bias], (1, 5, 8, 8)),
        ([x, weight[:, :2], bias], (1, 5, 4, 4)),
        ([x, weight, bias[:4]], (1, 5, 4, 4)),
        ([x, weight[..., :1], bias], (1, 5, 4, 4)),
        ([x.astype(np.float64), weight, bias], (1, 5, 4, 4)),
        ([x, weight], (1, 5, 4, 4)),
    ):
        with pytest.raises(ValueError, match="returned"):
            run("ConvRelu2", inputs, [shape])
    with pytest.raises(ValueError, match="returned"):
        run("PointwiseRelu", [x, weight, bias], [(1, 5, 8, 8)])


def results_of_all_operators(library: str) -> list[np.ndarray]:
    run_in, x = functools.partial(run, library=library), normal(1, 3, 16, 30, 30)
    dense, pointwise = ([x, normal(2, 40, 16, k, k), normal(3, 40)] for k in (3, 1))
    out = run_in("ConvRelu2", dense, [(3, 40, 15, 15)])
    return out + run_in("PointwiseRelu", pointwise, [(3, 40, 30, 30)])


def test_results_do_not_depend_on_threads(library_of):
    one, several = (results_of_all_operators(library_of(threads)) for threads in (1, 8))
    assert [a.tobytes() for a in one] == [a.tobytes() for a in several]
