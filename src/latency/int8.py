"""A model of int8, kept only if it is worth it: what it loses and gains is measured first."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src.checkpoint.format import Checkpoint
from src.config import ExportConfig
from src.data.sources import Source
from src.deployment.check import validation_set
from src.deployment.classifier import Classifier, load_classifier
from src.deployment.export import check_description_is_free, export, model_path
from src.deployment.predict import find_images
from src.deployment.quantisation import check_tools, quantise
from src.errors import Fault
from src.files import read_json, sha256, whole, write_json
from src.latency.comparison import (
    Files,
    Images,
    Outcome,
    check_answers,
    compare,
    find_candidates,
    open_images,
    read_images,
    table,
)
from src.latency.runtimes import INT8, PRECISIONS, Runtime

log = logging.getLogger(__name__)

ROUNDS = 200  # turns of each candidate
# At most; as many as the test set of CIFAR-10 has, and what their pixels may take.
TEST_IMAGES = 10_000
TEST_BYTES = 2**30


@dataclass(frozen=True)
class Int8Verdict:
    """Whether a model of int8 is worth it.

    Attributes:
        drop: points of top-1 that are lost; without labels, the percent of images whose first
            class is another one.
        labelled: whether the images have labels.
        gain: the fastest time in float32 or bfloat16, divided by the fastest in int8.
        max_drop: the limit of ``drop``.
        min_gain: the limit of ``gain``.
        fastest: title of what is fastest in float32 or bfloat16.
        fastest_int8: title of what is fastest in int8.
    """

    drop: float
    labelled: bool
    gain: float
    max_drop: float
    min_gain: float
    fastest: str
    fastest_int8: str

    @property
    def passed(self) -> bool:
        """Whether both limits are kept."""
        return self.drop <= self.max_drop and self.gain >= self.min_gain

    def __str__(self) -> str:
        loss = "points of top-1 lost" if self.labelled else "% of the images in another class"
        return (
            f"{self.drop:.2f} {loss} (at most {self.max_drop:g}), "
            f"{self.gain:.2f} times as fast (at least {self.min_gain:g}), {self.fastest_int8} "
            f"against {self.fastest}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For the description of the model."""
        return {**asdict(self), "drop": round(self.drop, 3), "gain": round(self.gain, 3)}


def judge_int8(
    outcomes: Sequence[Outcome], network_top1: float | None, max_drop: float, min_gain: float
) -> Int8Verdict:
    """The verdict on a model of int8, in the runtime where it is fastest.

    Args:
        outcomes: of one number of threads, in all precisions.
        network_top1: accuracy of the float32 network, percent; None without labels.
        max_drop: see ``Int8Verdict``.
        min_gain: see ``Int8Verdict``.

    Raises:
        Fault: nothing computed the model of int8, or that of float32.
    """
    best = {}
    for int8 in (False, True):
        kind = [each for each in outcomes if each.candidate.int8 is int8]
        if not kind:
            raise Fault(f"no runtime here could compute the model of {INT8 if int8 else 'float32'}")
        best[int8] = min(kind, key=lambda each: each.latency.median_ms)
    before, after = best[False], best[True]
    # Of images without labels, each that changes its class may have lost the right one.
    drop, labelled = 100 - after.agreement, False
    if network_top1 is not None and after.top1 is not None:
        drop, labelled = network_top1 - after.top1, True
    return Int8Verdict(
        drop=drop,
        labelled=labelled,
        gain=before.latency.median_ms / after.latency.median_ms,
        max_drop=max_drop,
        min_gain=min_gain,
        fastest=before.candidate.title,
        fastest_int8=after.candidate.title,
    )


def check_before(config: ExportConfig) -> None:
    """Raise UserError for what would only be found out after the export."""
    assert config.calibration is not None  # ExportConfig has checked it
    find_images([config.calibration])
    Runtime("onnxruntime", threads=config.threads).check()
    check_tools()
    check_description_is_free(_int8_path(model_path(config.file_name, "ONNX")))


def _int8_path(path: Path) -> Path:
    """Of the model of int8, beside that of float32."""
    return path.with_name(f"{path.stem}_{INT8}.onnx")


def export_int8(path: Path, checkpoint: Checkpoint, config: ExportConfig) -> Path:
    """Quantise a model, measure, and keep the result beside it if it is worth it.

    Args:
        path: the ONNX model of float32, which stays as it is.
        checkpoint: that the model was exported from; says where its validation images are.
        config: of the export.

    Returns:
        Path of the model of int8, ``NAME_int8.onnx``, with a description of its own.

    Raises:
        Fault: int8 is not worth it, with the figures, or a runtime computes another answer than the
            network. Nothing is left of the model of int8, nor of an earlier one of this name.
    """
    assert config.calibration is not None  # ExportConfig has checked it
    out = _int8_path(path)
    for earlier in (out, out.with_suffix(".json")):
        earlier.unlink(missing_ok=True)
    classifier = load_classifier(str(path))
    calibration, labelled = open_images(config.calibration, classifier.classes)
    pixels = read_images(calibration, classifier, labelled, config.images).pixels
    # Images that were used for the scales would flatter them.
    source, data = validation_set(checkpoint), str(checkpoint.meta.config.get("dataset_name"))
    if source is None:
        source, data = calibration, config.calibration
    else:
        labelled = True
    images = _test_images(source, classifier, labelled)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / out.name
        quantise(path, pixels, scratch)
        log.info("%s: scales by %d images of %s", out.name, len(pixels), config.calibration)
        mindir = export(  # for MindSpore Lite, with which int8 is compared too
            checkpoint,
            file_name=f"{folder}/float32",
            batch_size=classifier.batch_size,
            fold=not config.no_fold,
        )
        files = {"ONNX": path, "MINDIR": mindir, INT8: scratch}
        outcomes = _measure(files, images, classifier.batch_size, config.threads)
        log.info("%s, %d images:\n%s", source.path, len(images.pixels), table(outcomes))
        check_answers(outcomes)
        network_top1 = images.top1(images.logits)
        verdict = judge_int8(outcomes, network_top1, config.max_drop, config.min_gain)
        if not verdict.passed:
            raise Fault(f"int8 is not worth it: {verdict}; {path} of float32 stays")
        with whole(out) as file:
            shutil.copyfile(scratch, file)
    log.info("%s: int8 is worth it: %s", out, verdict)
    _describe(path, out, verdict, outcomes, len(images.pixels), data)
    return out


def _test_images(source: Source, classifier: Classifier, labelled: bool) -> Images:
    size = classifier.preprocessing
    bytes_of_one = 3 * size.height * size.width * 4
    count = max(1, min(TEST_IMAGES, TEST_BYTES // bytes_of_one))
    return read_images(source, classifier, labelled, count)


def _measure(files: Files, images: Images, batch_size: int, threads: int) -> list[Outcome]:
    candidates, left_out = find_candidates(files, [threads], PRECISIONS)
    outcomes, unable = compare(candidates, images, batch_size, ROUNDS)
    for title, reason in {**left_out, **unable}.items():
        log.info("%s: left out: %s", title, reason)
    return outcomes


def _describe(
    path: Path, out: Path, verdict: Int8Verdict, outcomes: Sequence[Outcome], count: int, data: str
) -> None:
    """Write the description of a model of int8: that of the float32 model but for the file."""
    (best,) = (each for each in outcomes if each.candidate.title == verdict.fastest_int8)
    record = read_json(path.with_suffix(".json"))
    record["model"] |= {
        "file": out.name,
        "bytes": out.stat().st_size,
        "sha256": sha256(out),
        "precision": INT8,
    }
    record["checked"] = {
        "runtime": best.candidate.runtime.library.installed(),
        "data": data,
        "images": count,
        "largest_difference": best.difference,
    }
    record[INT8] = verdict.to_dict()
    write_json(out.with_suffix(".json"), record)
