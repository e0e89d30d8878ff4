"""Random networks of a space, of a given cost. Imports no framework."""

from __future__ import annotations

import numpy as np

from src.arch.cost_table import CostTable, CostTableError
from src.arch.space import SearchSpace

# Networks that are drawn at a time, and how often, before the search for enough of them ends.
_DRAWN, _DRAWS = 10_000, 20


def _probabilities(costs: list[np.ndarray], beta: float) -> list[np.ndarray]:
    """Probability of each choice of each layer, proportional to exp(-beta * cost)."""
    # Less the mean, which the division cancels again, so that exp does not overflow.
    weights = [np.exp(-beta * (cost - cost.mean())) for cost in costs]
    return [weight / weight.sum() for weight in weights]


def _choose_beta(costs: list[np.ndarray], constant: float, target: float) -> float:
    """The beta with which the mean cost is the target, by bisection: the mean falls with beta."""
    # At 50 over the widest range of a layer, the least or most costly choice is practically sure.
    scale = max(np.ptp(cost) for cost in costs)
    low, high = -50 / scale, 50 / scale
    for _ in range(60):  # more than the bits of a float64
        beta = (low + high) / 2
        pairs = zip(_probabilities(costs, beta), costs, strict=True)
        mean = constant + sum(float(chance @ cost) for chance, cost in pairs)
        low, high = (beta, high) if mean > target else (low, beta)
    return beta


def sample_decisions(
    space: SearchSpace,
    table: CostTable,
    target: float,
    count: int,
    *,
    tolerance: float = 0.02,
    seed: int = 0,
) -> list[list[str]]:
    """Random networks whose cost lies within ``tolerance`` of ``target``, all different.

    Choices are drawn layer by layer with probability proportional to exp(-beta * cost), with the
    beta that makes the mean cost the target. Such a weight depends on nothing but a network's total
    cost, so networks of equal cost stay equally likely: a uniform sample at that cost, without
    drawing the whole space. Of the decisions that derive the same network only one counts
    (``SearchSpace.canonical``).

    Args:
        space: the search space.
        table: what its networks cost.
        target: the cost, in the table's unit.
        count: number of networks.
        tolerance: largest relative distance from the target.
        seed: of the draws.

    Returns:
        Decisions of each network.

    Raises:
        CostTableError: the target is out of range, or so few networks are near it that ``count``
            were not found.
    """
    table.check_target(target)
    layers = list(space.searched.values())
    costs = [
        np.array([table.layers[name][choice] for choice in layer.names])
        for name, layer in space.searched.items()
    ]
    probabilities = _probabilities(costs, _choose_beta(costs, table.constant, target))
    found: dict[tuple[str, ...], None] = {}  # a set that keeps its order
    random = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        picks = _draw(random, probabilities)
        totals = table.constant + sum(cost[picks[:, layer]] for layer, cost in enumerate(costs))
        for row in picks[np.abs(totals / target - 1) <= tolerance]:
            drawn = tuple(layer.names[pick] for pick, layer in zip(row, layers, strict=True))
            if drawn == space.canonical(drawn):
                found[drawn] = None
            if len(found) == count:
                return [list(decisions) for decisions in found]
    raise CostTableError(
        f"only {len(found)} networks of space '{space.name}' were found within {tolerance:.0%} of "
        f"{target:g} {table.unit}, {count} are needed"
    )


def _draw(random: np.random.Generator, probabilities: list[np.ndarray]) -> np.ndarray:
    """Numbers of the choices of random networks, (networks, layers)."""
    # All networks of a layer at a time: one call of NumPy per layer.
    columns = [random.choice(len(chance), _DRAWN, p=chance) for chance in probabilities]
    return np.stack(columns, 1)
