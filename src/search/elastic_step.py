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
        self.always = Tensor(np.ones(1, np.float32))
        self.columns, self.rows = ops.Split(1, 3), ops.Split(0, len(arch.blocks))
        self.places = [_place(parameter.name) for parameter in parameters]

    def construct(self, decisions: Tensor) -> tuple[Tensor, ...]:
        """Of 0 and 1, in shapes that are broadcast to the parameters.

        Args:
            decisions: (blocks, 3), see ``MBConv``.
        """
        # Without a branch for each parameter: MindSpore would nest three calls for each, and it
        # compiles no graph of more than a thousand.
        side, channels, presence = self.columns(decisions)  # each (blocks, 1)
        side, channels, presence = self.rows(side), self.rows(channels), self.rows(presence)
        parts: tuple[Tensor, ...] = (self.always,)
        for block in range(len(self.numbers)):
            outer = presence[block].reshape((1,))
            inner = (self.numbers[block] < channels[block].reshape((1,))).astype(ms.float32) * outer
            column, row = inner.reshape((-1, 1, 1, 1)), inner.reshape((1, -1, 1, 1))
            taps = (self.sides[block] <= side[block].reshape((1, 1, 1, 1))).astype(ms.float32)
            parts += (outer, inner, column, row, column * taps)  # see PARTS
        used: tuple[Tensor, ...] = ()
        for place in self.places:
            used += (parts[place],)
        return used


# Of a block: as ``presence`` alone, by channel, by output or input channel, and that with its taps.
PARTS = ("outer", "inner", "first", "last", "taps")


def _place(name: str) -> int:
    """Which of the parts of ``UsedParts`` is that of a parameter: always, or one of its block's."""
    words = name.split(".")
    if words[0] != "blocks" or words[2] == "se":  # which fixed blocks alone have
        return 0
    block, layer, is_weight = int(words[1]), words[2], words[-1] == "weight"
    if layer == "project":
        part = "last" if is_weight else "outer"
    elif not is_weight:
        part = "inner"
    else:
        part = "taps" if layer == "depthwise" else "first"
    return 1 + block * len(PARTS) + PARTS.index(part)


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
