"""What classifies images: a checkpoint's network or an exported model, and what belongs to it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspore import Tensor
from pydantic import BaseModel

from src.checkpoint.format import read_checkpoint
from src.checkpoint.restore import build_network
from src.data.preprocessing import Preprocessing
from src.deployment.check import NoRuntimeError, load_model
from src.deployment.description import FORMAT, VERSION, ModelFile
from src.deployment.logits import Predict
from src.errors import UserError
from src.files import check_header, parse_record, read_json, sha256
from src.kernels import use_kernels
from src.training.checkpoint_evaluation import find_checkpoints
from src.training.compile_cache import CompileCache
from src.training.run_log import run_folder

# Always the same, so that the compiled graph of one call serves the next, whatever its images.
BATCH_SIZE = 16


@dataclass(frozen=True)
class Classifier:
    """A model that can be run here.

    Attributes:
        classes: names, in the order of the logits.
        batch_size: images per call of ``logits``, never fewer.
        logits: from images (batch_size, 3, H, W) of float32 to logits (batch_size, classes).
        compiling: the context in which ``logits`` is called.
        precision: of weights and activations, "float32" or "int8".
    """

    preprocessing: Preprocessing
    classes: Sequence[str]
    batch_size: int
    logits: Predict
    compiling: contextlib.AbstractContextManager
    precision: str = "float32"


class _Input(BaseModel):
    """The part of a description that is about the input."""

    shape: tuple[int, int, int, int]


class _Record(BaseModel):
    """What is needed here of a description; its other keys are for other readers."""

    model: ModelFile
    input: _Input
    preprocessing: dict
    classes: tuple[str, ...]


def load_classifier(name: str) -> Classifier:
    """The classifier of a file, or of the folder of a run, whose best checkpoint is taken.

    Raises:
        UserError: there is no such model, it is damaged, or nothing here can run it.
    """
    path = Path(name)
    if path.is_dir() or path.suffix == ".ckpt":
        return _of_checkpoint(find_checkpoints(run_folder(path), "best")[0])
    if not path.is_file():
        raise UserError(f"{path}: no such model; give a .ckpt, .mindir or .onnx, or a run's folder")
    if path.suffix not in (".mindir", ".onnx"):
        more = "; an AIR model runs on Ascend only, give its checkpoint" * (path.suffix == ".air")
        raise UserError(f"{path}: should end in .ckpt, .mindir or .onnx{more}")
    return _of_export(path)


def _of_checkpoint(file: Path) -> Classifier:
    """As ``eval.py`` builds it."""
    checkpoint = read_checkpoint(file)
    meta, kernels = checkpoint.meta, use_kernels("auto")
    network = build_network(checkpoint, kernels=kernels, folded=kernels)
    graph_values = {
        "predict": meta.arch.to_dict(),
        "classes": len(meta.classes),
        "batch_size": BATCH_SIZE,
        "preprocessing": meta.preprocessing.to_dict(),
        "kernels": kernels,
    }
    return Classifier(
        meta.preprocessing,
        meta.classes,
        BATCH_SIZE,
        lambda batch: network(Tensor(batch)).asnumpy(),
        CompileCache(graph_values),
    )


def _of_export(file: Path) -> Classifier:
    path = file.with_suffix(".json")
    if not path.is_file():
        raise UserError(f"{path}: missing; export.py writes it beside a model, keep them together")
    data = check_header(read_json(path), FORMAT, VERSION, str(path), UserError)
    record = parse_record(_Record, data, str(path))
    if record.model.file != file.name:
        raise UserError(f"{path}: describes {record.model.file}, not {file.name}")
    if record.model.sha256 != sha256(file):
        raise UserError(f"{file}: its checksum differs from that in {path.name}; export it again")
    # A description also says what is the same in all models, such as the interpolation.
    keys = Preprocessing.__dataclass_fields__
    own = {key: value for key, value in record.preprocessing.items() if key in keys}
    try:
        _, logits = load_model(file)
    except NoRuntimeError as reason:
        raise UserError(f"{file}: cannot be run here: {reason}") from None
    return Classifier(
        Preprocessing.from_dict(own, f"{path}: preprocessing"),
        record.classes,
        record.input.shape[0],
        logits,
        contextlib.nullcontext(),
        record.model.precision,
    )
