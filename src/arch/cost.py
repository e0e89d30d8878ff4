"""Parameters and multiply-adds of an architecture, by plain arithmetic.

Counted as the field does: trainable parameters (convolutions, BN scale and shift, classifier), and
multiply-adds of convolutions and classifier. Imports no framework.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

from src.arch.architecture import Architecture
from src.arch.blocks import AnyBlock, ConvLayer, ShuffleBlock

# What a search may trade for accuracy: latency by a table, or what is counted here.
ArithmeticCost = Literal["macs", "params"]
CostName = Literal["latency", "macs", "params"]

Size: TypeAlias = tuple[int, int]  # height and width, in pixels


class Cost(NamedTuple):
    """Trainable parameters and multiply-adds for one image."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]  # a tuple's + would append
        return Cost(self.params + other.params, self.macs + other.macs)


def conv_out(size: int, stride: int) -> int:
    """Output side of a convolution with symmetric padding of half its kernel."""
    return -(-size // stride)


def input_sizes(strides: Iterable[int], image_size: Size) -> list[Size]:
    """Size of the input of each layer, and last that of the output of all.

    Args:
        strides: of the layers, one after the other.
        image_size: input of the first layer.
    """
    sizes = [image_size]
    for stride in strides:
        height, width = sizes[-1]
        sizes.append((conv_out(height, stride), conv_out(width, stride)))
    return sizes


def conv_bn_cost(
    kernel_size: int, in_channels: int, out_channels: int, pixels: int, groups: int = 1
) -> Cost:
    """A convolution without bias, followed by batch normalisation, for ``pixels`` outputs."""
    weights = kernel_size**2 * in_channels * out_channels // groups
    # Scale and shift of the normalisation are 2 parameters per channel. It costs no multiply-adds,
    # as inference has it folded into the convolution.
    return Cost(weights + 2 * out_channels, weights * pixels)


def _chain_cost(layers: tuple[ConvLayer, ...], size: Size) -> Cost:
    """Layers one after the other, on an input of ``size``."""
    cost = Cost(0, 0)
    outputs = input_sizes((layer.stride for layer in layers), size)[1:]
    for layer, output in zip(layers, outputs, strict=True):
        cost += conv_bn_cost(
            layer.kernel_size,
            layer.in_channels,
            layer.out_channels,
            math.prod(output),
            layer.groups,
        )
    return cost


def block_cost(block: AnyBlock, height: int, width: int) -> Cost:
    """A block on an input of ``height`` x ``width``."""
    if isinstance(block, ShuffleBlock):
        size = height, width
        return _chain_cost(block.branch, size) + _chain_cost(block.projection, size)
    # The expansion sees the block's input, what follows it the output of the strided convolution.
    pixels_in = height * width
    pixels_out = conv_out(height, block.stride) * conv_out(width, block.stride)
    mid = block.mid_channels
    cost = conv_bn_cost(block.kernel_size, mid, mid, pixels_out, groups=mid)
    cost += conv_bn_cost(1, mid, block.out_channels, pixels_out)
    if block.expansion != 1:
        cost += conv_bn_cost(1, block.in_channels, mid, pixels_in)
    if block.se_channels:
        # Two 1x1 convolutions with biases, on one pixel.
        weights = 2 * mid * block.se_channels
        cost += Cost(weights + mid + block.se_channels, weights)
    return cost


def layer_costs(
    arch: Architecture, num_classes: int = 1000, image_size: Size | None = None
) -> list[tuple[str, Cost]]:
    """Cost of each layer, in order, under the name that it has in the network.

    Args:
        arch: the network.
        num_classes: outputs of the classifier.
        image_size: height and width in pixels; the architecture's own where omitted.
    """
    # The image, the input of each block, the output of the last block.
    _, *inputs, last = input_sizes(arch.strides, image_size or (arch.image_size, arch.image_size))
    after_stem = inputs[0]
    layers = [("stem", conv_bn_cost(3, 3, arch.stem_channels, math.prod(after_stem)))]
    for index, (block, size) in enumerate(zip(arch.blocks, inputs, strict=True)):
        layers.append((f"blocks.{index}", block_cost(block, *size)))
    channels = arch.blocks[-1].out_channels
    layers.append(("head", conv_bn_cost(1, channels, arch.head_channels, math.prod(last))))
    weights = arch.head_channels * num_classes
    layers.append(("classifier", Cost(weights + num_classes * arch.classifier_bias, weights)))
    return layers


def network_cost(
    arch: Architecture, num_classes: int = 1000, image_size: Size | None = None
) -> Cost:
    """Cost of the whole network for one image; arguments as those of ``layer_costs``."""
    return sum((cost for _, cost in layer_costs(arch, num_classes, image_size)), Cost(0, 0))
