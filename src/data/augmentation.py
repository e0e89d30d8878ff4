"""Training images: random crops and colours, from decoded pixels to the network's input.

OpenCV computes them, in the version of MindSpore's evaluation: resized pixels are the same, bit for
bit. All chance comes from the ``Random`` that is given, so that an image does not depend on what
runs beside it. Imports no framework.
"""

from __future__ import annotations

import math
from random import Random

import cv2
import numpy as np

from src.data.preprocessing import Augmentation, Preprocessing

cv2.setNumThreads(1)  # an image is too small to share, and the other cores have other images

# Of the random resized crop, width to height (Szegedy et al., arXiv 1409.4842).
ASPECT_RATIOS = (3 / 4, 4 / 3)
LOG_RATIOS = tuple(map(math.log, ASPECT_RATIOS))
CROP_ATTEMPTS = 10

# Luma and the two axes of chroma (NTSC) from RGB. Rows: grey has luma 1 and no chroma.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
# From RGB to RGB: the luma alone, the chroma alone, and the chroma turned by a right angle. Their
# fourth column is for a constant. Summed up for each image, since products would take much longer.
LUMA, CHROMA, TURNED_CHROMA = (
    np.column_stack([np.linalg.inv(YIQ) @ np.array(matrix) @ YIQ, np.zeros(3)])
    for matrix in (
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
    )
)


def random_box(
    height: int, width: int, smallest: float, random: Random
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of an image of height x width pixels.

    Args:
        height: of the image.
        width: of the image.
        smallest: area of the part, as a fraction of the image's; the largest is 1.
        random: draws area, aspect ratio and place.
    """
    for _ in range(CROP_ATTEMPTS):
        area = height * width * random.uniform(smallest, 1)
        ratio = math.exp(random.uniform(*LOG_RATIOS))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            return (
                random.randint(0, height - rows),
                random.randint(0, width - columns),
                rows,
                columns,
            )
    # The largest part of such a ratio, in the middle.
    rows = min(height, round(width / ASPECT_RATIOS[0]))
    columns = min(width, round(height * ASPECT_RATIOS[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def augment(
    pixels: np.ndarray,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    random: Random,
) -> np.ndarray:
    """An image (height, width, 3) of uint8 of the network's size, cropped and coloured by chance.

    Args:
        pixels: (H, W, 3) of uint8, of any size.
        preprocessing: sizes.
        augmentation: what to do; AutoAugment and cutout are left to the caller.
        random: draws.
    """
    height, width = preprocessing.height, preprocessing.width
    if augmentation.crop_scale is not None:
        box = random_box(pixels.shape[0], pixels.shape[1], augmentation.crop_scale, random)
        image = _resize(_window(pixels, *box), height, width)
    else:
        image = _short_side(pixels, preprocessing.resize)
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        image = _window(image, top, left, height, width)
        if reach := augmentation.crop_padding:
            top, left = random.randint(-reach, reach), random.randint(-reach, reach)
            image = _window(image, top, left, height, width)
    if augmentation.flip and random.random() < 0.5:
        image = cv2.flip(image, 1)
    if augmentation.color_jitter:
        image = jitter_colors(image, augmentation.color_jitter, random)
    return image


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def _short_side(image: np.ndarray, size: int) -> np.ndarray:
    """An image resized so that its short side has ``size`` pixels, as evaluation does.

    MindSpore computes the long side in single precision, and rounds it down.
    """
    height, width = image.shape[:2]
    short, long = sorted(map(np.float32, (height, width)))
    side = int(long / short * np.float32(size))
    return _resize(image, size, side) if height < width else _resize(image, side, size)


def _window(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Part of an image (H, W, C), zero where it lies outside of the image."""
    if min(top, left, image.shape[0] - top - height, image.shape[1] - left - width) >= 0:
        return image[top : top + height, left : left + width]
    part = np.zeros((height, width, image.shape[2]), image.dtype)
    rows = slice(max(top, 0), max(top + height, 0))
    columns = slice(max(left, 0), max(left + width, 0))
    inside = image[rows, columns]
    top, left = rows.start - top, columns.start - left
    part[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return part


def jitter_colors(
    image: np.ndarray, strengths: tuple[float, float, float, float], random: Random
) -> np.ndarray:
    """An image (H, W, 3) of uint8 with random brightness, contrast, saturation and hue.

    Brightness b scales pixels, contrast c scales their distance to the mean luma of the image, and
    saturation s their chroma, which hue turns around. As linear maps without clipping in between
    these commute, so that their order does not matter, and they are computed as one.

    Args:
        image: RGB.
        strengths: greatest distance of b, c and s from 1; greatest turn of hue, of a full circle.
        random: draws b, c, s and the turn, each uniformly.
    """
    b, c, s = (random.uniform(max(0, 1 - x), 1 + x) for x in strengths[:3])
    angle = 2 * math.pi * random.uniform(-strengths[3], strengths[3])
    return cv2.transform(image, color_matrix(b, c, s, angle, _mean_luma(image)))


def _mean_luma(image: np.ndarray) -> float:
    return cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]


def color_matrix(b: float, c: float, s: float, angle: float, mean_luma: float) -> np.ndarray:
    """Matrix (3, 4) from (R, G, B, 1) to RGB: see ``jitter_colors``."""
    turn = s * (math.cos(angle) * CHROMA + math.sin(angle) * TURNED_CHROMA)
    matrix = b * c * (LUMA + turn)
    matrix[:, 3] = b * (1 - c) * mean_luma
    return matrix


class Normalisation:
    """From pixels (H, W, 3) of uint8 to float32 (3, H, W), by a table of 256 values per channel.

    The values are those of evaluation, bit for bit.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        values = np.arange(256, dtype=np.float32)
        self._tables = [
            (values - mean) / std
            for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)
        ]

    def __call__(self, image: np.ndarray, out: np.ndarray) -> None:
        """Normalise ``image`` into ``out``."""
        for plane, table, channel in zip(cv2.split(image), self._tables, out, strict=True):
            cv2.LUT(plane, table, channel)


def cut_out(image: np.ndarray, side: int, random: Random) -> None:
    """Zero a square of an image (C, H, W), or the part of it within the image.

    The centre is uniform within the image, as in DeVries and Taylor, arXiv 1708.04552. MindSpore's
    CutOut also draws centres up to half a side outside of the image, and so zeroes half as much.

    Args:
        image: changed in place.
        side: of the square, in pixels.
        random: draws the centre.
    """
    rows, columns = (
        slice(max(start, 0), max(start + side, 0))
        for start in (random.randrange(size) - side // 2 for size in image.shape[1:])
    )
    image[:, rows, columns] = 0
