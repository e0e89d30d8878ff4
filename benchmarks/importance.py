r"""Which measure of a part's worth chooses good networks?

    python search.py --dataset_name cifar10 --data_path data/cifar10 --train_images 10000 \
        --space nas_bench_macro --target 60 --epoch_size 8 --checkpoint_path runs/search
    python benchmarks/importance.py --ckpt runs/search/ckpt_0/cifar10-4_156.ckpt --table FILE

takes a superkernel supernet before the cost counts, and measures by the cross-entropy of training
images what each indicator is worth; about four minutes. For each measure and cost it takes the
network with the most worth within 1 % of the cost, and looks its accuracy up in NAS-Bench-Macro's
table (``benchmarks.nas_bench_macro``; predicted where ``--table`` is a part of it).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import nas_bench_macro as published
from benchmarks.contenders import run
from src.arch.cost_table import CostTable, arithmetic_table
from src.arch.space import SKIP, SearchSpace
from src.errors import UserError
from src.search.indicators import (
    FREE,
    missing_indicators,
    part_name,
    to_indicators,
    without_parts,
)

COSTS = (50, 60, 80)  # million multiply-adds
NEAR = 0.01
DRAWN = 0.5  # share of the indicators that are drawn in a batch

Worth = np.ndarray  # of each indicator, (L, D); larger is better

# What indicators are drawn as, and where the gradient at what was drawn counts.
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
GRADIENTS: Mapping[str, tuple[Draw, Callable[[np.ndarray], np.ndarray]]] = {
    "gradient at 1": (lambda rng, shape: np.zeros(shape), lambda drawn: drawn == 1),
    "gradient at 0": (lambda rng, shape: np.zeros(shape), lambda drawn: drawn == 0),
    "mean of gradients between": (lambda rng, shape: rng.random(shape), lambda drawn: drawn < 1),
}
REMOVED = "gain of the cross-entropy"


class Supernet:
    """A supernet of which any indicators can be drawn, with the statistics of each batch."""

    def __init__(self, ckpt: str, images: int, batch_size: int) -> None:
        import mindspore as ms
        from mindspore import ops

        from src.checkpoint.restore import load_weights
        from src.config import SubnetConfig
        from src.CrossEntropySmooth import CrossEntropySmooth
        from src.kernels import use_kernels
        from src.search import superkernel
        from src.search.subnet_evaluation import open_batches, read_supernet
        from src.utils import setup_device

        setup_device("CPU", 0)
        checkpoint, self.space = read_supernet(ckpt)
        self.table = arithmetic_table(self.space, "macs", len(checkpoint.meta.classes))
        network = superkernel.Supernet(
            self.space, self.table, len(checkpoint.meta.classes), kernels=use_kernels("auto")
        ).set_train()
        load_weights(network, checkpoint.weights, checkpoint.path)
        config = SubnetConfig(batch_size=batch_size)
        self.batches = open_batches(config, checkpoint, "train", images)
        loss_fn = CrossEntropySmooth(0.0)

        def loss(pixels: ms.Tensor, labels: ms.Tensor, draws: ms.Tensor) -> ms.Tensor:
            return loss_fn(network(pixels, None, draws)[0], labels)

        self.loss, self.gradient = ms.jit(loss), ms.jit(ops.grad(loss, 2))

    def tensors(self) -> Iterator[tuple]:
        """Pixels and labels of each batch."""
        from mindspore import Tensor

        for images, labels in self.batches.epoch():
            yield Tensor(images), Tensor(labels.astype(np.int32))


def by_gradient(supernet: Supernet, measure: str) -> Worth:
    """Mean gradient of indicators where they were drawn as the measure says."""
    from mindspore import Tensor

    rng = np.random.default_rng(0)
    draw, counts = GRADIENTS[measure]
    free = missing_indicators(supernet.space) == FREE
    total, number = np.zeros(free.shape), np.zeros(free.shape)

    for batch in supernet.tensors():
        drawn = free & (rng.random(free.shape) < DRAWN)
        values = np.where(drawn, draw(rng, free.shape), 1).astype(np.float32)
        gradient = supernet.gradient(*batch, Tensor(values)).asnumpy()
        counted = free & counts(values)
        total[counted] -= gradient[counted]
        number[counted] += 1
    return total / np.maximum(number, 1)


def by_removal(supernet: Supernet) -> Worth:
    """How much the cross-entropy rises when the part alone is removed."""
    from mindspore import Tensor

    free = missing_indicators(supernet.space) == FREE
    worth = np.zeros(free.shape)
    for batch in supernet.tensors():
        for place in [None, *map(tuple, np.argwhere(free))]:
            values = np.ones(free.shape, np.float32)
            if place is None:
                worth[free] -= float(supernet.loss(*batch, Tensor(values)).asnumpy())
            else:
                values[place] = 0
                worth[place] += float(supernet.loss(*batch, Tensor(values)).asnumpy())
    return worth / len(list(supernet.batches.epoch()))


def choose(space: SearchSpace, table: CostTable, worth: Worth, cost: float) -> tuple[str, ...]:
    """The network of most worth whose cost is near ``cost``; of one network any of its names."""
    names = [layer.names for layer in space.searched.values()]
    free = missing_indicators(space) == FREE

    def value(decisions: Sequence[str]) -> float:
        indicators = to_indicators(space, decisions)
        present = np.array([[choice != SKIP] for choice in decisions])
        return float((worth * indicators * free * present).sum())

    near = (
        decisions
        for decisions in itertools.product(*names)
        if abs(table.total(decisions) / cost - 1) <= NEAR
    )
    return max(near, key=value)


def measure(args: argparse.Namespace) -> None:
    """Print what each measure says of each part, and the networks that it chooses."""
    table = published.read_table(args.table)
    table = replace(table, predicted=published.predict(table.entries)[0])
    for key in ("images", "batch_size"):
        if getattr(args, key) < 2:
            raise UserError(f"{key} is {getattr(args, key)}, should be at least 2")
    supernet = Supernet(args.ckpt, args.images, args.batch_size)
    if supernet.space != published.space():
        raise UserError(f"{args.ckpt}: of space '{supernet.space.name}', should be nas_bench_macro")
    space = supernet.space
    worths = {name: by_gradient(supernet, name) for name in GRADIENTS}
    worths[REMOVED] = by_removal(supernet)

    rows = [["worth, 1/1000 of cross-entropy", *worths]]
    for place in without_parts(space):
        row = [f"{1000 * worth[place]:.1f}" for worth in worths.values()]
        rows.append([part_name(space, place), *row])
    published.print_rows(rows)
    print()
    rows = [["chosen by", *(f"{cost} M" for cost in COSTS)]]
    for name, worth in worths.items():
        rows.append([name])
        for cost in COSTS:
            digits = published.canonical(
                published.name_of(choose(space, supernet.table, worth, cost))
            )
            names = published.within(published.equivalents(), cost * 1e6)
            band = published.mean_truth(table.known(names).values())
            truth = table.truth(digits)
            rows[-1].append(f"{digits} {truth} {truth.top1 - band.top1:+.2f}")
    published.print_rows(rows)
    print("accuracy, and points over the mean of all networks within 2 % of the cost")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, help="checkpoint of a search in nas_bench_macro")
    parser.add_argument("--table", type=Path, required=True, help="published JSON, or a part of it")
    parser.add_argument("--images", type=int, default=5000, help="training images that are used")
    parser.add_argument("--batch_size", type=int, default=100)
    args = parser.parse_args(argv)
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
