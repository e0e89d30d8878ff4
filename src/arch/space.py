"""Search spaces as values: which blocks each layer of a supernet may become.

A space is a JSON file: stem and head as in an architecture, and a list of layers, each either a
fixed block string or the choices of a searched layer. Choices have names: ``K3E6`` is a 3x3 kernel
with expansion 6, ``SKIP`` an absent layer. Layers of one-shot spaces choose among whole blocks:
``K5`` is a 5x5 shuffle block, ``X`` the Xception-like one. ``decisions`` are one name per searched
layer. This module imports no framework.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from src.arch.architecture import OPTIONAL_KEYS, Activation, Architecture
from src.arch.blocks import (
    KERNEL_SIZES,
    AnyBlock,
    Block,
    BlockField,
    ShuffleBlock,
    XceptionBlock,
    encode_block,
)
from src.arch.cost import Size, input_sizes
from src.errors import UserError
from src.files import check_header, dump_record, find_file, parse_record, read_json

SHIPPED = Path(__file__).parent / "spaces"
FORMAT = "spnas-space"
VERSION = 1
SKIP = "SKIP"
Network: TypeAlias = tuple[str, ...]  # decisions, in the form that names a network


class SpaceError(UserError, ValueError):
    """A search space, or decisions within one, that describe no network.

    It is a ValueError too, so that pydantic adds the place in the file (``src.files``).
    """


def choice_name(kernel_size: int, expansion: float) -> str:
    """For example K5E6."""
    return f"K{kernel_size}E{expansion:g}"


def layer_name(index: int) -> str:
    """Name of a searched layer, by its number among all layers of the supernet."""
    return f"layer{index}"


def layer_index(name: str) -> int:
    """Inverse of ``layer_name``."""
    return int(name.removeprefix("layer"))


def _as_written(value: Any, check: ValidatorFunctionWrapHandler) -> float:
    check(value)
    return value


# Checked as a float, but 6 stays 6: files write the numbers of spaces as they were read.
_Expansion: TypeAlias = Annotated[
    float, WrapValidator(_as_written), PlainSerializer(lambda value: value)
]


class Superkernel:
    """A layer whose kernel size, expansion ratio and presence are searched.

    Each choice is nested in the next larger one: it is a part of the same weights.

    Attributes:
        skippable: whether the layer may be absent.
        paired: whether kernel size and expansion are chosen together.
    """

    paired: ClassVar[bool]

    stride: int
    in_channels: int
    out_channels: int
    skippable: bool

    def __post_init__(self) -> None:
        # Raises SpaceError unless choices are nested and blocks can be made of them.
        if not self.kernel_sizes or any(size not in KERNEL_SIZES for size in self.kernel_sizes):
            raise SpaceError(
                f"kernel sizes {list(self.kernel_sizes)} are not some of {list(KERNEL_SIZES)}"
            )
        for what, values in (("kernel sizes", self.kernel_sizes), ("expansions", self.expansions)):
            if list(values) != sorted(set(values)) or not values:
                raise SpaceError(f"{what} {list(values)} are not nested: they must ascend")
        # A block of expansion 1 has no expansion convolution, so the others could not share it.
        if self.expansions[0] <= 1:
            raise SpaceError(f"expansions {list(self.expansions)} must be above 1")
        if self.skippable and (self.stride != 1 or self.in_channels != self.out_channels):
            raise SpaceError(
                f"a layer of stride {self.stride} from {self.in_channels} to {self.out_channels} "
                "channels cannot be skipped: without it the next layer, and with it its stage, "
                "would not fit"
            )
        for choice in self.choices:
            self.block(choice)  # raises unless the numbers of channels are whole

    if TYPE_CHECKING:  # a dataclass would take a property of its base for a field's default

        @property
        def kernel_sizes(self) -> tuple[int, ...]:
            """Of the choices, ascending."""
            ...

        @property
        def expansions(self) -> tuple[float, ...]:
            """Of the choices, ascending."""
            ...

    @property
    def choices(self) -> dict[str, tuple[int, float]]:
        """Kernel size and expansion of each choice by name, smaller ones first; without SKIP."""
        # ``CostTable.matrix`` relies on this order: all expansions of a kernel size, then the next.
        combine = zip if self.paired else itertools.product
        return {
            choice_name(size, expansion): (size, expansion)
            for size, expansion in combine(self.kernel_sizes, self.expansions)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all choices, SKIP last where it is one."""
        return (*self.choices, *((SKIP,) if self.skippable else ()))

    @property
    def largest(self) -> str:
        """Name of the choice in which all others are nested."""
        return choice_name(self.kernel_sizes[-1], self.expansions[-1])

    def block(self, name: str) -> Block:
        """The block of a choice other than SKIP."""
        # Its residual connection follows from stride and channels, as in MnasNet.
        kernel_size, expansion = self.choices[name]
        return Block(kernel_size, self.stride, expansion, self.in_channels, self.out_channels)


@dataclass(frozen=True)
class SearchedLayer(Superkernel):
    """A superkernel of every kernel size with every expansion.

    Attributes:
        kernel_sizes: ascending, so that each is nested in the next.
        expansions: ascending, for the same reason.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    paired: ClassVar[bool] = False

    stride: int
    in_channels: int
    out_channels: int
    kernel_sizes: tuple[int, ...]
    expansions: tuple[_Expansion, ...]
    skippable: bool


@dataclass(frozen=True)
class PairedLayer(Superkernel):
    """A superkernel whose kernel size and expansion are chosen together.

    Attributes:
        pairs: kernel size and expansion of each choice; both ascend.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    paired: ClassVar[bool] = True

    stride: int
    in_channels: int
    out_channels: int
    pairs: tuple[tuple[int, _Expansion], ...]
    skippable: bool

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """Of the pairs."""
        return tuple(size for size, _ in self.pairs)

    @property
    def expansions(self) -> tuple[float, ...]:
        """Of the pairs."""
        return tuple(expansion for _, expansion in self.pairs)


# In the order of their numbers in arXiv 1904.00420: 0, 1, 2 and 3.
BLOCK_CHOICES: Mapping[str, tuple[type[ShuffleBlock], int]] = {
    "K3": (ShuffleBlock, 3),
    "K5": (ShuffleBlock, 5),
    "K7": (ShuffleBlock, 7),
    "X": (XceptionBlock, 3),
}


@dataclass(frozen=True)
class BlockLayer:
    """A layer that is one of several blocks, each with weights of its own.

    Attributes:
        names: of the blocks, from BLOCK_CHOICES and in that order; ``blocks`` in files.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    # A one-shot supernet has no SKIP: all its paths are equally deep (arXiv 1904.00420).
    skippable: ClassVar[bool] = False

    stride: int
    in_channels: int
    out_channels: int
    names: Annotated[tuple[str, ...], Field(alias="blocks")]

    def __post_init__(self) -> None:
        ordered = tuple(name for name in BLOCK_CHOICES if name in self.names)
        if not self.names or self.names != ordered:
            raise SpaceError(
                f"blocks {list(self.names)} are not some of {list(BLOCK_CHOICES)}, in this order"
            )
        for name in self.names:
            self.block(name)  # raises unless the channels fit

    @property
    def choices(self) -> dict[str, tuple[type[ShuffleBlock], int]]:
        """Kind of block and kernel size of each choice by name."""
        return {name: BLOCK_CHOICES[name] for name in self.names}

    @property
    def largest(self) -> str:
        """Name of the last choice, which stands for the largest where a network needs one."""
        return self.names[-1]

    def block(self, name: str) -> ShuffleBlock:
        """The block of a choice."""
        kind, kernel_size = BLOCK_CHOICES[name]
        return kind(kernel_size, self.stride, self.in_channels, self.out_channels)


AnySearchedLayer: TypeAlias = SearchedLayer | PairedLayer | BlockLayer
Layer: TypeAlias = AnyBlock | AnySearchedLayer


def _kind_of_layer(layer: Any) -> str | None:
    """Which member of ``_LayerField`` a layer is, in memory or as a file holds it; None if none."""
    if isinstance(layer, (str, Block, ShuffleBlock)):
        return "fixed"
    for kind, member, key in (("one_shot", BlockLayer, "blocks"), ("paired", PairedLayer, "pairs")):
        if isinstance(layer, member) or (isinstance(layer, Mapping) and key in layer):
            return kind
    return "superkernel" if isinstance(layer, (SearchedLayer, Mapping)) else None


# A layer as a field of what becomes a file. The tags are no keys of layers, so that
# ``src.files.first_problem`` can tell them from keys.
_LayerField: TypeAlias = Annotated[
    Annotated[BlockField, Tag("fixed")]
    | Annotated[SearchedLayer, Tag("superkernel")]
    | Annotated[PairedLayer, Tag("paired")]
    | Annotated[BlockLayer, Tag("one_shot")],
    Discriminator(
        _kind_of_layer,
        custom_error_type="layer",
        custom_error_message="neither a block string nor the choices of a searched layer",
    ),
]


@dataclass(frozen=True)
class SearchSpace:
    """Stem, layers and head of a supernet; attributes as in ``Architecture``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    # In the order of the file, which pydantic reads and writes by these fields.
    name: str
    image_size: int
    stem_channels: int = field(default=32, kw_only=True)
    stem_stride: int = field(default=2, kw_only=True)
    layers: tuple[_LayerField, ...]
    head_channels: int = field(default=1280, kw_only=True)
    bn_epsilon: float = field(default=1e-5, kw_only=True)
    activation: Activation = field(default="relu", kw_only=True)
    classifier_bias: bool = field(default=True, kw_only=True)
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if not self.searched:
            raise SpaceError(f"space '{self.name}' has no searched layer")
        self.largest()  # raises unless the channels fit

    @property
    def searched(self) -> dict[str, AnySearchedLayer]:
        """Searched layers by name, in order."""
        return {
            layer_name(index): layer
            for index, layer in enumerate(self.layers)
            if isinstance(layer, AnySearchedLayer)
        }

    @property
    def superkernels(self) -> dict[str, Superkernel]:
        """``searched`` of a space whose searched layers are all superkernels.

        Raises:
            SpaceError: a layer chooses among whole blocks.
        """
        layers = self.searched
        found: dict[str, Superkernel] = {
            name: layer for name, layer in layers.items() if isinstance(layer, Superkernel)
        }
        if len(found) < len(layers):
            raise SpaceError(
                f"space '{self.name}' is that of a one-shot supernet: its layers choose among "
                "whole blocks, not among the parts of one"
            )
        return found

    @property
    def block_layers(self) -> tuple[BlockLayer, ...]:
        """``layers`` of the space of a one-shot supernet.

        Raises:
            SpaceError: a layer is fixed or a superkernel.
        """
        found = tuple(layer for layer in self.layers if isinstance(layer, BlockLayer))
        if len(found) < len(self.layers):
            raise SpaceError(
                f"space '{self.name}' is none of a one-shot supernet, whose layers all choose "
                "among blocks"
            )
        return found

    @property
    def one_shot(self) -> bool:
        """Whether layers choose among whole blocks, with weights of their own.

        The layers of other spaces choose among the nested parts of one block.
        """
        return any(isinstance(layer, BlockLayer) for layer in self.layers)

    def searched_inputs(
        self, image_size: Size | None = None
    ) -> Iterator[tuple[str, AnySearchedLayer, Size]]:
        """Name of each searched layer, the layer, and the size of its input.

        Args:
            image_size: height and width in pixels; the space's own where omitted.
        """
        strides = (self.stem_stride, *(layer.stride for layer in self.layers))
        # Without the stem's input and the head's.
        _, *inputs, _ = input_sizes(strides, image_size or (self.image_size, self.image_size))
        for index, (layer, size) in enumerate(zip(self.layers, inputs, strict=True)):
            if isinstance(layer, AnySearchedLayer):
                yield layer_name(index), layer, size

    @cached_property  # asked for each of very many decisions
    def stages(self) -> tuple[range, ...]:
        """Numbers, among the searched layers, of neighbours that are alike, in order.

        Which of them are skipped makes no difference to the network.
        """
        stages: list[range] = []
        before: Layer | None = None
        number = 0
        for layer in self.layers:
            if isinstance(layer, AnySearchedLayer):
                if stages and layer == before:
                    stages[-1] = range(stages[-1].start, number + 1)
                else:
                    stages.append(range(number, number + 1))
                number += 1
            before = layer
        return tuple(stages)

    def canonical(self, decisions: Sequence[str]) -> tuple[str, ...]:
        """The decisions that name the network of ``decisions``: in each stage the last are skipped.

        So a network has one name, and in a supernet one set of weights.
        """
        return tuple(
            choice
            for stage in self.stages
            # Sorting keeps the order of equals: what is left moves to the front.
            for choice in sorted((decisions[number] for number in stage), key=SKIP.__eq__)
        )

    def size(self) -> int:
        """Number of networks, however many decisions derive each."""
        layers = list(self.searched.values())
        # A stage of n layers that are skippable has 0 to n of them, each of any other choice.
        return math.prod(
            sum(len(layers[stage.start].choices) ** count for count in range(len(stage) + 1))
            if layers[stage.start].skippable
            else len(layers[stage.start].choices) ** len(stage)
            for stage in self.stages
        )

    @property
    def largest_choices(self) -> tuple[str, ...]:
        """Decisions of the largest network."""
        return tuple(layer.largest for layer in self.searched.values())

    @property
    def smallest_choices(self) -> tuple[str, ...]:
        """Decisions of the smallest network."""
        return tuple(
            SKIP if layer.skippable else layer.names[0] for layer in self.searched.values()
        )

    def check(self, decisions: Sequence[str]) -> None:
        """Raise SpaceError unless there is one choice of this space for each searched layer."""
        layers = self.searched
        if len(decisions) != len(layers):
            raise SpaceError(
                f"{len(decisions)} decisions for the {len(layers)} searched layers of space "
                f"'{self.name}'"
            )
        for (name, layer), choice in zip(layers.items(), decisions, strict=True):
            # SKIP exists, only not here: its own message says why.
            if choice == SKIP and not layer.skippable:
                raise SpaceError(
                    f"{name} of space '{self.name}' cannot be skipped: its stage would be lost"
                )
            if choice not in layer.names:
                raise SpaceError(
                    f"{name} of space '{self.name}': '{choice}' is none of {', '.join(layer.names)}"
                )

    def blocks(self, decisions: Sequence[str]) -> list[AnyBlock | None]:
        """The block of each layer, fixed ones included; None for a skipped one."""
        self.check(decisions)
        rest = iter(decisions)
        blocks: list[AnyBlock | None] = []
        for layer in self.layers:
            if isinstance(layer, AnySearchedLayer):
                choice = next(rest)
                blocks.append(None if choice == SKIP else layer.block(choice))
            else:
                blocks.append(layer)
        return blocks

    def active_parts(self, decisions: Sequence[str]) -> list[tuple[int, int, int]]:
        """What of each layer's largest block decisions keep: side, middle channels, presence.

        Of a skipped layer side and channels are those of its first choice.
        """
        parts = []
        for layer, block in zip(self.layers, self.blocks(decisions), strict=True):
            kept = block
            if kept is None:
                assert isinstance(layer, Superkernel)
                kept = layer.block(layer.names[0])
            parts.append((kept.kernel_size, kept.mid_channels, int(block is not None)))
        return parts

    def networks(self) -> Iterator[tuple[str, ...]]:
        """The decisions of each network once; there may be very many."""
        for decisions in itertools.product(*(layer.names for layer in self.searched.values())):
            if decisions == self.canonical(decisions):
                yield decisions

    def derive(
        self, decisions: Sequence[str], name: str, provenance: Mapping[str, Any] | None = None
    ) -> Architecture:
        """The network of some decisions; a skipped layer is absent from it."""
        return Architecture(
            name,
            self.image_size,
            tuple(block for block in self.blocks(decisions) if block is not None),
            stem_channels=self.stem_channels,
            stem_stride=self.stem_stride,
            head_channels=self.head_channels,
            bn_epsilon=self.bn_epsilon,
            activation=self.activation,
            classifier_bias=self.classifier_bias,
            provenance={
                **(provenance or {}),
                "space": self.name,
                "decisions": list(self.canonical(decisions)),
            },
        )

    def largest(self) -> Architecture:
        """The network with the largest choice everywhere."""
        return self.derive(self.largest_choices, f"{self.name}_largest")

    def decisions_of(self, arch: Architecture) -> list[str]:
        """Decisions from which ``arch`` derives; of equal blocks in a row the last are skipped.

        Raises:
            SpaceError: it is not a network of this space.
        """
        foreign = f"architecture '{arch.name}' is not of space '{self.name}'"
        other = "stem, head, image size or the number of blocks differ"
        reasons: list[str] = []
        tried = set[tuple[int, int]]()

        def fit(number: int, used: int) -> list[str] | None:
            """Decisions of the layers from ``number`` on for the blocks from ``used`` on, if any.

            Layers of a stage after its first are alike. A block is taken for the first layer that
            it fits, so that what is missing counts as skipped at the end of its stage; where no
            network comes of that, for a later one.
            """
            left = arch.blocks[used:]
            if number == len(self.layers):
                reasons.append(other)
                return None if left else []
            if (number, used) in tried:
                return None
            tried.add((number, used))
            layer = self.layers[number]
            options = _options(layer)
            if left and left[0] in options:
                rest = fit(number + 1, used + 1)
                if rest is not None:
                    choice = options[left[0]]
                    return rest if choice is None else [choice, *rest]
            if isinstance(layer, AnySearchedLayer) and layer.skippable:
                rest = fit(number + 1, used)
                return None if rest is None else [SKIP, *rest]
            found = f"block '{encode_block(left[0])}'" if left else "no block"
            reasons.append(
                f"{found} stands where one of {', '.join(map(encode_block, options))} should"
            )
            return None

        decisions = fit(0, 0)
        if decisions is None:  # the reason is that of blocks in the first layers that they fit
            raise SpaceError(f"{foreign}: {reasons[0]}")
        if self.derive(decisions, arch.name) != arch:  # all that the space fixes
            raise SpaceError(f"{foreign}: {other}")
        return decisions

    def to_dict(self) -> dict[str, Any]:
        """What the space's file holds."""
        return {"format": FORMAT, "version": VERSION, **dump_record(self, OPTIONAL_KEYS)}

    @classmethod
    def from_dict(cls, data: Any, origin: str = "space") -> SearchSpace:
        """Inverse of ``to_dict``; ``origin`` names the file in errors."""
        record = check_header(data, FORMAT, VERSION, origin, SpaceError)
        return parse_record(cls, record, origin, SpaceError, OPTIONAL_KEYS)


def _options(layer: Layer) -> dict[AnyBlock, str | None]:
    """Blocks that a layer may be, with the names of the choices; None for that of a fixed layer."""
    if isinstance(layer, AnySearchedLayer):
        return {layer.block(name): name for name in layer.choices}
    return {layer: None}


def shipped_spaces() -> list[str]:
    """Names of the spaces that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def load_space(name_or_file: str | Path) -> SearchSpace:
    """Load a shipped space by name, or any space by its JSON file."""
    path = find_file(name_or_file, SHIPPED, "space", SpaceError)
    return SearchSpace.from_dict(read_json(path, SpaceError), str(path))
