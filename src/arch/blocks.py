"""Blocks of networks as values, and the strings by which files name them.

Block strings are MnasNet's, for example::

    r1_k5_s22_e6_i24_o40          MBConv: kernel 5x5, stride 2, expansion 6, 24 -> 40 channels
    r1_k3_s11_e3_i40_o40_se0.25   with squeeze-and-excitation of a quarter of the input channels
    r1_k3_s11_e1_i32_o16_noskip   without a residual connection
    shuffle_k5_s11_i64_o64        ShuffleNetV2 block with a 5x5 depthwise convolution
    xception_k3_s22_i64_o160      its Xception-like variant, always 3x3

Tokens stand in this order; an unknown, missing or repeated token is an error. Imports no framework.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import PlainSerializer, PlainValidator

from src.errors import UserError

KERNEL_SIZES = (3, 5, 7)


class ArchitectureError(UserError, ValueError):
    """A block string, an architecture file or a combination of blocks that describes no network.

    It is a ValueError too, so that pydantic adds the place in the file (``src.files``).
    """


def _check_kernel_and_stride(kernel_size: int, stride: int) -> None:
    if kernel_size not in KERNEL_SIZES:
        raise ArchitectureError(f"kernel size {kernel_size} is none of {KERNEL_SIZES}")
    if stride not in (1, 2):
        raise ArchitectureError(f"stride {stride} is neither 1 nor 2")


@dataclass(frozen=True)
class Block:
    """One MBConv block: 1x1 expansion, depthwise convolution, 1x1 projection.

    MnasNet, Tan et al., arXiv 1807.11626, figure 7.

    Attributes:
        expansion: ratio of expanded to input channels; with 1 the block has no expansion
            convolution.
        se_ratio: squeeze-and-excitation channels as a fraction of the input channels; 0 for none.
        skip: whether a residual connection is added where stride and channels allow one.
    """

    kernel_size: int
    stride: int
    expansion: float
    in_channels: int
    out_channels: int
    se_ratio: float = 0.0
    skip: bool = True

    def __post_init__(self) -> None:
        _check_kernel_and_stride(self.kernel_size, self.stride)
        if self.in_channels < 1 or self.out_channels < 1:
            raise ArchitectureError(
                f"channels {self.in_channels} -> {self.out_channels} are not positive"
            )
        # 1e-6: ratios such as 1.1 have no exact binary form, so their products are not exact.
        if self.expansion < 1 or abs(self.in_channels * self.expansion - self.mid_channels) > 1e-6:
            raise ArchitectureError(
                f"expansion {self.expansion:g} of {self.in_channels} channels is not "
                "a whole number of at least as many channels"
            )
        if not 0 <= self.se_ratio <= 1:
            raise ArchitectureError(
                f"squeeze-and-excitation ratio {self.se_ratio:g} is not within 0..1"
            )

    @property
    def mid_channels(self) -> int:
        """Channels of the depthwise convolution."""
        # Rounding takes away the error of the product; that it is whole was checked.
        return round(self.in_channels * self.expansion)

    @property
    def se_channels(self) -> int:
        """Channels of the squeeze, 0 without squeeze-and-excitation."""
        return max(1, round(self.in_channels * self.se_ratio)) if self.se_ratio else 0

    @property
    def residual(self) -> bool:
        """Whether the block's input is added to its output."""
        return self.skip and self.stride == 1 and self.in_channels == self.out_channels


class ConvLayer(NamedTuple):
    """A convolution without bias, followed by batch normalisation and, if ``relu``, by ReLU.

    It is padded by half its kernel on each side.
    """

    kernel_size: int
    stride: int
    in_channels: int
    out_channels: int
    groups: int = 1
    relu: bool = True


def _separable(
    kernel_size: int, stride: int, in_channels: int, out_channels: int
) -> tuple[ConvLayer, ConvLayer]:
    """A depthwise convolution, without ReLU, and a 1x1 convolution with one."""
    return (
        ConvLayer(kernel_size, stride, in_channels, in_channels, groups=in_channels, relu=False),
        ConvLayer(1, 1, in_channels, out_channels),
    )


@dataclass(frozen=True)
class ShuffleBlock:
    """A ShuffleNetV2 block (Ma et al., arXiv 1807.11164), as in one-shot networks.

    Single-path one-shot networks (Guo et al., arXiv 1904.00420) choose among four such blocks.

    With stride 1 the channels of odd number go through ``branch`` and those of even number are
    kept. With stride 2 all channels go through ``branch``, and through ``projection`` too, which
    keeps their number. The output starts with the kept channels.
    """

    kernel_size: int
    stride: int
    in_channels: int
    out_channels: int

    def __post_init__(self) -> None:
        _check_kernel_and_stride(self.kernel_size, self.stride)
        # Half of the input is kept, and half of the output is the width of the branch.
        if self.in_channels < 2 or self.in_channels % 2 or self.out_channels % 2:
            raise ArchitectureError(
                f"channels {self.in_channels} -> {self.out_channels} are not positive and even"
            )
        if self.out_channels <= self.kept_channels:
            raise ArchitectureError(
                f"{self.out_channels} output channels leave none to the branch: "
                f"{self.kept_channels} of the {self.in_channels} input channels are kept"
            )

    @property
    def kept_channels(self) -> int:
        """Channels that do not go through the branch; with stride 2 those of the projection.

        The branch takes the same number of channels.
        """
        return self.in_channels if self.stride == 2 else self.in_channels // 2

    @property
    def mid_channels(self) -> int:
        """Channels within the branch."""
        return self.out_channels // 2

    @property
    def branch(self) -> tuple[ConvLayer, ...]:
        """Layers that give the new channels."""
        return (
            ConvLayer(1, 1, self.kept_channels, self.mid_channels),
            *_separable(
                self.kernel_size,
                self.stride,
                self.mid_channels,
                self.out_channels - self.kept_channels,
            ),
        )

    @property
    def projection(self) -> tuple[ConvLayer, ...]:
        """Layers beside the branch; none with stride 1."""
        if self.stride == 1:
            return ()
        return _separable(self.kernel_size, 2, self.in_channels, self.in_channels)


@dataclass(frozen=True)
class XceptionBlock(ShuffleBlock):
    """A shuffle block whose branch is three depthwise separable convolutions.

    Choice x of arXiv 1904.00420.
    """

    def __post_init__(self) -> None:
        if self.kernel_size != 3:
            raise ArchitectureError(f"kernel size {self.kernel_size} is not 3")
        super().__post_init__()

    @property
    def branch(self) -> tuple[ConvLayer, ...]:
        """Layers that give the new channels."""
        mid = self.mid_channels
        return (
            *_separable(3, self.stride, self.kept_channels, mid),
            *_separable(3, 1, mid, mid),
            *_separable(3, 1, mid, self.out_channels - self.kept_channels),
        )


AnyBlock: TypeAlias = Block | ShuffleBlock


# Block strings.


@dataclass(frozen=True)
class _Form:
    """What the strings of one kind of block look like."""

    example: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


_TOKEN = re.compile(r"(noskip|se|[rksieo])(\d*(?:\.\d+)?)")
_MBCONV = _Form(
    "r1_k5_s22_e6_i16_o24[_se0.25][_noskip]", ("r", "k", "s", "e", "i", "o"), ("se", "noskip")
)
_SHUFFLE = _Form("shuffle_k5_s22_i16_o64 or xception_k3_s22_i16_o64", ("k", "s", "i", "o"))
# First words of strings. MBConv blocks have none, as in MnasNet.
_KINDS: dict[str, type[ShuffleBlock]] = {"shuffle": ShuffleBlock, "xception": XceptionBlock}


def _read_tokens(text: str, form: _Form) -> dict[str, str]:
    """Values of the tokens of a string by their letters, in the order of ``form``."""
    order, values = form.required + form.optional, {}
    for token in text.split("_"):
        match = _TOKEN.fullmatch(token)
        # noskip, and nothing else, has no value.
        if not match or match[1] not in order or (match[1] == "noskip") != (match[2] == ""):
            raise ArchitectureError(f"unknown token '{token}'")
        if match[1] in values:
            raise ArchitectureError(f"token '{match[1]}' is repeated")
        values[match[1]] = match[2]
    for key in form.required:
        if key not in values:
            raise ArchitectureError(f"token '{key}' is missing")
    if list(values) != [key for key in order if key in values]:
        raise ArchitectureError("tokens are out of order")
    for key in ("r", "k", "s", "i", "o"):
        if key in values and not values[key].isdigit():
            raise ArchitectureError(f"token '{key}{values[key]}' is not a whole number")
    if values.get("r", "1") != "1":
        raise ArchitectureError("repeats are written out, one string per block")
    # MnasNet's strides are those of both axes.
    if len(values["s"]) != 2 or values["s"][0] != values["s"][1]:
        raise ArchitectureError(f"stride 's{values['s']}' is neither s11 nor s22")
    return values


def decode_block(text: str) -> AnyBlock:
    """Read one block string.

    Raises:
        ArchitectureError: quotes the string and the token at fault.
    """
    word, _, rest = text.partition("_")
    kind = _KINDS.get(word)
    form = _SHUFFLE if kind else _MBCONV
    try:
        values = _read_tokens(rest if kind else text, form)
        kernel_size, stride = int(values["k"]), int(values["s"][0])
        channels = int(values["i"]), int(values["o"])
        block: AnyBlock
        if kind:
            block = kind(kernel_size, stride, *channels)
        else:
            block = Block(
                kernel_size,
                stride,
                float(values["e"]),
                *channels,
                se_ratio=float(values.get("se", 0)),
                skip="noskip" not in values,
            )
        # One block has one string, so that blocks can be compared and counted by their strings.
        if encode_block(block) != text:
            raise ArchitectureError(f"not in its shortest form, which is '{encode_block(block)}'")
    except ArchitectureError as error:
        raise ArchitectureError(
            f"block '{text}': {error}; expected the form {form.example}"
        ) from None
    return block


def encode_block(block: AnyBlock) -> str:
    """The block's string; ``decode_block(encode_block(block)) == block``."""
    stride = f"s{block.stride}{block.stride}"
    channels = f"i{block.in_channels}_o{block.out_channels}"
    if isinstance(block, ShuffleBlock):
        word = next(word for word, kind in _KINDS.items() if type(block) is kind)
        return f"{word}_k{block.kernel_size}_{stride}_{channels}"
    # r1: files write repeated blocks out, as a search decides on each of them.
    text = f"r1_k{block.kernel_size}_{stride}_e{_digits(block.expansion)}_{channels}"
    if block.se_ratio:
        text += f"_se{_digits(block.se_ratio)}"
    return text if block.skip else text + "_noskip"


def _digits(number: float) -> str:
    """As many digits as tell a number from all others; six are enough for most."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(float(number))


# A block as a field of what becomes a file: its string there, itself in memory.
BlockField: TypeAlias = Annotated[
    AnyBlock,
    PlainValidator(lambda text: decode_block(str(text))),
    PlainSerializer(encode_block, return_type=str),
]
