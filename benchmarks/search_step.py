"""A search step of the supernet, against a training step of the largest network of the space.

    python benchmarks/search_step.py                      # the paper's space, 224x224, batch 128
    python benchmarks/search_step.py --space imagenet_32

Both are processes of their own (``benchmarks.contenders``) with the CPU operators and the same
batch of noise, and both are updated by SGD with momentum. A step of the search includes the latency
term, the thresholds' step and the decisions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.contenders import (
    add_arguments,
    commands,
    compare,
    natural_classes,
    noise,
    parse,
    run,
    work,
)
from src.arch.space import SearchSpace, load_space

if TYPE_CHECKING:  # only the contenders need MindSpore and configurations
    from mindspore import nn

    from src.config import SearchConfig

WORKERS = {"supernet": "supernet, search step", "largest": "largest network"}
RATES = np.full(1000, 0.05, np.float32)  # learning rate of every step


def create(worker: str, space_name: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """A function that trains on one batch and returns its loss."""
    import mindspore as ms
    from mindspore import Tensor

    from src.config import SearchConfig
    from src.utils import setup_device

    setup_device("CPU", 0)
    config, space = SearchConfig(optimizer="momentum"), load_space(space_name)
    ms.set_seed(config.seed)
    classes = natural_classes(image_size)
    images, labels = noise(batch_size, image_size, classes)
    inputs = [Tensor(images), Tensor(labels.astype(np.int32)), Tensor(np.ones(1, np.float32))]
    if worker == "largest":
        step = create_training_step(space, classes, config)
    else:
        step = create_search_step(space, classes, config, image_size)
        thresholds = step.network.decisions.thresholds
        inputs += [Tensor(np.ones(thresholds.shape, np.float32)), Tensor(1.0, ms.float32)]
    step.set_train()
    return lambda: float(step(*inputs)[0].asnumpy())


def create_training_step(space: SearchSpace, classes: int, config: SearchConfig) -> nn.Cell:
    """A step of the largest network of the space."""
    from src.CrossEntropySmooth import CrossEntropySmooth
    from src.kernels import use_kernels
    from src.spnasnet import SPNASNet
    from src.training.optimizer import create_optimizer
    from src.training.step import TrainStep, Update

    kernels = use_kernels("on")
    network = SPNASNet(space.largest(), classes, momentum=config.bn_momentum, kernels=kernels)
    optimizer = create_optimizer(network, config, RATES, kernels=kernels)
    update = Update(network, optimizer, config, mixed_precision=False)
    return TrainStep(network, CrossEntropySmooth(config.label_smooth_factor), update)


def create_search_step(
    space: SearchSpace, classes: int, config: SearchConfig, image_size: int
) -> nn.Cell:
    """A step of the supernet of the space."""
    from src.arch.cost_table import arithmetic_table
    from src.CrossEntropySmooth import CrossEntropySmooth
    from src.kernels import use_kernels
    from src.search.superkernel import Supernet
    from src.search.superkernel_step import SearchStep
    from src.training.optimizer import create_optimizer
    from src.training.step import Update

    table = arithmetic_table(space, "macs", image_size=(image_size, image_size))
    network = Supernet(
        space,
        table,
        classes,
        momentum=config.bn_momentum,
        kernels=use_kernels("on"),
    )
    thresholds = network.decisions.thresholds
    optimizer = create_optimizer(network, config, RATES, [thresholds], kernels=True)
    return SearchStep(
        network,
        CrossEntropySmooth(config.label_smooth_factor),
        Update(network, optimizer, config, mixed_precision=False),
        config,
        decisions=network.decisions,
        largest=table.range()[1],
        target=sum(table.range()) / 2,
    )


def measure(args: argparse.Namespace) -> None:
    """Run both and print the table and the ratio of memory."""
    side = args.image_size or load_space(args.space).image_size
    options = "--space", args.space, "--batch_size", args.batch_size, "--image_size", side
    print(f"{args.space}, {side}x{side}, batch {args.batch_size}, {args.rounds} rounds")
    scripts = commands(__file__, args.pythons, options)
    peaks = compare(scripts, WORKERS, {"largest": ["largest"]}, args.rounds)
    if len(peaks) == len(WORKERS):
        print(f"peak memory: {peaks['supernet'] / peaks['largest']:.3f} of the largest network's")


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, WORKERS, rounds=7)
    parser.add_argument("--space", default="imagenet", help="search space by name")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, help="default: the space's")
    args = parse(parser, argv, WORKERS)
    if args.worker:
        options = args.worker, args.space, args.batch_size, args.image_size
        return run(lambda: work(lambda: create(*options)))
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
