"""Runs and their networks as a page shows them. Imports no framework."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

from src.arch.architecture import Architecture, load_architecture
from src.arch.blocks import AnyBlock
from src.arch.cost import Cost, Size, layer_costs, network_cost
from src.arch.cost_table import (
    ARITHMETIC_UNITS,
    UNIT,
    CostTable,
    arithmetic_table,
    load_table,
)
from src.arch.space import SKIP, AnySearchedLayer, SearchSpace, choice_name
from src.errors import UserError
from src.report.folders import Evaluated, Folder, Found, find_space, read_evaluation
from src.result_files import ARCH, BEST, IMAGES, INHERITED
from src.training.run_log import run_folder

MACS = ARITHMETIC_UNITS["macs"]
CLASSES = {"cifar10": 10, "digits": 10}  # where a run does not say; of others 1000, as of ImageNet

Options: TypeAlias = Mapping[str, Mapping[str, Any]]  # what a layer may be, by choice


@dataclass(frozen=True)
class Images:
    """The images of a run; None where its files do not say.

    Attributes:
        name: of the data set.
        path: of a folder of images.
        classes: how many.
        size: height and width in pixels.
    """

    name: str | None = None
    path: str | None = None
    classes: int | None = None
    size: Size | None = None

    def __str__(self) -> str:
        name = " ".join(filter(None, (self.name, self.path))) or "-"
        return f"{name} ({self.classes} classes)" if self.classes else name

    def differ(self, other: Images) -> bool:
        """Whether what is known of both is of different images, whatever their size."""
        mine, theirs = ((own.name, own.path, own.classes) for own in (self, other))
        pairs = zip(mine, theirs, strict=True)
        return any(None not in pair and pair[0] != pair[1] for pair in pairs)

    def cost(self, arch: Architecture) -> Cost:
        """Parameters and multiply-adds of a network for these images."""
        return network_cost(arch, self.outputs, self.size)

    @property
    def outputs(self) -> int:
        """Of the classifier."""
        return self.classes or CLASSES.get(self.name or "", 1000)


@dataclass(frozen=True)
class Layers:
    """What the layers of networks may be.

    Attributes:
        options: by layer; of each choice ``kernel``, ``ratio`` (expansion), ``channels``,
            ``stride`` and ``cost``.
        unit: of the costs.
        rest: what a network costs besides its layers.
    """

    options: Sequence[Options]
    unit: str
    rest: float


@dataclass(frozen=True)
class Network:
    """A network of a run; accuracies in percent.

    Attributes:
        kind: "evaluated", "chosen" or "trained".
        choices: of its layers, in ``layers``; empty where they are not known.
        cost: in the unit of its run.
        top1: what the run says of it; None where it did not validate.
        predicted: the same, by the regression.
        tested: the same, by eval.py on the validation images.
        answered: the same, by the C++ application.
        predicted_ms: milliseconds by the latency table.
        measured_ms: milliseconds in the table's verification.
        macs: multiply-adds, millions.
        params: parameters, millions.
        command: exports it.
        provenance: how it was found.
    """

    name: str
    kind: str
    cost: float
    top1: float | None
    choices: Sequence[str] = ()
    layers: Layers | None = None
    predicted: float | None = None
    tested: float | None = None
    answered: float | None = None
    predicted_ms: float | None = None
    measured_ms: float | None = None
    macs: float | None = None
    params: float | None = None
    command: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run on a page.

    Attributes:
        kind: for example "superkernel search".
        state: what is missing, empty of a run that has ended.
        unit: of the costs of its networks.
        images: what it was trained or evaluated on.
        layers: of the networks of its space.
        latency: the latency table that tells their milliseconds.
    """

    folder: Folder
    kind: str
    state: str
    unit: str
    images: Images
    networks: Sequence[Network] = ()
    space: SearchSpace | None = None
    layers: Layers | None = None
    latency: CostTable | None = None

    @property
    def label(self) -> str:
        """Names the run on the page."""
        return self.folder.label


def build_runs(found: Found) -> list[Run]:
    """Runs of what was found, networks with their costs.

    Raises:
        UserError: runs or tables do not belong together, or a file contradicts another.
    """
    spaces = {folder.space.name: folder.space for folder in found.folders if folder.space}
    runs = [_build(folder, spaces, found.tables) for folder in found.folders]
    _check_together(runs, found.tables)
    return runs


def _check_together(runs: Sequence[Run], tables: Mapping[str, CostTable]) -> None:
    for one, other in combinations(runs, 2):
        if one.images.differ(other.images):
            raise UserError(
                f"{one.folder.path} is of {one.images}, {other.folder.path} of {other.images}: "
                "accuracies of different images do not belong on one page; make a page of each"
            )
    spaces = {run.space.name for run in runs if run.space}
    for label, table in tables.items():
        if spaces and table.space not in spaces:
            raise UserError(
                f"{label}: a latency table of space '{table.space}', the runs are of "
                f"{', '.join(sorted(spaces))}; make a page of each"
            )


def images_of(folder: Folder) -> Images:
    """The images of a run."""
    config, settings = folder.config, folder.settings
    facts = settings.get(IMAGES) or folder.header.get(IMAGES) or {}
    names = (own.get("dataset_name") for own in (config, facts, settings))
    name = next(filter(None, names), None)
    classes = len(folder.counts.classes) if folder.counts else None
    side = config.get("image_height"), config.get("image_width")
    size = side if all(side) else facts.get("image_size")
    return Images(
        name,
        config.get("data_path") if name == "folder" else None,
        classes or config.get("num_classes") or facts.get("num_classes"),
        tuple(size) if size else None,
    )


def kind_of(folder: Folder) -> str:
    """What a run did."""
    if folder.front or "evaluations" in folder.settings:
        return "served networks"
    if folder.steps:
        return "superkernel search"
    if folder.paths:
        return "one-shot search"
    if folder.evaluated:
        return "evaluated networks"
    if folder.space and folder.config.get("space"):
        return "one-shot supernet" if folder.space.one_shot else "elastic supernet"
    return "training"


def state_of(folder: Folder, kind: str) -> str:
    """What a run has not done yet; empty of one that has ended."""
    epochs = folder.config.get("epoch_size")
    done = max((point.progress for point in folder.points), default=0.0)
    if folder.points and epochs and done < epochs:
        return f"{done:.3g} of {epochs} epochs so far: stopped, or still being written"
    if kind == "served networks" and folder.front is None:
        return (
            f"{len(folder.evaluated)} of {folder.settings['evaluations']} networks evaluated so "
            "far: stopped, or still being written"
        )
    if kind in ("superkernel search", "one-shot search") and folder.arch is None:
        return f"no {ARCH} yet: stopped, or still being written"
    return ""


def _build(
    folder: Folder, spaces: Mapping[str, SearchSpace], tables: Mapping[str, CostTable]
) -> Run:
    kind = kind_of(folder)
    named = [folder.header.get("space")]
    named += [folder.arch.provenance.get("space")] if folder.arch else []
    space = folder.space or next(filter(None, (find_space(name, spaces) for name in named)), None)
    images = images_of(folder)
    latency = _find_latency(folder, space, tables)
    layers = space_layers(space, latency, images) if space else None
    unit = _unit(folder)
    run = Run(folder, kind, state_of(folder, kind), unit, images, (), space, layers, latency)
    makers = [_served, _evaluated, _paths, _own]
    networks = [network for make in makers for network in make(run)]
    return replace(run, networks=networks)


def _find_latency(
    folder: Folder, space: SearchSpace | None, tables: Mapping[str, CostTable]
) -> CostTable | None:
    """The latency table of a run: its own, the one it names, or one of its space on the page."""
    if folder.costs and folder.costs.unit == UNIT:
        return folder.costs
    if space is None:
        return None
    fitting = [t for t in tables.values() if (t.space, t.unit) == (space.name, UNIT)]
    named = folder.settings.get("latency_table")
    if named is None:
        return next(iter(fitting), None)
    costs = folder.settings.get("costs")  # older files do not say what the table held
    same = [
        table
        for table in fitting
        if (table.digest() == costs if costs else table.name == Path(named).stem)
    ]
    try:
        table = same[0] if same else load_table(named, space)
    except UserError:  # it lies elsewhere now, and one of another device would not be its own
        return None
    return table if costs in (None, table.digest()) else None


def _unit(folder: Folder) -> str:
    if folder.front:
        return folder.front.unit
    if folder.costs:
        return folder.costs.unit
    if folder.arch and "unit" in folder.arch.provenance and not folder.config:
        return folder.arch.provenance["unit"]
    cost = folder.settings.get("cost", "macs")
    return UNIT if cost == "latency" else ARITHMETIC_UNITS[cost]


def _option(block: AnyBlock | None, cost: float) -> dict[str, Any]:
    if block is None:
        return {"kernel": 0, "ratio": 0, "channels": 0, "stride": 1, "cost": cost}
    return {
        "kernel": block.kernel_size,
        "ratio": round(block.mid_channels / block.in_channels, 3),
        "channels": block.out_channels,
        "stride": block.stride,
        "cost": cost,
    }


def space_layers(space: SearchSpace, latency: CostTable | None, images: Images) -> Layers:
    """The layers of a space, with milliseconds of a table, or multiply-adds without one."""
    table = latency or arithmetic_table(space, "macs", images.outputs, images.size)
    entries = iter(table.layers.values())
    options: list[Options] = []
    for layer in space.layers:
        if isinstance(layer, AnySearchedLayer):
            costs = next(entries)
            options.append(
                {
                    name: _option(None if name == SKIP else layer.block(name), costs[name])
                    for name in layer.names
                }
            )
        else:
            options.append({"fixed": _option(layer, 0.0)})  # a part of the table's constant
    return Layers(options, table.unit, table.constant)


def arch_layers(arch: Architecture, images: Images) -> tuple[list[str], Layers]:
    """Choices and layers of a network of no space, with multiply-adds."""
    found = layer_costs(arch, images.outputs, images.size)
    costs = {name: cost.macs / 1e6 for name, cost in found}
    choices, options = [], []
    for index, block in enumerate(arch.blocks):
        option = _option(block, costs.pop(f"blocks.{index}"))
        choices.append(choice_name(block.kernel_size, option["ratio"]))
        options.append({choices[-1]: option})
    return choices, Layers(options, MACS, sum(costs.values()))


def all_choices(space: SearchSpace, decisions: Sequence[str]) -> list[str]:
    """The choice of each layer, fixed ones included."""
    space.check(decisions)
    rest = iter(decisions)
    return [
        next(rest) if isinstance(layer, AnySearchedLayer) else "fixed" for layer in space.layers
    ]


def verified(table: CostTable) -> Mapping[str, Mapping[str, Any]]:
    """Networks of the verification of a latency table, by name."""
    return table.provenance.get("verification", {}).get("measured", {})


def machine_factor(table: CostTable) -> float:
    """How slow the machine was at the verification of a table, relative to the table."""
    return table.provenance.get("verification", {}).get("machine_factor", 1.0)


def _measured_ms(run: Run, decisions: Sequence[str]) -> float | None:
    if run.latency:
        for facts in verified(run.latency).values():
            if facts["decisions"].split() == list(decisions):
                return facts["median_ms"]
    return None


def _of_decisions(
    run: Run, decisions: Sequence[str], arch: Architecture | None = None
) -> dict[str, Any]:
    """What follows from the decisions of a network; ``arch`` is what they derive."""
    assert run.space
    cost = run.images.cost(arch or run.space.derive(decisions, "network"))
    return {
        "choices": all_choices(run.space, decisions),
        "layers": run.layers,
        "macs": cost.macs / 1e6,
        "params": cost.params / 1e6,
        "predicted_ms": run.latency.total(decisions) if run.latency else None,
        "measured_ms": _measured_ms(run, decisions),
    }


def export_command(checkpoint: Path, name: str) -> str | None:
    """The command that exports a checkpoint beside it, None where there is none."""
    if not checkpoint.is_file():
        return None
    words = ["--ckpt_file", str(checkpoint), "--file_name", str(checkpoint.parent / name)]
    return shlex.join(["python", "export.py", *words])


def read_answers(place: Path) -> float | None:
    """Top-1 in percent that the C++ application has written beside a network."""
    file = place / "acc.log"
    if not file.is_file():
        return None
    found = re.search(r"top1 accuracy: ([\d.]+),", file.read_text(encoding="utf-8"))
    return 100 * float(found[1]) if found else None


def _served(run: Run) -> Iterator[Network]:
    """The networks of a front."""
    for row in run.folder.front.networks if run.folder.front else ():
        # In a folder that was moved; that of a single limit holds it itself.
        place = run.folder.path / Path(row.arch).parent.name
        place = place if (place / ARCH).is_file() else run.folder.path
        arch = load_architecture(place / ARCH)
        decisions = arch.provenance.get("decisions", ())
        facts = _of_decisions(run, decisions, arch) if run.space else {}
        yield Network(
            **{
                **facts,
                "name": arch.name,
                "kind": "chosen",
                "cost": row.cost,
                "top1": row.top1,
                "predicted": row.predicted,
                "tested": read_evaluation(place)[0],
                "answered": read_answers(place),
                "macs": row.macs,
                "params": row.params,
                "command": export_command(place / INHERITED, "spnas"),
                "provenance": arch.provenance,
            }
        )


def _cost(run: Run, line: Evaluated, facts: Mapping[str, Any]) -> float | None:
    """Cost of an evaluated network in the unit of its run."""
    return {MACS: line.macs, UNIT: facts.get("predicted_ms")}.get(run.unit, facts.get("params"))


def _evaluated(run: Run) -> Iterator[Network]:
    """The evaluated networks of a supernet."""
    for number, line in enumerate(run.folder.evaluated, start=1):
        facts = _of_decisions(run, line.decisions) if run.space else {}
        cost = _cost(run, line, facts)
        if cost is not None:
            facts = {**facts, "macs": line.macs}
            yield Network(f"evaluated {number}", "evaluated", cost, line.top1, **facts)


def _paths(run: Run) -> Iterator[Network]:
    """The evaluated paths of a one-shot search."""
    for number, line in enumerate(run.folder.paths, start=1):
        facts: dict[str, Any] = {}
        if run.space and run.space.one_shot:
            names = [layer.names for layer in run.space.block_layers]
            decisions = [own[choice] for own, choice in zip(names, line.path, strict=True)]
            facts = _of_decisions(run, decisions)
        yield Network(f"path {number}", "evaluated", line.cost, line.top1, **facts)


def _own(run: Run) -> Iterator[Network]:
    """The network that was trained, or that a search has found."""
    folder, arch = run.folder, run.folder.arch
    if arch is None or folder.front:
        return
    found = bool(folder.steps or folder.paths)
    validated = [point.top1 for point in folder.points if point.kind == "val"]
    # A search leaves its last weights, a training is exported from its best checkpoint.
    if validated:
        top1: float | None = validated[-1] if found else max(validated)
    else:
        top1 = arch.provenance.get("top1") if found else folder.top1
    decisions = arch.provenance.get("decisions")
    if run.space and decisions:
        facts = _of_decisions(run, decisions, arch)
    else:
        choices, layers = arch_layers(arch, run.images)
        cost = run.images.cost(arch)
        facts = {"choices": choices, "layers": layers}
        facts |= {"macs": cost.macs / 1e6, "params": cost.params / 1e6}
    place = folder.path if found else run_folder(folder.path)
    checkpoint = place / (INHERITED if found else BEST)
    yield Network(
        **facts,
        name=arch.name,
        kind="chosen" if found else "trained",
        cost=arch.provenance["cost"] if found else facts["macs"],
        top1=top1,
        tested=folder.top1,
        command=export_command(checkpoint, arch.name),
        provenance=arch.provenance,
    )
