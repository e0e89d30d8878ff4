"""Work with several latency tables: merge measurements of one device, compare two tables. Imports no framework."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from src.arch.cost_table import CostTable, CostTableError
from src.arch.space import SearchSpace

CONDITIONS = ("threads", "image_size", "num_classes")  # that a measured table's provenance holds


def conditions(table: CostTable) -> dict[str, Any]:
    """Under which conditions a table was measured; tables with the same may be merged, others only compared."""
    return {
        "space": table.space,
        "device": table.device,
        "runtime": table.runtime,
        "batch_size": table.batch_size,
        **{key: table.provenance.get(key) for key in CONDITIONS},
    }


def merge_tables(tables: Mapping[str, CostTable], name: str) -> CostTable:
    """The mean of several measurements of one device.

    Args:
        tables: by file; the file is named in errors.

    Raises:
        CostTableError: two tables were measured under different conditions.
    """
    (origin, first), *others = tables.items()
    for other, table in others:
        for key, value in conditions(first).items():
            if conditions(table)[key] != value:
                raise CostTableError(
                    f"{other}: measured with {key} {conditions(table)[key]!r}, {origin} with {value!r}; "
                    "only measurements of one kind can be merged"
                )
    parts = [table.layers for table in tables.values()]
    layers = {
        layer: {
            choice: round(math.fsum(part[layer][choice] for part in parts) / len(parts), 5)
            for choice in entries
        }
        for layer, entries in first.layers.items()
    }
    spread = max(
        np.ptp([part[layer][choice] for part in parts]) / cost
        for layer, entries in layers.items()
        for choice, cost in entries.items()
        if cost > 0
    )
    provenance = {
        "source": "scripts/latency_tables.py --merge",
        **{key: first.provenance.get(key) for key in CONDITIONS},
        "widest_spread_of_an_entry": round(float(spread), 4),
        "merged": [
            {
                "name": table.name,
                "date": table.provenance.get("date"),
                "noise": table.provenance.get("noise"),
            }
            for table in tables.values()
        ],
    }
    constant = round(math.fsum(table.constant for table in tables.values()) / len(tables), 5)
    return replace(first, name=name, constant=constant, layers=layers, provenance=provenance)


def compare_tables(
    before: CostTable,
    after: CostTable,
    space: SearchSpace,
    *,
    networks: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """How two tables of a space differ.

    Returns:
        ``after / before`` of each layer and choice that costs something, and the costs of random
        networks by both tables, (networks, 2).
    """
    ratios = {
        layer: {
            choice: after.layers[layer][choice] / cost
            for choice, cost in entries.items()
            if cost > 0
        }
        for layer, entries in before.layers.items()
    }
    random, searched = np.random.default_rng(seed), space.searched.values()
    drawn = [
        [layer.names[random.integers(len(layer.names))] for layer in searched]
        for _ in range(networks)
    ]
    return ratios, np.array(
        [(before.total(decisions), after.total(decisions)) for decisions in drawn]
    )
