r"""Pack an elastic supernet into two small files, from which networks are served without images.

    python scripts/evaluate_subnets.py --ckpt runs/elastic --out subnets.jsonl
    python scripts/pack_supernet.py --ckpt runs/elastic --accuracies subnets.jsonl \
        --out NAME.safetensors
    python search.py --from_supernet NAME.safetensors --cost macs --target 60

Weights are float16. ``NAME.statistics.safetensors`` holds the statistics of ``--networks``
networks over the whole range of multiply-adds; these can be served.
"""

from __future__ import annotations

from collections.abc import Sequence

from src.cli import parse_config
from src.config import PackConfig
from src.utils import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    config = parse_config(PackConfig, argv, __doc__)
    # Importing MindSpore takes seconds, so mistakes in the flags are told before.
    from src.search.packing import pack_supernet

    return pack_supernet(config)


if __name__ == "__main__":
    run_main(main)
