"""Pictures of trainings, path searches and tables, by Matplotlib without a display."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from src.arch.cost_table import CostTable
from src.arch.space import SKIP, layer_index
from src.files import whole

# One colour per kernel size in all pictures; choices of one size differ in opacity.
KERNEL_COLORS = {3: "#4c9be8", 5: "#f2a541", 7: "#d1495b"}
XCEPTION_COLOR = "#5b9a68"
SKIP_COLOR = "#e8e8e8"
LINE_COLOR = "#999999"

RGBA: TypeAlias = tuple[float, float, float, float]
Line: TypeAlias = Mapping[str, Any]  # of a JSON-lines file of a run


def save(figure: Figure, path: Path) -> None:
    """Write a picture in one step, in the format of its suffix."""
    with whole(path) as scratch:
        figure.savefig(scratch, dpi=120, format=path.suffix[1:])


def draw_curves(lines: Sequence[Line], path: Path) -> None:
    """Draw training and validation loss, and both accuracies, over epochs.

    Of a supernet's networks a band shows the accuracies from the smallest to the largest.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, label in (("train", "training"), ("val", "validation")):
        chosen = [line for line in lines if line["kind"] == kind]
        epochs = [line["progress"] for line in chosen]
        # Validations are few: points show where they are.
        style: dict[str, Any] = {"linewidth": 1}
        if kind == "val":
            style = {"marker": "o", "markersize": 3}
        left.plot(epochs, [line["loss"] for line in chosen], label=label, **style)
        right.plot(epochs, [line["top1"] for line in chosen], label=label, **style)
    band = [line for line in lines if "top1_smallest" in line]
    if band:
        smallest, largest = (
            [line[f"top1_{name}"] for line in band] for name in ("smallest", "largest")
        )
        label = "smallest to largest network"
        epochs = [line["progress"] for line in band]
        right.fill_between(epochs, smallest, largest, alpha=0.2, color="C1", label=label)
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="top-1 (%)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


def draw_comparison(groups: Mapping[str, Sequence[Sequence[Line]]], path: Path) -> None:
    """Draw validation top-1 and loss of runs over epochs, one colour per group of runs."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (group, runs) in enumerate(groups.items()):
        for number, lines in enumerate(runs):
            epochs = [line["progress"] for line in lines]
            style = {
                "marker": "o",
                "markersize": 3,
                "color": f"C{index}",  # of Matplotlib's colour cycle
                "label": None if number else group,  # one entry of the legend per group
            }
            left.plot(epochs, [line["loss"] for line in lines], **style)
            right.plot(epochs, [line["top1"] for line in lines], **style)
    left.set(xlabel="epoch", ylabel="validation loss", yscale="log")
    right.set(xlabel="epoch", ylabel="validation top-1 (%)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


def draw_path_search(history: Sequence[Line], strategy: str, unit: str, path: Path) -> None:
    """Draw the top-1 of the paths of a one-shot search, and over their cost.

    Args:
        history: the evaluated paths.
        strategy: "random" gives a histogram of top-1, any other top-1 over the generations.
        unit: of the cost.
        path: the picture to write.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    scores = [line["top1"] for line in history]
    best: dict[str, Any] = {"color": KERNEL_COLORS[7], "label": f"best {max(scores):.2f} %"}
    if strategy == "random":
        # About five paths per bar, within limits that can be seen.
        left.hist(scores, bins=min(40, max(5, len(scores) // 5)), color=KERNEL_COLORS[3])
        left.axvline(max(scores), linestyle="--", **best)
        left.set(xlabel="top-1 (%)", ylabel="paths")
    else:
        generations = [line["generation"] for line in history]
        left.scatter(generations, scores, s=8, alpha=0.5)
        # Paths are in the order of their evaluation, so this is the best one so far.
        left.step(generations, np.maximum.accumulate(scores), where="post", **best)
        left.set(xlabel="generation", ylabel="top-1 (%)")
        left.xaxis.get_major_locator().set_params(integer=True)
    right.scatter([line["cost"] for line in history], scores, s=8, alpha=0.5)
    right.set(xlabel=unit, ylabel="top-1 (%)")
    left.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save(figure, path)


def _choices(names: Iterable[Iterable[str]]) -> list[str]:
    """All choices of the layers of a space in alphabetical order, without SKIP."""
    return sorted({name for choices in names for name in choices} - {SKIP})


def _color(name: str, choices: Sequence[str]) -> RGBA:
    """Colour of a choice such as K5E6: that of its kernel size, stronger for larger expansions."""
    if name == "X":
        return to_rgba(XCEPTION_COLOR)
    same = [other for other in choices if other[:2] == name[:2]]
    rank = same.index(name) / max(len(same) - 1, 1)  # from 0 to 1
    return to_rgba(KERNEL_COLORS[int(name[1])], 0.35 + 0.65 * rank)


def draw_verdict(networks: Mapping[str, tuple[float, float]], title: str, path: Path) -> None:
    """Draw predicted over measured milliseconds; shaded is 5 % to either side of equality.

    Args:
        networks: predicted and measured milliseconds by name; names of random networks start with
            "random".
        title: of the picture.
        path: the picture to write.
    """
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axis = figure.subplots()
    # Both axes have the same ends, so that equality is the diagonal.
    values = [value for pair in networks.values() for value in pair]
    ends = np.array([0.9 * min(values), 1.1 * max(values)])
    axis.fill_between(ends, 0.95 * ends, 1.05 * ends, color=SKIP_COLOR, linewidth=0)
    axis.plot(ends, ends, color=LINE_COLOR, linewidth=0.8)
    for label, color, random in (
        ("random", KERNEL_COLORS[3], True),
        ("shipped", KERNEL_COLORS[7], False),
    ):
        chosen = [pair for name, pair in networks.items() if name.startswith("random") is random]
        measured = [measured for _, measured in chosen]
        predicted = [predicted for predicted, _ in chosen]
        axis.scatter(measured, predicted, s=18, color=color, label=label, zorder=2)
    axis.set(
        xlabel="measured (ms)",
        ylabel="predicted by the table (ms)",
        title=title,
        xlim=ends,
        ylim=ends,
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    save(figure, path)


def draw_tables(tables: Sequence[CostTable], path: Path) -> None:
    """Draw the entries of tables of one space.

    One row of the picture per table, one group of bars per layer, one bar per choice.
    """
    figure = Figure(figsize=(12, 2.6 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    for axis, table in zip(axes, tables, strict=True):
        choices = _choices(table.layers.values())
        width, places = 0.8 / len(choices), np.arange(len(table.layers))
        for index, name in enumerate(choices):
            costs = [entries.get(name, 0.0) for entries in table.layers.values()]
            # The bars of a group stand side by side around the layer's place.
            offset = (index - (len(choices) - 1) / 2) * width
            axis.bar(places + offset, costs, width, label=name, color=_color(name, choices))
        axis.set(
            ylabel=table.unit,
            title=f"{table.name}: {table.device}, {table.runtime}; "
            f"constant {table.constant:.3g} ms",
        )
        axis.set_xticks(places, [str(layer_index(name)) for name in table.layers])
        axis.grid(alpha=0.3, axis="y")
        axis.legend(frameon=False, ncol=len(choices), fontsize=8)
    axes[-1].set(xlabel="searched layer")
    save(figure, path)
