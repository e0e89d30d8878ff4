"""MBConv blocks as cells, and the cell of any block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mindspore import Tensor, nn, ops

from src.arch.blocks import AnyBlock, Block, ShuffleBlock
from src.kernels import BatchNormReLU, DepthwiseConv2d, Float32Cell, available, mbconv_operator
from src.layers.conv_bn import ConvBN, LayerOptions
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


class MBConv(nn.Cell):
    """Inverted bottleneck (Sandler et al., arXiv 1801.04381, as in MnasNet).

    Args:
        block: its sizes.
        options: of its ``ConvBN`` layers.
    """

    def __init__(self, block: Block, **options: Unpack[LayerOptions]) -> None:
        super().__init__()
        mid = block.mid_channels
        self.expand: Any = None  # stays so for expansion 1
        if block.expansion != 1:
            self.expand = ConvBN(block.in_channels, mid, 1, **options)
        self.depthwise = ConvBN(
            mid, mid, block.kernel_size, stride=block.stride, groups=mid, **options
        )
        self.se = SqueezeExcite(mid, block.se_channels) if block.se_channels else None
        self.project = ConvBN(mid, block.out_channels, 1, relu=False, **options)
        self.residual = block.residual
        # Whether all between the expansion and the projection is one operator.
        self.fused = (
            self.expand is not None
            and isinstance(self.expand.bn, BatchNormReLU)
            and isinstance(self.depthwise.conv, DepthwiseConv2d)
        )

    def branch(
        self,
        x: Tensor,
        kernel: Tensor | None = None,
        projection: Tensor | None = None,
        presence: Tensor | None = None,
    ) -> Tensor:
        """The output without the residual.

        Args:
            x: (N, in_channels, H, W).
            kernel: in place of the depthwise convolution's weight, (mid_channels, 1, kernel_size,
                kernel_size).
            projection: in place of the projection's weight, (out_channels, mid_channels, 1, 1).
            presence: factor of the output, (1,).
        """
        # What lies between expansion and projection are the largest tensors of the network; as one
        # operator they are not stored (block_core_operators.h).
        if self.fused:
            y = self.depthwise.conv.fused_norm_conv_norm(
                self.expand.conv(x), self.expand.bn, self.depthwise.bn, kernel
            )
        else:
            y = self.depthwise(x if self.expand is None else self.expand(x), kernel)
        if self.se is not None:
            y = self.se(y)
        return self.project(y, projection, presence)

    def construct(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = self.branch(x)
        return x + y if self.residual else y


class FusedMBConv(MBConv, Float32Cell):
    """A folded ``MBConv`` without squeeze-and-excitation, as one CPU operator for float32."""

    def __init__(self, block: Block, **options: Unpack[LayerOptions]) -> None:
        super().__init__(block, **options)
        self.operator = mbconv_operator(block.stride, block.residual)

    def construct(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        depthwise, project = self.depthwise.conv, self.project.conv
        if not self.applies(x, project.weight):
            return super().construct(x)
        if self.expand is None:
            return self.operator(x, depthwise.weight, depthwise.bias, project.weight, project.bias)
        expand = self.expand.conv
        return self.operator(
            x,
            expand.weight,
            expand.bias,
            depthwise.weight,
            depthwise.bias,
            project.weight,
            project.bias,
        )


def create_block(block: AnyBlock, **options: Unpack[LayerOptions]) -> nn.Cell:
    """The cell of a block; with ``kernels`` and ``folded`` the whole block as one operator.

    Args:
        block: its kind and sizes.
        options: of its ``ConvBN`` layers.
    """
    if isinstance(block, ShuffleBlock):
        return ShuffleUnit(block, **options)
    # The operator has no squeeze-and-excitation: such blocks are made of single layers.
    folded, kernels = options.get("folded", False), options.get("kernels", False)
    if folded and kernels and available() and not block.se_channels:
        return FusedMBConv(block, **options)
    return MBConv(block, **options)
