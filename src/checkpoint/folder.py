"""The folder of a run: which checkpoints are kept, which is the newest and which the best."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from src.checkpoint.format import (
    Checkpoint,
    Meta,
    Weights,
    read_checkpoint,
    remove_scratch,
    write_checkpoint,
)
from src.errors import UserError
from src.files import parse_record, read_json, whole, write_json
from src.result_files import BEST

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A checkpoint in the index of its folder.

    Attributes:
        file: name within the folder.
        epoch: epochs completed.
        step: batches trained of the epoch that follows.
        images: the same in images of all devices. Steps of a run that was resumed with other
            batches do not compare.
        metrics: validation results, empty where it was not validated.
    """

    file: str
    epoch: int
    step: int
    images: int
    metrics: Mapping[str, float]

    @property
    def top1(self) -> float:
        """Validation top-1 in percent; -1 where it was not validated."""
        return self.metrics.get("top1", -1.0)


class CheckpointFolder:
    """The checkpoints of a run, ``<name>-<epoch>_<step>.ckpt`` and ``best.ckpt``, and their index.

    Args:
        keep: how many to keep; the newest always stays.
        policy: "latest_k" keeps the newest, "top_k" those of the highest validation top-1.
    """

    INDEX = "checkpoints.json"

    def __init__(
        self,
        path: Path,
        name: str = "spnas",
        keep: int = 40,
        policy: Literal["latest_k", "top_k"] = "latest_k",
    ) -> None:
        self.path = path
        self._name = name
        self._keep = keep
        self._policy = policy

    def entries(self) -> list[Entry]:
        """The checkpoints, oldest first; damaged files are left out, with a warning."""
        index = self._read_index()
        found = []
        for file in sorted(self.path.glob("*.ckpt")):
            if file.name == BEST or file.name.startswith("."):
                continue
            if file.name not in index:  # written just before a crash, or copied here
                try:
                    index[file.name] = _entry(file.name, read_checkpoint(file).meta)
                except UserError as error:
                    log.warning("%s", error)
                    continue
            found.append(index[file.name])
        return sorted(found, key=lambda entry: (entry.epoch, entry.images))

    def _read_index(self) -> dict[str, Entry]:
        """Entries by file; none where the index is missing or damaged: the files tell the same."""
        try:
            data = read_json(self.path / self.INDEX)
            entries = parse_record(list[Entry], data, str(self.path / self.INDEX))
        except UserError:
            return {}
        return {entry.file: entry for entry in entries}

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read."""
        for entry in reversed(self.entries()):
            try:
                return read_checkpoint(self.path / entry.file)
            except UserError as error:
                log.warning("%s; trying the one before", error)
        return None

    def best_top1(self) -> float:
        """Validation top-1 of ``best.ckpt``, in percent; -1 without one."""
        best = self._best()
        return -1.0 if best is None else best.top1

    def _best(self) -> Entry | None:
        """The entry of ``best.ckpt``, which may be that of a checkpoint that is deleted by now."""
        known = self._read_index().get(BEST)
        if known is None and (self.path / BEST).is_file():  # the index is lost, or older
            try:
                known = _entry(BEST, read_checkpoint(self.path / BEST).meta)
            except UserError as error:
                log.warning("%s", error)
        # A crash leaves the index behind: the best may be a checkpoint that was written before it.
        entries = [*([known] if known else []), *self.entries()]
        return max(entries, key=lambda entry: entry.top1, default=None)

    def save(self, weights: Weights, meta: Meta) -> Path:
        """Write a checkpoint, update ``best.ckpt`` and delete what the policy does not keep."""
        epoch, step = meta.epoch, meta.batches_per_epoch  # at the end of an epoch
        if meta.step:
            epoch, step = meta.epoch + 1, meta.step
        path = self.path / f"{self._name}-{epoch}_{step}.ckpt"
        # Before the new file is written: one that is not in the index yet would be read.
        best, entries, new = self._best(), self.entries(), _entry(path.name, meta)
        write_checkpoint(path, weights, meta)
        if new.top1 > (-1.0 if best is None else best.top1):
            best = new
        if best and best.file != BEST and best.top1 >= 0:
            with whole(self.path / BEST) as scratch:
                scratch.unlink(missing_ok=True)  # of a killed run with the same process number
                try:
                    os.link(self.path / best.file, scratch)
                except OSError:  # not every file system has links
                    shutil.copyfile(self.path / best.file, scratch)
        entries = [entry for entry in entries if entry.file != path.name] + [new]
        for entry in self._surplus(entries):
            (self.path / entry.file).unlink(missing_ok=True)
            entries.remove(entry)
        index = entries + ([replace(best, file=BEST)] if best and best.top1 >= 0 else [])
        write_json(self.path / self.INDEX, [asdict(entry) for entry in index])
        return path

    def _surplus(self, entries: list[Entry]) -> list[Entry]:
        """Those of ``entries`` that the policy does not keep; the last one, the newest, stays."""
        older = entries[:-1]
        if self._policy == "top_k":
            older = sorted(older, key=lambda entry: entry.top1)
        return older[: max(0, len(entries) - self._keep)]

    def remove_scratch(self) -> None:
        """Delete what a killed run left half-written."""
        remove_scratch(self.path, ".*")


def _entry(file: str, meta: Meta) -> Entry:
    return Entry(file, meta.epoch, meta.step, meta.images, meta.metrics)
