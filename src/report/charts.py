"""Charts of runs, by Altair: each function returns a Vega-Lite specification.

Text and lines have the colour of the page around them (``currentColor``), so that one chart does
for light and dark. Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any, TypeAlias

import altair as alt

from src.arch.cost_table import UNIT, CostTable
from src.arch.space import SKIP, SearchSpace, layer_index
from src.latency.tables import fitted_decisions
from src.report.folders import Point, RuntimeOutcome
from src.report.runs import Network, Run, machine_factor, verified
from src.training.classes import OfClass

Row: TypeAlias = dict[str, Any]
Spec: TypeAlias = dict[str, Any]

SHAPES = alt.Scale(domain=["chosen", "trained"], range=["square", "triangle-up"])
WIDTH = 530  # of a chart, pixels; two stand side by side
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999"]
KERNELS = {3: "#56B4E9", 5: "#E69F00", 7: "#D55E00"}
# Of one kernel size the choices differ in strength: the last is that of the largest expansion.
SHADES = {
    "K3": ["#a6d8f5", "#56B4E9", "#0072B2"],
    "K5": ["#f7d98b", "#E69F00", "#9c6c00"],
    "K7": ["#f0a884", "#D55E00", "#8a3d00"],
}
SKIPPED, OTHER = "#bbbbbb", "#009E73"
MATRIX_CLASSES = 40  # of a confusion matrix; of more classes those that are recognised least


def thin(length: int, most: int) -> range:
    """Evenly spaced indices below ``length``, at most ``most`` of them, with the last."""
    stride = max(1, math.ceil(length / most))
    return range((length - 1) % stride, length, stride)


def known(row: Row) -> Row:
    """A row without what is not known or not finite; numbers are rounded to six digits."""
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in row.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def finish(chart: Any, description: str, **datasets: Sequence[Row]) -> Spec:
    """The specification of a chart with its data, in the page's style.

    Args:
        chart: of Altair, whose data are named.
        description: for readers who do not see it.
        datasets: rows by the name of the data.
    """
    named = {name: list(rows) for name, rows in datasets.items()}
    styled = chart.properties(description=description, datasets=named).configure(
        background="transparent",
        font="inherit",
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor="currentColor",
            titleColor="currentColor",
            domainColor="currentColor",
            tickColor="currentColor",
            gridColor="currentColor",
            gridOpacity=0.12,
            titleFontWeight="normal",
        ),
        legend=alt.LegendConfig(
            labelColor="currentColor",
            titleColor="currentColor",
            titleFontWeight="normal",
            symbolBaseFillColor="currentColor",
            symbolBaseStrokeColor="currentColor",
            labelLimit=260,
            orient="top",
        ),
        header=alt.HeaderConfig(labelColor="currentColor"),
        title=alt.TitleConfig(color="currentColor", anchor="start", fontWeight="normal"),
        range=alt.RangeConfig(category=PALETTE),
    )
    return styled.to_dict()


# Networks.


def networks(rows: Sequence[Row], unit: str) -> Spec:
    """Top-1 over cost; ``rows`` have the keys of ``network_row``."""
    chosen = alt.param(name="chosen", value=-1)
    scale = alt.Scale(zero=False, padding=12)  # marks at the edge are seen whole
    x = alt.X("cost:Q", title=unit, scale=scale)
    color = alt.Color("group:N", title="run")
    tooltip = [
        alt.Tooltip("name:N", title="network"),
        alt.Tooltip("run:N"),
        alt.Tooltip("cost:Q", title=unit, format=".4~g"),
        alt.Tooltip("predicted_ms:Q", title="ms, predicted", format=".3f"),
        alt.Tooltip("measured_ms:Q", title="ms, measured", format=".3f"),
        alt.Tooltip("top1:Q", title="top-1 (%)", format=".2f"),
        alt.Tooltip("predicted:Q", title="top-1 by the regression (%)", format=".2f"),
        alt.Tooltip("tested:Q", title="top-1 by eval.py (%)", format=".2f"),
        alt.Tooltip("macs:Q", title="M multiply-adds", format=".2f"),
        alt.Tooltip("params:Q", title="M parameters", format=".3f"),
        alt.Tooltip("command:N", title="export"),
    ]
    base = alt.Chart(alt.NamedData("networks")).encode(x=x, tooltip=tooltip)
    y = alt.Y("top1:Q", title="top-1 (%)", scale=scale)
    selected = alt.datum.i == chosen
    evaluated = (
        base.transform_filter(alt.datum.kind == "evaluated")
        .mark_circle(cursor="pointer", aria=False)
        .encode(
            y=y,
            color=color,
            size=alt.condition(selected, alt.value(220), alt.value(40)),
            opacity=alt.condition(selected, alt.value(1), alt.value(0.45)),
        )
    )
    large = base.transform_filter(alt.datum.kind != "evaluated")
    line = large.mark_line(strokeWidth=1.5, aria=False).encode(y=y, color=color)
    points = large.mark_point(filled=True, cursor="pointer", opacity=1).encode(
        y=y,
        color=color,
        shape=alt.Shape("kind:N", title="", scale=SHAPES),
        size=alt.condition(selected, alt.value(320), alt.value(130)),
    )
    kinds = {row["kind"] for row in rows}  # a layer without data would be a warning
    layers = [evaluated] if "evaluated" in kinds else []
    layers += [line, points] if kinds - {"evaluated"} else []
    if any(row.get("predicted") for row in rows):
        expected = large.transform_filter("isValid(datum.predicted)")
        layers.append(
            expected.mark_point(shape="diamond", size=90, strokeWidth=2).encode(
                y="predicted:Q", color=color
            )
        )
    if unit == "ms" and any(row.get("measured_ms") for row in rows):
        measured = large.transform_filter("isValid(datum.measured_ms)")
        layers.append(measured.mark_rule().encode(y=y, x2="measured_ms:Q", color=color))
        layers.append(
            measured.mark_tick(orient="vertical", thickness=3, size=14).encode(
                y=y, x=alt.X("measured_ms:Q"), color=color
            )
        )
    chart = alt.layer(*layers).add_params(chosen).properties(width=WIDTH, height=340)
    validated = [row for row in rows if "top1" in row]
    return finish(chart, f"Networks: top-1 in percent over {unit}.", networks=validated)


def network_row(index: int, run: Run, network: Network) -> Row:
    """What the page knows of a network; what is not known is left out."""
    keys = (
        *("name", "kind", "cost", "top1", "predicted", "tested", "answered"),
        *("predicted_ms", "measured_ms", "macs", "params", "command"),
    )
    own = {key: getattr(network, key) for key in keys}
    return known({"i": index, "run": run.label, "group": run.folder.group, **own})


def _kernel_color() -> alt.Color:
    return alt.Color(
        "kernel:O",
        title="kernel size",
        scale=alt.Scale(domain=list(KERNELS), range=list(KERNELS.values())),
    )


def _layer_bars(chart: alt.Chart, unit: str, costs: bool) -> list[Any]:
    """A network drawn layer by layer, and below what each layer costs."""
    # In the order of the rows: "rest" makes layers text, of which 10 would stand before 2.
    x = alt.X("layer:O", title="layer", sort=None, axis=alt.Axis(labelAngle=0))
    base = chart.encode(
        x=x.title(None) if costs else x,
        tooltip=[
            alt.Tooltip("layer:O"),
            alt.Tooltip("choice:N"),
            alt.Tooltip("kernel:Q", title="kernel size"),
            alt.Tooltip("ratio:Q", title="expansion ratio"),
            alt.Tooltip("channels:Q", title="output channels"),
            alt.Tooltip("stride:Q"),
            alt.Tooltip("cost:Q", title=unit, format=".4~g"),
        ],
    )
    bars = base.mark_bar(stroke="currentColor", strokeWidth=0.5).encode(
        y=alt.Y("ratio:Q", title="expansion ratio"), color=_kernel_color()
    )
    names = base.mark_text(dy=-7, fontSize=10, color="currentColor").encode(
        y="ratio:Q", text="choice:N"
    )
    panels = [alt.layer(bars, names).properties(width=WIDTH, height=130)]
    if costs:
        below = base.mark_bar(color=PALETTE[0]).encode(x=x, y=alt.Y("cost:Q", title=unit))
        panels.append(below.properties(width=WIDTH, height=110))
    return panels


def layers(unit: str) -> Spec:
    """A network's layers and their costs; the page gives the rows when a network is chosen."""
    panels = _layer_bars(alt.Chart(alt.NamedData("layers")), unit, costs=True)
    none = [{"layer": "0", "kernel": 0, "ratio": 0, "cost": 0}]  # no warnings of an empty chart
    description = f"The layers of the chosen network, and {unit} by layer."
    return finish(alt.vconcat(*panels), description, layers=none)


# Curves.


def curve_rows(label: str, points: Sequence[Point], most: int) -> list[Row]:
    """Rows of a run's curves, at most ``most`` of each."""
    rows: list[Row] = []
    for kind, name in (("train", "training"), ("val", "validation")):
        own = [point for point in points if point.kind == kind]
        for index in thin(len(own), most) if own else ():
            point = own[index]
            row = {
                "run": label,
                "kind": name,
                "progress": point.progress,
                "loss": point.loss,
                "top1": point.top1,
                "low": point.top1_smallest,
                "high": point.top1_largest,
            }
            rows.append(known(row))
    return rows


def curves(rows: Sequence[Row]) -> Spec:
    """Loss and top-1 over epochs, with a switch for a logarithmic scale and one for smoothing."""
    log_scale = alt.param(
        name="log_scale", value=False, bind=alt.binding_checkbox(name="loss on a log scale ")
    )
    smoothing = alt.param(
        name="smoothing",
        value=0,
        bind=alt.binding_range(min=0, max=0.95, step=0.05, name="smoothing of training curves "),
    )
    # The type of a scale cannot change in a chart; what is drawn can.
    base = alt.Chart(alt.NamedData("curves")).transform_calculate(
        shown_loss="log_scale ? log(datum.loss) / LN10 : datum.loss"
    )
    many = {row["run"] for row in rows}
    encoded = {
        "x": alt.X("progress:Q", title="epoch"),
        "color": alt.Color("run:N", legend=alt.Legend() if len(many) > 1 else None),
        "strokeDash": alt.StrokeDash(
            "kind:N",
            title="",
            scale=alt.Scale(domain=["validation", "training"], range=[[1, 0], [4, 2]]),
        ),
        "tooltip": [
            *("run:N", "kind:N"),
            alt.Tooltip("progress:Q", title="epoch", format=".3~f"),
            alt.Tooltip("loss:Q", format=".4~f"),
            alt.Tooltip("top1:Q", title="top-1 (%)", format=".2f"),
        ],
    }
    label = "log_scale ? format(pow(10, datum.value), '.2~g') : datum.label"
    panels = []
    for key, title, axis in (
        ("shown_loss", "loss", alt.Axis(labelExpr=label)),
        ("top1", "top-1 (%)", alt.Axis()),
    ):
        y = alt.Y(f"{key}:Q", title=title, axis=axis, scale=alt.Scale(zero=False))
        line = base.mark_line(strokeWidth=1.5).encode(y=y, **encoded)
        parts = [line]
        if any(row["kind"] == "validation" for row in rows):
            dots = base.transform_filter(alt.datum.kind == "validation")
            dots = dots.mark_point(filled=True, size=40, opacity=1)
            shared = {name: encoded[name] for name in ("x", "color", "tooltip")}
            parts.append(dots.encode(y=y, **shared))
        if key == "top1" and any("low" in row for row in rows):
            band = (
                base.transform_filter("isValid(datum.low)")
                .mark_area(opacity=0.18)
                .encode(x=encoded["x"], y=alt.Y("low:Q", title=title), y2="high:Q")
                .encode(color=encoded["color"])
            )
            parts.insert(0, band)
        panels.append(alt.layer(*parts).properties(width=WIDTH, height=220))
    chart = alt.vconcat(*panels).add_params(log_scale, smoothing)
    description = "Loss and top-1 in percent over epochs, of training and of validation."
    return finish(chart, description, curves=rows)


# The history of a search.


def _shade(choice: str, choices: Sequence[str]) -> str:
    """Colour of a choice such as K5E6."""
    if choice == SKIP:
        return SKIPPED
    shades = SHADES.get(choice[:2])
    if shades is None:
        return OTHER
    same = [other for other in choices if other[:2] == choice[:2]]
    return shades[-1 - min(len(same) - 1 - same.index(choice), 2)]


def _intervals(run: Run, space: SearchSpace, kept: range) -> list[Row]:
    """For how many steps each layer had the same choice."""
    steps, layers = run.folder.steps, run.layers
    assert layers
    rows = []
    for number, name in enumerate(space.searched):
        layer, first = layer_index(name), 0
        for choice, group in groupby(steps[index].decisions[number] for index in kept):
            end = first + sum(1 for _ in group)
            until = kept[end] if end < len(kept) else len(steps)
            option = layers.options[layer][choice]
            rows.append(
                {
                    "layer": layer,
                    "choice": choice,
                    "from": kept[first] + 1,
                    "until": until + 1,
                    **option,
                }
            )
            first = end
    return rows


def history(run: Run, most: int) -> Spec:
    """The history of a superkernel search, and the network of a step that a slider chooses.

    Args:
        run: the search.
        most: steps that are shown.
    """
    assert run.space and run.layers
    folder, space = run.folder, run.space
    for found in folder.steps:
        space.check(found.decisions)
    kept = thin(len(folder.steps), most)
    steps = []
    for index in kept:
        line = folder.steps[index]
        steps.append(known({"step": index + 1, "loss": line.cross_entropy, "cost": line.cost}))
    slider = alt.param(
        name="step",
        value=steps[-1]["step"],
        bind=alt.binding_range(
            min=steps[0]["step"], max=steps[-1]["step"], step=kept.step, name="step "
        ),
    )
    scale = alt.Scale(domain=[1, len(folder.steps) + 1], nice=False)
    x = alt.X("step:Q", title=None, scale=scale)
    base = alt.Chart(alt.NamedData("steps"))
    mark = base.transform_filter(alt.datum.step == slider)
    rule = mark.mark_rule(color="currentColor", strokeWidth=1.5).encode(x=x)
    panels: list[Any] = []
    for key, title in (("loss", "cross-entropy"), ("cost", run.unit)):
        y = alt.Y(f"{key}:Q", title=title, scale=alt.Scale(zero=False))
        parts = [base.mark_line(strokeWidth=1.2, color=PALETTE[0]).encode(x=x, y=y), rule]
        target = folder.arch.provenance.get("target") if folder.arch else None
        if key == "cost" and target is not None:
            goal = alt.Chart(alt.NamedData("steps")).mark_rule(strokeDash=[5, 3], color=PALETTE[5])
            parts.append(goal.encode(y=alt.datum(target)))
        value = mark.transform_calculate(
            text=f"'step ' + datum.step + ': {title} ' + format(datum.{key}, '.4~g')"
        )
        parts.append(
            value.mark_text(align="right", baseline="top", color="currentColor").encode(
                x=alt.value(WIDTH), y=alt.value(2), text="text:N"
            )
        )
        panels.append(alt.layer(*parts).properties(width=WIDTH, height=120))
    intervals = alt.NamedData("intervals")
    names = list(dict.fromkeys(name for own in space.searched.values() for name in own.names))
    names = [*(name for name in names if name != SKIP), *([SKIP] if SKIP in names else [])]
    rows = (
        alt.Chart(intervals)
        .mark_rect(stroke=None)
        .encode(
            x=alt.X("from:Q", title="step", scale=scale),
            x2="until:Q",
            y=alt.Y("layer:O", title="searched layer"),
            color=alt.Color(
                "choice:N",
                scale=alt.Scale(domain=names, range=[_shade(name, names) for name in names]),
            ),
            tooltip=["layer:O", "choice:N", "from:Q", "until:Q"],
        )
    )
    height = 18 * len(space.searched)
    panels.append(alt.layer(rows, rule).properties(width=WIDTH, height=height))
    now = alt.Chart(intervals).transform_filter(
        (alt.datum["from"] <= slider) & (slider < alt.datum["until"])
    )
    (drawn,) = _layer_bars(now, run.layers.unit, costs=False)
    panels.append(drawn.properties(title="the network of the step"))
    chart = alt.vconcat(*panels).resolve_scale(color="independent").add_params(slider)
    return finish(
        chart,
        f"The search {run.label}: cross-entropy, cost and the choice of each layer over the steps, "
        "and the network of the step that the slider chooses.",
        steps=steps,
        intervals=_intervals(run, space, kept),
    )


def paths(run: Run, most: int) -> Spec:
    """The history of a one-shot search: top-1 of its paths, and of the best one so far.

    Args:
        run: the search.
        most: paths that are shown.
    """
    lines = run.folder.paths
    best = list(accumulate((line.top1 for line in lines), max))
    rows = [
        known(
            {
                **{"number": index + 1, "generation": lines[index].generation},
                **{"top1": lines[index].top1, "cost": lines[index].cost, "best": best[index]},
            }
        )
        for index in thin(len(lines), most)
    ]
    scale = alt.Scale(zero=False, padding=12)
    base = alt.Chart(alt.NamedData("paths")).encode(
        x=alt.X(
            "number:Q",
            title="evaluated path",
            scale=alt.Scale(zero=False, padding=12),
            axis=alt.Axis(tickMinStep=1),
        ),
        tooltip=[
            alt.Tooltip("number:Q", title="path"),
            "generation:Q",
            alt.Tooltip("top1:Q", title="top-1 (%)", format=".2f"),
            alt.Tooltip("best:Q", title="best so far (%)", format=".2f"),
            alt.Tooltip("cost:Q", title=run.unit, format=".4~g"),
        ],
    )
    points = base.mark_circle(color=PALETTE[0], opacity=0.6).encode(
        y=alt.Y("top1:Q", title="top-1 (%)", scale=scale)
    )
    line = base.mark_line(interpolate="step-after", color=PALETTE[5]).encode(
        y=alt.Y("best:Q", title="top-1 (%)", scale=scale)
    )
    chart = alt.layer(points, line).properties(width=WIDTH, height=220)
    description = f"The search {run.label}: top-1 of its paths, and of the best one so far."
    return finish(chart, description, paths=rows)


# Latency tables.


def heat_map(table: CostTable) -> Spec:
    """The entries of a table by layer and choice."""
    rows: list[Row] = [
        {"layer": layer_index(layer), "choice": choice, "cost": cost}
        for layer, entries in table.layers.items()
        for choice, cost in entries.items()
        if choice != SKIP
    ]
    highest = max((row["cost"] for row in rows), default=0.0)
    base = alt.Chart(alt.NamedData("entries")).encode(
        x=alt.X("layer:O", title="searched layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("choice:N", title=None),
        tooltip=["layer:O", "choice:N", alt.Tooltip("cost:Q", title=table.unit, format=".4f")],
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "cost:Q", title=table.unit, scale=alt.Scale(scheme="cividis", domain=[0, highest])
        )
    )
    # White on the dark end of the scale, black on the light one.
    numbers = base.mark_text(fontSize=9).encode(
        text=alt.Text("cost:Q", format=".2f"),
        color=alt.condition(alt.datum.cost < 0.5 * highest, alt.value("white"), alt.value("black")),
    )
    chart = alt.layer(cells, numbers).properties(width=WIDTH, height=alt.Step(24))
    description = f"Latency table {table.name}: {table.unit} by layer and choice."
    return finish(chart, description, entries=rows)


def prediction_rows(tables: Mapping[str, CostTable]) -> list[Row]:
    """Networks that were measured: milliseconds predicted and measured.

    The machine may have changed its speed in between, which is no error of the table: predictions
    are for its speed when the network was measured.
    """
    rows = []
    for label, table in tables.items():
        if table.unit != UNIT:
            continue
        fitted = table.provenance.get("networks", {})
        known = fitted_decisions(table)
        others = {k: v for k, v in verified(table).items() if v["decisions"] not in known}
        since_profile = table.provenance.get("rescaled", {}).get("factor", 1.0)
        for kind, networks, factor in (
            ("fitted", fitted, 1 / since_profile),
            ("not fitted", others, machine_factor(table)),
        ):
            for name, facts in networks.items():
                total = table.total(facts["decisions"].split())
                predicted = factor * facts.get("predicted_ms", total)
                rows.append(
                    {
                        "table": label,
                        "kind": kind,
                        "name": name,
                        "decisions": facts["decisions"],
                        "predicted": round(predicted, 4),
                        "measured": facts["median_ms"],
                        "error": round(predicted / facts["median_ms"] - 1, 4),
                    }
                )
    return rows


def predictions(rows: Sequence[Row]) -> Spec:
    """Predicted over measured milliseconds; shaded is 5 % to either side of equality."""
    highest = 1.05 * max(max(row["predicted"], row["measured"]) for row in rows)
    ends = [{"ms": ms, "low": 0.95 * ms, "high": 1.05 * ms} for ms in (0, highest)]
    scale = alt.Scale(domain=[0, highest], nice=False)
    equal = alt.Chart(alt.NamedData("ends")).encode(
        x=alt.X("ms:Q", scale=scale, title="measured (ms)")
    )
    band = equal.mark_area(opacity=0.15, color=PALETTE[6]).encode(
        y=alt.Y("low:Q", scale=scale, title="predicted by the table (ms)"), y2="high:Q"
    )
    line = equal.mark_line(color=PALETTE[6], strokeWidth=1).encode(y=alt.Y("ms:Q", scale=scale))
    points = (
        alt.Chart(alt.NamedData("networks"))
        .mark_point(filled=True, size=70, opacity=0.9)
        .encode(
            x=alt.X("measured:Q", scale=scale),
            y=alt.Y("predicted:Q", scale=scale),
            color=alt.Color("table:N"),
            shape=alt.Shape("kind:N", title=""),
            tooltip=[
                *("name:N", "table:N", "kind:N"),
                alt.Tooltip("predicted:Q", title="ms, predicted", format=".3f"),
                alt.Tooltip("measured:Q", title="ms, measured", format=".3f"),
                alt.Tooltip("error:Q", format="+.1%"),
                "decisions:N",
            ],
        )
    )
    chart = alt.layer(band, line, points).properties(width=380, height=380)
    description = "Milliseconds of networks: predicted by the table over measured."
    return finish(chart, description, ends=ends, networks=rows)


# Runtimes.


def runtimes(outcomes: Sequence[RuntimeOutcome]) -> Spec:
    """Milliseconds of each runtime: bars of the median, ticks of the 90th percentile."""
    rows = [
        known({**vars(own), "with": "1 thread" if own.threads == 1 else f"{own.threads} threads"})
        for own in sorted(outcomes, key=lambda own: own.threads)
    ]
    base = alt.Chart().encode(
        y=alt.Y("runtime:N", title=None, axis=alt.Axis(labelLimit=200)),
        yOffset="precision:N",
        tooltip=[
            *("runtime:N", "precision:N", "threads:O"),
            alt.Tooltip("median_ms:Q", title="ms, median", format=".3f"),
            alt.Tooltip("p90_ms:Q", title="ms, 90th percentile", format=".3f"),
            alt.Tooltip("spread:Q", format=".1%"),
            alt.Tooltip("agreement:Q", title="agreement with the network (%)", format=".2f"),
            alt.Tooltip("top1:Q", title="top-1 (%)", format=".2f"),
        ],
    )
    bars = base.mark_bar().encode(
        x=alt.X("median_ms:Q", title="ms, median; tick: 90th percentile"),
        color=alt.Color("precision:N", title="precision"),
    )
    ticks = base.mark_tick(color="currentColor", thickness=2).encode(x="p90_ms:Q")
    panels = alt.layer(bars, ticks, data=alt.NamedData("runtimes")).properties(width=WIDTH - 160)
    header = alt.Header(title=None, labelOrient="top", labelAnchor="start")
    chart = panels.facet(row=alt.Row("with:N", sort=None, header=header))
    description = "Milliseconds of one inference in each runtime, by precision and threads."
    return finish(chart, description, runtimes=rows)


# Classes.


def shown_classes(classes: Sequence[OfClass]) -> list[OfClass]:
    """The classes of a confusion matrix: all, or those that are recognised least."""
    if len(classes) <= MATRIX_CLASSES:
        return list(classes)
    return sorted(classes, key=lambda row: 101.0 if row.top1 is None else row.top1)[:MATRIX_CLASSES]


def confusion(classes: Sequence[OfClass]) -> Spec:
    """What the images of each class were taken for."""
    shown = shown_classes(classes)
    names = [row.name for row in shown]
    rows = [
        {
            "class": row.name,
            "predicted": name,
            "images": row.predicted.get(name, 0),
            "share": round(row.predicted.get(name, 0) / row.images, 4) if row.images else 0,
        }
        for row in shown
        for name in names
        if row.predicted.get(name) or len(names) <= 20
    ]
    base = alt.Chart(alt.NamedData("images")).encode(
        x=alt.X("predicted:N", sort=names, title="taken for", axis=alt.Axis(labelAngle=-45)),
        y=alt.Y("class:N", sort=names, title="class"),
        tooltip=[
            *("class:N", alt.Tooltip("predicted:N", title="taken for"), "images:Q"),
            alt.Tooltip("share:Q", format=".1%"),
        ],
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "share:Q",
            title="share of the class",
            scale=alt.Scale(scheme="cividis", domain=[0, 1]),
            legend=alt.Legend(format=".0%"),
        )
    )
    parts = [cells]
    if len(names) <= 20:
        numbers = base.mark_text(fontSize=10).encode(
            text="images:Q",
            color=alt.condition(alt.datum.share < 0.5, alt.value("white"), alt.value("black")),
        )
        parts.append(numbers)
    side = alt.Step(max(12, min(34, 460 // len(names))))
    chart = alt.layer(*parts).properties(width=side, height=side)
    description = "Confusion matrix: images by class and by what they were taken for."
    return finish(chart, description, images=rows)
