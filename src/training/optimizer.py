"""Optimizers: which parameters decay, and RMSProp as the paper's released code computes it.

Each maps a single function over the parameters: the compiler makes a graph of every function for
every parameter, and those of MindSpore map three, for decay, centring and step. On CPU SGD with
momentum is one operator for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.config import OptimizerConfig
from src.kernels import momentum_step


def weight_decays(parameters: Sequence[Parameter], weight_decay: float) -> tuple[float, ...]:
    """Decay of each parameter: ``weight_decay`` of convolutions and classifier, 0 of all others."""
    return tuple(
        weight_decay if parameter.name.endswith(".weight") else 0.0 for parameter in parameters
    )


_momentum = ops.MultitypeFuncGraph("momentum")
_rmsprop = ops.MultitypeFuncGraph("rmsprop")
# The same for parameters of which a part is used, as a tensor of 0 and 1 says that is broadcast to
# them. What is not used keeps every bit, and so does its state: no decay, no momentum.
_used_momentum = ops.MultitypeFuncGraph("used_momentum")
_used_rmsprop = ops.MultitypeFuncGraph("used_rmsprop")


@_momentum.register("Function", "Tensor", "Tensor", "Number", "Tensor", "Tensor", "Tensor")
def _momentum_tensor(apply, momentum, rate, weight_decay, parameter, moment, gradient):
    if weight_decay:
        gradient = gradient + weight_decay * parameter
    return apply(parameter, moment, rate, gradient, momentum)


@_rmsprop.register(*["Number"] * 3, "Tensor", "Number", *["Tensor"] * 4)
def _rmsprop_tensor(
    decay, momentum, epsilon, rate, weight_decay, parameter, mean_square, moment, gradient
):
    if weight_decay:
        gradient = gradient + weight_decay * parameter
    square = ops.assign(mean_square, decay * mean_square + (1 - decay) * gradient * gradient)
    step = ops.assign(moment, momentum * moment + rate * gradient / ops.sqrt(square + epsilon))
    return ops.assign_sub(parameter, step)


# Momentum's factor is a parameter: as a "Number" nothing at all would be updated, in silence.
@_used_momentum.register("Tensor", "Tensor", "Number", *["Tensor"] * 4)
def _used_momentum_tensor(momentum, rate, weight_decay, parameter, moment, gradient, used):
    if weight_decay:
        gradient = gradient + weight_decay * parameter
    moved = used * (momentum * moment + gradient) + (1 - used) * moment
    return ops.assign_sub(parameter, rate * used * ops.assign(moment, moved))


@_used_rmsprop.register(*["Number"] * 3, "Tensor", "Number", *["Tensor"] * 5)
def _used_rmsprop_tensor(
    decay, momentum, epsilon, rate, weight_decay, parameter, mean_square, moment, gradient, used
):
    if weight_decay:
        gradient = gradient + weight_decay * parameter
    square = decay * mean_square + (1 - decay) * gradient * gradient
    square = ops.assign(mean_square, used * square + (1 - used) * mean_square)
    step = momentum * moment + rate * gradient / ops.sqrt(square + epsilon)
    step = ops.assign(moment, used * step + (1 - used) * moment)
    return ops.assign_sub(parameter, used * step)


class Momentum(nn.Momentum):
    """SGD with momentum.

    Args:
        clip_norm: most that the norm of all gradients may be; 0 for no limit. Only with the
            operator, see ``clips``; ``Update`` otherwise clips.
        kernels: whether to update by one operator on CPU.

    Attributes:
        clips: whether it clips gradients itself.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        rates: Tensor,
        momentum: float,
        weight_decay: float,
        *,
        clip_norm: float = 0.0,
        kernels: bool = False,
    ) -> None:
        super().__init__(parameters, rates, momentum)
        self.weight_decays = weight_decays(parameters, weight_decay)
        self.clips = kernels
        if kernels:
            self.step = momentum_step()
            self.decays = Tensor(np.array(self.weight_decays, np.float32))
            self.constants = Tensor(np.array([momentum, clip_norm], np.float32))
            self.everything = (Tensor(np.ones(1, np.float32)),) * len(parameters)

    def construct(self, gradients: tuple, used: tuple | None = None) -> tuple | Tensor:
        """Update all parameters; what it returns is there when that is done.

        Args:
            used: which part of each counts, of 0 and 1; all of them where omitted.
        """
        rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        if self.clips:
            counts = self.everything if used is None else used
            factors = ops.concat((rate.reshape((1,)), self.constants))
            operands = self.parameters + self.moments + gradients + counts
            return self.step(*operands, self.decays, factors)
        operands = self.weight_decays, self.parameters, self.moments, gradients
        if used is None:
            return self.map_(ops.partial(_momentum, self.opt, self.momentum, rate), *operands)
        return self.map_(ops.partial(_used_momentum, self.momentum, rate), *operands, used)


class RMSProp(nn.Optimizer):
    """RMSProp with momentum, as the paper's released code has it from TensorFlow.

    Epsilon is added under the root, and the mean square starts from 1.

    MindSpore's own takes the processor's approximate root on CPU, right to 2e-4.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        rates: Tensor,
        decay: float,
        momentum: float,
        epsilon: float,
        weight_decay: float,
    ) -> None:
        super().__init__(rates, parameters)
        self.decay, self.momentum, self.epsilon = decay, momentum, epsilon
        self.weight_decays = weight_decays(parameters, weight_decay)
        self.mean_square = self.parameters.clone(prefix="mean_square", init="ones")
        self.moment = self.parameters.clone(prefix="moment", init="zeros")

    def construct(self, gradients: tuple, used: tuple | None = None) -> tuple:
        """As ``Momentum``'s."""
        rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        operands = self.weight_decays, self.parameters, self.mean_square, self.moment, gradients
        # Not as one tuple: the compiler fails at a second one that is taken apart beside ``used``.
        decay, momentum, epsilon = self.decay, self.momentum, self.epsilon
        if used is None:
            return self.map_(ops.partial(_rmsprop, decay, momentum, epsilon, rate), *operands)
        return self.map_(
            ops.partial(_used_rmsprop, decay, momentum, epsilon, rate), *operands, used
        )


def create_optimizer(
    network: nn.Cell,
    config: OptimizerConfig,
    rates: np.ndarray,
    without: Sequence[Parameter] = (),
    *,
    kernels: bool = False,
) -> nn.Optimizer:
    """The configured optimizer.

    Args:
        rates: learning rate of each optimizer step, (total steps,) of float32.
        without: parameters that are not its to train.
        kernels: whether to use the CPU operators.
    """
    left_out = {parameter.name for parameter in without}
    parameters = [p for p in network.trainable_params() if p.name not in left_out]
    if config.optimizer == "rmsprop":
        return RMSProp(
            parameters,
            Tensor(rates),
            config.rmsprop_decay,
            config.momentum,
            config.rmsprop_epsilon,
            config.weight_decay,
        )
    return Momentum(
        parameters,
        Tensor(rates),
        config.momentum,
        config.weight_decay,
        clip_norm=config.clip_norm,
        kernels=kernels,
    )
