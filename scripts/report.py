"""Make one page of runs: a file that any browser opens, without a network.

    python scripts/report.py runs/search runs/found --out report.html

RUN is the folder of a training, a search, a sweep or served networks, a folder of such folders, a
latency table (a file, or a shipped one by name), a comparison of runtimes, or accuracies of a
supernet's networks (``subnets.jsonl``). docs/report.md shows the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from src.cli import Parser
from src.errors import UserError
from src.utils import run_main


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line."""
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or latency table")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="page to write")
    args = parser.parse_args(argv)
    if args.out.suffix != ".html":
        raise UserError(f"out is '{args.out}', should be a file that ends in .html")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    args = parse_arguments(argv)
    from src.report.page import write_report

    return write_report(args.runs, args.out)


if __name__ == "__main__":
    run_main(main)
