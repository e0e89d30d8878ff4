"""Cost tables: what each choice of each layer of a space costs on a device.

A latency table is a JSON file with one entry per searched layer and choice, by name, and a constant
for the rest of the network. The latency of a network is the sum of its entries and the constant
(Stamoulis et al., arXiv 1904.02877, section 3.2). Multiply-adds and parameters come in the same
form. This module imports no framework.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import ConfigDict, Field

from src.arch.blocks import AnyBlock, encode_block
from src.arch.cost import ArithmeticCost, Size, block_cost, network_cost
from src.arch.space import SKIP, SearchSpace, Superkernel
from src.errors import UserError
from src.files import check_header, dump_record, find_file, parse_record, read_json, write_text

SHIPPED = Path(__file__).parent / "latency_tables"
FORMAT = "spnas-latency"
VERSION = 1
UNIT = "ms"


class CostTableError(UserError):
    """A table that is damaged or does not fit its space, or a target that no network has."""


_Cost: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class CostTable:
    """Costs of the choices of a space; fields stand in the order of the file.

    Attributes:
        space: name of the space.
        unit: "ms", or for arithmetic costs "million multiply-adds" or "million parameters".
        constant: cost of the stem, the fixed blocks, the head and whatever else every network pays.
        layers: cost by layer and choice.
        provenance: how the table came about, and under which conditions it was measured.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    space: str
    device: str
    runtime: str
    batch_size: int
    unit: str
    constant: _Cost
    layers: Mapping[str, Mapping[str, _Cost]]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def check(self, space: SearchSpace, origin: str = "") -> None:
        """Raise CostTableError unless there is a cost for each choice of ``space``."""
        origin = origin or f"latency table '{self.name}'"
        if self.space != space.name:
            raise CostTableError(
                f"{origin}: made for space '{self.space}', the space searched is '{space.name}'"
            )
        searched = space.searched
        # Layers that lack a name first, then those that should have none.
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
            entries, choices = self.layers[name], searched[name].names
            if set(entries) != set(choices):
                raise CostTableError(
                    f"{origin}: {name} has entries {sorted(entries)}, should have {sorted(choices)}"
                )

    def for_space(self, space: SearchSpace, origin: str = "") -> CostTable:
        """The table with its layers in the order of ``space``, against which it is checked.

        ``total`` pairs entries and decisions by their order, and a file may have another one.
        """
        self.check(space, origin)
        return replace(self, layers={name: self.layers[name] for name in space.searched})

    def total(self, decisions: Sequence[str]) -> float:
        """Cost of the network of some decisions."""
        # fsum rounds once: the sum does not depend on the order of the layers.
        return self.constant + math.fsum(
            entries[choice] for entries, choice in zip(self.layers.values(), decisions, strict=True)
        )

    def range(self) -> tuple[float, float]:
        """Smallest and largest cost of any network."""
        entries = [layer.values() for layer in self.layers.values()]
        return (
            self.constant + math.fsum(map(min, entries)),
            self.constant + math.fsum(map(max, entries)),
        )

    def costs(self) -> dict[str, Any]:
        """Those keys of the table's file that say what a network costs."""
        return {"unit": self.unit, "constant": self.constant, "layers": self.layers}

    def digest(self) -> str:
        """Of ``costs``: equal where every network costs the same."""
        return hashlib.sha256(json.dumps(self.costs(), sort_keys=True).encode()).hexdigest()[:16]

    def check_target(self, target: float) -> None:
        """Raise CostTableError for a target that no network has."""
        low, high = self.range()
        if not low <= target <= high:
            raise CostTableError(
                f"target of {target:g} {self.unit}: networks of space '{self.space}' cost "
                f"{low:.4g} to {high:.4g} {self.unit} by table '{self.name}'"
            )

    def matrix(self, name: str, layer: Superkernel) -> np.ndarray:
        """Costs of a layer's choices but SKIP, of float64, smaller choices first.

        Returns:
            Array (kernel sizes, expansions). Pairs stand on its diagonal. Beside it are means of
            two, so that the cost is linear in indicators that stand for kernel size and expansion.
        """
        costs = np.array([self.layers[name][choice] for choice in layer.choices], np.float64)
        if layer.paired:
            return (costs[:, None] + costs) / 2
        # ``choices`` lists all expansions of the first kernel size, then those of the second.
        return costs.reshape(len(layer.kernel_sizes), len(layer.expansions))

    def skip_cost(self, name: str) -> float:
        """Cost of skipping a layer, 0 where that is no choice."""
        return float(self.layers[name].get(SKIP, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """What the table's file holds."""
        return {"format": FORMAT, "version": VERSION, **dump_record(self)}

    @classmethod
    def from_dict(cls, data: Any, origin: str = "latency table") -> CostTable:
        """Inverse of ``to_dict`` for latencies; ``origin`` names the file in errors."""
        record = check_header(data, FORMAT, VERSION, origin, CostTableError)
        table = parse_record(cls, record, origin, CostTableError, optional=())
        # Arithmetic tables follow from the space; a file of one could only be out of date.
        if table.unit != UNIT:
            raise CostTableError(f"{origin}: unit is '{table.unit}', should be '{UNIT}'")
        return table


def read_table(name_or_file: str | Path) -> tuple[CostTable, str]:
    """A shipped table or that of a file, and its path."""
    path = find_file(name_or_file, SHIPPED, "latency table", CostTableError)
    return CostTable.from_dict(read_json(path, CostTableError), str(path)), str(path)


def space_of(name_or_file: str | Path) -> str:
    """Name of the space that a table says it is of."""
    return read_table(name_or_file)[0].space


def load_table(name_or_file: str | Path, space: SearchSpace) -> CostTable:
    """Load a shipped table by name, or any table by its JSON file, and check it against a space."""
    table, path = read_table(name_or_file)
    return table.for_space(space, path)


def measured_name(block: AnyBlock, height: int, width: int) -> str:
    """Name under which a table keeps the measurement of a block with inputs of this size."""
    return f"{encode_block(block)}_{height}x{width}"


def write_table(path: Path, table: CostTable) -> None:
    """Write a table in one step, the entries of a layer on one line."""
    text = json.dumps(table.to_dict(), indent=2, ensure_ascii=False)
    # Objects and lists that hold no others: their line breaks and indents become single spaces.
    innermost = re.compile(r"([{\[])\s*([^{}\[\]]*?)\s*([}\]])")
    text = innermost.sub(lambda found: found[1] + re.sub(r"\n\s*", " ", found[2]) + found[3], text)
    write_text(path, text + "\n")


ARITHMETIC_UNITS: Mapping[ArithmeticCost, str] = {
    "macs": "million multiply-adds",
    "params": "million parameters",
}


def arithmetic_table(
    space: SearchSpace,
    cost: ArithmeticCost,
    num_classes: int = 1000,
    image_size: Size | None = None,
) -> CostTable:
    """Multiply-adds or parameters of a space in millions, as a table.

    Args:
        space: the search space.
        cost: what is counted.
        num_classes: outputs of the classifier.
        image_size: height and width in pixels; the space's own where omitted.
    """
    layers: dict[str, dict[str, float]] = {}
    for name, layer, size in space.searched_inputs(image_size):
        layers[name] = {
            choice: getattr(block_cost(layer.block(choice), *size), cost) / 1e6
            for choice in layer.choices
        }
        if layer.skippable:
            layers[name][SKIP] = 0.0  # a skipped layer is absent from the network
    # The largest network has every layer, so what its layers do not explain is the constant.
    whole = getattr(network_cost(space.largest(), num_classes, image_size), cost) / 1e6
    largest = [layers[name][layer.largest] for name, layer in space.searched.items()]
    return CostTable(
        name=cost,
        space=space.name,
        device="any",
        runtime="arithmetic",
        batch_size=1,
        unit=ARITHMETIC_UNITS[cost],
        constant=whole - math.fsum(largest),
        layers=layers,
    )
