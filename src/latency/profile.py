"""From a search space and a device to a latency table.

Each different block of the space is measured as a model of its own, interleaved with a few whole
networks, which then tell what a block costs within a network. What is measured is kept beside the
table until the table is written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.arch.cost_table import UNIT, CostTable, load_table, write_table
from src.arch.space import SKIP, load_space
from src.config import ProfileConfig
from src.errors import Fault, UserError
from src.files import make_folder
from src.latency.drift import rescale, with_conditions_of
from src.latency.machine import simd_extensions, utc_now
from src.latency.meters import Meter, open_meter
from src.latency.model import Model
from src.latency.plan import ProfilePlan
from src.latency.session import Measurement, Session, measure
from src.latency.statistics import Correction, Verdict, fit_correction, judge
from src.latency.verification import check_conditions, verify
from src.utils import environment

log = logging.getLogger(__name__)

Blocks = Mapping[str, Mapping[str, Model]]  # by layer and choice


def profile(config: ProfileConfig) -> int:
    """Write the latency table of ``config``, verify it, or both; or scale another one."""
    if config.rescale:
        config = with_conditions_of(config.rescale, config)
    plan, out = ProfilePlan(load_space(config.space), config), Path(config.out)
    make_folder(out.parent)
    old = load_table(config.rescale, plan.space) if config.rescale else None
    in_place = old is not None and Path(str(config.rescale)).resolve() == out.resolve()
    if out.exists() and not (in_place or config.verify):
        raise UserError(f"{out}: is there already; choose another --out, or --verify N to check it")
    if config.verify:
        plan.networks_to_verify(())  # mistakes in given files are told before anything is measured
    folder = out.with_suffix(".partial")
    try:
        meter = open_meter(plan.runtime, folder)
        if old:
            check_conditions(old, plan, meter, str(config.rescale))
            rescale(plan, meter, folder, old, str(config.rescale), out)
        elif not out.exists():
            _make_table(plan, meter, folder, out)
        if config.verify:
            verify(plan, meter, folder, out)
    except KeyboardInterrupt:  # the samples so far are in the folder
        start = f" from {folder}" if folder.exists() else ""
        state = "as it was" if out.exists() else "not written"
        raise Fault(f"interrupted; the same command continues{start}, {out} is {state}") from None
    return 0


def _make_table(plan: ProfilePlan, meter: Meter, folder: Path, out: Path) -> None:
    # Which networks "network0" and so on are depends on their number.
    settings = {**plan.settings(meter.version, "table"), "fit_networks": plan.config.fit_networks}
    session = Session(folder, settings)
    blocks = plan.blocks()
    distinct = {model.name: model for entries in blocks.values() for model in entries.values()}
    chosen = plan.networks_to_fit(plan.config.fit_networks)
    log.info(
        "space %s: %d different blocks of %d, and %d whole networks",
        plan.space.name,
        len(distinct),
        sum(map(len, blocks.values())),
        len(chosen),
    )
    models = [*distinct.values(), *plan.networks(chosen)]
    found = measure(session, meter, models, plan.config)

    correction = _fit(blocks, chosen, found)
    table = CostTable(
        name=out.stem,
        space=plan.space.name,
        device=plan.device,
        runtime=meter.version,
        batch_size=plan.config.batch_size,
        unit=UNIT,
        constant=round(correction.constant_ms, 5),
        layers=_entries(plan, blocks, correction, found),
    )
    fit = judge(
        [table.total(decisions) for decisions in chosen.values()],
        [found.summaries[name].median_ms for name in chosen],
    )
    provenance = {
        **_circumstances(plan, found),
        "correction": {**correction.to_dict(), "fitted": fit.to_dict()},
        "isolated": {name: found.summaries[name].to_dict() for name in distinct},
        "networks": {
            name: {"decisions": " ".join(decisions), **found.summaries[name].to_dict()}
            for name, decisions in chosen.items()
        },
    }
    write_table(out, replace(table, provenance=provenance))
    session.close()
    _report(out, table, correction, fit)


def _fit(blocks: Blocks, chosen: Mapping[str, Sequence[str]], found: Measurement) -> Correction:
    """What a block costs within a network, from the medians of blocks and of whole networks."""
    of_networks = [
        [
            blocks[layer][choice]
            for layer, choice in zip(blocks, decisions, strict=True)
            if choice != SKIP
        ]
        for decisions in chosen.values()
    ]
    return fit_correction(
        [[found.summaries[model.name].median_ms for model in models] for models in of_networks],
        [[model.million_weights for model in models] for models in of_networks],
        [found.summaries[name].median_ms for name in chosen],
    )


def _entries(
    plan: ProfilePlan, blocks: Blocks, correction: Correction, found: Measurement
) -> dict[str, dict[str, float]]:
    """Milliseconds of each choice within a network, by layer."""
    layers = {}  # five decimals are 10 ns, far below what is measured
    for name, layer in plan.space.searched.items():
        layers[name] = {
            choice: round(
                correction.entry(found.summaries[model.name].median_ms, model.million_weights), 5
            )
            for choice, model in blocks[name].items()
        }
        if layer.skippable:
            layers[name][SKIP] = 0.0
    return layers


def _circumstances(plan: ProfilePlan, found: Measurement) -> dict[str, Any]:
    """When, with what and in how many rounds a table was measured."""
    versions = environment(plan.config.device)
    return {
        "source": "scripts/profile_latency.py",
        "date": utc_now(),
        **plan.conditions(),
        "versions": {key: versions[key] for key in ("python", "mindspore", "numpy", "commit")},
        "simd": simd_extensions(),
        "rounds": found.rounds,
        "noise": round(found.noise, 4),
    }


def _report(out: Path, table: CostTable, correction: Correction, fit: Verdict) -> None:
    log.info(
        "a block costs %.3f of its isolated time, %+.3f ms per million weights, %+.3f ms; "
        "the rest of a network %.3f ms",
        correction.slope,
        correction.weight_ms,
        correction.offset_ms,
        correction.constant_ms,
    )
    log.info(
        "%s: networks of space %s cost %.3f to %.3f ms; fitted networks err by %.1f %% (RMSE)",
        out,
        table.space,
        *table.range(),
        100 * fit.rmse,
    )
