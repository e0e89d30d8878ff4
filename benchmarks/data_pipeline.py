"""Images a second of the training pipeline, against bare decoding of the same files.

    python benchmarks/data_pipeline.py FOLDER                # FOLDER has one folder of JPEG files a class
    python benchmarks/data_pipeline.py FOLDER --workers 4 --rounds 10

The pipeline reads, decodes, augments as for ImageNet at 224x224 and batches one epoch; bare
decoding reads and decodes every file with libjpeg-turbo (simplejpeg) in as many threads, and drops
the pixels. The third is MindSpore's own reading and decoding with the same augmentation, which a
damaged file may end: the difference to it is what safety costs. They take turns, after a first turn
of each that is not counted. The start of the pipeline is part of an epoch: it weighs on folders of
few images. The ratio is the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import simplejpeg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def decode(path: str) -> int:
    """Decode a file; returns 1, or 0 for one that libjpeg-turbo does not turn into RGB."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        simplejpeg.decode_jpeg(data, "RGB", strict=False)
    except ValueError:
        return 0
    return 1


def unchecked_pipeline(folder: str, config, workers: int, batch_size: int):
    """Batches of MindSpore's own reader and decoder, augmented as ``config`` says."""
    import mindspore.dataset as ds
    from mindspore.dataset import vision

    augmentation = config.augmentation()
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
    """Images a second of a function that returns the number of its images."""
    start = time.perf_counter()
    images = turn()
    return images / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="folder with one folder of JPEG files a class"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--workers", type=int, default=2, help="threads; fewer where there are fewer cores"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args(argv)
    if min(args.rounds, args.workers, args.batch_size) < 1:
        parser.error("--rounds, --workers and --batch_size must be at least 1")

    from src.config import TrainConfig, imagenet_cfg
    from src.data.sources import ImageFolder
    from src.dataset import Loader
    from src.errors import UserError

    config = TrainConfig(**imagenet_cfg)
    workers = min(args.workers, os.cpu_count() or 1)  # as the loader does
    try:
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
    except UserError as error:
        print(f"data_pipeline.py: {error}", file=sys.stderr)
        return error.exit_code
    files = [source.name(index) for index in range(len(source))]
    pipeline, decoding, unchecked = [], [], []
    with ThreadPoolExecutor(workers) as pool:
        for number in range(args.rounds + 1):
            pipeline.append(rate(lambda: sum(len(labels) for _, labels in loader.epoch(number))))
            decoding.append(rate(lambda: sum(pool.map(decode, files))))
            unchecked.append(
                rate(
                    lambda: sum(
                        len(labels)
                        for _, labels in unchecked_pipeline(
                            args.folder, config, workers, args.batch_size
                        )
                    )
                )
            )
    pipeline, decoding, unchecked = pipeline[1:], decoding[1:], unchecked[1:]
    print(f"{len(files)} images, {workers} workers, batch {args.batch_size}, {args.rounds} rounds")
    print(f"{'contender':<24}{'median images/s':>16}{'min..max':>16}{'ratio':>7}")
    for name, rates in (
        ("training pipeline", pipeline),
        ("bare decoding", decoding),
        ("MindSpore's own decoder", unchecked),
    ):
        ratio = statistics.median(a / b for a, b in zip(rates, decoding))
        spread = f"{min(rates):.1f}..{max(rates):.1f}"
        print(f"{name:<24}{statistics.median(rates):>16.1f}{spread:>16}{ratio:>7.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
