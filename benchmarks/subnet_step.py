"""What subnets of a supernet cost: a part of a network that a decision makes active.

    python benchmarks/subnet_step.py
    python benchmarks/subnet_step.py --arch spnas_largest_32 --batch_size 64

ARCH is the largest network; a block of it may also be K3E3, the middle of its kernel and three
times as many channels as it takes, or be left out where it adds to its input. Contenders are a step
of the largest network; a sandwich, in which the largest, the smallest and two random subnets, drawn
uniformly in cost, add up gradients for one update; and the network of K3E3 blocks, once as a
network of its own and once as a subnet. All use the CPU operators and the same batch of noise.

A decision is an input, so that one compiled graph serves all subnets.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.contenders import (
    add_arguments,
    add_network_arguments,
    commands,
    compare,
    natural_classes,
    noise,
    parse,
    run,
    work,
)
from src.arch.architecture import Architecture, load_architecture
from src.arch.blocks import Block
from src.arch.cost import network_cost
from src.errors import UserError

if TYPE_CHECKING:  # only the contenders need MindSpore
    from mindspore import nn

WORKERS = {
    "largest": "largest network",
    "sandwich": "largest, smallest, two random",
    "small": "K3E3 blocks, own network",
    "subnet": "K3E3 blocks, subnet",
}
BASES = {"largest": ["largest"], "own": ["small"]}
SMALL_KERNEL, SMALL_EXPANSION = 3, 3
DRAWS = 200  # random decisions, of which the one nearest to a drawn cost is taken
RATE = 0.05


def blocks_of(arch: Architecture) -> list[Block]:
    """Its blocks, which have to be MBConv blocks."""
    blocks = [block for block in arch.blocks if isinstance(block, Block)]
    if len(blocks) < len(arch.blocks):
        raise UserError(f"architecture '{arch.name}': only MBConv blocks have decisions")
    return blocks


def small_block(block: Block) -> Block:
    """The K3E3 block in its place; one without expansion keeps its channels."""
    return dataclasses.replace(
        block, kernel_size=SMALL_KERNEL, expansion=min(block.expansion, SMALL_EXPANSION)
    )


def decisions_of(arch: Architecture, choices: np.ndarray) -> np.ndarray:
    """Decisions (blocks, 3) of choices (blocks,): 0 for no block, 1 for K3E3, 2 for all of it."""
    rows = []
    for block, choice in zip(blocks_of(arch), choices, strict=True):
        active = small_block(block) if choice == 1 else block
        rows.append((active.kernel_size, active.mid_channels, min(choice, 1)))
    return np.array(rows, np.float32)


def subnet(arch: Architecture, choices: np.ndarray) -> Architecture:
    """The network of choices."""
    pairs = zip(blocks_of(arch), choices, strict=True)
    kept = [small_block(block) if choice == 1 else block for block, choice in pairs if choice]
    return dataclasses.replace(arch, name="subnet", blocks=tuple(kept))


def multiply_adds(arch: Architecture, choices: np.ndarray) -> int:
    """Those of the network of choices, per image."""
    return network_cost(subnet(arch, choices), natural_classes(arch.image_size)).macs


def smallest(arch: Architecture) -> np.ndarray:
    """The choices of the smallest network."""
    return np.array([0 if block.residual else 1 for block in blocks_of(arch)])


def draw(arch: Architecture, rng: np.random.Generator) -> np.ndarray:
    """Random choices, about uniform in cost."""
    least = smallest(arch)
    candidates = rng.integers(least, 3, (DRAWS, len(least)))
    low, high = multiply_adds(arch, least), multiply_adds(arch, np.full(len(least), 2))
    target = rng.uniform(low, high)
    return min(candidates, key=lambda choices: abs(multiply_adds(arch, choices) - target))


def create_step(arch: Architecture, accumulate_steps: int) -> nn.Cell:
    """A cell that trains on images, labels and decisions, and returns the loss."""
    import mindspore as ms
    from mindspore import Tensor, nn, ops

    from src.config import TrainConfig
    from src.CrossEntropySmooth import CrossEntropySmooth
    from src.kernels import use_kernels
    from src.spnasnet import SPNASNet
    from src.training.optimizer import create_optimizer
    from src.training.step import Update

    config = TrainConfig(accumulate_steps=accumulate_steps)
    ms.set_seed(config.seed)

    class Step(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.network = SPNASNet(
                arch, natural_classes(arch.image_size), kernels=use_kernels("on")
            )
            rates = np.full(100_000, RATE, np.float32)
            optimizer = create_optimizer(self.network, config, rates)
            self.update = Update(self.network, optimizer, config, mixed_precision=False)
            self.loss_fn = CrossEntropySmooth(config.label_smooth_factor)
            self.gradient = ops.value_and_grad(self.forward, None, self.update.weights)

        def forward(self, images: Tensor, labels: Tensor, decisions: Tensor) -> Tensor:
            return self.loss_fn(self.network(images, None, decisions), labels)

        def construct(self, images: Tensor, labels: Tensor, decisions: Tensor) -> Tensor:
            loss, gradients = self.gradient(images, labels, decisions)
            return ops.depend(loss, self.update(gradients))

    return Step().set_train()


def create(worker: str, arch_name: str, batch_size: int, image_size: int) -> Callable[[], float]:
    """A function that does a contender's step and returns a loss."""
    from mindspore import Tensor

    from src.utils import setup_device

    setup_device("CPU", 0)
    arch = load_architecture(arch_name)
    everything = np.full(len(arch.blocks), 2)
    small, rng = np.ones_like(everything), np.random.default_rng(0)
    if worker == "small":
        arch, small = subnet(arch, small), everything
    step = create_step(arch, accumulate_steps=4 if worker == "sandwich" else 1)
    images, labels = noise(batch_size, image_size, natural_classes(arch.image_size))
    batch = Tensor(images), Tensor(labels.astype(np.int32))

    def subnets() -> list[np.ndarray]:
        if worker == "largest":
            return [everything]
        if worker == "sandwich":
            return [everything, smallest(arch), draw(arch, rng), draw(arch, rng)]
        return [small]

    def run_step() -> float:
        losses = [step(*batch, Tensor(decisions_of(arch, choices))) for choices in subnets()]
        return float(losses[0].asnumpy())

    return run_step


def measure(args: argparse.Namespace, image_size: int) -> None:
    """Run all contenders; print the table, what arithmetic says, and the ratio of memory."""
    arch = load_architecture(args.arch)
    options = ["--arch", args.arch, "--batch_size", str(args.batch_size)]
    options += ["--image_size", str(image_size)]
    print(f"{args.arch}, {image_size}x{image_size}, batch {args.batch_size}, {args.rounds} rounds")
    peaks = compare(commands(__file__, args.pythons, options), WORKERS, BASES, args.rounds)
    if "sandwich" in peaks and "largest" in peaks:
        rng, everything = np.random.default_rng(0), np.full(len(arch.blocks), 2)
        whole = multiply_adds(arch, everything)
        random = np.mean([multiply_adds(arch, draw(arch, rng)) for _ in range(500)])
        parts = whole + multiply_adds(arch, smallest(arch)) + 2 * random
        print(f"by multiply-adds a sandwich is {parts / whole:.2f} of the largest network")
        print(f"peak memory: {peaks['sandwich'] / peaks['largest']:.2f} of the largest network's")


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, WORKERS, rounds=9)
    add_network_arguments(parser)
    parser.set_defaults(arch="nas_bench_macro_largest")
    parser.add_argument("--batch_size", type=int, default=128)
    args = parse(parser, argv, WORKERS)
    image_size = args.image_size or load_architecture(args.arch).image_size
    if args.worker:
        work(lambda: create(args.worker, args.arch, args.batch_size, image_size))
        return 0
    return run(lambda: measure(args, image_size))


if __name__ == "__main__":
    sys.exit(main())
