"""The one-shot supernet in PyTorch, as simple as possible: the reference of its benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from src.arch.blocks import ConvLayer, ShuffleBlock
from src.arch.space import SearchSpace


def conv_bn(layer: ConvLayer, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolution, batch normalisation without scale and shift, activation if the layer has one."""
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.kernel_size // 2,
        groups=layer.groups,
        bias=False,
    )
    # As src.layers.shuffle.first_sigma.
    nn.init.normal_(conv.weight, 0, 1 / conv.weight.shape[1])
    norm = nn.BatchNorm2d(layer.out_channels, affine=False)
    return nn.Sequential(conv, norm, *([activation(inplace=True)] if layer.relu else []))


class ShuffleUnit(nn.Module):
    """A ShuffleNetV2 block, or its Xception-like variant."""

    def __init__(self, block: ShuffleBlock) -> None:
        super().__init__()
        self.branch = nn.Sequential(*map(conv_bn, block.branch))
        self.projection = (
            nn.Sequential(*map(conv_bn, block.projection)) if block.stride == 2 else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (N, C, H, W) to (N, C', H / stride, W / stride)."""
        # The channel shuffle of the block before: even channels pass by, odd ones are convolved.
        kept = x[:, ::2] if self.projection is None else self.projection(x)
        return torch.cat((kept, self.branch(x[:, 1::2] if self.projection is None else x)), 1)


class OneShotSupernet(nn.Module):
    """Several blocks per layer, of which a path takes one."""

    def __init__(self, space: SearchSpace, num_classes: int) -> None:
        super().__init__()
        width, head = space.layers[-1].out_channels, space.head_channels
        self.stem = conv_bn(ConvLayer(3, space.stem_stride, 3, space.stem_channels), nn.ReLU6)
        self.blocks = nn.ModuleList(
            nn.ModuleList(ShuffleUnit(layer.block(name)) for name in layer.names)
            for layer in space.block_layers
        )
        self.head = conv_bn(ConvLayer(1, 1, width, head), nn.ReLU6)
        self.classifier = nn.Linear(head, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, 0, 0.01)

    def forward(self, x: torch.Tensor, path: Sequence[int]) -> torch.Tensor:
        """Logits (N, classes) of the network that takes block ``path[i]`` in layer i."""
        x = self.stem(x)
        for blocks, choice in zip(self.blocks, path, strict=True):
            x = blocks[choice](x)
        return self.classifier(self.head(x).mean((2, 3)))
