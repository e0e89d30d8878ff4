"""Checkpoints: one file that holds a run's whole state and explains itself.

A checkpoint is a MindSpore ``.ckpt`` with every parameter of the training step (network under its
plain names, optimizer, weight average under ``ema.``, loss scale) and one string entry ``meta``:
JSON of the architecture, preprocessing, classes, configuration and progress. It is written under
another name and then renamed, so a crash leaves the previous file whole, and read with its
checksum. In memory its weights are NumPy arrays; ``src.checkpoint.restore`` makes networks of them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.train import checkpoint_pb2
from pydantic import BaseModel, ConfigDict

from src.arch.architecture import Architecture
from src.arch.space import SearchSpace
from src.data.preprocessing import Preprocessing
from src.data.safe_pickle import damage_reported
from src.errors import Fault, UserError
from src.files import parse_record, whole
from src.utils import release_memory

META = "meta"
EMA_PREFIX = "ema."
VERSION = 1

# A file with a checksum ends in these many bytes: "crc_num", then the CRC-32 as a big-endian number
# (mindspore.train.serialization, crc_check=True).
_CHECKSUM_TAG, _CHECKSUM_BYTES = b"crc_num", 17

# Names of a network's parameters, beside which a checkpoint holds those of the optimizer.
NETWORK_NAME = re.compile(r"(stem|blocks\.\d+|head|classifier)\..+")

Weights: TypeAlias = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says about itself.

    Attributes:
        config: the configuration of the run; empty where there was none.
        epoch: epochs completed.
        step: batches trained of the epoch that follows; 0 at the end of an epoch.
        parameters: number of parameters in the file; fewer when read means a damaged file.
        metrics: validation results, empty where the checkpoint was not validated.
        space: the search space of a supernet, whose largest network is ``arch``; None for a
            network.
        device_num: number of devices that trained, each with batches of its own.
        batches_per_epoch: of each device; 0 in files of version 1.0.0, which do not say it.
        held_out: digest of the names of the images that training kept apart (``names_digest``);
            empty where there are none, and in files that are older than this entry.
    """

    arch: Architecture
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    parameters: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    space: SearchSpace | None = None
    device_num: int = 1
    batches_per_epoch: int = 0
    held_out: str = ""

    @property
    def progress(self) -> tuple[int, int]:
        """Epochs completed, and batches of the epoch that follows."""
        return self.epoch, self.step

    @property
    def images(self) -> int:
        """Images of the epoch that follows on which all devices have trained."""
        return self.step * int(self.config.get("batch_size", 1)) * self.device_num

    def to_json(self) -> str:
        """The text of the entry ``meta``."""
        values = {
            "arch": self.arch.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "space": None if self.space is None else self.space.to_dict(),
        }
        record = _MetaRecord(**{**vars(self), **values})
        return json.dumps(record.model_dump())

    @classmethod
    def from_json(cls, text: str, origin: str) -> Meta:
        """Inverse of ``to_json``; ``origin`` names the file in errors."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise UserError(f"{origin}: its description cannot be read ({error})") from None
        record = parse_record(_MetaRecord, data, f"{origin}: description")
        if record.version != VERSION:
            raise UserError(f"{origin}: version {record.version}, this program reads {VERSION}")
        values = {
            "arch": Architecture.from_dict(record.arch, origin),
            "preprocessing": Preprocessing.from_dict(record.preprocessing, origin),
            "classes": tuple(record.classes),
            "space": None if record.space is None else SearchSpace.from_dict(record.space, origin),
        }
        return cls(**{**record.model_dump(exclude={"version"}), **values})


class _MetaRecord(BaseModel):
    """``Meta`` as it stands in a file."""

    model_config = ConfigDict(extra="forbid")

    arch: dict[str, Any]
    preprocessing: dict[str, Any]
    classes: list[str]
    config: dict[str, Any]
    epoch: int = 0
    step: int = 0
    parameters: int = 0
    metrics: dict[str, float] = {}
    space: dict[str, Any] | None = None
    device_num: int = 1
    batches_per_epoch: int = 0
    held_out: str = ""
    version: int = VERSION


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        weights: all arrays of the file, by name: network, optimizer, weight average, loss scale.
    """

    path: Path
    meta: Meta
    weights: Weights

    def network_weights(self) -> dict[str, np.ndarray]:
        """Weights of the network to evaluate and export: averaged ones where there are any."""
        return network_weights(self.weights)

    def digest(self) -> str:
        """Tells whether two supernets have the same weights."""
        return weights_digest(self.network_weights())


def weights_digest(weights: Weights) -> str:
    """Digest of the weights of a supernet, without statistics.

    They are rounded to float16, so that a packed supernet has the digest of the whole one.
    """
    code = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if ".moving_" not in name:
            code.update(name.encode() + value.astype(np.float16).tobytes())
    return code.hexdigest()[:16]


def network_weights(weights: Weights) -> dict[str, np.ndarray]:
    """The network's own among the arrays of a training step, averaged ones in place of others."""
    averaged = {
        name[len(EMA_PREFIX) :]: value
        for name, value in weights.items()
        if name.startswith(EMA_PREFIX)
    }
    return {
        name: value
        for name, value in {**weights, **averaged}.items()
        if NETWORK_NAME.fullmatch(name)
    }


@contextmanager
def _framework_silent() -> Iterator[None]:
    """Keep MindSpore from logging an error that it also raises, so that the user reads it once."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def remove_scratch(folder: Path, stem: str) -> None:
    """Delete half-written files: this module's, and MindSpore's own beside them."""
    for suffix in (".ckpt", ".tmp"):
        for file in folder.glob(stem + suffix):
            file.unlink(missing_ok=True)


def write_checkpoint(path: Path, weights: Weights, meta: Meta) -> None:
    """Save arrays under their names.

    Raises:
        Fault: the disk is full or cannot be written; the file is as it was.
    """
    meta = replace(meta, parameters=len(weights))
    entries = [{"name": name, "data": Tensor(value)} for name, value in weights.items()]
    try:
        with whole(path) as scratch:
            with _framework_silent():
                ms.save_checkpoint(
                    entries, str(scratch), append_dict={META: meta.to_json()}, crc_check=True
                )
            with open(scratch, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(scratch, 0o644)  # MindSpore makes files that only their owner may read
    except (Fault, RuntimeError, ValueError) as error:
        remove_scratch(path.parent, f".{path.stem}.{os.getpid()}")
        text = str(error).strip().splitlines()[0]
        full = any(words in str(error).lower() for words in ("no space left", "disk space"))
        reason = os.strerror(errno.ENOSPC) if full else text
        raise Fault(
            f"{path}: cannot be saved ({reason}); the checkpoints before it are whole"
        ) from None
    del entries
    release_memory()  # save_checkpoint leaves copies of all parameters that refer to each other


def read_entries(path: Path) -> dict[str, np.ndarray | str]:
    """Arrays and texts of any MindSpore ``.ckpt``, its checksum verified where it has one.

    MindSpore's own reader trusts the shapes in a file and ends the process where they are damaged.

    Raises:
        UserError: the file is damaged or of another kind.
    """
    entries: dict[str, np.ndarray | str] = {}
    with damage_reported(path, "MindSpore checkpoint"):
        content = checkpoint_pb2.Checkpoint()
        content.ParseFromString(_verified(path.read_bytes()))
        slices: dict[str, list[bytes]] = {}  # large arrays come in several
        for entry in content.value:
            slices.setdefault(entry.tag, []).append(entry.tensor.tensor_content)
        for entry in content.value:
            value, kind = b"".join(slices[entry.tag]), entry.tensor.tensor_type
            if kind == "str":
                entries[entry.tag] = value.decode("utf-32-le").rstrip("\0")
            else:
                # A scalar is written with the dimensions [0].
                dims = tuple(entry.tensor.dims)
                shape = () if dims == (0,) else dims
                array = np.frombuffer(value, np.dtype(kind.lower()))
                entries[entry.tag] = array.reshape(shape)
        if not entries:
            raise ValueError("it holds nothing")
    return entries


def _verified(data: bytes) -> bytes:
    """The content of a file, without the checksum that it may end in."""
    tag = data[-_CHECKSUM_BYTES:][: len(_CHECKSUM_TAG)]
    if tag != _CHECKSUM_TAG:
        return data
    content = data[:-_CHECKSUM_BYTES]
    checksum = int.from_bytes(data[-_CHECKSUM_BYTES + len(_CHECKSUM_TAG) :], "big")
    if zlib.crc32(content) != checksum:
        raise ValueError("its checksum differs")
    return content


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    entries = read_entries(path)
    text = entries.pop(META, None)
    if not isinstance(text, str):
        raise UserError(
            f"{path}: not a checkpoint of this project (it does not describe itself); weights of "
            "other projects are read by train.py --pre_trained"
        )
    meta = Meta.from_json(text, str(path))
    if len(entries) != meta.parameters:
        raise UserError(
            f"{path}: holds {len(entries)} of {meta.parameters} parameters; it is damaged"
        )
    arrays = {name: value for name, value in entries.items() if isinstance(value, np.ndarray)}
    return Checkpoint(path, meta, arrays)
