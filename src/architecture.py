"""Architectures as values: the description that search writes and everything else reads.

An architecture is stored as JSON around MnasNet block strings, for example::

    r1_k5_s22_e6_i24_o40          one MBConv: kernel 5x5, stride 2, expansion 6, 24 -> 40 channels
    r1_k3_s11_e3_i40_o40_se0.25   with squeeze-and-excitation of a quarter of the input channels
    r1_k3_s11_e1_i32_o16_noskip   without a residual connection

Tokens stand in this order; an unknown, missing or repeated token is an error. A skipped layer of a
search space is absent. This module imports no framework.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

from src.errors import UserError
from src.records import check_record, find_file, read_json

SHIPPED = Path(__file__).parent / "architectures"
FORMAT = "spnas-architecture"
VERSION = 1
KERNEL_SIZES = (3, 5, 7)


class ArchitectureError(UserError):
    """A block string, an architecture file or a combination of blocks that describes no network."""


@dataclass(frozen=True)
class Block:
    """One MBConv block: 1x1 expansion, depthwise convolution, 1x1 projection (MnasNet, arXiv 1807.11626).

    Attributes:
        expansion: ratio of expanded to input channels; with 1 the block has no expansion convolution.
        skip: whether a residual connection is added where stride and channels allow one.
        se_ratio: squeeze-and-excitation channels as a fraction of the input channels; 0 for none.
    """

    kernel_size: int
    stride: int
    expansion: float
    in_channels: int
    out_channels: int
    se_ratio: float = 0.0
    skip: bool = True

    def __post_init__(self) -> None:
        if self.kernel_size not in KERNEL_SIZES:
            raise ArchitectureError(f"kernel size {self.kernel_size} is none of {KERNEL_SIZES}")
        if self.stride not in (1, 2):
            raise ArchitectureError(f"stride {self.stride} is neither 1 nor 2")
        if self.in_channels < 1 or self.out_channels < 1:
            raise ArchitectureError(f"channels {self.in_channels} -> {self.out_channels} are not positive")
        if self.expansion < 1 or abs(self.in_channels * self.expansion - self.mid_channels) > 1e-6:
            raise ArchitectureError(f"expansion {self.expansion:g} of {self.in_channels} channels is not "
                                    "a whole number of at least as many channels")
        if not 0 <= self.se_ratio <= 1:
            raise ArchitectureError(f"squeeze-and-excitation ratio {self.se_ratio:g} is not within 0..1")

    @property
    def mid_channels(self) -> int:
        """Channels of the depthwise convolution."""
        return round(self.in_channels * self.expansion)

    @property
    def se_channels(self) -> int:
        """Channels of the squeeze, 0 without squeeze-and-excitation."""
        return max(1, round(self.in_channels * self.se_ratio)) if self.se_ratio else 0

    @property
    def residual(self) -> bool:
        return self.skip and self.stride == 1 and self.in_channels == self.out_channels


_TOKEN = re.compile(r"(noskip|se|[rksieo])(\d*(?:\.\d+)?)")
_ORDER = ("r", "k", "s", "e", "i", "o", "se", "noskip")
_REQUIRED = _ORDER[:6]


def decode_block(text: str) -> Block:
    """Read one block string; raises ArchitectureError that quotes the string and the token at fault."""

    def fail(reason: str) -> ArchitectureError:
        return ArchitectureError(f"block '{text}': {reason}; expected the form r1_k5_s22_e6_i16_o24"
                                 "[_se0.25][_noskip]")

    values: dict[str, str] = {}
    for token in text.split("_"):
        match = _TOKEN.fullmatch(token)
        if not match or (match[1] == "noskip") != (match[2] == ""):
            raise fail(f"unknown token '{token}'")
        if match[1] in values:
            raise fail(f"token '{match[1]}' is repeated")
        values[match[1]] = match[2]
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise fail(f"token '{missing[0]}' is missing")
    if list(values) != [key for key in _ORDER if key in values]:
        raise fail("tokens are out of order")
    for key in ("r", "k", "s", "i", "o"):
        if not values[key].isdigit():
            raise fail(f"token '{key}{values[key]}' is not a whole number")
    if values["r"] != "1":
        raise fail("repeats are written out, one string a block")
    if len(values["s"]) != 2 or values["s"][0] != values["s"][1]:
        raise fail(f"stride 's{values['s']}' is neither s11 nor s22")
    try:
        block = Block(kernel_size=int(values["k"]), stride=int(values["s"][0]), expansion=float(values["e"]),
                      in_channels=int(values["i"]), out_channels=int(values["o"]),
                      se_ratio=float(values.get("se", 0)), skip="noskip" not in values)
    except ArchitectureError as error:
        raise fail(str(error)) from None
    if encode_block(block) != text:
        raise fail(f"not in its shortest form, which is '{encode_block(block)}'")
    return block


def encode_block(block: Block) -> str:
    """The block's string; ``decode_block(encode_block(block)) == block``."""
    text = (f"r1_k{block.kernel_size}_s{block.stride}{block.stride}_e{block.expansion:g}"
            f"_i{block.in_channels}_o{block.out_channels}")
    if block.se_ratio:
        text += f"_se{block.se_ratio:g}"
    return text if block.skip else text + "_noskip"


@dataclass(frozen=True)
class Architecture:
    """A whole network: 3x3 stem, blocks, 1x1 head, global average pooling, classifier.

    Attributes:
        image_size: side of the square images that the strides are meant for, in pixels.
        bn_epsilon: added to the variance in every batch normalisation; a property of trained weights.
        provenance: how the architecture came about; kept in the file, without effect on the network.
    """

    name: str
    image_size: int
    blocks: tuple[Block, ...]
    stem_channels: int = 32
    stem_stride: int = 2
    head_channels: int = 1280
    bn_epsilon: float = 1e-5
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ArchitectureError(f"architecture '{self.name}' has no blocks")
        if min(self.image_size, self.stem_channels, self.head_channels) < 1 or self.stem_stride not in (1, 2):
            raise ArchitectureError(f"architecture '{self.name}': image size, stem and head channels are positive, "
                                    "the stem's stride is 1 or 2")
        channels = self.stem_channels
        for index, block in enumerate(self.blocks):
            if block.in_channels != channels:
                raise ArchitectureError(f"architecture '{self.name}', block {index} '{encode_block(block)}' takes "
                                        f"{block.in_channels} channels, the layer before it gives {channels}")
            channels = block.out_channels

    @property
    def total_stride(self) -> int:
        stride = self.stem_stride
        for block in self.blocks:
            stride *= block.stride
        return stride

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, "name": self.name, "image_size": self.image_size,
                "stem_channels": self.stem_channels, "stem_stride": self.stem_stride,
                "blocks": [encode_block(block) for block in self.blocks],
                "head_channels": self.head_channels, "bn_epsilon": self.bn_epsilon,
                "provenance": dict(self.provenance)}

    @classmethod
    def from_dict(cls, data: Any, origin: str = "architecture") -> Architecture:
        """Inverse of ``to_dict``; ``origin`` names the file in errors."""
        fields = check_record(data, FORMAT, VERSION, {
            "name": str, "image_size": int, "stem_channels": int, "stem_stride": int, "blocks": list,
            "head_channels": int, "bn_epsilon": float, "provenance": dict}, origin, ArchitectureError)
        try:
            return cls(**{**fields, "blocks": tuple(decode_block(str(text)) for text in fields["blocks"])})
        except ArchitectureError as error:
            raise ArchitectureError(f"{origin}: {error}") from None


def shipped_architectures() -> list[str]:
    """Names of the architectures that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def load_architecture(name_or_file: str | Path) -> Architecture:
    """Load a shipped architecture by name, or any architecture by its JSON file."""
    path = find_file(name_or_file, SHIPPED, "architecture", ArchitectureError)
    return Architecture.from_dict(read_json(path, ArchitectureError), str(path))
