"""From a source of images to batches, through MindSpore's C++ data pipeline.

Every epoch is a pipeline of its own, seeded by (seed, epoch): resuming in the middle of an epoch
repeats that epoch's beginning and none of the epochs before, and gives the same images in the same
augmentation. An image that cannot be decoded is logged once. In training the next image replaces
it, so that all ranks take the same number of steps; in evaluation it is left out of every count.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter

from src.data.decoding import ImageError
from src.data.preprocessing import Augmentation, Preprocessing
from src.data.sources import Source
from src.errors import Fault, UserError

log = logging.getLogger(__name__)

Row: TypeAlias = tuple[np.ndarray, np.ndarray]  # an image (H, W, 3) of uint8, its label ()
Batch: TypeAlias = tuple[np.ndarray, np.ndarray]  # images (N, 3, H, W) of float32, labels (N,)
Transforms: TypeAlias = list[Callable]  # operations of mindspore.dataset.vision


def evaluation_transforms(preprocessing: Preprocessing) -> Transforms:
    """Operations from pixels (H, W, 3) to a normalised float32 array (3, height, width)."""
    return [
        vision.Resize(preprocessing.resize, Inter.BILINEAR),
        vision.CenterCrop((preprocessing.height, preprocessing.width)),
        *_normalise(preprocessing),
    ]


def training_transforms(preprocessing: Preprocessing, augmentation: Augmentation) -> Transforms:
    """As ``evaluation_transforms``, with random augmentation."""
    size = (preprocessing.height, preprocessing.width)
    if augmentation.crop_scale is not None:
        transforms = [
            vision.RandomResizedCrop(
                size, scale=(augmentation.crop_scale, 1.0), interpolation=Inter.BILINEAR
            )
        ]
    else:
        transforms = [vision.Resize(preprocessing.resize, Inter.BILINEAR), vision.CenterCrop(size)]
        if augmentation.crop_padding:
            transforms.append(vision.RandomCrop(size, augmentation.crop_padding))
    if augmentation.flip:
        transforms.append(vision.RandomHorizontalFlip())
    if augmentation.color_jitter:
        transforms.append(vision.RandomColorAdjust(*augmentation.color_jitter))
    if augmentation.auto_augment:
        policy = vision.AutoAugmentPolicy[augmentation.auto_augment.upper()]
        transforms.append(vision.AutoAugment(policy, Inter.BILINEAR))
    return transforms + _normalise(preprocessing)


def cut_out(images: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """Images (N, C, H, W) with a square of each zeroed, or the part of it within the image.

    The centre is uniform within the image, as in DeVries and Taylor, arXiv 1708.04552. MindSpore's
    CutOut also draws centres up to half a side outside of the image, and so zeroes half as much.

    Args:
        images: float32.
        side: of the square, in pixels.
        random: draws the centres.
    """

    def covered(size: int) -> np.ndarray:
        offset = np.arange(size) - random.integers(size, size=(len(images), 1))
        return (-(side // 2) <= offset) & (offset < side - side // 2)

    rows, columns = covered(images.shape[2]), covered(images.shape[3])
    return np.where((rows[:, :, None] & columns[:, None, :])[:, None], np.float32(0), images)


def _normalise(preprocessing: Preprocessing) -> Transforms:
    return [vision.Normalize(preprocessing.mean, preprocessing.std), vision.HWC2CHW()]


class _Rows:
    """Reads rows (image, label); remembers what cannot be decoded.

    Args:
        source: the images.
        pool: indices of those that are used.
        training: whether another image of the pool replaces one that cannot be decoded.
    """

    LEFT_OUT = -1  # label of a row that evaluation does not count
    MOST_REPLACED = 100  # images in a row; more mean a lost disk rather than damaged files

    def __init__(self, source: Source, pool: np.ndarray, training: bool) -> None:
        # Sorted, so that the image after one that cannot be decoded is found by bisection.
        self._source, self._pool, self._training = source, np.sort(pool), training
        self._lock = threading.Lock()
        self.bad_images: dict[int, str] = {}
        self.failure: Fault | None = None

    def read(self, index: int) -> Row:
        """The row of ``index`` or, in training, of the first image after it that can be decoded.

        Raises:
            Fault: too many images in a row cannot be decoded.
        """
        for other in self._candidates(index):
            try:
                # An array, not a scalar: MindSpore cannot take NumPy 2's scalars.
                return self._source.read(other), np.asarray(self._source.labels[other])
            except ImageError as error:
                self._note(other, str(error))
        if not self._training:
            return np.zeros((1, 1, 3), np.uint8), np.asarray(self.LEFT_OUT, np.int32)
        self.failure = Fault(
            f"{self._source.path}: {min(len(self._pool), self.MOST_REPLACED)} images in a row "
            f"cannot be used, the last one {self._source.name(other)}: {self.bad_images[other]}"
        )
        raise self.failure

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        if self._training:
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
                    "another image takes its place" if self._training else "not evaluated",
                )

    def in_order(self, indices: np.ndarray, threads: int) -> Iterator[Row]:
        """Rows in the order of ``indices``, decoded ahead by threads.

        MindSpore's own threads for Python sources halve the speed; ``decode_image`` releases
        Python's lock, so that these run side by side.
        """
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque[Future[Row]] = deque()
            for index in indices.tolist():
                ahead.append(pool.submit(self.read, index))
                # Enough that no thread waits, and few enough for the memory of large images.
                if len(ahead) > 8 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


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
        num_parallel_workers: threads that decode, and threads that augment.
        max_images: use only so many images, a fixed random choice; None for all.

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
    ) -> None:
        self.source, self.batch_size = source, batch_size
        self._preprocessing, self._augmentation = preprocessing, augmentation
        self._training = training
        self._seed, self._rank, self._device_num = seed, rank, device_num
        # More workers than cores are refused by MindSpore; the model zoo's files ask for 16.
        self._workers = max(1, min(num_parallel_workers, os.cpu_count() or 1))
        # Seed 0 whatever ``seed`` is: runs of other seeds are then compared on the same images.
        self._pool = (
            np.random.default_rng(0).permutation(len(source))[:max_images]
            if max_images
            else np.arange(len(source))
        )
        self._rows = _Rows(source, self._pool, training)
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
    def batches_per_epoch(self) -> int:
        """Batches per training epoch, on each rank."""
        return len(self) // (self.batch_size * self._device_num)

    def _indices(self, epoch: int) -> np.ndarray:
        """Indices of this rank's images in order.

        Rank r takes every ``device_num``-th image from the r-th on, so that a step of all ranks
        sees the same images as a step of one rank with as many times the batch.
        """
        if not self._training:
            return self._pool[self._rank :: self._device_num]
        order = np.random.default_rng((self._seed, epoch)).permutation(self._pool)
        used = self.batches_per_epoch * self.batch_size * self._device_num
        return order[:used][self._rank :: self._device_num]

    def _pipeline(self, indices: np.ndarray, epoch: int) -> Iterator[Batch]:
        """Batches of the images of ``indices``, before cutout, through MindSpore's pipeline."""
        # Primes, so that no two of the usual seeds, epochs and ranks share a value; the sum is
        # taken into the range of MindSpore's seeds.
        ds.config.set_seed((self._seed * 1_000_003 + epoch * 8191 + self._rank) % 2**31)
        transforms = (
            evaluation_transforms(self._preprocessing)
            if self._augmentation is None
            else training_transforms(self._preprocessing, self._augmentation)
        )
        rows = ds.GeneratorDataset(
            lambda: self._rows.in_order(indices, self._workers), ["image", "label"], shuffle=False
        )
        rows = rows.map(transforms, "image", num_parallel_workers=self._workers)
        rows = rows.batch(self.batch_size, drop_remainder=self._training, num_parallel_workers=1)
        # Without copies the arrays share the pipeline's memory.
        return rows.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False)

    def epoch(self, epoch: int = 0, skip_batches: int = 0) -> Iterator[Batch]:
        """Yield images (N, 3, H, W) of float32 and labels (N,) of int32.

        The last batch of an evaluation may be short. Whoever keeps a batch copies it, since the
        arrays share the pipeline's memory.

        Args:
            epoch: number of the epoch, which decides order and augmentation.
            skip_batches: leave out the first batches, which are still computed so that the random
                state of those that follow is the same.

        Raises:
            Fault: too many images in a row cannot be decoded.
        """
        indices = self._indices(epoch)
        if not len(indices):
            return
        cutout = self._augmentation.cutout if self._augmentation else 0
        try:
            for number, (images, labels) in enumerate(self._pipeline(indices, epoch)):
                if number < skip_batches:
                    continue
                if cutout:
                    random = np.random.default_rng((self._seed, epoch, self._rank, number))
                    images = cut_out(images, cutout, random)
                whole = labels != _Rows.LEFT_OUT
                yield (images, labels) if whole.all() else (images[whole], labels[whole])
        except RuntimeError:
            # MindSpore wraps what its Python sources raise into pages of text.
            if self._rows.failure:
                raise self._rows.failure from None
            raise
