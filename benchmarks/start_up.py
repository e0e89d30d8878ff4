"""From command line to trained network and back to the prompt: what a start costs.

    python benchmarks/start_up.py

runs a training of one step on the digits as a user does, in turns with its graph compiled and with
the graph of the run before from the cache. The CPU operators are built before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import contenders
from src.errors import Fault

FLAGS = "--dataset_name digits --epoch_size 1 --epoch_steps 1 --val_while_train false".split()
CASES: dict[str, tuple[str, ...]] = {
    "graph compiled": ("--compile_cache", "false"),
    "graph from the cache": (),
}


def seconds_of(folder: Path, run: str, flags: Sequence[str]) -> float:
    """Wall time of one process.

    Args:
        folder: holds the digits and the cached graphs of all runs.
        run: name of the run's own folder.
        flags: further flags.
    """
    program = [sys.executable, str(contenders.ROOT / "train.py"), *FLAGS]
    start = time.perf_counter()
    finished = subprocess.run(
        [*program, "--checkpoint_path", run, *flags],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise Fault(f"train.py: exit code {finished.returncode}: {finished.stderr.strip()}")
    return time.perf_counter() - start


def measure(rounds: int) -> None:
    """Print the seconds of each case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds_of(folder, "first", CASES["graph from the cache"])  # builds the operators
        times: dict[str, list[float]] = {case: [] for case in CASES}
        for run in range(1, rounds + 1):
            for number, (case, flags) in enumerate(CASES.items()):
                times[case].append(seconds_of(folder, f"{run}_{number}", flags))
    print(f"{rounds} rounds, seconds of the whole process")
    print(f"{'':<24}{'median':>8}{'least':>8}{'most':>8}")
    for case, seconds in times.items():
        print(
            f"{case:<24}{statistics.median(seconds):>8.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return contenders.run(lambda: measure(args.rounds))


if __name__ == "__main__":
    sys.exit(main())
