"""What subnets of a supernet cost: a part of a network that a decision makes active.

    python benchmarks/subnet_step.py
    python benchmarks/subnet_step.py --space imagenet_32 --batch_size 64

Contenders are a step of the largest network of the space, as ``train.py --arch`` trains it; a
sandwich, as ``train.py --space`` trains it, in which the largest, the smallest and two random
subnets add up gradients for one update, in float32 and in bfloat16; and the network of the smallest
blocks, none left out, once as a network of its own and once as the only subnet of its update. The
smallest blocks of the shipped spaces are K3E3. All use the CPU operators and the same batch of
noise.

A decision is an input, so that one compiled graph serves all subnets.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
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
from src.arch.architecture import Architecture
from src.arch.cost_table import arithmetic_table
from src.arch.sampling import UniformInCost
from src.arch.space import SearchSpace, load_space
from src.errors import UserError

if TYPE_CHECKING:  # only the contenders need MindSpore and configurations
    from mindspore import Tensor

    from src.config import TrainConfig
    from src.training.run import Run

WORKERS = {
    "largest": "largest network",
    "sandwich": "largest, smallest, two random",
    "bfloat16": "the same in bfloat16",
    "small": "K3E3 blocks, own network",
    "subnet": "K3E3 blocks, subnet",
}
BASES = {"largest": ["largest"], "sandwich": ["sandwich"], "own": ["small"]}
RANDOM = 2  # subnets of a sandwich beside the largest and the smallest
DRAWS = 500  # of which the mean cost of a random subnet is taken
RATES = np.full(1000, 0.05, np.float32)  # learning rate of every step


def small_choices(space: SearchSpace) -> tuple[str, ...]:
    """Decisions of the network of the smallest blocks, none of which is left out."""
    return tuple(layer.names[0] for layer in space.superkernels.values())


def sandwich_cost(space: SearchSpace, image_size: int) -> float:
    """Multiply-adds of a sandwich, the random subnets' in the mean, over the largest network's."""
    size = image_size, image_size
    table = arithmetic_table(space, "macs", natural_classes(image_size), size)
    rng, random = np.random.default_rng(0), UniformInCost(space, table)
    mean = np.mean([table.total(random.draw(rng)) for _ in range(DRAWS)])
    return (sum(table.range()) + RANDOM * mean) / table.range()[1]


def create_run(arch: Architecture, config: TrainConfig, bfloat16: bool = False) -> Run[TrainConfig]:
    """What a training has that neither validates nor saves: of its images the classes count."""
    from src.checkpoint.folder import CheckpointFolder
    from src.kernels import use_kernels
    from src.training.run import Run
    from src.utils import setup_device

    classes = tuple(map(str, range(natural_classes(config.image_height))))
    return Run(
        config=config,
        ranks=setup_device("CPU", 0),
        arch=arch,
        space=None,
        amp_level="O0",
        bfloat16=bfloat16,
        kernels=use_kernels("on"),
        loader=SimpleNamespace(source=SimpleNamespace(classes=classes)),
        val_loader=None,
        steps_per_epoch=len(RATES),
        checkpoints=CheckpointFolder(Path()),  # which is neither read nor written
        resumed=None,
        rates=RATES,
    )


def create_subnet_step(
    run: Run[TrainConfig], space: SearchSpace
) -> Callable[..., tuple[Tensor, ...]]:
    """The small network, as a subnet, in place of a task's ``train_batch``."""
    import mindspore as ms
    from mindspore import Tensor

    from src.CrossEntropySmooth import CrossEntropySmooth
    from src.search.elastic_step import ElasticStep
    from src.search.subnet_evaluation import parts
    from src.spnasnet import SPNASNet
    from src.training.optimizer import create_optimizer
    from src.training.step import Update

    config, classes = run.config, len(run.classes)
    network = SPNASNet(run.arch, classes, momentum=1.0, kernels=run.kernels)
    optimizer = create_optimizer(network, config, run.rates, kernels=run.kernels)
    update = Update(network, optimizer, config, mixed_precision=False)
    loss_fn = CrossEntropySmooth(config.label_smooth_factor)
    step = ElasticStep(network, loss_fn, update, used=None).set_train()
    inputs = (  # nothing is dropped, and the labels teach
        Tensor(np.ones((config.batch_size, run.arch.head_channels), np.float32)),
        parts(space, small_choices(space)),
        Tensor(np.zeros((config.batch_size, classes), np.float32)),
        Tensor(1.0, ms.float32),
    )
    return lambda images, labels, epoch, batch: step(images, labels, *inputs)


def create_train_batch(
    worker: str, space: SearchSpace, settings: Mapping[str, int]
) -> Callable[..., tuple[Tensor, ...]]:
    """``train_batch`` of a contender's task, with keys of its configuration."""
    from src.config import TrainConfig, elastic_cfg
    from src.search.elastic_training import ElasticTraining
    from src.training.single import SingleNetwork

    config, largest = TrainConfig(**settings), space.largest()
    if worker in ("sandwich", "bfloat16"):
        config = TrainConfig(**settings, **elastic_cfg, space=space.name, random_subnets=RANDOM)
        prepared = create_run(largest, config, worker == "bfloat16")
        return ElasticTraining(prepared, space).train_batch
    if worker == "subnet":
        return create_subnet_step(create_run(largest, config), space)
    small = space.derive(small_choices(space), f"{space.name}_small")
    arch = largest if worker == "largest" else small
    return SingleNetwork(create_run(arch, config)).train_batch


def create(worker: str, space_name: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """A function that does a contender's step and returns the sum of its results."""
    import mindspore as ms
    from mindspore import Tensor

    ms.set_seed(0)
    settings = {"batch_size": batch_size, "image_height": image_size, "image_width": image_size}
    train_batch = create_train_batch(worker, load_space(space_name), settings)
    images, labels = noise(batch_size, image_size, natural_classes(image_size))
    batch, numbers = (Tensor(images), Tensor(labels.astype(np.int32))), itertools.count(1)

    def step() -> float:
        # All results are read: the last ones of a sandwich come with the update.
        return sum(
            float(result.asnumpy().sum()) for result in train_batch(*batch, 0, next(numbers))
        )

    return step


def measure(args: argparse.Namespace) -> None:
    """Run all contenders; print the table, what arithmetic says, and the ratio of memory."""
    space = load_space(args.space)
    if space.one_shot:
        raise UserError(
            f"space '{space.name}' is that of a one-shot supernet, whose paths are no subnets of "
            "one network; benchmarks/one_shot_step.py measures it"
        )
    side = args.image_size or space.image_size
    options = "--space", args.space, "--batch_size", args.batch_size, "--image_size", side
    print(f"{args.space}, {side}x{side}, batch {args.batch_size}, {args.rounds} rounds")
    peaks = compare(commands(__file__, args.pythons, options), WORKERS, BASES, args.rounds)
    if "sandwich" in peaks and "largest" in peaks:
        cost = sandwich_cost(space, side)
        print(f"by multiply-adds a sandwich is {cost:.2f} of the largest network")
        print(f"peak memory: {peaks['sandwich'] / peaks['largest']:.2f} of the largest network's")


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, WORKERS, rounds=9)
    parser.add_argument("--space", default="nas_bench_macro", help="search space by name")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, help="default: the space's")
    args = parse(parser, argv, WORKERS)
    if args.worker:
        options = args.worker, args.space, args.batch_size, args.image_size
        return run(lambda: work(lambda: create(*options)))
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
