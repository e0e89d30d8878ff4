"""The update of all weights by one operator, against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from src.kernels import available
from tests.kernels.reference import assert_near, normal, run

pytestmark = pytest.mark.skipif(not available(), reason="no CPU operators here")

SHAPES = [  # of a weight, and of what is used of it
    ((40, 24, 1, 1), (40, 1, 1, 1)),
    ((24, 40, 1, 1), (1, 40, 1, 1)),
    ((40, 1, 5, 5), (40, 1, 5, 5)),
    ((33,), (33,)),
    ((24,), (1,)),
    ((10, 64), (1,)),
    ((300, 700), (300, 1)),  # of several tasks
    ((300, 700), (1, 700)),
    ((300, 700), (300, 700)),
]
RATE, MOMENTUM = 0.1, 0.9


class Case:
    """Weights, their momenta and gradients, which part of each is used, and their decays."""

    def __init__(self) -> None:
        self.weights, self.moments, self.gradients = (
            [normal(10 * kind + i, *shape) for i, (shape, _) in enumerate(SHAPES)]
            for kind in range(3)
        )
        random = np.random.default_rng(5)
        self.used = [random.integers(0, 2, own).astype(np.float32) for _, own in SHAPES]
        self.used[4][:], self.used[5][:] = 0, 1
        self.decays = np.where([len(shape) > 1 for shape, _ in SHAPES], 0.01, 0).astype(np.float32)

    def inputs(self, clip: float) -> list[np.ndarray]:
        factors = np.array([RATE, MOMENTUM, clip], np.float32)
        arrays = [a.copy() for a in self.weights + self.moments]
        return [*arrays, *self.gradients, *self.used, self.decays, factors]


@pytest.mark.parametrize("clip", [0, 1, 1e6])
def test_update_equals_float64(clip):
    case = Case()
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in case.gradients))
    inputs = case.inputs(clip)
    (got,) = run("MomentumStep", inputs, [(1,)])
    assert_near(got, [norm], 1e-6)
    scale = min(1, clip / norm) if clip else 1
    count = len(SHAPES)
    for i in range(count):
        weight, moment = case.weights[i].astype(np.float64), case.moments[i].astype(np.float64)
        step = MOMENTUM * moment + scale * case.gradients[i] + case.decays[i] * weight
        counts = np.broadcast_to(case.used[i] > 0, weight.shape)
        for new, old, moved in (
            (inputs[i], case.weights[i], weight - RATE * step),
            (inputs[count + i], case.moments[i], step),
        ):
            assert np.array_equal(new[~counts], old[~counts])
            if counts.any():
                assert_near(new[counts], moved[counts])


def test_gradients_that_are_no_numbers_are_not_hidden():
    case = Case()
    case.gradients[0][0, 0] = np.nan
    inputs = case.inputs(clip=1)
    assert np.isnan(run("MomentumStep", inputs, [(1,)])[0])
    assert np.isnan(inputs[5]).all()


def test_what_does_not_fit_is_refused():
    count = len(SHAPES)
    for place, value in (
        (0, normal(0, 40, 23, 1, 1)),
        (count + 1, normal(0, 24, 41, 1, 1)),
        (2 * count, normal(0, 40, 23, 1, 1)),
        (2 * count, normal(0, 40, 24, 1, 1).astype(np.float64)),
        (3 * count, np.ones((1, 24, 1), np.float32)),
        (3 * count, np.ones((20, 1, 1, 1), np.float32)),
        (3 * count + 2, np.ones((40, 1, 25, 1), np.float32)),
        (3 * count + 2, np.ones((40, 1, 5, 1), np.float32)),
        (4 * count, np.zeros(count - 1, np.float32)),
        (4 * count + 1, np.zeros(2, np.float32)),
    ):
        inputs = Case().inputs(0)
        inputs[place] = value
        with pytest.raises(ValueError, match="returned"):
            run("MomentumStep", inputs, [(1,)])
