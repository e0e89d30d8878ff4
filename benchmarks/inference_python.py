"""Inference with folded batch normalisation, in MindSpore and in PyTorch with timm.

    python benchmarks/inference_python.py                                    # MindSpore only
    python benchmarks/inference_python.py --torch_python PYTHON --rounds 50

MindSpore computes once with the project's CPU operators and once without (stock). PYTHON is an
interpreter that has torch, timm and pydantic. Every contender is a process of its own, with its
default number of threads (``benchmarks.contenders``). Timed is one batch of noise, from a NumPy
array to logits as a NumPy array; PyTorch computes in channels-last and in inference mode. On a
machine with other work, PyTorch is faster with OMP_WAIT_POLICY=passive in the environment.
"""

from __future__ import annotations

import argparse
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
from src.arch.architecture import load_architecture

WORKERS = {
    "mindspore": "MindSpore, CPU operators",
    "stock": "MindSpore, stock",
    "torch": "PyTorch, timm",
}
WARM_UP = 3  # the first batches are slower everywhere


def create_mindspore_network(
    arch: str, batch_size: int, image_size: int, kernels: bool
) -> Callable[[], float]:
    """A function that infers one batch and returns the sum of its logits."""
    import mindspore as ms
    from mindspore import Tensor

    from src.kernels import use_kernels
    from src.spnasnet import SPNASNet
    from src.utils import setup_device

    setup_device("CPU", 0)
    ms.set_seed(0)
    network = SPNASNet(
        load_architecture(arch),
        CLASSES,
        kernels=use_kernels("on" if kernels else "off"),
        folded=True,
    )
    network.set_train(False)
    images, _ = noise(batch_size, image_size)
    return warm(lambda: float(network(Tensor(images)).asnumpy().sum()))


def create_torch_network(arch: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """A function that infers one batch and returns the sum of its logits."""
    import torch

    from benchmarks.torch_reference import fold, spnasnet_100

    torch.manual_seed(0)
    network = fold(spnasnet_100(CLASSES, lowered_strides=TORCH_ARCHS[arch])).to(
        memory_format=torch.channels_last
    )
    images, _ = noise(batch_size, image_size)

    def infer() -> float:
        with torch.inference_mode():
            x = torch.from_numpy(images).to(memory_format=torch.channels_last)
            return float(network(x).numpy().sum())

    return warm(infer)


def warm(infer: Callable[[], float]) -> Callable[[], float]:
    """``infer``, after a few calls."""
    for _ in range(WARM_UP):
        infer()
    return infer


def measure(args: argparse.Namespace) -> None:
    """Run all contenders and print a table for each batch size."""
    pythons = {"mindspore": sys.executable, "stock": sys.executable}
    if args.torch_python:
        pythons["torch"] = args.torch_python
    bases = [worker for worker in ("torch", "stock") if worker in pythons]
    for batch_size in args.batch_sizes:
        options = ["--arch", args.arch, "--batch_sizes", str(batch_size)]
        options += ["--image_size", str(args.image_size)]
        commands = {
            worker: [python, str(Path(__file__).resolve()), "--worker", worker, *options]
            for worker, python in pythons.items()
        }
        size = f"{args.image_size}x{args.image_size}"
        print(f"{args.arch}, {size}, batch {batch_size}, {args.rounds} rounds")
        compare(commands, WORKERS, bases, args.rounds)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, WORKERS, rounds=20)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    args = parse(parser, argv)
    if args.worker == "torch":
        work(lambda: create_torch_network(args.arch, args.batch_sizes[0], args.image_size))
    elif args.worker:
        work(
            lambda: create_mindspore_network(
                args.arch, args.batch_sizes[0], args.image_size, args.worker == "mindspore"
            )
        )
    else:
        return run(lambda: measure(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
