"""One training step as a single compiled graph.

Its parts are cells: ``TrainStep`` computes loss and gradients of a network, and ``Update`` makes
gradients a change of the weights. Steps of other tasks (``src.search``) have a forward pass of
their own and the same ``Update``.
"""

from __future__ import annotations

from typing import Literal

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.amp import all_finite

from src.config import RunConfig


def is_averaged(name: str) -> bool:
    """Whether the weight average holds a parameter: all but the decisions of a supernet."""
    return not name.startswith("decisions.")


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of correct predictions, () of float32, from (N, classes) and (N,) of int32."""
    return (logits.argmax(1).astype("int32") == labels).astype("float32").sum()


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

    def __init__(self, scale: Literal["dynamic"] | float) -> None:
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


class Update(nn.Cell):
    """From gradients to new weights: reduction over ranks, accumulation, clipping, optimizer.

    With ``accumulate_steps`` n, gradients of n batches are averaged. Where several subnets learn
    from each batch, their gradients are summed. Only the last of these calls updates. An update
    whose gradients overflow is left out, as is its effect on optimizer, average and step count. All
    state that a resumed run needs is in its parameters.

    Args:
        network: whose parameters are averaged if there is an ``ema_decay``.
        config: of it ``accumulate_steps``, ``clip_norm``, ``ema_decay`` and ``loss_scale`` count.
        subnets: calls per batch.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        config: RunConfig,
        *,
        mixed_precision: bool,
        device_num: int = 1,
        subnets: int = 1,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.weights = optimizer.parameters
        self.map = ops.HyperMap()
        self.clip_norm = 0.0 if getattr(optimizer, "clips", False) else config.clip_norm
        self.loss_scale = LossScale(config.loss_scale) if mixed_precision else None
        self.reduce = (
            nn.DistributedGradReducer(self.weights, True, device_num) if device_num > 1 else None
        )
        self.accumulate_steps = config.accumulate_steps
        self.calls = config.accumulate_steps * subnets
        if self.calls > 1:
            self.sums = self.weights.clone(prefix="gradient_sum", init="zeros")
            self.batches = Parameter(
                Tensor(0, ms.int32), name="gradient_batches", requires_grad=False
            )
        self.ema_decay = config.ema_decay
        if self.ema_decay:
            # Moving statistics are averaged with the weights, so that the average is a network of
            # its own.
            self.source = ParameterTuple(
                [p for p in network.get_parameters() if is_averaged(p.name)]
            )
            self.average = self.source.clone(prefix="ema")

    def scale(self, loss: Tensor) -> Tensor:
        """The loss whose gradients ``construct`` takes."""
        return loss if self.loss_scale is None else loss * self.loss_scale.scale

    def construct(self, gradients: tuple, *more: Tensor) -> Tensor:
        """Update, or accumulate.

        Args:
            gradients: of the scaled loss, in the order of ``weights``.
            more: what the optimizer takes besides them.

        Returns:
            A value that depends on all that was changed: ``ops.depend`` on it makes the compiler,
            which drops what no output needs, keep the changes.
        """
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        if self.calls == 1:
            return self.update(gradients, *more)
        return self.accumulate(gradients, *more)

    def accumulate(self, gradients: tuple, *more: Tensor) -> Tensor:
        """Add to the sums; on the last of the calls update with them and start anew."""
        added = self.map(ops.partial(_add_to, self.accumulate_steps), self.sums, gradients)
        count = ops.depend(self.batches + 1, added)
        ops.assign(self.batches, count % self.calls)
        if count == self.calls:
            # The order add, read, update, clear is told by depend: the compiler sees no order
            # between an assignment and a later reading of the same parameter.
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
            finite = ops.depend(finite, self.take_step(gradients, *more))
        elif finite:
            finite = ops.depend(finite, self.take_step(gradients, *more))
        return finite

    def take_step(self, gradients: tuple, *more: Tensor) -> Tensor:
        """One step of the optimizer and, after it, of the weight average."""
        done = self.optimizer(gradients, *more)
        if self.ema_decay:
            # Early on the average follows faster, min(decay, (1 + t) / (10 + t)), as TensorFlow's.
            step = ops.depend(self.optimizer.global_step, done).astype("float32").reshape(())
            decay = ops.minimum(Tensor(self.ema_decay, ms.float32), (1.0 + step) / (10.0 + step))
            done = ops.depend(
                done, self.map(ops.partial(_average, decay), self.average, self.source)
            )
        return done


class TrainStep(nn.Cell):
    """A training step of a network: forward, backward, update.

    Args:
        network: from images to logits.
        loss_fn: from logits and labels to a scalar.
        drops: whether the network takes dropout factors.
    """

    def __init__(
        self, network: nn.Cell, loss_fn: nn.Cell, update: Update, *, drops: bool = False
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss_fn = loss_fn
        self.update = update
        self.drops = drops
        self.gradient = ops.value_and_grad(self.forward, None, update.weights, has_aux=True)

    def forward(self, images: Tensor, labels: Tensor, dropout: Tensor) -> tuple[Tensor, ...]:
        """Scaled loss, loss and count of correct predictions of a batch."""
        logits = self.network(images, dropout) if self.drops else self.network(images)
        loss = self.loss_fn(logits, labels)
        return self.update.scale(loss), loss, count_correct(logits, labels)

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
        return ops.depend(loss, self.update(gradients)), correct
