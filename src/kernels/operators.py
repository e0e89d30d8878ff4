"""The compiled operators as MindSpore functions, in GRAPH and PYNATIVE mode.

Each is an ``ops.Custom`` that calls a C function of the library (compiled of the ``*.cpp`` beside
this file) and has first-order gradients unless it is for inference only. Shapes are checked here,
when MindSpore infers them, and types by the operators themselves, since only they see them.

The functions are cached, so that all cells share one operator of each kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
from mindspore import ops
from mindspore.ops.operations import nn_ops

from src.kernels import build

# What the C++ code is written for.
KERNEL_SIZES = (3, 5, 7)
STRIDES = (1, 2)
MAX_IMAGE_CHANNELS = 4  # kMaxImageChannels of stem_operators.h
# Of more channels MindSpore's own 1x1 convolution is as fast (docs/cpu_operators.md).
MAX_POINTWISE_CHANNELS = 96

# Places of what a normalisation returns behind y. In training its new moving statistics follow.
_MEAN, _INVERSE_DEVIATION = 1, 2
_INFERENCE_STATISTICS, _TRAINING_STATISTICS = 2, 4  # how many these are

# The primitive: the function ops.zeros_like takes several times the memory to compile.
zeros_like = ops.ZerosLike()

Shape = Sequence[int]


def custom_operator(
    name: str,
    out_shape: Callable[..., Any],
    outputs: int,
    bprop: Callable[..., Any] | None = None,
    bfloat16: Sequence[int] | None = None,
    changes_inputs: bool = False,
) -> ops.Custom:
    """An operator of the library.

    Args:
        name: of the C function. MindSpore takes two operators of one name for the same, so names
            tell apart whatever results in different shapes.
        out_shape: from the shapes of the inputs to that of the output, or to a tuple of shapes.
        outputs: their number.
        bprop: from inputs, outputs and the outputs' gradients to the inputs' gradients; the graph
            compiler parses it.
        bfloat16: the outputs of this type, all others being float32; all have the type of the
            first input where omitted.
        changes_inputs: whether it writes into parameters that it takes.
    """

    # ops.Custom wants a single output bare, several in a tuple.
    def out_dtype(*types):
        if bfloat16 is None:
            return types[0] if outputs == 1 else (types[0],) * outputs
        own = tuple(ms.bfloat16 if i in bfloat16 else ms.float32 for i in range(outputs))
        return own[0] if outputs == 1 else own

    library = build.library()
    if library is None:
        raise RuntimeError(
            "the CPU operators are not compiled; ask src.kernels.available() before using them"
        )
    operator = ops.Custom(f"{library}:{name}", out_shape, out_dtype, "aot", bprop=bprop)
    if changes_inputs:
        # As MindSpore's own Assign has it: the compiler then keeps the order of reads and writes.
        operator.add_prim_attr("side_effect_mem", True)
    return operator


def output_size(size: int, stride: int) -> int:
    """Height or width of a convolution's result: divided by the stride, rounded up."""
    return (size - 1) // stride + 1


def _output_shape(x: Shape, channels: int, stride: int) -> tuple[int, int, int, int]:
    """The shape of what a convolution makes of x (N, C, H, W): H and W divided, rounded up."""
    return (x[0], channels, output_size(x[2], stride), output_size(x[3], stride))


def _depthwise_shape(x: Shape, weight: Shape, stride: int) -> tuple[int, int, int, int]:
    if len(x) != 4 or list(weight) not in [[x[1], 1, k, k] for k in KERNEL_SIZES]:
        raise ValueError(
            f"a depthwise convolution takes x (N, C, H, W) and weight (C, 1, k, k) with k in "
            f"{KERNEL_SIZES}, not {tuple(x)} and {tuple(weight)}"
        )
    return _output_shape(x, x[1], stride)


def _check_norm(x: Shape, gamma: Shape) -> None:
    if len(x) != 4 or list(gamma) != [x[1]]:
        raise ValueError(
            f"batch normalisation takes x (N, C, H, W) and gamma (C,), not {tuple(x)} and "
            f"{tuple(gamma)}"
        )


@functools.cache
def depthwise_operator(stride: int) -> ops.Custom:
    """Depthwise convolution, padded by k // 2 on all sides.

    Takes x (N, C, H, W) and weight (C, 1, k, k), k being 3, 5 or 7.
    Returns (N, C, ceil(H / stride), ceil(W / stride)).
    """
    if stride not in STRIDES:
        raise ValueError(f"stride {stride} is none of {STRIDES}")

    def forward_shape(x, weight):
        return _depthwise_shape(x, weight, stride)

    def backward_shape(x, weight, dy):
        return x, weight

    backward = custom_operator(f"DepthwiseBackward{stride}", backward_shape, 2)

    # MindSpore hands a bprop inputs, outputs and gradients, whether it needs them or not.
    def bprop(x, weight, out, dout):
        return backward(x, weight, dout)

    return custom_operator(f"DepthwiseForward{stride}", forward_shape, 1, bprop)


@functools.cache
def pointwise_operator() -> ops.Custom:
    """1x1 convolution: takes x (N, C, H, W) and weight (O, C, 1, 1), returns (N, O, H, W)."""

    def forward_shape(x, weight):
        if len(x) != 4 or list(weight) != [weight[0], x[1], 1, 1]:
            raise ValueError(
                "a 1x1 convolution takes x (N, C, H, W) and weight (O, C, 1, 1), not "
                f"{tuple(x)} and {tuple(weight)}"
            )
        return _output_shape(x, weight[0], 1)

    def backward_shape(x, weight, dy):
        return x, weight

    backward = custom_operator("PointwiseBackward", backward_shape, 2)

    def bprop(x, weight, out, dout):
        return backward(x, weight, dout)

    return custom_operator("PointwiseForward", forward_shape, 1, bprop)


@functools.cache
def image_operator(out_channels: int, kernel_size: int, stride: int) -> ops.Custom:
    """Convolution of images, padded by ``kernel_size // 2``.

    Takes x (N, C, H, W) with C at most MAX_IMAGE_CHANNELS, and weight
    (out_channels, C, kernel_size, kernel_size).
    Returns (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def forward_shape(x, weight):
        if (
            len(x) != 4
            or x[1] > MAX_IMAGE_CHANNELS
            or list(weight) != [out_channels, x[1], kernel_size, kernel_size]
        ):
            raise ValueError(
                f"a convolution of images takes x (N, C, H, W) with C up to {MAX_IMAGE_CHANNELS} "
                f"and weight ({out_channels}, C, {kernel_size}, {kernel_size}), not {tuple(x)} "
                f"and {tuple(weight)}"
            )
        return _output_shape(x, out_channels, stride)

    def backward_shape(x, weight, dy):
        return weight

    weight_gradient = custom_operator(f"ImageBackward{stride}", backward_shape, 1)
    # MindSpore's operator. Compilation removes it where nobody asks for the gradient of the images.
    image_gradient = nn_ops.Conv2DBackpropInput(
        out_channels, kernel_size, pad_mode="pad", pad=kernel_size // 2, stride=stride
    )

    def bprop(x, weight, out, dout):
        return image_gradient(dout, weight, ops.shape(x)), weight_gradient(x, weight, dout)

    return custom_operator(f"ImageForward{stride}", forward_shape, 1, bprop)


@functools.cache
def norm_operator(relu: bool, training: bool) -> ops.Custom:
    """Batch normalisation and, if ``relu``, ReLU.

    Takes x (N, C, H, W), gamma, beta, moving mean and moving variance (C,), and options (2,), which
    are epsilon and the weight of the old moving statistics. Returns y, mean and inverse standard
    deviation, and in training, where these are the batch's, also the new moving mean and variance.
    Inference has no gradient.
    """
    name = f"Norm{'Relu' if relu else ''}{'Train' if training else 'Infer'}"
    statistics = _TRAINING_STATISTICS if training else _INFERENCE_STATISTICS

    def forward_shape(x, gamma, beta, moving_mean, moving_variance, options):
        _check_norm(x, gamma)
        return (x,) + (gamma,) * statistics

    def backward_shape(x, gamma, beta, mean, inverse_deviation, dy):
        return x, gamma, gamma

    if not training:
        return custom_operator(name, forward_shape, 1 + statistics)
    backward = custom_operator(f"{name}Backward", backward_shape, 3)

    def bprop(x, gamma, beta, moving_mean, moving_variance, options, out, dout):
        dx, dgamma, dbeta = backward(x, gamma, beta, out[_MEAN], out[_INVERSE_DEVIATION], dout[0])
        # Of the outputs only y has a gradient, and of the inputs only what is trained.
        return (
            dx,
            dgamma,
            dbeta,
            zeros_like(moving_mean),
            zeros_like(moving_variance),
            zeros_like(options),
        )

    return custom_operator(name, forward_shape, 1 + statistics, bprop)


@functools.cache
def core_operator(stride: int, training: bool) -> ops.Custom:
    """The core of a shuffle block: normalisation, ReLU, depthwise convolution, normalisation.

    Takes x (N, C, H, W), weight (C, 1, k, k), then gamma, beta, moving mean and moving variance
    (C,) of the first and of the second normalisation, and options (2,) as ``norm_operator`` does,
    for both. Returns y, then what ``norm_operator`` returns behind y, of the first and of the
    second normalisation. Inference has no gradient.

    Args:
        stride: of the convolution.
        training: whether the batch's own statistics are used.
    """
    name = "CoreTrain" if training else "CoreInfer"
    statistics = _TRAINING_STATISTICS if training else _INFERENCE_STATISTICS

    def forward_shape(x, weight, gamma, *others):
        y = _depthwise_shape(x, weight, stride)
        _check_norm(x, gamma)
        return (y,) + (gamma,) * (2 * statistics)

    def backward_shape(x, weight, gamma, *others):
        return (x, weight) + (gamma,) * 4

    if not training:
        return custom_operator(f"{name}{stride}", forward_shape, 1 + 2 * statistics)
    backward = custom_operator(f"{name}Backward{stride}", backward_shape, 6)

    def bprop(
        x,
        weight,
        gamma,
        beta,
        moving_mean,
        moving_variance,
        next_gamma,
        next_beta,
        next_moving_mean,
        next_moving_variance,
        options,
        out,
        dout,
    ):
        # The second normalisation's outputs stand behind all of the first one's.
        dx, dweight, dgamma, dbeta, next_dgamma, next_dbeta = backward(
            x,
            weight,
            gamma,
            beta,
            out[_MEAN],
            out[_INVERSE_DEVIATION],
            next_gamma,
            next_beta,
            out[_MEAN + statistics],
            out[_INVERSE_DEVIATION + statistics],
            dout[0],
        )
        # In the order of the inputs; moving statistics and options are not trained.
        return (
            dx,
            dweight,
            dgamma,
            dbeta,
            zeros_like(moving_mean),
            zeros_like(moving_variance),
            next_dgamma,
            next_dbeta,
            zeros_like(next_moving_mean),
            zeros_like(next_moving_variance),
            zeros_like(options),
        )

    return custom_operator(f"{name}{stride}", forward_shape, 1 + 2 * statistics, bprop)


@functools.cache
def conv_relu_operator(kernel_size: int, stride: int) -> ops.Custom:
    """Convolution, padded by k // 2 on all sides, with bias and ReLU, for inference.

    Takes x (N, C, H, W), weight (O, C, k, k) and bias (O,).
    Returns (N, O, ceil(H / stride), ceil(W / stride)).
    """

    def forward_shape(x, weight, bias):
        if (
            len(x) != 4
            or list(weight) != [weight[0], x[1], kernel_size, kernel_size]
            or list(bias) != [weight[0]]
        ):
            raise ValueError(
                f"this convolution takes x (N, C, H, W), weight (O, C, {kernel_size}, "
                f"{kernel_size}) and bias (O,), not {tuple(x)}, {tuple(weight)} and {tuple(bias)}"
            )
        return _output_shape(x, weight[0], stride)

    # A 1x1 convolution reads x as it lies in memory, larger ones need it packed with its padding.
    return custom_operator(
        "PointwiseRelu" if kernel_size == 1 else f"ConvRelu{stride}", forward_shape, 1
    )
