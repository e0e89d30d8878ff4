"""Write the weights of a trained network for timm, the collection of PyTorch image models.

    python scripts/to_timm.py runs/digits/ckpt_0/best.ckpt --out digits.safetensors

takes seconds, and prints the lines of Python that make the network in timm and load the file. Its
logits there differ from those here by at most 1e-5 of the largest one.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from src.cli import Parser
from src.utils import run_main

log = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line."""
    parser = Parser(__doc__)
    parser.add_argument("ckpt", metavar="CKPT", help="checkpoint of a network")
    parser.add_argument("--out", required=True, help="file to write, .safetensors")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; returns the exit code."""
    args = parse_arguments(argv)
    # Importing MindSpore takes seconds, so mistakes in the flags are told before.
    from src.checkpoint.format import read_checkpoint
    from src.deployment.timm_weights import write_timm

    program = write_timm(read_checkpoint(args.ckpt), Path(args.out))
    log.info("%s: written; in Python with timm:\n\n%s", args.out, program)
    return 0


if __name__ == "__main__":
    run_main(main)
