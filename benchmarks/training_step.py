"""A training step in MindSpore with the project's CPU operators, in stock MindSpore, and in PyTorch with timm.

    python benchmarks/training_step.py                                    # MindSpore alone
    python benchmarks/training_step.py --torch_python PYTHON --rounds 10  # PYTHON has torch and timm
    python benchmarks/training_step.py --torch_python PYTHON --arch spnas_pixel1_32 --batch_size 128
    python benchmarks/training_step.py --other_python PYTHON              # PYTHON has another MindSpore

Every contender is a process of its own, with its default number of threads. All prepare themselves with one
step, which compiles; then one after the other takes one timed step a round, while the others wait. A step is
forward, backward and update of SGD with momentum, on a fixed batch of noise, with label smoothing 0.1;
PyTorch computes in channels-last. The floor is the time that the step's multiply-adds would take in one large
matrix product (``step_bounds.py``), measured in the same rounds. Ratios are medians of the ratios within a round.
Peak memory is that of the whole process, compilation included.
"""
from __future__ import annotations

import argparse
import contextlib
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step_bounds import CLASSES, SIDE, matrices, product_seconds, step_macs  # noqa: E402
from src.architecture import load_architecture  # noqa: E402

WORKERS = {"mindspore": "MindSpore, CPU operators", "stock": "MindSpore, stock", "torch": "PyTorch, timm",
           "other": "other, CPU operators", "floor": "floor: matrix product"}
TORCH_ARCHS = {"spnas_pixel1": False, "spnas_pixel1_32": True}  # timm's network, with lowered strides or not
RATE = 0.05


class WorkerError(RuntimeError):
    """A contender that ended before its time."""


def noise(batch_size: int, image_size: int):
    """Images (N, 3, H, W) of float32 and labels (N,) of int64."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, 3, image_size, image_size)).astype(np.float32)
    return images, rng.integers(0, CLASSES, batch_size)


def create_mindspore_step(arch: str, batch_size: int, image_size: int, kernels: bool) -> Callable[[], float]:
    """A function that trains on one batch and returns its loss."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    from src.config import TrainConfig
    from src.CrossEntropySmooth import CrossEntropySmooth
    from src.kernels import wanted
    from src.spnasnet import SPNASNet
    from src.train_step import TrainStep, create_optimizer
    from src.utils import setup_device

    setup_device("CPU", 0)
    config = TrainConfig()
    ms.set_seed(config.seed)
    network = SPNASNet(load_architecture(arch), CLASSES, momentum=config.bn_momentum,
                       kernels=wanted("on" if kernels else "off"))
    optimizer = create_optimizer(network, config, np.full(1000, RATE, np.float32))
    step = TrainStep(network, CrossEntropySmooth(config.label_smooth_factor), optimizer, config,
                     mixed_precision=False).set_train()
    images, labels = noise(batch_size, image_size)
    batch = Tensor(images), Tensor(labels.astype(np.int32)), Tensor(np.ones(1, np.float32))
    return lambda: float(step(*batch)[0].asnumpy())


def create_torch_step(arch: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """A function that trains on one batch and returns its loss."""
    import torch

    from benchmarks.torch_reference import spnasnet_100

    torch.manual_seed(0)
    network = spnasnet_100(CLASSES, lowered_strides=TORCH_ARCHS[arch]).train().to(memory_format=torch.channels_last)
    # As in src.train_step: weight decay on weights of convolutions and classifier only.
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD([{"params": weights, "weight_decay": 1e-5}, {"params": others}], RATE, momentum=0.9)
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


def create_floor_step(arch: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """A function that returns the seconds of a step at the rate of a matrix product."""
    operands, products = matrices(), step_macs(load_architecture(arch), batch_size, image_size) / SIDE ** 3
    return lambda: products * product_seconds(*operands)


def work(args: argparse.Namespace) -> None:
    """Answer ``ready``, then seconds for every line ``step``, then bytes of peak memory at the end of input."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if args.worker == "torch":
        step = create_torch_step(args.arch, args.batch_size, args.image_size)
    elif args.worker == "floor":
        step = create_floor_step(args.arch, args.batch_size, args.image_size)
    else:
        step = create_mindspore_step(args.arch, args.batch_size, args.image_size, args.worker != "stock")
    step()
    print("ready", file=answers)
    for _ in iter(sys.stdin.readline, ""):
        start = time.perf_counter()
        loss = step()
        seconds = loss if args.worker == "floor" else time.perf_counter() - start
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss}")
        print(seconds, file=answers)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=answers)


class Contender:
    """A worker process, seen from the parent."""

    def __init__(self, worker: str, python: str, args: argparse.Namespace) -> None:
        self.worker, self.seconds = worker, []
        command = [python, str(Path(__file__).resolve()), "--worker", worker, "--arch", args.arch,
                   "--batch_size", str(args.batch_size), "--image_size", str(args.image_size)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def answer(self) -> str:
        """The next line of the worker."""
        line = self.process.stdout.readline().strip()
        if not line:
            raise WorkerError(f"{WORKERS[self.worker]}: ended with exit code {self.process.wait()}")
        return line

    def step(self) -> None:
        """Have one step taken and timed."""
        try:
            self.process.stdin.write("step\n")
        except BrokenPipeError:
            pass  # reading the answer tells the exit code
        self.seconds.append(float(self.answer()))

    def finish(self) -> float:
        """End the worker; returns its peak memory in GB."""
        self.process.stdin.close()
        return int(self.answer()) / 1e9

    def kill(self) -> None:
        """End the worker whatever it does."""
        self.process.kill()
        self.process.wait()


def measure(args: argparse.Namespace) -> None:
    """Run all contenders and print the table."""
    pythons = {"mindspore": sys.executable, "stock": sys.executable}
    if args.torch_python:
        pythons["torch"] = args.torch_python
    if args.other_python:
        pythons["other"] = args.other_python
    pythons["floor"] = sys.executable
    bases = [worker for worker in ("torch", "other", "stock", "floor") if worker in pythons]
    with contextlib.ExitStack() as stack:
        contenders = {}
        for worker, python in pythons.items():
            contenders[worker] = Contender(worker, python, args)
            stack.callback(contenders[worker].kill)
        for contender in contenders.values():
            contender.answer()
        for _ in range(args.rounds):
            for contender in contenders.values():
                contender.step()
        print(f"{args.arch}, {args.image_size}x{args.image_size}, batch {args.batch_size}, {args.rounds} rounds")
        ratios = "".join(f"{f'/ {base}':>9}" for base in bases)
        print(f"{'contender':<26}{'median s':>9}{'min..max s':>16}{ratios}{'peak GB':>9}")
        for contender in contenders.values():
            seconds = contender.seconds
            ratios = "".join(f"{statistics.median(a / b for a, b in zip(seconds, contenders[base].seconds)):>9.2f}"
                             for base in bases)
            spread = f"{min(seconds):.3f}..{max(seconds):.3f}"
            print(f"{WORKERS[contender.worker]:<26}{statistics.median(seconds):>9.3f}{spread:>16}{ratios}"
                  f"{contender.finish():>9.2f}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", metavar="PYTHON", help="interpreter that has torch and timm")
    parser.add_argument("--other_python", metavar="PYTHON", help="interpreter that has another version of MindSpore")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, help="default: the architecture's")
    parser.add_argument("--arch", default="spnas_pixel1", help="architecture by name")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.torch_python and args.arch not in TORCH_ARCHS:
        parser.error(f"timm has {' and '.join(TORCH_ARCHS)} only; leave out --torch_python")
    args.image_size = args.image_size or load_architecture(args.arch).image_size
    if args.worker:
        work(args)
        return 0
    try:
        measure(args)
    except (WorkerError, OSError) as error:
        print(f"training_step.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
