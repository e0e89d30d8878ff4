"""Logits of a network by different programs: batches for them, and how much they differ.

Imports no framework.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from src.errors import Fault

Predict = Callable[[np.ndarray], np.ndarray]  # from images (N, 3, H, W) to logits (N, classes)


def full_batches(images: np.ndarray, size: int) -> np.ndarray:
    """The images, with as many repeated as fill the last batch of ``size``.

    An exported model takes full batches only. Images that fill them already are not copied.
    """
    count = -(-len(images) // size) * size
    return images if count == len(images) else np.resize(images, (count, *images.shape[1:]))


def largest_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of logits, relative to the largest expected one."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def check_difference(
    got: np.ndarray, expected: np.ndarray, tolerance: float, what: str, advice: str
) -> float:
    """``largest_difference`` of what must give the same logits.

    Raises:
        Fault: it is above the tolerance, or no number.
    """
    difference = largest_difference(got, expected)
    if not difference <= tolerance:  # true for NaN, which compares with nothing
        raise Fault(
            f"{what} changes the logits by {difference:.1e} of the largest one, more than "
            f"{tolerance:.0e}; {advice}"
        )
    return difference
