"""Searches for several targets, one after the other, and one table of all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from src.arch.architecture import load_architecture
from src.arch.space import load_space
from src.checkpoint.folder import CheckpointFolder
from src.config import SearchConfig
from src.files import write_json
from src.result_files import ARCH, RUN
from src.search.budget import count_classes, open_table, parse_targets, target_name
from src.search.superkernel_search import search
from src.utils import setup_device

log = logging.getLogger(__name__)


def sweep(config: SearchConfig) -> int:
    """Search for each target in a folder of its own; returns the exit code."""
    table = open_table(
        config, load_space(config.space), config.preprocessing(), count_classes(config)
    )
    targets = parse_targets("sweep", config.sweep or "", table)
    for target in targets:
        table.check_target(target)
    key = "target_latency_ms" if config.cost == "latency" else "target"
    folder, rows = Path(config.checkpoint_path), []
    for target in targets:
        place = folder / target_name(target)
        own = {
            key: target,
            "sweep": None,
            "checkpoint_path": str(place),
            # MindSpore's cache knows graphs by their order in the process, which is another one
            # for each target.
            "compile_cache": False,
        }
        code = search(config.model_copy(update=own))
        if code:
            return code
        rows.append({"target": target, **_found(place)})
    log.info("%10s %10s %8s   (%s; top-1 of the inherited weights)", *_HEAD, table.unit)
    for row in rows:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.2f}"
        log.info("%10g %10.2f %8s", row["target"], row["cost"], top1)
    if setup_device(config.device_target, config.device_id).rank == 0:
        write_json(folder / "pareto.json", {"unit": table.unit, "networks": rows})
    return 0


_HEAD = ("target", "cost", "top-1")


def _found(place: Path) -> dict[str, Any]:
    """Cost and last validation top-1 of the search in a folder, in percent, None where none was."""
    file = place / ARCH
    scores = [entry.top1 for entry in CheckpointFolder(place / RUN).entries() if entry.metrics]
    return {
        "cost": load_architecture(file).provenance["cost"],
        "top1": scores[-1] if scores else None,
        "arch": str(file),
    }
