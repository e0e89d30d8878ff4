"""What a run and an evaluation say of each class. Imports no framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CLASSES = "classes.json"  # in a run's folder, of a ``ClassCounts``


@dataclass(frozen=True)
class ClassCounts:
    """Images that a run has of each class.

    Attributes:
        classes: their names, in the order of their labels.
        train: images to train on, (C,).
        val: images to validate on, (C,); None without validation.
    """

    classes: tuple[str, ...]
    train: tuple[int, ...]
    val: tuple[int, ...] | None = None


@dataclass(frozen=True)
class OfClass:
    """A class in an evaluation.

    Attributes:
        images: of the class.
        top1: percent; None without images.
        predicted: how many of its images were taken for which class, without zeros.
    """

    name: str
    images: int
    top1: float | None
    predicted: Mapping[str, int]

    @property
    def taken_for(self) -> str | None:
        """The other class that its images were most often taken for; None where there is none."""
        wrong = {name: count for name, count in self.predicted.items() if name != self.name}
        return max(wrong, key=lambda name: wrong[name], default=None)

    def to_dict(self) -> dict[str, Any]:
        """What eval.json holds."""
        own = {key: value for key, value in vars(self).items() if key != "name"}
        return {"class": self.name, **own}


def of_classes(classes: Sequence[str], confusion: np.ndarray) -> list[OfClass]:
    """The classes of a confusion matrix (C, C): images by class and by what they were taken for."""
    found = []
    for number, (name, counts) in enumerate(zip(classes, confusion.tolist(), strict=True)):
        images = sum(counts)
        top1 = 100 * counts[number] / images if images else None
        predicted = {classes[other]: count for other, count in enumerate(counts) if count}
        found.append(OfClass(name, images, top1, predicted))
    return found
