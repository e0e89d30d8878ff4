"""Packed supernets: what it takes to serve networks without images, in two small files.

``NAME.safetensors`` holds the parameters of an elastic supernet. Its metadata has what a checkpoint
says about itself (``meta``), the accuracies of its networks that were evaluated (``networks``), and
digests of the weights and of the other file. ``NAME.statistics.safetensors`` holds the statistics
of batch normalisation of some of these networks: each array under the number of the network, in the
list ``networks`` of the metadata, and the name that it has in the network itself. Arrays are
float16 in the files and float32 in memory.

Shipped ones lie in ``weights`` and are known by their names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FiniteFloat
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from src.arch.space import Network, SpaceError
from src.checkpoint.format import Checkpoint, Meta, Weights, weights_digest
from src.errors import UserError
from src.files import check_header, parse_record, sha256, whole

SHIPPED = Path(__file__).parents[2] / "weights"
SUFFIX, STATISTICS = ".safetensors", ".statistics"
FORMAT, VERSION = "spnas-packed-supernet", 1


@dataclass(frozen=True)
class Packed:
    """A packed supernet in memory.

    Attributes:
        path: of the first file.
        meta: of the checkpoint that it was made of, with the space.
        weights: parameters of the largest network.
        accuracies: of networks that were evaluated, in percent.
        statistics: moving means and variances, by name in the network, of some of these networks;
            the largest is one of them.
    """

    path: Path
    meta: Meta
    weights: Weights
    accuracies: Mapping[Network, float]
    statistics: Mapping[Network, Weights]

    def checkpoint(self) -> Checkpoint:
        """The supernet as its training left it, with the largest network's statistics."""
        assert self.meta.space is not None
        largest = self.statistics[self.meta.space.largest_choices]
        return Checkpoint(self.path, self.meta, {**self.weights, **largest})


@dataclass(frozen=True)
class _Metadata:
    """Metadata of the first file."""

    meta: str
    networks: dict[str, FiniteFloat]
    weights_digest: str
    statistics_sha256: str


def find_packed(name_or_file: str) -> Path | None:
    """The file of a shipped supernet, or the given one where it is of this kind."""
    path, shipped = Path(name_or_file), SHIPPED / f"{name_or_file}{SUFFIX}"
    if path.name == name_or_file and shipped.is_file():
        return shipped
    return path if path.suffix == SUFFIX else None


def statistics_file(path: Path) -> Path:
    """The second file of a packed supernet."""
    return path.with_suffix(STATISTICS + SUFFIX)


def write_packed(packed: Packed) -> None:
    """Write both files, or neither.

    Raises:
        Fault: a file cannot be written.
    """
    arrays = {
        f"{number}.{name}": value
        for number, statistics in enumerate(packed.statistics.values())
        for name, value in statistics.items()
    }
    names = [" ".join(network) for network in packed.statistics]
    accuracies = {" ".join(network): top1 for network, top1 in packed.accuracies.items()}
    with whole(statistics_file(packed.path)) as second:
        _save(second, arrays, {"networks": names})
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "meta": packed.meta.to_json(),
            "networks": accuracies,
            "weights_digest": weights_digest(packed.weights),
            "statistics_sha256": sha256(second),
        }
        with whole(packed.path) as first:
            _save(first, packed.weights, metadata)


def _save(path: Path, arrays: Weights, metadata: Mapping[str, Any]) -> None:
    # The format allows nothing but text as values.
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    values = {name: value.astype(np.float16) for name, value in arrays.items()}
    try:
        save_file(values, path, texts)
    except SafetensorError as error:  # so that it is told as one of any other file
        raise OSError(str(error)) from None


def read_packed(path: Path) -> Packed:
    """Read both files.

    Raises:
        UserError: one is missing or damaged, or they do not belong together.
    """
    arrays, texts = _load(path)
    record = check_header(texts, FORMAT, VERSION, str(path), UserError)
    metadata = parse_record(_Metadata, record, str(path))
    if weights_digest(arrays) != metadata.weights_digest:
        raise UserError(f"{path}: is damaged; its weights are not those that were written")
    second = statistics_file(path)
    values, listed = _load(second)
    if sha256(second) != metadata.statistics_sha256:
        raise UserError(f"{second}: is not the file that was written with {path.name}")
    statistics: dict[Network, dict[str, np.ndarray]] = {
        tuple(name.split()): {} for name in listed["networks"]
    }
    of_number = list(statistics.values())
    for key, value in values.items():
        number, name = key.split(".", 1)
        of_number[int(number)][name] = value
    meta = Meta.from_json(metadata.meta, str(path))
    if meta.space is None:
        raise UserError(f"{path}: holds no space")
    accuracies = {tuple(name.split()): top1 for name, top1 in metadata.networks.items()}
    try:
        for network in {**accuracies, **statistics}:
            meta.space.check(network)
    except SpaceError as error:
        raise UserError(f"{path}: {error}") from None
    return Packed(path, meta, arrays, accuracies, statistics)


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and metadata of a file; arrays as float32."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            arrays = {name: file.get_tensor(name).astype(np.float32) for name in names}
            texts = file.metadata() or {}
        return arrays, {key: json.loads(text) for key, text in texts.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a packed supernet ({error})") from None
