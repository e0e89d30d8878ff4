"""Exact evaluation: sums over images, each image once.

The result depends neither on the batch size nor on the number of processes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mindspore import Tensor
from scipy.special import log_softmax

from src.devices.ranks import Ranks
from src.errors import Fault


class Source(Protocol):
    """Where images come from, for messages."""

    @property
    def path(self) -> Path:
        """Folder or file."""


class Batches(Protocol):
    """What an evaluation needs of a ``src.dataset.Loader``."""

    @property
    def source(self) -> Source:
        """Where the images come from."""

    @property
    def batch_size(self) -> int:
        """Images per batch; the last one may have fewer."""

    def epoch(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images (N, 3, H, W) of float32 and labels (N,) of each batch."""


@dataclass(frozen=True)
class Result:
    """Outcome of an evaluation: accuracies in percent, mean cross-entropy, images counted.

    Attributes:
        networks: of several networks together the top-1 of each, by name.
        confusion: images by class and by the class that they were taken for, (C, C); None where
            they were not counted.
    """

    top1: float
    top5: float
    loss: float
    images: int
    images_per_second: float
    networks: Mapping[str, float] = field(default_factory=dict)
    confusion: np.ndarray | None = field(default=None, compare=False)

    def metrics(self) -> dict[str, float]:
        """What a checkpoint says of it."""
        of_networks = {f"top1_{name}": top1 for name, top1 in self.networks.items()}
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss, **of_networks}


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy (N,) in float64 from logits (N, C) and labels (N,)."""
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the label, (N,).

    Of equal logits the lower class comes first, as in argmax.
    """
    own = logits[np.arange(len(labels)), labels][:, None]
    tied_before = (logits == own) & (np.arange(logits.shape[1]) < labels[:, None])
    # A NaN compares as false everywhere; it must not count as a hit.
    return np.where(np.isnan(own[:, 0]), logits.shape[1], ((logits > own) | tied_before).sum(1))


def predicted_classes(logits: np.ndarray) -> np.ndarray:
    """The class that each image is taken for, (N,); its own where ``label_ranks`` is 0."""
    return np.nan_to_num(logits, nan=-np.inf).argmax(1)


def evaluate(
    network: Callable[[Tensor], Tensor],
    loader: Batches,
    progress: Callable[[int], Any] | None = None,
    ranks: Ranks | None = None,
    num_classes: int | None = None,
) -> Result:
    """Evaluate a network in evaluation mode on every image of a loader.

    Args:
        network: from images (N, 3, H, W) to logits (N, classes).
        loader: batches of images and labels.
        progress: called with the number of images of each batch.
        ranks: the processes that share the images, each with its own loader; their sums are added
            up.
        num_classes: of the confusion matrix; it is not counted where omitted.

    Raises:
        Fault: none of the images could be read.
    """
    ranks = ranks or Ranks()
    hits1 = hits5 = images = 0
    loss = 0.0
    pairs: Counter[tuple[int, int]] = Counter()  # of classes; most pairs do not occur
    start = time.perf_counter()
    for batch, labels in loader.epoch():
        count = len(labels)
        if not count:  # a batch of images that could not be decoded
            continue
        # A short last batch is filled up, so that it needs no graph of its own; only real images
        # count.
        padding = [(0, loader.batch_size - count)] + [(0, 0)] * 3
        logits = network(Tensor(np.pad(batch, padding))).asnumpy()[:count]
        places = label_ranks(logits, labels)
        hits1 += int((places < 1).sum())
        hits5 += int((places < 5).sum())
        loss += float(cross_entropy(logits, labels).sum())
        images += count
        if num_classes:
            predicted = predicted_classes(logits)
            pairs.update(zip(labels.tolist(), predicted.tolist(), strict=True))
        if progress:
            progress(count)
    hits1, hits5, images, loss = (
        sum(parts) for parts in zip(*ranks.gather([hits1, hits5, images, loss]), strict=True)
    )
    if not images:
        raise Fault(f"{loader.source.path}: no image could be evaluated")
    seconds = time.perf_counter() - start
    confusion = None
    if num_classes:
        confusion = np.zeros((num_classes, num_classes), np.int64)
        for own in ranks.gather([[*pair, count] for pair, count in pairs.items()]):
            for label, taken, count in own:
                confusion[label, taken] += count
    return Result(
        100 * hits1 / images,
        100 * hits5 / images,
        loss / images,
        images,
        images / seconds,
        confusion=confusion,
    )
