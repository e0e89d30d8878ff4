"""Compare the training losses of two runs.

    python scripts/loss.py runs/mine/ckpt_0/train.log reference.log

draws both curves (``--output loss.png``), prints the mean relative and the mean absolute error of
the first run's losses against the second's, both with their sign, and the verdict. It reads
``train.log`` and ``metrics.jsonl`` of this project, and any log with lines such as

    ... Epoch: 0 Iteration: 1 rank : 0 train.loss : 2.2649757862091064 train.ips : 2431.3 imgs/s

Steps are compared in their order; of a step that was logged twice, after a resume, the last line
counts. The exit code is 0 for pass, 1 for fail.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import EXIT_FAULT, UserError  # noqa: E402
from src.utils import run_main

RELATIVE, ABSOLUTE = 0.05, 0.0002
NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|nan|inf(?:inity)?)"
LINE = re.compile(
    rf"epoch\W+(\d+).*?\b(?:iteration|iter|step)\W+(\d+).*?\bloss\W*?({NUMBER})\b", re.I
)


def read_losses(path):
    """Training losses by (epoch, step), in order."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    losses = {}
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
    return [losses[step] for step in sorted(losses)]


def errors_of(losses, reference):
    """Mean relative and mean absolute error of one run against another."""
    differences = [a - b for a, b in zip(losses, reference)]
    relative = [difference / b for difference, b in zip(differences, reference) if b]
    return sum(relative) / max(len(relative), 1), sum(differences) / len(differences)


def draw(runs, path):
    """Draw the curves of some runs, by name."""
    from matplotlib.figure import Figure

    from src.drawing import save

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, losses in runs.items():
        axis.plot(range(1, len(losses) + 1), losses, linewidth=0.8, label=name)
    axis.set(xlabel="step", ylabel="training loss")
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log_a", help="log of the run to judge")
    parser.add_argument("log_b", help="log of the reference run")
    parser.add_argument(
        "--output", default="loss.png", help="picture of both curves (default: loss.png)"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    losses, reference = read_losses(args.log_a), read_losses(args.log_b)
    count = min(len(losses), len(reference))
    if len(losses) != len(reference):
        print(f"{len(losses)} and {len(reference)} steps; the first {count} of both are compared")
    draw({f"A: {args.log_a}": losses, f"B: {args.log_b}": reference}, Path(args.output))
    relative, absolute = errors_of(losses, reference)
    print(f"MeanRelativeError: {relative:.6f}")
    print(f"MeanAbsoluteError: {absolute:.6f}")
    passed = abs(relative) <= RELATIVE or abs(absolute) <= ABSOLUTE
    rule = f"|MeanRelativeError| <= {RELATIVE:g} or |MeanAbsoluteError| <= {ABSOLUTE:g}"
    print(f"{'pass' if passed else 'fail'} ({rule})")
    return 0 if passed else EXIT_FAULT


if __name__ == "__main__":
    run_main(main)
