"""Architectures as values: the description that a search writes and everything else reads.

An architecture is stored as JSON around block strings (``src.arch.blocks``). A skipped layer of a
search space is absent from it. Imports no framework.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from src.arch.blocks import ArchitectureError, BlockField, encode_block
from src.files import check_header, dump_record, find_file, parse_record, read_json

SHIPPED = Path(__file__).parent / "architectures"
FORMAT = "spnas-architecture"
VERSION = 1
Activation = Literal["relu", "relu6"]
# Keys that files leave out where they have their defaults: version 1 was first written without.
OPTIONAL_KEYS = ("activation", "classifier_bias")


@dataclass(frozen=True)
class Architecture:
    """A whole network: 3x3 stem, blocks, 1x1 head, global average pooling, classifier.

    Only ``name``, ``image_size`` and ``blocks`` can be given by position.

    Attributes:
        image_size: side of the square images that the strides are meant for, in pixels.
        bn_epsilon: added to the variance in every batch normalisation; a property of trained
            weights.
        activation: of stem and head.
        classifier_bias: whether the classifier has a bias.
        provenance: how the architecture came about; kept in the file, without effect on the
            network.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    # In the order of the file, which pydantic reads and writes by these fields.
    name: str
    image_size: int
    stem_channels: int = field(default=32, kw_only=True)
    stem_stride: int = field(default=2, kw_only=True)
    blocks: tuple[BlockField, ...]
    head_channels: int = field(default=1280, kw_only=True)
    bn_epsilon: float = field(default=1e-5, kw_only=True)
    activation: Activation = field(default="relu", kw_only=True)
    classifier_bias: bool = field(default=True, kw_only=True)
    # Not compared: networks that were found twice are equal.
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ArchitectureError(f"architecture '{self.name}' has no blocks")
        sizes = (self.image_size, self.stem_channels, self.head_channels)
        if min(sizes) < 1 or self.stem_stride not in (1, 2):
            raise ArchitectureError(
                f"architecture '{self.name}': image size, stem and head channels are positive, "
                "the stem's stride is 1 or 2"
            )
        # Channels are stored and never inferred, so that a file with a missing block is noticed.
        channels = self.stem_channels
        for index, block in enumerate(self.blocks):
            if block.in_channels != channels:
                raise ArchitectureError(
                    f"architecture '{self.name}', block {index} '{encode_block(block)}' takes "
                    f"{block.in_channels} channels, the layer before it gives {channels}"
                )
            channels = block.out_channels

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the stem and of each block."""
        return (self.stem_stride, *(block.stride for block in self.blocks))

    @property
    def total_stride(self) -> int:
        """Pixels of the image per pixel of the last feature map, along each side."""
        return math.prod(self.strides)

    def to_dict(self) -> dict[str, Any]:
        """What the architecture's file holds."""
        return {"format": FORMAT, "version": VERSION, **dump_record(self, OPTIONAL_KEYS)}

    @classmethod
    def from_dict(cls, data: Any, origin: str = "architecture") -> Architecture:
        """Inverse of ``to_dict``; ``origin`` names the file in errors."""
        record = check_header(data, FORMAT, VERSION, origin, ArchitectureError)
        return parse_record(cls, record, origin, ArchitectureError, OPTIONAL_KEYS)


def shipped_architectures() -> list[str]:
    """Names of the architectures that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def load_architecture(name_or_file: str | Path) -> Architecture:
    """Load a shipped architecture by name, or any architecture by its JSON file."""
    path = find_file(name_or_file, SHIPPED, "architecture", ArchitectureError)
    return Architecture.from_dict(read_json(path, ArchitectureError), str(path))
