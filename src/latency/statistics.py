"""Statistics of latency measurements, and how well a table predicts: pure functions.

Imports no framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import median_filter
from scipy.optimize import nnls
from scipy.stats import binom, kendalltau

CONFIDENCE = 0.95
NOISY = 0.1  # noise above which a quieter machine would give a clearly better measurement
NEIGHBOURS = 12  # samples on either side that tell the machine's speed at a sample

# What a good table reaches on networks to which it was not fitted.
RMSE_LIMIT = 0.05  # at most
TAU_LIMIT = 0.9  # at least


@dataclass(frozen=True)
class Summary:
    """What the samples of one model say.

    Attributes:
        median_ms: median, milliseconds.
        p90_ms: what nine of ten samples do not exceed.
        margin: half the width of the median's 95 % confidence interval, relative to the median.
        spread: interquartile range, relative to the median.
        samples: how many there are.
        outliers: samples further than three interquartile ranges from the quartiles (Tukey's "far
            out").
        largest_ms: the largest sample.
    """

    median_ms: float
    p90_ms: float
    margin: float
    spread: float
    samples: int
    outliers: int
    largest_ms: float

    def to_dict(self) -> dict[str, Any]:
        """For the provenance of a table; None for a margin that is not known."""
        values = {
            key: round(value, 5) if isinstance(value, float) else value
            for key, value in vars(self).items()
        }
        return values if np.isfinite(self.margin) else {**values, "margin": None}


def summarise(milliseconds: np.ndarray) -> Summary:
    """Summary of the samples of one model, (N,).

    The confidence interval comes from order statistics and assumes no distribution.
    """
    ordered = np.sort(milliseconds)
    count = len(ordered)
    low, median, high = np.quantile(ordered, (0.25, 0.5, 0.75))
    # P(x_(a) <= median <= x_(b + 1)) = P(a <= B <= b) for B binomial with probability 1/2, and
    # x_(1) the smallest.
    first, last = (int(rank) for rank in binom.interval(CONFIDENCE, count, 0.5))
    margin = np.inf  # few samples hold the median with less confidence
    if first > 0 and last < count:
        margin = (ordered[last] - ordered[first - 1]) / 2 / median
    reach = 3 * (high - low)
    outliers = int(np.sum((ordered < low - reach) | (ordered > high + reach)))
    return Summary(
        median_ms=float(median),
        p90_ms=float(np.quantile(ordered, 0.9)),
        margin=float(margin),
        spread=float((high - low) / median),
        samples=count,
        outliers=outliers,
        largest_ms=float(ordered[-1]),
    )


def machine_slowness(models: np.ndarray, milliseconds: np.ndarray) -> np.ndarray:
    """How slow the machine was at each sample, relative to its median.

    A shared machine changes its speed for tenths of a second at a time. Models are measured in
    random order, so the samples around one are of many models: each is divided by its model's
    median, and the running median of these ratios is the slowness.

    Args:
        models: index of each sample's model, in the order of measurement, (N,) of int.
        milliseconds: the samples, (N,).

    Returns:
        (N,), with a median of 1.
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
    """Summaries of interleaved measurements, corrected to the machine's median speed.

    Args:
        models: index of each sample's model, in the order of measurement, (N,) of int.
        milliseconds: the samples, (N,).

    Returns:
        A summary for each model, and the noise of the machine: the median over models of the
        relative interquartile range of the samples as they were taken.
    """
    steadied = milliseconds / machine_slowness(models, milliseconds)
    each = range(models.max() + 1)
    noise = np.median([summarise(milliseconds[models == model]).spread for model in each])
    return [summarise(steadied[models == model]) for model in each], float(noise)


@dataclass(frozen=True)
class Correction:
    """From the time of an isolated block to what the block adds to a network.

    ``slope * isolated + weight_ms * weights + offset_ms``

    Attributes:
        constant_ms: what every network costs besides its searched blocks.
        slope: what a millisecond of an isolated block costs within a network.
        weight_ms: what a million weights cost: an isolated block finds them in the nearest cache, a
            block within a network does not.
        offset_ms: usually below 0: an isolated block also pays for being a model of its own.
    """

    constant_ms: float
    slope: float
    weight_ms: float
    offset_ms: float

    def entry(self, isolated_ms: float, weights: float) -> float:
        """Milliseconds that a block of that many million weights adds to a network."""
        entry = self.slope * isolated_ms + self.weight_ms * weights + self.offset_ms
        return max(0.0, entry)  # that of the cheapest block may be -1e-17 by rounding

    def to_dict(self) -> dict[str, Any]:
        """For the provenance of a table, which holds the constant itself."""
        return {
            "entry": "slope * isolated + weight_ms * millions of weights + offset_ms",
            "slope": round(self.slope, 5),
            "weight_ms": round(self.weight_ms, 5),
            "offset_ms": round(self.offset_ms, 5),
        }


def fit_correction(
    isolated: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], whole: Sequence[float]
) -> Correction:
    """Least squares of relative errors over whole networks.

    No block that was measured, and no constant, becomes negative.

    Args:
        isolated: milliseconds of the isolated searched blocks of each network.
        weights: of the same blocks, millions.
        whole: milliseconds of each network.
    """
    measured = np.asarray(whole, np.float64)
    cheapest = min(min(blocks) for blocks in isolated if len(blocks))
    # whole = constant + slope * sum(isolated - cheapest) + weight_ms * sum(weights) + count * cost
    # of the cheapest; with these four unknowns "not negative" is what nnls solves.
    columns = np.array(
        [
            (1.0, sum(blocks) - len(blocks) * cheapest, sum(millions), len(blocks))
            for blocks, millions in zip(isolated, weights, strict=True)
        ]
    )
    (constant, slope, weight, floor), _ = nnls(columns / measured[:, None], np.ones(len(measured)))
    return Correction(
        constant_ms=float(constant),
        slope=float(slope),
        weight_ms=float(weight),
        offset_ms=float(floor - slope * cheapest),
    )


@dataclass(frozen=True)
class Verdict:
    """How predicted latencies compare with measured ones, at the machine's speed of the latter.

    Attributes:
        networks: how many were compared.
        machine_factor: by which predictions were multiplied, as the machine itself had become
            slower by it.
        mean_error: mean of predicted / measured - 1.
        rmse: root of the mean squared error, relative to the mean measured latency.
        worst: predicted / measured - 1 of the network where it is furthest from 0.
        kendall_tau: rank correlation; 0 where one side has equal values only.
    """

    networks: int
    machine_factor: float
    mean_error: float
    rmse: float
    worst: float
    kendall_tau: float

    @property
    def passed(self) -> bool:
        """Whether error and rank correlation are within ``RMSE_LIMIT`` and ``TAU_LIMIT``."""
        return self.rmse <= RMSE_LIMIT and self.kendall_tau >= TAU_LIMIT

    def to_dict(self) -> dict[str, Any]:
        """For the provenance of a table."""
        return {**vars(self), "passed": self.passed}


def judge(
    predicted: Sequence[float], measured: Sequence[float], machine_factor: float = 1.0
) -> Verdict:
    """Compare predictions with measurements of the same networks, both in milliseconds.

    Args:
        predicted: by a table.
        measured: of the same networks.
        machine_factor: how slow the machine is, relative to the table; it is no error of the table.

    Returns:
        The verdict, with four decimals: what is printed, stored and drawn is the same.
    """
    guess = machine_factor * np.asarray(predicted, np.float64)
    truth = np.asarray(measured, np.float64)
    errors = guess / truth - 1
    rmse = np.sqrt(np.mean((guess - truth) ** 2)) / truth.mean()
    tau = kendalltau(guess, truth).statistic
    return Verdict(
        networks=len(truth),
        machine_factor=round(machine_factor, 4),
        mean_error=round(float(errors.mean()), 4),
        rmse=round(float(rmse), 4),
        worst=round(float(errors[np.abs(errors).argmax()]), 4),
        kendall_tau=0.0 if np.isnan(tau) else round(float(tau), 4),
    )
