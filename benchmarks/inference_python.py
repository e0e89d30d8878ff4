"""Inference with folded batch normalisation, in MindSpore and in PyTorch.

    python benchmarks/inference_python.py                                    # MindSpore only
    python benchmarks/inference_python.py --torch_python PYTHON --rounds 50

MindSpore computes once with the project's CPU operators and once without (stock). PYTHON is an
interpreter that has torch and pydantic. Every contender is a process of its own, with its default
number of threads (``benchmarks.contenders``). Timed is one batch of noise, from a NumPy array to
logits as a NumPy array. PyTorch computes in channels-last and in inference mode, with spinning and
with passive threads; ratios to PyTorch are those to the setting with the lesser median.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks.contenders import (
    PYTORCH,
    add_arguments,
    add_network_arguments,
    commands,
    compare,
    natural_classes,
    noise,
    parse,
    run,
    work,
)
from src.arch.architecture import load_architecture

WORKERS = {
    "mindspore": "MindSpore, CPU operators",
    "stock": "MindSpore, stock",
    "torch": "PyTorch, spinning threads",
    "torch_passive": "PyTorch, passive threads",
}
BASES = {"PyTorch": PYTORCH, "stock": ["stock"]}
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
        natural_classes(image_size),
        kernels=use_kernels("on" if kernels else "off"),
        folded=True,
    )
    network.set_train(False)
    images, _ = noise(batch_size, image_size, natural_classes(image_size))
    return warm(lambda: float(network(Tensor(images)).asnumpy().sum()))


def create_torch_network(arch: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """A function that infers one batch and returns the sum of its logits."""
    import torch

    from benchmarks.torch_reference import create_network, fold

    torch.manual_seed(0)
    classes = natural_classes(image_size)
    network = fold(create_network(load_architecture(arch), classes))
    network = network.to(memory_format=torch.channels_last)
    images, _ = noise(batch_size, image_size, classes)

    def infer() -> float:
        with torch.inference_mode():
            x = torch.from_numpy(images).to(memory_format=torch.channels_last)
            return float(network(x).numpy().sum())

    return warm(infer)


def create(worker: str, arch: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """What a worker does."""
    if worker.startswith("torch"):
        return create_torch_network(arch, batch_size, image_size)
    return create_mindspore_network(arch, batch_size, image_size, worker == "mindspore")


def warm(infer: Callable[[], float]) -> Callable[[], float]:
    """``infer``, after a few calls."""
    for _ in range(WARM_UP):
        infer()
    return infer


def measure(args: argparse.Namespace) -> None:
    """Run all contenders and print a table for each batch size."""
    side = args.image_size or load_architecture(args.arch).image_size
    for batch_size in args.batch_sizes:
        options = "--arch", args.arch, "--batch_sizes", batch_size, "--image_size", side
        print(f"{args.arch}, {side}x{side}, batch {batch_size}, {args.rounds} rounds")
        compare(commands(__file__, args.pythons, options), WORKERS, BASES, args.rounds)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, WORKERS, rounds=20)
    add_network_arguments(parser)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    args = parse(parser, argv, WORKERS)
    if args.worker:
        options = args.arch, args.batch_sizes[0], args.image_size
        return run(lambda: work(lambda: create(args.worker, *options)))
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
