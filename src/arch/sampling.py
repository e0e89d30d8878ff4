"""Random networks of a space, of a given cost. Imports no framework."""

from __future__ import annotations

import numpy as np

from src.arch.cost_table import CostTable, CostTableError
from src.arch.space import SearchSpace


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
    beta that makes the mean cost the target. Such a weight depends on a network's total cost alone,
    so networks of equal cost stay equally likely: a uniform sample at that cost, without drawing
    the whole space.

    Raises:
        CostTableError: the target is out of range, or so few networks are near it that ``count`` were
        not found.
    """
    table.check_target(target)
    layers = list(space.searched.values())
    costs = [
        np.array([table.layers[name][choice] for choice in layer.names])
        for name, layer in space.searched.items()
    ]

    def probabilities(beta: float) -> list[np.ndarray]:
        weights = [np.exp(-beta * (cost - cost.mean())) for cost in costs]
        return [weight / weight.sum() for weight in weights]

    scale = max(np.ptp(cost) for cost in costs)
    low, high = -50 / scale, 50 / scale
    for _ in range(60):  # the mean falls as beta grows
        beta = (low + high) / 2
        mean = table.constant + sum(float(p @ cost) for p, cost in zip(probabilities(beta), costs))
        low, high = (beta, high) if mean > target else (low, beta)
    random, drawn, found = np.random.default_rng(seed), 10_000, {}
    for _ in range(20):
        picks = np.stack(
            [random.choice(len(cost), drawn, p=p) for cost, p in zip(costs, probabilities(beta))], 1
        )
        totals = table.constant + sum(cost[picks[:, layer]] for layer, cost in enumerate(costs))
        for row in picks[np.abs(totals / target - 1) <= tolerance]:
            found[tuple(layer.names[pick] for pick, layer in zip(row, layers))] = None
            if len(found) == count:
                return [list(decisions) for decisions in found]
    raise CostTableError(
        f"only {len(found)} networks of space '{space.name}' were found within {tolerance:.0%} of "
        f"{target:g} {table.unit}, {count} are wanted"
    )
