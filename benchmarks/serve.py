"""What it takes to evaluate a network of a supernet, with statistics of its own.

    python benchmarks/serve.py
    python benchmarks/serve.py --space imagenet_32 --networks 25

An evaluation takes the statistics from some images and the accuracy on others, as
``scripts/evaluate_subnets.py`` does. Images are noise of the space's size, in memory, so that
nothing is decoded; weights are those before any training, which take as long. Networks are random,
uniform in their multiply-adds, in the order of drawing: they have few leading layers in common,
which would be computed once. The first one compiles the graphs, which serve all others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.contenders import noise
from src.arch.cost_table import arithmetic_table
from src.arch.sampling import UniformInCost
from src.arch.space import SearchSpace, load_space
from src.errors import UserError
from src.utils import run_main

if TYPE_CHECKING:  # importing MindSpore takes seconds, and mistakes are told before
    from src.search.subnet_evaluation import PathEvaluator, SuperkernelEvaluator
    from src.training.evaluation import Result

CLASSES = 10


class NoiseBatches:
    """Images of noise in memory, as batches of an evaluation.

    Args:
        count: number of images.
        batch_size: images per batch; the last one may have fewer.
        image_size: height and width in pixels.
    """

    def __init__(self, count: int, batch_size: int, image_size: int) -> None:
        self.source, self.batch_size = SimpleNamespace(path=Path("noise")), min(batch_size, count)
        self._images, self._labels = noise(count, image_size, CLASSES)

    def epoch(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images (N, 3, H, W) and labels (N,) of each batch."""
        for start in range(0, len(self._images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield self._images[batch], self._labels[batch]


def create_evaluator(
    space: SearchSpace,
    calibration_images: int,
    val_images: int,
    cpu_kernels: str = "auto",
    bfloat16: bool = False,
) -> SuperkernelEvaluator | PathEvaluator:
    """The evaluator of an untrained supernet; for a one-shot space of its paths.

    Args:
        bfloat16: evaluate paths in it.
    """
    import mindspore as ms

    from src.checkpoint.format import Checkpoint, Meta
    from src.checkpoint.restore import cell_weights
    from src.config import SubnetConfig, TrainConfig
    from src.kernels import use_kernels
    from src.search.one_shot import OneShotSupernet
    from src.search.subnet_evaluation import Images, PathEvaluator, SuperkernelEvaluator
    from src.spnasnet import SPNASNet
    from src.training.compile_cache import CompileCache
    from src.utils import setup_device

    setup_device("CPU", 0)
    ms.set_seed(0)
    config, side, arch = SubnetConfig(), space.image_size, space.largest()
    meta = Meta(
        arch,
        TrainConfig(image_height=side, image_width=side).preprocessing(),
        tuple(map(str, range(CLASSES))),
        space=space,
    )
    network = OneShotSupernet(space, CLASSES) if space.one_shot else SPNASNet(arch, CLASSES)
    checkpoint = Checkpoint(Path("untrained"), meta, cell_weights(network))
    images = Images(
        NoiseBatches(calibration_images, config.batch_size, side),
        NoiseBatches(val_images, config.batch_size, side),
        use_kernels(cpu_kernels),
        CompileCache({}, enabled=False),  # graphs are compiled
        bfloat16,
    )
    evaluator = PathEvaluator if space.one_shot else SuperkernelEvaluator
    return evaluator(checkpoint, images)


def evaluations(
    space: SearchSpace, calibration_images: int, val_images: int
) -> Iterator[tuple[float, Result]]:
    """Evaluate random networks without end; yields the seconds and the result of each."""
    evaluate = create_evaluator(space, calibration_images, val_images)
    networks = UniformInCost(space, arithmetic_table(space, "macs", CLASSES))
    rng = np.random.default_rng(0)
    while True:
        decisions = networks.draw(rng)
        start = time.perf_counter()
        result = evaluate(decisions)
        yield time.perf_counter() - start, result


def measure(args: argparse.Namespace) -> None:
    """Evaluate the networks and print their seconds.

    Raises:
        UserError: the space is that of a one-shot supernet.
    """
    space = load_space(args.space)
    if space.one_shot:
        raise UserError(
            f"space '{space.name}' is that of a one-shot supernet, which has no subnets"
        )
    evaluated = evaluations(space, args.calibration_images, args.val_images)
    first, *others = (next(evaluated)[0] for _ in range(1 + args.networks))
    print(
        f"{args.space}, {space.image_size}x{space.image_size}, seconds of a network: statistics of "
        f"{args.calibration_images} images, accuracy on {args.val_images}"
    )
    print(f"{'':<24}{'median':>8}{'least':>8}{'most':>8}")
    for name, seconds in (("first, compiles", [first]), (f"{args.networks} others", others)):
        print(
            f"{name:<24}{statistics.median(seconds):>8.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", default="nas_bench_macro", help="search space by name")
    parser.add_argument(
        "--calibration_images", type=int, default=1000, help="images of a network's statistics"
    )
    parser.add_argument(
        "--val_images", type=int, default=2000, help="images of a network's accuracy"
    )
    parser.add_argument("--networks", type=int, default=9, help="networks after the first")
    args = parser.parse_args(argv)
    if args.calibration_images < 2 or min(args.val_images, args.networks) < 1:
        parser.error(
            "--calibration_images must be at least 2, --val_images and --networks at least 1"
        )
    measure(args)
    return 0


if __name__ == "__main__":
    run_main(main)
