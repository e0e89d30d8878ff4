"""Accuracy of the paths of a trained one-shot supernet, each with statistics of its own.

Before a path is evaluated its batch normalisation gets the mean over some batches of training
images of the statistics of each batch (Guo et al., arXiv 1904.00420, section 3.4). They depend
only on the path, not on what was evaluated before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mindspore import Tensor

from src.checkpoint.folder import CheckpointFolder
from src.checkpoint.format import Checkpoint, read_checkpoint
from src.checkpoint.restore import load_weights, overwrite
from src.dataset import Loader
from src.errors import UserError
from src.search.one_shot import BlockPath, OneShotSupernet
from src.training.evaluation import Result, evaluate


def read_supernet(path: str | None) -> Checkpoint:
    """The one-shot supernet of a checkpoint, or the newest of a run's folder."""
    if path is None:
        raise UserError(
            "ckpt is not given; it names the supernet's checkpoint, or the folder of its run"
        )
    if Path(path).is_dir():
        checkpoint = CheckpointFolder(Path(path)).newest()
        if checkpoint is None:
            raise UserError(f"{path}: holds no checkpoint that can be read")
    else:
        checkpoint = read_checkpoint(path)
    if checkpoint.meta.space is None or not checkpoint.meta.space.one_shot:
        raise UserError(
            f"{checkpoint.path}: holds no one-shot supernet; scripts/run_spnas.py trains one"
        )
    return checkpoint


class Batches:
    """Batches of a split, kept in memory unless they are too many; all that ``evaluate`` reads."""

    MOST_BYTES = 1 << 30

    def __init__(self, loader: Loader) -> None:
        self.source, self.batch_size = loader.source, loader.batch_size
        self._loader = loader
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []

    def epoch(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images (N, 3, H, W) and labels (N,) of each batch."""
        if self._kept:
            yield from self._kept
            return
        batches: list[tuple[np.ndarray, np.ndarray]] = []
        size = 0
        for images, labels in self._loader.epoch():
            size += images.nbytes
            if size <= self.MOST_BYTES:
                batches.append((images.copy(), labels.copy()))
            else:
                batches.clear()
            yield images, labels
        self._kept = batches


class PathEvaluator:
    """Evaluates paths of a supernet.

    Args:
        calibration: training images, for the statistics.
        validation: images for the accuracy.

    Attributes:
        network: the supernet in evaluation mode; the path that was evaluated last has its own
            statistics in it.
    """

    def __init__(
        self, checkpoint: Checkpoint, calibration: Batches, validation: Batches, kernels: bool
    ) -> None:
        space, classes = checkpoint.meta.space, len(checkpoint.meta.classes)
        assert space is not None
        self._calibration, self._validation = calibration, validation
        # With momentum 0 moving statistics are those of the last batch.
        self._sampler = OneShotSupernet(space, classes, momentum=0.0, kernels=kernels).set_train()
        self.network = OneShotSupernet(space, classes, kernels=kernels).set_train(False)
        weights = checkpoint.network_weights()
        for network in (self._sampler, self.network):
            load_weights(network, weights, checkpoint.path)
        self._own = dict(self.network.parameters_dict())

    def calibrate(self, path: BlockPath) -> None:
        """Give the blocks on a path, stem and head the statistics of that path."""
        sampled = [
            parameter
            for name, parameter in self._sampler.parameters_dict().items()
            if ".moving_" in name and _on_path(name, path)
        ]
        tensor = Tensor(np.array(path, np.int32))
        sums, batches = [np.zeros(parameter.shape) for parameter in sampled], 0
        for images, _ in self._calibration.epoch():
            if len(images) < self._calibration.batch_size and batches:
                break  # a last batch that is shorter would need a graph of its own
            self._sampler(Tensor(images), tensor).asnumpy()  # waits for its end
            for total, parameter in zip(sums, sampled, strict=True):
                total += parameter.asnumpy()
            batches += 1
        for total, parameter in zip(sums, sampled, strict=True):
            mean = (total / batches).astype(np.float32)
            overwrite(self._own[parameter.name], Tensor(mean))

    def __call__(self, path: BlockPath) -> Result:
        """Calibrate and evaluate a path."""
        self.calibrate(path)
        tensor = Tensor(np.array(path, np.int32))
        return evaluate(lambda images: self.network(images, tensor), self._validation)


def _on_path(name: str, path: BlockPath) -> bool:
    """Whether a parameter is of a block on the path, or of what all paths share."""
    words = name.split(".")
    return words[0] != "blocks" or path[int(words[1])] == int(words[2])
