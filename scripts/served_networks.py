"""One table of served networks: what was asked for, predicted and measured, in Python and in C++.

    python scripts/served_networks.py RUN TABLE

reads the folder of ``search.py --from_supernet``, the latency table that ``profile_latency.py
--verify`` has compared with its networks, and beside each ``arch.json`` what ``eval.py --output
eval.json`` and ``scripts/run_infer_310.sh`` have written. What is not there is left open.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.cli import Parser
from src.errors import UserError
from src.report.folders import find
from src.report.runs import Network, build_runs
from src.utils import run_main

HEAD = (
    *("target", "predicted ms", "measured ms", "M multiply-adds", "M parameters"),
    *("top-1, Python", "top-1, C++"),
)


def row(network: Network) -> tuple[str, ...]:
    """The cells of a network."""
    milliseconds = (network.provenance["limit"], network.predicted_ms, network.measured_ms)
    return (
        *("-" if value is None else f"{value:.2f}" for value in milliseconds),
        "-" if network.macs is None else f"{network.macs:.1f}",
        "-" if network.params is None else f"{network.params:.2f}",
        *(
            "-" if value is None else f"{value:.2f} %"
            for value in (network.tested, network.answered)
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of search.py --from_supernet")
    parser.add_argument("table", metavar="TABLE", help="latency table with its verification")
    args = parser.parse_args(argv)
    # A table within the folder is found with it.
    within = Path(args.table).resolve().is_relative_to(Path(args.run).resolve())
    runs = build_runs(find([args.run] if within else [args.run, args.table]))
    networks = [network for run in runs if run.folder.front for network in run.networks]
    rows = [HEAD, *(row(network) for network in networks if network.kind == "chosen")]
    if len(rows) == 1:
        raise UserError(
            f"{args.run}: holds no served networks; search.py --from_supernet writes them"
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    return 0


if __name__ == "__main__":
    run_main(main)
