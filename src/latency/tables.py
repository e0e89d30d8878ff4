"""Work with several latency tables: merge measurements of one device, compare two tables.

Imports no framework.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from src.arch.cost_table import CostTable, CostTableError
from src.arch.space import SearchSpace

# That the provenance of a measured table holds.
CONDITIONS = ("threads", "precision", "image_size", "num_classes")

Layers = dict[str, dict[str, float]]  # milliseconds by layer and choice


def conditions(table: CostTable) -> dict[str, Any]:
    """Under which conditions a table was measured.

    Tables of equal conditions may be merged, others only compared.
    """
    return {
        "space": table.space,
        "device": table.device,
        "runtime": table.runtime,
        "batch_size": table.batch_size,
        **{key: table.provenance.get(key) for key in CONDITIONS},
        # Tables from before there was a choice do not say it.
        "precision": table.provenance.get("precision", "float32"),
    }


def merge_tables(tables: Mapping[str, CostTable], name: str) -> CostTable:
    """The mean of several measurements of one device.

    Args:
        tables: by file; the file is named in errors.
        name: of the merged table.

    Raises:
        CostTableError: two tables were measured under different conditions.
    """
    _check_equal_conditions(tables)
    parts = list(tables.values())
    first = parts[0]
    layers = {
        layer: {
            choice: round(math.fsum(part.layers[layer][choice] for part in parts) / len(parts), 5)
            for choice in entries
        }
        for layer, entries in first.layers.items()
    }
    provenance = {
        "source": "scripts/latency_tables.py --merge",
        **{key: first.provenance.get(key) for key in CONDITIONS},
        "widest_spread_of_an_entry": round(_widest_spread(parts, layers), 4),
        "merged": [
            {
                "name": table.name,
                "date": table.provenance.get("date"),
                "noise": table.provenance.get("noise"),
            }
            for table in parts
        ],
    }
    constant = round(math.fsum(table.constant for table in parts) / len(parts), 5)
    return replace(first, name=name, constant=constant, layers=layers, provenance=provenance)


def fitted_decisions(table: CostTable) -> set[str]:
    """Decisions, joined by spaces, of the networks to which a table was fitted."""
    return {facts["decisions"] for facts in table.provenance.get("networks", {}).values()}


def _check_equal_conditions(tables: Mapping[str, CostTable]) -> None:
    (origin, first), *others = tables.items()
    for other, table in others:
        for key, value in conditions(first).items():
            found = conditions(table)[key]
            if found != value:
                raise CostTableError(
                    f"{other}: measured with {key} {found!r}, {origin} with {value!r}; "
                    "only measurements of one kind can be merged"
                )


def _widest_spread(parts: Sequence[CostTable], mean: Layers) -> float:
    """Largest difference between tables in an entry, relative to the entry's mean."""
    spreads = (
        float(np.ptp([part.layers[layer][choice] for part in parts])) / cost
        for layer, entries in mean.items()
        for choice, cost in entries.items()
        if cost > 0
    )
    return max(spreads, default=0.0)


def compare_tables(
    before: CostTable,
    after: CostTable,
    space: SearchSpace,
) -> tuple[Layers, np.ndarray]:
    """How two tables of a space differ.

    Args:
        before: a table of the space.
        after: another one, which is divided by it.
        space: of both.

    Returns:
        ``after / before`` of each layer and choice that costs something, and the costs of the
        1,000 random networks by both tables, (1000, 2).
    """
    ratios = {
        layer: {
            choice: after.layers[layer][choice] / cost
            for choice, cost in entries.items()
            if cost > 0
        }
        for layer, entries in before.layers.items()
    }
    # All choices of a layer are equally likely.
    random, searched = np.random.default_rng(0), space.searched.values()
    drawn = [
        [layer.names[random.integers(len(layer.names))] for layer in searched] for _ in range(1000)
    ]
    costs = [(before.total(decisions), after.total(decisions)) for decisions in drawn]
    return ratios, np.array(costs)
