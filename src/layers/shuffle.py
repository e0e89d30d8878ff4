"""ShuffleNetV2 blocks as cells, in one-shot supernets and in the networks that are retrained."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.arch.blocks import ConvLayer, ShuffleBlock
from src.kernels import (
    BatchNormReLU,
    ChosenBlock,
    DepthwiseConv2d,
    Float32Cell,
    hold_operands,
    operator_options,
)
from src.layers.conv_bn import ConvBN, LayerOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

# Standard deviation of the classifier's first weights in ShuffleNetV2's training.
CLASSIFIER_SIGMA = 0.01


def first_sigma(inputs: int) -> float:
    """Standard deviation of the first weights of a convolution, as ShuffleNetV2 is trained.

    Normalisation follows, so it sets how fast the weights' direction changes, not how large outputs
    are.

    Args:
        inputs: input channels per group.
    """
    return 1 / inputs


class Chain(nn.SequentialCell):
    """Layers one after the other.

    With the CPU operators each depthwise convolution is one operator with the normalisations around
    it.
    """

    def __init__(self, layers: Sequence[ConvLayer], options: LayerOptions) -> None:
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
                    **options,
                )
                for layer in layers
            ]
        )
        cells = list(self)
        # Whether a layer's normalisation and the next layer, which has no ReLU, are one operator.
        self.joined = [
            (layer.relu, following.relu) == (True, False)
            and isinstance(cell.bn, BatchNormReLU)
            and isinstance(next_cell.conv, DepthwiseConv2d)
            for (layer, cell), (following, next_cell) in pairwise(zip(layers, cells, strict=True))
        ] + [False]

    def construct(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> what the last layer gives."""
        layers = self.cell_list  # the compiler unrolls the loop
        for i, layer in enumerate(layers):
            if self.joined[i]:
                x = layers[i + 1].conv.fused_norm_conv_norm(
                    layer.conv(x), layer.bn, layers[i + 1].bn
                )
            elif i == 0 or not self.joined[i - 1]:  # otherwise computed with the layer before
                x = layer(x)
        return x


class ShuffleUnit(nn.Cell):
    """A shuffle block.

    Args:
        block: its sizes.
        options: of its ``ConvBN`` layers.
    """

    def __init__(self, block: ShuffleBlock, **options: Unpack[LayerOptions]) -> None:
        super().__init__()
        self.branch = Chain(block.branch, options)
        self.projection = Chain(block.projection, options) if block.stride == 2 else None
        # Primitives: the functions of the same names compile to many times as many nodes.
        self.concat = ops.Concat(1)
        self.split = ops.Split(2, 2)

    def layers(self) -> list[ConvBN]:
        """All of them, the branch's first."""
        return [*self.branch, *(self.projection or ())]

    def construct(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        if self.projection is not None:
            return self.concat((self.projection(x), self.branch(x)))
        kept, x = self.halves(x)
        return self.concat((kept, self.branch(x)))

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Channels of even and of odd number, each (N, C / 2, H, W).

        This is the channel shuffle of ShuffleNetV2 and the split behind it in one.
        """
        n, c, h, w = x.shape
        # Channel 2 i + j becomes [i, j], of which the split takes j apart.
        even, odd = self.split(x.reshape((n, c // 2, 2, h, w)))
        return even.reshape((n, c // 2, h, w)), odd.reshape((n, c // 2, h, w))


class ShuffleLayer(nn.SequentialCell, Float32Cell):
    """A layer that is one of several shuffle blocks, each with weights of its own.

    With MindSpore's layers the compiled graph has all blocks and switches to one of them. The
    operator takes the number of the block as an input.

    Args:
        blocks: those it chooses from, all of one stride and of equal channels.
        fused: as one operator wherever tensors are float32; then images have channels last. Only
            without ``affine``.
        bfloat16: multiply in bfloat16 by the operator, which then has no gradient.
        options: of the ``ConvBN`` layers.
    """

    def __init__(
        self,
        blocks: Sequence[ShuffleBlock],
        *,
        fused: bool = False,
        bfloat16: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        if fused:
            options["kernels"] = False  # these layers then compute only where the operator cannot
        units = [ShuffleUnit(block, **options) for block in blocks]
        super().__init__(units)
        self.fused = fused
        layers = [layer for unit in units for layer in unit.layers()]
        hold_operands(
            self,
            weights=tuple(layer.conv.weight for layer in layers),
            moving=tuple(
                moving
                for layer in layers
                for moving in (layer.bn.moving_mean, layer.bn.moving_variance)
            ),
        )
        if fused:
            counts = tuple((len(block.branch), len(block.projection)) for block in blocks)
            self.counts = Tensor(np.array(counts, np.float32))
            self.options = operator_options(
                options.get("epsilon", 1e-5), options.get("momentum", 0.9)
            )
            self.block = ChosenBlock(blocks[0].stride, counts, bfloat16=bfloat16)

    def construct(self, x: Tensor, choice: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

        With ``fused`` and float32 both have channels last.

        Args:
            x: the input.
            choice: number of the block, () of int32.
        """
        if not (self.fused and self.applies(x, self.weights[0])):
            return self.cell_list[choice](x)
        number = choice.astype(ms.float32)
        return self.block(x, self.weights, self.moving, self.options, self.counts, number)[0]
