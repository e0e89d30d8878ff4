"""A training step of the superkernel supernet, with the cost of the decided network in its loss."""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.config import SearchConfig
from src.search.superkernel import Decisions, Supernet
from src.training.step import Update, count_correct


class SearchStep(nn.Cell):
    """A training step of the supernet with the cost in its loss.

    Without a target the loss is cross-entropy + weight * 1000 * ln(cost), as in the released code.
    With one, ln(cost) gives way to half of the Huber function of ln(cost / budget): nothing below
    the budget, the same slope above, and in proportion to the distance within ``NEAR`` of it. The
    budget falls from the cost of the largest network to the target. Below it nothing pulls back: a
    part that fell would be pushed on and off by turns.

    Thresholds take plain steps against their gradient, which is that of their indicators with the
    opposite sign. So a threshold is an account of all steps: it falls by what its part of the
    network takes off the cross-entropy, and rises by what the part costs.

    Args:
        largest: cost of the largest network, where the budget starts.
        target: cost at which to end, in the same unit.
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
        largest: float,
        target: float | None,
        device_num: int = 1,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss_fn = loss_fn
        self.update = update
        self.weights = update.weights
        self.target = target
        if target:
            self.start, self.fall = math.log(largest), math.log(target / largest)
        self.thresholds = decisions.thresholds
        self.threshold_rate = config.threshold_lr
        learned = ParameterTuple([*self.weights, self.thresholds])
        self.reduce_thresholds = None
        if device_num > 1:
            self.reduce_thresholds = nn.DistributedGradReducer([self.thresholds], True, device_num)
        self.gradient = ops.value_and_grad(self.forward, None, learned, has_aux=True)
        # Without a target a setting. With one the search sets it on its way, 0 until then, and a
        # resumed search needs what was set.
        self.latency_weight = (
            Parameter(Tensor(0.0, ms.float32), name="latency_weight", requires_grad=False)
            if target
            else Tensor(config.latency_weight, ms.float32)
        )

    def forward(
        self, images: Tensor, labels: Tensor, dropout: Tensor, draws: Tensor, ramp: Tensor
    ) -> tuple[Tensor, ...]:
        """Scaled loss, loss, correct predictions, cross-entropy, cost and indicators."""
        logits, cost, indicators, _ = self.network(images, dropout, draws)
        cross_entropy = self.loss_fn(logits, labels)
        loss = cross_entropy + self.latency_weight * 1000 * self.penalty(cost, ramp)
        correct = count_correct(logits, labels)
        return self.update.scale(loss), loss, correct, cross_entropy, cost, indicators

    def penalty(self, cost: Tensor, ramp: Tensor) -> Tensor:
        """What the weight weighs."""
        if not self.target:
            return ramp * ops.log(cost)
        distance = (ops.log(cost) - self.start - ramp * self.fall) / self.NEAR
        bounded = ops.clamp(distance, 0.0, 1.0)
        return self.NEAR * (bounded * distance - 0.5 * bounded * bounded)

    def construct(
        self, images: Tensor, labels: Tensor, dropout: Tensor, draws: Tensor, ramp: Tensor
    ) -> tuple[Tensor, ...]:
        """Train on one batch.

        Args:
            images: (N, 3, H, W).
            labels: (N,) of int32.
            dropout: factors of the pooled features, (N, head channels).
            draws: in place of indicators, (L, D), see ``Decisions``.
            ramp: how far the budget has fallen, or how much of the cost's weight counts, (): 0 to
                1.

        Returns:
            Loss, number of correct predictions, cross-entropy, cost, indicators (L, D), latency
            weight.
        """
        (scaled, loss, correct, cross_entropy, cost, indicators), gradients = self.gradient(
            images, labels, dropout, draws, ramp
        )
        # Each depend keeps an assignment that no output needs, and places it behind what it reads.
        scale = scaled / loss
        loss = ops.depend(loss, self.update(gradients[: len(self.weights)]))
        loss = ops.depend(loss, self.move_thresholds(gradients[-1] / scale))
        return loss, correct, cross_entropy, cost, indicators, self.latency_weight * 1.0

    def move_thresholds(self, gradient: Tensor) -> Tensor:
        """A gradient step of the thresholds."""
        if self.reduce_thresholds is not None:
            gradient = self.reduce_thresholds((gradient,))[0]
        gradient = ops.select(ops.isfinite(gradient), gradient, ops.zeros_like(gradient))
        return ops.assign(self.thresholds, self.thresholds - self.threshold_rate * gradient)


class DecisionState(nn.Cell):
    """Indicators and norms, each (L, D), of the current weights and thresholds."""

    def __init__(self, network: Supernet) -> None:
        super().__init__(auto_prefix=False)
        # All of it: a cached graph finds its parameters among those of its own cell only.
        self.network = network

    def construct(self) -> tuple[Tensor, Tensor]:
        """Takes nothing: both follow from the parameters."""
        return self.network.decisions.indicators()
