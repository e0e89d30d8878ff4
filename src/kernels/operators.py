"""The compiled operators as MindSpore functions, with first-order gradients, in GRAPH and PYNATIVE mode.

Shapes are checked here, when MindSpore infers them, and types by the operators themselves, since only they see them.
"""
from __future__ import annotations

import functools

from mindspore import Tensor, ops

from src.kernels import build

KERNEL_SIZES, STRIDES = (3, 5, 7), (1, 2)


def _custom(name: str, out_shape, outputs: int, bprop=None) -> ops.Custom:
    def out_dtype(*types):
        return types[0] if outputs == 1 else (types[0],) * outputs

    library = build.library()
    if library is None:
        raise RuntimeError("the CPU operators are not compiled; ask src.kernels.available() before using them")
    return ops.Custom(f"{library}:{name}", out_shape, out_dtype, "aot", bprop=bprop)


@functools.lru_cache(maxsize=None)
def depthwise_operator(stride: int) -> ops.Custom:
    """What ``depthwise_conv2d`` calls, for cells to hold."""
    if stride not in STRIDES:
        raise ValueError(f"stride {stride} is none of {STRIDES}")

    def forward_shape(x, weight):
        if len(x) != 4 or list(weight) not in [[x[1], 1, k, k] for k in KERNEL_SIZES]:
            raise ValueError(f"a depthwise convolution takes x (N, C, H, W) and weight (C, 1, k, k) with k in "
                             f"{KERNEL_SIZES}, not {tuple(x)} and {tuple(weight)}")
        return (x[0], x[1], (x[2] - 1) // stride + 1, (x[3] - 1) // stride + 1)

    def backward_shape(x, weight, dy):
        return x, weight

    backward = _custom(f"DepthwiseBackward{stride}", backward_shape, 2)

    def bprop(x, weight, out, dout):
        return backward(x, weight, dout)

    return _custom(f"DepthwiseForward{stride}", forward_shape, 1, bprop)


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Depthwise convolution of float32, padded by k // 2 on all sides.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, k, k), k being 3, 5 or 7.
        stride: 1 or 2.

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)).
    """
    return depthwise_operator(stride)(x, weight)


@functools.lru_cache(maxsize=None)
def norm_operator(relu: bool, training: bool) -> ops.Custom:
    """Batch normalisation and, if ``relu``, ReLU.

    Takes x (N, C, H, W), gamma, beta, moving mean and moving variance (C,), and options (2,), which are
    epsilon and the weight of the old moving statistics. Returns y, mean and inverse standard deviation, and
    in training, where these are the batch's, also the new moving mean and variance.
    """
    name = f"Norm{'Relu' if relu else ''}{'Train' if training else 'Infer'}"
    statistics = 4 if training else 2

    def forward_shape(x, gamma, beta, moving_mean, moving_variance, options):
        if len(x) != 4 or list(gamma) != [x[1]]:
            raise ValueError(f"batch normalisation takes x (N, C, H, W) and gamma (C,), not {tuple(x)} and "
                             f"{tuple(gamma)}")
        return (x,) + (gamma,) * statistics

    def backward_shape(x, gamma, beta, mean, inverse_deviation, dy):
        return x, gamma, gamma

    backward = _custom(f"{name}Backward", backward_shape, 3)

    def bprop(x, gamma, beta, moving_mean, moving_variance, options, out, dout):
        dx, dgamma, dbeta = backward(x, gamma, beta, out[1], out[2], dout[0])
        return (dx, dgamma, dbeta, ops.zeros_like(moving_mean), ops.zeros_like(moving_variance),
                ops.zeros_like(options))

    return _custom(name, forward_shape, 1 + statistics, bprop)


@functools.lru_cache(maxsize=None)
def conv_relu_operator(kernel_size: int, stride: int) -> ops.Custom:
    """Convolution, padded by k // 2 on all sides, with bias and ReLU, for inference.

    Takes x (N, C, H, W), weight (O, C, k, k) and bias (O,); returns (N, O, ceil(H / stride), ceil(W / stride)).
    """
    def forward_shape(x, weight, bias):
        if len(x) != 4 or list(weight) != [weight[0], x[1], kernel_size, kernel_size] or list(bias) != [weight[0]]:
            raise ValueError(f"this convolution takes x (N, C, H, W), weight (O, C, {kernel_size}, {kernel_size}) and "
                             f"bias (O,), not {tuple(x)}, {tuple(weight)} and {tuple(bias)}")
        return (x[0], weight[0], (x[2] - 1) // stride + 1, (x[3] - 1) // stride + 1)

    return _custom("PointwiseRelu" if kernel_size == 1 else f"ConvRelu{stride}", forward_shape, 1)


@functools.lru_cache(maxsize=None)
def mbconv_operator(stride: int, residual: bool) -> ops.Custom:
    """An MBConv block without batch normalisation, for inference.

    Takes x (N, C, H, W), then weight and bias of each of its convolutions: expansion (M, C, 1, 1), which a block
    without expansion leaves out, depthwise (M, 1, k, k) and projection (O, M, 1, 1). ReLU follows all but the last.
    Returns (N, O, ceil(H / stride), ceil(W / stride)), to which ``residual`` adds x.
    """
    def fits(x, weights, biases):
        *expansion, depthwise, project = weights
        mid, k, out = depthwise[0], depthwise[-1], project[0]
        return (len(x) == 4 and k in KERNEL_SIZES and [*expansion] in ([], [[mid, x[1], 1, 1]])
                and (expansion or mid == x[1]) and depthwise == [mid, 1, k, k] and project == [out, mid, 1, 1]
                and biases == [[weight[0]] for weight in weights] and (not residual or x[1] == out))

    def forward_shape(x, *parameters):
        weights, biases = ([list(shape) for shape in parameters[first::2]] for first in (0, 1))
        if len(parameters) not in (4, 6) or not fits(x, weights, biases):
            raise ValueError(f"an MBConv block {'with' if residual else 'without'} residual does not take the shapes "
                             f"{tuple(x)}, {', '.join(str(tuple(shape)) for shape in parameters)}")
        return (x[0], weights[-1][0], (x[2] - 1) // stride + 1, (x[3] - 1) // stride + 1)

    return _custom("MBConvResidual" if residual else f"MBConv{stride}", forward_shape, 1)
