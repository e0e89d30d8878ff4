"""What a folder of images holds, found in well under a second: classes, images, their sizes.

Sizes are read from the headers of a fixed sample. Imports no framework.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from src.data.sources import ImageFolder, split_folder
from src.errors import UserError

SAMPLE = 200  # images whose headers are read, evenly over the folder


@dataclass(frozen=True)
class Survey:
    """What a folder of images holds.

    Attributes:
        images: to train on.
        classes: of these.
        fewest: images of a class.
        most: images of a class.
        short_side: of the images, in pixels: the median of a sample.
        has_val: whether there are validation images.
    """

    images: int
    classes: int
    fewest: int
    most: int
    short_side: int
    has_val: bool


def survey(data_path: str, val_data_path: str | None = None) -> Survey:
    """Look through a folder of class folders.

    Args:
        data_path: as ``open_sources`` takes it.
        val_data_path: likewise.

    Raises:
        UserError: there are fewer than two class folders, one of them holds no image, or none of
            the sample can be read as an image.
    """
    source = ImageFolder(split_folder("train", data_path, val_data_path))
    if len(source.classes) == 1:
        raise UserError(
            f"{source.path}: holds one class folder, '{source.classes[0]}'; a classifier needs two "
            "or more"
        )
    sample = np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int).tolist()
    sides = []
    for index in sample:
        # A header that cannot be read is of an image that training will name and replace.
        with contextlib.suppress(Exception), Image.open(source.name(index)) as image:
            sides.append(min(image.size))
    if not sides:
        raise UserError(
            f"{source.path}: none of {len(sample)} files can be read as an image, among them "
            f"{source.name(0)}; expected JPEG, PNG or BMP"
        )
    counts = np.bincount(source.labels)
    return Survey(
        images=len(source),
        classes=len(source.classes),
        fewest=int(counts.min()),
        most=int(counts.max()),
        short_side=round(float(np.median(sides))),
        has_val=split_folder("val", data_path, val_data_path).is_dir(),
    )
