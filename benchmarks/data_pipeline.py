"""Images per second of the training pipeline, against bare decoding of the same files.

    python benchmarks/data_pipeline.py FOLDER     # FOLDER has one folder of JPEG files per class
    python benchmarks/data_pipeline.py FOLDER --workers 4 --rounds 25

The pipeline reads, decodes, augments as for ImageNet at 224x224 and batches one epoch; bare
decoding reads and decodes the same files with libjpeg-turbo (simplejpeg) in as many threads, and
drops the pixels. The third is MindSpore's own reading, decoding and augmentation of this kind, in
which a damaged file may end the process. They take turns, after a first turn of each that is not
counted. Few images are repeated, since the start of an epoch would count for much.

The table has the median and the best rate, and of the CPU milliseconds per image, of all threads
together, the median and the least. Each has its ratio to bare decoding: the median of the ratios
within a round, and best to best or least to least. Other work on the machine takes from a rate in
unequal shares; CPU time suffers less from it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg

from benchmarks.contenders import median_ratio, run
from src.config import TrainConfig, imagenet_cfg
from src.data.sources import ImageFolder


def decode(path: str) -> int:
    """Decode a file; returns 1, or 0 for one that libjpeg-turbo does not turn into RGB."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        simplejpeg.decode_jpeg(data, "RGB", strict=False)
    except ValueError:
        return 0
    return 1


def unchecked_pipeline(
    folder: str, config: TrainConfig, workers: int, batch_size: int
) -> Iterator[list[np.ndarray]]:
    """Batches of MindSpore's own reader and decoder, augmented as ``config`` says."""
    import mindspore.dataset as ds
    from mindspore.dataset import vision

    augmentation = config.augmentation()
    assert augmentation is not None and augmentation.color_jitter is not None  # of ImageNet
    images = ds.ImageFolderDataset(folder, num_parallel_workers=workers, shuffle=True)
    images = images.map(
        [
            vision.RandomCropDecodeResize(
                (config.image_height, config.image_width), (augmentation.crop_scale, 1.0)
            ),
            vision.RandomHorizontalFlip(),
            vision.RandomColorAdjust(*augmentation.color_jitter),
            vision.Normalize(config.mean, config.std),
            vision.HWC2CHW(),
        ],
        "image",
        num_parallel_workers=workers,
    )
    return images.batch(
        batch_size, drop_remainder=True, num_parallel_workers=1
    ).create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False)


@dataclass
class Contender:
    """What is timed: a function of the epoch that returns the number of its images."""

    name: str
    turn: Callable[[int], int]
    rates: list[float] = field(default_factory=list)  # images per second
    cpu_ms: list[float] = field(default_factory=list)  # per image

    def time(self, epoch: int) -> None:
        """Take a turn, and note what it took."""
        start, cpu_start = time.perf_counter(), time.process_time()
        images = self.turn(epoch)
        self.rates.append(images / (time.perf_counter() - start))
        self.cpu_ms.append(1000 * (time.process_time() - cpu_start) / images)


def repeat_images(folder: str, images: int, target: Path) -> None:
    """Fill a folder with links to the images of another, each as often as gives so many.

    Raises:
        UserError: the folder is none of images.
    """
    source = ImageFolder(folder)
    for number in range(-(-images // len(source))):
        for index in range(len(source)):
            file = Path(source.name(index)).absolute()
            link = target / file.parent.name / f"{number}_{file.name}"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(file)


def compare(args: argparse.Namespace, folder: str) -> None:
    """Measure all on the images of a folder, and print the table.

    Raises:
        UserError: there are fewer images than a batch needs.
    """
    from src.dataset import Loader

    config = TrainConfig(**imagenet_cfg)
    workers = min(args.workers, os.cpu_count() or 1)  # as the loader does
    source = ImageFolder(folder)
    loader = Loader(
        source,
        config.preprocessing(),
        batch_size=args.batch_size,
        training=True,
        augmentation=config.augmentation(),
        seed=config.seed,
        num_parallel_workers=workers,
    )
    files = [source.name(index) for index in range(len(source))]

    def unchecked(epoch: int) -> int:
        batches = unchecked_pipeline(folder, config, workers, args.batch_size)
        return sum(len(labels) for _, labels in batches)

    with ThreadPoolExecutor(workers) as pool:
        contenders = [
            Contender(
                "training pipeline",
                lambda epoch: sum(len(labels) for _, labels in loader.epoch(epoch)),
            ),
            bare := Contender("bare decoding", lambda epoch: sum(pool.map(decode, files))),
            Contender("MindSpore's own decoder", unchecked),
        ]
        for contender in contenders:
            contender.turn(0)  # not counted
        for epoch in range(1, args.rounds + 1):
            for contender in contenders:
                contender.time(epoch)
    print(f"{len(files)} images, {workers} workers, batch {args.batch_size}, {args.rounds} rounds")
    columns = f"{'median':>8}{'best':>8}{'ratios':>8}{'':>6}"
    print(f"{'':<24}{'images/s':>8}{'':>22}{'CPU ms/image':>16}")
    print(f"{'contender':<24}{columns}{columns.replace(' best', 'least')}")
    for contender in contenders:
        rates, cpu_ms = contender.rates, contender.cpu_ms
        print(
            f"{contender.name:<24}{statistics.median(rates):>8.0f}{max(rates):>8.0f}"
            f"{median_ratio(rates, bare.rates):>8.2f}{max(rates) / max(bare.rates):>6.2f}"
            f"{statistics.median(cpu_ms):>8.2f}{min(cpu_ms):>8.2f}"
            f"{median_ratio(bare.cpu_ms, cpu_ms):>8.2f}{min(bare.cpu_ms) / min(cpu_ms):>6.2f}"
        )


def measure(args: argparse.Namespace) -> None:
    """Compare on the images of a folder, repeated until they are enough."""
    with tempfile.TemporaryDirectory() as folder:
        repeat_images(args.folder, args.images, Path(folder))
        compare(args, folder)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="folder with one folder of JPEG files per class"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--workers", type=int, default=2, help="threads; fewer where there are fewer cores"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--images", type=int, default=1000, help="at least so many per turn")
    args = parser.parse_args(argv)
    if min(args.rounds, args.workers, args.batch_size, args.images) < 1:
        parser.error("--rounds, --workers, --batch_size and --images must be at least 1")
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
