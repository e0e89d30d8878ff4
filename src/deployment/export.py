"""From a checkpoint to a model file and its description, both checked before they appear.

A model is written to a scratch folder, loaded again and compared with the network on real images;
only then does it get its name, and its description, ``<name>.json``, is written beside it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.checkpoint.format import Checkpoint
from src.checkpoint.restore import build_network
from src.deployment.check import check_model
from src.deployment.description import Check, CheckpointFile, Description, ModelFile
from src.deployment.mindir import read_mindir, to_version_1
from src.errors import Fault, UserError
from src.files import make_folder, sha256, write_json

SUFFIXES = {"MINDIR": ".mindir", "AIR": ".air", "ONNX": ".onnx"}


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
        checkpoint: of the trained network.
        file_name: path of the model; the ending of its format is added where it is missing.
        file_format: "MINDIR", "ONNX" or "AIR".
        batch_size: images per inference.
        mindir_version: format version of a MindIR file.
        fold: batch normalisation becomes part of the convolutions.
        device_target: the device that MindSpore computes on here.

    Returns:
        Path of the model.

    Raises:
        UserError: the device or a value does not fit the format.
        Fault: the model gives other logits than the network; nothing is left under its name.
    """
    _check_device(file_format, device_target)
    path = model_path(file_name, file_format)
    make_folder(path.parent)
    check_description_is_free(path)
    network = build_network(checkpoint, folded=fold)
    size = checkpoint.meta.preprocessing
    shape = (batch_size, 3, size.height, size.width)
    with _in_scratch_folder(path) as file:
        write_model(network, shape, file, file_format, mindir_version)
        version = _check_version(file, mindir_version) if file_format == "MINDIR" else None
        checked = check_model(file, checkpoint, network, fold, batch_size)
        model = ModelFile(path.name, file_format, version, fold, file.stat().st_size, sha256(file))
        description = _describe(checkpoint, shape, model, checked)
    write_json(path.with_suffix(".json"), description.to_dict())
    return path


def write_model(
    network: nn.Cell, shape: tuple[int, ...], file: Path, file_format: str, mindir_version: int
) -> None:
    """Write the model of a network, or of a part of one, without any check.

    Args:
        network: in evaluation mode.
        shape: of its input.
        file: ends in the suffix of its format, which MindSpore would append.
        file_format: "MINDIR", "ONNX" or "AIR".
        mindir_version: format version of a MindIR file.
    """
    image = Tensor(np.zeros(shape, np.float32))
    if file_format == "ONNX":
        ms.onnx.export(network, image, file_name=str(file))
    else:
        ms.export(network, image, file_name=str(file), file_format=file_format)
    os.chmod(file, 0o644)  # MindSpore makes files that nobody may write
    if file_format == "MINDIR" and mindir_version == 1:
        file.write_bytes(to_version_1(file.read_bytes()))


def _check_device(file_format: str, device_target: str) -> None:
    if file_format == "AIR" and device_target != "Ascend":
        raise UserError(
            "file_format AIR: is written on an Ascend device only (--device_target Ascend); "
            "--file_format MINDIR or ONNX can be written here"
        )


def model_path(file_name: str, file_format: str) -> Path:
    """The path with the suffix of a format, once; other dots in the name stay."""
    suffix = SUFFIXES[file_format]
    path = Path(file_name.removesuffix(suffix))
    if not path.name:
        raise UserError(f"file_name is '{file_name}', should end in a name")
    return path.with_name(path.name + suffix)


@contextmanager
def _in_scratch_folder(path: Path) -> Iterator[Path]:
    """Write a model in one step: yields a file in a scratch folder, which then moves to ``path``.

    It has its final name there, and a folder of its own, as MindSpore writes large weights to
    further files beside a model.

    Raises:
        Fault: the file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{path.stem}-", dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder) / path.name
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        raise Fault(f"{path}: cannot be written ({error.strerror})") from None


def _check_version(file: Path, wanted: int) -> int:
    """The format version of a MindIR file, which must be the one that is wanted."""
    version = read_mindir(file.read_bytes()).mind_ir_version
    if version != wanted:
        raise UserError(
            f"mindir_version {wanted}: MindSpore {ms.__version__} writes version {version}; "
            f"choose 1 or {version}"
        )
    return version


def check_description_is_free(path: Path) -> None:
    """Raise UserError if the file of the description is that of another model, or something else.

    It would be lost: v1.mindir and v1.onnx cannot both have v1.json.
    """
    file = path.with_suffix(".json")
    if not file.exists():
        return
    try:
        other = json.loads(file.read_text(encoding="utf-8"))["model"]["file"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{file}: is no description of a model, and that of {path.name} would take its place; "
            "choose another --file_name"
        ) from None
    if other != path.name and (path.parent / other).is_file():
        raise UserError(
            f"{file}: describes {other}, and {path.name} would take it over; choose another "
            "--file_name"
        )


def _describe(
    checkpoint: Checkpoint, shape: tuple[int, ...], model: ModelFile, checked: Check | None
) -> Description:
    return Description(
        model=model,
        input_shape=shape,
        preprocessing=checkpoint.meta.preprocessing,
        classes=checkpoint.meta.classes,
        architecture=checkpoint.meta.arch,
        checkpoint=CheckpointFile(checkpoint.path.name, sha256(checkpoint.path)),
        mindspore=ms.__version__,
        checked=checked,
    )
