"""The network of any architecture, as MindSpore cells.

Parameter names follow the layers of ``src.cost.layer_costs``: ``stem.conv.weight``,
``blocks.3.expand.bn.gamma``, ``blocks.3.depthwise.conv.weight``, ``head...``, ``classifier.bias``.
"""
from __future__ import annotations

import math
from typing import Any, Optional

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform

from src.architecture import AnyBlock, Architecture, Block, ShuffleBlock
from src.kernels import BatchNormReLU, DepthwiseConv2d, Float32Cell, available, mbconv_operator
from src.layers import ConvBN
from src.shuffle_blocks import CLASSIFIER_SIGMA, ShuffleUnit, first_sigma


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


def create_block(block: AnyBlock, *, kernels: bool = False, folded: bool = False, **bn) -> nn.Cell:
    """The cell of a block, in the form that inference likes best where ``folded``; ``bn`` as in ``MBConv``."""
    if isinstance(block, ShuffleBlock):
        return ShuffleUnit(block, kernels=kernels, folded=folded, **bn)
    fused = folded and kernels and available() and not block.se_channels
    return (FusedMBConv if fused else MBConv)(block, kernels=kernels, folded=folded, **bn)


class SPNASNet(nn.Cell):
    """Classifier of an architecture.

    Works for any image size that its strides leave at least one pixel of (global average pooling). Shuffle blocks, and
    the stem, head and classifier around them, start from the weights of ShuffleNetV2's training, others from MnasNet's.

    Args:
        affine: whether scale and shift of batch normalisation are trained, or stay 1 and 0.
        momentum: weight of the old value in the moving statistics of batch normalisation.
        kernels: use the project's CPU operators where they can be used; parameters are the same.
        folded: for inference, with the parameters that ``src.folding`` makes.
    """

    def __init__(self, arch: Architecture, num_classes: int, *, momentum: float = 0.9, affine: bool = True,
                 kernels: bool = False, folded: bool = False) -> None:
        super().__init__()
        bn = {"epsilon": arch.bn_epsilon, "momentum": momentum, "affine": affine, "kernels": kernels, "folded": folded}
        channels, init = arch.blocks[-1].out_channels, Uniform(1 / math.sqrt(arch.head_channels))
        ends = {"relu": arch.activation == "relu", "relu6": arch.activation == "relu6", **bn}
        stem, head = dict(ends), dict(ends)
        if isinstance(arch.blocks[0], ShuffleBlock):
            stem["sigma"], head["sigma"], init = first_sigma(3), first_sigma(channels), Normal(CLASSIFIER_SIGMA)
        self.stem = ConvBN(3, arch.stem_channels, 3, stride=arch.stem_stride, **stem)
        self.blocks = self._create_blocks(arch, bn)
        self.head = ConvBN(channels, arch.head_channels, 1, **head)
        self.classifier = nn.Dense(arch.head_channels, num_classes, weight_init=init, bias_init="zeros",
                                   has_bias=arch.classifier_bias)

    def _create_blocks(self, arch: Architecture, bn: dict[str, Any]) -> nn.Cell:
        return nn.SequentialCell([create_block(block, **bn) for block in arch.blocks])

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
