"""Networks of this project in PyTorch, as simple as possible: the reference of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from src.arch.architecture import Architecture
from src.arch.blocks import AnyBlock, Block, ConvLayer, ShuffleBlock
from src.arch.space import SearchSpace
from src.errors import UserError

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6}


class ConvBN(nn.Sequential):
    """Convolution, batch normalisation, and activation if the layer has one.

    Args:
        layer: its sizes.
        activation: kind of the activation.
        norm: options of the normalisation.
    """

    def __init__(self, layer: ConvLayer, activation: str = "relu", **norm: Any) -> None:
        conv = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.kernel_size // 2,
            groups=layer.groups,
            bias=False,
        )
        activations = [ACTIVATIONS[activation](inplace=True)] if layer.relu else []
        super().__init__(conv, nn.BatchNorm2d(layer.out_channels, **norm), *activations)


class MBConv(nn.Module):
    """An MBConv block."""

    def __init__(self, block: Block, **norm: Any) -> None:
        super().__init__()
        if block.se_channels:
            raise UserError("the benchmarks know no squeeze-and-excitation")
        mid = block.mid_channels
        layers = [
            ConvLayer(1, 1, block.in_channels, mid),
            ConvLayer(block.kernel_size, block.stride, mid, mid, groups=mid),
            ConvLayer(1, 1, mid, block.out_channels, relu=False),
        ]
        self.branch = nn.Sequential(
            *(ConvBN(layer, **norm) for layer in layers[1 if block.expansion == 1 else 0 :])
        )
        self.residual = block.residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (N, C, H, W) to (N, C', H / stride, W / stride)."""
        y = self.branch(x)
        return x + y if self.residual else y


class ShuffleUnit(nn.Module):
    """A ShuffleNetV2 block, or its Xception-like variant."""

    def __init__(self, block: ShuffleBlock, **norm: Any) -> None:
        super().__init__()
        self.branch = nn.Sequential(*(ConvBN(layer, **norm) for layer in block.branch))
        self.projection = nn.Sequential(*(ConvBN(layer, **norm) for layer in block.projection))
        self.stride = block.stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (N, C, H, W) to (N, C', H / stride, W / stride)."""
        if self.stride == 2:
            return torch.cat((self.projection(x), self.branch(x)), 1)
        # The channel shuffle of the block before: even channels pass by, odd ones are convolved.
        return torch.cat((x[:, ::2], self.branch(x[:, 1::2])), 1)


def create_block(block: AnyBlock, **norm: Any) -> nn.Module:
    """The module of a block."""
    return ShuffleUnit(block, **norm) if isinstance(block, ShuffleBlock) else MBConv(block, **norm)


class Pool(nn.Module):
    """Global average pooling: from (N, C, H, W) to (N, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Means over all pixels."""
        return x.mean((2, 3))


def create_network(arch: Architecture, num_classes: int) -> nn.Sequential:
    """The network of an architecture, with PyTorch's random weights."""
    last, width = arch.blocks[-1].out_channels, arch.head_channels
    stem, head = ConvLayer(3, arch.stem_stride, 3, arch.stem_channels), ConvLayer(1, 1, last, width)
    norm = {"eps": arch.bn_epsilon}
    return nn.Sequential(
        ConvBN(stem, arch.activation, **norm),
        *(create_block(block, **norm) for block in arch.blocks),
        ConvBN(head, arch.activation, **norm),
        Pool(),
        nn.Linear(width, num_classes, bias=arch.classifier_bias),
    )


def fold(network: nn.Module) -> nn.Module:
    """Fold batch normalisation into the convolutions before it; returns the network."""
    network.eval()
    for module in network.modules():
        if isinstance(module, ConvBN):
            module[0] = nn.utils.fusion.fuse_conv_bn_eval(module[0], module[1])
            module[1] = nn.Identity()
    return network


class OneShotSupernet(nn.Module):
    """Several blocks per layer, of which a path takes one; normalised without scale and shift."""

    def __init__(self, space: SearchSpace, num_classes: int) -> None:
        super().__init__()
        stem = ConvLayer(3, space.stem_stride, 3, space.stem_channels)
        head = ConvLayer(1, 1, space.layers[-1].out_channels, space.head_channels)
        self.stem = ConvBN(stem, "relu6", affine=False)
        self.blocks = nn.ModuleList(
            nn.ModuleList(create_block(layer.block(name), affine=False) for name in layer.names)
            for layer in space.block_layers
        )
        self.head = ConvBN(head, "relu6", affine=False)
        self.classifier = nn.Linear(space.head_channels, num_classes, bias=False)

    def forward(self, x: torch.Tensor, path: Sequence[int]) -> torch.Tensor:
        """Logits (N, classes) of the network that takes block ``path[i]`` in layer i."""
        x = self.stem(x)
        for blocks, choice in zip(self.blocks, path, strict=True):
            x = blocks[choice](x)
        return self.classifier(self.head(x).mean((2, 3)))
