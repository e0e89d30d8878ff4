"""From a source of images to batches, decoded and augmented by threads.

Chance comes from (seed, epoch, image) alone: an epoch gives the same images in the same
augmentation whatever the number of threads and ranks, and whichever batch it starts with. An image
that cannot be decoded is logged once. In training the next image replaces it, so that all ranks
take the same number of steps; in evaluation it is left out of every count.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import TypeAlias, TypeVar

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter

from src.data.augmentation import Normalisation, augment, cut_out
from src.data.class_balance import balanced_order
from src.data.decoding import ImageError
from src.data.preprocessing import Augmentation, PolicyName, Preprocessing
from src.data.sources import Source
from src.errors import Fault, UserError

log = logging.getLogger(__name__)

Row: TypeAlias = tuple[np.ndarray, np.ndarray]  # an image (H, W, 3) of uint8, its label ()
Batch: TypeAlias = tuple[np.ndarray, np.ndarray]  # images (N, 3, H, W) of float32, labels (N,)
Task = TypeVar("Task")
Result = TypeVar("Result")


def evaluation_transforms(preprocessing: Preprocessing) -> list[Callable]:
    """Operations from pixels (H, W, 3) to a normalised float32 array (3, height, width)."""
    return [
        vision.Resize(preprocessing.resize, Inter.BILINEAR),
        vision.CenterCrop((preprocessing.height, preprocessing.width)),
        vision.Normalize(preprocessing.mean, preprocessing.std),
        vision.HWC2CHW(),
    ]


class AutoAugment:
    """MindSpore's AutoAugment, of which every call is seeded.

    Args:
        policy: its name.
    """

    # MindSpore has one seed for all threads.
    _lock = threading.Lock()

    def __init__(self, policy: PolicyName) -> None:
        self._operation = vision.AutoAugment(
            vision.AutoAugmentPolicy[policy.upper()], Inter.BILINEAR
        )

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Augment an image (H, W, 3) of uint8; the seed is below 2**31."""
        with self._lock:
            ds.config.set_seed(seed)
            return self._operation(image)


def in_threads(
    function: Callable[[Task], Result], tasks: Iterable[Task], threads: int, ahead: int
) -> Iterator[Result]:
    """Results in the order of tasks, computed by threads, at most ``ahead`` before they are used.

    Decoding and OpenCV release Python's lock, so that threads run side by side. MindSpore's own
    threads for Python sources halve the speed.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Rows:
    """Reads rows (image, label); remembers what cannot be decoded.

    Args:
        source: the images.
        pool: indices of those that are used.
        replaces: whether another image of the pool replaces one that cannot be decoded.
    """

    LEFT_OUT = -1  # label of a row that evaluation does not count
    MOST_REPLACED = 100  # images in a row; more mean a lost disk rather than damaged files

    def __init__(self, source: Source, pool: np.ndarray, replaces: bool) -> None:
        # Sorted, so that the image after one that cannot be decoded is found by bisection.
        self._source, self._pool, self._replaces = source, np.sort(pool), replaces
        self._lock = threading.Lock()
        self.bad_images: dict[int, str] = {}

    def read(self, index: int) -> Row:
        """The row of ``index``, or of the first image after it that can be decoded.

        Raises:
            Fault: too many images in a row cannot be decoded.
        """
        for other in self._candidates(index):
            try:
                # An array, not a scalar: MindSpore cannot take NumPy 2's scalars.
                return self._source.read(other), np.asarray(self._source.labels[other])
            except ImageError as error:
                self._note(other, str(error))
        if not self._replaces:
            return np.zeros((1, 1, 3), np.uint8), np.asarray(self.LEFT_OUT, np.int32)
        raise Fault(
            f"{self._source.path}: {min(len(self._pool), self.MOST_REPLACED)} images in a row "
            f"cannot be used, the last one {self._source.name(other)}: {self.bad_images[other]}"
        )

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        if self._replaces:
            start, size = int(np.searchsorted(self._pool, index)), len(self._pool)
            for offset in range(1, min(size, self.MOST_REPLACED)):
                yield int(self._pool[(start + offset) % size])

    def _note(self, index: int, reason: str) -> None:
        with self._lock:
            if index not in self.bad_images:
                self.bad_images[index] = reason
                log.warning(
                    "%s: %s; %s",
                    self._source.name(index),
                    reason,
                    "another image takes its place" if self._replaces else "not evaluated",
                )


class Loader:
    """Batches of one split, for one rank.

    Args:
        source: the images of the split.
        preprocessing: size and normalisation.
        batch_size: images per batch on this rank.
        training: whether to shuffle and to leave out the last partial batch; evaluation visits
            every image exactly once, in order.
        augmentation: for training; None for none.
        seed: of order and augmentation.
        rank: number of this rank.
        device_num: number of ranks.
        num_parallel_workers: threads that decode and augment.
        max_images: use only so many images, a fixed random choice; None for all.
        balanced: every training epoch has the same number of images of each class.
        replace_damaged: whether another image takes the place of one that cannot be decoded, as
            in every training; else an evaluation leaves it out.

    Raises:
        UserError: there are fewer images than a training batch needs.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        training: bool,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rank: int = 0,
        device_num: int = 1,
        num_parallel_workers: int = 2,
        max_images: int | None = None,
        balanced: bool = False,
        replace_damaged: bool = False,
    ) -> None:
        self.source, self.batch_size = source, batch_size
        self._preprocessing, self._augmentation = preprocessing, augmentation or Augmentation()
        policy = self._augmentation.auto_augment
        self._auto_augment = AutoAugment(policy) if policy else None
        self._normalise = Normalisation(preprocessing)
        self._training, self._balanced = training, balanced
        self._seed, self._rank, self._device_num = seed, rank, device_num
        # More workers than cores are refused by MindSpore; the model zoo's files ask for 16.
        self._workers = max(1, min(num_parallel_workers, os.cpu_count() or 1))
        # Seed 0 whatever ``seed`` is: runs of other seeds are then compared on the same images.
        self._pool = (
            np.random.default_rng(0).permutation(len(source))[:max_images]
            if max_images
            else np.arange(len(source))
        )
        self._rows = _Rows(source, self._pool, training or replace_damaged)
        if training and len(self) < batch_size * device_num:
            raise UserError(
                f"batch_size {batch_size} on {device_num} device(s) is larger than the data set: "
                f"{len(self)} images of {source.path}"
            )

    def __len__(self) -> int:
        """Images per epoch, of all ranks."""
        return len(self._pool)

    @property
    def bad_images(self) -> dict[int, str]:
        """Index and reason of the images that could not be used so far."""
        return self._rows.bad_images

    @property
    def class_counts(self) -> np.ndarray:
        """Images of each class, (classes,), of all ranks."""
        return np.bincount(self.source.labels[self._pool], minlength=len(self.source.classes))

    @property
    def batches_per_epoch(self) -> int:
        """Batches per training epoch, on each rank."""
        return len(self) // (self.batch_size * self._device_num)

    def _indices(self, epoch: int) -> np.ndarray:
        """Numbers of this rank's images in order; one beyond the source is an image once more.

        Rank r takes every ``device_num``-th image from the r-th on, so that a step of all ranks
        sees the same images as a step of one rank with as many times the batch.
        """
        if not self._training:
            return self._pool[self._rank :: self._device_num]
        random = np.random.default_rng((self._seed, epoch))
        if self._balanced:
            order = balanced_order(self.source.labels, self._pool, random)
        else:
            order = random.permutation(self._pool)
        used = self.batches_per_epoch * self.batch_size * self._device_num
        return order[:used][self._rank :: self._device_num]

    def epoch(self, epoch: int = 0, skip_batches: int = 0) -> Iterator[Batch]:
        """Yield images (N, 3, H, W) of float32 and labels (N,) of int32.

        The last batch of an evaluation may be short. Whoever keeps a batch copies it, since the
        arrays of an evaluation share the pipeline's memory.

        Args:
            epoch: number of the epoch, which decides order and augmentation.
            skip_batches: of a training epoch, leave out the first batches.

        Raises:
            Fault: too many images in a row cannot be decoded.
        """
        indices = self._indices(epoch)
        if self._training:
            yield from self._training_batches(indices, epoch, skip_batches)
        elif len(indices):
            yield from self._evaluation_batches(indices)

    def _evaluation_batches(self, indices: np.ndarray) -> Iterator[Batch]:
        """Batches through MindSpore's pipeline, whose pixels are those of the C++ application."""

        def rows() -> Iterator[Row]:
            # Enough that no thread waits, and few enough for the memory of large images.
            return in_threads(self._rows.read, indices.tolist(), self._workers, 8 * self._workers)

        images = ds.GeneratorDataset(rows, ["image", "label"], shuffle=False)
        images = images.map(
            evaluation_transforms(self._preprocessing), "image", num_parallel_workers=self._workers
        )
        images = images.batch(self.batch_size, num_parallel_workers=1)
        # Without copies the arrays share the pipeline's memory.
        for pixels, labels in images.create_tuple_iterator(
            num_epochs=1, output_numpy=True, do_copy=False
        ):
            whole = labels != _Rows.LEFT_OUT
            yield (pixels, labels) if whole.all() else (pixels[whole], labels[whole])

    def _training_batches(self, indices: np.ndarray, epoch: int, first: int) -> Iterator[Batch]:
        """Batches from number ``first`` on, whose images the threads write into their places."""
        size = self.batch_size
        shape = (size, 3, self._preprocessing.height, self._preprocessing.width)

        def places() -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
            for batch in indices.reshape(-1, size)[first:]:
                images, labels = np.empty(shape, np.float32), np.empty(size, np.int32)
                for place, index in enumerate(batch.tolist()):
                    yield index, images, labels, place

        def fill(task: tuple[int, np.ndarray, np.ndarray, int]) -> Batch:
            index, images, labels, place = task
            labels[place] = self._training_image(index, epoch, images[place])
            return images, labels

        # One batch is used, and one stands ready, while a third is computed.
        batches = in_threads(fill, places(), self._workers, 2 * size)
        for number, batch in enumerate(batches, start=1):
            if number % size == 0:
                yield batch

    def _training_image(self, number: int, epoch: int, out: np.ndarray) -> np.ndarray:
        """Write an augmented image (3, H, W) into ``out``; returns its label.

        An image that an epoch has several times has another number, and augmentation, each time.
        """
        preprocessing, augmentation = self._preprocessing, self._augmentation
        random = Random(f"{self._seed} {epoch} {number}")
        pixels, label = self._rows.read(number % len(self.source))
        image = augment(pixels, preprocessing, augmentation, random)
        if self._auto_augment:
            image = self._auto_augment(image, random.getrandbits(31))
        self._normalise(image, out)
        if augmentation.cutout:
            cut_out(out, augmentation.cutout, random)
        return label
