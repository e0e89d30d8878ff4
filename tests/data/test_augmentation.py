"""Training images: the pixels of MindSpore's operations for the same draws, and fair draws."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter
from sklearn.datasets import load_sample_image

from src.data.augmentation import (
    Normalisation,
    augment,
    color_matrix,
    cut_out,
    jitter_colors,
    random_box,
)
from src.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Augmentation, Preprocessing
from src.dataset import evaluation_transforms

SIZE_224 = Preprocessing(224, 224, 256, IMAGENET_MEAN, IMAGENET_STD)
SIZE_32 = Preprocessing(32, 32, 32, IMAGENET_MEAN, IMAGENET_STD)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A photograph, (427, 640, 3) of uint8."""
    return load_sample_image("china.jpg")


def normalised(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    out = np.empty((3, preprocessing.height, preprocessing.width), np.float32)
    Normalisation(preprocessing)(image, out)
    return out


@pytest.mark.parametrize("seed", range(5))
def test_a_random_crop_is_resized_as_mindspore_does(photo, seed):
    top, left, height, width = random_box(427, 640, 0.08, Random(seed))
    part = np.ascontiguousarray(photo[top : top + height, left : left + width])
    np.testing.assert_array_equal(
        augment(photo, SIZE_224, Augmentation(crop_scale=0.08), Random(seed)),
        vision.Resize((224, 224), Inter.BILINEAR)(part),
    )


@pytest.mark.parametrize(
    "size, height, width, resize",
    [
        ((427, 640), 224, 224, 256),
        ((640, 427), 224, 192, 299),
        ((33, 32), 32, 32, 32),
        ((301, 300), 225, 224, 257),
        ((49, 49), 64, 64, 64),  # 64 / 49 * 49 is less than 64 in double precision
        ((20, 170), 224, 224, 224),
        ((40, 40), 33, 64, 36),  # narrower than the crop, which is filled up with zeros
    ],
)
def test_without_augmentation_training_sees_what_evaluation_sees(
    photo, size, height, width, resize
):
    pixels = np.ascontiguousarray(np.swapaxes(photo, 0, 1) if size[0] > size[1] else photo)
    pixels = pixels[: size[0], : size[1]].copy()
    preprocessing = Preprocessing(height, width, resize, IMAGENET_MEAN, IMAGENET_STD)
    expected = pixels
    for transform in evaluation_transforms(preprocessing):
        expected = transform(expected)
    image = augment(pixels, preprocessing, Augmentation(), Random(0))
    np.testing.assert_array_equal(normalised(image, preprocessing), expected)


def test_random_boxes_have_the_areas_and_ratios_that_are_asked_for():
    random = Random(0)
    boxes = np.array([random_box(300, 400, 0.25, random) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (boxes >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    areas, ratios = height * width / (300 * 400), width / height
    assert areas.min() == pytest.approx(0.25, abs=0.01) and areas.max() > 0.95
    assert ratios.min() == pytest.approx(3 / 4, abs=0.02)
    assert ratios.max() == pytest.approx(4 / 3, abs=0.02)
    # They reach every edge, and lie in the middle on average.
    assert top.min() == left.min() == 0
    assert (top + height).max() == 300 and (left + width).max() == 400
    assert np.mean(top + height / 2) == pytest.approx(150, abs=3)
    assert np.mean(left + width / 2) == pytest.approx(200, abs=3)


def test_images_too_narrow_for_a_random_box_give_their_middle():
    assert random_box(10, 1000, 0.5, Random(0)) == (0, 493, 10, 13)
    assert random_box(1000, 9, 0.5, Random(0)) == (494, 0, 12, 9)
    assert random_box(1, 1, 0.08, Random(0)) == (0, 0, 1, 1)


def test_a_padded_crop_takes_every_place_and_is_zero_outside():
    image = np.random.default_rng(0).integers(1, 256, (32, 32, 3), np.uint8)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    places = {padded[y : y + 32, x : x + 32].tobytes() for y in range(5) for x in range(5)}
    random = Random(0)
    crops = [augment(image, SIZE_32, Augmentation(crop_padding=2), random) for _ in range(300)]
    assert {crop.tobytes() for crop in crops} == places


def test_half_of_the_images_are_flipped(photo):
    random, image = Random(0), photo[:32, :32]
    flipped = [augment(image, SIZE_32, Augmentation(flip=True), random) for _ in range(400)]
    mirrored = sum(np.array_equal(other, image[:, ::-1]) for other in flipped)
    same = sum(np.array_equal(other, image) for other in flipped)
    assert mirrored + same == 400 and 160 < mirrored < 240


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Saturation"])
def test_colours_change_as_mindspore_changes_them(photo, name, factor):
    image = (64 + photo // 4).astype(np.uint8)  # so that no pixel is clipped
    factors = {"Brightness": 1.0, "Contrast": 1.0, "Saturation": 1.0, name: factor}
    luma = float((image @ [0.299, 0.587, 0.114]).mean())
    matrix = color_matrix(*factors.values(), 0.0, luma)
    changed = image @ matrix[:, :3].T + matrix[:, 3]
    expected = getattr(vision, f"Adjust{name}")(factor)(image)
    assert np.abs(changed - expected).max() < 1.5


def test_hue_turns_colours_and_keeps_luma():
    grey, red = np.array([90, 90, 90]), np.array([200, 90, 90])
    third = color_matrix(1, 1, 1, 2 * math.pi / 3, 0)[:, :3]
    np.testing.assert_allclose(third @ grey, grey)
    np.testing.assert_allclose(third @ third @ third @ red, red)
    luma = np.array([0.299, 0.587, 0.114])
    assert luma @ third @ red == pytest.approx(luma @ red)
    assert np.argmax(third @ red) != 0


def test_jitter_draws_within_its_strengths(photo):
    image = (64 + photo[:64, :64] // 4).astype(np.uint8)
    np.testing.assert_array_equal(jitter_colors(image, (0, 0, 0, 0), Random(0)), image)
    random = Random(0)
    factors = [
        jitter_colors(image, (0.5, 0, 0, 0), random).mean() / image.mean() for _ in range(500)
    ]
    assert min(factors) == pytest.approx(0.5, abs=0.02)
    assert max(factors) == pytest.approx(1.5, abs=0.02)
    spreads = [jitter_colors(image, (0, 0.4, 0, 0), random).std() / image.std() for _ in range(500)]
    assert min(spreads) == pytest.approx(0.6, abs=0.03)
    assert max(spreads) == pytest.approx(1.4, abs=0.03)
    # One colour, whose mean shows what happens to every pixel.
    colour = np.full((2, 2, 3), (180, 90, 60), np.uint8)
    chroma = np.array([[0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # I and Q of YIQ
    before = complex(*chroma @ colour[0, 0])

    def changes(strengths):
        drawn = [jitter_colors(colour, strengths, random)[0, 0] for _ in range(500)]
        return [complex(*chroma @ pixel) / before for pixel in drawn]

    sizes = np.abs(changes((0, 0, 0.4, 0)))
    assert (sizes.min(), sizes.max()) == pytest.approx((0.6, 1.4), abs=0.03)
    turns = np.angle(changes((0, 0, 0, 0.1)), deg=True)
    assert (turns.min(), turns.max()) == pytest.approx((-36, 36), abs=2)


def test_cutout_zeroes_a_square_around_any_pixel():
    random, seen = Random(1), []
    for _ in range(4000):
        image = np.ones((3, 32, 24), np.float32)
        cut_out(image, 16, random)
        zero = image == 0
        assert (zero == zero[:1]).all()
        rows, columns = zero[0].any(1), zero[0].any(0)
        assert (zero[0] == (rows[:, None] & columns)).all()
        seen.append((rows.sum(), columns.sum()))
    for sides, size in zip(np.transpose(seen), (32, 24), strict=True):
        expected = [min(centre + 8, size) - max(centre - 8, 0) for centre in range(size)]
        assert set(sides) == set(expected)
        assert sides.mean() == pytest.approx(np.mean(expected), rel=0.01)
