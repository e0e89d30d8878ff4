"""What is measured: one block of a search space, or a whole network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.arch.architecture import Architecture
from src.arch.blocks import AnyBlock
from src.arch.cost import block_cost, network_cost

if TYPE_CHECKING:  # importing MindSpore takes seconds
    from mindspore import nn


@dataclass(frozen=True)
class Model:
    """A block or a whole network, for inputs of one shape.

    Attributes:
        name: unique among the models that are measured together; also the name of its model file.
        network: what is measured.
        shape: of the input, (N, C, H, W).
        num_classes: outputs of a whole network; unused for a block.
    """

    name: str
    network: AnyBlock | Architecture
    shape: tuple[int, int, int, int]
    num_classes: int = 0

    @property
    def million_weights(self) -> float:
        """Number of its parameters, in millions."""
        height, width = self.shape[2:]
        if isinstance(self.network, Architecture):
            cost = network_cost(self.network, self.num_classes, (height, width))
        else:
            cost = block_cost(self.network, height, width)
        return cost.params / 1e6

    def cell(self, *, kernels: bool = False, folded: bool = False) -> nn.Cell:
        """The MindSpore network in evaluation mode.

        Args:
            kernels: with the project's CPU operators.
            folded: with batch normalisation folded into the convolutions.
        """
        from src.layers.mbconv import create_block
        from src.spnasnet import SPNASNet

        if isinstance(self.network, Architecture):
            cell = SPNASNet(self.network, self.num_classes, kernels=kernels, folded=folded)
        else:
            cell = create_block(self.network, kernels=kernels, folded=folded)
        return cell.set_train(False)
