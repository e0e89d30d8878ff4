"""The machine's own speed: a shared machine changes it, and no table can predict that.

A table's smallest and largest network tell it: their latency now, relative to that in the profile.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from src.arch.cost_table import CostTable, write_table
from src.errors import UserError
from src.latency.machine import utc_now
from src.latency.meters import Meter
from src.latency.plan import ProfilePlan
from src.latency.session import Session, measure
from src.latency.statistics import Summary

log = logging.getLogger(__name__)


def ends_of(table: CostTable) -> dict[str, list[str]]:
    """Decisions of the smallest and the largest measured network by name; none of a merged table.

    A profile measures them first.
    """
    networks = table.provenance.get("networks", {})
    return {name: facts["decisions"].split() for name, facts in islice(networks.items(), 2)}


def machine_factor(table: CostTable, found: Mapping[str, Summary]) -> float:
    """How slow the machine is now, relative to the table: the mean over its two ends.

    Args:
        table: says what they took in its profile, and by what it was scaled since.
        found: what they took now, by name.
    """
    then = table.provenance["networks"]
    ratios = [found[name].median_ms / then[name]["median_ms"] for name in ends_of(table)]
    return float(np.mean(ratios)) / table.provenance.get("rescaled", {}).get("factor", 1.0)


def rescale(
    plan: ProfilePlan, meter: Meter, folder: Path, table: CostTable, origin: str, out: Path
) -> None:
    """Measure a table's two ends again, and write the table for the machine's speed of now.

    Args:
        plan: of the table's space and conditions.
        meter: measures them.
        folder: keeps the samples until the table is written.
        table: is scaled.
        origin: names its file in errors.
        out: the file to write.

    Raises:
        UserError: the table does not say what its ends took.
    """
    ends = ends_of(table)
    if not ends:
        raise UserError(
            f"{origin}: holds no measured networks, as it is merged or of another origin; "
            "measure it again"
        )
    session = Session(folder, plan.settings(meter.version, "rescale"))
    found = measure(session, meter, plan.networks(ends), plan.config)
    factor = machine_factor(table, found.summaries)
    write_table(out, scaled(table, factor))
    session.close()
    log.info("%s: scaled by %.3f, the time of the smallest and the largest network", out, factor)


def scaled(table: CostTable, factor: float) -> CostTable:
    """The table with all its costs times a factor; it says by what it was scaled since its profile.

    What it holds of single measurements stays as it was measured.
    """
    total = factor * table.provenance.get("rescaled", {}).get("factor", 1.0)
    layers = {
        name: {choice: round(factor * cost, 5) for choice, cost in entries.items()}
        for name, entries in table.layers.items()
    }
    record = {"factor": round(total, 5), "date": utc_now()}
    return replace(
        table,
        constant=round(factor * table.constant, 5),
        layers=layers,
        provenance={**table.provenance, "rescaled": record},
    )
