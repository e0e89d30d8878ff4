"""The compiled operators as MindSpore functions, with first-order gradients, in GRAPH and PYNATIVE mode.

Shapes are checked here, when MindSpore infers them, and types by the operators themselves, since only they see them.
"""
from __future__ import annotations

import functools

from mindspore import Tensor, ops
from mindspore.ops.operations import nn_ops

from src.kernels import build

KERNEL_SIZES, STRIDES, MAX_IMAGE_CHANNELS = (3, 5, 7), (1, 2), 4
_zeros_like = ops.ZerosLike()  # the function ops.zeros_like takes several times the memory to compile


def _custom(name: str, out_shape, outputs: int, bprop=None) -> ops.Custom:
    def out_dtype(*types):
        return types[0] if outputs == 1 else (types[0],) * outputs

    library = build.library()
    if library is None:
        raise RuntimeError("the CPU operators are not compiled; ask src.kernels.available() before using them")
    return ops.Custom(f"{library}:{name}", out_shape, out_dtype, "aot", bprop=bprop)


def _depthwise_shape(x, weight, stride: int) -> tuple[int, int, int, int]:
    if len(x) != 4 or list(weight) not in [[x[1], 1, k, k] for k in KERNEL_SIZES]:
        raise ValueError(f"a depthwise convolution takes x (N, C, H, W) and weight (C, 1, k, k) with k in "
                         f"{KERNEL_SIZES}, not {tuple(x)} and {tuple(weight)}")
    return (x[0], x[1], (x[2] - 1) // stride + 1, (x[3] - 1) // stride + 1)


@functools.lru_cache(maxsize=None)
def depthwise_operator(stride: int) -> ops.Custom:
    """What ``depthwise_conv2d`` calls, for cells to hold."""
    if stride not in STRIDES:
        raise ValueError(f"stride {stride} is none of {STRIDES}")

    def forward_shape(x, weight):
        return _depthwise_shape(x, weight, stride)

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
def image_operator(out_channels: int, kernel_size: int, stride: int) -> ops.Custom:
    """Convolution of images, padded by ``kernel_size // 2``.

    Takes x (N, C, H, W) with C at most MAX_IMAGE_CHANNELS, and weight (out_channels, C, kernel_size, kernel_size).
    """
    def forward_shape(x, weight):
        if len(x) != 4 or x[1] > MAX_IMAGE_CHANNELS or list(weight) != [out_channels, x[1], kernel_size, kernel_size]:
            raise ValueError(f"a convolution of images takes x (N, C, H, W) with C up to {MAX_IMAGE_CHANNELS} and "
                             f"weight ({out_channels}, C, {kernel_size}, {kernel_size}), not {tuple(x)} and "
                             f"{tuple(weight)}")
        return (x[0], out_channels, (x[2] - 1) // stride + 1, (x[3] - 1) // stride + 1)

    def backward_shape(x, weight, dy):
        return weight

    weight_gradient = _custom(f"ImageBackward{stride}", backward_shape, 1)
    # Compilation removes it where nobody asks for the gradient of the images.
    image_gradient = nn_ops.Conv2DBackpropInput(out_channels, kernel_size, pad_mode="pad", pad=kernel_size // 2,
                                                stride=stride)

    def bprop(x, weight, out, dout):
        return image_gradient(dout, weight, ops.shape(x)), weight_gradient(x, weight, dout)

    return _custom(f"ImageForward{stride}", forward_shape, 1, bprop)


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
        return (dx, dgamma, dbeta, _zeros_like(moving_mean), _zeros_like(moving_variance),
                _zeros_like(options))

    return _custom(name, forward_shape, 1 + statistics, bprop)


@functools.lru_cache(maxsize=None)
def core_operator(stride: int, training: bool) -> ops.Custom:
    """The core of an MBConv block: batch normalisation, ReLU, depthwise convolution, batch normalisation, ReLU.

    Takes x (N, C, H, W), weight (C, 1, k, k), then gamma, beta, moving mean and moving variance (C,) of the
    first and of the second normalisation, and options (2,) as ``norm_operator`` does, for both. Returns y, then
    what ``norm_operator`` returns of the first, and of the second normalisation.
    """
    name = f"MBConvCore{'Train' if training else 'Infer'}"
    statistics = 4 if training else 2

    def forward_shape(x, weight, gamma, *others):
        y = _depthwise_shape(x, weight, stride)
        if list(gamma) != [x[1]]:
            raise ValueError(f"batch normalisation takes x (N, C, H, W) and gamma (C,), not {tuple(x)} and "
                             f"{tuple(gamma)}")
        return (y,) + (gamma,) * (2 * statistics)

    def backward_shape(x, weight, gamma, *others):
        return (x, weight) + (gamma,) * 4

    backward = _custom(f"{name}Backward{stride}", backward_shape, 6)

    def bprop(x, weight, gamma, beta, moving_mean, moving_variance, next_gamma, next_beta, next_moving_mean,
              next_moving_variance, options, out, dout):
        dx, dweight, dgamma, dbeta, next_dgamma, next_dbeta = backward(
            x, weight, gamma, beta, out[1], out[2], next_gamma, next_beta, out[1 + statistics], out[2 + statistics],
            dout[0])
        return (dx, dweight, dgamma, dbeta, _zeros_like(moving_mean), _zeros_like(moving_variance),
                next_dgamma, next_dbeta, _zeros_like(next_moving_mean), _zeros_like(next_moving_variance),
                _zeros_like(options))

    return _custom(f"{name}{stride}", forward_shape, 1 + 2 * statistics, bprop)
