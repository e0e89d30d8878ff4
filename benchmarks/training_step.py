"""A training step in MindSpore and in PyTorch.

    python benchmarks/training_step.py                                    # MindSpore only
    python benchmarks/training_step.py --torch_python PYTHON
    python benchmarks/training_step.py --torch_python PYTHON --batch_size 128 --arch ARCH
    python benchmarks/training_step.py --other_python OTHER               # another MindSpore

ARCH is ``spnas_pixel1_32`` or ``nas_bench_macro_largest``, for example. PYTHON is an interpreter
that has torch and pydantic, OTHER one that has this project's requirements with another version of
MindSpore. Every contender is a process of its own, with its default number of threads
(``benchmarks.contenders``). A step is forward, backward and update of SGD with momentum, on a fixed
batch of noise, with label smoothing 0.1.

MindSpore computes with the project's CPU operators in float32, in bfloat16 (``--amp_level O2``),
and without them (stock). PyTorch computes in channels-last, with threads that spin while they wait
for work (OpenMP's default), with passive ones and by ``torch.compile``, in float32 and with
bfloat16 autocast. Ratios to PyTorch and to its bfloat16 are those to the setting with the lesser
median. Contenders in bfloat16 take part where the processor multiplies it.
The floor is one large matrix product of as many multiply-adds (``benchmarks.step_bounds``).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

from benchmarks.contenders import (
    PYTORCH,
    PYTORCH_BFLOAT16,
    add_arguments,
    add_network_arguments,
    commands,
    compare,
    known_to_processor,
    natural_classes,
    noise,
    parse,
    run,
    work,
)
from benchmarks.step_bounds import SIDE, matrices, product_seconds, step_macs
from src.arch.architecture import load_architecture

WORKERS = {
    "mindspore": "MindSpore, CPU operators",
    "bfloat16": "CPU operators, bfloat16",
    "stock": "MindSpore, stock",
    "torch": "PyTorch, spinning threads",
    "torch_passive": "PyTorch, passive threads",
    "torch_compiled": "PyTorch, torch.compile",
    "torch_bfloat16": "PyTorch, bfloat16, spinning",
    "torch_bfloat16_passive": "PyTorch, bfloat16, passive",
    "torch_bfloat16_compiled": "PyTorch, bfloat16, compile",
    "other": "other, CPU operators",
    "floor": "floor: matrix product",
}
BASES = {
    "PyTorch": PYTORCH,
    "bfloat16": PYTORCH_BFLOAT16,
    "float32": ["mindspore"],
    "other": ["other"],
    "stock": ["stock"],
    "floor": ["floor"],
}
RATE = 0.05


def create_mindspore_step(
    arch: str, batch_size: int, image_size: int, kernels: bool, bfloat16: bool
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
        natural_classes(image_size),
        momentum=config.bn_momentum,
        kernels=use_kernels("on" if kernels else "off"),
        bfloat16=bfloat16,
    )
    rates = np.full(1000, RATE, np.float32)
    optimizer = create_optimizer(network, config, rates, kernels=kernels)
    update = Update(network, optimizer, config, mixed_precision=False)
    step = TrainStep(network, CrossEntropySmooth(config.label_smooth_factor), update).set_train()
    images, labels = noise(batch_size, image_size, natural_classes(image_size))
    batch = Tensor(images), Tensor(labels.astype(np.int32)), Tensor(np.ones(1, np.float32))
    return lambda: float(step(*batch)[0].asnumpy())


def create_torch_step(
    arch: str, batch_size: int, image_size: int, bfloat16: bool, compiled: bool
) -> Callable[[], float]:
    """A function that trains on one batch and returns its loss."""
    import torch

    from benchmarks.torch_reference import create_network

    torch.manual_seed(0)
    classes = natural_classes(image_size)
    network = create_network(load_architecture(arch), classes)
    network = network.train().to(memory_format=torch.channels_last)
    # As in src.training.step: weight decay on weights of convolutions and classifier only.
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 1e-5}, {"params": others}],
        RATE,
        momentum=0.9,
        fused=True,  # PyTorch's fastest on CPU, though not its default
    )
    loss_fn = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    images, labels = map(torch.from_numpy, noise(batch_size, image_size, classes))
    images = images.to(memory_format=torch.channels_last)
    compute = torch.compile(network) if compiled else network

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_fn(compute(images), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def create_floor(arch: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """A function that takes the matrix product of a step's multiply-adds."""
    layers = step_macs(load_architecture(arch), batch_size, image_size)
    macs = sum(forward + backward for _, forward, backward in layers)
    operands = matrices(columns=math.ceil(macs / SIDE**2))
    return lambda: product_seconds(*operands)


def create(worker: str, arch: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """What a worker does."""
    if worker.startswith("torch"):
        setting = "bfloat16" in worker, "compiled" in worker
        return create_torch_step(arch, batch_size, image_size, *setting)
    if worker == "floor":
        return create_floor(arch, batch_size, image_size)
    return create_mindspore_step(
        arch, batch_size, image_size, kernels=worker != "stock", bfloat16=worker == "bfloat16"
    )


def measure(args: argparse.Namespace) -> None:
    """Run all contenders and print the table."""
    side = args.image_size or load_architecture(args.arch).image_size
    options = "--arch", args.arch, "--batch_size", args.batch_size, "--image_size", side
    print(f"{args.arch}, {side}x{side}, batch {args.batch_size}, {args.rounds} rounds")
    compare(commands(__file__, args.pythons, options), WORKERS, BASES, args.rounds)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, WORKERS, rounds=9)
    add_network_arguments(parser)
    parser.add_argument(
        "--other_python", metavar="PYTHON", help="interpreter that has another version of MindSpore"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    args = parse(parser, argv, known_to_processor(WORKERS))
    if args.worker:
        options = args.worker, args.arch, args.batch_size, args.image_size
        return run(lambda: work(lambda: create(*options)))
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
