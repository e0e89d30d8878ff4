"""The two numbers that bound a training step.

They are multiply-adds over the rate of a large matrix product, and bytes over the bandwidth of a
large copy, both measured here, with all cores.

    python benchmarks/step_bounds.py                                 # about 5 seconds
    python benchmarks/step_bounds.py --arch spnas_pixel1_32 --batch_size 128

Multiply-adds are those of the forward pass and, twice as many, of the backward pass. Bytes are
those of the tensors that the operators of ``src.kernels`` and the pointwise convolutions read and
write once each, as if no cache kept any of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.contenders import CLASSES
from src.arch.architecture import Architecture, load_architecture
from src.arch.blocks import Block
from src.arch.cost import conv_out, layer_costs
from src.errors import UserError

SIDE = 2048  # of the matrices
COPIED = 1 << 26  # floats of the copy, far more than caches hold


def step_macs(arch: Architecture, batch_size: int, image_size: int) -> int:
    """Multiply-adds of a training step."""
    costs = layer_costs(arch, CLASSES, (image_size, image_size))
    return 3 * batch_size * sum(cost.macs for _, cost in costs)


def conv_floats(inputs: int, outputs: int, data_gradient: bool = True) -> int:
    """Floats that a convolution moves: forward, gradient of the weights, gradient of the input."""
    return (3 if data_gradient else 2) * (inputs + outputs)


def norm_floats(values: int) -> int:
    """Floats that batch normalisation moves: x and y forward; x, dy and dx backward."""
    return 5 * values


def block_floats(block: Block, pixels_in: int, pixels_out: int) -> int:
    """Floats that an MBConv block moves for one image."""
    inputs, outputs = block.in_channels * pixels_in, block.out_channels * pixels_out
    wide, narrow = block.mid_channels * pixels_in, block.mid_channels * pixels_out
    floats = conv_floats(narrow, outputs) + norm_floats(outputs)
    if block.expansion != 1:
        # The core: x and y forward; x, dy and dx backward.
        floats += conv_floats(inputs, wide) + 3 * wide + 2 * narrow
    else:
        floats += conv_floats(wide, narrow) + norm_floats(narrow)
    return floats + (6 * outputs if block.residual else 0)  # the sum, and that of the gradients


def step_bytes(arch: Architecture, batch_size: int, image_size: int) -> int:
    """Bytes of float32 that a training step moves. Weights are few and not counted."""
    size = conv_out(image_size, arch.stem_stride)
    stem = arch.stem_channels * size**2
    floats = conv_floats(3 * image_size**2, stem, data_gradient=False) + norm_floats(stem)
    for block in arch.blocks:
        if not isinstance(block, Block):
            raise UserError(f"architecture '{arch.name}': only MBConv blocks are counted")
        out = conv_out(size, block.stride)
        floats += block_floats(block, size**2, out**2)
        size = out
    head = arch.head_channels * size**2
    floats += (
        conv_floats(arch.blocks[-1].out_channels * size**2, head) + norm_floats(head) + 2 * head
    )
    return 4 * batch_size * floats


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


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="spnas_pixel1", help="architecture by name")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, help="default: the architecture's")
    args = parser.parse_args(argv)
    arch = load_architecture(args.arch)
    size = args.image_size or arch.image_size
    macs, moved = step_macs(arch, args.batch_size, size), step_bytes(arch, args.batch_size, size)
    operands = matrices()
    rate = SIDE**3 / statistics.median(product_seconds(*operands) for _ in range(9))
    bandwidth = 2 * 4 * COPIED / copy_seconds()
    print(f"{args.arch}, {size}x{size}, batch {args.batch_size}")
    print(f"multiply-adds {macs / 1e9:.1f} G at {rate / 1e9:.1f} G/s: {macs / rate:.3f} s")
    print(
        f"bytes         {moved / 1e9:.1f} G at {bandwidth / 1e9:.1f} G/s: {moved / bandwidth:.3f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
