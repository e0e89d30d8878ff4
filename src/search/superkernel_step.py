"""A training step of the superkernel supernet, with the cost of the decided network in its loss."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.config import SearchConfig
from src.search.superkernel import Decisions, Supernet
from src.training.step import Update, count_correct


class SearchStep(nn.Cell):
    """A training step of the supernet with the cost in its loss.

    Without a target the loss is cross-entropy + weight * 1000 * ln(cost), as in the released code.
    With one, ln(cost) gives way to the Huber function of ln(cost / target): the same slope above
    the target, the opposite one below, and in proportion to the distance within ``NEAR`` of it. The
    weight grows as long as the cost stays further away.

    Args:
        target: cost at which to end.
        gain: growth of the weight's logarithm in a step.
        threshold_rate: learning rate of bounded thresholds, which take plain gradient steps with
            momentum; 0 where they follow the paper's formula, in the optimizer with the weights.
    """

    NEAR = 0.05

    def __init__(
        self,
        network: nn.Cell,
        loss_fn: nn.Cell,
        update: Update,
        config: SearchConfig,
        *,
        decisions: Decisions,
        target: float | None,
        gain: float,
        threshold_rate: float,
        device_num: int = 1,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss_fn = loss_fn
        self.update = update
        self.weights = update.weights
        self.target, self.gain = target, gain
        self.thresholds, self.scales = decisions.thresholds, decisions.scales
        self.threshold_rate, self.momentum = threshold_rate, config.momentum
        learned = update.weights
        self.reduce_thresholds = None
        if threshold_rate:
            self.velocity = self.thresholds.clone(init="zeros")
            self.velocity.name = "threshold_velocity"
            learned = ParameterTuple([*self.weights, self.thresholds])
            if device_num > 1:
                self.reduce_thresholds = nn.DistributedGradReducer(
                    [self.thresholds], True, device_num
                )
        self.gradient = ops.value_and_grad(self.forward, None, learned, has_aux=True)
        self.latency_weight = Parameter(
            Tensor(config.latency_weight, ms.float32), name="latency_weight", requires_grad=False
        )

    def forward(
        self, images: Tensor, labels: Tensor, dropout: Tensor, factors: Tensor, ramp: Tensor
    ) -> tuple[Tensor, ...]:
        """Scaled loss, loss, correct predictions, cross-entropy, cost, indicators and norms."""
        logits, cost, indicators, norms = self.network(images, dropout, factors)
        cross_entropy = self.loss_fn(logits, labels)
        loss = cross_entropy + ramp * self.latency_weight * 1000 * self.penalty(cost)
        correct = count_correct(logits, labels)
        return self.update.scale(loss), loss, correct, cross_entropy, cost, indicators, norms

    def penalty(self, cost: Tensor) -> Tensor:
        """What the weight weighs."""
        if not self.target:
            return ops.log(cost)
        distance = ops.log(cost / self.target) / self.NEAR
        bounded = ops.clamp(distance, -1.0, 1.0)
        return self.NEAR * (bounded * distance - 0.5 * bounded * bounded)

    def construct(
        self, images: Tensor, labels: Tensor, dropout: Tensor, factors: Tensor, ramp: Tensor
    ) -> tuple[Tensor, ...]:
        """Train on one batch.

        Args:
            images: (N, 3, H, W).
            labels: (N,) of int32.
            dropout: factors of the pooled features, (N, head channels).
            factors: dropout of the indicators, (L, D).
            ramp: how much of the cost's weight counts, (): 0 to 1.

        Returns:
            Loss, number of correct predictions, cross-entropy, cost, indicators (L, D), latency
            weight.
        """
        (scaled, loss, correct, cross_entropy, cost, indicators, norms), gradients = self.gradient(
            images, labels, dropout, factors, ramp
        )
        # Each depend keeps an assignment that no output needs, and places it behind what it reads.
        scale = scaled / loss
        loss = ops.depend(loss, self.update(gradients[: len(self.weights)]))
        weight = self.latency_weight * 1.0  # a copy: the value before it grows
        if self.target:
            far = (ops.abs(ops.log(cost / self.target)) > self.NEAR).astype("float32") * (
                ramp == 1
            ).astype("float32")
            grown = ops.depend(weight, loss) * (1 + self.gain * far)
            loss = ops.depend(loss, ops.assign(self.latency_weight, grown))
        if self.threshold_rate:
            loss = ops.depend(
                loss, self.move_thresholds(gradients[-1] / scale, norms / self.scales)
            )
        return loss, correct, cross_entropy, cost, indicators, weight

    def move_thresholds(self, gradient: Tensor, relative: Tensor) -> Tensor:
        """A gradient step of the thresholds, which stay within 1 of the norms.

        Both are in units of the norms at the start.

        RMSProp's steps, nearly independent of the gradient's size, would let all thresholds travel
        alike and cross their norms at once.
        """
        if self.reduce_thresholds is not None:
            gradient = self.reduce_thresholds((gradient,))[0]
        gradient = ops.select(ops.isfinite(gradient), gradient, ops.zeros_like(gradient))
        velocity = ops.assign(self.velocity, self.momentum * self.velocity + gradient)
        moved = self.thresholds - self.threshold_rate * velocity
        return ops.assign(
            self.thresholds, ops.maximum(ops.minimum(moved, relative + 1), relative - 1)
        )


class DecisionState(nn.Cell):
    """Indicators and norms, each (L, D), of the current weights and thresholds."""

    def __init__(self, network: Supernet) -> None:
        super().__init__(auto_prefix=False)
        # All of it: a cached graph finds its parameters among those of its own cell only.
        self.network = network

    def construct(self) -> tuple[Tensor, Tensor]:
        """Takes nothing: both follow from the parameters."""
        return self.network.decisions.indicators()
