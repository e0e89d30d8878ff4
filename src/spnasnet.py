"""The network of any architecture, as MindSpore cells.

Parameter names follow the layers of ``src.cost.layer_costs``: ``stem.conv.weight``,
``blocks.3.expand.bn.gamma``, ``blocks.3.depthwise.conv.weight``, ``head...``, ``classifier.bias``.
"""
from __future__ import annotations

import math
from typing import Optional

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform

from src.architecture import Architecture, Block
from src.kernels import (BatchNormReLU, ConvReLU, DepthwiseConv2d, Float32Cell, ImageConv2d, available,
                         mbconv_operator)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that can convolve with another weight too."""

    def filter(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolution with another weight than its own, without bias."""
        return self.conv2d(x, weight)


class ConvBN(nn.Cell):
    """Convolution with symmetric padding, batch normalisation and optionally ReLU.

    Weights start from a normal distribution with variance 2 / fan-out, the fan-out counted per group
    (He et al., arXiv 1502.01852, as in MnasNet).

    Args:
        kernels: use the project's CPU operators where they can be used; parameters are the same.
        folded: a convolution with bias in place of convolution and batch normalisation (``src.folding``).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1,
                 relu: bool = True, epsilon: float = 1e-5, momentum: float = 0.9, kernels: bool = False,
                 folded: bool = False) -> None:
        super().__init__()
        sigma = math.sqrt(2 / (kernel_size ** 2 * out_channels / groups))
        kernels = kernels and available()
        fused = kernels and folded and relu and ConvReLU.supports(kernel_size, stride, groups)
        kernels = kernels and not folded
        if fused:
            self.conv = ConvReLU(in_channels, out_channels, kernel_size, stride, weight_init=Normal(sigma))
        elif kernels and DepthwiseConv2d.supports(in_channels, out_channels, kernel_size, stride, groups):
            self.conv = DepthwiseConv2d(in_channels, kernel_size, stride, weight_init=Normal(sigma))
        elif kernels and ImageConv2d.supports(in_channels, kernel_size, stride, groups):
            self.conv = ImageConv2d(in_channels, out_channels, kernel_size, stride, weight_init=Normal(sigma))
        else:
            self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, pad_mode="pad",
                               padding=kernel_size // 2, group=groups, weight_init=Normal(sigma), has_bias=folded)
        if folded:
            self.bn = None
        elif kernels:
            self.bn = BatchNormReLU(out_channels, eps=epsilon, momentum=momentum, relu=relu)
        else:
            self.bn = nn.BatchNorm2d(out_channels, eps=epsilon, momentum=momentum)
        self.relu = nn.ReLU() if relu and not kernels and not fused else None

    def construct(self, x: Tensor, weight: Optional[Tensor] = None, factor: Optional[Tensor] = None) -> Tensor:
        """Not for folded layers, nor for the stem, are:

        Args:
            weight: in place of the convolution's own.
            factor: of the normalised output, (1,); not where there is a ReLU.
        """
        x = self.conv(x) if weight is None else self.conv.filter(x, weight)
        if factor is not None:
            return self._scaled(x, factor)
        if self.bn is not None:
            x = self.bn(x)
        return x if self.relu is None else self.relu(x)

    def _scaled(self, x: Tensor, factor: Tensor) -> Tensor:
        if isinstance(self.bn, BatchNormReLU):
            return self.bn(x, factor)  # as part of gamma and beta: no output is kept for the factor's gradient
        x = self.bn(x)
        return x * factor.astype(x.dtype)


class SqueezeExcite(nn.Cell):
    """Channel weights from the spatial mean (Hu et al., arXiv 1709.01507): (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1, has_bias=True)
        self.expand = nn.Conv2d(squeezed, channels, 1, has_bias=True)

    def construct(self, x: Tensor) -> Tensor:
        gate = ops.mean(x, (2, 3), True)
        return x * ops.sigmoid(self.expand(ops.relu(self.reduce(gate))))


class MBConv(nn.Cell):
    """Inverted bottleneck: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        bn: epsilon, momentum, kernels and folded of its ``ConvBN`` layers.
    """

    def __init__(self, block: Block, **bn) -> None:
        super().__init__()
        mid = block.mid_channels
        self.expand = ConvBN(block.in_channels, mid, 1, **bn) if block.expansion != 1 else None
        self.depthwise = ConvBN(mid, mid, block.kernel_size, stride=block.stride, groups=mid, **bn)
        self.se = SqueezeExcite(mid, block.se_channels) if block.se_channels else None
        self.project = ConvBN(mid, block.out_channels, 1, relu=False, **bn)
        self.residual = block.residual
        self.fused = self.expand is not None and isinstance(self.expand.bn, BatchNormReLU) and isinstance(
            self.depthwise.conv, DepthwiseConv2d)

    def branch(self, x: Tensor, kernel: Optional[Tensor] = None, projection: Optional[Tensor] = None,
               presence: Optional[Tensor] = None) -> Tensor:
        """The output without the residual.

        Args:
            kernel: in place of the depthwise convolution's weight, (mid_channels, 1, kernel_size, kernel_size).
            projection: in place of the projection's weight, (out_channels, mid_channels, 1, 1).
            presence: factor of the output, (1,).
        """
        if self.fused:
            y = self.depthwise.conv.between(self.expand.conv(x), self.expand.bn, self.depthwise.bn, kernel)
        else:
            y = self.depthwise(x if self.expand is None else self.expand(x), kernel)
        if self.se is not None:
            y = self.se(y)
        return self.project(y, projection, presence)

    def construct(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return x + y if self.residual else y


class FusedMBConv(MBConv, Float32Cell):
    """``MBConv`` without batch normalisation and squeeze-and-excitation, as one CPU operator for float32."""

    def __init__(self, block: Block, **bn) -> None:
        super().__init__(block, **bn)
        self.operator = mbconv_operator(block.stride, block.residual)

    def construct(self, x: Tensor) -> Tensor:
        depthwise, project = self.depthwise.conv, self.project.conv
        if not self.applies(x, project.weight):
            return super().construct(x)
        if self.expand is None:
            return self.operator(x, depthwise.weight, depthwise.bias, project.weight, project.bias)
        expand = self.expand.conv
        return self.operator(x, expand.weight, expand.bias, depthwise.weight, depthwise.bias, project.weight,
                             project.bias)


def create_block(block: Block, *, kernels: bool = False, folded: bool = False, **bn) -> MBConv:
    """The cell of a block, in the form that inference likes best where ``folded``; ``bn`` as in ``MBConv``."""
    fused = folded and kernels and available() and not block.se_channels
    return (FusedMBConv if fused else MBConv)(block, kernels=kernels, folded=folded, **bn)


class SPNASNet(nn.Cell):
    """Classifier of an architecture.

    Works for any image size that its strides leave at least one pixel of (global average pooling).

    Args:
        momentum: weight of the old value in the moving statistics of batch normalisation.
        kernels: use the project's CPU operators where they can be used; parameters are the same.
        folded: for inference, with the parameters that ``src.folding`` makes.
    """

    def __init__(self, arch: Architecture, num_classes: int, *, momentum: float = 0.9, kernels: bool = False,
                 folded: bool = False) -> None:
        super().__init__()
        bn = {"epsilon": arch.bn_epsilon, "momentum": momentum, "kernels": kernels, "folded": folded}
        self.stem = ConvBN(3, arch.stem_channels, 3, stride=arch.stem_stride, **bn)
        self.blocks = nn.SequentialCell([create_block(block, **bn) for block in arch.blocks])
        self.head = ConvBN(arch.blocks[-1].out_channels, arch.head_channels, 1, **bn)
        bound = 1 / math.sqrt(arch.head_channels)
        self.classifier = nn.Dense(arch.head_channels, num_classes, weight_init=Uniform(bound), bias_init="zeros")

    def construct(self, x: Tensor, dropout: Optional[Tensor] = None) -> Tensor:
        """Logits: (N, 3, H, W) -> (N, num_classes).

        Args:
            dropout: factors of the pooled features, (N, head_channels): 0 where a feature is dropped.
        """
        return self.classify(self.blocks(self.stem(x)), dropout)

    def classify(self, x: Tensor, dropout: Optional[Tensor] = None) -> Tensor:
        """Logits from the output of the last block: (N, C, H, W) -> (N, num_classes)."""
        x = ops.mean(self.head(x), (2, 3))
        if dropout is not None:
            x = x * dropout.astype(x.dtype)
        return self.classifier(x)
