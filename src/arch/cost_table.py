"""Latency tables: what each choice of each layer of a space costs on a device.

A table is a JSON file with one entry a searched layer and choice, by name, and a constant for the
rest of the network. The latency of a network is the sum of its entries and the constant (Stamoulis
et al., arXiv 1904.02877, section 3.2). Multiply-adds and parameters come in the same form. This
module imports no framework.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.arch.architecture import Architecture
from src.arch.cost import layer_costs, network_cost
from src.arch.space import SKIP, SearchedLayer, SearchSpace
from src.errors import UserError
from src.files import check_record, find_file, read_json, write_text

SHIPPED = Path(__file__).parent / "latency_tables"
FORMAT = "spnas-latency"
VERSION = 1
COSTS = ("latency", "macs", "params")
UNIT = "ms"


class CostTableError(UserError):
    """A latency table that is damaged or does not fit its space, or a target that no network has."""


@dataclass(frozen=True)
class CostTable:
    """Costs of the choices of a space.

    Attributes:
        space: name of the space.
        unit: "ms", or for the stand-ins "million multiply-adds" and "million parameters".
        constant: cost of the stem, the fixed blocks, the head and whatever else every network pays.
        layers: cost by layer and choice.
    """

    name: str
    space: str
    device: str
    runtime: str
    batch_size: int
    unit: str
    constant: float
    layers: Mapping[str, Mapping[str, float]]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def check(self, space: SearchSpace, origin: str = "") -> None:
        """Raise CostTableError unless there is a finite cost, not below 0, for each choice of ``space``."""
        origin = origin or f"latency table '{self.name}'"
        if self.space != space.name:
            raise CostTableError(
                f"{origin}: made for space '{self.space}', the space searched is '{space.name}'"
            )
        if not _is_cost(self.constant):
            raise CostTableError(
                f"{origin}: constant is {self.constant!r}, should be a number not below 0"
            )
        searched = space.searched
        for name in (*searched, *self.layers):
            if name not in self.layers:
                raise CostTableError(
                    f"{origin}: layer '{name}' is missing; space '{space.name}' has "
                    f"{len(searched)} searched layers"
                )
            if name not in searched:
                raise CostTableError(
                    f"{origin}: layer '{name}' is not a searched layer of space '{space.name}'"
                )
            entries, wanted = self.layers[name], searched[name].names
            if not isinstance(entries, Mapping) or set(entries) != set(wanted):
                found = sorted(entries) if isinstance(entries, Mapping) else entries
                raise CostTableError(
                    f"{origin}: {name} has entries {found}, should have {sorted(wanted)}"
                )
            for choice, cost in entries.items():
                if not _is_cost(cost):
                    raise CostTableError(
                        f"{origin}: {name}, {choice} is {cost!r}, should be a number not below 0"
                    )

    def total(self, decisions: Sequence[str]) -> float:
        """Cost of the network of some decisions."""
        return self.constant + math.fsum(
            entries[choice] for entries, choice in zip(self.layers.values(), decisions)
        )

    def range(self) -> tuple[float, float]:
        """Smallest and largest cost of any network."""
        return tuple(
            self.constant + math.fsum(pick(entries.values()) for entries in self.layers.values())
            for pick in (min, max)
        )

    def check_target(self, target: float) -> None:
        """Raise CostTableError for a target that no network has."""
        low, high = self.range()
        if not low <= target <= high:
            raise CostTableError(
                f"target of {target:g} {self.unit}: networks of space '{self.space}' cost {low:.4g} to "
                f"{high:.4g} {self.unit} by table '{self.name}'"
            )

    def matrix(self, name: str, layer: SearchedLayer) -> np.ndarray:
        """Costs of a layer's choices, (kernel sizes, expansions) of float64, smaller choices first."""
        costs = [self.layers[name][choice] for choice in layer.choices]
        return np.array(costs, np.float64).reshape(len(layer.kernel_sizes), len(layer.expansions))

    def skip_cost(self, name: str) -> float:
        """Cost of skipping a layer, 0 where that is no choice."""
        return float(self.layers[name].get(SKIP, 0.0))

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "space": self.space,
            "device": self.device,
            "runtime": self.runtime,
            "batch_size": self.batch_size,
            "unit": self.unit,
            "constant": self.constant,
            "layers": {name: dict(entries) for name, entries in self.layers.items()},
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Any, origin: str = "latency table") -> CostTable:
        """Inverse of ``to_dict``; ``origin`` names the file in errors."""
        fields = check_record(
            data,
            FORMAT,
            VERSION,
            {
                "name": str,
                "space": str,
                "device": str,
                "runtime": str,
                "batch_size": int,
                "unit": str,
                "constant": float,
                "layers": dict,
                "provenance": dict,
            },
            origin,
            CostTableError,
        )
        if fields["unit"] != UNIT:
            raise CostTableError(f"{origin}: unit is '{fields['unit']}', should be '{UNIT}'")
        return cls(**fields)


def _is_cost(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )


def space_of(name_or_file: str | Path) -> str:
    """Name of the space that a table says it is of."""
    path = find_file(name_or_file, SHIPPED, "latency table", CostTableError)
    return CostTable.from_dict(read_json(path, CostTableError), str(path)).space


def load_table(name_or_file: str | Path, space: SearchSpace) -> CostTable:
    """Load a shipped table by name, or any table by its JSON file, and check it against a space."""
    path = find_file(name_or_file, SHIPPED, "latency table", CostTableError)
    table = CostTable.from_dict(read_json(path, CostTableError), str(path))
    table.check(space, str(path))
    # In the space's order, whatever that of the file.
    return CostTable(
        **{**vars(table), "layers": {name: table.layers[name] for name in space.searched}}
    )


def write_table(path: Path, table: CostTable) -> None:
    """Write a table whole or not at all, the entries of a layer on one line."""
    text = json.dumps(table.to_dict(), indent=2, ensure_ascii=False)
    innermost = re.compile(r"([{\[])\s*([^{}\[\]]*?)\s*([}\]])")
    write_text(
        path,
        innermost.sub(lambda match: match[1] + re.sub(r"\n\s*", " ", match[2]) + match[3], text)
        + "\n",
    )


def arithmetic_table(
    space: SearchSpace,
    cost: str,
    num_classes: int = 1000,
    image_size: tuple[int, int] | None = None,
) -> CostTable:
    """Multiply-adds ("macs") or parameters ("params") of a space in millions, as a table."""
    names, largest = space.searched, space.largest()
    layers = {}
    for index, name in enumerate(f"layer{i}" for i in range(len(space.layers))):
        if name not in names:
            continue
        layers[name] = {
            choice: _block_cost(largest, index, names[name], choice, cost, image_size)
            for choice in names[name].choices
        }
        if names[name].skippable:
            layers[name][SKIP] = 0.0
    whole = getattr(network_cost(largest, num_classes, image_size), cost) / 1e6
    constant = whole - math.fsum(layers[name][layer.largest] for name, layer in names.items())
    unit = {"macs": "million multiply-adds", "params": "million parameters"}[cost]
    return CostTable(cost, space.name, "any", "arithmetic", 1, unit, constant, layers)


def _block_cost(
    arch: Architecture,
    index: int,
    layer: SearchedLayer,
    choice: str,
    cost: str,
    image_size: tuple[int, int] | None,
) -> float:
    """Cost in millions of block ``index`` of ``arch`` with another choice in its place."""
    blocks = (*arch.blocks[:index], layer.block(choice), *arch.blocks[index + 1 :])
    changed = Architecture(
        arch.name, arch.image_size, blocks, arch.stem_channels, arch.stem_stride, arch.head_channels
    )
    return getattr(dict(layer_costs(changed, 1, image_size))[f"blocks.{index}"], cost) / 1e6
