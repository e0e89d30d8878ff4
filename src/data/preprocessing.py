"""What happens to an image before the network: the one place of mean, std, resize and crop.

Evaluation preprocessing is a value that is stored in every checkpoint and, from there, in the
metadata of exported models. This module imports no framework.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from pydantic import ConfigDict

from src.files import parse_record

Triple: TypeAlias = tuple[float, float, float]
# Of AutoAugment (Cubuk et al., arXiv 1805.09501), by the data set that they were found for.
PolicyName = Literal["imagenet", "cifar10"]

# Mean and standard deviation per RGB channel, of pixel values 0..255. ImageNet: the model zoo's;
# CIFAR-10: those of its training set.
IMAGENET_MEAN: Triple = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD: Triple = (0.229 * 255, 0.224 * 255, 0.225 * 255)
CIFAR10_MEAN: Triple = (0.4914 * 255, 0.4822 * 255, 0.4465 * 255)
CIFAR10_STD: Triple = (0.2470 * 255, 0.2435 * 255, 0.2616 * 255)


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation: bilinear resize of the short side, centre crop, normalisation, channels first.

    Attributes:
        height: of the crop, in pixels.
        width: of the crop, in pixels.
        resize: length of the short side after resizing, in pixels.
        mean: per RGB channel, of pixel values 0..255.
        std: standard deviation, likewise.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    height: int
    width: int
    resize: int
    mean: Triple
    std: Triple

    def to_dict(self) -> dict[str, Any]:
        """What checkpoints and exported models say of it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any, origin: str = "preprocessing") -> Preprocessing:
        """Inverse of ``to_dict``; ``origin`` names the file in errors."""
        return parse_record(cls, data, origin)


@dataclass(frozen=True)
class Augmentation:
    """Training augmentation; all but cutout comes before normalisation.

    Attributes:
        crop_scale: smallest area fraction of a random resized crop; None for no such crop.
        crop_padding: zero padding of a random crop at full size, in pixels; used without
            ``crop_scale``.
        flip: horizontal flip with probability 1/2.
        color_jitter: brightness, contrast, saturation, hue; None for no jitter.
        auto_augment: policy of AutoAugment; None for none.
        cutout: side of a square that is zeroed after normalisation (DeVries and Taylor, arXiv
            1708.04552), in pixels, of which a part may lie outside the image; 0 for none.
    """

    crop_scale: float | None = None
    crop_padding: int = 0
    flip: bool = False
    color_jitter: tuple[float, float, float, float] | None = None
    auto_augment: PolicyName | None = None
    cutout: int = 0
