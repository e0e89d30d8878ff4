"""One training step as a single compiled graph."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.amp import all_finite

from src.config import RunConfig


def averaged(name: str) -> bool:
    """Whether the weight average holds a parameter: all but the decisions of a supernet."""
    return not name.startswith("decisions.")


def decay_groups(parameters: Sequence[Parameter], weight_decay: float) -> list[dict]:
    """Optimizer groups: weight decay on weights of convolutions and classifier, none on all else."""
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
    """RMSProp with momentum as in the released code (TensorFlow): epsilon under the root, mean square from 1.

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
    network: nn.Cell, config: RunConfig, rates, without: Sequence[Parameter] = ()
) -> nn.Optimizer:
    """The configured optimizer.

    Args:
        rates: learning rate of each optimizer step, (total steps,) of float32.
        without: parameters that something else trains.
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


# The compiler unrolls Python loops over parameters into deep call stacks; it maps these functions
# instead.
_add_to = ops.MultitypeFuncGraph("add_to")
_after = ops.MultitypeFuncGraph("after")
_clear_after = ops.MultitypeFuncGraph("clear_after")
_unscale = ops.MultitypeFuncGraph("unscale")
_average = ops.MultitypeFuncGraph("average")


@_add_to.register("Number", "Tensor", "Tensor")
def _add_to_tensor(divisor, total, gradient):
    return ops.assign_add(total, gradient / divisor)


@_after.register("Tuple", "Tensor")
def _after_tensor(condition, value):
    # Times one: a value of its own, which later changes of the parameter do not touch.
    return ops.depend(value, condition) * 1.0


@_clear_after.register("Tensor", "Tensor")
def _clear_tensor_after(condition, value):
    return ops.assign(value, ops.depend(ops.zeros_like(value), condition))


@_unscale.register("Tensor", "Tensor")
def _unscale_tensor(scale, gradient):
    return gradient.astype("float32") / scale


@_average.register("Tensor", "Tensor", "Tensor")
def _average_tensor(decay, average, value):
    return ops.assign(average, average * decay + value * (1.0 - decay))


class LossScale(nn.Cell):
    """Loss scale of mixed precision, fixed or dynamic.

    Dynamic: halved when a gradient overflows, doubled after ``WINDOW`` steps without (Micikevicius
    et al., arXiv 1710.03740). It tests gradients for being finite, which runs on every device;
    MindSpore's own manager asks the device for a status that CPU does not have.
    """

    WINDOW = 2000
    INITIAL = 65536.0

    def __init__(self, scale: str | float) -> None:
        super().__init__(auto_prefix=False)
        self.dynamic = scale == "dynamic"
        value = self.INITIAL if self.dynamic else float(scale)
        self.scale = Parameter(Tensor(value, ms.float32), name="loss_scale", requires_grad=False)
        self.good_steps = Parameter(
            Tensor(0, ms.int32), name="loss_scale_good_steps", requires_grad=False
        )

    def construct(self, finite: Tensor) -> Tensor:
        """Adjust the scale after a step whose gradients were ``finite`` or not."""
        if self.dynamic:
            good = ops.select(finite, self.good_steps + 1, ops.zeros_like(self.good_steps))
            grown = ops.select(good >= self.WINDOW, self.scale * 2, self.scale)
            ops.assign(
                self.scale,
                ops.select(finite, grown, ops.maximum(self.scale / 2, Tensor(1.0, ms.float32))),
            )
            ops.assign(self.good_steps, ops.select(good >= self.WINDOW, ops.zeros_like(good), good))
        return finite


class TrainStep(nn.Cell):
    """Forward, backward, gradient treatment and update; all state that a resume needs is its parameters.

    With ``accumulate_steps`` n, gradients of n batches are averaged and every n-th call updates. An
    update whose gradients overflow is left out, as is its effect on optimizer, average and step
    count.

    Args:
        network: from images to logits.
        loss_fn: from logits and labels to a scalar.
    """

    def __init__(
        self,
        network: nn.Cell,
        loss_fn: nn.Cell,
        optimizer: nn.Optimizer,
        config: RunConfig,
        *,
        mixed_precision: bool,
        device_num: int = 1,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.loss_fn, self.optimizer = network, loss_fn, optimizer
        self.weights = optimizer.parameters
        self.map = ops.HyperMap()
        self.clip_norm, self.drops = config.clip_norm, config.drop_rate > 0
        self.loss_scale = LossScale(config.loss_scale) if mixed_precision else None
        self.reduce = (
            nn.DistributedGradReducer(self.weights, True, device_num) if device_num > 1 else None
        )
        self.accumulate_steps = config.accumulate_steps
        if self.accumulate_steps > 1:
            self.sums = self.weights.clone(prefix="gradient_sum", init="zeros")
            self.batches = Parameter(
                Tensor(0, ms.int32), name="gradient_batches", requires_grad=False
            )
        self.ema_decay = config.ema_decay
        if self.ema_decay:
            # Moving statistics are averaged with the weights, so that the average is a network of
            # its own.
            self.source = ParameterTuple([p for p in network.get_parameters() if averaged(p.name)])
            self.average = self.source.clone(prefix="ema")
        self.gradient = ops.value_and_grad(self.forward, None, self.weights, has_aux=True)

    def forward(
        self, images: Tensor, labels: Tensor, dropout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled loss, loss and count of correct predictions of a batch."""
        logits = self.network(images, dropout) if self.drops else self.network(images)
        loss = self.loss_fn(logits, labels)
        scaled, correct = self.score(logits, labels, loss)
        return scaled, loss, correct

    def score(self, logits: Tensor, labels: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled loss and count of correct predictions."""
        correct = (logits.argmax(1).astype("int32") == labels).astype("float32").sum()
        return (loss if self.loss_scale is None else loss * self.loss_scale.scale), correct

    def construct(self, images: Tensor, labels: Tensor, dropout: Tensor) -> tuple[Tensor, Tensor]:
        """Train on one batch.

        Args:
            images: (N, 3, H, W).
            labels: (N,) of int32.
            dropout: factors of the pooled features, (N, head channels); without dropout anything,
                (1,). Drawn on the host from the step number, so that a resumed run draws the same.

        Returns:
            Loss and number of correct predictions on this rank's batch.
        """
        (_, loss, correct), gradients = self.gradient(images, labels, dropout)
        return ops.depend(loss, self.learn(gradients)), correct

    def learn(self, gradients: tuple, *more: Tensor) -> Tensor:
        """Reduce gradients over ranks, and update or accumulate; ``more`` is what the optimizer takes besides them."""
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        if self.accumulate_steps == 1:
            return self.update(gradients, *more)
        return self.accumulate(gradients, *more)

    def accumulate(self, gradients: tuple, *more: Tensor) -> Tensor:
        """Add to the sums; on every n-th call update with their mean and start anew."""
        added = self.map(ops.partial(_add_to, self.accumulate_steps), self.sums, gradients)
        count = ops.depend(self.batches + 1, added)
        ops.assign(self.batches, count % self.accumulate_steps)
        if count == self.accumulate_steps:
            means = self.map(ops.partial(_after, added), self.sums)
            updated = self.update(means, *more)
            count = ops.depend(count, self.map(ops.partial(_clear_after, updated), self.sums))
        return count

    def update(self, gradients: tuple, *more: Tensor) -> Tensor:
        """Unscale, check, clip, and let optimizer and average take a step."""
        finite = Tensor(True)
        if self.loss_scale is not None:
            finite = all_finite(gradients)
            gradients = self.map(ops.partial(_unscale, self.loss_scale.scale), gradients)
            finite = self.loss_scale(ops.depend(finite, gradients))
        if self.clip_norm:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        if self.loss_scale is None:
            finite = ops.depend(finite, self.apply(gradients, *more))
        elif finite:
            finite = ops.depend(finite, self.apply(gradients, *more))
        return finite

    def apply(self, gradients: tuple, *more: Tensor) -> Tensor:
        """One step of the optimizer and, after it, of the weight average."""
        done = self.optimizer(gradients, *more)
        if self.ema_decay:
            # Early on the average follows faster, min(decay, (1 + t) / (10 + t)), as TensorFlow's
            # does.
            step = ops.depend(self.optimizer.global_step, done).astype("float32").reshape(())
            decay = ops.minimum(Tensor(self.ema_decay, ms.float32), (1.0 + step) / (10.0 + step))
            done = ops.depend(
                done, self.map(ops.partial(_average, decay), self.average, self.source)
            )
        return done
