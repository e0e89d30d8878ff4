"""Where the time of a training step goes: each operator of the project, beside what bounds it.

    python benchmarks/step_profile.py                                # about a minute
    python benchmarks/step_profile.py --arch nas_bench_macro_largest --batch_size 128

The step is that of ``benchmarks.training_step``. The operators write their seconds to the file that
SPNAS_KERNEL_PROFILE names, a line per call, with the shape of the layer's input or output:

    {"operator": "BlockTrain", "seconds": 0.0123, "shape": [32, 112, 112, 16]}

A step calls one operator per layer, forward from the stem to the head and backward from the head to
the stem. The rest is MindSpore's: classifier, loss, update, and what it takes to call operators.

The bound of a call is the greater one of multiply-adds over the rate of a large matrix product and
bytes over the bandwidth of a large copy; ``benchmarks.step_bounds`` says which are counted. Times
are medians over the steps, without the first one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import training_step
from benchmarks.contenders import Contender, add_network_arguments, commands, run
from benchmarks.step_bounds import LayerWork, Work, measured_rates, step_work
from src.arch.architecture import load_architecture
from src.errors import UserError
from src.files import read_jsonl

VARIABLE = "SPNAS_KERNEL_PROFILE"


class Call(NamedTuple):
    """What an operator recorded."""

    operator: str
    seconds: float
    shape: tuple[int, ...]


class Pass(NamedTuple):
    """Forward or backward through a layer, which is one call.

    Attributes:
        name: layer and direction.
        shapes: of the layer's input and output.
    """

    name: str
    work: Work
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


class Row(NamedTuple):
    """A line of a table: calls of a step, and what they take and do together.

    Attributes:
        bound: least seconds that the measured rates allow, added up over the calls.
    """

    title: str
    calls: int
    seconds: float
    macs: int
    moved: int  # bytes
    bound: float


def step_passes(layers: Sequence[LayerWork]) -> list[Pass]:
    """What a step calls, in order. The classifier is no operator of the project."""
    own = [layer for layer in layers if layer.layer != "classifier"]
    return [
        Pass(f"{layer.layer} {direction}", getattr(layer, direction), (layer.inputs, layer.outputs))
        for direction, order in (("forward", own), ("backward", own[::-1]))
        for layer in order
    ]


def split_steps(calls: Sequence[Call], passes: Sequence[Pass], steps: int) -> list[list[Call]]:
    """The calls of each step, checked against what a step calls.

    Raises:
        UserError: the operators recorded another number of calls, or other shapes.
    """
    count = len(passes)
    if len(calls) != steps * count:
        raise UserError(
            f"{VARIABLE}: operators recorded {len(calls)} calls in {steps} steps, should be "
            f"{count} per step"
        )
    for call, expected in zip(calls, passes * steps, strict=True):
        if call.shape not in expected.shapes:
            raise UserError(
                f"{VARIABLE}: {call.operator} recorded shape {call.shape}, should be that of input "
                f"or output of {expected.name}: {' or '.join(map(str, expected.shapes))}"
            )
    return [list(calls[start : start + count]) for start in range(0, len(calls), count)]


def layer_rows(
    passes: Sequence[Pass], steps: Sequence[Sequence[Call]], rates: tuple[float, float]
) -> list[Row]:
    """One row per call of a step, with the median of its seconds."""
    rows = []
    for expected, calls in zip(passes, zip(*steps, strict=True), strict=True):
        macs, moved = expected.work.macs, 4 * expected.work.floats
        seconds = statistics.median(call.seconds for call in calls)
        bound = max(macs / rates[0], moved / rates[1])
        rows.append(Row(expected.name, 1, seconds, macs, moved, bound))
    return rows


def merge(title: str, rows: Sequence[Row]) -> Row:
    """Several rows as one."""
    _, *columns = zip(*rows, strict=True)
    return Row(title, *map(sum, columns))


def operator_rows(rows: Sequence[Row], step: Sequence[Call]) -> list[Row]:
    """The same rows merged by operator, in the order in which a step comes to them."""
    return [
        merge(name, [row for row, call in zip(rows, step, strict=True) if call.operator == name])
        for name in dict.fromkeys(call.operator for call in step)
    ]


def print_rows(title: str, rows: Iterable[Row], step_seconds: float) -> None:
    """Print a table."""
    print(
        f"\n{title:<20}{'calls':>6}{'ms':>9}{'share':>8}{'G macs':>8}{'G/s':>7}"
        f"{'GB':>8}{'GB/s':>7}{'bound ms':>10}{'/ bound':>9}"
    )
    for row in rows:
        line = f"{row.title:<20}{row.calls:>6}{1000 * row.seconds:>9.2f}"
        line += f"{row.seconds / step_seconds:>8.1%}"
        if row.calls:
            line += f"{row.macs / 1e9:>8.3f}{row.macs / row.seconds / 1e9:>7.1f}"
            line += f"{row.moved / 1e9:>8.4f}{row.moved / row.seconds / 1e9:>7.1f}"
            line += f"{1000 * row.bound:>10.2f}{row.seconds / row.bound:>9.2f}"
        print(line)


def record(args: argparse.Namespace, image_size: int) -> tuple[list[float], list[Call]]:
    """Seconds of each step but the first, and the calls of all steps."""
    options = "--arch", args.arch, "--batch_size", args.batch_size, "--image_size", image_size
    command = commands(training_step.__file__, {"mindspore": sys.executable}, options)["mindspore"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calls.jsonl"
        worker = Contender("training step", command, {VARIABLE: str(file)})
        try:
            worker.read()
            for _ in range(args.steps):
                worker.step()
            worker.finish()
        finally:
            worker.kill()
        calls = [
            Call(line["operator"], line["seconds"], tuple(line["shape"]))
            for line in read_jsonl(file)
        ]
    return worker.seconds, calls


def report(
    layers: Sequence[LayerWork],
    calls: Sequence[Call],
    seconds: Sequence[float],
    rates: tuple[float, float],
) -> None:
    """Print the tables.

    Args:
        layers: what a step does.
        calls: of all steps, with those of a first one that is not counted.
        seconds: of each step but that one.
        rates: multiply-adds and bytes per second.

    Raises:
        UserError: the calls are not those of such steps.
    """
    passes = step_passes(layers)
    steps = split_steps(calls, passes, len(seconds) + 1)[1:]
    step_seconds = statistics.median(seconds)
    rows = layer_rows(passes, steps, rates)
    total = merge("all operators", rows)
    rest = Row("the rest", 0, step_seconds - total.seconds, 0, 0, 0.0)
    whole = Row("step", 0, step_seconds, 0, 0, 0.0)
    print_rows("operator", [*operator_rows(rows, steps[0]), total, rest, whole], step_seconds)
    print_rows("layer", rows, step_seconds)


def measure(args: argparse.Namespace) -> None:
    """Measure and print."""
    arch = load_architecture(args.arch)
    side = args.image_size or arch.image_size
    layers = step_work(arch, args.batch_size, side)
    rates = measured_rates()
    seconds, calls = record(args, side)
    print(
        f"{args.arch}, {side}x{side}, batch {args.batch_size}, {args.steps} steps; matrix product "
        f"{rates[0] / 1e9:.1f} G multiply-adds/s, copy {rates[1] / 1e9:.1f} GB/s"
    )
    report(layers, calls, seconds, rates)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_network_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=9, help="those that are counted")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
