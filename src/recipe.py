"""What suits a folder of images: sizes, network or space, and recipe, by what is found in it.

``for_folder`` finds the facts, ``choose`` is a pure function of them. What the user gives wins over
all of it. Imports no framework.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from src.arch.architecture import load_architecture
from src.arch.space import load_space
from src.data.survey import Survey, survey
from src.files import read_yaml
from src.result_files import ARCH, CONFIG, RUN

log = logging.getLogger(__name__)

Preset: TypeAlias = dict[str, Any]
Purpose = Literal["train", "search"]

# Side of the network's input, by the median short side of the images up to which it is taken.
# Small images are not blown up to 224: BiT (Kolesnikov et al., arXiv 1912.11370) has a smaller
# input for those below 96x96 too.
INPUT_SIDES = ((40, 32), (96, 64), (160, 128))
LARGEST_SIDE = 224
SMALL = 64  # inputs up to here have networks of total stride 8, larger ones of total stride 32
ROOMY = 1.25  # images larger than the input by this factor are cropped at random

# From here on, large images are trained as ImageNet is: src.config, imagenet_cfg.
MANY_IMAGES = 100_000
# Smallest crop and colours for fewer: that of fastai's recipes for Imagenette, of 9,469 images;
# timm's default strength of colour jitter, which leaves the hue as it is.
CROP_SCALE, COLOR_JITTER = 0.35, (0.4, 0.4, 0.4, 0.0)
HOLDOUT = 0.2  # where there are no validation images


@dataclass(frozen=True)
class Schedule:
    """Length and rate of a training.

    Attributes:
        steps: to take at least, in ``epochs`` at least and at most.
        lr: base learning rate for 64 images per step.
        scaled: whether the rate is proportional to the images per step (Goyal et al., arXiv
            1706.02677).
    """

    steps: int
    epochs: tuple[int, int]
    lr: float
    scaled: bool = True


# 0.01 is the usual rate of pre-trained networks (Li et al., arXiv 2002.11770, section 1). With
# less for small batches they hardly learn in so few steps; 500 of them are those of BiT for up to
# 20,000 images.
SCRATCH = Schedule(2000, (30, 200), 0.1)
FINE_TUNING = Schedule(500, (10, 100), 0.01, scaled=False)
# A supernet's cross-entropy rises in the first epochs at 0.1.
SEARCH = Schedule(1000, (20, 100), 0.03)
# Beside it, in place of what the released code has for ImageNet.
SHORT_SEARCH: Preset = {
    "cost": "macs",
    "optimizer": "momentum",
    "lr_scheduler": "one_cycle",
    "drop_rate": 0.0,
    "bn_momentum": 0.9,
}
WARMUP_SHARE = 0.1  # of the epochs of fine-tuning
VALIDATIONS = 20  # at most: an epoch of few images takes less time than validating and saving

# What weights say of the images that they were trained with.
_OF_WEIGHTS = ("image_height", "mean", "std")
# What is chosen, in the order in which it is said.
_SAID = (
    *("arch", "space", "image_height", "image_width", "crop_scale", "crop_padding", "holdout"),
    *("batch_size", "epoch_size", "lr_init", "lr_scheduler", "warmup_epochs"),
    "val_interval_epochs",
)


@dataclass(frozen=True)
class Facts:
    """What the choice depends on, beside what the user gives.

    Attributes:
        network_side: side of the input that the given network or space is meant for, in pixels;
            None where none is given.
        weights: what the run that made the pre-trained weights says of them: its configuration, and
            ``arch``, the file of its network; empty where they do not lie in a run's folder.
    """

    found: Survey
    network_side: int | None = None
    weights: Mapping[str, Any] = field(default_factory=dict)


def for_folder(given: Mapping[str, Any], purpose: Purpose) -> Preset:
    """What suits the folder that is ``given``; says in one line what was found and chosen.

    A run that is resumed keeps what was chosen at its start, whatever the folder holds by now.

    Raises:
        UserError: the folder holds no images by class, or a file that is given cannot be read.
    """
    data_path = given.get("data_path")
    if data_path is None or not Path(data_path).exists():
        return {}  # which the run says
    started = Path(given.get("checkpoint_path", ".")) / RUN / CONFIG
    if given.get("resume") and started.is_file():
        return {k: v for k, v in read_yaml(started).items() if k != "checkpoint_path"}
    found = survey(data_path, given.get("val_data_path"))
    weights = _of_weights(given["pre_trained"]) if given.get("pre_trained") else {}
    chosen = choose(Facts(found, _network_side(given), weights), given, purpose)
    said = [f"{key} {_text(chosen[key])}" for key in _SAID if chosen.get(key) and key not in given]
    log.info(
        "%s: %d images of %d classes, %s each, median short side %d pixels%s; chosen: %s",
        data_path,
        found.images,
        found.classes,
        found.most if found.fewest == found.most else f"{found.fewest} to {found.most}",
        found.short_side,
        "" if found.has_val else ", none to validate",
        ", ".join(said) or "nothing, as all is given",
    )
    return chosen


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of_weights(file: str) -> dict[str, Any]:
    """What the run in whose folder the weights lie says of them; empty for other weights."""
    folder = Path(file).parent
    config, arch = folder / CONFIG, folder / ARCH
    if not config.is_file():
        return {}
    own = {key: value for key, value in read_yaml(config).items() if key in _OF_WEIGHTS}
    return {**own, "arch": str(arch)} if arch.is_file() else own


def _network_side(given: Mapping[str, Any]) -> int | None:
    if given.get("space"):
        return load_space(given["space"]).image_size
    return load_architecture(given["arch"]).image_size if given.get("arch") else None


def choose(facts: Facts, given: Mapping[str, Any], purpose: Purpose) -> Preset:
    """The recipe for what was found.

    Args:
        facts: what was found.
        given: checked values of the keys that the user gives, on which others depend: a batch size,
            for example, decides the learning rate.
        purpose: "search" for a superkernel search, "train" for all else.
    """
    found = facts.found
    side = _input_side(facts, given)
    values: Preset = {"image_height": side, "image_width": side}
    values.update(_network(facts, side, given, purpose))
    if not found.has_val and not given.get("val_data_path"):
        values["holdout"] = HOLDOUT
    images, share = found.images, given.get("holdout", values.get("holdout", 0.0))
    if share:  # of each class it is rounded, to one image at least
        images = max(images - round(images * share) - found.classes, found.classes)
    images = min(images, given.get("train_images") or images)
    few = images < MANY_IMAGES
    values.update(_augmentation(found.short_side, side, few, given))
    fine_tuned = bool(given.get("pre_trained"))
    if few or side <= SMALL or fine_tuned:
        values.update(_recipe(images, side, fine_tuned, given, purpose))
    return values


def _input_side(facts: Facts, given: Mapping[str, Any]) -> int:
    """The user's, else that of the weights (as timm does), of the network, or by the images."""
    own = (given.get("image_height"), given.get("image_width"))
    by_images = (side for most, side in INPUT_SIDES if facts.found.short_side <= most)
    sides = (*own, facts.weights.get("image_height"), facts.network_side)
    return next((side for side in sides if side), None) or next(by_images, LARGEST_SIDE)


def _network(facts: Facts, side: int, given: Mapping[str, Any], purpose: Purpose) -> Preset:
    """Network or space for an input of ``side`` pixels; with weights theirs, and what they need."""
    small = side <= SMALL
    if purpose == "search":
        return {"space": "imagenet_32" if small else "imagenet"}
    own = {"arch": "spnas_pixel1_32" if small else "spnas_pixel1", **facts.weights}
    if given.get("space"):
        del own["arch"]
    return {key: value for key, value in own.items() if key != "image_height"}


def _augmentation(short_side: int, side: int, few: bool, given: Mapping[str, Any]) -> Preset:
    """Random resized crops of images that are larger than the input, else shifts by an eighth.

    The shifts are those of the usual recipe for CIFAR-10: 4 of 32 pixels (He et al., arXiv
    1512.03385, section 4.2). With a crop of random size, a ``crop_padding`` would not be used.
    """
    if given.get("crop_padding") or short_side < ROOMY * side:
        shifts = {"resize": side, "crop_padding": side // 8}
        return {**shifts, "crop_scale": None, "color_jitter": None}
    return {"crop_scale": CROP_SCALE, "color_jitter": COLOR_JITTER} if few else {}


def _batch_size(images: int, side: int) -> int:
    """A power of two: ten batches per epoch or more, of 16 images or more, where there are as many.

    At most 64 small or 128 large images, as the presets of CIFAR-10 and ImageNet have.
    """
    most = 64 if side <= SMALL else 128
    wished = min(max(images // 10, 16), most, max(images, 1))
    return 2 ** int(math.log2(wished))


def _recipe(
    images: int, side: int, fine_tuned: bool, given: Mapping[str, Any], purpose: Purpose
) -> Preset:
    """Batches, epochs and learning rate for a number of images to train on."""
    batch = given.get("batch_size") or _batch_size(images, side)
    schedule = SEARCH if purpose == "search" else FINE_TUNING if fine_tuned else SCRATCH
    least, most = schedule.epochs
    epochs = min(max(math.ceil(schedule.steps * batch / max(images, 1)), least), most)
    epochs = given.get("epoch_size") or epochs
    interval = math.ceil(epochs / VALIDATIONS)
    values: Preset = {
        "batch_size": batch,
        "epoch_size": epochs,
        "lr_init": schedule.lr * batch / 64 if schedule.scaled else schedule.lr,
        "lr_scheduler": "one_cycle",
        "val_interval_epochs": interval,
        "save_checkpoint_epochs": interval,
    }
    if purpose == "search":
        values.update(SHORT_SEARCH)
    elif fine_tuned:
        values.update(lr_scheduler="cosine", warmup_epochs=WARMUP_SHARE * epochs)
    return values
