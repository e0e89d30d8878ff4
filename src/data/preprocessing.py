"""What happens to an image before the network sees it: the one place of mean, std, resize and crop.

Evaluation preprocessing is a value that travels in every checkpoint and, from there, into the
metadata of exported models. This module imports no framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Triple = tuple[float, float, float]
POLICIES = ("imagenet", "cifar10")

# Mean and standard deviation per RGB channel, of 255. ImageNet: the model zoo; CIFAR-10: of its
# training set.
IMAGENET_MEAN: Triple = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD: Triple = (0.229 * 255, 0.224 * 255, 0.225 * 255)
CIFAR10_MEAN: Triple = (0.4914 * 255, 0.4822 * 255, 0.4465 * 255)
CIFAR10_STD: Triple = (0.2470 * 255, 0.2435 * 255, 0.2616 * 255)


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation: bilinear resize of the short side, centre crop, normalisation, channels first.

    Attributes:
        height, width: of the crop, in pixels.
        resize: length of the short side after resizing, in pixels.
        mean, std: per RGB channel, of pixel values 0..255.
    """

    height: int
    width: int
    resize: int
    mean: Triple
    std: Triple

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        return cls(
            height=data["height"],
            width=data["width"],
            resize=data["resize"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        )


@dataclass(frozen=True)
class Augmentation:
    """Training augmentation; all but cutout comes before normalisation.

    Attributes:
        crop_scale: smallest area fraction of a random resized crop; None for no such crop.
        crop_padding: zero padding of a random crop at full size, in pixels; used without
            ``crop_scale``.
        flip: horizontal flip of every other image.
        color_jitter: brightness, contrast, saturation, hue; None for no jitter.
        auto_augment: policy of AutoAugment (Cubuk et al., arXiv 1805.09501), one of POLICIES; None
            for none.
        cutout: side of a square that is zeroed after normalisation (DeVries and Taylor, arXiv
            1708.04552), in pixels, of which a part may lie outside the image; 0 for none.
    """

    crop_scale: float | None = None
    crop_padding: int = 0
    flip: bool = False
    color_jitter: tuple[float, float, float, float] | None = None
    auto_augment: str | None = None
    cutout: int = 0
