"""The two numbers that bound a training step.

They are multiply-adds over the rate of a large matrix product, and bytes over the bandwidth of a
large copy, both measured here, with all cores.

    python benchmarks/step_bounds.py                                 # about 5 seconds
    python benchmarks/step_bounds.py --arch spnas_pixel1_32 --batch_size 128

Multiply-adds are those of the forward pass and, twice as many, of the backward pass (as many in the
stem, as images have no gradient); what an operator computes again in the backward pass is not
counted. Bytes are those of the tensors that one operator per layer (stem, block, head) reads and
writes once each, as if no cache kept any of them. Weights are few and not counted.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from benchmarks.contenders import add_network_arguments, natural_classes, run
from src.arch.architecture import Architecture, load_architecture
from src.arch.blocks import Block
from src.arch.cost import input_sizes, layer_costs
from src.errors import UserError

SIDE = 2048  # of the matrices
COPIED = 1 << 26  # floats of the copy, far more than caches hold


class Work(NamedTuple):
    """Multiply-adds, and floats that are read or written."""

    macs: int
    floats: int


class LayerWork(NamedTuple):
    """What a step does in a layer, for the whole batch.

    Attributes:
        layer: its name in the network.
        inputs: shape of its input: images (N, C, H, W) for the stem, then (N, H, W, C), and (N, C)
            for the classifier.
        outputs: shape of its output.
    """

    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    forward: Work
    backward: Work


def step_macs(arch: Architecture, batch_size: int, image_size: int) -> list[tuple[str, int, int]]:
    """Name and multiply-adds of each layer, forward and backward, in order of the forward pass."""
    costs = layer_costs(arch, natural_classes(image_size), (image_size, image_size))
    return [
        # Gradients of the weights and, but for the stem's, of the input.
        (layer, batch_size * cost.macs, (1 if layer == "stem" else 2) * batch_size * cost.macs)
        for layer, cost in costs
    ]


def step_work(arch: Architecture, batch_size: int, image_size: int) -> list[LayerWork]:
    """What a training step does in each layer, in order of the forward pass.

    Raises:
        UserError: a block is no MBConv block, or has squeeze-and-excitation.
    """
    for block in arch.blocks:
        if not isinstance(block, Block) or block.se_channels:
            raise UserError(
                f"architecture '{arch.name}': only MBConv blocks without squeeze-and-excitation "
                "are counted"
            )
    channels = [arch.stem_channels, *(block.out_channels for block in arch.blocks)]
    sizes = input_sizes(arch.strides, (image_size, image_size))[1:]
    shapes: list[tuple[int, ...]] = [(batch_size, 3, image_size, image_size)]
    shapes += [(batch_size, *size, c) for c, size in zip(channels, sizes, strict=True)]
    shapes += [(batch_size, arch.head_channels), (batch_size, natural_classes(image_size))]
    layers = []
    for index, (layer, *macs) in enumerate(step_macs(arch, batch_size, image_size)):
        inputs, outputs = shapes[index : index + 2]
        x, y = math.prod(inputs), math.prod(outputs)
        if layer == "stem":
            floats = stem_floats(x, y)
        elif layer == "head":
            floats = head_floats(x, y, math.prod(inputs[1:3]))
        elif layer == "classifier":
            floats = x + y, 2 * x + y
        else:
            mid = arch.blocks[index - 1].mid_channels
            floats = block_floats(x, y, batch_size * mid * math.prod(outputs[1:3]))
        forward, backward = map(Work, macs, floats)
        layers.append(LayerWork(layer, inputs, outputs, forward, backward))
    return layers


# Floats that an operator moves, forward and backward. dx is the gradient of x.


def stem_floats(x: int, y: int) -> tuple[int, int]:
    """Convolution, normalisation, ReLU: x, c, y; then x, c, dy, with c the convolution's output."""
    return x + 2 * y, x + 2 * y


def block_floats(x: int, y: int, z: int) -> tuple[int, int]:
    """A whole MBConv block with its sum.

    Forward x, z, p, y; backward x, z, p, dy, dx, and the gradient of z twice. z is the output of
    the depthwise convolution and p that of the projection, both without normalisation. What lies
    between x and z is computed again.
    """
    return x + z + 2 * y, 2 * x + 3 * z + 2 * y


def head_floats(x: int, y: int, pixels: int) -> tuple[int, int]:
    """Convolution, normalisation, ReLU, pooling: x, c, y; then x, c, dy, dx.

    c is the convolution's output, of ``pixels`` per float of y.
    """
    return x + (pixels + 1) * y, 2 * x + (pixels + 1) * y


def total_work(layers: list[LayerWork]) -> Work:
    """Work of a whole step."""
    passes = [work for layer in layers for work in (layer.forward, layer.backward)]
    return Work(sum(work.macs for work in passes), sum(work.floats for work in passes))


def product_seconds(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> float:
    """Seconds of a matrix product."""
    start = time.perf_counter()
    np.matmul(a, b, out=out)
    return time.perf_counter() - start


def matrices(columns: int = SIDE) -> list[np.ndarray]:
    """Two matrices, whose product has SIDE^2 * columns multiply-adds, and room for it."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((SIDE, width), np.float32) for width in (SIDE, columns, columns)]


def copy_seconds() -> float:
    """Seconds of the copy of COPIED floats by one thread per core."""
    threads = os.cpu_count() or 1
    source, target = (np.ones((threads, COPIED // threads), np.float32) for _ in range(2))
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> float:
            start = time.perf_counter()
            list(pool.map(np.copyto, target, source))
            return time.perf_counter() - start

        return statistics.median(copy() for _ in range(7))


def measured_rates() -> tuple[float, float]:
    """Multiply-adds per second of a matrix product, and bytes per second of a copy."""
    operands = matrices()
    product = statistics.median(product_seconds(*operands) for _ in range(9))
    return SIDE**3 / product, 2 * 4 * COPIED / copy_seconds()


def measure(args: argparse.Namespace) -> None:
    """Measure and print."""
    arch = load_architecture(args.arch)
    side = args.image_size or arch.image_size
    work = total_work(step_work(arch, args.batch_size, side))
    rate, bandwidth = measured_rates()
    print(f"{args.arch}, {side}x{side}, batch {args.batch_size}")
    for title, amount, speed in (
        ("multiply-adds", work.macs, rate),
        ("bytes", 4 * work.floats, bandwidth),
    ):
        print(f"{title:<14}{amount / 1e9:.1f} G at {speed / 1e9:.1f} G/s: {amount / speed:.3f} s")


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_network_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args(argv)
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
