"""Pictures of trainings, by Matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from src.files import make_folder, whole

Line: TypeAlias = Mapping[str, Any]  # of a JSON-lines file of a run


def save(figure: Figure, path: Path) -> None:
    """Write a picture in one step, in the format of its suffix; makes its folder."""
    make_folder(path.parent)
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
