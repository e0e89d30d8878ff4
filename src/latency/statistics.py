"""Statistics of latency measurements, and how well a table predicts: pure functions. Imports no framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import median_filter
from scipy.optimize import nnls
from scipy.stats import binom, kendalltau

CONFIDENCE = 0.95
NEIGHBOURS = 12  # samples on either side that tell the machine's speed at a sample
RMSE_BAR = 0.05
TAU_BAR = 0.9


@dataclass(frozen=True)
class Summary:
    """What the samples of one model say.

    Attributes:
        median_ms: median, milliseconds.
        margin: half the width of the median's 95 % confidence interval, relative to it.
        spread: interquartile range, relative to the median.
        outliers: samples further than three interquartile ranges from the quartiles (Tukey's "far
            out").
        largest_ms: the largest sample.
    """

    median_ms: float
    margin: float
    spread: float
    samples: int
    outliers: int
    largest_ms: float

    def to_dict(self) -> dict[str, Any]:
        return {
            key: round(value, 5) if isinstance(value, float) else value
            for key, value in vars(self).items()
        }


def summarise(milliseconds: np.ndarray) -> Summary:
    """Summary of the samples of one model; the interval comes from order statistics and assumes no distribution."""
    ordered = np.sort(milliseconds)
    count = len(ordered)
    low, median, high = np.quantile(ordered, (0.25, 0.5, 0.75))
    # P(x_(a) <= median <= x_(b + 1)) = P(a <= B <= b) for B binomial with probability 1/2, and
    # x_(1) the smallest.
    first, last = (int(rank) for rank in binom.interval(CONFIDENCE, count, 0.5))
    margin = (
        (ordered[last] - ordered[first - 1]) / 2 / median if first > 0 and last < count else np.inf
    )
    reach = 3 * (high - low)
    outliers = int(np.sum((ordered < low - reach) | (ordered > high + reach)))
    return Summary(
        float(median),
        float(margin),
        float((high - low) / median),
        count,
        outliers,
        float(ordered[-1]),
    )


def machine_slowness(models: np.ndarray, milliseconds: np.ndarray) -> np.ndarray:
    """How slow the machine was at each sample, 1 being its median: a running median over the samples around it.

    A shared machine changes its speed for tenths of a second at a time. Models are measured in
    random order, so the samples around one are of many models; each is taken relative to its
    model's median.

    Args:
        models: number of each sample's model, in the order of measurement, (N,) of int.
        milliseconds: the samples, (N,).
    """
    slowness = np.ones(len(milliseconds))
    for _ in range(3):  # medians and slowness depend on each other; the third round changes little
        medians = _medians(models, milliseconds / slowness)
        slowness = median_filter(milliseconds / medians[models], 2 * NEIGHBOURS + 1, mode="nearest")
        slowness /= np.median(slowness)
    return slowness


def _medians(models: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.array([np.median(values[models == model]) for model in range(models.max() + 1)])


def summarise_all(models: np.ndarray, milliseconds: np.ndarray) -> tuple[list[Summary], float]:
    """Summaries of interleaved measurements at the machine's median speed, and the noise of the machine.

    Returns:
        A summary for each model, and the median over models of the raw samples' relative
        interquartile range.
    """
    steadied = milliseconds / machine_slowness(models, milliseconds)
    each = range(models.max() + 1)
    noise = np.median([summarise(milliseconds[models == model]).spread for model in each])
    return [summarise(steadied[models == model]) for model in each], float(noise)


@dataclass(frozen=True)
class Correction:
    """From isolated blocks to their share of a network: ``slope * isolated + weight_ms * weights + offset_ms``.

    Attributes:
        constant_ms: what every network pays beside its searched blocks.
        slope: what a millisecond of an isolated block costs within a network.
        weight_ms: what a million weights cost: alone, a block finds them in the nearest cache.
        offset_ms: usually below 0: an isolated block also pays for being a model of its own.
    """

    constant_ms: float
    slope: float
    weight_ms: float
    offset_ms: float

    def entry(self, isolated_ms: float, weights: float) -> float:
        """Milliseconds of a block of so many million weights; the cheapest may compute to -1e-17."""
        return max(0.0, self.slope * isolated_ms + self.weight_ms * weights + self.offset_ms)


def fit_correction(
    isolated: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], whole: Sequence[float]
) -> Correction:
    """Least squares of relative errors over whole networks, under which no block and no constant is below 0.

    Args:
        isolated: milliseconds of the searched blocks of each network, one at a time.
        weights: of the same blocks, millions.
        whole: milliseconds of each network.
    """
    measured = np.asarray(whole, np.float64)
    cheapest = min(min(blocks) for blocks in isolated if len(blocks))
    # whole = constant + slope * sum(isolated - cheapest) + weight_ms * sum(weights) + count * cost
    # of the cheapest; all four are not negative.
    columns = np.array(
        [
            (1.0, sum(blocks) - len(blocks) * cheapest, sum(millions), len(blocks))
            for blocks, millions in zip(isolated, weights)
        ]
    )
    (constant, slope, weight, floor), _ = nnls(columns / measured[:, None], np.ones(len(measured)))
    return Correction(float(constant), float(slope), float(weight), float(floor - slope * cheapest))


@dataclass(frozen=True)
class Verdict:
    """How predicted latencies compare with measured ones.

    Attributes:
        mean_error: mean of predicted / measured - 1.
        rmse: root of the mean squared error, relative to the mean measured latency.
        worst: predicted / measured - 1 of the network where it is furthest from 0.
        kendall_tau: rank correlation.
    """

    networks: int
    mean_error: float
    rmse: float
    worst: float
    kendall_tau: float

    @property
    def passed(self) -> bool:
        return self.rmse <= RMSE_BAR and self.kendall_tau >= TAU_BAR

    def to_dict(self) -> dict[str, Any]:
        return {
            "networks": self.networks,
            **{key: round(value, 4) for key, value in vars(self).items() if key != "networks"},
            "passed": self.passed,
        }


def judge(predicted: Sequence[float], measured: Sequence[float]) -> Verdict:
    """Compare predictions, in milliseconds, with measurements."""
    guess, truth = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    errors = guess / truth - 1
    rmse = np.sqrt(np.mean((guess - truth) ** 2)) / truth.mean()
    return Verdict(
        len(truth),
        float(errors.mean()),
        float(rmse),
        float(errors[np.abs(errors).argmax()]),
        float(kendalltau(guess, truth).statistic),
    )
