"""How many images each class has: in words, and batches in which all classes are equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

UNEVEN = 1.5  # largest class to smallest, from where on a run says so


def describe_imbalance(
    classes: Sequence[str], train: Sequence[int], val: Sequence[int] | None = None
) -> str:
    """One line on classes of different sizes; empty where they are about equal.

    Args:
        train: training images per class, (C,).
        val: validation images per class, (C,); None without validation.
    """
    most, least = int(np.argmax(train)), int(np.argmin(train))
    if train[most] < UNEVEN * train[least]:
        return ""
    counts, where = (train, "training") if val is None else (val, "validation")
    share = 100 * counts[most] / sum(counts)
    return (
        f"classes are uneven: {train[most]} training images of {classes[most]}, {train[least]} "
        f"of {classes[least]}; always answering {classes[most]} has a top-1 of {share:.1f} % on "
        f"the {where} images"
    )


def balanced_order(labels: np.ndarray, pool: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images for an epoch in which each class has the same number of them, in random order.

    The images of a small class come several times, of a large one not all come. Each class is
    drawn with the same probability in Kang et al., arXiv 1910.09217 ("class-balanced sampling");
    here it has the same share of every epoch, and none of its images comes twice before all came.

    Args:
        labels: of all images, (N,).
        pool: numbers of the images that are used, (P,).
        random: draws.

    Returns:
        (P,): number of the image plus N times the number of its earlier appearances in the epoch.
    """
    own = labels[pool]
    present = np.unique(own)
    share = -(-len(pool) // len(present))
    parts = []
    for label in present:
        images, places = random.permutation(pool[own == label]), np.arange(share)
        parts.append(images[places % len(images)] + len(labels) * (places // len(images)))
    return random.permutation(np.concatenate(parts))[: len(pool)]
