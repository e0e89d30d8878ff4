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

from src.arch.cost_table import CostTable, read_table, write_table
from src.arch.space import shipped_spaces
from src.cli import build_config
from src.config import ProfileConfig
from src.errors import UserError
from src.latency.machine import utc_now
from src.latency.meters import Meter
from src.latency.plan import ProfilePlan
from src.latency.runtimes import LIBRARIES, runtime_of
from src.latency.session import Session, measure
from src.latency.statistics import Summary
from src.latency.tables import conditions

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


def with_conditions_of(name_or_file: str, config: ProfileConfig) -> ProfileConfig:
    """The configuration for measuring again what a table was made of.

    What the configuration leaves out is what the table says; what it gives is compared with the
    table before anything is measured.

    Raises:
        UserError: the table is of a space that is not shipped, which is not given.
    """
    table, path = read_table(name_or_file)
    given, then = config.model_dump(exclude_unset=True), conditions(table)
    if "space" not in given and table.space not in shipped_spaces():
        raise UserError(f"{path}: space '{table.space}' is not shipped; give its file by --space")
    values = {key: then[key] for key in ("space", "batch_size", "threads", "precision")}
    values |= {"num_classes": then["num_classes"], "input_size": then["image_size"]}
    values["runtime"] = name = runtime_of(table.runtime)
    if name and table.device in LIBRARIES[name].devices:  # a processor has its own name
        values["device"] = table.device
    if Path(name_or_file).is_file():
        values["out"] = str(path)
    known = {key: value for key, value in values.items() if value is not None}
    return build_config(ProfileConfig, {**known, **given}, path)


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
