"""Layers that all networks are made of, as MindSpore cells."""

from __future__ import annotations

import math

from mindspore import Tensor, nn
from mindspore.common.initializer import Normal

from src.kernels import (
    BatchNormReLU,
    ConvReLU,
    DepthwiseConv2d,
    ImageConv2d,
    PointwiseConv2d,
    available,
)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that can convolve with another weight too."""

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolution with another weight than its own, without bias."""
        return self.conv2d(x, weight)


class ConvBN(nn.Cell):
    """Convolution with symmetric padding, batch normalisation and optionally ReLU or ReLU6.

    Weights start from a normal distribution with variance 2 / fan-out, the fan-out counted per
    group (He et al., arXiv 1502.01852, as in MnasNet), unless ``sigma`` is given.

    Args:
        sigma: standard deviation of the first weights.
        affine: whether scale and shift of batch normalisation are trained, or stay 1 and 0.
        kernels: use the project's CPU operators where they can be used; parameters are the same.
        folded: a convolution with bias in place of convolution and batch normalisation
            (``src.spnasnet.fold_batch_norm``).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
        relu6: bool = False,
        sigma: float | None = None,
        affine: bool = True,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        kernels: bool = False,
        folded: bool = False,
    ) -> None:
        super().__init__()
        sigma = sigma or math.sqrt(2 / (kernel_size**2 * out_channels / groups))
        kernels = kernels and available()
        fused = kernels and folded and relu and ConvReLU.supports(kernel_size, stride, groups)
        kernels = kernels and not folded
        if fused:
            self.conv = ConvReLU(
                in_channels, out_channels, kernel_size, stride, weight_init=Normal(sigma)
            )
        elif kernels and DepthwiseConv2d.supports(
            in_channels, out_channels, kernel_size, stride, groups
        ):
            self.conv = DepthwiseConv2d(in_channels, kernel_size, stride, weight_init=Normal(sigma))
        elif kernels and PointwiseConv2d.supports(
            in_channels, out_channels, kernel_size, stride, groups
        ):
            self.conv = PointwiseConv2d(in_channels, out_channels, weight_init=Normal(sigma))
        elif kernels and ImageConv2d.supports(in_channels, kernel_size, stride, groups):
            self.conv = ImageConv2d(
                in_channels, out_channels, kernel_size, stride, weight_init=Normal(sigma)
            )
        else:
            self.conv = Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                pad_mode="pad",
                padding=kernel_size // 2,
                group=groups,
                weight_init=Normal(sigma),
                has_bias=folded,
            )
        if folded:
            self.bn = None
        elif kernels:
            self.bn = BatchNormReLU(
                out_channels, eps=epsilon, momentum=momentum, affine=affine, relu=relu
            )
        else:
            self.bn = nn.BatchNorm2d(out_channels, eps=epsilon, momentum=momentum, affine=affine)
        self.relu = None
        if relu6:
            self.relu = nn.ReLU6()
        elif relu and not kernels and not fused:
            self.relu = nn.ReLU()

    def construct(
        self, x: Tensor, weight: Tensor | None = None, factor: Tensor | None = None
    ) -> Tensor:
        """Not for folded layers, nor for the stem, are:

        Args:
            weight: in place of the convolution's own.
            factor: of the normalised output, (1,); not where there is a ReLU.
        """
        x = self.conv(x) if weight is None else self.conv.convolve(x, weight)
        if factor is not None:
            return self._scaled(x, factor)
        if self.bn is not None:
            x = self.bn(x)
        return x if self.relu is None else self.relu(x)

    def _scaled(self, x: Tensor, factor: Tensor) -> Tensor:
        if isinstance(self.bn, BatchNormReLU):
            return self.bn(
                x, factor
            )  # as part of gamma and beta: no output is kept for the factor's gradient
        x = self.bn(x)
        return x * factor.astype(x.dtype)
