"""The network of any architecture, as MindSpore cells.

Parameter names follow the layers of ``src.arch.cost.layer_costs``: ``stem.conv.weight``,
``blocks.3.expand.bn.gamma``, ``blocks.3.depthwise.conv.weight``, ``head...``, ``classifier.bias``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform

from src.arch.architecture import Architecture
from src.arch.blocks import ShuffleBlock
from src.layers.conv_bn import ConvBN
from src.layers.mbconv import create_block
from src.layers.shuffle import CLASSIFIER_SIGMA, first_sigma


class SPNASNet(nn.Cell):
    """Classifier of an architecture.

    Works for any image size that its strides leave at least one pixel of (global average pooling).
    Shuffle blocks, and the stem, head and classifier around them, start from the weights of
    ShuffleNetV2's training, others from MnasNet's.

    Args:
        affine: whether scale and shift of batch normalisation are trained, or stay 1 and 0.
        momentum: weight of the old value in the moving statistics of batch normalisation.
        kernels: use the project's CPU operators where they can be used; parameters are the same.
        folded: for inference, with the parameters that ``src.spnasnet.fold_batch_norm`` makes.
    """

    def __init__(
        self,
        arch: Architecture,
        num_classes: int,
        *,
        momentum: float = 0.9,
        affine: bool = True,
        kernels: bool = False,
        folded: bool = False,
    ) -> None:
        super().__init__()
        bn = {
            "epsilon": arch.bn_epsilon,
            "momentum": momentum,
            "affine": affine,
            "kernels": kernels,
            "folded": folded,
        }
        channels, init = arch.blocks[-1].out_channels, Uniform(1 / math.sqrt(arch.head_channels))
        ends = {"relu": arch.activation == "relu", "relu6": arch.activation == "relu6", **bn}
        stem, head = dict(ends), dict(ends)
        if isinstance(arch.blocks[0], ShuffleBlock):
            stem["sigma"], head["sigma"], init = (
                first_sigma(3),
                first_sigma(channels),
                Normal(CLASSIFIER_SIGMA),
            )
        self.stem = ConvBN(3, arch.stem_channels, 3, stride=arch.stem_stride, **stem)
        self.blocks = self._create_blocks(arch, bn)
        self.head = ConvBN(channels, arch.head_channels, 1, **head)
        self.classifier = nn.Dense(
            arch.head_channels,
            num_classes,
            weight_init=init,
            bias_init="zeros",
            has_bias=arch.classifier_bias,
        )

    def _create_blocks(self, arch: Architecture, bn: dict[str, Any]) -> nn.Cell:
        return nn.SequentialCell([create_block(block, **bn) for block in arch.blocks])

    def construct(self, x: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Logits: (N, 3, H, W) -> (N, num_classes).

        Args:
            dropout: factors of the pooled features, (N, head_channels): 0 where a feature is
                dropped.
        """
        return self.classify(self.blocks(self.stem(x)), dropout)

    def classify(self, x: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Logits from the output of the last block: (N, C, H, W) -> (N, num_classes)."""
        x = ops.mean(self.head(x), (2, 3))
        if dropout is not None:
            x = x * dropout.astype(x.dtype)
        return self.classifier(x)


def fold_batch_norm(parameters: Mapping[str, np.ndarray], epsilon: float) -> dict[str, np.ndarray]:
    """Parameters of the folded network, ``SPNASNet(..., folded=True)``, from those of the trained one.

    With scale = gamma / sqrt(moving variance + epsilon), each ``conv.weight`` is multiplied by its
    scale and ``conv.bias`` = beta - moving mean * scale. Computed in float64.
    """
    folded = {name: value for name, value in parameters.items() if ".bn." not in name}
    for name in parameters:
        layer, found, _ = name.partition(".bn.gamma")
        if not found:
            continue
        gamma, beta, mean, variance = (
            parameters[f"{layer}.bn.{part}"].astype(np.float64)
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / np.sqrt(variance + epsilon)
        weight = parameters[f"{layer}.conv.weight"]
        folded[f"{layer}.conv.weight"] = (weight * scale[:, None, None, None]).astype(weight.dtype)
        folded[f"{layer}.conv.bias"] = (beta - mean * scale).astype(weight.dtype)
    return folded
