"""A measurement that can be interrupted: rounds over all models until their medians are known."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from src.config import ProfileConfig
from src.errors import UserError
from src.files import (
    different_settings,
    make_folder,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from src.latency.meters import Meter
from src.latency.model import Model
from src.latency.runtimes import REPEATS
from src.latency.statistics import NOISY, Summary, summarise_all

log = logging.getLogger(__name__)

BATCH = 20  # rounds between two looks at the medians; what an interruption loses at most
STABLE = 0.02  # largest margin of a median that counts as known (Summary.margin)
SETTINGS = "settings.json"
SAMPLES = "samples.jsonl"


class Session:
    """The folder of what has been measured so far.

    Args:
        folder: is made; that of an interrupted measurement with the same settings is continued.
        settings: all that the samples depend on.

    Raises:
        UserError: the folder holds samples of a measurement with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.batches = read_jsonl(folder / SAMPLES)
        before = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else settings
        changed = different_settings(before, settings)
        if changed and self.batches:  # samples of two kinds must not be mixed
            key, (then, now) = next(iter(changed.items()))
            raise UserError(
                f"{folder}: of an interrupted measurement with {key} {then!r}, now {now!r}; "
                "give the same, or remove the folder"
            )
        if changed:
            self.close()  # it only holds models, of a measurement that took no sample
        write_json(make_folder(folder) / SETTINGS, settings)
        if self.batches:
            log.info("%s: continued after %d rounds", folder, self.rounds)

    @property
    def rounds(self) -> int:
        """Number of rounds measured so far."""
        return BATCH * len(self.batches)

    def add(self, samples: Sequence[tuple[int, float]]) -> None:
        """Store the samples of ``BATCH`` rounds: index of the model, and milliseconds."""
        self.batches.append({"samples": samples})
        # All batches, a few hundred kilobytes: so an interruption never leaves half of a line.
        write_jsonl(self.folder / SAMPLES, self.batches)

    def summaries(self) -> tuple[list[Summary], float]:
        """A summary for each model, and the machine's noise; none before the first batch."""
        if not self.batches:
            return [], 0.0
        samples = np.array([sample for batch in self.batches for sample in batch["samples"]])
        return summarise_all(samples[:, 0].astype(int), samples[:, 1])

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)


@dataclass(frozen=True)
class Measurement:
    """What a finished session has found.

    Attributes:
        summaries: of each model by name.
        noise: of the machine (``summarise_all``).
        rounds: in how many rounds.
    """

    summaries: dict[str, Summary]
    noise: float
    rounds: int


def measure(
    session: Session, meter: Meter, models: Sequence[Model], config: ProfileConfig
) -> Measurement:
    """Measure models until their medians are known, or ``config.max_rounds`` are over."""
    quiet = not sys.stderr.isatty()
    _prepare(meter, models, quiet)
    # A continued session takes another order of models than the rounds before it.
    rounds = meter.measure(models, REPEATS, config.seed + len(session.batches))
    bar = tqdm(
        initial=session.rounds,
        total=config.max_rounds,
        desc="measuring",
        unit="round",
        leave=False,
        disable=quiet,
    )
    with bar, closing(rounds):
        summaries, noise = session.summaries()
        while not _finished(session, summaries, config.max_rounds):
            session.add(_take_batch(rounds, bar))
            summaries, noise = session.summaries()
            _show_progress(bar, session.rounds, summaries, noise, config.max_rounds)
    by_name = {model.name: summary for model, summary in zip(models, summaries, strict=True)}
    found = Measurement(by_name, noise, session.rounds)
    _report(found)
    return found


def _prepare(meter: Meter, models: Sequence[Model], quiet: bool) -> None:
    meter.prepare(models[0])
    # One round of the first model: a device that is not there is found out before the many minutes
    # in which all models are prepared.
    with closing(meter.measure(models[:1], 1, 0)) as rounds:
        next(rounds)
    for model in tqdm(models, desc="preparing models", unit="model", leave=False, disable=quiet):
        meter.prepare(model)


def _finished(session: Session, summaries: Sequence[Summary], max_rounds: int) -> bool:
    if not summaries:
        return False
    # One batch is not enough: its rounds may all lie within one burst of a busy machine.
    stable = len(session.batches) > 1 and _widest_margin(summaries) <= STABLE
    return stable or session.rounds >= max_rounds


def _take_batch(
    rounds: Iterator[list[tuple[int, float]]], bar: tqdm[Any]
) -> list[tuple[int, float]]:
    samples: list[tuple[int, float]] = []
    for round_samples in islice(rounds, BATCH):
        samples += round_samples
        bar.update()
    return samples


def _show_progress(
    bar: tqdm[Any], rounds: int, summaries: Sequence[Summary], noise: float, max_rounds: int
) -> None:
    """Estimate how many rounds there will be: a margin shrinks with the root of the samples."""
    widest = _widest_margin(summaries)
    bar.total = min(max_rounds, max(rounds * (widest / STABLE) ** 2, rounds + BATCH))
    bar.set_postfix_str(f"widest margin {widest:.1%}, noise {noise:.0%}")


def _widest_margin(summaries: Sequence[Summary]) -> float:
    return max(summary.margin for summary in summaries)


def _report(found: Measurement) -> None:
    """Say how far the measurement can be trusted."""
    summaries = list(found.summaries.values())
    log.info(
        "%d models measured in %d rounds, medians known to %.1f %% or better",
        len(summaries),
        found.rounds,
        100 * _widest_margin(summaries),
    )
    advice = "; the machine is noisy, and a quiet one gives a better table"
    log.info(
        "noise: half of a model's samples lie within %.1f %% of each other%s",
        100 * found.noise,
        advice if found.noise > NOISY else "",
    )
    outliers = sum(summary.outliers for summary in summaries)
    name, most = max(found.summaries.items(), key=lambda item: item[1].outliers)
    most_of = (
        f", most of {name}: {most.outliers}, up to {most.largest_ms:.3f} ms; its median is "
        f"{most.median_ms:.3f} ms"
    )
    samples = sum(summary.samples for summary in summaries)
    log.info("outliers: %d of %d samples%s", outliers, samples, most_of if outliers else "")
    unstable = sum(summary.margin > STABLE for summary in summaries)
    if unstable:
        log.warning(
            "%d of %d medians are not stable to %.0f %% after %d rounds; --max_rounds allows more",
            unstable,
            len(summaries),
            100 * STABLE,
            found.rounds,
        )
