"""Indicators: the 0s and 1s between thresholds and decisions. Imports no framework.

They stand in an array (L, D): one row per searched layer, and in each row kernel sizes beyond the
smallest, expansions beyond the smallest, presence. Rows are as long as the layer with the most
choices needs; what a layer lacks is fixed. Where kernel size and expansion are chosen together,
the indicators of kernel sizes stand for both, and those of expansions are fixed to 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.arch.cost_table import CostTable
from src.arch.space import SKIP, SearchSpace, Superkernel, choice_name

FREE = -1.0  # in place of 0 or 1: an indicator that its threshold decides
TOLERANCE = 0.01  # relative distance of a cost from its target
ATTEMPTS = 5  # to come so near


def padded_shape(space: SearchSpace) -> tuple[int, int]:
    """Most kernel sizes and most expansions that any layer has, two at least.

    So no tensor is empty, which MindSpore cannot slice; what a layer lacks is missing.
    """
    layers = space.superkernels.values()
    sizes = max(len(layer.kernel_sizes) for layer in layers)
    parts = max(len(layer.expansions) for layer in layers)
    return max(sizes, 2), max(parts, 2)


def ring_masks(layer: Superkernel, rows: int) -> np.ndarray:
    """Which taps of the largest kernel each size adds to the size before.

    Returns:
        (rows, k * k) of 0 and 1, k being the side of the largest kernel.
    """
    side = layer.kernel_sizes[-1]
    from_centre = np.abs(np.arange(side) - side // 2)
    distance = np.maximum.outer(from_centre, from_centre).ravel()
    # Rows beyond the layer's sizes stay 0.
    masks, inner = np.zeros((rows, side * side), np.float32), -1
    for row, size in zip(masks, layer.kernel_sizes, strict=False):
        row[(distance > inner) & (distance <= size // 2)] = 1
        inner = size // 2
    return masks


def part_masks(layer: Superkernel, rows: int) -> np.ndarray:
    """Which channels each expansion adds to the one before, (rows, C) of 0 and 1."""
    masks, first = np.zeros((rows, layer.block(layer.largest).mid_channels), np.float32), 0
    for row, expansion in zip(masks, layer.expansions, strict=False):
        last = round(layer.in_channels * expansion)
        row[first:last] = 1
        first = last
    return masks


def missing_indicators(space: SearchSpace) -> np.ndarray:
    """Values (L, D) of the indicators that layers lack, and FREE for those that they have."""
    layers = list(space.superkernels.values())
    sizes, parts = padded_shape(space)
    values = np.zeros((len(layers), sizes + parts - 1), np.float32)
    for row, layer in zip(values, layers, strict=True):
        row[: len(layer.kernel_sizes) - 1] = FREE
        if not layer.paired:
            row[sizes - 1 : sizes - 1 + len(layer.expansions) - 1] = FREE
        row[-1] = FREE if layer.skippable else 1
    return values


def to_decisions(space: SearchSpace, indicators: np.ndarray) -> list[str]:
    """Choices that indicators (L, D) of 0 and 1 stand for, one per searched layer."""
    sizes = padded_shape(space)[0] - 1
    decisions = []
    for layer, row in zip(space.superkernels.values(), indicators, strict=True):
        rank = int(np.cumprod(row[:sizes]).sum())
        kernel_size = layer.kernel_sizes[rank]
        if not layer.paired:
            rank = int(np.cumprod(row[sizes:-1]).sum())
        expansion = layer.expansions[rank]
        decisions.append(choice_name(kernel_size, expansion) if row[-1] else SKIP)
    return decisions


def to_indicators(space: SearchSpace, decisions: Sequence[str]) -> np.ndarray:
    """Inverse of ``to_decisions``; a skipped layer has its largest choice."""
    space.check(decisions)
    values = missing_indicators(space)
    for row, layer, choice in zip(values, space.superkernels.values(), decisions, strict=True):
        kernel_size, expansion = layer.choices[layer.largest if choice == SKIP else choice]
        own = [float(size <= kernel_size) for size in layer.kernel_sizes[1:]]
        if not layer.paired:
            own += [float(ratio <= expansion) for ratio in layer.expansions[1:]]
        if layer.skippable:
            own.append(float(choice != SKIP))
        row[row == FREE] = own
    return values


def without_parts(space: SearchSpace) -> dict[tuple[int, int], tuple[str, ...]]:
    """The largest network with one indicator off, by the indicator's place (row, column)."""
    on, found = to_indicators(space, space.largest_choices), {}
    for row, column in np.argwhere(missing_indicators(space) == FREE).tolist():
        without = on.copy()
        without[row, column] = 0
        found[row, column] = tuple(to_decisions(space, without))
    return found


def indicator_costs(space: SearchSpace, table: CostTable) -> np.ndarray:
    """What each indicator adds to the cost of the largest network, (L, D); 0 for missing ones."""
    costs, whole = np.zeros(missing_indicators(space).shape), table.total(space.largest_choices)
    for place, decisions in without_parts(space).items():
        costs[place] = whole - table.total(decisions)
    return costs


def part_name(space: SearchSpace, place: tuple[int, int]) -> str:
    """What the indicator at a place adds, for example ``layer3 K5`` or ``layer3``."""
    row, column = place
    name, layer = list(space.superkernels.items())[row]
    sizes = padded_shape(space)[0] - 1
    if column == missing_indicators(space).shape[1] - 1:
        return name
    if layer.paired:
        return f"{name} {list(layer.choices)[column + 1]}"
    if column < sizes:
        return f"{name} K{layer.kernel_sizes[column + 1]}"
    return f"{name} E{layer.expansions[column - sizes + 1]:g}"


def _required(layer: Superkernel, choice: str, sizes: int, count: int) -> dict[int, float]:
    """Values, by column, of the indicators that a choice depends on.

    In a skipped layer only presence counts.
    """
    if choice == SKIP:
        return {count - 1: 0.0}
    kernel_size, expansion = layer.choices[choice]
    required = {count - 1: 1.0} if layer.skippable else {}
    ranks = [(0, layer.kernel_sizes.index(kernel_size), len(layer.kernel_sizes))]
    if not layer.paired:
        ranks.append((sizes - 1, layer.expansions.index(expansion), len(layer.expansions)))
    for first, rank, options in ranks:
        required.update({first + i: 1.0 for i in range(rank)})
        if rank < options - 1:
            required[first + rank] = 0.0
    return required


def match_target(
    space: SearchSpace,
    table: CostTable,
    indicators: np.ndarray,
    margins: np.ndarray,
    target: float,
) -> np.ndarray:
    """Indicators whose cost matches a target, by the least change.

    The change is the sum of the margins of all indicators that become others: what was found with
    certainty stays. Solved exactly, up to a ten-thousandth of the target, as a knapsack over the
    layers. Where like layers have different costs, as in a table that was measured on a device,
    the network's cost is that of its canonical decisions: then it is solved again, with the aim
    moved and half the tolerance.

    Args:
        indicators: as found, (L, D) of 0 and 1.
        margins: how far each norm is from its threshold, (L, D), in units that are comparable.
        target: in the unit of the table. Costs match it that differ by at most 1 %; where no
            network is so near, the nearest one is taken.
    """

    def surplus(indicators: np.ndarray) -> float:
        return table.total(space.canonical(to_decisions(space, indicators))) - target

    tried, aim, tolerance = [indicators], target, TOLERANCE
    while abs(surplus(tried[-1])) > TOLERANCE * target and len(tried) <= ATTEMPTS:
        tried.append(_match_in_place(space, table, indicators, margins, aim, tolerance))
        aim, tolerance = aim - surplus(tried[-1]), tolerance / 2
    return min(tried, key=lambda matched: abs(surplus(matched)))


def _match_in_place(
    space: SearchSpace,
    table: CostTable,
    indicators: np.ndarray,
    margins: np.ndarray,
    target: float,
    tolerance: float,
) -> np.ndarray:
    """See ``match_target``; the cost is that of the decisions in the layers where they stand."""
    unit = 1e-4 * target
    least, picks = _least_changes(space, table, indicators, margins, unit, target)
    distance = np.abs(np.arange(len(least)) * unit / target - 1)
    reached = np.isfinite(least)
    near = reached & (distance <= tolerance)
    if near.any():
        place = int(np.argmin(np.where(near, least, np.inf)))
    else:
        place = int(np.argmin(np.where(reached, distance, np.inf)))

    # Back from the total cost to the choice of each layer.
    sizes, count = padded_shape(space)[0], indicators.shape[1]
    layers, prices = list(space.superkernels.values()), list(table.layers.values())
    matched = indicators.copy()
    for number in reversed(range(len(layers))):
        choice = layers[number].names[picks[number, place]]
        for column, value in _required(layers[number], choice, sizes, count).items():
            matched[number, column] = value
        place -= round(prices[number][choice] / unit)
    return matched


def _least_changes(
    space: SearchSpace,
    table: CostTable,
    indicators: np.ndarray,
    margins: np.ndarray,
    unit: float,
    target: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The least change that each total cost needs, and the choices that it takes.

    Returns:
        By cost in units, (B,): the change, infinite where no network costs that much; and for each
        layer the number of its choice in the network of that change, (L, B).
    """
    layers, prices = list(space.superkernels.values()), list(table.layers.values())
    sizes, count = padded_shape(space)[0], indicators.shape[1]
    # A cost is rounded once per layer and once for the constant, so the largest total may lie that
    # many units above the table's.
    bins = round(max(table.range()[1], target) / unit) + len(layers) + 1
    least = np.full(bins, np.inf)
    least[round(table.constant / unit)] = 0
    picks = np.zeros((len(layers), bins), np.int64)
    for number, (layer, costs) in enumerate(zip(layers, prices, strict=True)):
        before, least = least, np.full(bins, np.inf)
        for pick, choice in enumerate(layer.names):
            change = sum(
                abs(margins[number, column])
                for column, value in _required(layer, choice, sizes, count).items()
                if indicators[number, column] != value
            )
            shift = round(costs[choice] / unit)
            total = np.full(bins, np.inf)
            total[shift:] = before[: bins - shift] + change
            better = total < least
            least[better], picks[number, better] = total[better], pick
    return least, picks
