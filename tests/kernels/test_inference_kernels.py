"""Operators of the folded network against float64 NumPy and against MindSpore's own."""

from __future__ import annotations

import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.arch.architecture import Architecture
from src.arch.blocks import decode_block
from src.arch.cost import conv_out
from src.kernels import ConvReLU, available, build, mbconv_operator
from src.layers.mbconv import FusedMBConv, MBConv
from src.spnasnet import SPNASNet
from tests.conftest import mode_of
from tests.kernels.test_kernels import assert_near, normal, run

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
BLOCKS = [  # (N, C, H, W, M, O, k, stride), M == C without expansion
    (1, 1, 1, 1, 1, 1, 3, 1),
    (1, 32, 12, 12, 32, 16, 3, 1),
    (2, 16, 17, 15, 48, 24, 3, 2),
    (1, 24, 28, 28, 72, 24, 3, 1),
    (3, 5, 7, 7, 30, 5, 5, 1),
    (1, 7, 4, 9, 21, 11, 7, 2),
    (1, 96, 14, 14, 576, 192, 5, 2),
    (2, 20, 1, 33, 20, 9, 5, 1),
    (40, 8, 56, 56, 16, 8, 3, 1),  # more samples than are taken together
]


def conv64(x, weight, bias, stride=1, depthwise=False):
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
            y += (
                window * tap[:, 0]
                if depthwise
                else np.einsum("nchw,oc->nohw", window, tap[..., 0, 0], optimize=True)
            )
    return y + bias.astype(np.float64)[:, None, None]


def block_parameters(shape) -> list[np.ndarray]:
    """Weights and biases in the operator's order, of a size that keeps results near 1."""
    _, c, _, _, mid, out, k, _ = shape
    expansion = [normal(2, mid, c, 1, 1) / np.sqrt(c), normal(3, mid)] if mid != c else []
    arrays = [
        *expansion,
        normal(4, mid, 1, k, k) / k,
        normal(5, mid),
        normal(6, out, mid, 1, 1) / np.sqrt(mid),
        normal(7, out),
    ]
    return [array.astype(np.float32) for array in arrays]


def block64(x, parameters, stride, residual):
    *expansion, depthwise, depthwise_bias, project, project_bias = parameters
    hidden = np.maximum(conv64(x, *expansion), 0) if expansion else x
    hidden = np.maximum(conv64(hidden, depthwise, depthwise_bias, stride, depthwise=True), 0)
    return conv64(hidden, project, project_bias) + (x if residual else 0)


@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolution_equals_float64(shape):
    n, c, h, w, out, k, stride = shape
    x, weight, bias = normal(1, n, c, h, w), normal(2, out, c, k, k), normal(3, out)
    expected = np.maximum(conv64(x, weight, bias, stride), 0)
    name = "PointwiseRelu" if k == 1 else f"ConvRelu{stride}"
    assert_near(run(name, [x, weight, bias], [expected.shape])[0], expected)


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_block_equals_float64(shape):
    n, c, h, w, _, out, _, stride = shape
    x, parameters = normal(1, n, c, h, w), block_parameters(shape)
    expected = block64(x, parameters, stride, False)
    assert_near(run(f"MBConv{stride}", [x, *parameters], [expected.shape])[0], expected)
    if stride == 1 and c == out:
        assert_near(run("MBConvResidual", [x, *parameters], [x.shape])[0], expected + x)


def test_nan_passes():
    x = np.full((1, 3, 7, 7), np.nan, np.float32)
    assert np.isnan(
        run("PointwiseRelu", [x, normal(1, 9, 3, 1, 1), normal(2, 9)], [(1, 9, 7, 7)])[0]
    ).all()
    assert np.isnan(
        run("MBConv1", [x, *block_parameters((1, 3, 7, 7, 9, 2, 3, 1))], [(1, 2, 7, 7)])[0]
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
    parameters = block_parameters((1, 3, 8, 8, 6, 3, 3, 1))
    run("MBConvResidual", [x, *parameters], [x.shape])
    for position in range(6):
        wrong = parameters[:position] + [parameters[position][1:]] + parameters[position + 1 :]
        with pytest.raises(ValueError, match="returned"):
            run("MBConvResidual", [x, *wrong], [x.shape])
    with pytest.raises(ValueError, match="returned"):
        run(
            "MBConvResidual",
            [x, *parameters[:4], parameters[4][:2], parameters[5][:2]],
            [(1, 2, 8, 8)],
        )
    with pytest.raises(
        ValueError, match="returned"
    ):  # without expansion, with other channels than x has
        run("MBConv1", [x, *parameters[2:]], [x.shape])


def test_a_build_for_any_processor_gives_the_same():
    library = str(build.compile_library(native=False))
    shape = (2, 12, 9, 9, 36, 12, 5, 1)
    x, parameters = normal(1, *shape[:4]), block_parameters(shape)
    actual = run("MBConvResidual", [x, *parameters], [x.shape], library=library)[0]
    assert_near(actual, block64(x, parameters, 1, True))


def results_of_all_operators(library: str) -> list[np.ndarray]:
    run_in, shape = functools.partial(run, library=library), (3, 16, 30, 30, 96, 16, 5, 1)
    x = normal(1, *shape[:4])
    out = run_in("MBConvResidual", [x, *block_parameters(shape)], [x.shape])
    dense, pointwise = ([x, normal(2, 40, 16, k, k), normal(3, 40)] for k in (3, 1))
    out += run_in("ConvRelu2", dense, [(3, 40, 15, 15)])
    return out + run_in("PointwiseRelu", pointwise, [(3, 40, 30, 30)])


def test_results_do_not_depend_on_threads(library_of):
    one, several = (results_of_all_operators(library_of(threads)) for threads in (1, 8))
    assert [a.tobytes() for a in one] == [a.tobytes() for a in several]


def small_pair() -> tuple[nn.Cell, nn.Cell]:
    """The same small folded network with MindSpore's operators and with ours, of equal weights."""
    blocks = (
        "r1_k3_s11_e1_i8_o8",
        "r1_k5_s22_e3_i8_o12",
        "r1_k3_s11_e3_i12_o12",
        "r1_k5_s11_e3_i12_o12_se0.25",
        "r1_k7_s22_e6_i12_o16",
    )
    arch = Architecture(
        "small", 32, tuple(decode_block(b) for b in blocks), stem_channels=8, head_channels=20
    )
    stock, ours = (
        SPNASNet(arch, 4, kernels=kernels, folded=True).set_train(False)
        for kernels in (False, True)
    )
    pairs = zip(stock.get_parameters(), ours.get_parameters(), strict=True)
    for i, (p, q) in enumerate(pairs):
        assert p.name == q.name
        value = Tensor(0.3 * normal(i, *p.shape))
        p.set_data(value)
        q.set_data(value)
    return stock, ours


def test_network_equals_stock(mode):
    stock, ours = small_pair()
    kinds = [type(block) for block in ours.blocks]
    assert kinds == [FusedMBConv] * 3 + [MBConv, FusedMBConv]  # squeeze-and-excitation is not fused
    assert isinstance(ours.stem.conv, ConvReLU) and isinstance(ours.head.conv, ConvReLU)
    for n, size in ((1, 32), (3, 41)):
        x = Tensor(normal(1, n, 3, size, size))
        with mode_of(ms.PYNATIVE_MODE):  # which spares its compilation
            expected = stock(x).asnumpy()
        assert_near(ours(x).asnumpy(), expected, 1e-5)


def test_other_types_use_stock_operators(mode):
    y = small_pair()[1].to_float(ms.float16)(Tensor(normal(1, 2, 3, 32, 32))).asnumpy()
    assert y.dtype == np.float16 and np.isfinite(y).all()


def test_wrong_shapes_are_named(mode):
    x = Tensor(normal(1, 1, 3, 8, 8))
    parameters = [
        Parameter(array, name=str(i))
        for i, array in enumerate(block_parameters((1, 3, 8, 8, 6, 4, 3, 1)))
    ]
    assert mbconv_operator(1, False)(x, *parameters).shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match="with residual does not take"):
        mbconv_operator(1, True)(x, *parameters).asnumpy()
    with pytest.raises(ValueError, match="without residual does not take"):
        mbconv_operator(1, False)(x, *parameters[2:]).asnumpy()
