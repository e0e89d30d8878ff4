"""MBConv blocks as cells, and the cell of any block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from mindspore import Tensor, nn, ops

from src.arch.blocks import AnyBlock, Block, ShuffleBlock
from src.kernels import (
    Float32Cell,
    block_operator,
    hold_operands,
    move_statistics,
    operator_options,
    operator_pair,
)
from src.layers.conv_bn import CellOptions, ConvBN, LayerOptions
from src.layers.shuffle import ShuffleUnit

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on


class SqueezeExcite(nn.Cell):
    """Weights of the channels from their spatial means (Hu et al., arXiv 1709.01507).

    Args:
        channels: of x.
        squeezed: channels between the two layers.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1, has_bias=True)
        self.expand = nn.Conv2d(squeezed, channels, 1, has_bias=True)

    def construct(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, channels, H, W)."""
        gate = ops.mean(x, (2, 3), True)  # (N, channels, 1, 1)
        return x * ops.sigmoid(self.expand(ops.relu(self.reduce(gate))))


class MBConv(Float32Cell):
    """Inverted bottleneck (Sandler et al., arXiv 1801.04381, as in MnasNet).

    Its decision is the part of the block that takes part, a tensor (3,): side of the kernel, the
    middle of the largest one; channels of the expansion, the first ones; and 1, or 0 where the
    block is left out. With MindSpore's layers it masks weights, which any device can do; the
    operator computes what is active alone. Statistics of what is not active mean nothing.

    Args:
        block: its sizes.
        fused: as one operator wherever tensors are float32; then images have channels last.
        bfloat16: see ``CellOptions``.
        options: of its ``ConvBN`` layers.
    """

    def __init__(
        self,
        block: Block,
        *,
        fused: bool = False,
        bfloat16: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        mid, k = block.mid_channels, block.kernel_size
        if fused:
            options["kernels"] = False  # these layers then compute only where the operator cannot
        self.expand: Any = None  # stays so for expansion 1
        if block.expansion != 1:
            self.expand = ConvBN(block.in_channels, mid, 1, **options)
        self.depthwise = ConvBN(mid, mid, k, stride=block.stride, groups=mid, **options)
        self.se = SqueezeExcite(mid, block.se_channels) if block.se_channels else None
        self.project = ConvBN(mid, block.out_channels, 1, relu=False, **options)
        hold_operands(
            self,
            first=() if self.expand is None else self.expand.operands(),
            wide=self.depthwise.operands(),
            last=self.project.operands(),
        )
        self.residual = block.residual
        self.fused, self.bfloat16 = fused, bfloat16
        self.folded = options.get("folded", False)
        if fused:
            expands = self.expand is not None
            self.train_operator, self.infer_operator = operator_pair(
                lambda kind: block_operator(kind, block.stride, expands=expands),
                folded=self.folded,
                bfloat16=bfloat16,
            )
            self.options = operator_options(
                options.get("epsilon", 1e-5),
                options.get("momentum", 0.9),
                residual=block.residual,
            )
            self.everything = Tensor(np.array([k, mid, 1], np.float32))
        # What masks are made of: each tap's distance to the middle, as the side of the smallest
        # kernel that has it, and each channel's number.
        side = 2 * np.abs(np.arange(k) - k // 2) + 1
        self.sides = Tensor(np.maximum(side, side[:, None])[None, None].astype(np.float32))
        self.numbers = Tensor(np.arange(mid, dtype=np.float32).reshape((1, -1, 1, 1)))

    def construct(
        self,
        x: Tensor,
        kernel: Tensor | None = None,
        projection: Tensor | None = None,
        presence: Tensor | None = None,
        decision: Tensor | None = None,
    ) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

        With ``fused`` and float32 both have channels last.

        Args:
            x: the input.
            kernel: in place of the depthwise convolution's weight, (mid_channels, 1, kernel_size,
                kernel_size).
            projection: in place of the projection's weight, (out_channels, mid_channels, 1, 1).
            presence: factor of what is added to x, (1,).
            decision: see above, (3,); in place of the other three.
        """
        own_kernel, own_projection = self.wide[0], self.last[0]
        if self.fused and self.applies(x, own_projection):
            return self.operate(
                x,
                own_kernel if kernel is None else kernel,
                own_projection if projection is None else projection,
                presence,
                decision,
            )
        if decision is not None:
            kernel = own_kernel * (self.sides <= decision[0]).astype(own_kernel.dtype)
            projection = own_projection * (self.numbers < decision[1]).astype(own_projection.dtype)
            presence = decision[2:] if self.residual else None
        y = self.depthwise(x if self.expand is None else self.expand(x), kernel)
        if self.se is not None:
            y = self.se(y)
        y = self.project(y, projection, presence)
        return x + y if self.residual else y

    def operate(
        self,
        x: Tensor,
        kernel: Tensor,
        projection: Tensor,
        presence: Tensor | None,
        decision: Tensor | None,
    ) -> Tensor:
        """The same by the operator: (N, H, W, in_channels) -> (N, H', W', out_channels)."""
        first, wide, last = self.first, self.wide[1:], self.last[1:]
        if presence is not None:
            # As part of gamma and beta the factor costs nothing per pixel.
            last = (last[0] * presence, last[1] * presence, *last[2:])
        decision = self.everything if decision is None else decision
        inputs = (x, *first, kernel, *wide, projection, *last, self.options, decision)
        if not self.training or self.folded:
            return self.infer_operator(*inputs)
        results = self.train_operator(*inputs)
        if len(first) > 0:
            move_statistics(first[-2:], results[-6], results[-5])
        move_statistics(wide[-2:], results[-4], results[-3])
        move_statistics(last[-2:], results[-2], results[-1])
        return results[0]


class GatedMBConv(MBConv):
    """A block with squeeze-and-excitation in a network of operators, which have none.

    It computes by single layers, between two transpositions.
    """

    def __init__(self, block: Block, **options: Unpack[LayerOptions]) -> None:
        super().__init__(block, **options)
        self.transpose = ops.Transpose()

    def construct(
        self,
        x: Tensor,
        kernel: Tensor | None = None,
        projection: Tensor | None = None,
        presence: Tensor | None = None,
        decision: Tensor | None = None,
    ) -> Tensor:
        """As an ``MBConv`` that is fused.

        Only ``x`` counts: no such block is searched, and its decision is all of it.
        """
        if not self.applies(x, self.last[0]):
            return super().construct(x)
        y = super().construct(self.transpose(x, (0, 3, 1, 2)))
        return self.transpose(y, (0, 2, 3, 1))


def create_block(block: AnyBlock, **options: Unpack[CellOptions]) -> nn.Cell:
    """The cell of a block.

    Args:
        block: its kind and sizes.
        options: of the network; ``fused`` and ``bfloat16`` for MBConv blocks only.
    """
    fused, bfloat16 = options.get("fused", False), options.get("bfloat16", False)
    own = ("fused", "bfloat16")
    layers = cast(LayerOptions, {key: value for key, value in options.items() if key not in own})
    if isinstance(block, ShuffleBlock):
        return ShuffleUnit(block, **layers)
    if fused and block.se_channels:
        return GatedMBConv(block, **layers)
    return MBConv(block, fused=fused, bfloat16=bfloat16, **layers)
