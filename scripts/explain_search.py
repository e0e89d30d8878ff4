r"""Did the parts of a network fall in the order of their importance?

    python scripts/evaluate_subnets.py --ckpt runs/search/ckpt_0/cifar10-4_156.ckpt --parts true \
        --out parts.jsonl
    python scripts/explain_search.py runs/search parts.jsonl --out explained.png

The first command measures, in the supernet before the cost counts, the accuracy of the largest
network without each of its parts. The second one draws the accuracy that a part gives, per million
multiply-adds, over the step from which the search has it switched off, and prints Kendall's tau of
the two.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.arch.cost_table import CostTable, arithmetic_table
from src.arch.space import SKIP, SearchSpace
from src.cli import Parser, picture_file
from src.errors import UserError
from src.files import read_json, read_jsonl
from src.result_files import HISTORY, SPACE
from src.search.indicators import (
    indicator_costs,
    part_name,
    to_indicators,
    without_parts,
)
from src.training.run_log import image_size, run_folder
from src.utils import run_main

log = logging.getLogger(__name__)

Place = tuple[int, int]  # of an indicator


def fallen(space: SearchSpace, history: Sequence[Mapping[str, Any]]) -> dict[Place, int]:
    """The step from which each indicator stays off, (number of steps + 1) for those that stay on.

    Of a skipped layer only the indicator of its presence is known; the others are as they were.
    """
    found = dict.fromkeys(without_parts(space), 1)
    for step, line in enumerate(history, start=1):
        indicators = to_indicators(space, line["decisions"])
        skipped = [choice == SKIP for choice in line["decisions"]]
        for row, column in found:
            if indicators[row, column] and not skipped[row]:
                found[row, column] = step + 1
    return found


def gains(
    space: SearchSpace, table: CostTable, lines: Sequence[Mapping[str, Any]]
) -> dict[Place, float]:
    """Points of accuracy that each part gives to the largest network, per unit of its cost."""
    top1 = {tuple(line["decisions"]): line["top1"] for line in lines if "decisions" in line}
    whole, costs = space.largest_choices, indicator_costs(space, table)
    try:
        return {
            place: (top1[whole] - top1[without]) / costs[place]
            for place, without in without_parts(space).items()
        }
    except KeyError as error:
        network = " ".join(error.args[0])
        raise UserError(
            f"the accuracies lack the network {network}; scripts/evaluate_subnets.py --parts true "
            "gives them all"
        ) from None


def draw(
    space: SearchSpace, steps: Mapping[Place, int], worth: Mapping[Place, float], path: Path
) -> None:
    """A point for each part: when it fell, and what it gives."""
    # Importing Matplotlib takes a second, which mistakes are spared.
    from matplotlib.figure import Figure

    from src.drawing import save

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis, end = figure.subplots(), max(steps.values())
    for place, step in steps.items():
        stays = step == end
        axis.plot(step, worth[place], marker="o" if stays else "v", color="C0" if stays else "C3")
        axis.annotate(
            part_name(space, place),
            (step, worth[place]),
            xytext=(5, 3),
            textcoords="offset points",
            fontsize=7,
        )
    axis.margins(x=0.12)  # room for the names at the end
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set(
        xlabel="step from which the part is off", ylabel="top-1 points per million multiply-adds"
    )
    axis.set_title("circles: parts of the found network", fontsize=9)
    save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    from scipy.stats import kendalltau

    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a superkernel search")
    parser.add_argument("accuracies", type=Path, help="of scripts/evaluate_subnets.py --parts true")
    parser.add_argument("--out", type=picture_file, default="explained.png", help="the picture")
    args = parser.parse_args(argv)
    file = run_folder(args.run) / SPACE
    space = SearchSpace.from_dict(read_json(file), str(file))
    table = arithmetic_table(space, "macs", image_size=image_size(args.run))
    history = read_jsonl(args.run / HISTORY)
    if not history:
        raise UserError(f"{args.run / HISTORY}: holds no steps of a superkernel search")
    steps = fallen(space, history)
    worth = gains(space, table, read_jsonl(args.accuracies))
    draw(space, steps, worth, args.out)
    for place in sorted(steps, key=lambda place: steps[place]):
        log.info("%-14s step %5d  %+.3f", part_name(space, place), steps[place], worth[place])
    places = list(steps)
    tau = kendalltau([steps[place] for place in places], [worth[place] for place in places])
    log.info("Kendall's tau %.2f of %d parts; %s", tau.statistic, len(places), args.out)
    return 0


if __name__ == "__main__":
    run_main(main)
