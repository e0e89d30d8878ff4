"""From a checkpoint to a model file and the description that inference reads, both checked before they appear.

A model is written under another name, loaded again and compared with the network on real images;
only then does it get its name, and its description, ``<name>.json``, is written beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.checkpoint.format import Checkpoint
from src.checkpoint.restore import build_network
from src.data.decoding import MAX_PIXELS
from src.data.sources import open_sources, prepare_digits
from src.dataset import Loader
from src.deployment.mindir import read_mindir, to_version_1
from src.errors import Fault, UserError
from src.files import make_folder, write_text

log = logging.getLogger(__name__)

FORMAT = "spnas-export"
VERSION = 1
SUFFIXES = {"MINDIR": ".mindir", "AIR": ".air", "ONNX": ".onnx"}
CHECK_IMAGES = 16
# Largest differences of logits, relative to the largest logit: of folding, and of the model file
# besides.
FOLD_TOLERANCE = 1e-5
FILE_TOLERANCE = 1e-4

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Check:
    """What a model was compared with before it was announced.

    Attributes:
        runtime: name and version of what computed the model file.
        images: how many real images of ``data`` were compared.
        largest_difference: of the logits, relative to the largest logit.
    """

    runtime: str
    data: str
    images: int
    largest_difference: float


def export(
    checkpoint: Checkpoint,
    *,
    file_name: str,
    file_format: str = "MINDIR",
    batch_size: int = 1,
    mindir_version: int = 1,
    fold: bool = True,
    device_target: str = "CPU",
) -> Path:
    """Write a model and its description.

    Args:
        file_name: path of the model; the ending of its format is added where it is missing.
        mindir_version: format version of a MindIR file.
        fold: batch normalisation becomes part of the convolutions.

    Returns:
        Path of the model.

    Raises:
        UserError: the device or a value does not fit the format.
        Fault: the model gives other logits than the network; nothing is left under its name.
    """
    if file_format == "AIR" and device_target != "Ascend":
        raise UserError(
            "file_format AIR: is written on an Ascend device only (--device_target Ascend); "
            "--file_format MINDIR or ONNX can be written here"
        )
    suffix = SUFFIXES[file_format]
    path = Path(file_name[: -len(suffix)] if file_name.endswith(suffix) else file_name)
    path = path.with_name(path.name + suffix)
    make_folder(path.parent)
    _claim_description(path)
    network = build_network(checkpoint, folded=fold)
    size = checkpoint.meta.preprocessing
    shape = (batch_size, 3, size.height, size.width)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))
    try:
        file = scratch / path.name
        write_model(network, shape, file, file_format, mindir_version)
        version = None
        if file_format == "MINDIR":
            version = read_mindir(file.read_bytes()).mind_ir_version
            if version != mindir_version:
                raise UserError(
                    f"mindir_version {mindir_version}: MindSpore {ms.__version__} writes version "
                    f"{version}; choose 1 or {version}"
                )
        check = _check(file, checkpoint, network, fold, batch_size)
        model = {
            "file": path.name,
            "format": file_format,
            "mindir_version": version,
            "folded": fold,
            "bytes": file.stat().st_size,
            "sha256": _sha256(file),
        }
        description = _describe(checkpoint, shape, model, check)
        os.replace(file, path)
    except OSError as error:
        raise Fault(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_text(path.with_suffix(".json"), json.dumps(description, indent=2) + "\n")
    return path


def write_model(
    network: nn.Cell, shape: tuple[int, ...], file: Path, file_format: str, mindir_version: int
) -> None:
    """Write the model of a network, or of a part of one, for inputs of ``shape``; nothing is checked."""
    ms.export(
        network, Tensor(np.zeros(shape, np.float32)), file_name=str(file), file_format=file_format
    )
    os.chmod(file, 0o644)
    if file_format == "MINDIR" and mindir_version == 1:
        file.write_bytes(to_version_1(file.read_bytes()))


def _claim_description(path: Path) -> None:
    """Raise UserError if the description beside ``path`` is that of another model, which would lose it."""
    try:
        other = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["model"]["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if other != path.name and (path.parent / other).is_file():
        raise UserError(
            f"{path.with_suffix('.json')}: describes {other}, and {path.name} would take it over; "
            "choose another --file_name"
        )


def _describe(
    checkpoint: Checkpoint, shape: tuple[int, ...], model: dict[str, Any], check: Check | None
) -> dict[str, Any]:
    """The content of ``<name>.json``: all that inference needs to know."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "input": {"name": "x", "shape": list(shape), "layout": "NCHW", "type": "float32"},
        "preprocessing": {
            **checkpoint.meta.preprocessing.to_dict(),
            "interpolation": "bilinear",
            "color_order": "RGB",
            "max_pixels": MAX_PIXELS,
        },
        "classes": list(checkpoint.meta.classes),
        "architecture": checkpoint.meta.arch.to_dict(),
        "checkpoint": {"file": checkpoint.path.name, "sha256": _sha256(checkpoint.path)},
        "mindspore": ms.__version__,
        "checked": None if check is None else vars(check),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check(
    file: Path, checkpoint: Checkpoint, network: nn.Cell, folded: bool, batch_size: int
) -> Check | None:
    """Compare the model file with the trained network on real images; None, logged, where nothing here can run it."""
    runtime, predict = _load(file)
    images, data = _real_images(checkpoint, batch_size)
    exported = _logits(_cell_predict(network), images)
    if folded:  # otherwise it is the trained network itself
        trained = _logits(_cell_predict(build_network(checkpoint)), images)
        _compare(
            exported,
            trained,
            FOLD_TOLERANCE,
            "folding batch normalisation",
            "--no_fold exports without it",
        )
    if predict is None:
        log.warning("%s: not checked: %s", file.name, runtime)
        return None
    difference = _compare(
        _logits(predict, images),
        exported,
        FILE_TOLERANCE,
        f"{file.name}, computed by {runtime},",
        "no model was written",
    )
    log.info(
        "%s: checked in %s on %d images (%s): logits differ by at most %.1e of the largest",
        file.name,
        runtime,
        len(images) * batch_size,
        data,
        difference,
    )
    return Check(runtime, data, len(images) * batch_size, difference)


def _load(file: Path) -> tuple[str, Predict | None]:
    """The name of what runs the model file, and a function that does; or the reason why there is none."""
    if file.suffix == ".mindir":
        return f"MindSpore {ms.__version__}", _cell_predict(nn.GraphCell(ms.load(str(file))))
    if file.suffix == ".air":
        return "an AIR model cannot be loaded again in Python", None
    try:
        import onnxruntime  # the project itself does not need it
    except ImportError:
        return "ONNX Runtime is not installed (pip install onnxruntime)", None
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return f"ONNX Runtime {onnxruntime.__version__}", lambda batch: session.run(
        None, {name: batch}
    )[0]


def _cell_predict(network: nn.Cell) -> Predict:
    return lambda batch: network(Tensor(batch)).asnumpy()


def _logits(predict: Predict, batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([predict(batch) for batch in batches])


def _compare(
    got: np.ndarray, expected: np.ndarray, tolerance: float, what: str, advice: str
) -> float:
    """The largest difference relative to the largest expected logit; raises Fault where it is too large or NaN."""
    difference = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not difference <= tolerance:
        raise Fault(
            f"{what} changes the logits by {difference:.1e} of the largest one, more than {tolerance:.0e}; "
            f"{advice}"
        )
    return difference


def _real_images(checkpoint: Checkpoint, batch_size: int) -> tuple[list[np.ndarray], str]:
    """Full batches of preprocessed images, and where they come from: the validation set, or else the digits."""
    config = checkpoint.meta.config
    with tempfile.TemporaryDirectory() as folder:
        name, source = config.get("dataset_name"), None
        if name and name != "digits":
            try:
                source = open_sources(
                    name, config["data_path"], config["val_data_path"], splits=("val",)
                )["val"]
            except UserError as error:
                log.info("%s; the export is checked on the embedded digits instead", error)
        if source is None:
            name = "digits"
            prepare_digits(Path(folder) / "digits")
            source = open_sources(name, str(Path(folder) / "digits"), splits=("val",))["val"]
        count = max(CHECK_IMAGES, batch_size)
        loader = Loader(
            source,
            checkpoint.meta.preprocessing,
            batch_size=count,
            training=False,
            max_images=count,
        )
        images = np.concatenate([batch for batch, _ in loader.epoch()])
    if not len(images):
        raise Fault(f"{source.path}: no image could be read")
    # The model takes full batches: images are repeated up to the next one.
    batches = -(-len(images) // batch_size)
    images = np.resize(images, (batches * batch_size, *images.shape[1:]))
    return list(images.reshape(batches, batch_size, *images.shape[1:])), name
