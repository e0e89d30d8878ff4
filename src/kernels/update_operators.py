"""The update of a network's weights as one MindSpore function."""

from __future__ import annotations

import functools

from mindspore import ops

from src.kernels.operators import custom_operator


@functools.cache
def momentum_step() -> ops.Custom:
    """SGD with momentum and weight decay, from gradients whose norm is clipped before.

    Takes all weights, their momenta, their gradients, and of each weight which part counts, of 0
    and 1, in a shape that is broadcast along its first dimension, the others, or both; decay of
    each weight, (weights,); learning rate, momentum and the most that the norm of all gradients may
    be, (3,), where 0 clips nothing. Changes weights and momenta; of what does not count they keep
    every bit. Returns the norm, (1,), which is there when that is done.
    """
    return custom_operator("MomentumStep", lambda *shapes: (1,), 1, changes_inputs=True)
