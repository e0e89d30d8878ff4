"""The check of an exported model: it must give the logits of the trained network on real images."""

from __future__ import annotations

import logging
import tempfile
from importlib import metadata
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.checkpoint.format import Checkpoint
from src.checkpoint.restore import build_network, open_source
from src.data.sources import Source, open_sources, prepare_digits
from src.dataset import Loader
from src.deployment.description import Check
from src.deployment.logits import Predict, check_difference, full_batches
from src.deployment.onnx_session import open_onnx
from src.errors import Fault, UserError

log = logging.getLogger(__name__)

CHECK_IMAGES = 16  # at least

# Largest differences of logits, relative to the largest logit: of folding, and of the model file
# besides. Float32 gives some 1e-6; a weight that is lost or misplaced gives 1e-3 and more.
FOLD_TOLERANCE = 1e-5
FILE_TOLERANCE = 1e-4


class NoRuntimeError(Exception):
    """Nothing here can run a model file; says why."""


def check_model(
    file: Path, checkpoint: Checkpoint, network: nn.Cell, folded: bool, batch_size: int
) -> Check | None:
    """Compare a model file with the trained network on real images.

    Args:
        file: the model file.
        checkpoint: of the trained network.
        network: that was written to the file.
        folded: whether batch normalisation is folded in ``network``.
        batch_size: of the model file.

    Returns:
        None, which is logged, where nothing here can run the model file.

    Raises:
        Fault: the logits differ.
    """
    batches, data = _real_images(checkpoint, batch_size)
    exported = _logits(_cell_predict(network), batches)
    if folded:  # otherwise ``network`` is the trained one itself
        trained = _logits(_cell_predict(build_network(checkpoint)), batches)
        what, advice = "folding batch normalisation", "--no_fold exports without it"
        check_difference(exported, trained, FOLD_TOLERANCE, what, advice)
    try:
        runtime, predict = load_model(file)
    except NoRuntimeError as reason:
        log.warning("%s: not checked: %s", file.name, reason)
        return None
    what, advice = f"{file.name}, computed by {runtime},", "no model was written"
    difference = check_difference(_logits(predict, batches), exported, FILE_TOLERANCE, what, advice)
    check = Check(runtime, data, len(batches) * batch_size, difference)
    log.info(
        "%s: checked in %s on %d images (%s): logits differ by at most %.1e of the largest",
        file.name,
        check.runtime,
        check.images,
        check.data,
        check.largest_difference,
    )
    return check


def load_model(file: Path) -> tuple[str, Predict]:
    """Name and version of what runs a model file, and a function that does.

    Raises:
        NoRuntimeError: nothing here runs it.
    """
    if file.suffix == ".mindir":
        return f"MindSpore {ms.__version__}", _cell_predict(nn.GraphCell(ms.load(str(file))))
    if file.suffix == ".air":
        raise NoRuntimeError("an AIR model cannot be loaded again in Python")
    try:
        predict, _ = open_onnx(file)
    except ImportError:
        raise NoRuntimeError("ONNX Runtime is not installed (pip install onnxruntime)") from None
    return f"ONNX Runtime {metadata.version('onnxruntime')}", predict


def _cell_predict(network: nn.Cell) -> Predict:
    return lambda batch: network(Tensor(batch)).asnumpy()


def _logits(predict: Predict, batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([predict(batch) for batch in batches])


def _real_images(checkpoint: Checkpoint, batch_size: int) -> tuple[list[np.ndarray], str]:
    """Full batches of preprocessed images, and the name of their data set.

    They are of the validation set of the training, or of the embedded digits where it is not there.
    """
    count = max(CHECK_IMAGES, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        source, name = validation_set(checkpoint), checkpoint.meta.config.get("dataset_name")
        if source is None:
            source, name = _digits(Path(folder)), "digits"
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
    whole = full_batches(images, batch_size)
    return list(whole.reshape(-1, batch_size, *images.shape[1:])), str(name)


def validation_set(checkpoint: Checkpoint) -> Source | None:
    """That of the training; None where it is not known, or is not there any more."""
    config = checkpoint.meta.config
    path = config.get("data_path")
    # Weights of other origin have no data set, those of a packed supernet no path to it. The
    # embedded digits would be written there again.
    if not path or (config.get("dataset_name") == "digits" and not Path(path).is_dir()):
        return None
    try:
        return open_source(checkpoint, None, "val")
    except UserError as error:
        log.info("%s; other images are taken instead", error)
        return None


def _digits(folder: Path) -> Source:
    """The validation images of the embedded digits, as files in a folder."""
    prepare_digits(folder / "digits")
    return open_sources("digits", str(folder / "digits"), splits=("val",))["val"]
