"""Contenders of a benchmark: processes of their own that take turns at a piece of work.

Each does one piece of work unmeasured, which compiles. Then, in every round, one after the other is
timed while the others are stopped, so that all run on the same machine at almost the same time.
Peak memory is that of the whole process, compilation included.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from src.errors import EXIT_FAULT, Fault, UserError
from src.latency.turns import READY, TurnProcess, python_path, take_turns
from src.utils import allocator_environment

ROOT = Path(__file__).resolve().parents[1]
# How threads of OpenMP wait, such as PyTorch's: spinning, unless a contender is to have it
# otherwise.
WAITING = "OMP_WAIT_POLICY"
# Contenders that compute the same, in float32 and in bfloat16; "PyTorch" is the fastest of them.
PYTORCH = ("torch", "torch_passive", "torch_compiled")
PYTORCH_BFLOAT16 = ("torch_bfloat16", "torch_bfloat16_passive", "torch_bfloat16_compiled")


def natural_classes(image_size: int) -> int:
    """Classes of data with images of that size: CIFAR-10's and the digits', or ImageNet's."""
    return 10 if image_size <= 32 else 1000


def noise(batch_size: int, image_size: int, classes: int):
    """Images (N, 3, H, W) of float32 and labels (N,) of int64, the same in every process."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, 3, image_size, image_size)).astype(np.float32)
    return images, rng.integers(0, classes, batch_size)


def work(create: Callable[[], Callable[[], float]]) -> None:
    """Be a contender: the other end of ``Contender``.

    Prints ``ready``, then the seconds of one piece of work for every line that it reads, and at the
    end of its input the bytes of its peak memory.

    Args:
        create: makes the function to time, which returns a number that must be finite.
    """
    answers = take_turns()
    step = create()
    step()
    print(READY, file=answers)
    for _ in iter(sys.stdin.readline, ""):
        start = time.perf_counter()
        value = step()
        seconds = time.perf_counter() - start
        if not math.isfinite(value):
            raise FloatingPointError(f"the result is {value}")
        print(seconds, file=answers)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=answers)


class Contender(TurnProcess):
    """A worker process, seen from the parent, and what it took in its turns."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        inherited = {key: value for key, value in os.environ.items() if key != WAITING}
        own = {"PYTHONPATH": python_path(inherited), **(environment or {})}
        super().__init__(name, command, {**inherited, **own})
        self.seconds: list[float] = []

    def step(self) -> None:
        """Have the work done and timed once."""
        self.seconds.append(float(self.take_turn()[0]))

    def finish(self) -> float:
        """Let the worker end; returns its peak memory in GB."""
        assert self.process.stdin is not None  # a pipe
        self.process.stdin.close()
        peak = int(self.read()[0]) / 1e9
        self.process.send_signal(signal.SIGCONT)
        self.process.wait()
        return peak


def known_to_processor(workers: Iterable[str]) -> list[str]:
    """Without those in bfloat16 if the processor does not multiply it: a step then takes 20 s."""
    flags = Path("/proc/cpuinfo").read_text().split()

    def known(worker: str) -> bool:
        needs = ["avx512_bf16", *(["amx_bf16"] if worker.startswith("torch") else [])]
        return "bfloat16" not in worker or any(flag in flags for flag in needs)

    return [worker for worker in workers if known(worker)]


def environment_of(worker: str) -> dict[str, str]:
    """What the environment of a contender has of its own.

    PyTorch keeps its allocator: with the one of this project's programs its step takes longer.
    """
    if worker.endswith("_passive"):
        return {WAITING: "passive"}
    return {} if worker.startswith("torch") else allocator_environment()


def median_ratio(mine: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(mine, others, strict=True))


def ratio(mine: Sequence[float], others: Sequence[float]) -> str:
    """Median of the ratios within a round, and in parentheses the ratio of the least times."""
    return f"{median_ratio(mine, others):.2f} ({min(mine) / min(others):.2f})"


def commands(
    script: str, pythons: Mapping[str, str], options: Sequence[object]
) -> dict[str, list[str]]:
    """How to start the workers of a benchmark.

    Args:
        script: file of the benchmark.
        pythons: interpreter of each worker.
        options: flags of all workers, beside ``--worker``.
    """
    return {
        worker: [python, str(Path(script).resolve()), "--worker", worker, *map(str, options)]
        for worker, python in pythons.items()
    }


def compare(
    commands: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
    bases: Mapping[str, Collection[str]],
    rounds: int,
) -> dict[str, float]:
    """Run all contenders and print a table.

    Ratios are given twice: the median of those within a round, and that of the least times.

    Args:
        commands: how to start each contender.
        names: of contenders, for the table.
        bases: what the others are divided by: titles of columns, each with contenders of which the
            one with the least median is taken. Those that do not run are left out.
        rounds: how often each contender is timed.

    Returns:
        Peak memory of each in GB.
    """
    with contextlib.ExitStack() as stack:
        contenders = {}
        for key, command in commands.items():
            contender = Contender(names[key], command, environment_of(key))
            stack.callback(contender.kill)
            contender.read()
            contenders[key] = contender
        for _ in range(rounds):
            for contender in contenders.values():
                contender.step()
        peaks = {key: contender.finish() for key, contender in contenders.items()}
    columns = {}
    for title, candidates in bases.items():
        present = [contenders[key] for key in candidates if key in contenders]
        if present:
            columns[title] = min(present, key=lambda base: statistics.median(base.seconds))
        if len(present) > 1:
            print(f"/ {title}: to '{columns[title].name}', the setting with the lesser median")
    width = 2 + max(len(contender.name) for contender in contenders.values())
    ratios = "".join(f"{'/ ' + title:>16}" for title in columns)
    print(f"{'contender':<{width}}{'median':>8}{'least':>8}{'most ms':>9}{'peak GB':>9}{ratios}")
    for key, contender in contenders.items():
        seconds = contender.seconds
        ratios = "".join(f"{ratio(seconds, base.seconds):>16}" for base in columns.values())
        print(
            f"{contender.name:<{width}}{1000 * statistics.median(seconds):>8.1f}"
            f"{1000 * min(seconds):>8.1f}{1000 * max(seconds):>9.1f}{peaks[key]:>9.2f}{ratios}"
        )
    print("ratios: median of those within a round (ratio of the least times)")
    return peaks


def add_arguments(parser: argparse.ArgumentParser, workers: Collection[str], rounds: int) -> None:
    """Define the flags of every comparison: which contenders, how many rounds."""
    parser.add_argument(
        "--torch_python", metavar="PYTHON", help="interpreter that has torch and pydantic"
    )
    parser.add_argument(
        "--workers",
        nargs="+",
        choices=workers,
        help="contenders; default: all whose interpreter is given",
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--worker", choices=workers, help=argparse.SUPPRESS)


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the flags that say which network computes."""
    parser.add_argument("--arch", default="spnas_pixel1", help="architecture by name")
    parser.add_argument("--image_size", type=int, help="default: the architecture's")


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, workers: Collection[str]
) -> argparse.Namespace:
    """Flags, checked, with ``pythons``: the interpreter of each contender.

    Args:
        parser: with the flags of ``add_arguments``.
        argv: the words after the program's name; None for those of this process.
        workers: all contenders. The first word of a name, as in ``torch_passive``, is that of the
            flag with its interpreter; those without such a flag run in this one.
    """
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    args.pythons = {}
    for worker in args.workers or workers:
        flag = f"{worker.split('_')[0]}_python"
        python = getattr(args, flag, sys.executable)
        if python:
            args.pythons[worker] = python
        elif args.workers:
            parser.error(f"{worker} needs --{flag}")
    return args


def run(measure: Callable[[], None]) -> int:
    """Exit code of a benchmark; one line says what went wrong."""
    try:
        measure()
    except (UserError, Fault, OSError, subprocess.SubprocessError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_FAULT)
    return 0
