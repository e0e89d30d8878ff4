"""A training step of an elastic supernet: a batch and one of its networks."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.arch.architecture import Architecture
from src.training.step import Update, count_correct


class UsedParts(nn.Cell):
    """What part of each parameter a network uses.

    Args:
        arch: the largest network, all of whose blocks are MBConv blocks.
        parameters: its trained parameters, by whose names the parts are found.
    """

    def __init__(self, arch: Architecture, parameters: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.numbers, self.sides = [], []
        for block in arch.blocks:
            side = block.kernel_size
            distance = 2 * np.abs(np.arange(side) - side // 2) + 1
            sides = np.maximum.outer(distance, distance)[None, None]
            self.numbers.append(Tensor(np.arange(block.mid_channels, dtype=np.float32)))
            self.sides.append(Tensor(sides.astype(np.float32)))
        self.places = tuple(_place(parameter.name) for parameter in parameters)
        self.always = Tensor(np.ones(1, np.float32))

    def construct(self, decisions: Tensor) -> tuple[Tensor, ...]:
        """Of 0 and 1, in shapes that are broadcast to the parameters.

        Args:
            decisions: (blocks, 3), see ``MBConv``.
        """
        used: tuple[Tensor, ...] = ()
        for block, part in self.places:
            if part == "always":
                used += (self.always,)
                continue
            side, channels, presence = decisions[block, 0], decisions[block, 1], decisions[block, 2]
            inner = (self.numbers[block] < channels).astype(ms.float32) * presence
            if part == "outer":
                used += (presence.reshape((1,)),)
            elif part == "inner":
                used += (inner,)
            elif part == "first":
                used += (inner.reshape((-1, 1, 1, 1)),)
            elif part == "last":
                used += (inner.reshape((1, -1, 1, 1)),)
            else:
                taps = (self.sides[block] <= side).astype(ms.float32)
                used += (inner.reshape((-1, 1, 1, 1)) * taps,)
        return used


def _place(name: str) -> tuple[int, str]:
    """Number of a parameter's block, and by which of its sizes the parameter is divided."""
    words = name.split(".")
    if words[0] != "blocks" or words[2] == "se":  # which fixed blocks alone have
        return 0, "always"
    block, layer, is_weight = int(words[1]), words[2], words[-1] == "weight"
    if layer == "project":
        return block, "last" if is_weight else "outer"
    if not is_weight:
        return block, "inner"
    return block, "taps" if layer == "depthwise" else "first"


class ElasticStep(nn.Cell):
    """A training step of one network of a supernet.

    Compiled once and called for each network that learns from a batch; ``Update`` adds up their
    gradients and changes the weights at the last of them.

    Args:
        network: the supernet, from images, dropout and decisions to logits.
        loss_fn: from logits and labels to a scalar.
        used: of networks that train alone, so that what others use does not move; None where each
            update has the gradients of the largest.
    """

    def __init__(
        self, network: nn.Cell, loss_fn: nn.Cell, update: Update, used: UsedParts | None
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss_fn = loss_fn
        self.update = update
        self.used = used
        self.gradient = ops.value_and_grad(self.forward, None, update.weights, has_aux=True)

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        dropout: Tensor,
        decisions: Tensor,
        teacher: Tensor,
        learns: Tensor,
    ) -> tuple[Tensor, ...]:
        """Scaled loss, loss, count of correct predictions and logits."""
        logits = self.network(images, dropout, decisions)
        of_labels = self.loss_fn(logits, labels)
        # Kullback-Leibler divergence from what the teacher says, T = 1.
        told = ops.log_softmax(teacher.astype("float32"), -1)
        own = ops.log_softmax(logits.astype("float32"), -1)
        of_teacher = (ops.exp(told) * (told - own)).sum(-1).mean()
        loss = learns * of_labels + (1.0 - learns) * of_teacher
        return self.update.scale(loss), loss, count_correct(logits, labels), logits

    def construct(
        self,
        images: Tensor,
        labels: Tensor,
        dropout: Tensor,
        decisions: Tensor,
        teacher: Tensor,
        learns: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Train a network on one batch.

        Args:
            images: (N, 3, H, W).
            labels: (N,) of int32.
            dropout: factors of the pooled features, (N, head channels).
            decisions: what the network has of each block, (blocks, 3), see ``MBConv``.
            teacher: logits (N, classes) to learn from.
            learns: (), 1 for a network that learns the labels, 0 for one that learns from the
                teacher.

        Returns:
            Loss, number of correct predictions, logits (N, classes).
        """
        (_, loss, correct, logits), gradients = self.gradient(
            images, labels, dropout, decisions, teacher, learns
        )
        if self.used is None:
            updated = self.update(gradients)
        else:
            updated = self.update(gradients, self.used(decisions))
        return ops.depend(loss, updated), correct, logits
