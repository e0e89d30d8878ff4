"""How many evaluations the choice of a served network needs, against an exhaustive search.

    python benchmarks/choosing.py docs/results/train_once/random.jsonl --limit 60 --table FILE

ACCURACIES holds the accuracies of most networks of ``nas_bench_macro`` within the limit, as
``search.py --from_supernet --evaluations 500`` leaves them in ``subnets.jsonl``. The choice is made
again from it, for several numbers of evaluations and many seeds, and nothing is evaluated.

A measured accuracy is one of few images, so the highest is not the best. A choice is judged by what
a ridge regression on all the accuracies, with products of choices (``nas_bench_macro.features``),
expects of the network: "expected", in percent. "lost" is the difference to the network of which it
expects most. Networks that the file lacks, those that its search expected least of, have the
expected accuracy. With ``--table`` the published accuracies judge too, or what a regression on them
expects.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.contenders import run
from benchmarks.nas_bench_macro import (
    cost,
    costs,
    equivalents,
    features,
    mean_truth,
    name_of,
    predict,
    print_rows,
    read_result,
    read_table,
    space,
)
from src.errors import UserError
from src.search.choosing import Chooser


def choices(known: Mapping[str, float], limit: float, evaluations: int, seeds: int) -> list[str]:
    """The network that is chosen, by name, for each seed."""

    def choose(seed: int) -> str:
        chooser = Chooser(space(), costs(), [limit], lambda network: known[name_of(network)], seed)
        return name_of(chooser.choose(evaluations)[0].decisions)

    return [choose(seed) for seed in range(seeds)]


def expectations(known: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """What a ridge regression on all accuracies expects of networks, in percent."""
    inputs, values = np.stack([*map(features, known)]), np.array([*known.values()])
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 15))).fit(inputs, values)
    return dict(zip(names, model.predict(np.stack([*map(features, names)])).tolist(), strict=True))


def measure(args: argparse.Namespace) -> None:
    """Choose for all numbers of evaluations and print what the choices are worth."""
    read = read_result(args.accuracies)
    if isinstance(read, str):
        raise UserError(f"{args.accuracies}: an architecture, should be accuracies of networks")
    if args.seeds < 1:
        raise UserError(f"seeds is {args.seeds}, should be at least 1")
    within = [name for name in equivalents() if cost(name).macs / 1e6 <= args.limit]
    measured = {name: read[name] for name in within if name in read}
    if not measured or 2 * len(measured) < len(within):
        raise UserError(
            f"{args.accuracies}: has {len(measured)} of the {len(within)} networks within "
            f"{args.limit:g} M multiply-adds, should have most of them"
        )
    expected = expectations(measured, within)
    known = {**expected, **measured}
    best = max(expected.values())
    table = read_table(args.table) if args.table else None
    if table:
        table = replace(table, predicted=predict(table.entries)[0])

    def row(title: str, chosen: Sequence[str]) -> list[str]:
        values = [expected[name] for name in chosen]
        cells = [
            title,
            f"{statistics.mean(values):.2f}",
            f"{best - statistics.mean(values):.2f}",
            f"{best - min(values):.2f}",
        ]
        if table:
            cells.append(str(mean_truth([table.truth(name) for name in chosen])))
        return cells

    print(
        f"{len(known)} networks within {args.limit:g} M multiply-adds, {len(measured)} of them "
        f"evaluated; {args.seeds} seeds"
    )
    rows = [["evaluations", "expected", "lost", "at worst", *(["by the table"] if table else [])]]
    for evaluations in args.evaluations:
        rows.append(row(str(evaluations), choices(known, args.limit, evaluations, args.seeds)))
    rows.append(row("all, most expected", [max(expected, key=expected.__getitem__)]))
    rows.append(row("all, highest measured", [max(measured, key=measured.__getitem__)]))
    rows.append(row("random network", list(known)))
    print_rows(rows)


def main(argv: list[str] | None = None) -> int:
    """Read, choose and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("accuracies", type=Path, metavar="ACCURACIES")
    parser.add_argument("--limit", type=float, required=True, help="million multiply-adds")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[20, 40, 100, 200])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--table", type=Path, help="published JSON, or a part of it")
    args = parser.parse_args(argv)
    return run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
