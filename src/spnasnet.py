"""The network of any architecture, as MindSpore cells.

Parameter names follow the layers of ``src.arch.cost.layer_costs``: ``stem.conv.weight``,
``blocks.3.expand.bn.gamma``, ``blocks.3.depthwise.conv.weight``, ``head...``, ``classifier.bias``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from mindspore import Tensor, nn
from mindspore.common.initializer import Normal, Uniform

from src.arch.architecture import Architecture
from src.arch.blocks import ShuffleBlock
from src.kernels import available
from src.layers.conv_bn import CellOptions, NetworkOptions
from src.layers.ends import COLORS, Head, Stem, supports_fusion, trains_in_bfloat16
from src.layers.mbconv import create_block
from src.layers.shuffle import CLASSIFIER_SIGMA, first_sigma

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on


class BlockNetwork(nn.Cell):
    """Stem, blocks, head and classifier: what networks and supernets have in common.

    How images pass the blocks is the ``construct`` of a subclass. Shuffle blocks, and the stem,
    head and classifier around them, start from the weights of ShuffleNetV2's training, others from
    MnasNet's.

    Args:
        arch: gives the sizes of stem, head and classifier.
        num_classes: number of logits.
        create_blocks: makes the cell of all blocks, from the options of their layers. It is a
            function since the order in which cells are created decides their first weights: stem,
            blocks, head, classifier.
        affine: whether scale and shift of batch normalisation are trained, or stay 1 and 0.
        momentum: weight of the old value in the moving statistics of batch normalisation.
        fusible: whether the operators know stem, blocks and head as one operator each.
        kernels: use the project's CPU operators where they can be used; parameters are the same.
        folded: for inference, with the parameters that ``fold_batch_norm`` makes.
        bfloat16: train in bfloat16 by these operators where they do (``trains_in_bfloat16``);
            parameters, statistics and logits are float32, as is all inference.
    """

    def __init__(
        self,
        arch: Architecture,
        num_classes: int,
        create_blocks: Callable[[CellOptions], nn.Cell],
        *,
        fusible: bool,
        momentum: float = 0.9,
        affine: bool = True,
        kernels: bool = False,
        folded: bool = False,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.fused = fused = kernels and available() and fusible
        options: CellOptions = {
            "epsilon": arch.bn_epsilon,
            "momentum": momentum,
            "affine": affine,
            "kernels": kernels,
            "folded": folded,
            "fused": fused,
            "bfloat16": bfloat16 and fused and trains_in_bfloat16(arch),
        }
        channels = arch.blocks[-1].out_channels
        stem_sigma, head_sigma = None, None
        classifier_init = Uniform(1 / math.sqrt(arch.head_channels))
        if isinstance(arch.blocks[0], ShuffleBlock):
            stem_sigma, head_sigma = first_sigma(COLORS), first_sigma(channels)
            classifier_init = Normal(CLASSIFIER_SIGMA)
        self.stem = Stem(arch, sigma=stem_sigma, **options)
        self.blocks = create_blocks(options)
        self.head = Head(arch, sigma=head_sigma, **options)
        self.classifier = nn.Dense(
            arch.head_channels,
            num_classes,
            weight_init=classifier_init,
            bias_init="zeros",
            has_bias=arch.classifier_bias,
        )

    def classify(self, x: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Logits from the output of the last block, (N, num_classes).

        Args:
            x: the output of the last block.
            dropout: factors of the pooled features, (N, head_channels): 0 where a feature is
                dropped.
        """
        x = self.head(x)  # (N, head_channels)
        if dropout is not None:
            x = x * dropout.astype(x.dtype)
        return self.classifier(x)


class SPNASNet(BlockNetwork):
    """Classifier of an architecture.

    Works for any image size that its strides leave at least one pixel of (global average pooling).

    Args:
        arch: the architecture.
        num_classes: number of logits.
        options: as in ``BlockNetwork``.
    """

    def __init__(
        self, arch: Architecture, num_classes: int, **options: Unpack[NetworkOptions]
    ) -> None:
        def create_blocks(cell_options: CellOptions) -> nn.Cell:
            return nn.SequentialCell([create_block(block, **cell_options) for block in arch.blocks])

        fusible = supports_fusion(arch)
        super().__init__(arch, num_classes, create_blocks, fusible=fusible, **options)

    def construct(
        self, x: Tensor, dropout: Tensor | None = None, decisions: Tensor | None = None
    ) -> Tensor:
        """Logits: (N, 3, H, W) -> (N, num_classes).

        Args:
            x: normalised images.
            dropout: see ``classify``.
            decisions: what part of each block counts, (blocks, 3), see ``MBConv``; everything
                where omitted.
        """
        x = self.stem(x)
        if decisions is None:
            return self.classify(self.blocks(x), dropout)
        for i, block in enumerate(self.blocks):
            x = block(x, None, None, None, decisions[i])
        return self.classify(x, dropout)


def fold_batch_norm(parameters: Mapping[str, np.ndarray], epsilon: float) -> dict[str, np.ndarray]:
    """Fold batch normalisation, with its moving statistics, into the convolutions.

    With scale = gamma / sqrt(moving variance + epsilon), each ``conv.weight`` is multiplied by its
    scale and ``conv.bias`` = beta - moving mean * scale. Computed in float64.

    Args:
        parameters: those of a trained network, by name.
        epsilon: of its batch normalisation.

    Returns:
        Parameters of the folded network, ``SPNASNet(..., folded=True)``.
    """
    # What belongs to no normalisation stays: the classifier, squeeze-and-excitation.
    folded = {name: value for name, value in parameters.items() if ".bn." not in name}
    for name in parameters:
        layer, found, _ = name.partition(".bn.gamma")
        if not found:
            continue
        # float64, so that folding adds no rounding but that of the result.
        gamma, beta, mean, variance = (
            parameters[f"{layer}.bn.{part}"].astype(np.float64)
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / np.sqrt(variance + epsilon)
        weight = parameters[f"{layer}.conv.weight"]
        # Every kind of convolution has its outputs in the first dimension, as scale has.
        folded[f"{layer}.conv.weight"] = (weight * scale[:, None, None, None]).astype(weight.dtype)
        folded[f"{layer}.conv.bias"] = (beta - mean * scale).astype(weight.dtype)
    return folded
