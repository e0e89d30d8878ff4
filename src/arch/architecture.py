"""Architectures as values: the description that a search writes and everything else reads.

An architecture is stored as JSON around block strings (``src.arch.blocks``). A skipped layer of a
search space is absent from it. Imports no framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.arch.blocks import AnyBlock, ArchitectureError, decode_block, encode_block
from src.files import check_record, find_file, read_json

SHIPPED = Path(__file__).parent / "architectures"
FORMAT = "spnas-architecture"
VERSION = 1
ACTIVATIONS = ("relu", "relu6")
# Keys of files that may be absent: networks of before and of MBConv blocks do without.
OPTIONAL_KEYS = {"activation": str, "classifier_bias": bool}


@dataclass(frozen=True)
class Architecture:
    """A whole network: 3x3 stem, blocks, 1x1 head, global average pooling, classifier.

    Attributes:
        image_size: side of the square images that the strides are meant for, in pixels.
        bn_epsilon: added to the variance in every batch normalisation; a property of trained
            weights.
        activation: of stem and head, one of ACTIVATIONS.
        classifier_bias: whether the classifier has a bias.
        provenance: how the architecture came about; kept in the file, without effect on the
            network.
    """

    name: str
    image_size: int
    blocks: tuple[AnyBlock, ...]
    stem_channels: int = 32
    stem_stride: int = 2
    head_channels: int = 1280
    bn_epsilon: float = 1e-5
    activation: str = "relu"
    classifier_bias: bool = True
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ArchitectureError(f"architecture '{self.name}' has no blocks")
        if min(
            self.image_size, self.stem_channels, self.head_channels
        ) < 1 or self.stem_stride not in (1, 2):
            raise ArchitectureError(
                f"architecture '{self.name}': image size, stem and head channels are positive, "
                "the stem's stride is 1 or 2"
            )
        if self.activation not in ACTIVATIONS:
            raise ArchitectureError(
                f"architecture '{self.name}': activation '{self.activation}' is none of "
                f"{', '.join(ACTIVATIONS)}"
            )
        channels = self.stem_channels
        for index, block in enumerate(self.blocks):
            if block.in_channels != channels:
                raise ArchitectureError(
                    f"architecture '{self.name}', block {index} '{encode_block(block)}' takes "
                    f"{block.in_channels} channels, the layer before it gives {channels}"
                )
            channels = block.out_channels

    @property
    def total_stride(self) -> int:
        stride = self.stem_stride
        for block in self.blocks:
            stride *= block.stride
        return stride

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "image_size": self.image_size,
            "stem_channels": self.stem_channels,
            "stem_stride": self.stem_stride,
            "blocks": [encode_block(block) for block in self.blocks],
            "head_channels": self.head_channels,
            "bn_epsilon": self.bn_epsilon,
            **optional_values(self),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Any, origin: str = "architecture") -> Architecture:
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
                "blocks": list,
                "head_channels": int,
                "bn_epsilon": float,
                "provenance": dict,
            },
            origin,
            ArchitectureError,
            OPTIONAL_KEYS,
        )
        try:
            return cls(
                **{**fields, "blocks": tuple(decode_block(str(text)) for text in fields["blocks"])}
            )
        except ArchitectureError as error:
            raise ArchitectureError(f"{origin}: {error}") from None


def optional_values(record: Any) -> dict[str, Any]:
    """Values of OPTIONAL_KEYS of an architecture or a search space, where they differ from the defaults."""
    defaults = Architecture.__dataclass_fields__
    return {
        key: getattr(record, key)
        for key in OPTIONAL_KEYS
        if getattr(record, key) != defaults[key].default
    }


def shipped_architectures() -> list[str]:
    """Names of the architectures that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def load_architecture(name_or_file: str | Path) -> Architecture:
    """Load a shipped architecture by name, or any architecture by its JSON file."""
    path = find_file(name_or_file, SHIPPED, "architecture", ArchitectureError)
    return Architecture.from_dict(read_json(path, ArchitectureError), str(path))
