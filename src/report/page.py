"""The page of runs: one HTML file that needs neither network nor any other file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.arch.cost_table import CostTable
from src.errors import UserError
from src.files import make_folder, write_text
from src.report import charts
from src.report.folders import DEPTH, Found, Runtimes, find
from src.report.runs import Layers, Network, Run, build_runs, machine_factor
from src.training.classes import ClassCounts

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
LARGEST = 2_000_000  # bytes of a page
POINTS, ALL_POINTS = 400, 2400  # of a curve, and of those of all runs together


@dataclass(frozen=True)
class Table:
    """A table of the page: cells as text, the first of a row names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(names: Sequence[str], out: Path, depth: int = DEPTH) -> int:
    """Write the page of runs, latency tables and runtimes; returns the exit code.

    Args:
        names: as ``find`` takes them.
        out: the page.
        depth: how deep within the folders runs are looked for.

    Raises:
        UserError: there is nothing to show, runs do not belong together, or the page is too large.
    """
    found = find(names, depth)
    runs = build_runs(found)
    for run in runs:
        if run.state:
            log.warning("%s: %s; the page shows what is there", run.folder.path, run.state)
    text = create_page(runs, found)
    size = len(text.encode())
    if size > LARGEST:
        raise UserError(
            f"{out}: {len(runs)} runs and {len(found.tables)} tables make a page of "
            f"{size / 1e6:.1f} MB, at most {LARGEST / 1e6:g} MB are written; give fewer"
        )
    make_folder(out.parent)
    write_text(out, text)
    shown = ", ".join(found.labels)
    log.info("%s: %s; %.1f MB, open it in a browser", out, shown, size / 1e6)
    return 0


def create_page(runs: Sequence[Run], found: Found) -> str:
    """The text of the page of what was found, of which ``runs`` are the runs."""
    tables = found.tables
    specs: dict[str, charts.Spec] = {}
    networks = [(run, network) for run in runs for network in run.networks]
    rows = [charts.network_row(index, *pair) for index, pair in enumerate(networks)]
    units = list(dict.fromkeys(run.unit for run, network in networks if network.top1 is not None))
    most = min(POINTS, ALL_POINTS // max(len(runs), 1))
    for number, unit in enumerate(units):
        own = [row for row, (run, _) in zip(rows, networks, strict=True) if run.unit == unit]
        specs[f"networks-{number}"] = charts.networks(own, unit)
    layers: dict[int, Layers] = {}  # by identity: networks of a run have the same
    for _, network in networks:
        if network.layers:
            layers[id(network.layers)] = network.layers
    places = {key: place for place, key in enumerate(layers)}
    for row, (_, network) in zip(rows, networks, strict=True):
        if network.layers:
            row["layers"] = places[id(network.layers)]
            row["choices"] = " ".join(network.choices)
    if layers:
        for unit in dict.fromkeys(own.unit for own in layers.values()):
            specs[f"layers-{unit}"] = charts.layers(unit)
    curves = [row for run in runs for row in charts.curve_rows(run.label, run.folder.points, most)]
    if curves:
        specs["curves"] = charts.curves(curves)
    searches = [run for run in runs if run.folder.paths or (run.folder.steps and run.space)]
    for number, run in enumerate(searches):
        draw = charts.paths if run.folder.paths else charts.history
        specs[f"history-{number}"] = draw(run, most)
    for number, table in enumerate(tables.values()):
        specs[f"table-{number}"] = charts.heat_map(table)
    predictions = charts.prediction_rows(tables)
    if predictions:
        specs["predictions"] = charts.predictions(predictions)
    for number, comparison in enumerate(found.runtimes.values()):
        if comparison.runtimes:
            specs[f"runtimes-{number}"] = charts.runtimes(comparison.runtimes)
    class_tables = [(run, content) for run in runs if (content := _class_table(run)).rows]
    for number, (run, _) in enumerate(class_tables):
        if run.folder.classes:
            specs[f"classes-{number}"] = charts.confusion(run.folder.classes)
    data = {
        "charts": specs,
        "networks": rows,
        "layers": [
            {"options": own.options, "unit": own.unit, "rest": own.rest} for own in layers.values()
        ],
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html").render(
        title=", ".join(found.labels),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        library=_library(),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        data=_embedded(data),
        charts=specs,
        runs=_run_table(runs),
        units=units,
        network_head=NETWORK_HEAD,
        networks=_network_rows(networks),
        layers=bool(layers),
        layer_units=list(dict.fromkeys(own.unit for own in layers.values())),
        validations=_validations(runs),
        searches=[
            (run, _history(specs[f"history-{number}"])) for number, run in enumerate(searches)
        ],
        tables=[(label, table, _entries(table)) for label, table in tables.items()],
        verdicts=_verdicts(tables),
        predictions=_prediction_table(predictions),
        runtimes=[
            (label, own, _runtime_table(own), Table(LEFT_OUT_HEAD, list(own.left_out.items())))
            for label, own in found.runtimes.items()
        ],
        class_tables=class_tables,
        settings=_side_by_side({run.label: run.folder.config for run in runs}),
        environments=_side_by_side(
            {run.label: {"folder": str(run.folder.path), **run.folder.environment} for run in runs}
        ),
        origins=_side_by_side(
            {
                f"{run.label}: {network.name}": network.provenance
                for run, network in networks
                if network.provenance
            }
            | {label: _circumstances(table) for label, table in tables.items()}
            | {label: _comparison(own) for label, own in found.runtimes.items()}
        ),
    )


def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed for Altair's version of Vega-Lite, as JavaScript."""
    version = alt.SCHEMA_VERSION[1:4]
    # Its types lack a default that it has.
    return vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]


def _embedded(data: Any) -> str:
    """JSON within an element of a page; a text in it cannot end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    return str(value)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _short(unit: str) -> str:
    return unit.replace("million ", "M ")


def _run_table(runs: Iterable[Run]) -> Table:
    head = ("run", "what", "state", "data set", "space", "best top-1", "last top-1", "seed")
    rows = []
    for run in runs:
        top1 = [point.top1 for point in run.folder.points if point.kind == "val"]
        rows.append(
            (
                *(run.label, run.kind, run.state or "ended", str(run.images)),
                run.space.name if run.space else "-",
                _number(max(top1, default=None), 2),
                _number(top1[-1] if top1 else None, 2),
                _text(run.folder.config.get("seed", run.folder.settings.get("seed"))),
            )
        )
    return Table(head, rows)


def _validations(runs: Iterable[Run]) -> Table:
    rows = [
        (run.label, f"{point.progress:g}", _number(point.loss, 4), _number(point.top1, 2))
        for run in runs
        for point in run.folder.points
        if point.kind == "val"
    ]
    return Table(("run", "epoch", "loss", "top-1"), rows)


PATH_TITLES = {
    "number": "path",
    "generation": "generation",
    "top1": "top-1",
    "best": "best so far",
    "cost": "cost",
}
INTERVAL_TITLES = {
    "layer": "searched layer",
    "choice": "choice",
    "from": "from step",
    "until": "until step",
}


def _history(spec: charts.Spec) -> Table:
    """What the chart of a search shows: choices of its layers from step to step, or its paths."""
    data = spec["datasets"]
    kind, titles = ("paths", PATH_TITLES) if "paths" in data else ("intervals", INTERVAL_TITLES)
    rows = [[_text(row.get(key)) for key in titles] for row in data[kind]]
    return Table(list(titles.values()), rows)


NETWORK_HEAD = (
    *("network", "run", "cost", "ms, predicted", "ms, measured", "top-1", "by regression"),
    *("by eval.py", "in C++", "M multiply-adds", "M parameters"),
)


def _network_rows(
    networks: Sequence[tuple[Run, Network]],
) -> list[tuple[int, str, tuple[str, ...]]]:
    """Of each network its index, its kind, and its cells under ``NETWORK_HEAD``."""
    found: list[tuple[int, str, tuple[str, ...]]] = []
    for index, (run, network) in enumerate(networks):
        cells = (
            *(network.name, run.label, f"{network.cost:.4g} {_short(run.unit)}"),
            *(_number(network.predicted_ms, 3), _number(network.measured_ms, 3)),
            *(_number(network.top1, 2), _number(network.predicted, 2), _number(network.tested, 2)),
            *(_number(network.answered, 2), _number(network.macs, 2), _number(network.params, 3)),
        )
        found.append((index, network.kind, cells))
    return found


def _entries(table: CostTable) -> Table:
    names = list(dict.fromkeys(name for entries in table.layers.values() for name in entries))
    rows = [
        (layer, *(_number(entries.get(name), 4) for name in names))
        for layer, entries in table.layers.items()
    ]
    return Table(("layer", *names), [*rows, ("every network", _number(table.constant, 4))])


def _verdicts(tables: Mapping[str, CostTable]) -> list[str]:
    """What the verification of each table says."""
    found = []
    for label, table in tables.items():
        verdict = table.provenance.get("verification")
        if verdict:
            factor = machine_factor(table)
            found.append(
                f"{label}: {verdict['networks']} networks that it was not fitted to, mean error "
                f"{verdict['mean_error']:+.1%}, RMSE {verdict['rmse']:.1%}, Kendall's tau "
                f"{verdict['kendall_tau']:.3f}: "
                + ("within the limits" if verdict["passed"] else "not within the limits")
                + (f"; predictions times {factor:.3f}, the machine's speed" if factor != 1 else "")
            )
    return found


def _prediction_table(rows: Sequence[charts.Row]) -> Table:
    head = ("network", "table", "kind", "predicted ms", "measured ms", "error")
    return Table(
        head,
        [
            (
                *(row["name"], row["table"], row["kind"], f"{row['predicted']:.3f}"),
                *(f"{row['measured']:.3f}", f"{row['error']:+.1%}"),
            )
            for row in rows
        ],
    )


RUNTIME_HEAD = (
    *("runtime", "precision", "threads", "ms, median", "ms, 90th percentile", "spread"),
    *("MB", "agreement", "top-1", "largest difference"),
)
LEFT_OUT_HEAD = ("left out", "reason")


def _runtime_table(comparison: Runtimes) -> Table:
    """Each runtime of a comparison, the fastest first."""
    rows = [
        (
            *(own.runtime, own.precision, str(own.threads), f"{own.median_ms:.3f}"),
            *(f"{own.p90_ms:.3f}", f"{own.spread:.1%}", f"{own.file_bytes / 1e6:.1f}"),
            *(f"{own.agreement:.2f}", _number(own.top1, 2), f"{own.largest_difference:.1e}"),
        )
        for own in sorted(comparison.runtimes, key=lambda own: (own.threads, own.median_ms))
    ]
    return Table(RUNTIME_HEAD, rows)


def _comparison(comparison: Runtimes) -> dict[str, Any]:
    """What a comparison says of itself in single values."""
    own = vars(comparison)
    return {key: own[key] for key in own if key not in ("runtimes", "left_out", "advice")}


def _class_table(run: Run) -> Table:
    """Images of each class, and how it was recognised; no rows where neither was recorded."""
    judged = {row.name: row for row in run.folder.classes}
    counts = run.folder.counts or ClassCounts(tuple(judged), ())
    rows = []
    for number, name in enumerate(counts.classes):
        numbers = (_text(own[number]) if own else "-" for own in (counts.train, counts.val))
        of_class = judged.get(name)
        verdict = ("-", "-", "-")
        if of_class:
            top1 = _number(of_class.top1, 2)
            verdict = (str(of_class.images), top1, of_class.taken_for or "-")
        rows.append((name, *numbers, *verdict))
    return Table(CLASS_HEAD, rows)


CLASS_HEAD = (
    *("class", "trained on", "validated on", "by eval.py"),
    *("top-1", "most often taken for"),
)


def _circumstances(table: CostTable) -> dict[str, Any]:
    """What a latency table says of itself in single values."""
    plain = {
        key: value
        for key, value in table.provenance.items()
        if not isinstance(value, dict) or key == "versions"
    }
    own = {key: getattr(table, key) for key in ("space", "device", "runtime", "batch_size")}
    return {**own, **plain}


def _side_by_side(columns: Mapping[str, Mapping[str, Any]]) -> tuple[Table, Table]:
    """Values of several runs: the keys in which they differ, and those in which they agree.

    Of a single run all values are in the first.
    """
    columns = {label: values for label, values in columns.items() if values}
    keys = list(dict.fromkeys(key for values in columns.values() for key in values))
    rows = [(key, *(_text(values.get(key)) for values in columns.values())) for key in keys]
    different = [row for row in rows if len(set(row[1:])) > 1 or len(columns) == 1]
    same = [row[:2] for row in rows if row not in different]
    return Table(("", *columns), different), Table(("", "all"), same)
