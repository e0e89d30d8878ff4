"""Train a network, or all networks of a search space at once.

    python train.py --dataset_name digits --checkpoint_path runs/digits

trains the published network on the embedded digits; about two minutes on 2 CPU cores, top-1 about
99 %.

    python train.py --dataset_name digits --space nas_bench_macro --checkpoint_path runs/elastic

trains an elastic supernet, from which ``search.py --from_supernet`` serves a network for any
latency.
"""

from __future__ import annotations

from collections.abc import Sequence

from src.utils import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    from src.cli import parse_config
    from src.config import TrainConfig

    config = parse_config(TrainConfig, argv, __doc__)
    # Importing MindSpore takes seconds, so mistakes in the flags are told before.
    if config.space:
        from src.search.elastic_training import train_elastic

        return train_elastic(config)
    from src.training.single import train_network

    return train_network(config)


if __name__ == "__main__":
    run_main(main)
