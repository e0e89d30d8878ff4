"""A training step of the one-shot supernet in MindSpore, and of the same supernet in PyTorch.

    python benchmarks/one_shot_step.py --torch_python PYTHON

PYTHON is an interpreter that has torch and pydantic. Every contender is a process of its own
(``benchmarks.contenders``). PyTorch computes in channels-last, with spinning and with passive
threads; ratios to PyTorch are those to the setting with the lesser median. A step is forward,
backward and update of SGD with momentum and weight decay on a fixed batch of noise; every round
draws a new path, the same for all, so each contender comes to blocks that it has not run before.
PyTorch does not change weights that have no gradient, nor does the supernet here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.contenders import (
    PYTORCH,
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

WORKERS = {
    "mindspore": "MindSpore, CPU operators",
    "stock": "MindSpore, stock",
    "torch": "PyTorch, spinning threads",
    "torch_passive": "PyTorch, passive threads",
}
BASES = {"PyTorch": PYTORCH, "stock": ["stock"]}
RATE, MOMENTUM, DECAY = 0.025, 0.9, 3e-4  # learning rate and weight decay


def paths(space: SearchSpace) -> Iterator[np.ndarray]:
    """Random paths, the same in every process."""
    random = np.random.default_rng(0)
    layers = space.block_layers
    while True:
        yield random.integers(len(layers[0].names), size=len(layers)).astype(np.int32)


def create_mindspore_step(
    space: SearchSpace, batch_size: int, kernels: bool
) -> Callable[[], float]:
    """A function that trains on one batch and returns its loss."""
    import mindspore as ms
    from mindspore import Tensor

    from src.config import OneShotConfig
    from src.CrossEntropySmooth import CrossEntropySmooth
    from src.kernels import use_kernels
    from src.search.one_shot import OneShotStep, OneShotSupernet, PathMomentum
    from src.training.step import Update
    from src.utils import setup_device

    setup_device("CPU", 0)
    ms.set_seed(0)
    classes = natural_classes(space.image_size)
    network = OneShotSupernet(space, classes, kernels=use_kernels("on" if kernels else "off"))
    optimizer = PathMomentum(network, np.full(1000, RATE, np.float32), MOMENTUM, DECAY)
    update = Update(network, optimizer, OneShotConfig(), mixed_precision=False)
    step = OneShotStep(network, CrossEntropySmooth(0.0), update).set_train()
    images, labels = noise(batch_size, space.image_size, classes)
    batch, path = (Tensor(images), Tensor(labels.astype(np.int32))), paths(space)
    return lambda: float(step(*batch, Tensor(next(path)))[0].asnumpy())


def create_torch_step(space: SearchSpace, batch_size: int) -> Callable[[], float]:
    """A function that trains on one batch and returns its loss."""
    import torch

    from benchmarks.torch_reference import OneShotSupernet

    torch.manual_seed(0)
    classes, layout = natural_classes(space.image_size), torch.channels_last
    network = OneShotSupernet(space, classes).train().to(memory_format=layout)
    # Not fused: that fails where a block has its first gradient after others.
    optimizer = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    loss_fn = torch.nn.CrossEntropyLoss()
    images, labels = map(torch.from_numpy, noise(batch_size, space.image_size, classes))
    images, path = images.to(memory_format=layout), paths(space)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(network(images, next(path)), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def create(worker: str, space: SearchSpace, batch_size: int) -> Callable[[], float]:
    """What a worker does."""
    if worker.startswith("torch"):
        return create_torch_step(space, batch_size)
    return create_mindspore_step(space, batch_size, kernels=worker == "mindspore")


def measure(args: argparse.Namespace) -> None:
    """Run all contenders and print the table."""
    options = "--space", args.space, "--batch_size", args.batch_size
    print(f"{args.space}, batch {args.batch_size}, {args.rounds} rounds")
    compare(commands(__file__, args.pythons, options), WORKERS, BASES, args.rounds)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, WORKERS, rounds=20)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--space", default="one_shot_32", help="one-shot space by name")
    args = parse(parser, argv, WORKERS)
    if args.worker:
        return run(
            lambda: work(lambda: create(args.worker, load_space(args.space), args.batch_size))
        )
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
