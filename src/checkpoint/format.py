"""Checkpoints: one file that holds a run's whole state and explains itself.

A checkpoint is a MindSpore ``.ckpt`` with every parameter of the training step (network under its
plain names, optimizer, weight average under ``ema.``, loss scale) and one string entry ``meta``:
JSON of the architecture, preprocessing, classes, configuration and progress. It is written under
another name and then renamed, so a crash leaves the previous file whole, and read with its
checksum.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.train import checkpoint_pb2

from src.arch.architecture import Architecture
from src.data.preprocessing import Preprocessing
from src.data.safe_pickle import damage_reported
from src.data.sources import ImageFolder, PixelArray, open_sources
from src.errors import Fault, UserError
from src.spnasnet import SPNASNet, fold_batch_norm
from src.utils import release_memory

log = logging.getLogger(__name__)

META = "meta"
EMA_PREFIX = "ema."
VERSION = 1


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says about itself.

    Attributes:
        epoch: epochs completed.
        step: batches trained of the epoch that follows; 0 at the end of an epoch.
        parameters: number of parameters in the file; fewer when read means a damaged file.
        metrics: validation results, empty where the checkpoint was not validated.
        space: the search space of a supernet, whose largest network is ``arch``; None for a
            network.
        device_num: number of devices that trained, each with batches of its own.
    """

    arch: dict[str, Any]
    preprocessing: dict[str, Any]
    classes: list[str]
    config: dict[str, Any]
    epoch: int = 0
    step: int = 0
    parameters: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    space: dict[str, Any] | None = None
    device_num: int = 1
    version: int = VERSION


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    path: Path
    meta: Meta
    parameters: dict[str, Parameter]

    @property
    def arch(self) -> Architecture:
        return Architecture.from_dict(self.meta.arch, str(self.path))

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_dict(self.meta.preprocessing)

    def network_parameters(self) -> dict[str, Parameter]:
        """The network to evaluate and export: the weight average where there is one."""
        average = {
            name[len(EMA_PREFIX) :]: value
            for name, value in self.parameters.items()
            if name.startswith(EMA_PREFIX)
        }
        return average or self.parameters

    def source(self, config: Any, split: str) -> ImageFolder | PixelArray:
        """A split of the data that ``config`` names, or of that of the training where it names none.

        Args:
            config: has dataset_name, data_path and val_data_path.

        Raises:
            UserError: it cannot be opened, or its classes are others than those of the training.
        """
        trained = self.meta.config
        data_path = config.data_path or trained["data_path"]
        val_data_path = config.val_data_path or (
            None if config.data_path else trained["val_data_path"]
        )
        source = open_sources(
            config.dataset_name or trained["dataset_name"], data_path, val_data_path, (split,)
        )[split]
        if list(source.classes) != self.meta.classes:
            others = " others" if len(source.classes) == len(self.meta.classes) else ""
            raise UserError(
                f"{source.path}: holds {len(source.classes)} classes, {self.path} was trained on "
                f"{len(self.meta.classes)}{others}"
            )
        return source

    def network(self, *, kernels: bool = False, folded: bool = False) -> SPNASNet:
        """The network in evaluation mode, with the CPU operators if ``kernels``, without BN if ``folded``."""
        if self.meta.space is not None:
            raise UserError(
                f"{self.path}: holds a supernet in search, not a network; the network that a search found is "
                "in inherited.ckpt of its run folder; search.py --method one_shot searches a one-shot supernet"
            )
        network = SPNASNet(self.arch, len(self.meta.classes), kernels=kernels and not folded)
        load_parameters(network, self.network_parameters(), self.path)
        if folded:
            arrays = fold_batch_norm(
                {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()},
                self.arch.bn_epsilon,
            )
            network = SPNASNet(self.arch, len(self.meta.classes), kernels=kernels, folded=True)
            load_parameters(network, to_parameters(arrays), self.path)
        return network.set_train(False)


@contextmanager
def _framework_silent() -> Iterator[None]:
    """Keep MindSpore from logging an error that it also raises, so that the user reads it once."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def to_parameters(arrays: Mapping[str, np.ndarray]) -> dict[str, Parameter]:
    """Arrays as parameters of their names."""
    return {name: Parameter(Tensor(value), name=name) for name, value in arrays.items()}


def load_parameters(cell: nn.Cell, parameters: dict[str, Parameter], path: Path) -> None:
    """Put parameters into a cell; every parameter of the cell must be there, in its shape."""
    for parameter in cell.get_parameters():
        stored = parameters.get(parameter.name)
        if stored is None:
            raise UserError(
                f"{path}: holds no '{parameter.name}'; it does not match the architecture or configuration"
            )
        if stored.shape != parameter.shape:
            raise UserError(
                f"{path}: '{parameter.name}' has shape {stored.shape}, should be {parameter.shape}"
            )
        parameter.set_data(stored.value())


def overwrite(parameter: Parameter, value: Tensor) -> None:
    """Give a parameter other values in the memory that it has.

    A compiled graph with branches that has run once goes on reading that memory: what ``set_data``
    puts in its place is silently not seen by the branches.
    """
    ops.assign(parameter, value)


def _remove_scratch(folder: Path, stem: str) -> None:
    """Delete half-written files: ours, and MindSpore's own beside them."""
    for suffix in (".ckpt", ".tmp"):
        for file in folder.glob(stem + suffix):
            file.unlink(missing_ok=True)


def write_checkpoint(path: Path, cell: nn.Cell, meta: Meta) -> None:
    """Save all parameters of ``cell``; raises Fault when the disk is full or not writable."""
    meta = Meta(**{**asdict(meta), "parameters": len(list(cell.get_parameters()))})
    scratch = path.with_name(f".{path.stem}.{os.getpid()}.ckpt")
    try:
        with _framework_silent():
            ms.save_checkpoint(
                cell, str(scratch), append_dict={META: json.dumps(asdict(meta))}, crc_check=True
            )
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except (OSError, RuntimeError, ValueError) as error:
        _remove_scratch(path.parent, scratch.stem)
        reason = (
            os.strerror(errno.ENOSPC)
            if "space" in str(error).lower()
            else str(error).strip().splitlines()[0]
        )
        raise Fault(
            f"{path}: cannot be saved ({reason}); the checkpoints before it are whole"
        ) from None
    release_memory()  # save_checkpoint leaves copies of all parameters that refer to each other


def write_inherited(folder: Path, weights: Mapping[str, np.ndarray], meta: Meta) -> None:
    """Save weights that a network has from its supernet; ``meta`` is the network's own."""
    path = folder / "inherited.ckpt"
    network = SPNASNet(Architecture.from_dict(meta.arch), len(meta.classes))
    load_parameters(network, to_parameters(weights), path)
    write_checkpoint(path, network, meta)


def read_entries(path: Path) -> dict[str, np.ndarray | str]:
    """Arrays and texts of any MindSpore ``.ckpt``, its checksum verified where it has one.

    MindSpore's own reader trusts the shapes in a file and ends the process where they are damaged.

    Raises:
        UserError: the file is damaged or of another kind.
    """
    entries: dict[str, np.ndarray | str] = {}
    with damage_reported(path, "MindSpore checkpoint"):
        data = path.read_bytes()
        if data[-17:-10] == b"crc_num":
            data, checksum = data[:-17], int.from_bytes(data[-10:], "big")
            if zlib.crc32(data) != checksum:
                raise ValueError("its checksum differs")
        content = checkpoint_pb2.Checkpoint()
        content.ParseFromString(data)
        slices: dict[str, list[bytes]] = {}  # large arrays come in several
        for entry in content.value:
            slices.setdefault(entry.tag, []).append(entry.tensor.tensor_content)
        for entry in content.value:
            value, kind = b"".join(slices[entry.tag]), entry.tensor.tensor_type
            if kind == "str":
                entries[entry.tag] = value.decode("utf-32-le").rstrip("\0")
            else:
                shape = () if list(entry.tensor.dims) == [0] else tuple(entry.tensor.dims)
                entries[entry.tag] = np.frombuffer(value, np.dtype(kind.lower())).reshape(shape)
        if not entries:
            raise ValueError("it holds nothing")
    return entries


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint; raises UserError for a missing, damaged or foreign file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    entries = read_entries(path)
    text = entries.pop(META, None)
    if not isinstance(text, str):
        raise UserError(
            f"{path}: not a checkpoint of this project (it does not describe itself); "
            "weights of other projects are read by train.py --pre_trained"
        )
    try:
        meta = Meta(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: its description cannot be read ({error})") from None
    if meta.version != VERSION:
        raise UserError(f"{path}: version {meta.version}, this program reads {VERSION}")
    if len(entries) != meta.parameters:
        raise UserError(
            f"{path}: holds {len(entries)} of {meta.parameters} parameters; it is damaged"
        )
    return Checkpoint(path, meta, to_parameters(entries))
