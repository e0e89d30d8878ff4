"""Compare trained networks in a table; scripts/report.py shows their curves.

    python scripts/compare_runs.py runs/found runs/random_0 runs/random_1 runs/largest

Runs whose folders differ only in a number at the end, such as ``random_0`` and ``random_1``, are a
group, which gets a line with mean and standard deviation. Accuracies are those of the last epoch,
on the validation images, so no run is helped by taking its best epoch. Parameters and multiply-adds
are those of a network with ``--num_classes`` outputs, for images of the run's size.
"""

from __future__ import annotations

import argparse
import logging
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.arch.architecture import load_architecture
from src.arch.cost import network_cost
from src.cli import Parser
from src.errors import UserError
from src.files import read_jsonl
from src.result_files import ARCH, METRICS
from src.training.run_log import image_size, run_folder
from src.utils import run_main

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a training run has written.

    Attributes:
        params: parameters of its network, millions.
        macs: multiply-adds of its network, millions.
        validations: the validation lines of its ``metrics.jsonl``, in order.
    """

    params: float
    macs: float
    validations: Sequence[dict[str, Any]]

    @property
    def top1(self) -> float:
        """Top-1 of the last epoch, percent."""
        return self.validations[-1]["top1"]


def read_run(folder: Path, num_classes: int) -> Run:
    """The run of a ``checkpoint_path``, or of the ``ckpt_0`` in it."""
    own = run_folder(folder)
    lines = [line for line in read_jsonl(own / METRICS) if line["kind"] == "val"]
    if not lines or not (own / ARCH).is_file():
        raise UserError(
            f"{folder}: should be the folder of a training run, with {METRICS}, in which "
            f"there are validations, and {ARCH}"
        )
    cost = network_cost(load_architecture(own / ARCH), num_classes, image_size(folder))
    return Run(cost.params / 1e6, cost.macs / 1e6, lines)


def group_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Runs whose names differ only in a number at the end, by the rest of their name."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"_\d+$", "", name), []).append(name)
    return groups


def print_table(runs: Mapping[str, Run], groups: Mapping[str, Sequence[str]]) -> None:
    """Print a line per run, and one per group of several runs."""
    header = ("run", "params", "macs", "epochs", "top-1", "top-5", "loss")
    log.info("%-16s %8s %8s %7s %8s %8s %8s", *header)
    for name, run in runs.items():
        last = run.validations[-1]
        log.info(
            "%-16s %7.2fM %7.1fM %7d %8.2f %8.2f %8.4f",
            name,
            run.params,
            run.macs,
            last["progress"],
            last["top1"],
            last["top5"],
            last["loss"],
        )
    for group, names in groups.items():
        # A single run has no standard deviation.
        if len(names) > 1:
            top1 = [runs[name].top1 for name in names]
            log.info(
                "%s: top-1 %.2f +- %.2f (mean and standard deviation of %d), %.2f to %.2f",
                group,
                statistics.mean(top1),
                statistics.stdev(top1),
                len(top1),
                min(top1),
                max(top1),
            )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line."""
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="checkpoint_path of a training run")
    parser.add_argument(
        "--num_classes",
        type=int,
        default=1000,
        help="number of classes that costs are counted for (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.num_classes < 1:
        raise UserError(f"num_classes is {args.num_classes}, should be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    args = parse_arguments(argv)
    names = [Path(folder).name for folder in args.runs]
    if len(set(names)) < len(names):
        names = args.runs
    runs = {
        name: read_run(Path(folder), args.num_classes)
        for name, folder in zip(names, args.runs, strict=True)
    }
    print_table(runs, group_names(runs))
    return 0


if __name__ == "__main__":
    run_main(main)
