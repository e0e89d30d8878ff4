"""Accuracies of the networks of a superkernel supernet, each with statistics of its own.

    python scripts/evaluate_subnets.py --ckpt runs/search/ckpt_0 --near 60 --even 50

takes the networks within 2 % of 60 million multiply-adds and 50 others of all costs; without
``--near``, ``--even`` and ``--parts``, all networks of the space. They are written to
``subnets.jsonl``, or to ``--out``; an interrupted command continues.
"""

from __future__ import annotations

from collections.abc import Sequence

from src.cli import parse_config
from src.config import SubnetConfig
from src.utils import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    config = parse_config(SubnetConfig, argv, __doc__)
    # Importing MindSpore takes seconds, so mistakes in the flags are told before.
    from src.search.subnet_accuracies import evaluate_subnets

    return evaluate_subnets(config)


if __name__ == "__main__":
    run_main(main)
