"""A layer of a one-shot supernet as one operator: of several shuffle blocks it computes one.

As in ``src.kernels.block_operators`` images lie with channels last, statistics are the batch's in
training, and the moving ones in inference, which has no gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from mindspore import Parameter, Tensor, nn, ops

from src.kernels.block_operators import (
    BFLOAT16_TRAIN,
    GROUP,
    INFER,
    TRAIN,
    Shape,
    groups,
    require,
)
from src.kernels.operators import custom_operator, output_size

BFLOAT16_INFER = "Bfloat16Infer"

Counts = tuple[tuple[int, int], ...]  # of each block: convolutions of its branch, its projection


class ChosenBlock(nn.Cell):
    """One of several blocks, of which the others are not computed.

    A block is a branch and, with stride 2, a projection beside it: depthwise convolutions, weight
    (C, 1, k, k), each with its normalisation, and 1x1 convolutions, weight (O, C, 1, 1), each with
    its normalisation and ReLU. Normalisation has no scale and shift. The first depthwise
    convolution has the stride.

    Args:
        stride: of the blocks.
        counts: convolutions of the branch and of the projection, of each block.
        bfloat16: multiply in bfloat16, in a cell whose gradient nobody asks for.
    """

    def __init__(self, stride: int, counts: Counts, *, bfloat16: bool = False) -> None:
        super().__init__()
        self.number = sum(map(sum, counts))
        kinds = (BFLOAT16_TRAIN, BFLOAT16_INFER) if bfloat16 else (TRAIN, INFER)
        self.train_operator, self.infer_operator = (
            _forward_operator(kind, stride, counts) for kind in kinds
        )
        self.backward = custom_operator(
            f"ChoiceBackward{stride}", _gradient_shapes(self.number), 1 + self.number
        )

    def construct(
        self,
        x: Tensor,
        weights: tuple[Parameter, ...],
        moving: tuple[Parameter, ...],
        options: Tensor,
        counts: Tensor,
        choice: Tensor,
    ) -> tuple[Tensor, ...]:
        """The output, in training followed by what the gradient needs.

        Training changes the moving statistics of the block.

        Args:
            x: (N, H, W, C); with stride 1 half of the channels go through the branch.
            weights: of all blocks, a branch's before its projection's.
            moving: moving mean and moving variance for each weight.
            options: see ``operator_options``.
            counts: those of the cell, (blocks, 2) of float32.
            choice: number of the block, () of float32.

        Returns:
            y (N, H', W', O); in training also saved values, (floats,).
        """
        if self.training:
            return self.train_operator(x, *weights, *moving, options, counts, choice)
        return (self.infer_operator(x, *weights, *moving, options, counts, choice),)

    # Of a cell, since that of an operator has to name each of its inputs.
    def bprop(
        self,
        x: Tensor,
        weights: tuple[Parameter, ...],
        moving: tuple[Parameter, ...],
        options: Tensor,
        counts: Tensor,
        choice: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Any, ...]:
        """Gradients of the inputs; those of other blocks' weights are exactly 0."""
        gradients = self.backward(x, *weights, counts, choice, out[1], dout[0])
        # Nobody asks for those of the other inputs; anything of their shapes stands for them.
        return gradients[0], gradients[1:], moving, options, counts, choice


@functools.cache
def chosen_momentum() -> ops.Custom:
    """SGD with momentum and weight decay of one block's weights; others are not touched.

    Takes the weights of all blocks of a layer, their momenta and their gradients; learning rate,
    momentum and weight decay, (3,); ``counts`` and ``choice`` as ``ChosenBlock`` does. Changes
    weights and momenta, and returns (1,), which is there when that is done.
    """
    return custom_operator("ChoiceMomentum", lambda *shapes: (1,), 1, changes_inputs=True)


@functools.cache
def _forward_operator(kind: str, stride: int, counts: Counts) -> ops.Custom:
    number = sum(map(sum, counts))

    def check(shapes: Sequence[Shape]) -> tuple[tuple[int, ...], int]:
        """The shape of y, and the floats that the largest block leaves for its gradient."""
        x, weights, most = shapes[0], list(shapes[1 : 1 + number]), 0
        require(len(x) == 4 and all(len(w) == 4 for w in weights), "a layer of blocks", shapes)
        outputs = set()
        for branch, projection in counts:
            own, weights = weights[: branch + projection], weights[branch + projection :]
            kept = own[-1][0] if projection else x[3] // 2
            outputs.add(kept + own[branch - 1][0])
            chains = own[:branch], own[branch:]
            most = max(most, sum(_saved_size(x, chain, stride) for chain in chains))
        require(len(outputs) == 1, "a layer of blocks", shapes)
        return (x[0], output_size(x[1], stride), output_size(x[2], stride), *outputs), most

    def train_shapes(*shapes):
        y, saved = check(shapes)
        return y, (saved,)

    name = f"Choice{kind}{stride}"
    if kind in (INFER, BFLOAT16_INFER):
        return custom_operator(name, lambda *shapes: check(shapes)[0], 1)
    return custom_operator(name, train_shapes, 2, changes_inputs=True)


def _gradient_shapes(number: int) -> Callable[..., Sequence[Shape]]:
    return lambda *shapes: shapes[: 1 + number]


def _saved_size(x: Shape, weights: Sequence[Shape], stride: int) -> int:
    """Floats of the outputs of a chain, in whole groups of channels, and of their statistics."""
    size, pixels = 0, x[0] * x[1] * x[2]
    for channels, _, side, _ in weights:
        if side > 1 and stride > 1:
            pixels, stride = x[0] * output_size(x[1], stride) * output_size(x[2], stride), 1
        size += groups(channels) * pixels * GROUP + 2 * channels
    return size
