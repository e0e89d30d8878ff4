r"""Merge and compare latency tables.

    python scripts/latency_tables.py --diff pixel1 tables/mycpu.json
    python scripts/latency_tables.py --merge tables/monday.json tables/friday.json \
        --out tables/mycpu.json

Tables are files or names of shipped ones. They belong to one space: a shipped one, or that of the
file given with --space. ``scripts/report.py`` draws them.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from src.arch.cost_table import CostTable, load_table, space_of, write_table
from src.arch.space import SearchSpace, load_space
from src.cli import Parser
from src.errors import UserError
from src.files import make_folder
from src.latency.statistics import judge
from src.latency.tables import compare_tables, conditions, merge_tables
from src.utils import run_main

log = logging.getLogger(__name__)


def diff(first: CostTable, second: CostTable, space: SearchSpace) -> None:
    """Print how the second table differs from the first: conditions, each entry, whole networks."""
    log.info("%s -> %s", first.name, second.name)
    before, after = conditions(first), conditions(second)
    for key, value in before.items():
        if after[key] != value:
            log.info("%-12s %s -> %s", key, value, after[key])
    ratios, costs = compare_tables(first, second, space)
    # Columns in the order in which choices appear; not every layer has all of them.
    names = list(dict.fromkeys(choice for entries in ratios.values() for choice in entries))
    header = "".join(f"{name:>8}" for name in names)
    log.info("%-10s%s   (second / first)", "", header)
    for layer, entries in ratios.items():
        cells = (f"{entries[name]:8.3f}" if name in entries else " " * 8 for name in names)
        log.info("%-10s%s", layer, "".join(cells))
    log.info("constant %.3f -> %.3f ms", first.constant, second.constant)
    before_ms, after_ms = costs.T
    whole = after_ms / before_ms
    log.info(
        "%d random networks: second / first is %.3f to %.3f, %.3f on average; Kendall's tau %.3f",
        len(costs),
        whole.min(),
        whole.max(),
        whole.mean(),
        judge(before_ms.tolist(), after_ms.tolist()).kendall_tau,
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line."""
    parser = Parser(__doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--diff", nargs=2, metavar="TABLE", help="compare two tables")
    task.add_argument(
        "--merge",
        nargs="+",
        metavar="TABLE",
        help="write the mean of measurements of one kind to --out",
    )
    parser.add_argument("--out", help="file to write, .json")
    parser.add_argument("--space", help="space file, where the tables are of none that is shipped")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare or merge; returns the exit code."""
    args = parse_arguments(argv)
    if args.diff and args.out:
        raise UserError("--out is for --merge; --diff prints")
    files = args.diff or args.merge
    # A table names its space; that of the first one decides, and the others have to be of it.
    space = load_space(args.space or space_of(files[0]))
    tables = {file: load_table(file, space) for file in files}
    if args.diff:
        first, second = (tables[file] for file in files)
        diff(first, second, space)
        return 0
    out = Path(args.out or "")
    if out.suffix != ".json":
        raise UserError(f"out is '{args.out}', should be a file that ends in .json")
    make_folder(out.parent)
    write_table(out, merge_tables(tables, out.stem))
    log.info("%s: written", out)
    return 0


if __name__ == "__main__":
    run_main(main)
