"""A training step of the one-shot supernet in MindSpore, and of the same supernet in PyTorch.

    python benchmarks/one_shot_step.py --torch_python PYTHON --rounds 20

PYTHON is an interpreter that has torch and pydantic. Every contender is a process of its own
(``benchmarks.contenders``). A step is forward, backward and update of SGD with momentum and weight
decay on a fixed batch of noise; every round draws a new path, the same for all, so each contender
comes to blocks that it has not run before. PyTorch does not change weights that have no gradient,
nor does the supernet here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.contenders import compare, noise, run, work
from src.arch.space import SearchSpace, load_space

WORKERS = {
    "mindspore": "MindSpore, CPU operators",
    "stock": "MindSpore, stock",
    "torch": "PyTorch, channels-last",
    "torch_nchw": "PyTorch, NCHW",
}
CLASSES = 10
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
    network = OneShotSupernet(space, CLASSES, kernels=use_kernels("on" if kernels else "off"))
    optimizer = PathMomentum(network, np.full(1000, RATE, np.float32), MOMENTUM, DECAY)
    update = Update(network, optimizer, OneShotConfig(), mixed_precision=False)
    step = OneShotStep(network, CrossEntropySmooth(0.0), update).set_train()
    images, labels = noise(batch_size, space.image_size, CLASSES)
    batch, path = (Tensor(images), Tensor(labels.astype(np.int32))), paths(space)
    return lambda: float(step(*batch, Tensor(next(path)))[0].asnumpy())


def create_torch_step(
    space: SearchSpace, batch_size: int, channels_last: bool
) -> Callable[[], float]:
    """A function that trains on one batch and returns its loss."""
    import torch

    from benchmarks.torch_one_shot import OneShotSupernet

    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = OneShotSupernet(space, CLASSES).train().to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    loss_fn = torch.nn.CrossEntropyLoss()
    images, labels = map(torch.from_numpy, noise(batch_size, space.image_size, CLASSES))
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
        return create_torch_step(space, batch_size, channels_last=worker == "torch")
    return create_mindspore_step(space, batch_size, kernels=worker == "mindspore")


def measure(args: argparse.Namespace) -> None:
    """Run all contenders and print the table."""
    pythons = {
        worker: args.torch_python if worker.startswith("torch") else sys.executable
        for worker in args.workers
    }
    options = ["--space", args.space, "--batch_size", str(args.batch_size)]
    commands = {
        worker: [python, str(Path(__file__).resolve()), "--worker", worker, *options]
        for worker, python in pythons.items()
    }
    print(f"{args.space}, batch {args.batch_size}, {args.rounds} rounds")
    compare(
        commands, WORKERS, [worker for worker in args.workers if worker != "mindspore"], args.rounds
    )


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch_python", metavar="PYTHON", help="interpreter that has torch, pydantic"
    )
    parser.add_argument(
        "--workers", nargs="+", choices=WORKERS, default=["mindspore", "torch", "torch_nchw"]
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--space", default="one_shot_32", help="one-shot space by name")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        work(lambda: create(args.worker, load_space(args.space), args.batch_size))
        return 0
    if args.torch_python is None and any(worker.startswith("torch") for worker in args.workers):
        parser.error(
            "PyTorch's contenders need --torch_python; --workers mindspore stock does without"
        )
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
