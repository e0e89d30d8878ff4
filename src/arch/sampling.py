"""Random networks of a space, of a given cost. Imports no framework."""

from __future__ import annotations

from collections.abc import Container, Iterator

import numpy as np

from src.arch.cost_table import CostTable, CostTableError
from src.arch.space import Network, SearchSpace

# Networks that are drawn at a time, and how often, before the search for enough of them ends.
_DRAWN, _DRAWS = 10_000, 20


def _costs(space: SearchSpace, table: CostTable) -> list[np.ndarray]:
    """Costs of the choices of each layer, in the order of their names."""
    return [
        np.array([table.layers[name][choice] for choice in layer.names])
        for name, layer in space.searched.items()
    ]


def _totals(picks: np.ndarray, costs: list[np.ndarray], constant: float) -> np.ndarray:
    """Costs of networks, (networks,), from the numbers of their choices, (networks, layers)."""
    return constant + sum(own[picks[:, layer]] for layer, own in enumerate(costs))


def _probabilities(costs: list[np.ndarray], beta: float) -> list[np.ndarray]:
    """Probability of each choice of each layer, proportional to exp(-beta * cost)."""
    # Less the mean, which the division cancels again, so that exp does not overflow.
    weights = [np.exp(-beta * (cost - cost.mean())) for cost in costs]
    return [weight / weight.sum() for weight in weights]


def _choose_beta(costs: list[np.ndarray], constant: float, target: float) -> float:
    """The beta with which the mean cost is the target, by bisection: the mean falls with beta."""
    # At 50 over the widest range of a layer, the least or most costly choice is practically sure.
    scale = max(np.ptp(cost) for cost in costs) or 1.0  # where all cost the same, none matters
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
    costs = _costs(space, table)
    probabilities = _probabilities(costs, _choose_beta(costs, table.constant, target))
    found: dict[tuple[str, ...], None] = {}  # a set that keeps its order
    random = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        picks = _draw(random, probabilities)
        totals = _totals(picks, costs, table.constant)
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


def _draw(
    random: np.random.Generator, probabilities: list[np.ndarray], count: int = _DRAWN
) -> np.ndarray:
    """Numbers of the choices of ``count`` random networks, (count, layers)."""
    # All networks of a layer at a time: one call of NumPy per layer.
    columns = [random.choice(len(chance), count, p=chance) for chance in probabilities]
    return np.stack(columns, 1)


class UniformInCost:
    """Random networks of a space whose costs are uniform between two ends.

    Networks drawn uniformly in their decisions pile up at the middle of the range. Here a cost is
    drawn first, and then the nearest of some networks that are drawn around it as by
    ``sample_decisions``.

    Args:
        space: the search space.
        table: what its networks cost.
        low: lowest cost, in the table's unit; that of the smallest network where omitted.
        high: highest cost; that of the largest network where omitted.
    """

    CANDIDATES = 32
    DRAWS = 20  # per network that is needed, before a range counts as used up
    POINTS = 65  # costs over the range for which probabilities are computed once

    def __init__(
        self,
        space: SearchSpace,
        table: CostTable,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        least, most = table.range()
        self._space, self._table = space, table
        self._constant = table.constant
        self._low = least if low is None else low
        self._high = most if high is None else high
        self._names = [layer.names for layer in space.searched.values()]
        self._costs = _costs(space, table)
        self._points = np.linspace(self._low, self._high, self.POINTS)
        self._probabilities = [
            _probabilities(self._costs, _choose_beta(self._costs, table.constant, float(point)))
            for point in self._points
        ]

    def distinct(
        self, random: np.random.Generator, count: int, others: Container[Network] = ()
    ) -> Iterator[Network]:
        """``count`` networks within the range that differ from each other and from ``others``.

        Fewer where there are hardly more.
        """
        found: set[Network] = set()
        for _ in range(self.DRAWS * count):
            if len(found) == count:
                return
            network = self.draw(random)
            # The nearest to a cost within the range may be above it.
            if self._table.total(network) > self._high:
                continue
            if network not in found and network not in others:
                found.add(network)
                yield network

    def draw(self, random: np.random.Generator) -> Network:
        """Decisions of a network, in the form that names it."""
        cost = random.uniform(self._low, self._high)
        probabilities = self._probabilities[int(np.abs(self._points - cost).argmin())]
        picks = _draw(random, probabilities, self.CANDIDATES)
        totals = _totals(picks, self._costs, self._constant)
        nearest = picks[np.abs(totals - cost).argmin()]
        return self._space.canonical(
            [names[pick] for names, pick in zip(self._names, nearest, strict=True)]
        )
