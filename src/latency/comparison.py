"""Runtimes side by side on one network: how fast each is, and whether it gives the same answers."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.sources import ImageFolder, Source
from src.dataset import Loader
from src.deployment.classifier import Classifier
from src.deployment.logits import full_batches, largest_difference
from src.deployment.predict import ImageFiles, find_images
from src.errors import Fault, UserError
from src.latency.cpp_program import build_program
from src.latency.runtimes import INT8, LIBRARIES, REPEATS, Runtime, environment
from src.latency.statistics import NOISY, Summary, summarise_all
from src.latency.turns import TurnProcess, run_to_end

log = logging.getLogger(__name__)

# Largest differences of logits, relative to the largest one, beyond which a runtime computes
# another network. An int8 model is another one, and is judged by its answers.
LIMITS = {"float32": 1e-3, "bfloat16": 0.25}
AGREEMENT = 99.0  # %, of top-1 with the float32 network, that a recommended candidate has

Files = Mapping[str, Path]  # model files by format, "MINDIR", "ONNX", and ``INT8``


@dataclass(frozen=True)
class Images:
    """Images to compare on.

    Attributes:
        pixels: preprocessed, (N, 3, H, W) of float32.
        labels: (N,); None where the images have none that belong to the model.
        logits: of the float32 network, (N, classes).
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    logits: np.ndarray

    def top1(self, logits: np.ndarray) -> float | None:
        """Accuracy in percent, None without labels."""
        if self.labels is None:
            return None
        return 100 * float((logits.argmax(1) == self.labels).mean())


@dataclass(frozen=True)
class Candidate:
    """A model file in a runtime."""

    runtime: Runtime
    file: Path
    int8: bool = False

    @property
    def precision(self) -> str:
        """In which it computes."""
        return INT8 if self.int8 else self.runtime.precision

    @property
    def title(self) -> str:
        """For tables and messages."""
        return f"{self.runtime.library.title}, {self.precision}"

    @property
    def threads(self) -> str:
        """For example "2 threads"."""
        count = self.runtime.threads
        return "1 thread" if count == 1 else f"{count} threads"


@dataclass(frozen=True)
class Outcome:
    """What was found of a candidate.

    Attributes:
        latency: of one inference of the model alone.
        file_bytes: size of the model file.
        difference: largest difference of logits to the float32 network, relative to the largest.
        agreement: percent of the images whose first class is that of the float32 network.
        top1: accuracy in percent; None without labels.
    """

    candidate: Candidate
    latency: Summary
    file_bytes: int
    difference: float
    agreement: float
    top1: float | None

    @property
    def right(self) -> bool:
        """Whether it computes the network that it was given."""
        limit = LIMITS.get(self.candidate.precision, np.inf)
        return bool(np.isfinite(self.difference)) and self.difference <= limit

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        runtime = self.candidate.runtime
        return {
            "runtime": runtime.library.installed(),
            "precision": self.candidate.precision,
            "threads": runtime.threads,
            **self.latency.to_dict(),
            "file_bytes": self.file_bytes,
            "largest_difference": float(f"{self.difference:.3g}"),
            "agreement": round(self.agreement, 3),
            "top1": None if self.top1 is None else round(self.top1, 3),
        }


def read_images(
    source: Source, classifier: Classifier, labelled: bool, count: int | None
) -> Images:
    """Images of a source with the logits of a classifier of float32.

    Args:
        source: of the images.
        classifier: what other runtimes are compared with.
        labelled: whether the labels of the source are classes of the classifier.
        count: at most so many images, a fixed random choice; None for all.

    Raises:
        UserError: no image can be read.
    """
    batch_size, size = classifier.batch_size, classifier.preprocessing
    loader = Loader(source, size, batch_size=batch_size, training=False, max_images=count)
    # Pixels are up to gigabytes, so they are kept once.
    pixels = np.empty((len(loader), 3, size.height, size.width), np.float32)
    labels, logits, found = np.empty(len(loader), np.int32), [], 0
    with classifier.compiling:
        for batch, numbers in loader.epoch():
            if len(numbers):
                place = slice(found, found + len(batch))
                pixels[place], labels[place], found = batch, numbers, place.stop
                logits.append(classifier.logits(full_batches(batch, batch_size))[: len(batch)])
    if not found:
        raise UserError(f"{source.path}: none of its images can be read")
    return Images(pixels[:found], labels[:found] if labelled else None, np.concatenate(logits))


def open_images(folder: str, classes: Sequence[str]) -> tuple[Source, bool]:
    """The images of a folder, and whether their folders are the classes of a model.

    Raises:
        UserError: there is no image in it.
    """
    files = find_images([folder])
    try:
        source = ImageFolder(folder)
    except UserError as reason:
        log.info("%s; its images are taken without labels", reason)
        return ImageFiles(files, folder), False
    return source, list(source.classes) == list(classes)


def find_candidates(
    files: Files, threads: Sequence[int], precisions: Sequence[str]
) -> tuple[list[Candidate], dict[str, str]]:
    """What can be compared here, and why other runtimes cannot.

    Args:
        files: the network's model files.
        threads: of the runtimes.
        precisions: "float32", "bfloat16", ``INT8``.

    Returns:
        Candidates, and reasons by title of the runtime.
    """
    left_out, found, no_program = {}, [], ""
    try:
        build_program()
    except UserError as error:
        no_program = str(error)
    for name, library in LIBRARIES.items():
        if library.file_format is None:
            continue
        # A program of before may still be there, but is not that of the sources.
        if library.in_cpp and no_program:
            left_out[library.title] = no_program
        elif library.installed() is None:
            left_out[library.title] = library.why_missing()
        elif library.file_format not in files:
            left_out[library.title] = (
                f"reads {library.file_format}, which is not given; a checkpoint gives all formats"
            )
        else:
            found += _candidates_of(name, files, threads, precisions)
    return found, left_out


def _candidates_of(
    name: str, files: Files, threads: Sequence[int], precisions: Sequence[str]
) -> list[Candidate]:
    library, found = LIBRARIES[name], []
    for count in threads:
        for precision in precisions:
            if precision in library.precisions:
                file = files[str(library.file_format)]
                found.append(Candidate(Runtime(name, precision, count), file))
            elif precision == INT8 and library.int8 and INT8 in files:
                found.append(Candidate(Runtime(name, threads=count), files[INT8], int8=True))
    return found


def compare(
    candidates: Sequence[Candidate], images: Images, batch_size: int, rounds: int
) -> tuple[list[Outcome], dict[str, str]]:
    """Compute the images in each candidate, then measure all in turns.

    Each is a process of its own. In every round each has a turn, in random order; the others are
    stopped meanwhile.

    Args:
        candidates: what to compare.
        images: that all compute.
        batch_size: of the models.
        rounds: turns of each.

    Returns:
        Outcomes, and reasons of those that cannot compute here, by title and threads.
    """
    able, logits, left_out = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs", Path(folder) / "outputs"
        full_batches(images.pixels, batch_size).tofile(inputs)
        flags = ("--inputs", inputs, "--outputs", outputs)
        for candidate in candidates:
            command = candidate.runtime.command([candidate.file], *flags)
            try:
                run_to_end(candidate.title, command, environment())
            except (UserError, Fault) as error:
                left_out[f"{candidate.title}, {candidate.threads}"] = str(error)
                continue
            answers = np.fromfile(outputs, np.float32).reshape(-1, images.logits.shape[1])
            able.append(candidate)
            logits.append(answers[: len(images.logits)])
    found = [
        _outcome(*each, images) for each in zip(able, _measure(able, rounds), logits, strict=True)
    ]
    return found, left_out


def _outcome(candidate: Candidate, latency: Summary, logits: np.ndarray, images: Images) -> Outcome:
    expected = images.logits
    return Outcome(
        candidate,
        latency,
        file_bytes=candidate.file.stat().st_size,
        difference=largest_difference(logits, expected),
        agreement=100 * float((logits.argmax(1) == expected.argmax(1)).mean()),
        top1=images.top1(logits),
    )


def _measure(candidates: Sequence[Candidate], rounds: int) -> list[Summary]:
    """Summaries of the candidates' latencies, corrected to the machine's median speed."""
    if not candidates:
        return []
    samples: list[tuple[int, float]] = []
    random = np.random.default_rng(0)
    with ExitStack() as stack:
        processes = []
        for candidate in candidates:
            command = candidate.runtime.command([candidate.file], "--repeats", REPEATS)
            process = TurnProcess(candidate.title, command, environment(), keep_errors=True)
            stack.callback(process.kill)
            process.read()  # that it is ready, and warm
            processes.append(process)
        for _ in range(rounds):
            for index in random.permutation(len(processes)).tolist():
                lines = processes[index].take_turn(REPEATS)
                samples += [(index, json.loads(line)["ms"]) for line in lines]
    indices, milliseconds = np.array(samples).T
    summaries, noise = summarise_all(indices.astype(int), milliseconds)
    if noise > NOISY:
        log.warning(
            "half of a candidate's samples lie within %.0f %% of each other: the machine is busy, "
            "and a quiet one may tell another order",
            100 * noise,
        )
    return summaries


def table(outcomes: Sequence[Outcome]) -> str:
    """A line per outcome below a header, in order of threads and latency."""
    rows = [("runtime", "threads", "median ms", "p90 ms", "spread", "MB", "agreement", "top-1")]
    for outcome in sorted(outcomes, key=_place):
        latency, candidate = outcome.latency, outcome.candidate
        rows.append(
            (
                candidate.title,
                str(candidate.runtime.threads),
                f"{latency.median_ms:.3f}",
                f"{latency.p90_ms:.3f}",
                f"{latency.spread:.1%}",
                f"{outcome.file_bytes / 1e6:.1f}",
                f"{outcome.agreement:.2f} %" if outcome.right else "WRONG",
                "" if outcome.top1 is None else f"{outcome.top1:.2f} %",
            )
        )
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        f"{title:{width}}" + "".join(f"{cell:>11}" for cell in cells) for title, *cells in rows
    )


def _place(outcome: Outcome) -> tuple[int, float]:
    return outcome.candidate.runtime.threads, outcome.latency.median_ms


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those whose answers are those of the float32 network, the fastest first."""
    usable = [each for each in outcomes if each.right and each.agreement >= AGREEMENT]
    return sorted(usable, key=lambda each: each.latency.median_ms)


def advice(outcomes: Sequence[Outcome]) -> str:
    """One sentence: which to take for each number of threads, and by how much."""
    parts = []
    for threads in sorted({each.candidate.runtime.threads for each in outcomes}):
        measured = [each for each in outcomes if each.candidate.runtime.threads == threads]
        here, count = ranked(measured), measured[0].candidate.threads
        if not here:
            parts.append(f"with {count} none, as none agrees on {AGREEMENT:g} %")
            continue
        best = here[0]
        text = f"with {count} {best.candidate.title}, {best.latency.median_ms:.2f} ms"
        name = best.candidate.runtime.name
        second = next((each for each in here if each.candidate.runtime.name != name), None)
        if second:
            share = best.latency.median_ms / second.latency.median_ms
            text += f", {share:.2f} of the time of {second.candidate.title}"
        parts.append(text)
    return f"take {'; '.join(parts)}" if parts else "nothing could be compared"


def check_answers(outcomes: Sequence[Outcome]) -> None:
    """Raise Fault where a runtime computes another answer than the network, and name it."""
    for outcome in outcomes:
        candidate, difference = outcome.candidate, outcome.difference
        if not np.isfinite(difference):
            raise Fault(f"{candidate.title}: its logits are no numbers; do not take it")
        if not outcome.right:
            raise Fault(
                f"{candidate.title}: its logits differ from the network's by {difference:.1e} of "
                f"the largest one, more than {LIMITS[candidate.precision]:g}; do not take it"
            )
