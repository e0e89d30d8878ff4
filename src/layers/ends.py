"""The layers around the blocks: stem and head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from mindspore import Tensor, ops

from src.arch.architecture import Architecture
from src.arch.blocks import Block
from src.kernels import (
    KERNEL_SIZES,
    STRIDES,
    Float32Cell,
    head_operator,
    hold_operands,
    move_statistics,
    operator_options,
    operator_pair,
    stem_operator,
    supports_bfloat16,
)
from src.layers.conv_bn import CellOptions, ConvBN, LayerOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

COLORS = 3  # channels of images
STEM_KERNEL = 3
RELU6_CEILING = 6.0


def supports_fusion(arch: Architecture) -> bool:
    """Whether the operators of stem, MBConv blocks and head know a network (``CellOptions``)."""
    return arch.stem_stride in STRIDES and all(
        isinstance(block, Block) and block.kernel_size in KERNEL_SIZES and block.stride in STRIDES
        for block in arch.blocks
    )


def trains_in_bfloat16(arch: Architecture) -> bool:
    """Whether these operators train a network in bfloat16: on this processor, all of its blocks."""
    return (
        supports_bfloat16()
        and supports_fusion(arch)
        and not any(isinstance(block, Block) and block.se_channels for block in arch.blocks)
    )


class End(ConvBN, Float32Cell):
    """A ``ConvBN`` that may be one operator with all that belongs to it.

    The activation of an architecture is that of stem and head; MBConv blocks have ReLU.
    """

    def __init__(
        self,
        arch: Architecture,
        shape: tuple[int, int, int],
        stride: int,
        sigma: float | None,
        operator: Callable[[str], ops.Custom],
        *,
        fused: bool = False,
        bfloat16: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        if fused:
            options["kernels"] = False  # the layer then computes only where the operator cannot
        super().__init__(
            *shape,
            stride=stride,
            relu=arch.activation == "relu",
            relu6=arch.activation == "relu6",
            sigma=sigma,
            **options,
        )
        hold_operands(self, own=self.operands())
        self.fused = fused
        self.folded = options.get("folded", False)
        self.options = operator_options(
            options.get("epsilon", 1e-5),
            options.get("momentum", 0.9),
            ceiling=RELU6_CEILING if arch.activation == "relu6" else math.inf,
        )
        self.bfloat16 = bfloat16
        if fused:
            self.train_operator, self.infer_operator = operator_pair(
                operator, folded=self.folded, bfloat16=bfloat16
            )

    def operate(self, x: Tensor) -> Tensor:
        """By the operator."""
        if not self.training or self.folded:
            return self.infer_operator(x, *self.own, self.options)
        results = self.train_operator(x, *self.own, self.options)
        move_statistics(self.own[-2:], results[-2], results[-1])
        return results[0]


class Stem(End):
    """The first convolution.

    Args:
        arch: gives its sizes.
        sigma: standard deviation of the first weights.
        options: of a ``ConvBN``.
    """

    def __init__(
        self, arch: Architecture, sigma: float | None = None, **options: Unpack[CellOptions]
    ) -> None:
        shape = (COLORS, arch.stem_channels, STEM_KERNEL)
        super().__init__(
            arch,
            shape,
            arch.stem_stride,
            sigma,
            lambda kind: stem_operator(kind, arch.stem_stride),
            **options,
        )

    def construct(self, x: Tensor) -> Tensor:  # type: ignore[override]  # takes no other weight
        """Images (N, 3, H, W) -> (N, C, H', W'), with ``fused`` and float32 channels last."""
        if self.fused and self.applies(x, self.own[0]):
            return self.operate(x)
        return super().construct(x)


class Head(End):
    """The last convolution, and the mean over the pixels.

    Args:
        arch: gives its sizes.
        sigma: standard deviation of the first weights.
        options: of a ``ConvBN``.
    """

    def __init__(
        self, arch: Architecture, sigma: float | None = None, **options: Unpack[CellOptions]
    ) -> None:
        shape = (arch.blocks[-1].out_channels, arch.head_channels, 1)
        super().__init__(arch, shape, 1, sigma, head_operator, **options)

    def construct(self, x: Tensor) -> Tensor:  # type: ignore[override]  # takes no other weight
        """What the last block gives -> (N, head_channels)."""
        if self.fused and self.applies(x, self.own[0]):
            return self.operate(x)
        return ops.mean(super().construct(x), (2, 3))
