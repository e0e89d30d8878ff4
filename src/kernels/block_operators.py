"""Stem, MBConv blocks and head as MindSpore functions, each with its normalisations and ReLUs.

Between them images lie with channels last, (N, H, W, C). A normalisation is four parameters, gamma,
beta, moving mean and moving variance, each (channels,); in a folded network it is one, a bias. In
training the new moving statistics of all normalisations, mean and variance, are the last outputs.
Statistics are the batch's in training, and the moving ones in inference, which has no gradients.

In bfloat16 images between stem and head are of this type, as are their gradients and the largest
tensors that the gradient needs; all else is float32. MindSpore computes nothing in this type on
CPU: the stem makes the first of these tensors, the head takes the last, and each is used exactly
once, since gradients of two uses would have to be added up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Tensor, ops

from src.kernels.operators import KERNEL_SIZES, custom_operator, output_size, zeros_like

# What an operator is for: each kind computes the same with other statistics or in another type.
TRAIN, BFLOAT16_TRAIN, INFER, FOLDED = "Train", "Bfloat16Train", "Infer", "Folded"

GROUP = 16  # kGroup of vectors.h: channels that lie together within a block

Shape = Sequence[int]


def operator_options(
    epsilon: float, momentum: float, *, residual: bool = False, ceiling: float = math.inf
) -> Tensor:
    """The input ``options`` of all operators, (4,).

    Args:
        epsilon: added to variances.
        momentum: weight of the old moving statistics.
        residual: whether a block adds its input.
        ceiling: the most that the ReLU of a stem or head gives, 6 for ReLU6.
    """
    return Tensor(np.array([epsilon, momentum, residual, ceiling], np.float32))


def operator_pair(
    create: Callable[[str], ops.Custom], *, folded: bool, bfloat16: bool = False
) -> tuple[ops.Custom, ops.Custom]:
    """The operators of training and of inference; a folded network has one for both.

    Args:
        create: makes the operator of a kind.
        folded: whether normalisation is folded into the convolutions.
        bfloat16: whether to train in bfloat16.
    """
    if folded:
        return create(FOLDED), create(FOLDED)
    return create(BFLOAT16_TRAIN if bfloat16 else TRAIN), create(INFER)


def _trains(kind: str) -> bool:
    return kind in (TRAIN, BFLOAT16_TRAIN)


def _backward(kind: str) -> str:
    return kind.replace(TRAIN, "Backward")


def _images(kind: str, *places: int) -> Sequence[int] | None:
    """Which outputs are bfloat16 where those at these places have the type of images."""
    return places if kind == BFLOAT16_TRAIN else None


def _norm_inputs(kind: str) -> int:
    return 1 if kind == FOLDED else 4


def require(fits: bool, what: str, shapes: Sequence[Shape]) -> None:
    """Raise ValueError unless shapes fit ``what``."""
    if not fits:
        raise ValueError(
            f"{what} does not take the shapes {', '.join(map(str, map(tuple, shapes)))}"
        )


def groups(channels: int) -> int:
    """Groups of channels that hold so many."""
    return -(-channels // GROUP)


@functools.cache
def block_operator(kind: str, stride: int, *, expands: bool) -> ops.Custom:
    """An MBConv block: convolutions with their normalisations, ReLU after all but the last.

    Takes x (N, H, W, C); weight (M, C, 1, 1) and normalisation of the expansion, if ``expands``;
    those of the depthwise convolution, (M, 1, k, k), and of the projection, (O, M, 1, 1); options;
    and the decision (3,): side of the kernel, channels of the expansion, and 1, or 0 for a block
    that is left out, so that the result is x. A smaller kernel is the middle of the largest, and
    fewer channels are the first ones; weights that are not active get a gradient of exactly 0.

    Returns y (N, H', W', O), to which options may ask to add x. In training there follow what the
    gradient needs, and the new moving statistics of all normalisations.
    """
    plain, norm = "" if expands else "Plain", _norm_inputs(kind)
    # Places of the weights: each is followed by its normalisation.
    depthwise = 2 + norm if expands else 1
    project = depthwise + 1 + norm

    def check(shapes):
        x, wide, last = shapes[0], list(shapes[depthwise]), list(shapes[project])
        require(
            len(x) == 4
            and wide in [[wide[0], 1, k, k] for k in KERNEL_SIZES]
            and last == [last[0], wide[0], 1, 1]
            and (list(shapes[1]) == [wide[0], x[3], 1, 1] if expands else wide[0] == x[3]),
            "an MBConv block",
            shapes,
        )
        return (x[0], output_size(x[1], stride), output_size(x[2], stride), last[0])

    if not _trains(kind):
        return custom_operator(f"Block{plain}{kind}{stride}", lambda *shapes: check(shapes), 1)

    def forward_shape(*shapes):
        y, mid, inputs = check(shapes), shapes[depthwise][0], shapes[0][3]
        pixels = y[0] * y[1] * y[2]
        saved = ((inputs,), (mid, inputs)) if expands else ()
        return (
            (y, (groups(mid), pixels, GROUP), y)
            + saved
            + ((4 if expands else 2, mid), (2, y[3]))
            + ((mid,),) * (4 if expands else 2)
            + ((y[3],),) * 2
        )

    # The backward operator takes of each normalisation gamma and beta, of the last one gamma only,
    # and returns the gradients of x, and of weight, gamma and beta of each convolution.
    if not expands:
        plain_backward = custom_operator(
            f"BlockPlain{_backward(kind)}{stride}",
            lambda *s: (s[0], s[1], s[2], s[2], s[4], s[5], s[5]),
            7,
            bfloat16=_images(kind, 0),
        )

        def plain_bprop(x, w1, g1, b1, m1, v1, w2, g2, b2, m2, v2, options, decision, out, dout):
            dx, dw1, dg1, db1, dw2, dg2, db2 = plain_backward(
                x, w1, g1, b1, w2, g2, out[1], out[2], out[3], out[4], options, decision, dout[0]
            )
            first = (dx, dw1, dg1, db1, zeros_like(m1), zeros_like(v1))
            second = (dw2, dg2, db2, zeros_like(m2), zeros_like(v2))
            return first + second + (zeros_like(options), zeros_like(decision))

        return custom_operator(
            f"BlockPlain{kind}{stride}", forward_shape, 9, plain_bprop, _images(kind, 0, 1, 2)
        )

    backward = custom_operator(
        f"Block{_backward(kind)}{stride}",
        lambda *s: (s[0], s[1], s[2], s[2], s[4], s[5], s[5], s[7], s[8], s[8]),
        10,
        bfloat16=_images(kind, 0),
    )

    def bprop(
        x, w1, g1, b1, m1, v1, w2, g2, b2, m2, v2, w3, g3, b3, m3, v3, options, decision, out, dout
    ):
        dx, dw1, dg1, db1, dw2, dg2, db2, dw3, dg3, db3 = backward(
            *(x, w1, g1, b1, w2, g2, b2, w3, g3),
            *(out[1], out[2], out[3], out[4], out[5], out[6], options, decision, dout[0]),
        )
        first = (dx, dw1, dg1, db1, zeros_like(m1), zeros_like(v1))
        second = (dw2, dg2, db2, zeros_like(m2), zeros_like(v2))
        third = (dw3, dg3, db3, zeros_like(m3), zeros_like(v3))
        return first + second + third + (zeros_like(options), zeros_like(decision))

    return custom_operator(f"Block{kind}{stride}", forward_shape, 13, bprop, _images(kind, 0, 1, 2))


@functools.cache
def stem_operator(kind: str, stride: int) -> ops.Custom:
    """The stem: convolution of images, padded by half the kernel, normalisation, ReLU.

    Takes images (N, C, H, W) of at most MAX_IMAGE_CHANNELS channels, weight (O, C, k, k), its
    normalisation and options. Returns y (N, H', W', O); in training there follow what the gradient
    needs, and the new moving statistics.
    """

    def check(shapes):
        x, weight = shapes[0], list(shapes[1])
        require(
            len(x) == 4 and weight in [[weight[0], x[1], k, k] for k in KERNEL_SIZES],
            "a stem",
            shapes,
        )
        return (x[0], output_size(x[2], stride), output_size(x[3], stride), weight[0])

    if not _trains(kind):
        return custom_operator(f"Stem{kind}{stride}", lambda *shapes: check(shapes), 1)

    def forward_shape(*shapes):
        y, channels = check(shapes), shapes[2]
        s = (groups(y[3]), y[0] * y[1] * y[2], GROUP)
        return (y, s, (2, y[3]), channels, channels)

    backward = custom_operator(f"Stem{_backward(kind)}{stride}", lambda *s: (s[1], s[2], s[3]), 3)
    # Compilation removes it where nobody asks for the gradient of the images.
    image_gradient = custom_operator(
        f"Stem{kind.replace(TRAIN, 'InputGradient')}{stride}", lambda *s: s[0], 1
    )

    def bprop(x, w, g, b, m, v, options, out, dout):
        dw, dg, db = backward(x, w, g, b, out[1], out[2], options, dout[0])
        dx = image_gradient(x, w, g, b, out[1], out[2], options, dout[0], dg, db)
        return dx, dw, dg, db, zeros_like(m), zeros_like(v), zeros_like(options)

    return custom_operator(f"Stem{kind}{stride}", forward_shape, 5, bprop, _images(kind, 0, 1))


@functools.cache
def head_operator(kind: str) -> ops.Custom:
    """The head: 1x1 convolution, normalisation, ReLU, mean over the pixels.

    Takes x (N, H, W, C), weight (O, C, 1, 1), its normalisation and options. Returns y (N, O); in
    training there follow what the gradient needs, and the new moving statistics.
    """

    def check(shapes):
        x, weight = shapes[0], list(shapes[1])
        require(len(x) == 4 and weight == [weight[0], x[3], 1, 1], "a head", shapes)
        return (x[0], weight[0])

    if not _trains(kind):
        return custom_operator(f"Head{kind}", lambda *shapes: check(shapes), 1)

    def forward_shape(*shapes):
        y, x, channels = check(shapes), shapes[0], shapes[2]
        q = (groups(y[1]), x[0] * x[1] * x[2], GROUP)
        return (y, q, (2, y[1]), channels, channels)

    backward = custom_operator(
        f"Head{_backward(kind)}",
        lambda *s: (s[0], s[1], s[2], s[3]),
        4,
        bfloat16=_images(kind, 0),
    )

    def bprop(x, w, g, b, m, v, options, out, dout):
        dx, dw, dg, db = backward(x, w, g, b, out[1], out[2], options, dout[0])
        return dx, dw, dg, db, zeros_like(m), zeros_like(v), zeros_like(options)

    return custom_operator(f"Head{kind}", forward_shape, 5, bprop, _images(kind, 1))
