"""What runs have left in their folders, read and checked. Imports no framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from src.arch.architecture import Architecture, load_architecture
from src.arch.cost_table import FORMAT as TABLE_FORMAT
from src.arch.cost_table import SHIPPED as SHIPPED_TABLES
from src.arch.cost_table import VERSION as TABLE_VERSION
from src.arch.cost_table import CostTable, CostTableError
from src.arch.space import SearchSpace, SpaceError, load_space
from src.errors import UserError
from src.files import check_header, parse_record, read_json, read_jsonl, read_yaml
from src.latency.runtimes import COMPARISON_FORMAT, COMPARISON_VERSION
from src.result_files import (
    ACCURACIES,
    ACCURACIES_FORMAT,
    ACCURACIES_VERSION,
    ARCH,
    CONFIG,
    FRONT,
    HISTORY,
    METRICS,
    PATHS,
    RUN,
    SEARCH,
    SERVE,
    SPACE,
    TABLE,
)
from src.training.classes import CLASSES, ClassCounts, OfClass
from src.training.run_log import run_folder

T = TypeVar("T")

DEPTH = 3  # folders within a folder: quick start, served, target_2, finetuned
NO_RUNS = (RUN, "result_Files", "time_Result")  # what programs write beside runs
IMAGES_OF_RUNS = ("train", "val", "test")  # in the folder of a run: very many files, but no run


@dataclass(frozen=True)
class Point:
    """A line of metrics.jsonl; accuracies in percent.

    Attributes:
        kind: "train" or "val".
        progress: epochs so far.
        top1_smallest: of the smallest network of an elastic supernet.
        top1_largest: of its largest network.
    """

    kind: str
    progress: float
    loss: float
    top1: float
    top1_smallest: float | None = None
    top1_largest: float | None = None


@dataclass(frozen=True)
class Step:
    """A line of the history of a superkernel search."""

    cross_entropy: float
    cost: float
    decisions: tuple[str, ...]


@dataclass(frozen=True)
class EvaluatedPath:
    """A line of the history of a one-shot search; all of a random search are of generation 0."""

    path: tuple[int, ...]
    cost: float
    top1: float
    generation: int = 0


@dataclass(frozen=True)
class Evaluated:
    """A network in a file of accuracies; multiply-adds in millions."""

    decisions: tuple[str, ...]
    macs: float
    top1: float


@dataclass(frozen=True)
class Served:
    """A network of front.json; accuracies in percent, multiply-adds and parameters in millions."""

    target: float
    cost: float
    top1: float
    predicted: float
    error: float | None
    macs: float
    params: float
    arch: str


@dataclass(frozen=True)
class Front:
    """What front.json holds."""

    unit: str
    networks: tuple[Served, ...]


@dataclass(frozen=True)
class Folder:
    """What a run has left: of each file its contents, empty where it is not there.

    Attributes:
        label: names the run on the page.
        group: runs of a sweep have one.
        arch: what a search found, or what was trained.
        settings: of a search in a trained supernet.
        costs: what the choices of a search cost.
        header: first line of the accuracies, which says whose they are.
        top1: percent, by eval.py.
        classes: the same by class.
        counts: images of each class.
    """

    path: Path
    label: str
    group: str
    points: Sequence[Point] = ()
    steps: Sequence[Step] = ()
    paths: Sequence[EvaluatedPath] = ()
    evaluated: Sequence[Evaluated] = ()
    header: Mapping[str, Any] = field(default_factory=dict)
    front: Front | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    arch: Architecture | None = None
    space: SearchSpace | None = None
    costs: CostTable | None = None
    top1: float | None = None
    classes: Sequence[OfClass] = ()
    counts: ClassCounts | None = None

    @property
    def shows_something(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.points or self.steps or self.paths or self.evaluated or self.front)

    @property
    def is_run(self) -> bool:
        """Whether a run has begun here, though it may not have come to its first result."""
        return self.shows_something or bool(self.config or self.settings)


@dataclass(frozen=True)
class RuntimeOutcome:
    """A runtime in a comparison; agreement with the network and top-1 in percent."""

    runtime: str
    precision: str
    threads: int
    median_ms: float
    p90_ms: float
    spread: float
    file_bytes: int
    largest_difference: float
    agreement: float
    top1: float | None


@dataclass(frozen=True)
class Runtimes:
    """A comparison of runtimes on one network.

    Attributes:
        network_top1: percent; None for images without labels.
        left_out: reasons, by the title of what could not be compared.
    """

    model: str
    images: str
    image_count: int
    batch_size: int
    rounds: int
    device: str
    date: str
    network_top1: float | None
    runtimes: tuple[RuntimeOutcome, ...]
    left_out: Mapping[str, str]
    advice: str


@dataclass(frozen=True)
class Found:
    """Runs, latency tables and comparisons of runtimes; the latter two by label."""

    folders: Sequence[Folder] = ()
    tables: Mapping[str, CostTable] = field(default_factory=dict)
    runtimes: Mapping[str, Runtimes] = field(default_factory=dict)

    def __add__(self, other: Found) -> Found:
        return Found(
            [*self.folders, *other.folders],
            {**self.tables, **other.tables},
            {**self.runtimes, **other.runtimes},
        )

    @property
    def labels(self) -> list[str]:
        """Of everything."""
        return [*(folder.label for folder in self.folders), *self.tables, *self.runtimes]


def find(names: Sequence[str], depth: int = DEPTH) -> Found:
    """Everything that a page is asked for.

    Args:
        names: folders of runs, or of folders of runs, latency tables (files, or shipped ones by
            name), accuracies of networks, and comparisons of runtimes.
        depth: how deep within the folders runs are looked for.

    Raises:
        UserError: a name is given twice, or holds nothing that can be shown.
    """
    all_found, seen = Found(), set[Path]()
    for name in names:
        path, shipped = Path(name), SHIPPED_TABLES / f"{name}.json"
        if not path.exists() and shipped.is_file():
            path = shipped
        if not _is_new(path, seen):
            raise UserError(f"{path}: is given twice, by itself or within a folder that is given")
        label = _new_label(path.resolve(), all_found.labels)
        if path.is_file():
            found = _read_file(path, label)
        elif path.is_dir():
            found = _search(path, label, label, depth, seen)
            _check_found(path, found)
        else:
            raise UserError(f"{path}: no such folder or file")
        all_found += found
    folders = [folder for folder in all_found.folders if folder.shows_something]
    spaces = {folder.space.name: folder.space for folder in folders if folder.space}
    tables = {
        label: table.for_space(space, label)
        if (space := find_space(table.space, spaces))
        else table
        for label, table in all_found.tables.items()
    }
    return replace(all_found, folders=folders, tables=tables)


def _is_new(path: Path, seen: set[Path]) -> bool:
    """Whether a file or the run of a folder was not there before; notes that it is now."""
    place = run_folder(path).resolve()
    if place in seen:
        return False
    seen.add(place)
    return True


def _new_label(place: Path, labels: Sequence[str]) -> str:
    """The last parts of a path, as many as tell it from what has a label already."""
    parts = place.parts
    names = (str(Path(*parts[-count:])) for count in range(1, len(parts) + 1))
    return next(
        name
        for name in names
        # What lies in a folder has labels that begin with the folder's.
        if not any(label == name or label.startswith(f"{name}/") for label in labels)
    )


def find_space(
    name: str | None, spaces: Mapping[str, SearchSpace] | None = None
) -> SearchSpace | None:
    """A space by name: of the runs, or shipped; None where it is neither."""
    if name is None:
        return None
    if spaces and name in spaces:
        return spaces[name]
    try:
        return load_space(name)
    except SpaceError:
        return None


def _check_found(path: Path, found: Found) -> None:
    if found.tables or found.runtimes or any(folder.shows_something for folder in found.folders):
        return
    if found.folders:
        raise UserError(
            f"{found.folders[0].path}: a run that has no result yet; try again after its first "
            "epoch or its first network"
        )
    raise UserError(
        f"{path}: holds no run, none of {METRICS}, {HISTORY}, {FRONT}, {ACCURACIES}, "
        f"{PATHS}, no latency table and no comparison of runtimes"
    )


def _read_file(path: Path, label: str) -> Found:
    if path.suffix == ".json":
        return _read_json(path, label)
    try:
        header, lines = _accuracies(path)
    except UserError:
        if path.suffix == Path(ACCURACIES).suffix:  # accuracies, if damaged ones
            raise
        header, lines = {}, []
    if not header:
        raise UserError(
            f"{path}: should be the folder of a run, a latency table or a comparison of runtimes "
            f"(.json), or accuracies of networks ({ACCURACIES})"
        )
    return Found([Folder(path, label, label, evaluated=lines, header=header)])


def _search(path: Path, label: str, group: str, depth: int, seen: set[Path]) -> Found:
    """What there is in a folder and in those in it, without what was seen before."""
    folder = read_folder(path, label, group)
    found = Found([folder] if folder.is_run else [])
    for file in _known_files(path):
        if _is_new(file, seen):
            found += _read_json(file, f"{label}/{file.name}")
    left_out = (*NO_RUNS, *(IMAGES_OF_RUNS if folder.is_run else ()))
    if depth:
        for inner in sorted(path.iterdir()):
            hidden = inner.name in left_out or inner.name[0] == "."
            if inner.is_dir() and not hidden and _is_new(inner, seen):
                name = f"{label}/{inner.name}"
                # The searches of a sweep, one per target, are one front.
                own = label if inner.name.startswith("target_") else name
                found += _search(inner, name, own, depth - 1, seen)
    return found


def _known_files(path: Path) -> Iterator[Path]:
    """Latency tables and comparisons of runtimes that lie in a folder."""
    for file in sorted(path.glob("*.json")):
        if file.name not in (FRONT, SERVE, SEARCH, ARCH):
            data = read_json(file)
            if isinstance(data, dict) and data.get("format") in (TABLE_FORMAT, COMPARISON_FORMAT):
                yield file


def _read_json(file: Path, label: str) -> Found:
    """A latency table or a comparison of runtimes."""
    if _json(file).get("format") == COMPARISON_FORMAT:
        return Found(runtimes={label: read_runtimes(file)})
    return Found(tables={label: read_table(file)})


def read_runtimes(file: Path) -> Runtimes:
    """A comparison of runtimes."""
    kind = COMPARISON_FORMAT, COMPARISON_VERSION
    record = check_header(read_json(file), *kind, str(file), UserError)
    return parse_record(Runtimes, record, str(file))


def read_table(file: Path) -> CostTable:
    """A cost table, in ``ckpt_0`` of a search also one of multiply-adds or parameters."""
    record = check_header(read_json(file), TABLE_FORMAT, TABLE_VERSION, str(file), CostTableError)
    table = parse_record(CostTable, record, str(file), CostTableError)
    if not table.layers or not all(name.removeprefix("layer").isdigit() for name in table.layers):
        raise CostTableError(f"{file}: its layers should be layer1, layer2 and so on")
    return table


def _lines(kind: type[T], file: Path, lines: Sequence[Mapping[str, Any]] | None = None) -> list[T]:
    found = read_jsonl(file) if lines is None else lines
    return parse_record(list[kind], found, str(file)) if found else []  # type: ignore[valid-type]


def _accuracies(file: Path) -> tuple[Mapping[str, Any], list[Evaluated]]:
    """Header and lines of a file of accuracies."""
    header, *lines = read_jsonl(file) or [{}]
    if header.get("format") != ACCURACIES_FORMAT:
        return {}, []
    check_header(header, ACCURACIES_FORMAT, ACCURACIES_VERSION, str(file), UserError)
    return header, _lines(Evaluated, file, lines)


def _json(file: Path) -> dict[str, Any]:
    data = read_json(file) if file.is_file() else {}
    if not isinstance(data, dict):
        raise UserError(f"{file}: holds {type(data).__name__}, should hold keys and values")
    return data


def read_folder(path: Path, label: str, group: str) -> Folder:
    """What a run has left in a folder and in the ``ckpt_0`` of it."""
    own = run_folder(path)
    header, evaluated = _accuracies(path / ACCURACIES)
    space, costs = own / SPACE, own / TABLE
    archs = [place / ARCH for place in (path, own) if (place / ARCH).is_file()]
    config = own / CONFIG
    folder = Folder(
        path,
        label,
        group,
        points=_lines(Point, own / METRICS),
        steps=_lines(Step, path / HISTORY),
        paths=_lines(EvaluatedPath, path / PATHS),
        evaluated=evaluated,
        header=header,
        settings=_json(path / SERVE) or _json(path / SEARCH),
        config=read_yaml(config) if config.is_file() else {},
        environment=_json(own / "environment.json"),
        arch=load_architecture(archs[0]) if archs else None,
        space=SearchSpace.from_dict(_json(space), str(space)) if space.is_file() else None,
        costs=read_table(costs) if costs.is_file() else None,
    )
    if folder.costs and folder.space:
        folder = replace(folder, costs=folder.costs.for_space(folder.space, str(costs)))
    if (path / FRONT).is_file():
        front = parse_record(Front, _json(path / FRONT), str(path / FRONT))
        folder = replace(folder, front=front)
    if (own / CLASSES).is_file():
        counts = parse_record(ClassCounts, _json(own / CLASSES), str(own / CLASSES))
        folder = replace(folder, counts=counts)
    top1, classes = read_evaluation(own)
    return replace(folder, top1=top1, classes=classes)


@dataclass(frozen=True)
class _Result:
    """A checkpoint in eval.json."""

    top1: float
    per_class: tuple[dict[str, Any], ...] = ()


def read_evaluation(path: Path) -> tuple[float | None, list[OfClass]]:
    """Top-1 in percent, and classes, of the last checkpoint in eval.json of a folder."""
    file = path / "eval.json"
    results = _lines(_Result, file, _json(file).get("results", ()))
    if not results:
        return None, []
    rows = [
        {"name" if key == "class" else key: value for key, value in row.items()}
        for row in results[-1].per_class
    ]
    return results[-1].top1, _lines(OfClass, file, rows)
