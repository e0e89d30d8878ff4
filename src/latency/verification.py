"""How well a latency table predicts networks to which it was not fitted."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.arch.cost_table import CostTable, load_table, write_table
from src.errors import UserError
from src.latency.drift import ends_of, machine_factor
from src.latency.machine import utc_now
from src.latency.meters import Meter
from src.latency.plan import ProfilePlan
from src.latency.session import Session, measure
from src.latency.statistics import RMSE_LIMIT, TAU_LIMIT, Summary, Verdict, judge
from src.latency.tables import conditions, fitted_decisions

log = logging.getLogger(__name__)

DRAWS = {
    "range": "random ones, one in each equal part of the range of multiply-adds, "
    "and the shipped ones",
    "uniform": "random ones, uniform in their decisions, and the shipped ones",
}


def verify(plan: ProfilePlan, meter: Meter, folder: Path, out: Path) -> None:
    """Measure networks, compare them with a table, and write the verdict into it.

    Args:
        plan: names the space, and the networks to measure.
        meter: measures them.
        folder: keeps the samples until the verdict is written.
        out: the table.

    Raises:
        UserError: the table was measured under other conditions than those of now.
    """
    table = load_table(out, plan.space)
    check_conditions(table, plan, meter, str(out))
    fitted = fitted_decisions(table)
    chosen = plan.networks_to_verify(fitted)
    # Shipped and given networks may be among those to which the table was fitted.
    judged = [name for name, decisions in chosen.items() if " ".join(decisions) not in fitted]
    if len(judged) < 2:
        raise UserError(
            f"verify is {plan.config.verify}: a table is judged by two networks or more to which "
            f"it was not fitted, and of those chosen there are {len(judged)}; choose more"
        )
    ends = ends_of(table)
    settings = plan.settings(meter.version, "verification")
    session = Session(folder, {**settings, "networks": [list(names) for names in chosen.values()]})
    draw = DRAWS[plan.config.verify_draw]
    log.info("verification of %s by %d networks: %s", out, len(judged), draw)
    models = [*plan.networks(chosen), *plan.networks(ends)]
    found = measure(session, meter, models, plan.config)

    factor = 1.0
    if ends:
        factor = machine_factor(table, found.summaries)
        log.info(
            "machine: the smallest and the largest network took %.3f of their time by the table, "
            "which is no error of the table: predictions are multiplied by it",
            factor,
        )
    predicted = {name: table.total(decisions) for name, decisions in chosen.items()}
    measured = {name: found.summaries[name].median_ms for name in chosen}
    verdict = judge(
        [predicted[name] for name in judged], [measured[name] for name in judged], factor
    )
    _report(predicted, found.summaries, verdict, judged)
    record = {
        "date": utc_now(),
        "drawn": plan.config.verify_draw,
        **verdict.to_dict(),
        "noise": round(found.noise, 4),
        "measured": _networks_record(chosen, predicted, found.summaries),
    }
    write_table(out, replace(table, provenance={**table.provenance, "verification": record}))
    session.close()
    log.info("%s holds the verdict; scripts/report.py %s draws it", out, out)


def check_conditions(table: CostTable, plan: ProfilePlan, meter: Meter, origin: str) -> None:
    """Raise UserError where a table was made under other conditions than those of now."""
    now = {
        "runtime": meter.version,
        "device": plan.device,
        "batch_size": plan.config.batch_size,
        **plan.conditions(),
    }
    then = conditions(table)
    for key, value in now.items():
        if then[key] != value:
            raise UserError(
                f"{origin}: measured with {key} {then[key]!r}, now it is {value!r}; measure again, "
                "with another --out"
            )


def _networks_record(
    chosen: Mapping[str, list[str]],
    predicted: Mapping[str, float],
    summaries: Mapping[str, Summary],
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "decisions": " ".join(decisions),
            "predicted_ms": round(predicted[name], 4),
            **summaries[name].to_dict(),
        }
        for name, decisions in chosen.items()
    }


def _report(
    predicted: Mapping[str, float],
    summaries: Mapping[str, Summary],
    verdict: Verdict,
    judged: Collection[str],
) -> None:
    factor = verdict.machine_factor
    log.info("%-20s %10s %10s %8s %8s", "network", "predicted", "measured", "error", "spread")
    for name, milliseconds in predicted.items():
        measured = summaries[name]
        log.info(
            "%-20s %10.3f %10.3f %+7.1f%% %7.1f%%%s",
            name,
            factor * milliseconds,
            measured.median_ms,
            100 * (factor * milliseconds / measured.median_ms - 1),
            100 * measured.spread,
            "" if name in judged else "  fitted",
        )
    log.info(
        "mean error %+.1f %%, RMSE %.1f %% of the mean latency, worst %+.1f %%, "
        "Kendall's tau %.3f: %s",
        100 * verdict.mean_error,
        100 * verdict.rmse,
        100 * verdict.worst,
        verdict.kendall_tau,
        "within the limits"
        if verdict.passed
        else f"not within the limits of {100 * RMSE_LIMIT:.0f} % and {TAU_LIMIT:g}",
    )
