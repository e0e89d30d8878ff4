"""Images per second of the training pipeline, against bare decoding of the same files.

    python benchmarks/data_pipeline.py FOLDER     # FOLDER has one folder of JPEG files per class
    python benchmarks/data_pipeline.py FOLDER --workers 4 --rounds 10

The pipeline reads, decodes, augments as for ImageNet at 224x224 and batches one epoch; bare
decoding reads and decodes every file with libjpeg-turbo (simplejpeg) in as many threads, and drops
the pixels. The third is MindSpore's own reading and decoding with the same augmentation, in which a
damaged file may end the process: the difference to it is what safety costs. They take turns, after
a first turn of each that is not counted. The start of the pipeline is part of an epoch, so it
counts for much with folders of few images. The ratio is the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import simplejpeg

from benchmarks.contenders import median_ratio
from src.config import TrainConfig, imagenet_cfg
from src.errors import UserError


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


def rate(turn: Callable[[], int]) -> float:
    """Images per second of a function that returns the number of its images."""
    start = time.perf_counter()
    images = turn()
    return images / (time.perf_counter() - start)


def measure(args: argparse.Namespace) -> None:
    """Measure all, and print the table.

    Raises:
        UserError: the folder is none of images.
    """
    from src.data.sources import ImageFolder
    from src.dataset import Loader

    config = TrainConfig(**imagenet_cfg)
    workers = min(args.workers, os.cpu_count() or 1)  # as the loader does
    source = ImageFolder(args.folder)
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

    def unchecked() -> int:
        batches = unchecked_pipeline(args.folder, config, workers, args.batch_size)
        return sum(len(labels) for _, labels in batches)

    rates: dict[str, list[float]] = {
        "training pipeline": [],
        "bare decoding": [],
        "MindSpore's own decoder": [],
    }
    with ThreadPoolExecutor(workers) as pool:
        turns: tuple[Callable[[int], int], ...] = (
            lambda epoch: sum(len(labels) for _, labels in loader.epoch(epoch)),
            lambda epoch: sum(pool.map(decode, files)),
            lambda epoch: unchecked(),
        )
        for epoch in range(args.rounds + 1):
            for found, turn in zip(rates.values(), turns, strict=True):
                found.append(rate(functools.partial(turn, epoch)))
    rates = {name: found[1:] for name, found in rates.items()}  # the first round is not counted
    print(f"{len(files)} images, {workers} workers, batch {args.batch_size}, {args.rounds} rounds")
    print(f"{'contender':<24}{'median images/s':>16}{'min..max':>16}{'ratio':>7}")
    for name, found in rates.items():
        ratio = median_ratio(found, rates["bare decoding"])
        spread = f"{min(found):.1f}..{max(found):.1f}"
        print(f"{name:<24}{statistics.median(found):>16.1f}{spread:>16}{ratio:>7.2f}")


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="folder with one folder of JPEG files per class"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--workers", type=int, default=2, help="threads; fewer where there are fewer cores"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args(argv)
    if min(args.rounds, args.workers, args.batch_size) < 1:
        parser.error("--rounds, --workers and --batch_size must be at least 1")
    try:
        measure(args)
    except UserError as error:
        print(f"data_pipeline.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
