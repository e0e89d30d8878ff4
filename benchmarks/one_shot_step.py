"""What the one-shot supernet costs in MindSpore, and the same supernet in PyTorch.

    python benchmarks/one_shot_step.py --torch_python PYTHON
    python benchmarks/one_shot_step.py --torch_python PYTHON --work path --rounds 9
    python benchmarks/one_shot_step.py --work start --data_path data/cifar10 --rounds 9

measure a training step, the evaluation of a path, and the start of a training. PYTHON is an
interpreter that has torch and pydantic. Every contender is a process of its own
(``benchmarks.contenders``). PyTorch computes in channels-last, with spinning and with passive
threads; ratios to PyTorch are those to the setting with the lesser median.

A step is forward, backward and update of SGD with momentum and weight decay on a fixed batch of
noise; every round draws a new path, the same for all, so each contender comes to blocks that it has
not run before. PyTorch does not change weights that have no gradient, nor does the supernet here.

The evaluation of a path takes its statistics from 2,000 images and its accuracy on 2,000 others, of
noise and in memory, as ``search.py --method one_shot`` does by default; each round has a new path.
Contenders in bfloat16, where PyTorch runs with autocast, are for this alone.

A start is the default command line of ``scripts/run_spnas.py``, for some steps only: the seconds
until its first step is in the log, with the graph compiled and with that of a run before from the
cache. The CPU operators are built before. Peak memory is that of the whole program, which validates
at its end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.contenders import (
    PYTORCH,
    PYTORCH_BFLOAT16,
    ROOT,
    add_arguments,
    commands,
    compare,
    known_to_processor,
    natural_classes,
    noise,
    parse,
    run,
    work,
)
from benchmarks.serve import NoiseBatches, create_evaluator
from src.arch.space import SearchSpace, load_space
from src.errors import Fault

WORKERS = {
    "mindspore": "MindSpore, CPU operators",
    "bfloat16": "CPU operators, bfloat16",
    "stock": "MindSpore, stock",
    "torch": "PyTorch, spinning threads",
    "torch_passive": "PyTorch, passive threads",
    "torch_bfloat16": "PyTorch, bfloat16, spinning",
    "torch_bfloat16_passive": "PyTorch, bfloat16, passive",
}
BASES = {
    "PyTorch": PYTORCH,
    "bfloat16": PYTORCH_BFLOAT16,
    "stock": ["stock"],
}
RATE, MOMENTUM, DECAY = 0.025, 0.9, 3e-4  # learning rate and weight decay
IMAGES = 2000  # of a path's statistics, and of its accuracy
STARTS = ("graph compiled", "graph from the cache")
START_FLAGS = "--epochs 1 --num_steps 6 --exp_name start".split()


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


def create_mindspore_evaluation(
    space: SearchSpace, kernels: bool, bfloat16: bool
) -> Callable[[], float]:
    """A function that evaluates a path and returns its loss."""
    evaluate = create_evaluator(space, IMAGES, IMAGES, "on" if kernels else "off", bfloat16)
    path = paths(space)
    return lambda: evaluate(tuple(map(int, next(path)))).loss


def create_torch_evaluation(space: SearchSpace, bfloat16: bool) -> Callable[[], float]:
    """A function that evaluates a path and returns its loss."""
    import torch

    from benchmarks.torch_reference import OneShotSupernet

    torch.manual_seed(0)
    layout = torch.channels_last
    network = OneShotSupernet(space, natural_classes(space.image_size)).to(memory_format=layout)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
    batches = NoiseBatches(IMAGES, 200, space.image_size)
    path = paths(space)

    def logits(images: np.ndarray, choices: np.ndarray) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return network(torch.from_numpy(images).to(memory_format=layout), choices).float()

    @torch.no_grad()
    def evaluate() -> float:
        choices, loss = next(path), 0.0
        for norm in norms:
            norm.reset_running_stats()
        network.train()
        for images, _ in batches.epoch():
            logits(images, choices)
        network.eval()
        for images, labels in batches.epoch():
            result = logits(images, choices)
            loss += float(torch.nn.functional.cross_entropy(result, torch.from_numpy(labels)))
        return loss

    return evaluate


def create(worker: str, what: str, space: SearchSpace, batch_size: int) -> Callable[[], float]:
    """What a worker does: a step or the evaluation of a path."""
    torch, kernels, bfloat16 = worker.startswith("torch"), worker != "stock", "bfloat16" in worker
    if what == "path":
        if torch:
            return create_torch_evaluation(space, bfloat16)
        return create_mindspore_evaluation(space, kernels, bfloat16)
    if torch:
        return create_torch_step(space, batch_size)
    return create_mindspore_step(space, batch_size, kernels)


def start(folder: Path, data_path: str, batch_size: int, cache: Path) -> tuple[float, float, float]:
    """Run the program once.

    Args:
        folder: for the run.
        cache: for operators and graphs.

    Returns:
        Seconds until the first step is in the log, seconds of all, peak memory in GB.
    """
    flags = [*START_FLAGS, "--batch_size", batch_size, "--data_path", Path(data_path).resolve()]
    with open(folder / "output.txt", "w") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, ROOT / "scripts/run_spnas.py", *map(str, flags)],
            cwd=folder,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        log, first, status = folder / "checkpoints/start/ckpt_0/metrics.jsonl", None, None
        while status is None:
            time.sleep(0.01)
            if first is None and log.is_file() and log.stat().st_size:
                first = time.perf_counter() - begin
            ended, code, usage = os.wait4(process.pid, os.WNOHANG)
            status = code if ended else None
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
    if process.returncode or first is None:
        lines = (folder / "output.txt").read_text().strip().splitlines()
        raise Fault(f"scripts/run_spnas.py: exit code {process.returncode}: {lines[-1:]}")
    return first, seconds, usage.ru_maxrss / 1e6


def measure_starts(args: argparse.Namespace) -> None:
    """Run the program in turns with its graph compiled and from the cache; print the table."""
    from src.kernels.build import cache_folder  # which PyTorch's interpreter cannot import

    results: dict[str, list[tuple[float, float, float]]] = {case: [] for case in STARTS}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)

        def run_once(folder: str, cache: str) -> tuple[float, float, float]:
            kernels = place / cache / "spnas/kernels"  # those of the user, built once
            if not kernels.is_symlink():
                kernels.parent.mkdir(parents=True)
                kernels.symlink_to(cache_folder(), target_is_directory=True)
            (place / folder).mkdir()
            return start(place / folder, args.data_path, args.batch_size, place / cache)

        cache_folder().mkdir(parents=True, exist_ok=True)
        run_once("first", "cache")  # builds the operators and fills the cache
        for number in range(args.rounds):
            results[STARTS[0]].append(run_once(f"compiled_{number}", f"cache_{number}"))
            results[STARTS[1]].append(run_once(f"cached_{number}", "cache"))
    print(f"scripts/run_spnas.py, batch {args.batch_size}, {args.rounds} rounds")
    print(f"{'':<24}{'first step, median':>20}{'least':>8}{'most s':>8}{'all s':>8}{'peak GB':>9}")
    for case, runs in results.items():
        first, whole, peak = zip(*runs, strict=True)
        print(
            f"{case:<24}{statistics.median(first):>20.2f}{min(first):>8.2f}{max(first):>8.2f}"
            f"{statistics.median(whole):>8.1f}{max(peak):>9.2f}"
        )


def measure(args: argparse.Namespace) -> None:
    """Run all contenders and print the table."""
    if args.work == "start":
        measure_starts(args)
        return
    options = "--space", args.space, "--batch_size", args.batch_size, "--work", args.work
    what = f"batch {args.batch_size}" if args.work == "step" else f"a path on {IMAGES} images"
    print(f"{args.space}, {what}, {args.rounds} rounds")
    compare(commands(__file__, args.pythons, options), WORKERS, BASES, args.rounds)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, WORKERS, rounds=20)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--space", default="one_shot_32", help="one-shot space by name")
    parser.add_argument("--work", choices=("step", "path", "start"), default="step")
    parser.add_argument("--data_path", default="data/cifar10", help="CIFAR-10, for --work start")
    args = parse(parser, argv, known_to_processor(WORKERS))
    if args.work != "path":
        if any("bfloat16" in worker for worker in args.workers or ()):
            parser.error(f"--work {args.work} is float32 alone")
        args.pythons = {key: args.pythons[key] for key in args.pythons if "bfloat16" not in key}
    if args.worker:
        return run(
            lambda: work(
                lambda: create(args.worker, args.work, load_space(args.space), args.batch_size)
            )
        )
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
