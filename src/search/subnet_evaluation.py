"""Accuracy of the networks of a trained supernet, each with statistics of its own.

Before a network is evaluated its batch normalisation gets the mean over some batches of training
images of the statistics of each batch (Guo et al., arXiv 1904.00420, section 3.4). They depend
only on the network, not on what was evaluated before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
from mindspore import Parameter, Tensor, nn

from src.arch.space import SearchSpace
from src.checkpoint.folder import CheckpointFolder
from src.checkpoint.format import Checkpoint, Meta, read_checkpoint
from src.checkpoint.packed import find_packed, read_packed
from src.checkpoint.restore import load_weights, open_source, overwrite
from src.config import SubnetDataConfig
from src.dataset import Loader
from src.devices.ranks import Ranks
from src.errors import Fault, UserError
from src.kernels import BFLOAT16_FLAG, supports_bfloat16, use_kernels
from src.search.one_shot import BlockPath, OneShotSupernet
from src.spnasnet import SPNASNet
from src.training.compile_cache import CompileCache
from src.training.evaluation import Batches as EvaluationBatches
from src.training.evaluation import Result, evaluate
from src.training.run_log import run_folder
from src.utils import setup_device

Split = Literal["held", "val"]


def read_supernet(path: str | None) -> tuple[Checkpoint, SearchSpace]:
    """The supernet of a checkpoint, a run's folder (its newest one) or a packed one; its space."""
    if path is None:
        raise UserError(
            "ckpt is not given; it names the supernet's checkpoint, or the folder of its run"
        )
    packed = find_packed(path)
    if packed:
        checkpoint = read_packed(packed).checkpoint()
    elif Path(path).is_dir():
        newest = CheckpointFolder(run_folder(Path(path))).newest()
        if newest is None:
            raise UserError(f"{path}: holds no checkpoint that can be read")
        checkpoint = newest
    else:
        checkpoint = read_checkpoint(path)
    if checkpoint.meta.space is None:
        raise UserError(
            f"{checkpoint.path}: holds a single network, no supernet; train.py --space trains one "
            "of superkernels, scripts/run_spnas.py a one-shot one"
        )
    return checkpoint, checkpoint.meta.space


def describe_images(config: SubnetDataConfig, meta: Meta) -> dict[str, Any]:
    """What the files of a search in a supernet say of its images, under the key ``IMAGES``."""
    return {
        "dataset_name": config.dataset_name or meta.config.get("dataset_name"),
        "num_classes": len(meta.classes),
        "image_size": [meta.preprocessing.height, meta.preprocessing.width],
    }


class Batches:
    """Batches of a split, kept in memory unless they are too many; all that ``evaluate`` reads."""

    MOST_BYTES = 3 << 29  # 2,600 images of 224x224

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


def open_batches(
    config: SubnetDataConfig,
    checkpoint: Checkpoint,
    split: Literal["train", "held", "val"],
    count: int | None,
) -> Batches:
    """``count`` images of a split, all where it is None."""
    source = open_source(checkpoint, config, split)
    loader = Loader(
        source,
        checkpoint.meta.preprocessing,
        batch_size=min(config.batch_size, count or len(source), len(source)),
        training=False,
        max_images=count,
        num_parallel_workers=config.num_parallel_workers,
        replace_damaged=split == "train",  # statistics are those of full batches
    )
    return Batches(loader)


class Images(NamedTuple):
    """With what, and how, networks of a supernet are evaluated.

    Attributes:
        calibration: training images, for the statistics.
        validation: images for the accuracy.
        kernels: whether to compute by the CPU operators.
        compiling: the context in which they are evaluated.
        bfloat16: whether the operators multiply in bfloat16 in a one-shot supernet's blocks.
    """

    calibration: Batches
    validation: Batches
    kernels: bool
    compiling: CompileCache
    bfloat16: bool = False


def open_images(
    config: SubnetDataConfig,
    checkpoint: Checkpoint,
    space: SearchSpace,
    split: Split | None,
    *,
    bfloat16: bool = False,
) -> Images:
    """Select the device and open the images that the configuration asks for.

    Args:
        split: of which the accuracy is; None where none is taken.
        bfloat16: see ``Images``.

    Raises:
        UserError: bfloat16 is asked for where it cannot be had.
    """
    setup_device(config.device_target, config.device_id, config.jit_level)
    meta, kernels = checkpoint.meta, use_kernels(config.cpu_kernels)
    if bfloat16 and not (kernels and supports_bfloat16()):
        raise UserError(
            "precision is 'bfloat16', which takes the CPU operators and a processor with "
            f"{BFLOAT16_FLAG}; should be 'float32'"
        )
    calibration = open_batches(config, checkpoint, "train", config.calibration_images)
    validation = calibration
    if split is not None:
        validation = open_batches(config, checkpoint, split, config.val_images)
    graph_values = {
        "search": space.to_dict(),
        "classes": len(meta.classes),
        "device": config.device_target,
        "kernels": kernels,
        "bfloat16": bfloat16,
        "jit_level": config.jit_level,
        "size": asdict(meta.preprocessing),
        "batches": [calibration.batch_size, validation.batch_size],
    }
    compiling = CompileCache(graph_values, config.compile_cache)
    return Images(calibration, validation, kernels, compiling, bfloat16)


class SubnetEvaluator:
    """Evaluates networks of a supernet.

    Args:
        create: makes the supernet, from the momentum of its moving statistics.
        calibration: training images, for the statistics.
        forward: logits by a supernet of images and a choice of its parts.

    Attributes:
        sampler: the supernet in training mode, for the statistics of each batch.
        network: the supernet in evaluation mode; the network that was evaluated last has its own
            statistics in it.
    """

    def __init__(
        self,
        create: Callable[[float], nn.Cell],
        calibration: Batches,
        forward: Callable[[Any, Tensor, Any], Tensor],
    ) -> None:
        self._calibration, self._forward = calibration, forward
        # With momentum 0 moving statistics are those of the last batch.
        self.sampler = create(0.0).set_train()
        self.network = create(0.9).set_train(False)
        self._own: Mapping[str, Parameter] = self.network.parameters_dict()

    def load(self, weights: Mapping[str, np.ndarray], origin: Path) -> SubnetEvaluator:
        """Evaluate networks of these parameters, which come from ``origin``."""
        for network in (self.sampler, self.network):
            load_weights(network, weights, origin)
        return self

    def take_weights(self) -> None:
        """Evaluate networks of the parameters that ``network`` has now."""
        for name, parameter in self.sampler.parameters_dict().items():
            overwrite(parameter, self._own[name].value())

    def calibrate(self, choice: Any, active: Callable[[str], bool] = lambda name: True) -> None:
        """Give the supernet the statistics of a network.

        Args:
            choice: says which network.
            active: whether a parameter is part of it; others keep what they have.
        """
        sampled = [
            parameter
            for name, parameter in self.sampler.parameters_dict().items()
            if ".moving_" in name and active(name)
        ]
        sums, batches = [np.zeros(parameter.shape) for parameter in sampled], 0
        for images, _ in self._calibration.epoch():
            # A shorter batch, the last one, would need a graph of its own.
            if len(images) < self._calibration.batch_size:
                continue
            self._forward(self.sampler, Tensor(images), choice).asnumpy()  # waits for its end
            for total, parameter in zip(sums, sampled, strict=True):
                total += parameter.asnumpy()
            batches += 1
        if not batches:
            raise Fault(f"{self._calibration.source.path}: no full batch of images could be read")
        for total, parameter in zip(sums, sampled, strict=True):
            mean = (total / batches).astype(np.float32)
            overwrite(self._own[parameter.name], Tensor(mean))

    def __call__(
        self,
        choice: Any,
        validation: EvaluationBatches,
        active: Callable[[str], bool] = lambda name: True,
        ranks: Ranks | None = None,
    ) -> Result:
        """Calibrate and evaluate a network; the other arguments are those of ``evaluate``."""
        self.calibrate(choice, active)
        return evaluate(
            lambda images: self._forward(self.network, images, choice), validation, ranks=ranks
        )


class PathEvaluator:
    """Evaluates paths of a one-shot supernet."""

    def __init__(self, checkpoint: Checkpoint, images: Images) -> None:
        space, classes = checkpoint.meta.space, len(checkpoint.meta.classes)
        assert space is not None
        self._validation = images.validation
        self._evaluator = SubnetEvaluator(
            lambda momentum: OneShotSupernet(
                space,
                classes,
                momentum=momentum,
                kernels=images.kernels,
                bfloat16=images.bfloat16,
            ),
            images.calibration,
            lambda network, pixels, path: network(pixels, path),
        ).load(checkpoint.network_weights(), checkpoint.path)
        self.network = self._evaluator.network

    def calibrate(self, path: BlockPath) -> None:
        """Give the blocks on a path, stem and head the statistics of that path."""
        self._evaluator.calibrate(*_path_choice(path))

    def __call__(self, path: BlockPath) -> Result:
        """Calibrate and evaluate a path."""
        choice, active = _path_choice(path)
        return self._evaluator(choice, self._validation, active)


def _path_choice(path: BlockPath) -> tuple[Tensor, Callable[[str], bool]]:
    """A path as the supernet takes it, and which parameters are of blocks on it or of all paths."""

    def active(name: str) -> bool:
        words = name.split(".")
        return words[0] != "blocks" or path[int(words[1])] == int(words[2])

    return Tensor(np.array(path, np.int32)), active


def parts(space: SearchSpace, decisions: Sequence[str]) -> Tensor:
    """Decisions of a superkernel supernet as its blocks take them, (blocks, 3)."""
    return Tensor(_parts(space, decisions))


def _parts(space: SearchSpace, decisions: Sequence[str]) -> np.ndarray:
    return np.array(space.active_parts(decisions), np.float32)


def forward_parts(network: nn.Cell, images: Tensor, parts: Tensor) -> Tensor:
    """Logits of a network of a superkernel supernet."""
    return network(images, None, parts)


class LayerOutputs:
    """What the layers of a network gave for each batch of a split, kept where there is room for it.

    What they need is known after the first pass over the split. They are kept from then on if that
    is at most a quarter of the memory that is free, and at most ``MOST_BYTES``, with which images
    are few enough for ``Batches`` to keep them: a batch then always has the same ones.

    Args:
        network: a superkernel supernet.
    """

    MOST_BYTES = 8 << 30

    def __init__(self, network: SPNASNet) -> None:
        self._network = network
        self._batches: list[list[Tensor]] = []  # outputs of stem and blocks; empty if not kept
        self._number = self._bytes = 0
        self._keeps: bool | None = None

    def restart(self, layers: int) -> None:
        """Go back to the first batch; outputs of this number of leading layers stay valid."""
        if self._keeps is None and self._number:
            room = min(self.MOST_BYTES, psutil.virtual_memory().available // 4)
            self._keeps = self._bytes <= room
        self._number = 0
        for outputs in self._batches:
            del outputs[layers:]

    def logits(self, images: Tensor, decisions: Sequence[Tensor]) -> Tensor:
        """Logits of the next batch, (N, classes); layers whose outputs are kept are left out.

        Args:
            images: (N, 3, H, W).
            decisions: (3,) of each block, see ``MBConv``.
        """
        if self._number == len(self._batches):
            self._batches.append([])
        outputs = self._batches[self._number]
        self._number += 1
        done = len(outputs)
        x = outputs[-1] if outputs else images
        layers = [self._network.stem, *self._network.blocks]
        for layer, decision in zip(layers[done:], [None, *decisions][done:], strict=True):
            x = layer(x) if decision is None else layer(x, None, None, None, decision)
            if self._keeps:
                outputs.append(x)
            elif self._keeps is None:
                self._bytes += x.nbytes
        return self._network.classify(x)


class SuperkernelEvaluator:
    """Evaluates decisions of a superkernel supernet.

    Leading layers that a network has in common with the one before, which gives them the same
    statistics, are not computed again: many networks are best evaluated in the order of their
    decisions.

    Attributes:
        network: as that of ``SubnetEvaluator``.
    """

    def __init__(self, checkpoint: Checkpoint, images: Images) -> None:
        space, classes = checkpoint.meta.space, len(checkpoint.meta.classes)
        assert space is not None
        self._space, self._validation = space, images.validation
        self._outputs: dict[bool, LayerOutputs] = {}  # in training and in evaluation mode
        self._last: np.ndarray | None = None

        def create(momentum: float) -> SPNASNet:
            return SPNASNet(space.largest(), classes, momentum=momentum, kernels=images.kernels)

        def forward(network: SPNASNet, pixels: Tensor, decisions: Sequence[Tensor]) -> Tensor:
            return self._outputs[network.training].logits(pixels, decisions)

        self._evaluator = SubnetEvaluator(create, images.calibration, forward).load(
            checkpoint.network_weights(), checkpoint.path
        )
        self.network = self._evaluator.network
        for network in (self._evaluator.sampler, self.network):
            self._outputs[network.training] = LayerOutputs(network)

    def calibrate(self, decisions: Sequence[str]) -> None:
        """Give the supernet the statistics of a network."""
        with self._network(decisions) as choice:
            self._evaluator.calibrate(*choice)

    def __call__(self, decisions: Sequence[str]) -> Result:
        """Calibrate and evaluate a network."""
        with self._network(decisions) as (own, active):
            return self._evaluator(own, self._validation, active)

    @contextmanager
    def _network(
        self, decisions: Sequence[str]
    ) -> Iterator[tuple[list[Tensor], Callable[[str], bool]]]:
        """A network as its blocks take it, and which parameters are behind what is kept."""
        own = _parts(self._space, decisions)
        first = -1  # block that is computed; -1 for the stem
        if self._last is not None:
            first = int((own == self._last).all(1).cumprod().sum())
        for outputs in self._outputs.values():
            outputs.restart(first + 1)
        self._last = None  # whatever ends this early leaves nothing to build upon

        def active(name: str) -> bool:
            room, number = name.split(".")[:2]
            return int(number) >= first if room == "blocks" else room != "stem" or first < 0

        yield [Tensor(part) for part in own], active
        self._last = own
