"""One table of served networks: what was asked for, predicted and measured, in Python and in C++.

    python scripts/served_networks.py RUN TABLE

reads the folder of ``search.py --from_supernet``, the latency table that ``profile_latency.py
--verify`` has compared with its networks, and beside each ``arch.json`` what ``eval.py --output
eval.json`` and ``scripts/run_infer_310.sh`` have written. What is not there is left open.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

USAGE = "usage: python scripts/served_networks.py RUN TABLE"
HEAD = ("target", "predicted ms", "measured ms", "M multiply-adds", "top-1, Python", "top-1, C++")


def row(network: dict[str, Any], measured: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a network.

    Args:
        network: of ``front.json``.
        measured: networks of a verification by name.
    """
    arch = Path(network["arch"])
    name = json.loads(arch.read_text(encoding="utf-8"))["name"]
    milliseconds = measured[name]["median_ms"] if name in measured else None
    cells = [network["target"], network["cost"], milliseconds]
    evaluated, answered = arch.with_name("eval.json"), arch.with_name("acc.log")
    python = cpp = None
    if evaluated.is_file():
        python = json.loads(evaluated.read_text(encoding="utf-8"))["results"][0]["top1"]
    if answered.is_file():
        found = re.search(r"top1 accuracy: ([\d.]+),", answered.read_text(encoding="utf-8"))
        cpp = 100 * float(found[1]) if found else None
    return (
        *("-" if value is None else f"{value:.2f}" for value in cells),
        f"{network['macs']:.1f}",
        *("-" if value is None else f"{value:.2f} %" for value in (python, cpp)),
    )


def main(argv: Sequence[str]) -> int:
    """Print the table; returns the exit code."""
    if len(argv) != 2:
        print(USAGE, file=sys.stderr)
        return 2
    front, table = Path(argv[0]) / "front.json", Path(argv[1])
    try:
        networks = json.loads(front.read_text(encoding="utf-8"))["networks"]
        provenance = json.loads(table.read_text(encoding="utf-8"))["provenance"]
        measured = provenance.get("verification", {}).get("measured", {})
        rows = [HEAD, *(row(network, measured) for network in networks)]
    except (OSError, ValueError, KeyError) as error:
        print(f"served_networks.py: error: {error}", file=sys.stderr)
        return 2
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
