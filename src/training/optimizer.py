"""Optimizers: which parameters decay, and RMSProp as the paper's released code computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.config import OptimizerConfig


def decay_groups(parameters: Sequence[Parameter], weight_decay: float) -> list[dict]:
    """Optimizer groups: weight decay on weights of convolutions and classifier only."""
    weights = [p for p in parameters if p.name.endswith(".weight")]
    others = [p for p in parameters if not p.name.endswith(".weight")]
    # MindSpore takes float weight decay only, and order_params keeps the network's order in the
    # state.
    return [
        {"params": weights, "weight_decay": float(weight_decay)},
        {"params": others, "weight_decay": 0.0},
        {"order_params": parameters},
    ]


_rmsprop = ops.MultitypeFuncGraph("rmsprop")


@_rmsprop.register("Number", "Number", "Number", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _rmsprop_tensor(decay, momentum, epsilon, rate, parameter, mean_square, moment, gradient):
    square = ops.assign(mean_square, decay * mean_square + (1 - decay) * gradient * gradient)
    step = ops.assign(moment, momentum * moment + rate * gradient / ops.sqrt(square + epsilon))
    return ops.assign_sub(parameter, step)


class RMSProp(nn.Optimizer):
    """RMSProp with momentum, as the paper's released code has it from TensorFlow.

    Epsilon is added under the root, and the mean square starts from 1.

    MindSpore's own takes the processor's approximate root on CPU, right to 2e-4.
    """

    def __init__(
        self, params, rates: Tensor, decay: float, momentum: float, epsilon: float
    ) -> None:
        super().__init__(rates, params)
        self.decay, self.momentum, self.epsilon = decay, momentum, epsilon
        self.mean_square = self.parameters.clone(prefix="mean_square", init="ones")
        self.moment = self.parameters.clone(prefix="moment", init="zeros")

    def construct(self, gradients: tuple) -> Tensor:
        """Update all parameters."""
        gradients = self.decay_weight(gradients)
        rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        update = ops.partial(_rmsprop, self.decay, self.momentum, self.epsilon, rate)
        return self.map_(update, self.parameters, self.mean_square, self.moment, gradients)


def create_optimizer(
    network: nn.Cell,
    config: OptimizerConfig,
    rates: np.ndarray,
    without: Sequence[Parameter] = (),
) -> nn.Optimizer:
    """The configured optimizer.

    Args:
        rates: learning rate of each optimizer step, (total steps,) of float32.
        without: parameters that are not its to train.
    """
    left_out = {parameter.name for parameter in without}
    groups = decay_groups(
        [p for p in network.trainable_params() if p.name not in left_out], config.weight_decay
    )
    if config.optimizer == "rmsprop":
        return RMSProp(
            groups, Tensor(rates), config.rmsprop_decay, config.momentum, config.rmsprop_epsilon
        )
    return nn.Momentum(groups, Tensor(rates), config.momentum)
