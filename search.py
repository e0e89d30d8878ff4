"""Search for a network: from images and a latency table to an architecture file.

    python search.py --dataset_name digits --target 60 --checkpoint_path runs/search

searches the 32x32 space on the embedded digits for a network of 60 million multiply-adds, about
two minutes on 2 CPU cores, and writes ``runs/search/arch.json`` within 1 % of that. On ImageNet,
for a Pixel 1:

    python search.py --data_path /path/to/imagenet --latency_table pixel1 --target_latency_ms 80

``--sweep 40,60,80`` searches for several targets; ``--random 10`` draws random networks of the
target's cost.

    python search.py --method one_shot --ckpt SUPERNET --checkpoint_path runs/one_shot

chooses a path of a one-shot supernet that ``scripts/run_spnas.py`` has trained, for example
``checkpoints/spos_c10_train_supernet/ckpt_0``.

    python search.py --from_supernet runs/elastic --latency_table TABLE --target_latency_ms 3

serves a network of an elastic supernet that ``train.py --space`` has trained, within minutes and
without another training; ``--sweep 2,3,4`` or ``--front 10`` serve several. Searches and served
networks end with ``report.html``, a page of them (``scripts/report.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.utils import run_main

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from src.config import OneShotSearchConfig, SearchConfig, ServeConfig


def find_method(
    argv: Sequence[str] | None,
) -> type[SearchConfig] | type[OneShotSearchConfig] | type[ServeConfig]:
    """Configuration class of what flags or the YAML file ask for."""
    from src.cli import find_kind, find_value
    from src.config import OneShotSearchConfig, SearchConfig, ServeConfig

    if find_value("from_supernet", argv)[0] is not None:
        return ServeConfig
    methods: dict[str, type[SearchConfig] | type[OneShotSearchConfig]] = {
        "superkernel": SearchConfig,
        "one_shot": OneShotSearchConfig,
    }
    return find_kind(methods, "method", argv)


def show(config: SearchConfig | OneShotSearchConfig | ServeConfig, depth: int) -> int:
    """Write the page of what was found, in folders down to ``depth``; returns the exit code."""
    from src.errors import UserError
    from src.report.page import write_report
    from src.utils import setup_device

    folder = Path(config.checkpoint_path)
    if setup_device(config.device_target, config.device_id).rank == 0:
        try:
            write_report([str(folder)], folder / "report.html", depth)
        except UserError as error:  # what was found is written, and is good without a page
            log.warning("no page: %s", error)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    from src.cli import parse_config
    from src.config import OneShotSearchConfig, ServeConfig

    config = parse_config(find_method(argv), argv, __doc__)
    # Importing MindSpore takes seconds, so mistakes in the flags are told before.
    if isinstance(config, OneShotSearchConfig):
        from src.search.one_shot_search import search_paths

        return search_paths(config) or show(config, depth=0)
    if isinstance(config, ServeConfig):
        from src.search.serving import serve

        return serve(config) or show(config, depth=2 if config.finetune_epochs else 0)
    if config.random:
        from src.search.random_networks import draw_random

        return draw_random(config)
    if config.sweep:
        from src.search.sweep import sweep

        return sweep(config) or show(config, depth=1)
    from src.search.superkernel_search import search

    return search(config) or show(config, depth=0)


if __name__ == "__main__":
    run_main(main)
