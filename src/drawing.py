"""Pictures of runs, searches and networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from src.arch.blocks import Block
from src.arch.cost_table import CostTable
from src.arch.space import SKIP, SearchSpace

KERNEL_COLORS = {3: "#4c9be8", 5: "#f2a541", 7: "#d1495b"}
SKIP_COLOR = "#e8e8e8"


def save(figure: Figure, path: Path) -> None:
    """Write a picture, in the format of its suffix, whole or not at all."""
    scratch = path.with_name(f".{path.name}")
    figure.savefig(scratch, dpi=120, format=path.suffix[1:])
    scratch.replace(path)


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw training and validation loss, and both accuracies, over epochs."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, label in (("train", "training"), ("val", "validation")):
        chosen = [line for line in lines if line["kind"] == kind]
        epochs = [line["progress"] for line in chosen]
        style = {"marker": "o", "markersize": 3} if kind == "val" else {"linewidth": 1}
        left.plot(epochs, [line["loss"] for line in chosen], label=label, **style)
        right.plot(epochs, [line["top1"] for line in chosen], label=label, **style)
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="top-1 (%)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


def draw_comparison(groups: Mapping[str, Sequence[Sequence[dict[str, Any]]]], path: Path) -> None:
    """Draw validation top-1 and loss of runs over epochs, a colour for each group of runs."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (group, runs) in enumerate(groups.items()):
        for number, lines in enumerate(runs):
            epochs = [line["progress"] for line in lines]
            style = {
                "marker": "o",
                "markersize": 3,
                "color": f"C{index}",
                "label": None if number else group,
            }
            left.plot(epochs, [line["loss"] for line in lines], **style)
            right.plot(epochs, [line["top1"] for line in lines], **style)
    left.set(xlabel="epoch", ylabel="validation loss", yscale="log")
    right.set(xlabel="epoch", ylabel="validation top-1 (%)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


def draw_decisions(space: SearchSpace, decisions: Sequence[str], title: str, path: Path) -> None:
    """Draw a network: layers from left to right, colour by kernel size, height by expansion, gaps where skipped."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axis, rest, tallest = figure.subplots(), iter(decisions), 1.0
    for index, layer in enumerate(space.layers):
        block = layer
        if not isinstance(layer, Block):
            choice = next(rest)
            block = None if choice == SKIP else layer.block(choice)
        if layer.stride == 2:
            axis.axvline(index - 0.5, color="#999999", linewidth=0.8, linestyle=":")
        if block is None:
            axis.plot([index - 0.4, index + 0.4], [0, 0], color="#999999", linewidth=2)
            continue
        tallest = max(tallest, block.expansion)
        axis.add_patch(
            Rectangle(
                (index - 0.4, 0),
                0.8,
                block.expansion,
                facecolor=KERNEL_COLORS[block.kernel_size],
                edgecolor="#444444",
            )
        )
        axis.text(
            index,
            block.expansion + 0.1,
            str(block.out_channels),
            ha="center",
            va="bottom",
            fontsize=7,
        )
    axis.set(
        xlim=(-0.7, len(space.layers) - 0.3),
        ylim=(-0.2, tallest + 1),
        xlabel="layer (output channels above, dotted where the resolution halves)",
        ylabel="expansion ratio",
        title=title,
    )
    axis.set_xticks(range(len(space.layers)))
    axis.legend(
        handles=[
            Patch(facecolor=color, edgecolor="#444444", label=f"{size}x{size}")
            for size, color in KERNEL_COLORS.items()
        ],
        loc="upper left",
        ncol=3,
        fontsize=8,
        frameon=False,
    )
    save(figure, path)


def draw_search(
    history: list[dict[str, Any]],
    space: SearchSpace,
    table: CostTable,
    target: float | None,
    path: Path,
) -> None:
    """Draw cross-entropy, cost against the target, and when each decision changed, over steps."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    loss, cost, flips = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.6))
    steps = np.arange(1, len(history) + 1)
    loss.plot(steps, [line["cross_entropy"] for line in history], linewidth=0.8)
    loss.set(ylabel="cross-entropy")
    cost.plot(steps, [line["cost"] for line in history], linewidth=1)
    if target is not None:
        cost.axhline(
            target, color="#d1495b", linestyle="--", linewidth=1, label=f"target {target:g}"
        )
        cost.legend(frameon=False)
    cost.set(ylabel=table.unit)
    names = sorted(
        {name for layer in space.searched.values() for name in layer.names if name != SKIP}
    ) + [SKIP]
    rows = np.array([[names.index(choice) for choice in line["decisions"]] for line in history]).T
    shades = [
        (*_rgb(KERNEL_COLORS[int(name[1])]), 0.35 + 0.65 * _rank(name, names))
        for name in names[:-1]
    ]
    picture = flips.imshow(
        rows,
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, len(history) + 0.5, len(rows), 0),
        cmap=ListedColormap([*shades, SKIP_COLOR]),
        norm=BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names)),
    )
    flips.set(xlabel="step", ylabel="searched layer")
    flips.set_yticks(
        np.arange(len(rows)) + 0.5,
        [name.replace("layer", "") for name in space.searched],
        fontsize=7,
    )
    bar = figure.colorbar(picture, ax=flips, ticks=range(len(names)), location="bottom", shrink=0.6)
    bar.ax.set_xticklabels(names)
    for axis in (loss, cost):
        axis.grid(alpha=0.3)
    save(figure, path)


def draw_path_search(history: list[dict[str, Any]], strategy: str, unit: str, path: Path) -> None:
    """Draw the top-1 of paths: as a histogram, or over the generations of an evolution, and over their cost."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    scores = [line["top1"] for line in history]
    if strategy == "random":
        left.hist(scores, bins=min(40, max(5, len(scores) // 5)), color="#4c9be8")
        left.axvline(
            max(scores), color="#d1495b", linestyle="--", label=f"best {max(scores):.2f} %"
        )
        left.set(xlabel="top-1 (%)", ylabel="paths")
    else:
        generations = [line["generation"] for line in history]
        left.scatter(generations, scores, s=8, alpha=0.5)
        left.step(
            generations,
            np.maximum.accumulate(scores),
            where="post",
            color="#d1495b",
            label=f"best {max(scores):.2f} %",
        )
        left.set(xlabel="generation", ylabel="top-1 (%)")
        left.xaxis.get_major_locator().set_params(integer=True)
    right.scatter([line["cost"] for line in history], scores, s=8, alpha=0.5)
    right.set(xlabel=unit, ylabel="top-1 (%)")
    left.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save(figure, path)


def _rgb(color: str) -> tuple[float, ...]:
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _rank(name: str, names: Sequence[str]) -> float:
    """Place of a choice among those of its kernel size, from 0 to 1."""
    same = [other for other in names if other[:2] == name[:2]]
    return same.index(name) / max(len(same) - 1, 1)


def draw_pareto(rows: Sequence[dict[str, Any]], unit: str, path: Path) -> None:
    """Draw validation top-1 over cost for the networks of a sweep."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    ordered = sorted(rows, key=lambda row: row["cost"])
    axis.plot([row["cost"] for row in ordered], [row["top1"] for row in ordered], marker="o")
    for row in ordered:
        axis.annotate(
            f"{row['target']:g}",
            (row["cost"], row["top1"]),
            textcoords="offset points",
            xytext=(5, -12),
        )
    axis.set(xlabel=unit, ylabel="top-1 of the found network with inherited weights (%)")
    axis.grid(alpha=0.3)
    save(figure, path)


def draw_verdict(networks: Mapping[str, tuple[float, float]], title: str, path: Path) -> None:
    """Draw predicted over measured milliseconds of networks by name; shaded is 5 % to either side."""
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axis = figure.subplots()
    ends = np.array(
        [0.9 * min(map(min, networks.values())), 1.1 * max(map(max, networks.values()))]
    )
    axis.fill_between(ends, 0.95 * ends, 1.05 * ends, color="#e8e8e8", linewidth=0)
    axis.plot(ends, ends, color="#999999", linewidth=0.8)
    for label, color, random in (
        ("random", KERNEL_COLORS[3], True),
        ("shipped", KERNEL_COLORS[7], False),
    ):
        chosen = [pair for name, pair in networks.items() if name.startswith("random") is random]
        axis.scatter(
            [measured for _, measured in chosen],
            [predicted for predicted, _ in chosen],
            s=18,
            color=color,
            label=label,
            zorder=2,
        )
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
    """Draw the entries of tables of one space: a row a table, a group of bars a layer, a bar a choice."""
    figure = Figure(figsize=(12, 2.6 * len(tables)), layout="constrained")
    for axis, table in zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables):
        names = sorted(
            {name for entries in table.layers.values() for name in entries if name != SKIP}
        )
        width, places = 0.8 / len(names), np.arange(len(table.layers))
        for index, name in enumerate(names):
            costs = [entries.get(name, 0.0) for entries in table.layers.values()]
            color = (*_rgb(KERNEL_COLORS[int(name[1])]), 0.35 + 0.65 * _rank(name, names))
            axis.bar(
                places + (index - (len(names) - 1) / 2) * width,
                costs,
                width,
                label=name,
                color=color,
            )
        axis.set(
            ylabel=table.unit,
            title=f"{table.name}: {table.device}, {table.runtime}; constant {table.constant:.3g} ms",
        )
        axis.set_xticks(
            range(len(table.layers)), [name.replace("layer", "") for name in table.layers]
        )
        axis.grid(alpha=0.3, axis="y")
        axis.legend(frameon=False, ncol=len(names), fontsize=8)
    axis.set(xlabel="searched layer")
    save(figure, path)
