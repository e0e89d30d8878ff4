"""The schedules' formulas: learning rates (n,) for ``steps``, an array (n,) of numbers from 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def constant_lr(steps: np.ndarray, base_lr: float) -> np.ndarray:
    """``base_lr`` throughout."""
    return np.full(len(steps), base_lr)


def cosine_lr(
    steps: np.ndarray, base_lr: float, total_steps: int, min_lr: float = 0.0
) -> np.ndarray:
    """Half a cosine from ``base_lr`` to ``min_lr``.

    Loshchilov and Hutter, arXiv 1608.03983, equation 5, without restarts.
    """
    return min_lr + 0.5 * (base_lr - min_lr) * (1 + np.cos(np.pi * steps / total_steps))


def step_lr(
    steps: np.ndarray, base_lr: float, milestones: Sequence[float], decay_rate: float
) -> np.ndarray:
    """``base_lr`` times ``decay_rate`` for each milestone (in steps) that is reached."""
    return base_lr * decay_rate ** np.searchsorted(np.sort(milestones), steps, side="right")


def exponential_lr(
    steps: np.ndarray, base_lr: float, decay_steps: float, decay_rate: float
) -> np.ndarray:
    """``base_lr`` times ``decay_rate`` after every ``decay_steps``, in stairs.

    As in the released code of arXiv 1904.02877.
    """
    return base_lr * decay_rate ** np.floor(steps / decay_steps)


def one_cycle_lr(
    steps: np.ndarray,
    max_lr: float,
    total_steps: int,
) -> np.ndarray:
    """Cosine rise to ``max_lr`` over the first 0.3 of the run, cosine fall after it.

    Smith and Topin, arXiv 1708.07120, in the form with two phases and cosines that PyTorch's
    ``OneCycleLR`` has, with its defaults: from ``max_lr / 25`` up, then down to a ten-thousandth of
    that.
    """
    start, end = max_lr / 25, max_lr / 25 / 1e4
    # Never 0, as runs may be as short as one step.
    last, peak = max(total_steps - 1, 1), max(0.3 * total_steps - 1, 1e-9)
    up = max_lr + (start - max_lr) * (1 + np.cos(np.pi * np.minimum(steps / peak, 1))) / 2
    down = end + (max_lr - end) * (1 + np.cos(np.pi * (steps - peak) / max(last - peak, 1e-9))) / 2
    return np.where(steps <= peak, up, down)


def with_warmup(rates: np.ndarray, base_lr: float, warmup_steps: int) -> np.ndarray:
    """Replace the first ``warmup_steps`` by a linear rise.

    The rise would reach ``base_lr`` one step after the last of them.
    """
    rates = rates.copy()
    rise = base_lr * (np.arange(1, warmup_steps + 1) / (warmup_steps + 1))
    rates[:warmup_steps] = rise[: len(rates)]  # a run may be shorter than its warm-up
    return rates
