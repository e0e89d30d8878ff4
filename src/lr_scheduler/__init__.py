"""Learning-rate schedules: pure functions of the step, one value per optimizer step.

Each schedule decays from a base rate over all steps of a run; ``with_warmup`` replaces its first
steps by a linear rise. Imports no framework.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from src.lr_scheduler.schedules import (
    constant_lr,
    cosine_lr,
    exponential_lr,
    one_cycle_lr,
    step_lr,
    with_warmup,
)

__all__ = [
    "ScheduleName",
    "constant_lr",
    "cosine_lr",
    "documented_lr",
    "exponential_lr",
    "learning_rates",
    "one_cycle_lr",
    "step_lr",
    "with_warmup",
]

# Base rates of the model zoo's recipe, by number of devices with 128 images each.
ONE_DEVICE_LR, EIGHT_DEVICES_LR = 0.26, 1.5

ScheduleName = Literal["cosine", "step", "exponential", "one_cycle", "constant"]


def documented_lr(device_num: int) -> float:
    """Base rate for a number of devices: on the line through the model zoo's two rates."""
    return ONE_DEVICE_LR + (device_num - 1) * (EIGHT_DEVICES_LR - ONE_DEVICE_LR) / 7


def learning_rates(
    schedule: ScheduleName,
    *,
    base_lr: float,
    steps_per_epoch: int,
    epoch_size: int,
    warmup_epochs: float = 0.0,
    min_lr: float = 0.0,
    decay_rate: float = 0.97,
    decay_epochs: float = 2.4,
    milestones: tuple[float, ...] = (),
) -> np.ndarray:
    """Learning rates of a whole run.

    Args:
        schedule: its name.
        base_lr: the rate from which it decays, at most reached by warm-up and one-cycle.
        steps_per_epoch: optimizer steps per epoch.
        epoch_size: number of epochs.
        warmup_epochs: epochs of linear rise; one-cycle has a rise of its own in their place.
        min_lr: last rate of the cosine.
        decay_rate: factor at each milestone (step) or every ``decay_epochs`` epochs (exponential).
        decay_epochs: epochs between the decays of the exponential schedule.
        milestones: epochs at which the step schedule decays.

    Returns:
        Array (steps_per_epoch * epoch_size,) of float32.
    """
    # Computed in float64 and rounded once, at the end.
    steps = np.arange(steps_per_epoch * epoch_size, dtype=np.float64)
    total = max(len(steps), 1)
    if schedule == "cosine":
        rates = cosine_lr(steps, base_lr, total, min_lr)
    elif schedule == "step":
        rates = step_lr(
            steps, base_lr, [epoch * steps_per_epoch for epoch in milestones], decay_rate
        )
    elif schedule == "exponential":
        rates = exponential_lr(steps, base_lr, decay_epochs * steps_per_epoch, decay_rate)
    elif schedule == "one_cycle":  # it has a warm-up of its own
        return one_cycle_lr(steps, base_lr, total).astype(np.float32)
    else:
        rates = constant_lr(steps, base_lr)
    return with_warmup(rates, base_lr, round(warmup_epochs * steps_per_epoch)).astype(np.float32)
