"""Contenders of a benchmark: processes of their own that take turns at a piece of work.

Each does one piece of work unmeasured, which compiles. Then, in every round, one after the other is
timed while the others wait, so that all run on the same machine at almost the same time. Ratios are
medians of the ratios within a round. Peak memory is that of the whole process, compilation
included.
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
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from src.arch.architecture import load_architecture

ROOT = Path(__file__).resolve().parents[1]
# Architectures that timm's network can be; whether with lowered strides.
TORCH_ARCHS = {"spnas_pixel1": False, "spnas_pixel1_32": True}
CLASSES = 1000


class WorkerError(RuntimeError):
    """A contender that ended before its time."""


def noise(batch_size: int, image_size: int, classes: int = CLASSES):
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
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    step = create()
    step()
    print("ready", file=answers)
    for _ in iter(sys.stdin.readline, ""):
        start = time.perf_counter()
        value = step()
        seconds = time.perf_counter() - start
        if not math.isfinite(value):
            raise FloatingPointError(f"the result is {value}")
        print(seconds, file=answers)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=answers)


def python_path() -> str:
    """PYTHONPATH for an interpreter in which this project may not be installed."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


class Contender:
    """A worker process, seen from the parent."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": python_path()},
        )

    def answer(self) -> str:
        """The next line of the worker."""
        assert self.process.stdout is not None  # a pipe
        line = self.process.stdout.readline().strip()
        if not line:
            raise WorkerError(f"{self.name}: ended with exit code {self.process.wait()}")
        return line

    def step(self) -> None:
        """Have the work done and timed once."""
        assert self.process.stdin is not None  # a pipe
        try:
            self.process.stdin.write("step\n")
        except BrokenPipeError:
            pass  # reading the answer tells the exit code
        self.seconds.append(float(self.answer()))

    def finish(self) -> float:
        """End the worker; returns its peak memory in GB."""
        assert self.process.stdin is not None  # a pipe
        self.process.stdin.close()
        return int(self.answer()) / 1e9

    def kill(self) -> None:
        """End the worker whatever it does."""
        self.process.kill()
        self.process.wait()


def median_ratio(mine: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(mine, others, strict=True))


def compare(
    commands: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
    bases: Sequence[str],
    rounds: int,
) -> dict[str, float]:
    """Run all contenders and print a table.

    Args:
        commands: how to start each contender.
        names: of contenders, for the table.
        bases: contenders that the others are divided by, each in a column of its own.
        rounds: how often each contender is timed.

    Returns:
        Peak memory of each in GB.
    """
    peaks = {}
    with contextlib.ExitStack() as stack:
        contenders = {}
        for key, command in commands.items():
            contenders[key] = Contender(names[key], command)
            stack.callback(contenders[key].kill)
        for contender in contenders.values():
            contender.answer()
        for _ in range(rounds):
            for contender in contenders.values():
                contender.step()
        ratios = "".join(f"{f'/ {base}':>9}" for base in bases)
        print(f"{'contender':<26}{'median ms':>10}{'min..max ms':>18}{ratios}{'peak GB':>9}")
        for key, contender in contenders.items():
            seconds, peaks[key] = contender.seconds, contender.finish()
            ratios = "".join(
                f"{median_ratio(seconds, contenders[base].seconds):>11.2f}" for base in bases
            )
            spread = f"{1000 * min(seconds):.1f}..{1000 * max(seconds):.1f}"
            print(
                f"{contender.name:<26}{1000 * statistics.median(seconds):>10.1f}{spread:>18}"
                f"{ratios}{peaks[key]:>9.2f}",
                flush=True,
            )
    return peaks


def add_arguments(parser: argparse.ArgumentParser, workers: Collection[str], rounds: int) -> None:
    """Define the flags of every comparison: which contenders, which network, how many rounds."""
    parser.add_argument(
        "--torch_python", metavar="PYTHON", help="interpreter that has torch, timm and pydantic"
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--image_size", type=int, help="default: the architecture's")
    parser.add_argument("--arch", default="spnas_pixel1", help="architecture by name")
    parser.add_argument("--worker", choices=workers, help=argparse.SUPPRESS)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags, checked, with the architecture's image size where none is given."""
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.torch_python and args.arch not in TORCH_ARCHS:
        parser.error(f"timm has {' and '.join(TORCH_ARCHS)} only; leave out --torch_python")
    args.image_size = args.image_size or load_architecture(args.arch).image_size
    return args


def run(measure: Callable[[], None]) -> int:
    """Exit code of a benchmark; one line says why a contender failed."""
    try:
        measure()
    except (WorkerError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    return 0
