"""Parameters and multiply-adds of an architecture, by plain arithmetic.

Counted as the field does: trainable parameters (convolutions, BN scale and shift, classifier), and
multiply-adds of convolutions and classifier. Imports no framework.
"""

from __future__ import annotations

from typing import NamedTuple

from src.arch.architecture import Architecture
from src.arch.blocks import AnyBlock, ConvLayer, ShuffleBlock


class Cost(NamedTuple):
    """Trainable parameters and multiply-adds for one image."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(self.params + other.params, self.macs + other.macs)


def conv_out(size: int, stride: int) -> int:
    """Output side of a convolution with symmetric padding of half its kernel."""
    return -(-size // stride)


def conv_bn_cost(
    kernel_size: int, in_channels: int, out_channels: int, pixels: int, groups: int = 1
) -> Cost:
    """A convolution without bias over ``pixels`` output positions, followed by batch normalisation."""
    weights = kernel_size**2 * in_channels * out_channels // groups
    return Cost(weights + 2 * out_channels, weights * pixels)


def _chain_cost(layers: tuple[ConvLayer, ...], height: int, width: int) -> Cost:
    """Layers one after the other."""
    cost = Cost(0, 0)
    for layer in layers:
        height, width = conv_out(height, layer.stride), conv_out(width, layer.stride)
        cost += conv_bn_cost(
            layer.kernel_size, layer.in_channels, layer.out_channels, height * width, layer.groups
        )
    return cost


def block_cost(block: AnyBlock, height: int, width: int) -> Cost:
    """A block on an input of ``height`` x ``width``."""
    if isinstance(block, ShuffleBlock):
        return _chain_cost(block.branch, height, width) + _chain_cost(
            block.projection, height, width
        )
    pixels_in = height * width
    pixels_out = conv_out(height, block.stride) * conv_out(width, block.stride)
    mid = block.mid_channels
    cost = conv_bn_cost(block.kernel_size, mid, mid, pixels_out, groups=mid)
    cost += conv_bn_cost(1, mid, block.out_channels, pixels_out)
    if block.expansion != 1:
        cost += conv_bn_cost(1, block.in_channels, mid, pixels_in)
    if block.se_channels:
        weights = 2 * mid * block.se_channels
        cost += Cost(weights + mid + block.se_channels, weights)
    return cost


def layer_costs(
    arch: Architecture, num_classes: int = 1000, image_size: tuple[int, int] | None = None
) -> list[tuple[str, Cost]]:
    """Cost of each layer, in order, under the name it has in the network.

    Args:
        image_size: height and width in pixels; the architecture's own where omitted.
    """
    height, width = image_size or (arch.image_size, arch.image_size)
    height, width = conv_out(height, arch.stem_stride), conv_out(width, arch.stem_stride)
    layers = [("stem", conv_bn_cost(3, 3, arch.stem_channels, height * width))]
    for index, block in enumerate(arch.blocks):
        layers.append((f"blocks.{index}", block_cost(block, height, width)))
        height, width = conv_out(height, block.stride), conv_out(width, block.stride)
    channels = arch.blocks[-1].out_channels
    layers.append(("head", conv_bn_cost(1, channels, arch.head_channels, height * width)))
    weights = arch.head_channels * num_classes
    layers.append(("classifier", Cost(weights + num_classes * arch.classifier_bias, weights)))
    return layers


def network_cost(
    arch: Architecture, num_classes: int = 1000, image_size: tuple[int, int] | None = None
) -> Cost:
    """Cost of the whole network for one image."""
    return sum((cost for _, cost in layer_costs(arch, num_classes, image_size)), Cost(0, 0))
