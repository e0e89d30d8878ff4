"""Convolution with batch normalisation and activation, of which all networks are made."""

from __future__ import annotations

import math
from typing import Any, TypedDict

from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import Normal

from src.kernels import (
    BatchNormReLU,
    ConvReLU,
    DepthwiseConv2d,
    ImageConv2d,
    PointwiseConv2d,
    available,
)


class SharedOptions(TypedDict, total=False):
    """Options of a network that all its ``ConvBN`` layers share; see there."""

    affine: bool
    momentum: float
    kernels: bool
    folded: bool


class NetworkOptions(SharedOptions, total=False):
    """Options of a network; see ``src.spnasnet.BlockNetwork``."""

    bfloat16: bool


class LayerOptions(SharedOptions, total=False):
    """Options of layers: what they share, with what an architecture adds."""

    epsilon: float


class CellOptions(LayerOptions, total=False):
    """Options of stem, blocks and head.

    ``fused``: each of them is one operator, and between them images lie with channels last.
    ``bfloat16``: in training these images are bfloat16, as are the factors of products; only with
    ``fused``. Layers of one-shot supernets have images of float32 even then, and no gradient.
    """

    fused: bool
    bfloat16: bool


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that can convolve with another weight too."""

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolution with another weight than its own, without bias."""
        return self.conv2d(x, weight)


def _create_convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    groups: int,
    *,
    weight_init: Normal,
    kernels: bool,
    folded: bool,
    relu: bool,
) -> nn.Cell:
    """The convolution of a ``ConvBN``: one of ``src.kernels`` where it knows it, or MindSpore's."""
    shape = (in_channels, out_channels, kernel_size, stride)
    if kernels and folded and relu and ConvReLU.supports(kernel_size, stride, groups):
        return ConvReLU(*shape, weight_init=weight_init)
    if kernels and not folded:
        if DepthwiseConv2d.supports(*shape, groups):
            return DepthwiseConv2d(in_channels, kernel_size, stride, weight_init=weight_init)
        if PointwiseConv2d.supports(*shape, groups):
            return PointwiseConv2d(in_channels, out_channels, weight_init=weight_init)
        if ImageConv2d.supports(in_channels, kernel_size, stride, groups):
            return ImageConv2d(*shape, weight_init=weight_init)
    return Conv2d(
        *shape,
        pad_mode="pad",
        padding=kernel_size // 2,
        group=groups,
        weight_init=weight_init,
        has_bias=folded,
    )


class ConvBN(nn.Cell):
    """Convolution with symmetric padding, batch normalisation and optionally ReLU or ReLU6.

    Weights start from a normal distribution with variance 2 / fan-out, the fan-out counted per
    group (He et al., arXiv 1502.01852, as in MnasNet), unless ``sigma`` is given.

    Args:
        in_channels: of x.
        out_channels: of the result.
        kernel_size: odd; the padding is half of it on all sides, rounded down.
        stride: of the convolution.
        groups: of the convolution; as many as channels for a depthwise one.
        relu: whether ReLU follows.
        relu6: whether ReLU6 follows, in place of ReLU.
        sigma: standard deviation of the first weights.
        affine: whether scale and shift of batch normalisation are trained, or stay 1 and 0.
        epsilon: added to the variance.
        momentum: weight of the old value in the moving statistics.
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
        # Fan-out: the outputs that each input of a group takes part in.
        sigma = sigma or math.sqrt(2 / (kernel_size**2 * out_channels / groups))
        kernels = kernels and available()
        self.conv = _create_convolution(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            groups,
            weight_init=Normal(sigma),
            kernels=kernels,
            folded=folded,
            relu=relu,
        )
        # Any: the type checker cannot know which options the methods below are used with.
        self.bn: Any = None  # stays so where it is folded
        if kernels and not folded:
            self.bn = BatchNormReLU(
                out_channels, eps=epsilon, momentum=momentum, affine=affine, relu=relu
            )
        elif not folded:
            self.bn = nn.BatchNorm2d(out_channels, eps=epsilon, momentum=momentum, affine=affine)
        self.relu: Any = None  # stays so where there is none, or where it is part of an operator
        if relu6:
            self.relu = nn.ReLU6()
        elif (
            relu and not isinstance(self.bn, BatchNormReLU) and not isinstance(self.conv, ConvReLU)
        ):
            self.relu = nn.ReLU()

    def operands(self) -> tuple[Parameter, ...]:
        """Weight and normalisation, or where that is folded the bias, as operators take them."""
        if self.bn is None:
            return self.conv.weight, self.conv.bias
        bn = self.bn
        return self.conv.weight, bn.gamma, bn.beta, bn.moving_mean, bn.moving_variance

    def construct(
        self, x: Tensor, weight: Tensor | None = None, factor: Tensor | None = None
    ) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

        Args:
            x: the input.
            weight: in place of the convolution's own; neither for folded layers nor for the stem.
            factor: of the normalised output, (1,); not where there is a ReLU.
        """
        x = self.conv(x) if weight is None else self.conv.convolve(x, weight)
        # Decided when the graph is compiled, as is every condition on None here.
        if factor is not None:
            return self._scaled(x, factor)
        if self.bn is not None:
            x = self.bn(x)
        return x if self.relu is None else self.relu(x)

    def _scaled(self, x: Tensor, factor: Tensor) -> Tensor:
        if isinstance(self.bn, BatchNormReLU):
            # As part of gamma and beta: then no output is kept for the factor's gradient.
            return self.bn(x, factor)
        x = self.bn(x)
        return x * factor.astype(x.dtype)
