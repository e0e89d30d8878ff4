"""Searches and supernets, judged by the published accuracies of all networks of their space.

NAS-Bench-Macro (Su et al., arXiv 2103.11922; JSON file of github.com/xiusu/NAS-Bench-Macro) holds
MBConv networks for CIFAR-10, each trained alone three times. All of the file or a part is read:

    python benchmarks/nas_bench_macro.py --table FILE                           # about 2 seconds
    python benchmarks/nas_bench_macro.py --table FILE runs/*/arch.json supernet.jsonl
    python benchmarks/nas_bench_macro.py --table PART --predict runs/*/arch.json

With the whole file the first command prints a Kendall's tau of 0.655 for multiply-adds and 0.739
for multiply-adds minus ten times parameters, over 1944 networks. A RESULT is one of:

- the architecture that a search found: compared with the networks of the table whose multiply-adds
  are within 2 % of its own, by RI = 100 * (found - mean) / mean (Yang et al., ICLR 2020), and with
  the five distinct ones with fewest parameters, which counting finds without training;
- accuracies by a supernet, as scripts/evaluate_subnets.py writes them. Kendall's tau says how well
  they rank, beside counts that need no training. ``--within 60`` also judges, as one that was
  found, the network that search.py --from_supernet would serve within 60 million multiply-adds.

A network is eight digits, one a layer, in stages of 2, 3 and 3 layers: 1 is K3E3, 2 is K5E6, 0 an
absent layer. The table's networks with a 0 at the first layer of a stage are of another space and
ignored. Names that differ only in where within their stages the zeros stand are one network; the
canonical name has them last, and a network that was found is looked up by it. The table holds each
name trained on its own: a name that it lacks has the accuracy of the canonical name, or else the
mean of the other equivalent ones. Bands count names, not distinct networks, as published.

``--predict`` gives networks that the table lacks an accuracy by ridge regression, marked with ~.
The statistics of a band are those of its networks in the table even then. Standard deviations are
those of samples (divided by n - 1).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from pydantic import ConfigDict, Field
from scipy.stats import kendalltau, percentileofscore

from benchmarks.contenders import run
from src.arch.architecture import FORMAT, Architecture
from src.arch.cost import Cost, network_cost
from src.arch.cost_table import CostTable, arithmetic_table
from src.arch.space import SKIP, SearchSpace, SpaceError, load_space
from src.cli import picture_file
from src.drawing import save
from src.errors import UserError
from src.files import parse_record, read_json
from src.search.choosing import Predictor, decide

STAGES = (slice(0, 2), slice(2, 5), slice(5, 8))
CHOICES = (SKIP, "K3E3", "K5E6")  # by digit
DIGITS = "012"
NAME = re.compile("[12][012][12][012]{2}[12][012]{2}")  # of this space
CLASSES = 10  # of CIFAR-10
BANDS = (50, 60, 70, 80)  # million multiply-adds
TOLERANCE = 0.02  # half the width of a band, as a fraction of its cost
FEWEST = 5  # networks with fewest parameters whose mean is printed
FOLDS = 10

Percent = Annotated[float, Field(ge=0, le=100)]


# The space.


@cache
def space() -> SearchSpace:
    """That of the networks whose stages keep their first layer."""
    return load_space("nas_bench_macro")


def decisions(name: str) -> list[str]:
    """What eight digits stand for."""
    return [CHOICES[int(digit)] for digit in name]


def name_of(choices: Iterable[str]) -> str:
    """Inverse of ``decisions``."""
    return "".join(str(CHOICES.index(choice)) for choice in choices)


@cache
def cost(name: str) -> Cost:
    """Parameters and multiply-adds."""
    return network_cost(space().derive(decisions(name), name), CLASSES)


@cache
def costs() -> CostTable:
    """Million multiply-adds, as a search and serving count them."""
    side = space().image_size
    return arithmetic_table(space(), "macs", CLASSES, (side, side))


def canonical(name: str) -> str:
    """The equivalent name with the zeros last within each stage."""
    return name_of(space().canonical(decisions(name)))


@cache
def equivalents() -> Mapping[str, tuple[str, ...]]:
    """All names by their canonical name: 1944 names of 1176 networks."""
    groups: dict[str, tuple[str, ...]] = {}
    for name in sorted(
        map(name_of, itertools.product(*(layer.names for layer in space().searched.values())))
    ):
        groups[canonical(name)] = (*groups.get(canonical(name), ()), name)
    return groups


def of_all_names(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Accuracies of networks by all of their names: one without its own has the canonical one's."""
    return {
        name: accuracies.get(name, accuracies.get(key, math.nan))
        for key, names in equivalents().items()
        for name in names
        if name in accuracies or key in accuracies
    }


def within(names: Iterable[str], macs: float) -> list[str]:
    """Those of the networks that have ``macs`` multiply-adds, give or take 2 %."""
    return [name for name in names if abs(cost(name).macs - macs) <= TOLERANCE * macs]


# The table.


@dataclass(frozen=True)
class Entry:
    """A network of the table: test accuracies of its three trainings, in percent.

    Attributes:
        std: of ``test_acc``, divided by n.
        flops: multiply-adds of convolutions and classifier.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    test_acc: tuple[Percent, Percent, Percent]
    mean_acc: Percent
    std: Percent
    params: int
    flops: int


def seed_noise(entries: Collection[Entry]) -> float:
    """Standard deviation between trainings of one network: root mean square over networks."""
    variances = [statistics.variance(entry.test_acc) for entry in entries]
    return math.sqrt(statistics.mean(variances)) if variances else math.nan


class Truth(NamedTuple):
    """Accuracy in percent, NaN where unknown, and whether a prediction went into it."""

    top1: float
    predicted: bool = False

    def __str__(self) -> str:
        return figure(self.top1, 2, self.predicted)


def mean_truth(truths: Collection[Truth]) -> Truth:
    """Mean accuracy; unknown where there is none."""
    accuracies = [truth.top1 for truth in truths] or [math.nan]
    return Truth(statistics.mean(accuracies), any(truth.predicted for truth in truths))


@dataclass(frozen=True)
class Table:
    """Networks of the space that were trained.

    Attributes:
        entries: by name, canonical or not.
        predicted: accuracies by canonical name, for networks without entries.
    """

    entries: Mapping[str, Entry]
    predicted: Mapping[str, float] = field(default_factory=dict)

    def entries_of(self, name: str) -> list[Entry]:
        """The entry of that name, else that of the canonical one, else of all equivalent names."""
        for names in ((name,), (canonical(name),), equivalents()[canonical(name)]):
            if found := [self.entries[each] for each in names if each in self.entries]:
                return found
        return []

    def truth(self, name: str) -> Truth:
        """Mean accuracy of ``entries_of``; without any, the predicted one."""
        if entries := self.entries_of(name):
            return mean_truth([Truth(entry.mean_acc) for entry in entries])
        return Truth(self.predicted.get(canonical(name), math.nan), bool(self.predicted))

    def known(self, names: Iterable[str]) -> dict[str, Truth]:
        """``truth`` of those networks that have one."""
        truths = {name: self.truth(name) for name in names}
        return {name: truth for name, truth in truths.items() if not math.isnan(truth.top1)}

    def band(self, macs: float) -> list[Entry]:
        """Entries whose multiply-adds are ``macs``, give or take 2 %."""
        return [self.entries[name] for name in within(self.entries, macs)]

    def improvement(self, name: str) -> float:
        """RI of a network over the mean of its band; NaN where one of them is unknown."""
        mean = mean_truth([Truth(entry.mean_acc) for entry in self.band(cost(name).macs)])
        return 100 * (self.truth(name).top1 - mean.top1) / mean.top1

    def fewest_parameters(self, macs: float) -> Truth:
        """Mean of the five distinct networks with fewest parameters among those of equal cost.

        Of equally many parameters the lesser name counts first. Of fewer than five that are known
        it is the mean of all.
        """
        known = self.known(within(equivalents(), macs))
        names = sorted(known, key=lambda name: (cost(name).params, name))
        return mean_truth([known[name] for name in names[:FEWEST]])


def check_costs(entries: Mapping[str, Entry], origin: str) -> None:
    """Raise UserError unless all entries have the costs that ``src.arch.cost`` counts."""
    for name, entry in entries.items():
        if (entry.params, entry.flops) != cost(name):
            raise UserError(
                f"{origin}: network '{name}': params {entry.params}, flops {entry.flops}; "
                f"counted are {cost(name).params} and {cost(name).macs}"
            )


def read_table(path: Path) -> Table:
    """The published file or a part of it; UserError where something in it is malformed."""
    data = read_json(path)
    if not isinstance(data, Mapping):
        raise UserError(f"{path}: not an object with an entry for each network")
    entries = {}
    for name, record in data.items():
        if not re.fullmatch(f"[{DIGITS}]{{8}}", name):
            raise UserError(f"{path}: network '{name}' is not eight digits of 0, 1 and 2")
        if NAME.fullmatch(name):
            entries[name] = parse_record(Entry, record, f"{path}: network '{name}'")
    if not entries:
        raise UserError(f"{path}: no network without a 0 at the first layer of a stage")
    check_costs(entries, str(path))
    return Table(entries)


# Results.


@dataclass(frozen=True)
class Line:
    """The choices of a network, and its accuracy in percent with the weights of a supernet."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    decisions: tuple[str, ...]
    top1: Percent


def parse_json(text: str) -> object:
    """What the text holds; None where it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_accuracies(path: Path, text: str) -> dict[str, float]:
    """Accuracies by name, from JSON lines of which the first may be a header with a format."""
    accuracies: dict[str, float] = {}
    for number, words in enumerate(text.splitlines(), start=1):
        origin, data = f"{path}: line {number}", parse_json(words)
        if not isinstance(data, Mapping):
            raise UserError(
                f"{origin}: '{words[:40]}' is no JSON object; a result is an architecture file or "
                "lines of scripts/evaluate_subnets.py"
            )
        if number == 1 and "format" in data:
            continue
        line = parse_record(Line, data, origin)
        try:
            space().check(line.decisions)
        except SpaceError as error:
            raise UserError(f"{origin}: {error}") from None
        name = name_of(line.decisions)
        if name in accuracies:
            raise UserError(f"{origin}: network '{name}' is repeated")
        accuracies[name] = line.top1
    if not accuracies:
        raise UserError(f"{path}: no accuracies")
    return accuracies


def read_result(path: Path) -> str | dict[str, float]:
    """Canonical name of the network that was found, or accuracies by a supernet."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as text ({error})") from None
    data = parse_json(text)
    if isinstance(data, Mapping) and data.get("format") == FORMAT:
        arch = Architecture.from_dict(data, str(path))
        try:
            return name_of(space().decisions_of(arch))
        except SpaceError as error:
            raise UserError(f"{path}: {error}") from None
    return read_accuracies(path, text)


# Prediction.


def features(name: str) -> np.ndarray:
    """One-hot choices, counts of choices by stage, products of two counts, costs; (80,)."""
    name = canonical(name)
    one_hot = [digit == choice for digit in name for choice in DIGITS]
    counts = np.array([name[stage].count(digit) for stage in STAGES for digit in DIGITS])
    products = np.outer(counts, counts)[np.triu_indices(len(counts))]
    return np.concatenate([one_hot, counts, products, np.array(cost(name)) / 1e6])


def predict(entries: Mapping[str, Entry]) -> tuple[dict[str, float], dict[str, float]]:
    """Ridge regression on the entries of a table.

    Fitted to one row for each distinct network, weighted by its entries: so that cross-validation
    never predicts a network from an equivalent name of it.

    Returns:
        Accuracies of all networks in percent, by canonical name; and the errors of ``entries`` in
        points, each predicted by a fit without a tenth of the distinct networks.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows: dict[str, list[float]] = {}
    for name, entry in entries.items():
        rows.setdefault(canonical(name), []).append(entry.mean_acc)
    if len(rows) < 2 * FOLDS:
        raise UserError(f"--predict needs {2 * FOLDS} distinct networks, the table has {len(rows)}")
    inputs = np.stack([features(name) for name in rows])
    means = np.array([statistics.mean(values) for values in rows.values()])
    weights = {"ridgecv__sample_weight": np.array([len(values) for values in rows.values()])}
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13)))
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    unseen = cross_val_predict(model, inputs, means, cv=folds, params=weights)
    by_name = dict(zip(rows, unseen, strict=True))
    outputs = model.fit(inputs, means, **weights).predict(np.stack([*map(features, equivalents())]))
    return (
        dict(zip(equivalents(), outputs.tolist(), strict=True)),
        {name: float(by_name[canonical(name)]) - each.mean_acc for name, each in entries.items()},
    )


# Figures.


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; NaN for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


# Counting, which needs no training: the more, the better the network should be.
FEWEST_PARAMETERS = "fewest parameters"  # says nothing across different costs
CONTROLS: Mapping[str, Callable[[str], float]] = {
    "multiply-adds": lambda name: cost(name).macs,
    FEWEST_PARAMETERS: lambda name: -cost(name).params,
    "multiply-adds - 10 x parameters": lambda name: cost(name).macs - 10 * cost(name).params,
}


def rank_correlation(truths: Mapping[str, Truth], score: Callable[[str], float]) -> float:
    """Kendall's tau (b) of scores and truths; NaN for fewer than two or where all are equal."""
    accuracies = [truth.top1 for truth in truths.values()]
    return float(kendalltau(list(map(score, truths)), accuracies).statistic)


def groups_of_cost(names: Iterable[str]) -> list[list[str]]:
    """Networks, cheapest first, in groups that fit into one band."""
    groups, rest = [], sorted(names, key=lambda name: cost(name).macs)
    while rest:
        most = cost(rest[0]).macs * (1 + TOLERANCE) / (1 - TOLERANCE)
        groups.append([name for name in rest if cost(name).macs <= most])
        rest = rest[len(groups[-1]) :]
    return groups


# Printing.


def figure(value: float, decimals: int = 2, predicted: bool = False) -> str:
    """A number, or - for one that is undefined."""
    return "-" if math.isnan(value) else f"{'~' if predicted else ''}{value:.{decimals}f}"


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the first aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print("  ".join((first.ljust(widths[0]), *cells)))


def served(path: Path, accuracies: Mapping[str, float], limit: float) -> str:
    """The network that serving chooses of those evaluated, within million multiply-adds."""
    known = {space().canonical(decisions(name)): top1 for name, top1 in accuracies.items()}
    table = costs()
    if all(table.total(network) > limit for network in known):
        raise UserError(f"{path}: has no network within --within {limit:g} M multiply-adds")
    return name_of(decide(Predictor(space(), known), table, limit, known).decisions)


def print_correlations(
    title: str, truths: Mapping[str, Truth], scores: Mapping[str, Callable[[str], float]]
) -> None:
    """Print Kendall's tau of scores and of controls, over all networks and within bands."""
    groups = {"all": dict(truths)}
    for band in BANDS:
        groups[f"{band} M"] = {name: truths[name] for name in within(truths, band * 1e6)}
    rows = [[title, *groups], ["networks", *(str(len(group)) for group in groups.values())]]
    rows.append(["distinct", *(str(len(set(map(canonical, each)))) for each in groups.values())])
    for label, score in {**scores, **CONTROLS}.items():
        rows.append([f"tau: {label}"])
        for key, group in groups.items():
            undefined = label == FEWEST_PARAMETERS and key == "all"
            tau = math.nan if undefined else rank_correlation(group, score)
            rows[-1].append(figure(tau, 3, mean_truth(group.values()).predicted))
    print()
    print_rows(rows)


def found_row(table: Table, path: Path, name: str) -> dict[str, str]:
    """What the table says of a network that was found, by titles of columns."""
    (params, macs), truth = cost(name), table.truth(name)
    band = table.band(macs)
    accuracies = [entry.mean_acc for entry in band] or [math.nan]
    percentile = float(percentileofscore(accuracies, truth.top1, kind="mean"))
    return {
        "found": str(path),
        "network": name,
        "M madds": f"{macs / 1e6:.2f}",
        "M params": f"{params / 1e6:.2f}",
        "top-1": "not in the table" if math.isnan(truth.top1) else str(truth),
        "seeds": figure(seed_noise(table.entries_of(name))),
        "RI %": figure(table.improvement(name), 2, truth.predicted),
        "percentile": figure(percentile, 1, truth.predicted),
        "band": str(len(band)),
        "mean": figure(statistics.mean(accuracies)),
        "sd": figure(deviation(accuracies)),
        "90 %": figure(float(np.percentile(accuracies, 90))),
        "best": figure(max(accuracies)),
        "band's seeds": figure(seed_noise(band)),
        "fewest params": str(table.fewest_parameters(macs)),
    }


def print_found(table: Table, found: Sequence[tuple[Path, str]]) -> None:
    """Print networks that were found, and the means of those of the same cost."""
    rows = [found_row(table, path, name) for path, name in found]
    print()
    print_rows([list(rows[0]), *(list(row.values()) for row in rows)])
    for group in groups_of_cost(name for _, name in found if table.known([name])):
        if len(group) > 1:
            macs = statistics.mean(cost(name).macs for name in group)
            truths = [table.truth(name) for name in group]
            gains = [table.improvement(name) for name in group]
            print(
                f"mean of {len(group)} at {macs / 1e6:.1f} M: top-1 {mean_truth(truths)} "
                f"(sd {figure(deviation([truth.top1 for truth in truths]))}), "
                f"RI {figure(statistics.mean(gains), 2, mean_truth(truths).predicted)} % "
                f"(sd {figure(deviation(gains))}), "
                f"{FEWEST_PARAMETERS} {table.fewest_parameters(macs)}"
            )


def draw(table: Table, found: Sequence[tuple[Path, str]], path: Path) -> None:
    """Draw accuracy over cost: all networks, those found, and what counting reaches in the bands.

    Networks whose accuracy is predicted are pale.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    known = table.known(equivalents())
    for predicted, label, color in ((True, "predicted", "0.85"), (False, "in the table", "0.6")):
        names = [name for name, truth in known.items() if truth.predicted == predicted]
        if names:
            top1 = [known[name].top1 for name in names]
            macs = [cost(name).macs / 1e6 for name in names]
            axis.scatter(macs, top1, s=8, color=color, label=label)
    for number, band in enumerate(BANDS):
        names = within(known, band * 1e6)
        if not names:
            continue
        sides = [band * (1 - TOLERANCE), band * (1 + TOLERANCE)]
        for top1, style, label in (
            (mean_truth([known[name] for name in names]).top1, "-", "mean of equal cost"),
            (table.fewest_parameters(band * 1e6).top1, ":", f"{FEWEST} with {FEWEST_PARAMETERS}"),
        ):
            axis.plot(sides, [top1, top1], style, color="k", label="" if number else label)
    marked = table.known(name for _, name in found)
    if marked:
        top1 = [truth.top1 for truth in marked.values()]
        macs = [cost(name).macs / 1e6 for name in marked]
        axis.scatter(macs, top1, s=60, marker="*", color="C3", label="found", zorder=3)
    axis.set(xlabel="million multiply-adds", ylabel="top-1 (%)")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    save(figure, path)


def print_errors(errors: Mapping[str, float]) -> None:
    """Print the size of errors of prediction, in points of accuracy."""
    for title, names in (("all", list(errors)), ("the 60 M band", within(errors, 60e6))):
        sizes = [abs(errors[name]) for name in names] or [math.nan]
        square = math.sqrt(statistics.mean(size**2 for size in sizes))
        print(
            f"~ error of prediction over {title} ({len(names)} networks): "
            f"mean {figure(statistics.mean(sizes))}, root mean square {figure(square)} points"
        )


def judge(args: argparse.Namespace) -> None:
    """Read everything, then print."""
    table = read_table(args.table)
    results = [(path, read_result(path)) for path in args.results]
    if args.predict:
        predicted, errors = predict(table.entries)
        table = replace(table, predicted=predicted)
        print_errors(errors)
    print_correlations(str(args.table), table.known(table.entries), {})
    means = (f"{band} M {table.fewest_parameters(band * 1e6)}" for band in BANDS)
    print(f"top-1 of the {FEWEST} with {FEWEST_PARAMETERS}: {', '.join(means)}")
    found = [(path, name) for path, name in results if isinstance(name, str)]
    if args.within is not None and len(found) == len(results):
        raise UserError("within is for accuracies of networks, of which no file is given")
    for path, accuracies in results:
        if isinstance(accuracies, dict):
            if args.within is not None:
                found.append((path, served(path, accuracies, args.within)))
            every = of_all_names(accuracies)
            truths = table.known(every)
            print_correlations(str(path), truths, {"supernet": every.__getitem__})
            if missing := [name for name in accuracies if name not in truths]:
                print(f"not in the table: {len(missing)}, the first is {missing[0]}")
    if found:
        print_found(table, found)
    if args.plot:
        draw(table, found, args.plot)


def main(argv: list[str] | None = None) -> int:
    """Read, compute and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True, help="published JSON, or a part of it")
    parser.add_argument("--predict", action="store_true", help="predict what the table lacks")
    parser.add_argument("--within", type=float, help="limit of a served network, million madds")
    parser.add_argument("--plot", type=picture_file, metavar="FILE", help="draw accuracy over cost")
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT")
    args = parser.parse_args(argv)
    return run(lambda: judge(args))


if __name__ == "__main__":
    sys.exit(main())
