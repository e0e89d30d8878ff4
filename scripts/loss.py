"""Compare the training losses of two runs.

    python scripts/loss.py runs/mine/ckpt_0/train.log reference.log

draws both curves (``--output loss.png``), prints the mean relative and the mean absolute error of
the first run's losses against the second's, both with their sign, and the verdict. It reads
``train.log`` and ``metrics.jsonl`` of this project, and any log with lines such as

    ... Epoch: 0 Iteration: 1 rank : 0 train.loss : 2.2649757862091064 train.ips : 2431.3 imgs/s

Steps are compared in their order; of a step that was logged twice, after a resume, the last line
counts. With ``--by_epoch`` the means of the epochs are compared, and each has to be near enough.
The exit code is 0 for pass, 1 for fail.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.cli import Parser, picture_file
from src.errors import EXIT_FAULT, UserError
from src.utils import run_main

# Bounds of a pass, of which one is enough: small losses have large relative errors.
RELATIVE, ABSOLUTE = 0.05, 0.0002
NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|nan|inf(?:inity)?)"
LINE = re.compile(
    rf"epoch\W+(\d+).*?\b(?:iteration|iter|step)\W+(\d+).*?\bloss\W*?({NUMBER})\b", re.I
)


def read_losses(path: str) -> dict[tuple[int, float], float]:
    """Training losses of a log by epoch and step, in their order."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    losses: dict[tuple[int, float], float] = {}
    for line in lines:
        if line.startswith("{"):
            try:
                values = json.loads(line)
            except ValueError:  # a last line that a crash cut short
                continue
            if values.get("kind") == "train":
                # The last step of an epoch is written as step 0 of the next.
                epoch, step = values["epoch"], values["step"]
                losses[(epoch, step) if step else (epoch - 1, math.inf)] = float(values["loss"])
        elif match := LINE.search(line):
            losses[int(match[1]), int(match[2])] = float(match[3])
    if not losses:
        raise UserError(
            f"{path}: holds no training losses; expected metrics.jsonl, or lines with "
            "'Epoch: 0 Iteration: 1 ... train.loss : 2.26'"
        )
    return dict(sorted(losses.items()))


def epoch_means(losses: Mapping[tuple[int, float], float]) -> list[float]:
    """Means of the losses of each epoch."""
    epochs = {epoch: [] for epoch, _ in losses}
    for (epoch, _), loss in losses.items():
        epochs[epoch].append(loss)
    return [sum(values) / len(values) for values in epochs.values()]


def judge_epochs(means: Sequence[float], reference: Sequence[float]) -> bool:
    """Print the means of epochs side by side; whether each is within ``RELATIVE``."""
    print("epoch    mean  reference  difference")
    errors = []
    for number, (mean, other) in enumerate(zip(means, reference, strict=False), start=1):
        errors.append(mean / other - 1 if other else math.nan)
        print(f"{number:5}  {mean:6.3f}     {other:6.3f}     {errors[-1]:+7.1%}")
    # A loss that is not a number is within no bound.
    passed = all(abs(error) <= RELATIVE for error in errors)
    print(f"{'pass' if passed else 'fail'} (each epoch within {RELATIVE:.0%})")
    return passed


def errors_of(losses: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Mean relative and mean absolute error of one run against another, with their sign.

    Steps that only one of them has are left out, as are those of loss 0 from the relative error.
    """
    pairs = list(zip(losses, reference, strict=False))
    differences = [a - b for a, b in pairs]
    relative = [(a - b) / b for a, b in pairs if b]
    return sum(relative) / max(len(relative), 1), sum(differences) / len(differences)


def draw(runs: Mapping[str, Sequence[float]], unit: str, path: Path) -> None:
    """Draw the loss curves of runs, which are given by name, over steps or epochs."""
    # Importing Matplotlib takes a second.
    from matplotlib.figure import Figure

    from src.drawing import save

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, losses in runs.items():
        axis.plot(range(1, len(losses) + 1), losses, linewidth=0.8, label=name)
    axis.set(xlabel=unit, ylabel="training loss")
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line."""
    parser = Parser(__doc__)
    parser.add_argument("log_a", help="log of the run to judge")
    parser.add_argument("log_b", help="log of the reference run")
    parser.add_argument(
        "--output",
        type=picture_file,
        default="loss.png",
        help="picture of both curves (default: %(default)s)",
    )
    parser.add_argument("--by_epoch", action="store_true", help="compare means of epochs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns the exit code."""
    args = parse_arguments(argv)
    of_runs = [read_losses(path) for path in (args.log_a, args.log_b)]
    losses, reference = (
        epoch_means(each) if args.by_epoch else list(each.values()) for each in of_runs
    )
    unit, count = "epochs" if args.by_epoch else "steps", min(len(losses), len(reference))
    if len(losses) != len(reference):
        print(f"{len(losses)} and {len(reference)} {unit}; the first {count} of both are compared")
    runs = {f"A: {args.log_a}": losses, f"B: {args.log_b}": reference}
    draw(runs, unit.removesuffix("s"), args.output)
    if args.by_epoch:
        return 0 if judge_epochs(losses, reference) else EXIT_FAULT
    relative, absolute = errors_of(losses, reference)
    print(f"MeanRelativeError: {relative:.6f}")
    print(f"MeanAbsoluteError: {absolute:.6f}")
    passed = abs(relative) <= RELATIVE or abs(absolute) <= ABSOLUTE
    rule = f"|MeanRelativeError| <= {RELATIVE:g} or |MeanAbsoluteError| <= {ABSOLUTE:g}"
    print(f"{'pass' if passed else 'fail'} ({rule})")
    return 0 if passed else EXIT_FAULT


if __name__ == "__main__":
    run_main(main)
