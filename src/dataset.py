"""From a source of images to batches, through MindSpore's C++ data pipeline.

Every epoch is a pipeline of its own, seeded by (seed, epoch): resuming in the middle of an epoch
repeats that epoch's beginning and none of the epochs before, and gives the same images in the same
augmentation. An image that cannot be decoded is named once; in training the next image takes its
place, so that all ranks keep step, and in evaluation it is left out of every count.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter

from src.data.decoding import ImageError
from src.data.preprocessing import Augmentation, Preprocessing
from src.data.sources import ImageFolder, PixelArray
from src.errors import Fault, UserError

log = logging.getLogger(__name__)


def evaluation_transforms(preprocessing: Preprocessing) -> list:
    """Operations from pixels (H, W, 3) to a normalised (3, height, width) float32 array, without randomness."""
    return [
        vision.Resize(preprocessing.resize, Inter.BILINEAR),
        vision.CenterCrop((preprocessing.height, preprocessing.width)),
        *_normalise(preprocessing),
    ]


def training_transforms(preprocessing: Preprocessing, augmentation: Augmentation) -> list:
    """Operations from pixels (H, W, 3) to a normalised (3, height, width) float32 array, with augmentation."""
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
    """Images (N, C, H, W) with a square of each zeroed, or what of it lies within the image.

    Its centre is uniform within the image, as in DeVries and Taylor, arXiv 1708.04552. MindSpore's
    CutOut draws it from half a side around the image as well, and zeroes half as much.
    """

    def covered(size: int) -> np.ndarray:
        offset = np.arange(size) - random.integers(size, size=(len(images), 1))
        return (-(side // 2) <= offset) & (offset < side - side // 2)

    rows, columns = covered(images.shape[2]), covered(images.shape[3])
    return np.where((rows[:, :, None] & columns[:, None, :])[:, None], np.float32(0), images)


def _normalise(preprocessing: Preprocessing) -> list:
    return [vision.Normalize(preprocessing.mean, preprocessing.std), vision.HWC2CHW()]


class _Rows:
    """Reads rows (image, label); remembers what cannot be decoded."""

    LEFT_OUT = -1  # label of a row that evaluation does not count
    MOST_REPLACED = 100  # images in a row; more mean a lost disk rather than damaged files

    def __init__(self, source: ImageFolder | PixelArray, pool: np.ndarray, training: bool) -> None:
        self._source, self._pool, self._training = source, np.sort(pool), training
        self._lock = threading.Lock()
        self.bad_images: dict[int, str] = {}
        self.failure: Fault | None = None

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The row of ``index`` or, in training, of the first image after it that can be decoded."""
        for other in self._candidates(index):
            try:
                # An array, not a scalar: MindSpore cannot take NumPy 2's scalars.
                return self._source.read(other), np.asarray(self._source.labels[other])
            except ImageError as error:
                self._note(other, str(error))
        if not self._training:
            return np.zeros((1, 1, 3), np.uint8), np.asarray(self.LEFT_OUT, np.int32)
        self.failure = Fault(
            f"{self._source.path}: {min(len(self._pool), self.MOST_REPLACED)} images in a row cannot "
            f"be used, the last one {self._source.name(other)}: {self.bad_images[other]}"
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

    def in_order(
        self, indices: np.ndarray, threads: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows in the order of ``indices``, decoded ahead by threads.

        MindSpore's own threads for Python sources halve the speed; these leave Python's lock to
        decode.
        """
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque = deque()
            for index in indices.tolist():
                ahead.append(pool.submit(self.read, index))
                if len(ahead) > 8 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


class Loader:
    """Batches of one split, for one rank.

    Args:
        augmentation: for training, which also shuffles and leaves out the last partial batch; None
            for evaluation, which visits every image exactly once, in order.
        batch_size: images a batch on this rank.
        max_images: use only so many images, a fixed random choice; None for all.
    """

    def __init__(
        self,
        source: ImageFolder | PixelArray,
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
        self._preprocessing, self._augmentation, self._training = (
            preprocessing,
            augmentation,
            training,
        )
        self._seed, self._rank, self._device_num = seed, rank, device_num
        # More workers than cores are refused by MindSpore; the model zoo's files ask for 16.
        self._workers = max(1, min(num_parallel_workers, os.cpu_count() or 1))
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
        """Images of an epoch over all ranks."""
        return len(self._pool)

    @property
    def bad_images(self) -> dict[int, str]:
        """Index and reason of the images that could not be used so far."""
        return self._rows.bad_images

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a training epoch on each rank."""
        return len(self) // (self.batch_size * self._device_num)

    def _indices(self, epoch: int) -> np.ndarray:
        """Indices of this rank's images in order; rank r takes every device_num-th from the r-th on."""
        if not self._training:
            return self._pool[self._rank :: self._device_num]
        order = np.random.default_rng((self._seed, epoch)).permutation(self._pool)
        used = self.batches_per_epoch * self.batch_size * self._device_num
        return order[:used][self._rank :: self._device_num]

    def epoch(
        self, epoch: int = 0, skip_batches: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield images (N, 3, H, W) of float32 and labels (N,) of int32; the last evaluation batch may be short.

        Args:
            skip_batches: leave out the first batches, which are still computed so that the random
                state of those that follow is the same.
        """
        indices = self._indices(epoch)
        if not len(indices):
            return
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
        batches = rows.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False)
        try:
            for number, (images, labels) in enumerate(batches):
                if number >= skip_batches:
                    if self._augmentation is not None and self._augmentation.cutout:
                        random = np.random.default_rng((self._seed, epoch, self._rank, number))
                        images = cut_out(images, self._augmentation.cutout, random)
                    whole = labels != _Rows.LEFT_OUT
                    yield (images, labels) if whole.all() else (images[whole], labels[whole])
        except RuntimeError:
            # MindSpore wraps what its Python sources raise into pages of text.
            if self._rows.failure:
                raise self._rows.failure from None
            raise
