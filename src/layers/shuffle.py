"""ShuffleNetV2 blocks as cells, in one-shot supernets and in the networks that are retrained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mindspore import Tensor, nn, ops

from src.arch.blocks import ConvLayer, ShuffleBlock
from src.kernels import BatchNormReLU, DepthwiseConv2d
from src.layers.conv_bn import ConvBN

CLASSIFIER_SIGMA = 0.01


def first_sigma(inputs: int) -> float:
    """Standard deviation of the first weights of a convolution with ``inputs`` channels a group.

    As ShuffleNetV2 is trained. Normalisation follows, so it sets how fast weights turn, not how
    large outputs are.
    """
    return 1 / inputs


class Chain(nn.SequentialCell):
    """Layers one after the other; with the CPU operators each depthwise convolution as one with the norms around it."""

    def __init__(self, layers: Sequence[ConvLayer], bn: dict[str, Any]) -> None:
        super().__init__(
            [
                ConvBN(
                    layer.in_channels,
                    layer.out_channels,
                    layer.kernel_size,
                    stride=layer.stride,
                    groups=layer.groups,
                    relu=layer.relu,
                    sigma=first_sigma(layer.in_channels // layer.groups),
                    **bn,
                )
                for layer in layers
            ]
        )
        # Whether a layer and the next are one operator but for the first one's convolution.
        self.joined = [
            layer.relu
            and isinstance(cell.bn, BatchNormReLU)
            and isinstance(following.conv, DepthwiseConv2d)
            for layer, cell, following in zip(layers, self, list(self)[1:])
        ] + [False]

    def construct(self, x: Tensor) -> Tensor:
        layers = self.cell_list
        for i, layer in enumerate(layers):
            if self.joined[i]:
                x = layers[i + 1].conv.fused_norm_conv_norm(
                    layer.conv(x), layer.bn, layers[i + 1].bn
                )
            elif i == 0 or not self.joined[i - 1]:
                x = layer(x)
        return x


class ShuffleUnit(nn.Cell):
    """A shuffle block: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        bn: epsilon, momentum, affine, kernels and folded of its ``ConvBN`` layers.
    """

    def __init__(self, block: ShuffleBlock, **bn) -> None:
        super().__init__()
        self.branch = Chain(block.branch, bn)
        self.projection = Chain(block.projection, bn) if block.stride == 2 else None
        # Primitives: the functions of the same names compile to many times as many nodes.
        self.concat, self.split = ops.Concat(1), ops.Split(2, 2)

    def construct(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            return self.concat((self.projection(x), self.branch(x)))
        kept, x = self.halves(x)
        return self.concat((kept, self.branch(x)))

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Channels of even and of odd number: the channel shuffle and the split of ShuffleNetV2 in one."""
        n, c, h, w = x.shape
        even, odd = self.split(x.reshape((n, c // 2, 2, h, w)))
        return even.reshape((n, c // 2, h, w)), odd.reshape((n, c // 2, h, w))
