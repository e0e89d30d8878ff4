"""Cells in place of MindSpore's, with parameters of the same names and values.

Each asks at every call whether its operator applies, and otherwise does what MindSpore's cell does.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from src.kernels import build
from src.kernels.operators import (
    KERNEL_SIZES,
    MAX_IMAGE_CHANNELS,
    MAX_POINTWISE_CHANNELS,
    STRIDES,
    conv_relu_operator,
    core_operator,
    depthwise_operator,
    image_operator,
    norm_operator,
    pointwise_operator,
)


def available() -> bool:
    """Whether the operators can be used: on CPU, and compiled."""
    return ms.get_context("device_target") == "CPU" and build.library() is not None


_assign = ops.Assign()


def move_statistics(moving: tuple[Parameter, ...], mean: Tensor, variance: Tensor) -> None:
    """Set the moving mean and the moving variance of a normalisation."""
    # As statements: the compiler keeps their order itself, which takes less memory than making the
    # output depend on them (docs/cpu_operators.md).
    _assign(moving[0], mean)
    _assign(moving[1], variance)


def hold_operands(cell: nn.Cell, **operands: tuple[Parameter, ...]) -> None:
    """Give a cell parameters of its inner cells, as attributes that are not its own parameters.

    Where ``construct`` reaches parameters through inner cells, MindSpore compiles those too, though
    nothing calls them: a fifth of the start of a training.
    """
    for name, parameters in operands.items():
        object.__setattr__(cell, name, parameters)  # a cell's own would make them its parameters


def supports_bfloat16() -> bool:
    """Whether there are operators that multiply in bfloat16, and a processor that does it."""
    return available() and build.multiplies_bfloat16()


class Float32Cell(nn.Cell):
    """A cell whose operator applies to float32, unless ``to_float`` asks for another type."""

    # Set by to_float. In PYNATIVE mode its cast follows later, so that x is still float32 here.
    fp16 = bf16 = False
    # Whether the cell trains by an operator between whose like images are bfloat16.
    bfloat16 = False

    def applies(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the operator computes ``x`` with ``weight``."""
        known = x.dtype == ms.float32 or (self.bfloat16 and x.dtype == ms.bfloat16)
        return known and weight.dtype == ms.float32 and not self.fp16 and not self.bf16


class DepthwiseConv2d(nn.Conv2d, Float32Cell):
    """``nn.Conv2d`` with one group per channel and padding ``kernel_size // 2``."""

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, **options) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            stride,
            pad_mode="pad",
            padding=kernel_size // 2,
            group=channels,
            **options,
        )
        self.depthwise = depthwise_operator(stride)
        # Compiled code cannot call core_operator.
        self.train_core = core_operator(stride, training=True)
        self.infer_core = core_operator(stride, training=False)

    @staticmethod
    def supports(
        in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int
    ) -> bool:
        """Whether a convolution is depthwise and of a size that the operator knows."""
        return (
            groups == in_channels == out_channels
            and kernel_size in KERNEL_SIZES
            and stride in STRIDES
        )

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolution with another weight than its own."""
        if self.applies(x, weight):
            return self.depthwise(x, weight)
        return self.conv2d(x, weight)

    def construct(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))."""
        return self.convolve(x, self.weight)

    def fused_norm_conv_norm(
        self, x: Tensor, norm: BatchNormReLU, next_norm: BatchNormReLU
    ) -> Tensor:
        """``next_norm(self(norm(x)))`` as one operator, which keeps x and y only for backward.

        Args:
            x: (N, C, H, W).
            norm: with ReLU.
            next_norm: without ReLU.
        """
        # The operator knows batch statistics in both normalisations or in none.
        if not self.applies(x, self.weight) or norm.training != next_norm.training:
            return next_norm(self.convolve(norm(x), self.weight))
        if norm.training:
            # y, then mean, inverse deviation, new moving mean and new moving variance of each. One
            # options for both: all layers of a network have the same epsilon and momentum.
            y, _, _, mean, variance, _, _, next_mean, next_variance = self.train_core(
                x,
                self.weight,
                norm.gamma,
                norm.beta,
                norm.moving_mean,
                norm.moving_variance,
                next_norm.gamma,
                next_norm.beta,
                next_norm.moving_mean,
                next_norm.moving_variance,
                norm.options,
            )
            move_statistics((norm.moving_mean, norm.moving_variance), mean, variance)
            move_statistics(
                (next_norm.moving_mean, next_norm.moving_variance), next_mean, next_variance
            )
            return y
        return self.infer_core(
            x,
            self.weight,
            norm.gamma,
            norm.beta,
            norm.moving_mean,
            norm.moving_variance,
            next_norm.gamma,
            next_norm.beta,
            next_norm.moving_mean,
            next_norm.moving_variance,
            norm.options,
        )[0]


class PointwiseConv2d(nn.Conv2d, Float32Cell):
    """``nn.Conv2d`` of kernel size 1."""

    def __init__(self, in_channels: int, out_channels: int, **options) -> None:
        super().__init__(in_channels, out_channels, 1, **options)
        self.pointwise = pointwise_operator()

    @staticmethod
    def supports(
        in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int
    ) -> bool:
        """Whether a convolution takes each pixel by itself, over few channels.

        Of more channels MindSpore's own is as fast.
        """
        return (
            kernel_size == stride == groups == 1
            and max(in_channels, out_channels) <= MAX_POINTWISE_CHANNELS
        )

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolution with another weight than its own."""
        if self.applies(x, weight):
            return self.pointwise(x, weight)
        return self.conv2d(x, weight)

    def construct(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        return self.convolve(x, self.weight)


class ImageConv2d(nn.Conv2d, Float32Cell):
    """``nn.Conv2d`` of images, with padding ``kernel_size // 2``."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, **options
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            pad_mode="pad",
            padding=kernel_size // 2,
            **options,
        )
        self.image_conv = image_operator(out_channels, kernel_size, stride)

    @staticmethod
    def supports(in_channels: int, kernel_size: int, stride: int, groups: int) -> bool:
        """Whether a convolution has few input channels and a size that the operator knows."""
        return (
            groups == 1
            and in_channels <= MAX_IMAGE_CHANNELS
            and kernel_size in KERNEL_SIZES
            and stride in STRIDES
        )

    def construct(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        if self.applies(x, self.weight):
            return self.image_conv(x, self.weight)
        return super().construct(x)


class ConvReLU(nn.Conv2d, Float32Cell):
    """``nn.Conv2d`` with bias and padding ``kernel_size // 2``, and ReLU; for inference."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, **options
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            pad_mode="pad",
            padding=kernel_size // 2,
            has_bias=True,
            **options,
        )
        self.conv_relu = conv_relu_operator(kernel_size, stride)

    @staticmethod
    def supports(kernel_size: int, stride: int, groups: int) -> bool:
        """Whether the operator knows a convolution."""
        return groups == 1 and (
            kernel_size in KERNEL_SIZES and stride in STRIDES or kernel_size == stride == 1
        )

    def construct(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        if self.applies(x, self.weight):
            return self.conv_relu(x, self.weight, self.bias)
        return ops.relu(super().construct(x))


class BatchNormReLU(nn.BatchNorm2d, Float32Cell):
    """``nn.BatchNorm2d`` and, if ``relu``, ReLU, as one operator.

    For the backward pass it keeps nothing but its input and two numbers per channel.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.9,
        affine: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__(channels, eps=eps, momentum=momentum, affine=affine)
        self.with_relu = relu
        self.train_operator = norm_operator(relu, True)
        self.infer_operator = norm_operator(relu, False)
        self.options = Tensor([eps, momentum], ms.float32)  # epsilon first: NormOptions in C++

    def construct(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """Normalised x.

        Args:
            x: (N, C, H, W).
            factor: of the result, (1,); only for cells without ReLU, whose gradient at 0 is 0, so
                that a factor of 0 would get none.
        """
        if not self.applies(x, self.gamma):
            y = super().construct(x)
            y = ops.relu(y) if self.with_relu else y
            return y if factor is None else y * factor.astype(y.dtype)
        # As part of gamma and beta the factor costs nothing per pixel.
        gamma, beta = (
            (self.gamma, self.beta) if factor is None else (self.gamma * factor, self.beta * factor)
        )
        if self.training:
            # Mean and inverse deviation of the batch, between them, are for the backward pass.
            y, _, _, mean, variance = self.train_operator(
                x, gamma, beta, self.moving_mean, self.moving_variance, self.options
            )
            move_statistics((self.moving_mean, self.moving_variance), mean, variance)
            return y
        return self.infer_operator(
            x, gamma, beta, self.moving_mean, self.moving_variance, self.options
        )[0]
