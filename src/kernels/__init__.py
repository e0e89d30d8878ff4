"""CPU operators for what MindSpore runs slowly.

These are the stem, the MBConv blocks and the head of a network, each as one operator with its
normalisations (``src.kernels.block_operators``); layers of one-shot supernets, which compute one of
several blocks (``src.kernels.choice_operators``); for other blocks single layers: depthwise
convolution, batch normalisation with ReLU, small 1x1 convolutions, the convolution of images; and
the update of all weights (``src.kernels.update_operators``).

They are optional: ``available()`` says whether they can be used here, and everything works without
them, with the same parameters. They are compiled at first use (``src.kernels.build``) and are never
part of an exported model, which would otherwise hold the path of the compiled file: export builds
its network with ``kernels=False``.
"""

from src.errors import UserError
from src.kernels.block_operators import (
    block_operator,
    head_operator,
    operator_options,
    operator_pair,
    stem_operator,
)
from src.kernels.build import BFLOAT16_FLAG
from src.kernels.cells import (
    BatchNormReLU,
    ConvReLU,
    DepthwiseConv2d,
    Float32Cell,
    ImageConv2d,
    PointwiseConv2d,
    available,
    hold_operands,
    move_statistics,
    supports_bfloat16,
)
from src.kernels.choice_operators import ChosenBlock, chosen_momentum
from src.kernels.operators import KERNEL_SIZES, STRIDES
from src.kernels.update_operators import momentum_step

__all__ = [
    "BFLOAT16_FLAG",
    "KERNEL_SIZES",
    "STRIDES",
    "BatchNormReLU",
    "ChosenBlock",
    "ConvReLU",
    "DepthwiseConv2d",
    "Float32Cell",
    "ImageConv2d",
    "PointwiseConv2d",
    "available",
    "block_operator",
    "chosen_momentum",
    "head_operator",
    "hold_operands",
    "momentum_step",
    "move_statistics",
    "operator_options",
    "operator_pair",
    "stem_operator",
    "supports_bfloat16",
    "use_kernels",
]


def use_kernels(setting: str) -> bool:
    """Whether to build networks with the operators.

    Args:
        setting: ``cpu_kernels`` of the configuration: on, off, or auto for wherever they can be
            used.

    Raises:
        UserError: they are on but cannot be used here.
    """
    if setting == "on" and not available():
        raise UserError(
            "cpu_kernels is on, but the operators cannot be had on this device; leave it at auto"
        )
    return setting != "off" and available()
