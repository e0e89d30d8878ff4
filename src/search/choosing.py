"""Choosing networks of a trained supernet within limits of their cost.

Some networks are evaluated, a regression on their choices predicts all others, an evolution finds
those of which most is expected, and so on. The regression also decides at the end: of a hundred
measured accuracies the best is partly the luckiest. Imports no framework.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle

import numpy as np
from scipy.linalg import cho_solve
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

from src.arch.cost_table import CostTable
from src.arch.sampling import UniformInCost
from src.arch.space import Network, SearchSpace

# The first networks of a single limit lie between this share of it and the limit itself.
LOWEST = 0.7
# Networks whose logarithm of the cost differs by this from a limit's count by 1/e for its error.
WIDTH = 0.3
PROPOSED = 5  # networks that are evaluated between two regressions
GENERATIONS, CHILDREN, PARENTS = 20, 200, 50


@dataclass(frozen=True)
class Choice:
    """A network that was chosen for a limit.

    Attributes:
        limit: of the cost, in the unit of its table.
        decisions: of the network.
        cost: of the network.
        top1: measured with the supernet's weights, percent.
        predicted: what the regression says of it, percent.
        error: of the regression near the limit, root mean square over networks that it was not
            fitted to, percent; None where there are too few networks to tell.
    """

    limit: float
    decisions: Network
    cost: float
    top1: float
    predicted: float
    error: float | None


class Predictor:
    """The accuracy to expect of networks: a Gaussian process on their choices.

    It is a linear regression, one value per layer and choice, and deviations from it that are the
    more alike the more choices two networks share; the rest is noise of the measurement
    (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, sections 2.2 and 5.4.1).
    So what it expects of a network that was evaluated follows from its accuracy and from those of
    similar networks.

    Args:
        space: of the networks.
        known: accuracies of networks.

    Attributes:
        known: the same.
    """

    FEWEST = 10  # networks that it takes to tell an error

    def __init__(self, space: SearchSpace, known: Mapping[Network, float]) -> None:
        self.known = dict(known)
        self._choices = [layer.names for layer in space.searched.values()]
        # Accuracies are divided by their deviation. Values are those that the fit begins with.
        linear = ConstantKernel(1.0, (1e-3, 1e3)) * DotProduct(1.0)
        deviations = ConstantKernel(0.3, (1e-3, 1e2)) * RBF(2.0, (0.5, 20))
        noise = WhiteKernel(0.3, (1e-3, 10))
        self._model = GaussianProcessRegressor(linear + deviations + noise, normalize_y=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of values at their bounds
            self._model.fit(self._encode(list(known)), list(known.values()))

    def _encode(self, networks: Sequence[Network]) -> np.ndarray:
        """Rows of 0 and 1, (networks, sum of choices)."""
        return np.array(
            [
                [
                    choice == name
                    for choice, names in zip(network, self._choices, strict=True)
                    for name in names
                ]
                for network in networks
            ],
            np.float64,
        )

    def __call__(self, networks: Sequence[Network]) -> np.ndarray:
        """Expected accuracies, (networks,)."""
        return self._model.predict(self._encode(networks))

    def error(self, weights: np.ndarray) -> float | None:
        """Root of the mean square error of the known networks, each expected from the others.

        Args:
            weights: how much each of them counts.

        Returns:
            The error in the unit of the accuracies; None of fewer than ``FEWEST`` networks.
        """
        if len(weights) < self.FEWEST:
            return None
        return float(np.sqrt(np.average(self._errors**2, weights=weights)))

    @cached_property
    def _errors(self) -> np.ndarray:
        """Of each known network, by the inverse of their covariance (section 5.4.2)."""
        inverse = cho_solve((self._model.L_, True), np.eye(len(self.known)))
        return self._model.alpha_ / np.diag(inverse) * np.std(list(self.known.values()))


def decide(
    predictor: Predictor,
    table: CostTable,
    limit: float,
    candidates: Iterable[Network],
) -> Choice:
    """The candidate within a limit of which most is expected.

    Args:
        candidates: some of those that the predictor knows, at least one within the limit.
    """
    allowed = [network for network in candidates if table.total(network) <= limit]
    expected = predictor(allowed)
    best = int(expected.argmax())
    network = allowed[best]
    costs = np.array([table.total(network) for network in predictor.known])
    near = np.exp(-np.abs(np.log(costs / limit)) / WIDTH)
    return Choice(
        limit,
        network,
        table.total(network),
        predictor.known[network],
        float(expected[best]),
        predictor.error(near),
    )


class Chooser:
    """Chooses a network for each limit.

    The same seed makes the same choices.

    Args:
        space: of the supernet.
        table: of the cost.
        limits: of the cost.
        evaluate: accuracy of a network, in percent; called once per network.
        seed: of all draws.

    Attributes:
        known: accuracies of the networks evaluated so far.
    """

    def __init__(
        self,
        space: SearchSpace,
        table: CostTable,
        limits: Sequence[float],
        evaluate: Callable[[Network], float],
        seed: int,
    ) -> None:
        self._space, self._table, self._limits = space, table, limits
        self._evaluate, self._random = evaluate, np.random.default_rng(seed)
        self._choices = [layer.names for layer in space.searched.values()]
        self.known: dict[Network, float] = {}

    def choose(self, evaluations: int) -> list[Choice]:
        """Evaluate so many networks, half of them random, and choose one for each limit."""
        self._evaluate_random(evaluations // 2)
        idle = 0
        for limit in cycle(self._limits):
            if len(self.known) >= evaluations or idle == len(self._limits):
                break  # enough, or for no limit is there a network that is not known
            count = min(max(PROPOSED // len(self._limits), 1), evaluations - len(self.known))
            proposed = self._propose(limit, count)
            idle = 0 if proposed else idle + 1
            for network in sorted(proposed):
                self._take(network)
        predictor = Predictor(self._space, self.known)
        return [decide(predictor, self._table, limit, self.known) for limit in self._limits]

    def _take(self, network: Network) -> None:
        self.known[network] = self._evaluate(network)

    def _evaluate_random(self, count: int) -> None:
        """Evaluate networks whose costs are uniform over the range in question."""
        least, most = self._table.range()
        highest = min(max(self._limits), most)
        lowest = max(LOWEST * highest, least) if len(self._limits) == 1 else least
        drawn = UniformInCost(self._space, self._table, lowest, highest)
        # Where only few networks are cheap enough for the lowest limit, one is known at least. By
        # a measured table the cheapest network need not be the smallest.
        cheapest = [min(costs, key=costs.__getitem__) for costs in self._table.layers.values()]
        self._take(self._space.canonical(cheapest))
        # Neighbours in this order have most layers in common, which are computed once.
        for network in sorted(drawn.distinct(self._random, count - 1, self.known)):
            self._take(network)

    def _propose(self, limit: float, count: int) -> list[Network]:
        """The best networks within a limit that are not known, by the regression: an evolution."""
        predictor = Predictor(self._space, self.known)
        found: dict[Network, float] = {}

        def add(networks: Sequence[Network]) -> None:
            new = [
                network
                for network in dict.fromkeys(networks)
                if network not in found and self._table.total(network) <= limit
            ]
            if new:
                found.update(zip(new, predictor(new).tolist(), strict=True))

        add(list(self.known))
        for _ in range(GENERATIONS):
            parents = sorted(found, key=found.__getitem__, reverse=True)[:PARENTS]
            add([self._child(parents) for _ in range(CHILDREN)])
        best = sorted(found, key=found.__getitem__, reverse=True)
        return [network for network in best if network not in self.known][:count]

    def _child(self, parents: Sequence[Network]) -> Network:
        """Two parents crossed, with one layer drawn anew on average."""
        random, layers = self._random, len(self._choices)
        first, second = (parents[i] for i in random.integers(len(parents), size=2))
        crossed, drawn = random.random(layers) < 0.5, random.random(layers) < 1 / layers
        return self._space.canonical(
            [
                names[random.integers(len(names))] if anew else (one if same else other)
                for one, other, same, anew, names in zip(
                    first, second, crossed, drawn, self._choices, strict=True
                )
            ]
        )
