"""The folder of a run: which checkpoints are kept, which one is the newest and which one the best."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mindspore import nn

from src.checkpoint.format import (
    Checkpoint,
    Meta,
    _remove_scratch,
    log,
    read_checkpoint,
    write_checkpoint,
)
from src.errors import UserError
from src.files import write_text


class CheckpointFolder:
    """The checkpoints of a run, ``<name>-<epoch>_<step>.ckpt`` and ``best.ckpt``, with an index of their progress.

    Args:
        keep: how many to keep; the newest always stays.
        policy: "latest_k" keeps the newest, "top_k" those of the highest validation top-1.
    """

    BEST = "best.ckpt"
    INDEX = "checkpoints.json"

    def __init__(
        self, path: Path, name: str = "spnas", keep: int = 40, policy: str = "latest_k"
    ) -> None:
        self.path, self._name, self._keep, self._policy = path, name, keep, policy

    def entries(self) -> list[dict[str, Any]]:
        """File, epoch, step and metrics of each checkpoint, oldest first; damaged files are left out, with a warning."""
        try:
            index = {
                entry["file"]: entry for entry in json.loads((self.path / self.INDEX).read_text())
            }
        except (OSError, ValueError, KeyError, TypeError):
            index = {}
        found = []
        for file in sorted(self.path.glob("*.ckpt")):
            if file.name == self.BEST or file.name.startswith("."):
                continue
            if file.name not in index:  # written just before a crash, or copied here
                try:
                    index[file.name] = self._entry(file.name, read_checkpoint(file).meta)
                except UserError as error:
                    log.warning("%s", error)
                    continue
            found.append(index[file.name])
        return sorted(found, key=lambda entry: (entry["epoch"], entry["step"]))

    @staticmethod
    def _entry(file: str, meta: Meta) -> dict[str, Any]:
        return {"file": file, "epoch": meta.epoch, "step": meta.step, "metrics": meta.metrics}

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read."""
        for entry in reversed(self.entries()):
            try:
                return read_checkpoint(self.path / entry["file"])
            except UserError as error:
                log.warning("%s; trying the one before", error)
        return None

    def best_top1(self) -> float:
        """Validation top-1 of ``best.ckpt``, in percent; -1 without one."""
        scores = [entry["metrics"].get("top1", -1.0) for entry in self.entries()]
        return max(scores, default=-1.0)

    def save(self, cell: nn.Cell, meta: Meta, batches_per_epoch: int) -> Path:
        """Write a checkpoint, update ``best.ckpt`` and delete what the policy does not keep."""
        epoch, step = (meta.epoch + 1, meta.step) if meta.step else (meta.epoch, batches_per_epoch)
        path = self.path / f"{self._name}-{epoch}_{step}.ckpt"
        best = self.best_top1()
        write_checkpoint(path, cell, meta)
        if meta.metrics.get("top1", -1.0) > best:
            self._link_best(path)
        entries = [entry for entry in self.entries() if entry["file"] != path.name]
        entries.append(self._entry(path.name, meta))
        for entry in self._surplus(entries):
            (self.path / entry["file"]).unlink(missing_ok=True)
            entries.remove(entry)
        write_text(self.path / self.INDEX, json.dumps(entries, indent=1))
        return path

    def _surplus(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        older = entries[:-1]
        if self._policy == "top_k":
            older = sorted(older, key=lambda entry: entry["metrics"].get("top1", -1.0))
        return older[: max(0, len(entries) - self._keep)]

    def _link_best(self, path: Path) -> None:
        scratch = self.path / f".best.{os.getpid()}.ckpt"
        scratch.unlink(missing_ok=True)
        os.link(path, scratch)
        os.replace(scratch, self.path / self.BEST)

    def remove_scratch(self) -> None:
        """Delete what a killed run left half-written."""
        _remove_scratch(self.path, ".*")
