"""CPU operators against float64 NumPy and against MindSpore's own, forward and backward."""

from __future__ import annotations

import functools
import subprocess

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.arch.architecture import load_architecture, shipped_architectures
from src.arch.cost import conv_out
from src.kernels import BatchNormReLU, DepthwiseConv2d, ImageConv2d, available, build
from src.kernels.operators import depthwise_operator
from tests.conftest import ROOT, mode_of
from tests.kernels.reference import (
    assert_near,
    core64,
    dense64,
    depthwise64,
    gradients,
    norm64,
    normal,
    parameters,
    run,
)

pytestmark = pytest.mark.skipif(not available(), reason="no CPU operators here")

ODD_SHAPES = [  # (N, C, H, W, k, stride)
    (1, 1, 1, 1, 3, 1),
    (1, 1, 1, 1, 7, 2),
    (2, 3, 1, 9, 5, 2),
    (2, 2, 7, 1, 3, 1),
    (1, 4, 2, 2, 7, 1),
    (3, 1, 7, 7, 7, 2),
    (2, 5, 7, 7, 5, 1),
    (1, 2, 17, 15, 3, 2),
    (1, 2, 15, 18, 7, 2),
    (2, 1, 3, 65, 5, 1),
    (1, 1, 65, 3, 3, 2),
    (9, 17, 4, 4, 3, 1),
    (2, 19, 5, 6, 5, 2),
    (1, 2, 31, 33, 7, 1),
    (70, 2, 8, 8, 3, 1),
]


def network_shapes() -> list[tuple]:
    """Distinct depthwise layers of the shipped networks, with up to 18 channels and batch 2."""
    shapes = set()
    for name in shipped_architectures():
        arch = load_architecture(name)
        size = conv_out(arch.image_size, arch.stem_stride)
        for block in arch.blocks:
            channels = min(block.mid_channels, 18 if size < 16 else 3)
            shapes.add((2, channels, size, size, block.kernel_size, block.stride))
            size = conv_out(size, block.stride)
    return sorted(shapes)


SHAPES = ODD_SHAPES + network_shapes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise_equals_float64(shape):
    n, c, h, w, k, stride = shape
    x, weight = normal(1, n, c, h, w), normal(2, c, 1, k, k)
    dy = normal(3, n, c, conv_out(h, stride), conv_out(w, stride))
    y, dx, dweight = depthwise64(x, weight, stride, dy)
    assert_near(run(f"DepthwiseForward{stride}", [x, weight], [dy.shape])[0], y)
    actual = run(f"DepthwiseBackward{stride}", [x, weight, dy], [x.shape, weight.shape])
    assert_near(actual[0], dx)
    assert_near(actual[1], dweight)


@pytest.mark.parametrize("relu", (False, True))
@pytest.mark.parametrize("shape", sorted({shape[:4] for shape in SHAPES}), ids=str)
def test_norm_equals_float64(shape, relu):
    n, c, h, w = shape
    x = 3 * normal(1, *shape) + 5
    gamma, beta, old_mean, old_variance = (
        normal(2, c),
        normal(3, c),
        normal(4, c),
        np.abs(normal(5, c)) + 0.5,
    )
    dy, options, name = (
        normal(6, *shape),
        np.array([1e-5, 0.9], np.float32),
        "NormRelu" if relu else "Norm",
    )
    small = [(c,)] * 4

    # No gradient where rounding decides whether ReLU is active.
    dy[np.abs(norm64(x, gamma, beta, dy, False)[0]) < 1e-4] = 0
    y, dx, dgamma, dbeta, mean, variance = norm64(x, gamma, beta, dy, relu)
    out = run(f"{name}Train", [x, gamma, beta, old_mean, old_variance, options], [shape, *small])
    count = n * h * w
    assert_near(out[0], y)
    assert_near(out[3], 0.9 * old_mean + 0.1 * mean)
    assert_near(out[4], 0.9 * old_variance + 0.1 * variance * count / max(1, count - 1))
    if count > 4:  # with fewer, deviations near zero make gradients large
        actual = run(
            f"{name}TrainBackward", [x, gamma, beta, out[1], out[2], dy], [shape, *small[:2]]
        )
        for a, e in zip(actual, (dx, dgamma, dbeta), strict=True):
            assert_near(a, e, 1e-5)

    expected = norm64(x, gamma, beta, dy, relu, statistics=(old_mean, old_variance))
    out = run(
        f"{name}Infer", [x, gamma, beta, old_mean, old_variance, options], [shape, *small[:2]]
    )
    assert_near(out[0], expected[0], 1e-5)


@pytest.mark.parametrize("training", (True, False), ids=("training", "inference"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_core_equals_float64(shape, training):
    n, c, h, w, k, stride = shape
    x, weight = 3 * normal(1, n, c, h, w) + 5, normal(2, c, 1, k, k)
    dy = normal(3, n, c, conv_out(h, stride), conv_out(w, stride))
    # With beta near 2 most of h is active, so that a channel of z is not constant, which would
    # enlarge rounding.
    norms = (normal(4, c), normal(5, c) + 2), (normal(6, c), normal(7, c))
    moving = [(normal(8 + i, c) + 5 * (1 - i), np.abs(normal(10 + i, c)) + 0.5) for i in range(2)]
    statistics = (None, None) if training else moving

    y, expected, (mean, variance, next_mean, next_variance) = core64(
        x, weight, stride, norms, dy, statistics
    )

    inputs = [
        x,
        weight,
        *norms[0],
        *moving[0],
        *norms[1],
        *moving[1],
        np.array([1e-5, 0.9], np.float32),
    ]
    mode, each = ("Train", 4) if training else ("Infer", 2)
    out = run(f"Core{mode}{stride}", inputs, [dy.shape] + [(c,)] * (2 * each))
    count, next_count = n * h * w, dy[:, 0].size
    # The deviation of few values may be near zero, which enlarges rounding.
    tolerance = 1e-5 if next_count > 4 else 1e-3
    assert_near(out[0], y, tolerance)
    if not training:
        return
    for old, value, new in (
        (moving[0][0], mean, out[3]),
        (moving[1][0], next_mean, out[7]),
        (moving[0][1], variance * count / max(1, count - 1), out[4]),
        (moving[1][1], next_variance * next_count / max(1, next_count - 1), out[8]),
    ):
        assert_near(new, 0.9 * old + 0.1 * value, 1e-5)
    if next_count > 4:
        actual = run(
            f"CoreTrainBackward{stride}",
            [x, weight, *norms[0], *out[1:3], *norms[1], *out[1 + each : 3 + each], dy],
            [x.shape, weight.shape] + [(c,)] * 4,
        )
        for a, e in zip(actual, expected, strict=True):
            assert_near(a, e, 2e-5)


@pytest.mark.parametrize("outputs", (1, 21))
@pytest.mark.parametrize(
    "shape", [shape for shape in ODD_SHAPES if shape[1] <= 4] + [(2, 3, 32, 32, 3, 2)], ids=str
)
def test_image_convolution_equals_float64(shape, outputs):
    n, c, h, w, k, stride = shape
    x, weight = normal(1, n, c, h, w), normal(2, outputs, c, k, k)
    dy = normal(3, n, outputs, conv_out(h, stride), conv_out(w, stride))
    y, _, dweight = dense64(x, weight, stride, dy)
    assert_near(run(f"ImageForward{stride}", [x, weight], [dy.shape])[0], y)
    assert_near(run(f"ImageBackward{stride}", [x, weight, dy], [weight.shape])[0], dweight)


def test_norm_of_values_far_from_zero():
    x = normal(1, 4, 3, 9, 9) + np.array([1e3, -300, 0], np.float32)[:, None, None]
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    out = run(
        "NormTrain",
        [x, one, zero, zero, one, np.array([1e-5, 0.0], np.float32)],
        [x.shape] + [(3,)] * 4,
    )
    y, _, _, _, mean, variance = norm64(x, one, zero, x, False)
    assert_near(out[0], y, 1e-4)
    np.testing.assert_allclose(out[4], variance * 324 / 323, rtol=1e-5)


def test_relu_passes_nan():
    x, one = np.full((1, 1, 3, 40), np.nan, np.float32), np.ones(1, np.float32)
    out = run(
        "NormReluInfer",
        [x, one, one, one, one, np.array([1e-5, 0.9], np.float32)],
        [x.shape, (1,), (1,)],
    )
    assert np.isnan(out[0]).all()


def test_wrong_types_and_shapes_are_refused():
    x, weight = normal(1, 2, 3, 8, 8), normal(2, 3, 1, 3, 3)
    run("DepthwiseForward2", [x, weight], [(2, 3, 4, 4)])
    for inputs, shape in (
        ([x, weight], (2, 3, 8, 8)),
        ([x, normal(2, 3, 1, 4, 4)], (2, 3, 4, 4)),
        ([x, normal(2, 4, 1, 3, 3)], (2, 3, 4, 4)),
        ([x[0], weight], (3, 4, 4)),
        ([x.astype(np.float16), weight], (2, 3, 4, 4)),
        ([x], (2, 3, 4, 4)),
    ):
        with pytest.raises(ValueError, match="returned"):
            run("DepthwiseForward2", inputs, [shape])
    image = normal(2, 5, 3, 3, 3)
    run("ImageForward1", [x, image], [(2, 5, 8, 8)])
    for inputs, shape in (
        ([x, image], (2, 4, 8, 8)),
        ([x, normal(2, 5, 2, 3, 3)], (2, 5, 8, 8)),
        ([normal(1, 2, 5, 8, 8), normal(2, 5, 5, 3, 3)], (2, 5, 8, 8)),
    ):
        with pytest.raises(ValueError, match="returned"):
            run("ImageForward1", inputs, [shape])
    small = [normal(i, 3) for i in range(4)]
    options = np.array([1e-5, 0.9], np.float32)
    run("CoreInfer1", [x, weight, *small, *small, options], [x.shape] + [(3,)] * 4)
    for inputs in (
        [x, weight, *small, *small, small[0]],
        [x, weight, *small, *small[:3], normal(1, 4), options],
        [x.astype(np.float64), weight, *small, *small, options],
    ):
        with pytest.raises(ValueError, match="returned"):
            run("CoreInfer1", inputs, [x.shape] + [(3,)] * 4)
    with pytest.raises(ValueError, match="returned"):
        run("NormTrain", [x, *small, normal(1, 3)], [x.shape] + [(3,)] * 4)
    with pytest.raises(ValueError, match="returned"):
        run("NormTrain", [x, *small[:3], normal(1, 4), normal(1, 2)], [x.shape] + [(3,)] * 4)


def test_a_build_for_any_processor_gives_the_same():
    library = str(build.compile_library(build.ANY))
    x, weight, dy = normal(1, 2, 3, 14, 14), normal(2, 3, 1, 5, 5), normal(3, 2, 3, 7, 7)
    y, dx, dweight = depthwise64(x, weight, 2, dy)
    assert_near(run("DepthwiseForward2", [x, weight], [dy.shape], library=library)[0], y)
    actual = run("DepthwiseBackward2", [x, weight, dy], [x.shape, weight.shape], library=library)
    assert_near(actual[0], dx)
    assert_near(actual[1], dweight)


def test_without_a_compiler_one_line_is_logged(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    build.library.cache_clear()
    try:
        assert build.library() is None and build.library() is None
        assert len(caplog.records) == 1 and "no C++ compiler" in caplog.text
        assert not available()
    finally:
        build.library.cache_clear()


def test_a_compiler_that_does_not_end_leaves_mindspores_operators(monkeypatch, caplog):
    def run(*command):
        raise subprocess.TimeoutExpired(command, 300, stderr=b"note\na.cpp: error: b\n")

    monkeypatch.setattr(build, "_run", run)
    build.library.cache_clear()
    try:
        assert build.library() is None and "(a.cpp: error: b)" in caplog.text
    finally:
        build.library.cache_clear()


def results_of_all_operators(library: str) -> list[np.ndarray]:
    run_in = functools.partial(run, library=library)
    x, weight, dy = normal(1, 5, 37, 9, 9), normal(2, 37, 1, 5, 5), normal(3, 5, 37, 5, 5)
    small = [normal(i, 37) for i in range(2)] + [np.zeros(37, np.float32), np.ones(37, np.float32)]
    norm = [x, *small, np.array([1e-5, 0.9], np.float32)]
    out = run_in("NormReluTrain", norm, [x.shape] + [(37,)] * 4)
    out += run_in("DepthwiseForward2", [x, weight], [dy.shape])
    out += run_in("DepthwiseBackward2", [x, weight, dy], [x.shape, weight.shape])
    backward = [x, *small[:2], out[1], out[2], x]
    out += run_in("NormReluTrainBackward", backward, [x.shape, (37,), (37,)])
    core = run_in("CoreTrain2", [x, weight, *small, *small, norm[-1]], [dy.shape] + [(37,)] * 8)
    inputs = [x, weight, *small[:2], *core[1:3], *small[:2], *core[5:7], dy]
    shapes = [x.shape, weight.shape] + [(37,)] * 4
    out += core + run_in("CoreTrainBackward2", inputs, shapes)
    images, kernels, dimages = normal(4, 5, 3, 9, 9), normal(5, 20, 3, 3, 3), normal(6, 5, 20, 9, 9)
    out += run_in("ImageForward1", [images, kernels], [dimages.shape])
    return out + run_in("ImageBackward1", [images, kernels, dimages], [kernels.shape])


def test_results_do_not_depend_on_threads(library_of):
    one, several = (results_of_all_operators(library_of(threads)) for threads in (1, 8))
    assert len(one) > 20
    assert [a.tobytes() for a in one] == [a.tobytes() for a in several]


@pytest.mark.parametrize(
    ("sanitizer", "shapes"), [("address,undefined", []), ("thread", ["large"])]
)
@pytest.mark.slow
def test_sanitizers_find_nothing(sanitizer, shapes, tmp_path):
    """Not optimised: to compile takes longer than to run."""
    program = tmp_path / "sanitize"
    flags = [flag for flag in build.FLAGS if flag != "-fPIC"]
    built = subprocess.run(
        [
            "g++",
            *flags,
            "-O0",
            f"-fsanitize={sanitizer}",
            "-fno-sanitize-recover=all",
            "-o",
            str(program),
            str(ROOT / "tests/kernels/sanitize_kernels.cpp"),
        ],
        capture_output=True,
        text=True,
    )
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizer libraries")
    assert built.returncode == 0, built.stderr
    result = subprocess.run([str(program), *shapes], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_masked_kernel_gets_its_gradient(mode):
    weight, mask = (
        Parameter(normal(1, 3, 1, 5, 5), name="weight"),
        np.pad(np.ones((3, 3), np.float32), 1),
    )
    x, dy, depthwise = normal(2, 2, 3, 9, 9), normal(3, 2, 3, 9, 9), depthwise_operator(1)

    def forward(x, weight):
        return (depthwise(x, weight * Tensor(mask)) * Tensor(dy)).sum()

    _, dweight = ms.grad(forward, (0, 1))(Tensor(x), weight)
    expected = depthwise64(x, weight.asnumpy() * mask, 1, dy)[2] * mask
    assert_near(dweight.asnumpy(), expected)


class Core(nn.Cell):
    """BN + ReLU -> depthwise -> BN."""

    def __init__(self, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.norm, self.conv = (
            BatchNormReLU(channels),
            DepthwiseConv2d(channels, kernel_size, stride),
        )
        self.next_norm = BatchNormReLU(channels, relu=False)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv.fused_norm_conv_norm(x, self.norm, self.next_norm)


@pytest.mark.parametrize("training", (True, False), ids=("training", "inference"))
@pytest.mark.parametrize(
    "shape", [(3, 5, 7, 9, 3, 1), (2, 6, 14, 15, 5, 2), (1, 1, 9, 7, 7, 2)], ids=str
)
def test_core_equals_separate_stock_cells(mode, shape, training):
    n, c, h, w, k, stride = shape
    stock = nn.SequentialCell(
        nn.BatchNorm2d(c),
        nn.ReLU(),
        nn.Conv2d(c, c, k, stride, pad_mode="pad", padding=k // 2, group=c),
        nn.BatchNorm2d(c),
    )
    ours = Core(c, k, stride)
    pairs = zip(ours.get_parameters(), stock.get_parameters(), strict=True)
    for i, pair in enumerate(pairs):
        value = normal(i, *pair[0].shape)
        for parameter in pair:
            parameter.set_data(Tensor(np.abs(value) + 0.5 if value.ndim == 1 else value))
    x, factor = normal(1, n, c, h, w), normal(2, n, c, conv_out(h, stride), conv_out(w, stride))

    def results(network):
        if training:
            return gradients(network.set_train(), x, factor)
        return {"y": network.set_train(False)(Tensor(x)).asnumpy()}

    with mode_of(ms.PYNATIVE_MODE):  # which spares its compilation
        expected = results(stock)
    actual = results(ours)
    for a, e in zip(actual.values(), expected.values(), strict=True):
        assert_near(a, e, 2e-5)
    for a, e in zip(parameters(ours).values(), parameters(stock).values(), strict=True):
        assert_near(a, e, 1e-5)


@pytest.mark.parametrize(
    "shape",
    [(2, 6, 14, 14, 3, 1), (2, 6, 14, 15, 5, 2), (2, 3, 7, 7, 7, 1), (1, 1, 9, 7, 3, 2)],
    ids=str,
)
def test_depthwise_cell_equals_stock(mode, shape):
    n, c, h, w, k, stride = shape
    stock = nn.Conv2d(c, c, k, stride, pad_mode="pad", padding=k // 2, group=c)
    ours = DepthwiseConv2d(c, k, stride)
    ours.weight.set_data(stock.weight)
    x, factor = normal(1, n, c, h, w), normal(2, n, c, conv_out(h, stride), conv_out(w, stride))
    with mode_of(ms.PYNATIVE_MODE):
        expected = gradients(stock, x, factor)
    for name, value in gradients(ours, x, factor).items():
        assert_near(value, expected[name], 1e-5)


def test_gradient_of_images(mode):
    stock, ours = (
        cell(3, 8, 3, 2, pad_mode="pad", padding=1) if cell is nn.Conv2d else cell(3, 8, 3, 2)
        for cell in (nn.Conv2d, ImageConv2d)
    )
    ours.weight.set_data(stock.weight)
    x, factor = normal(1, 2, 3, 9, 11), normal(2, 2, 8, 5, 6)
    with mode_of(ms.PYNATIVE_MODE):
        expected = gradients(stock, x, factor)
    for name, value in gradients(ours, x, factor).items():
        assert_near(value, expected[name], 1e-5)


def test_wrong_shapes_are_named(mode):
    for x, weight in (
        (normal(1, 2, 3, 8, 8), normal(1, 3, 1, 4, 4)),
        (normal(1, 2, 3, 8, 8), normal(1, 4, 1, 3, 3)),
    ):
        with pytest.raises(ValueError, match="k in"):
            depthwise_operator(1)(Tensor(x), Tensor(weight)).asnumpy()
    with pytest.raises(ValueError, match="stride 3"):
        depthwise_operator(3)(Tensor(normal(1, 2, 3, 8, 8)), Tensor(normal(1, 3, 1, 3, 3)))


def test_other_types_use_stock_operators(mode):
    network = nn.SequentialCell(DepthwiseConv2d(3, 3), BatchNormReLU(3)).to_float(ms.float16)
    for training in (True, False):
        y = network.set_train(training)(Tensor(normal(1, 2, 3, 4, 4))).asnumpy()
        assert y.dtype == np.float16 and np.isfinite(y).all() and y.min() == 0
