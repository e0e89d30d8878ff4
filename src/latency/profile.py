"""From a space and a device to a latency table, and from a table to a verdict on it.

Each different block of a space is measured as a model of its own, interleaved with a few whole
networks, which then tell what a block costs within a network. What is measured is kept beside the
table until the table is whole.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from src.arch.architecture import load_architecture, shipped_architectures
from src.arch.blocks import AnyBlock, encode_block
from src.arch.cost import block_cost, conv_out
from src.arch.cost_table import (
    UNIT,
    CostTable,
    CostTableError,
    arithmetic_table,
    load_table,
    write_table,
)
from src.arch.sampling import sample_decisions
from src.arch.space import SKIP, SearchSpace, SpaceError, load_space
from src.config import ProfileConfig
from src.errors import Fault, UserError
from src.files import make_folder, read_jsonl, write_text
from src.latency.runtimes import Model, Runtime, open_runtime
from src.latency.statistics import Summary, fit_correction, judge, summarise_all
from src.latency.tables import conditions
from src.utils import environment

log = logging.getLogger(__name__)

FIT_NETWORKS = (
    22  # whole networks, beside the smallest and the largest, that the correction is fitted to
)
BATCH = 20  # rounds between two looks at the medians; what an interruption loses at most
REPEATS = 2  # samples of a model in each round
STABLE = 0.02  # a median whose 95 % confidence interval reaches no further to either side
NOISY = 0.1
DRAWS = {
    "range": "random ones, one in each equal part of the range of multiply-adds, and the shipped ones",
    "uniform": "random ones, uniform in their decisions, and the shipped ones",
}
SETTINGS = "settings.json"
SAMPLES = "samples.jsonl"
SIMD = ("avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve")


class Session:
    """A measurement that can be interrupted: the folder of what has been measured so far.

    Args:
        folder: is made; that of an interrupted measurement with the same settings is continued.
        settings: all that the samples depend on.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, known = folder, folder / SETTINGS
        self.batches = read_jsonl(folder / SAMPLES)
        before = json.loads(known.read_text(encoding="utf-8")) if known.exists() else settings
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed and self.batches:
            key = changed[0]
            raise UserError(
                f"{folder}: of an interrupted measurement with {key} {before.get(key)!r}, now "
                f"{settings[key]!r}; give the same, or remove the folder"
            )
        if changed:
            self.close()  # models of a measurement that never began
        write_text(make_folder(folder) / SETTINGS, json.dumps(settings))
        if self.batches:
            log.info("%s: continued after %d rounds", folder, self.rounds)

    @property
    def rounds(self) -> int:
        return BATCH * len(self.batches)

    def add(self, samples: Sequence[tuple[int, float]]) -> None:
        self.batches.append({"samples": samples})
        write_text(
            self.folder / SAMPLES, "".join(json.dumps(batch) + "\n" for batch in self.batches)
        )

    def summaries(self) -> tuple[list[Summary], float]:
        """Summary of each model, and the machine's noise."""
        samples = np.array([sample for batch in self.batches for sample in batch["samples"]])
        return summarise_all(samples[:, 0].astype(int), samples[:, 1])

    def close(self) -> None:
        shutil.rmtree(self.folder)


def measure(
    session: Session, runtime: Runtime, models: Sequence[Model], config: ProfileConfig
) -> tuple[dict[str, Summary], float]:
    """Measure models until their medians are stable, or ``config.max_rounds`` are over.

    Returns:
        A summary for each model by name, and the machine's noise.
    """
    terminal = sys.stderr.isatty()
    runtime.prepare(models[0])
    with closing(runtime.measure(models[:1], 1, 0)) as rounds:
        next(rounds)  # a device that is not there is told before all models are made
    for model in tqdm(
        models, desc="preparing models", unit="model", leave=False, disable=not terminal
    ):
        runtime.prepare(model)
    with (
        tqdm(
            initial=session.rounds,
            total=config.max_rounds,
            desc="measuring",
            unit="round",
            leave=False,
            disable=not terminal,
        ) as bar,
        closing(runtime.measure(models, REPEATS, config.seed + len(session.batches))) as rounds,
    ):
        while True:
            if session.batches:
                summaries, noise = session.summaries()
                worst = max(summary.margin for summary in summaries)
                if session.rounds >= config.max_rounds or (
                    worst <= STABLE and len(session.batches) > 1
                ):
                    break
                # A margin shrinks with the root of the samples.
                bar.total = min(
                    config.max_rounds,
                    max(session.rounds * (worst / STABLE) ** 2, session.rounds + BATCH),
                )
                bar.set_postfix_str(f"widest margin {worst:.1%}, noise {noise:.0%}")
            samples: list[tuple[int, float]] = []
            for round_samples in islice(rounds, BATCH):
                samples += round_samples
                bar.update()
            session.add(samples)
    _report(models, summaries, noise, session.rounds)
    return {model.name: summary for model, summary in zip(models, summaries)}, noise


def _report(
    models: Sequence[Model], summaries: Sequence[Summary], noise: float, rounds: int
) -> None:
    """Say how far the measurement can be trusted."""
    unstable = [summary for summary in summaries if summary.margin > STABLE]
    log.info(
        "%d models measured in %d rounds, medians known to %.1f %% or better",
        len(models),
        rounds,
        100 * max(summary.margin for summary in summaries),
    )
    log.info(
        "noise: half of a model's samples lie within %.1f %% of each other%s",
        100 * noise,
        "; the machine is noisy, and a quiet one gives a better table" if noise > NOISY else "",
    )
    outliers, total = sum(s.outliers for s in summaries), sum(s.samples for s in summaries)
    model, most = max(zip(models, summaries), key=lambda pair: pair[1].outliers)
    most_of = (
        f", most of {model.name}: {most.outliers}, up to {most.largest_ms:.3f} ms; its median is "
        f"{most.median_ms:.3f} ms"
    )
    log.info("outliers: %d of %d samples%s", outliers, total, most_of if outliers else "")
    if unstable:
        log.warning(
            "%d of %d medians are not stable to %.0f %% after %d rounds; --max_rounds allows more",
            len(unstable),
            len(models),
            100 * STABLE,
            rounds,
        )


@dataclass(frozen=True)
class ProfilePlan:
    """What there is to measure for a space under a configuration."""

    space: SearchSpace
    config: ProfileConfig

    @property
    def image_size(self) -> int:
        return self.config.input_size or self.space.image_size

    def blocks(self) -> dict[str, dict[str, Model]]:
        """The block of each searched layer and choice but SKIP; equal ones have equal models."""
        side, blocks = conv_out(self.image_size, self.space.stem_stride), {}
        for index, layer in enumerate(self.space.layers):
            if f"layer{index}" in self.space.searched:
                blocks[f"layer{index}"] = {
                    choice: self._block(layer.block(choice), side) for choice in layer.choices
                }
            side = conv_out(side, layer.stride)
        return blocks

    def _block(self, block: AnyBlock, side: int) -> Model:
        return Model(
            f"{encode_block(block)}_{side}x{side}",
            block,
            (self.config.batch_size, block.in_channels, side, side),
        )

    def network(self, decisions: Sequence[str], name: str) -> Model:
        return Model(
            name,
            self.space.derive(decisions, name),
            (self.config.batch_size, 3, self.image_size, self.image_size),
            self.config.num_classes,
        )

    def extremes(self) -> list[list[str]]:
        """Decisions of the smallest and the largest network, by multiply-adds."""
        layers = arithmetic_table(self.space, "macs").layers.values()
        return [[pick(entries, key=entries.get) for entries in layers] for pick in (min, max)]

    def evenly_spaced(self, count: int, seed: int) -> list[list[str]]:
        """Random networks, one in each of ``count`` equal parts of the range of multiply-adds, where there is one."""
        table = arithmetic_table(self.space, "macs")
        (low, high), found = table.range(), []
        half = (high - low) / count / 2
        for index in range(count):
            target = low + (2 * index + 1) * half
            with suppress(CostTableError):  # a small space has gaps
                found += sample_decisions(
                    self.space, table, target, 1, tolerance=half / target, seed=seed + index
                )
        return found

    def uniform(self, count: int, seed: int) -> list[list[str]]:
        """Random networks, every choice of a layer equally likely."""
        random = np.random.default_rng(seed)
        return [
            [str(random.choice(layer.names)) for layer in self.space.searched.values()]
            for _ in range(count)
        ]

    def settings(self, runtime: Runtime, purpose: str) -> dict[str, Any]:
        keys = ("device", "device_id", "threads", "batch_size", "num_classes", "seed")
        return {
            "purpose": purpose,
            "space": self.space.to_dict(),
            "runtime": runtime.version,
            "image_size": self.image_size,
            **{key: getattr(self.config, key) for key in keys},
        }

    def conditions(self) -> dict[str, Any]:
        """``src.latency.tables.CONDITIONS`` of a table."""
        return {
            "threads": self.config.threads,
            "image_size": self.image_size,
            "num_classes": self.config.num_classes,
        }


def device_name(config: ProfileConfig) -> str:
    """For example "AMD EPYC", the processor's own name, or "Ascend310"."""
    return (
        config.device if config.device != "CPU" else _cpu_value("model name") or platform.machine()
    )


def _cpu_value(key: str) -> str:
    """A value of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^(?:{key})\s*: (.*)$", text, re.M)
    return found[1].strip() if found else ""


def profile(config: ProfileConfig) -> int:
    """Write the latency table of ``config``, verify it, or both."""
    plan, out = ProfilePlan(load_space(config.space), config), Path(config.out)
    make_folder(out.parent)
    if out.exists() and not config.verify:
        raise UserError(f"{out}: is there already; choose another --out, or --verify N to check it")
    folder = out.with_suffix(".partial")
    try:
        runtime = open_runtime(config, folder)
        if not out.exists():
            _make_table(plan, runtime, folder, out)
        if config.verify:
            _verify(plan, runtime, folder, out)
    except KeyboardInterrupt:
        raise Fault(
            f"interrupted; the same command continues{' from ' + str(folder) if folder.exists() else ''}, "
            f"{out} is {'as it was' if out.exists() else 'not written'}"
        ) from None
    return 0


def _make_table(plan: ProfilePlan, runtime: Runtime, folder: Path, out: Path) -> None:
    session = Session(folder, plan.settings(runtime, "table"))
    blocks = plan.blocks()
    distinct = {model.name: model for entries in blocks.values() for model in entries.values()}
    chosen = [*plan.extremes(), *plan.evenly_spaced(FIT_NETWORKS, plan.config.seed)]
    networks = [
        plan.network(decisions, f"network{index}") for index, decisions in enumerate(chosen)
    ]
    log.info(
        "space %s: %d different blocks of %d, and %d whole networks",
        plan.space.name,
        len(distinct),
        sum(map(len, blocks.values())),
        len(networks),
    )
    summaries, noise = measure(session, runtime, [*distinct.values(), *networks], plan.config)

    weights = {
        name: block_cost(model.network, *model.shape[2:]).params / 1e6
        for name, model in distinct.items()
    }
    of_networks = [
        [blocks[layer][choice].name for layer, choice in zip(blocks, decisions) if choice != SKIP]
        for decisions in chosen
    ]
    whole = [summaries[network.name].median_ms for network in networks]
    correction = fit_correction(
        [[summaries[name].median_ms for name in names] for names in of_networks],
        [[weights[name] for name in names] for names in of_networks],
        whole,
    )
    layers = {}
    for name, layer in plan.space.searched.items():
        layers[name] = {
            choice: round(correction.entry(summaries[model.name].median_ms, weights[model.name]), 5)
            for choice, model in blocks[name].items()
        }
        if layer.skippable:
            layers[name][SKIP] = 0.0
    table = CostTable(
        out.stem,
        plan.space.name,
        device_name(plan.config),
        runtime.version,
        plan.config.batch_size,
        UNIT,
        round(correction.constant_ms, 5),
        layers,
    )
    fit = judge([table.total(decisions) for decisions in chosen], whole)
    versions = environment(plan.config.device)
    provenance = {
        "source": "scripts/profile_latency.py",
        "date": _now(),
        **plan.conditions(),
        "versions": {key: versions[key] for key in ("python", "mindspore", "numpy", "commit")},
        "simd": [name for name in SIMD if name in _cpu_value("flags|Features").split()],
        "rounds": session.rounds,
        "noise": round(noise, 4),
        "correction": {
            "entry": "slope * isolated + weight_ms * millions of weights + offset_ms",
            "slope": round(correction.slope, 5),
            "weight_ms": round(correction.weight_ms, 5),
            "offset_ms": round(correction.offset_ms, 5),
            "fitted": fit.to_dict(),
        },
        "isolated": {name: summaries[name].to_dict() for name in distinct},
        "networks": {
            network.name: {"decisions": " ".join(decisions), **summaries[network.name].to_dict()}
            for network, decisions in zip(networks, chosen)
        },
    }
    write_table(out, replace(table, provenance=provenance))
    session.close()
    log.info(
        "a block costs %.3f of its time alone, %+.3f ms a million weights, %+.3f ms; the rest of a network %.3f ms",
        correction.slope,
        correction.weight_ms,
        correction.offset_ms,
        correction.constant_ms,
    )
    log.info(
        "%s: networks of space %s cost %.3f to %.3f ms; fitted networks err by %.1f %% (RMSE)",
        out,
        plan.space.name,
        *table.range(),
        100 * fit.rmse,
    )


def _verify(plan: ProfilePlan, runtime: Runtime, folder: Path, out: Path) -> None:
    """Measure networks that the table was not fitted to, and write what was found into it."""
    from src.drawing import draw_verdict  # importing Matplotlib takes a second

    config, table = plan.config, load_table(out, plan.space)
    _check_same(table, plan, runtime, out)
    fitted = table.provenance.get(
        "networks", {}
    )  # the smallest and the largest first; none in a merged table
    chosen = _networks_to_verify(plan, {facts["decisions"] for facts in fitted.values()})
    models = [plan.network(decisions, name) for name, decisions in chosen.items()]
    ends = [
        plan.network(facts["decisions"].split(), name) for name, facts in islice(fitted.items(), 2)
    ]
    session = Session(
        folder,
        {**plan.settings(runtime, "verification"), "networks": list(map(list, chosen.values()))},
    )
    log.info("verification of %s by %d networks: %s", out, len(models), DRAWS[config.verify_draw])
    summaries, noise = measure(session, runtime, [*models, *ends], config)

    found = {
        name: (table.total(decisions), summaries[name].median_ms)
        for name, decisions in chosen.items()
    }
    log.info("%-20s %10s %10s %8s %8s", "network", "predicted", "measured", "error", "spread")
    for name, (predicted, measured) in found.items():
        log.info(
            "%-20s %10.3f %10.3f %+7.1f%% %7.1f%%",
            name,
            predicted,
            measured,
            100 * (predicted / measured - 1),
            100 * summaries[name].spread,
        )
    verdict = judge(*zip(*found.values()))
    log.info(
        "mean error %+.1f %%, RMSE %.1f %% of the mean latency, worst %+.1f %%, Kendall's tau %.3f: %s",
        100 * verdict.mean_error,
        100 * verdict.rmse,
        100 * verdict.worst,
        verdict.kendall_tau,
        "within the bar" if verdict.passed else "not within the bar of 5 % and 0.9",
    )
    record = {
        "date": _now(),
        "drawn": config.verify_draw,
        **verdict.to_dict(),
        "noise": round(noise, 4),
    }
    if ends:
        pace = np.mean(
            [summaries[model.name].median_ms / fitted[model.name]["median_ms"] for model in ends]
        )
        record["pace"] = round(float(pace), 4)
        log.info(
            "the smallest and the largest network took %.3f of their time in the profile: the machine's own change",
            pace,
        )
    record["measured"] = {
        name: {
            "decisions": " ".join(decisions),
            "predicted_ms": round(found[name][0], 4),
            **summaries[name].to_dict(),
        }
        for name, decisions in chosen.items()
    }
    write_table(out, replace(table, provenance={**table.provenance, "verification": record}))
    picture = out.with_suffix(".png")
    draw_verdict(
        found,
        f"{table.name}: RMSE {verdict.rmse:.1%}, Kendall's tau {verdict.kendall_tau:.3f}",
        picture,
    )
    session.close()
    log.info("%s holds the verdict, %s shows it", out, picture)


def _networks_to_verify(plan: ProfilePlan, fitted: set[str]) -> dict[str, list[str]]:
    """Decisions of random networks that are none of ``fitted``, of shipped and of given ones of the space, by name."""
    config = plan.config
    draw = plan.uniform if config.verify_draw == "uniform" else plan.evenly_spaced
    drawn = [
        decisions
        for decisions in draw(config.verify, config.seed + 1000)
        if " ".join(decisions) not in fitted
    ]
    chosen = {f"random{index}": decisions for index, decisions in enumerate(drawn)}
    for name in shipped_architectures():
        with suppress(SpaceError):
            chosen[name] = plan.space.decisions_of(load_architecture(name))
    for file in config.verify_arch.split(",") if config.verify_arch else ():
        arch = load_architecture(file)
        chosen[arch.name] = plan.space.decisions_of(arch)
    return chosen


def _check_same(table: CostTable, plan: ProfilePlan, runtime: Runtime, out: Path) -> None:
    """Raise UserError where a table was made under other conditions than those of now."""
    now = {
        "runtime": runtime.version,
        "device": device_name(plan.config),
        "batch_size": plan.config.batch_size,
        **plan.conditions(),
    }
    then = conditions(table)
    for key, value in now.items():
        if then[key] != value:
            raise UserError(
                f"{out}: measured with {key} {then[key]!r}, now it is {value!r}; measure again, with "
                "another --out"
            )


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
