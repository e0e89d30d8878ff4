"""Search for a network: from images and a latency table to an architecture file.

    python search.py --dataset_name digits --target 60 --checkpoint_path runs/search

searches the 32x32 space on the embedded digits for a network of 60 million multiply-adds, about two
minutes on 2 CPU cores, and writes ``runs/search/arch.json`` within 3 % of that. On ImageNet, for a
Pixel 1:

    python search.py --data_path /path/to/imagenet --latency_table pixel1 --target_latency_ms 80

``--sweep 40,60,80`` searches several targets; ``--random 10`` draws random networks of the target's
cost.

    python search.py --method one_shot --ckpt checkpoints/spos_c10_train_supernet/ckpt_0 --checkpoint_path runs/one_shot

chooses a path of a one-shot supernet that ``scripts/run_spnas.py`` has trained.
"""

import json
import logging
from pathlib import Path

from src.cli import find_kind, parse_config
from src.config import OneShotSearchConfig, SearchConfig
from src.errors import UserError
from src.files import make_folder, write_text
from src.utils import run_main

log = logging.getLogger(__name__)


def count_classes(config):
    """Classes that the flags or the data tell, which arithmetic costs depend on; None where neither does."""
    from src.data.sources import open_sources

    if config.num_classes or config.cost == "latency" or config.data_path is None:
        return config.num_classes
    return len(
        open_sources(config.dataset_name, config.data_path, splits=("train",))["train"].classes
    )


def draw_random(config):
    """Write ``config.random`` random networks of the target's cost as architecture files."""
    from src.arch.sampling import sample_decisions
    from src.arch.space import load_space
    from src.search.budget import cost_bound, open_table

    space = load_space(config.space)
    table = open_table(config, space, config.preprocessing(), count_classes(config))
    target = cost_bound(config)
    if target is None:
        raise UserError(
            "random networks need a target: --target_latency_ms, or --target for macs and params"
        )
    folder = make_folder(Path(config.checkpoint_path))
    for index, decisions in enumerate(
        sample_decisions(space, table, target, config.random, seed=config.seed)
    ):
        cost = table.total(decisions)
        arch = space.derive(
            decisions,
            f"random_{index}",
            {
                "source": "search.py --random",
                "cost": cost,
                "unit": table.unit,
                "table": table.name,
                "seed": config.seed,
            },
        )
        write_text(folder / f"random_{index}.json", json.dumps(arch.to_dict(), indent=2) + "\n")
        log.info("%s: %.2f %s", folder / f"random_{index}.json", cost, table.unit)
    return 0


def sweep(config):
    """Search for each target in a folder of its own; one table and one picture of all."""
    from src.arch.space import load_space
    from src.drawing import draw_pareto
    from src.search.budget import open_table
    from src.search.superkernel_search import Searcher

    key = "target_latency_ms" if config.cost == "latency" else "target"
    try:
        targets = [float(text) for text in config.sweep.split(",")]
    except ValueError:
        raise UserError(
            f"sweep is '{config.sweep}', should be numbers with commas between them"
        ) from None
    table = open_table(
        config, load_space(config.space), config.preprocessing(), count_classes(config)
    )
    folder, rows = Path(config.checkpoint_path), []
    for target in targets:
        table.check_target(target)
    for target in targets:
        place = folder / f"target_{target:g}"
        # MindSpore's cache knows graphs by their order in the process, which is another one for
        # each target.
        searcher = Searcher(
            config.model_copy(
                update={
                    key: target,
                    "sweep": None,
                    "checkpoint_path": str(place),
                    "compile_cache": False,
                }
            )
        )
        code = searcher.run()
        if code:
            return code
        rows.append(
            {
                "target": target,
                "cost": searcher.arch.provenance["cost"],
                "top1": searcher.last_top1(),
                "arch": str(place / "arch.json"),
            }
        )
    log.info(
        "%10s %10s %8s   (%s; top-1 of the inherited weights)",
        "target",
        "cost",
        "top-1",
        table.unit,
    )
    for row in rows:
        log.info("%10g %10.2f %8.2f", row["target"], row["cost"], row["top1"])
    if searcher.rank:
        return 0
    write_text(
        folder / "pareto.json", json.dumps({"unit": table.unit, "networks": rows}, indent=2) + "\n"
    )
    draw_pareto(rows, table.unit, folder / "pareto.png")
    return 0


METHODS = {"superkernel": SearchConfig, "one_shot": OneShotSearchConfig}


def find_method(argv):
    """Configuration class of the method that flags or the YAML file name."""
    return find_kind(METHODS, "method", argv)


def main(argv=None):
    config = parse_config(find_method(argv), argv, __doc__)
    if isinstance(config, OneShotSearchConfig):
        from src.search.one_shot_search import OneShotSearch

        return OneShotSearch(config).run()
    if config.random:
        return draw_random(config)
    if config.sweep:
        return sweep(config)
    from src.search.superkernel_search import (
        Searcher,  # after the flags are checked, as importing MindSpore takes seconds
    )

    return Searcher(config).run()


if __name__ == "__main__":
    run_main(main)
