"""Search spaces as values: which blocks each layer of a supernet may become.

A space is a JSON file: stem and head as in an architecture, and a list of layers, each either a
fixed block string or the choices of a searched layer. Choices have names: ``K3E6`` is a 3x3 kernel
with expansion 6, ``SKIP`` an absent layer. Layers of one-shot spaces choose among whole blocks:
``K5`` is a 5x5 shuffle block, ``X`` the Xception-like one. ``decisions`` are one name a searched
layer. This module imports no framework.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from src.arch.architecture import OPTIONAL_KEYS, Architecture, optional_values
from src.arch.blocks import (
    KERNEL_SIZES,
    AnyBlock,
    ArchitectureError,
    Block,
    ShuffleBlock,
    XceptionBlock,
    decode_block,
    encode_block,
)
from src.errors import UserError
from src.files import check_keys, check_record, find_file, read_json

SHIPPED = Path(__file__).parent / "spaces"
FORMAT = "spnas-space"
VERSION = 1
SKIP = "SKIP"


class SpaceError(UserError):
    """A search space, or decisions within one, that describe no network."""


def choice_name(kernel_size: int, expansion: float) -> str:
    """For example K5E6."""
    return f"K{kernel_size}E{expansion:g}"


@dataclass(frozen=True)
class SearchedLayer:
    """A layer whose kernel size, expansion ratio and presence are searched.

    Attributes:
        kernel_sizes, expansions: ascending, so that each choice is nested in the next.
        skippable: whether the layer may be absent.
    """

    stride: int
    in_channels: int
    out_channels: int
    kernel_sizes: tuple[int, ...]
    expansions: tuple[float, ...]
    skippable: bool

    def __post_init__(self) -> None:
        if not self.kernel_sizes or any(size not in KERNEL_SIZES for size in self.kernel_sizes):
            raise SpaceError(
                f"kernel sizes {list(self.kernel_sizes)} are not some of {list(KERNEL_SIZES)}"
            )
        for what, values in (("kernel sizes", self.kernel_sizes), ("expansions", self.expansions)):
            if not values or any(a >= b for a, b in zip(values, values[1:])):
                raise SpaceError(f"{what} {list(values)} are not nested: they must ascend")
        if self.expansions[0] <= 1:
            raise SpaceError(f"expansions {list(self.expansions)} must be above 1")
        if self.skippable and (self.stride != 1 or self.in_channels != self.out_channels):
            raise SpaceError(
                f"a layer of stride {self.stride} from {self.in_channels} to {self.out_channels} channels "
                "cannot be skipped: without it the next layer, and with it its stage, would not fit"
            )
        for expansion in self.expansions:
            self.block(choice_name(self.kernel_sizes[-1], expansion))  # whole numbers of channels

    @property
    def choices(self) -> dict[str, tuple[int, float]]:
        """Kernel size and expansion of each choice by name, smaller ones first; without SKIP."""
        return {
            choice_name(size, expansion): (size, expansion)
            for size in self.kernel_sizes
            for expansion in self.expansions
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all choices, SKIP last where it is one."""
        return (*self.choices, *((SKIP,) if self.skippable else ()))

    @property
    def largest(self) -> str:
        return choice_name(self.kernel_sizes[-1], self.expansions[-1])

    def block(self, name: str) -> Block:
        """The block of a choice other than SKIP."""
        kernel_size, expansion = self.choices[name]
        return Block(kernel_size, self.stride, expansion, self.in_channels, self.out_channels)

    def to_dict(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_sizes": list(self.kernel_sizes),
            "expansions": list(self.expansions),
            "skippable": self.skippable,
        }


# In the order of their numbers in arXiv 1904.00420: 0, 1, 2 and 3.
BLOCK_CHOICES = {
    "K3": (ShuffleBlock, 3),
    "K5": (ShuffleBlock, 5),
    "K7": (ShuffleBlock, 7),
    "X": (XceptionBlock, 3),
}


@dataclass(frozen=True)
class BlockLayer:
    """A layer that is one of several blocks, each with weights of its own.

    Attributes:
        names: of the blocks, from BLOCK_CHOICES and in that order.
    """

    stride: int
    in_channels: int
    out_channels: int
    names: tuple[str, ...]

    skippable = False

    def __post_init__(self) -> None:
        if not self.names or [name for name in BLOCK_CHOICES if name in self.names] != list(
            self.names
        ):
            raise SpaceError(
                f"blocks {list(self.names)} are not some of {list(BLOCK_CHOICES)}, in this order"
            )
        self.block(self.names[0])  # channels that fit

    @property
    def choices(self) -> dict[str, tuple[type[ShuffleBlock], int]]:
        """Kind of block and kernel size of each choice by name."""
        return {name: BLOCK_CHOICES[name] for name in self.names}

    @property
    def largest(self) -> str:
        return self.names[-1]

    def block(self, name: str) -> ShuffleBlock:
        """The block of a choice."""
        kind, kernel_size = BLOCK_CHOICES[name]
        return kind(kernel_size, self.stride, self.in_channels, self.out_channels)

    def to_dict(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "blocks": list(self.names),
        }


Layer = Union[AnyBlock, SearchedLayer, BlockLayer]
_SEARCHED = (SearchedLayer, BlockLayer)


@dataclass(frozen=True)
class SearchSpace:
    """Stem, layers and head of a supernet; attributes as in ``Architecture``."""

    name: str
    image_size: int
    layers: tuple[Layer, ...]
    stem_channels: int = 32
    stem_stride: int = 2
    head_channels: int = 1280
    bn_epsilon: float = 1e-5
    activation: str = "relu"
    classifier_bias: bool = True
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.searched:
            raise SpaceError(f"space '{self.name}' has no searched layer")
        self.largest()  # checks that the channels fit

    @property
    def searched(self) -> dict[str, SearchedLayer | BlockLayer]:
        """Searched layers by name, which is ``layer`` and the number of their block in the supernet."""
        return {
            f"layer{index}": layer
            for index, layer in enumerate(self.layers)
            if isinstance(layer, _SEARCHED)
        }

    @property
    def one_shot(self) -> bool:
        """Whether layers choose among whole blocks, with weights of their own, and not among nested parts of one."""
        return any(isinstance(layer, BlockLayer) for layer in self.layers)

    def size(self) -> int:
        """Number of networks."""
        return math.prod(len(layer.names) for layer in self.searched.values())

    def check(self, decisions: Sequence[str]) -> None:
        """Raise SpaceError unless there is one choice of this space for each searched layer."""
        layers = self.searched
        if len(decisions) != len(layers):
            raise SpaceError(
                f"{len(decisions)} decisions for the {len(layers)} searched layers of space '{self.name}'"
            )
        for (name, layer), choice in zip(layers.items(), decisions):
            if choice == SKIP and not layer.skippable:
                raise SpaceError(
                    f"{name} of space '{self.name}' cannot be skipped: its stage would be lost"
                )
            if choice not in layer.names:
                raise SpaceError(
                    f"{name} of space '{self.name}': '{choice}' is none of {', '.join(layer.names)}"
                )

    def derive(
        self, decisions: Sequence[str], name: str, provenance: Mapping[str, Any] | None = None
    ) -> Architecture:
        """The network of some decisions; a skipped layer is absent from it."""
        self.check(decisions)
        rest = iter(decisions)
        blocks = []
        for layer in self.layers:
            if not isinstance(layer, _SEARCHED):
                blocks.append(layer)
                continue
            choice = next(rest)
            if choice != SKIP:
                blocks.append(layer.block(choice))
        return Architecture(
            name,
            self.image_size,
            tuple(blocks),
            self.stem_channels,
            self.stem_stride,
            self.head_channels,
            self.bn_epsilon,
            self.activation,
            self.classifier_bias,
            {**(provenance or {}), "space": self.name, "decisions": list(decisions)},
        )

    def largest(self) -> Architecture:
        """The network with the largest choice everywhere."""
        return self.derive(
            [layer.largest for layer in self.searched.values()], f"{self.name}_largest"
        )

    def decisions_of(self, arch: Architecture) -> list[str]:
        """Decisions from which ``arch`` derives; of equal blocks in a row the last ones count as skipped.

        Raises:
            SpaceError: it is not a network of this space.
        """
        blocks, decisions = list(arch.blocks), []
        for layer in self.layers:
            searched = isinstance(layer, _SEARCHED)
            options = (
                {layer.block(name): name for name in layer.choices} if searched else {layer: None}
            )
            if blocks and blocks[0] in options:
                choice = options[blocks.pop(0)]
            elif searched and layer.skippable:
                choice = SKIP
            else:
                found = f"block '{encode_block(blocks[0])}'" if blocks else "no block"
                raise SpaceError(
                    f"architecture '{arch.name}' is not of space '{self.name}': {found} stands where one "
                    f"of {', '.join(encode_block(block) for block in options)} should"
                )
            if searched:
                decisions.append(choice)
        if self.derive(decisions, arch.name) != arch:
            raise SpaceError(
                f"architecture '{arch.name}' is not of space '{self.name}': stem, head, image size or the "
                "number of blocks differ"
            )
        return decisions

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "image_size": self.image_size,
            "stem_channels": self.stem_channels,
            "stem_stride": self.stem_stride,
            "layers": [
                layer.to_dict() if isinstance(layer, _SEARCHED) else encode_block(layer)
                for layer in self.layers
            ],
            "head_channels": self.head_channels,
            "bn_epsilon": self.bn_epsilon,
            **optional_values(self),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Any, origin: str = "space") -> SearchSpace:
        """Inverse of ``to_dict``; ``origin`` names the file in errors."""
        fields = check_record(
            data,
            FORMAT,
            VERSION,
            {
                "name": str,
                "image_size": int,
                "stem_channels": int,
                "stem_stride": int,
                "layers": list,
                "head_channels": int,
                "bn_epsilon": float,
                "provenance": dict,
            },
            origin,
            SpaceError,
            OPTIONAL_KEYS,
        )
        layers = [
            _decode_layer(layer, f"{origin}: layer {index}")
            for index, layer in enumerate(fields["layers"])
        ]
        try:
            return cls(**{**fields, "layers": tuple(layers)})
        except (SpaceError, ArchitectureError) as error:
            raise SpaceError(f"{origin}: {error}") from None


def _decode_layer(data: Any, origin: str) -> Layer:
    try:
        if isinstance(data, str):
            return decode_block(data)
        if not isinstance(data, Mapping):
            raise SpaceError(
                f"{data!r} is neither a block string nor the choices of a searched layer"
            )
        if "blocks" in data:
            known = {"stride": int, "in_channels": int, "out_channels": int, "blocks": list}
            check_keys(data, known, "choices", SpaceError)
            return BlockLayer(
                data["stride"], data["in_channels"], data["out_channels"], tuple(data["blocks"])
            )
        known = {
            "stride": int,
            "in_channels": int,
            "out_channels": int,
            "kernel_sizes": list,
            "expansions": list,
            "skippable": bool,
        }
        check_keys(data, known, "choices", SpaceError)
        return SearchedLayer(
            **{key: tuple(data[key]) if known[key] is list else data[key] for key in known}
        )
    except (SpaceError, ArchitectureError) as error:
        raise SpaceError(f"{origin}: {error}") from None
    except TypeError:
        raise SpaceError(f"{origin}: kernel sizes and expansions must be numbers") from None


def load_space(name_or_file: str | Path) -> SearchSpace:
    """Load a shipped space by name, or any space by its JSON file."""
    path = find_file(name_or_file, SHIPPED, "space", SpaceError)
    return SearchSpace.from_dict(read_json(path, SpaceError), str(path))
