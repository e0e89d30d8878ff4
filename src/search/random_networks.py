"""Random networks of the cost of a search's target, as a control. Imports no framework."""

from __future__ import annotations

import logging
from pathlib import Path

from src.arch.sampling import sample_decisions
from src.arch.space import load_space
from src.config import SearchConfig
from src.errors import UserError
from src.files import make_folder, write_json
from src.search.budget import cost_bound, count_classes, open_table

log = logging.getLogger(__name__)


def draw_random(config: SearchConfig) -> int:
    """Write ``config.random`` networks as architecture files; returns the exit code."""
    space = load_space(config.space)
    table = open_table(config, space, config.preprocessing(), count_classes(config))
    target = cost_bound(config)
    if target is None:
        raise UserError(
            "random networks need a target: --target_latency_ms, or --target for macs and params"
        )
    folder = make_folder(Path(config.checkpoint_path))
    drawn = sample_decisions(space, table, target, config.random, seed=config.seed)
    for index, decisions in enumerate(drawn):
        cost = table.total(decisions)
        provenance = {
            "source": "search.py --random",
            "cost": cost,
            "unit": table.unit,
            "table": table.name,
            "seed": config.seed,
        }
        arch = space.derive(decisions, f"random_{index}", provenance)
        file = folder / f"{arch.name}.json"
        write_json(file, arch.to_dict())
        log.info("%s: %.2f %s", file, cost, table.unit)
    return 0
