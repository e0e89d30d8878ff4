"""A training step in MindSpore and in PyTorch with timm.

    python benchmarks/training_step.py                                    # MindSpore only
    python benchmarks/training_step.py --torch_python PYTHON --rounds 10
    python benchmarks/training_step.py --torch_python PYTHON --arch spnas_pixel1_32 --batch_size 128
    python benchmarks/training_step.py --other_python OTHER               # another MindSpore

MindSpore computes once with the project's CPU operators and once without (stock). PYTHON is an
interpreter that has torch, timm and pydantic, OTHER one that has this project's requirements with
another version of MindSpore. Every contender is a process of its own, with its default number of
threads (``benchmarks.contenders``). A step is forward, backward and update of SGD with momentum, on
a fixed batch of noise, with label smoothing 0.1; PyTorch computes in channels-last. The floor is
one large matrix product of as many multiply-adds (``benchmarks.step_bounds``).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.contenders import (
    CLASSES,
    TORCH_ARCHS,
    add_arguments,
    compare,
    noise,
    parse,
    run,
    work,
)
from benchmarks.step_bounds import SIDE, matrices, product_seconds, step_macs
from src.arch.architecture import load_architecture

WORKERS = {
    "mindspore": "MindSpore, CPU operators",
    "stock": "MindSpore, stock",
    "torch": "PyTorch, timm",
    "other": "other, CPU operators",
    "floor": "floor: matrix product",
}
RATE = 0.05


def create_mindspore_step(
    arch: str, batch_size: int, image_size: int, kernels: bool
) -> Callable[[], float]:
    """A function that trains on one batch and returns its loss."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    from src.config import TrainConfig
    from src.CrossEntropySmooth import CrossEntropySmooth
    from src.kernels import use_kernels
    from src.spnasnet import SPNASNet
    from src.training.optimizer import create_optimizer
    from src.training.step import TrainStep, Update
    from src.utils import setup_device

    setup_device("CPU", 0)
    config = TrainConfig()
    ms.set_seed(config.seed)
    network = SPNASNet(
        load_architecture(arch),
        CLASSES,
        momentum=config.bn_momentum,
        kernels=use_kernels("on" if kernels else "off"),
    )
    optimizer = create_optimizer(network, config, np.full(1000, RATE, np.float32))
    update = Update(network, optimizer, config, mixed_precision=False)
    step = TrainStep(network, CrossEntropySmooth(config.label_smooth_factor), update).set_train()
    images, labels = noise(batch_size, image_size)
    batch = Tensor(images), Tensor(labels.astype(np.int32)), Tensor(np.ones(1, np.float32))
    return lambda: float(step(*batch)[0].asnumpy())


def create_torch_step(arch: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """A function that trains on one batch and returns its loss."""
    import torch

    from benchmarks.torch_reference import spnasnet_100

    torch.manual_seed(0)
    network = (
        spnasnet_100(CLASSES, lowered_strides=TORCH_ARCHS[arch])
        .train()
        .to(memory_format=torch.channels_last)
    )
    # As in src.training.step: weight decay on weights of convolutions and classifier only.
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 1e-5}, {"params": others}], RATE, momentum=0.9
    )
    loss_fn = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    images, labels = map(torch.from_numpy, noise(batch_size, image_size))
    images = images.to(memory_format=torch.channels_last)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(network(images), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def create_floor(arch: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """A function that takes the matrix product of a step's multiply-adds."""
    operands = matrices(
        columns=math.ceil(step_macs(load_architecture(arch), batch_size, image_size) / SIDE**2)
    )
    return lambda: product_seconds(*operands)


def create(worker: str, arch: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """What a worker does."""
    if worker == "torch":
        return create_torch_step(arch, batch_size, image_size)
    if worker == "floor":
        return create_floor(arch, batch_size, image_size)
    return create_mindspore_step(arch, batch_size, image_size, kernels=worker != "stock")


def measure(args: argparse.Namespace) -> None:
    """Run all contenders and print the table."""
    pythons = {"mindspore": sys.executable, "stock": sys.executable}
    if args.torch_python:
        pythons["torch"] = args.torch_python
    if args.other_python:
        pythons["other"] = args.other_python
    pythons["floor"] = sys.executable
    bases = [worker for worker in ("torch", "other", "stock", "floor") if worker in pythons]
    options = ["--arch", args.arch, "--batch_size", str(args.batch_size)]
    options += ["--image_size", str(args.image_size)]
    commands = {
        worker: [python, str(Path(__file__).resolve()), "--worker", worker, *options]
        for worker, python in pythons.items()
    }
    size = f"{args.image_size}x{args.image_size}"
    print(f"{args.arch}, {size}, batch {args.batch_size}, {args.rounds} rounds")
    compare(commands, WORKERS, bases, args.rounds)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, WORKERS, rounds=5)
    parser.add_argument(
        "--other_python", metavar="PYTHON", help="interpreter that has another version of MindSpore"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    args = parse(parser, argv)
    if args.worker:
        work(lambda: create(args.worker, args.arch, args.batch_size, args.image_size))
        return 0
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
