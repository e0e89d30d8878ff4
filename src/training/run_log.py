"""The log of a run.

A progress bar on a terminal, lines in ``train.log``, values in ``metrics.jsonl``, and at the end a
picture of them, ``curves.png``.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from src.files import cut_jsonl, read_jsonl, read_yaml
from src.result_files import CONFIG, METRICS, RUN
from src.utils import Output

log = logging.getLogger(__name__)


class _BarHandler(Output):
    """Prints log lines above a running progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except Exception:  # of any kind, as in the handlers of logging
            self.handleError(record)


def run_folder(path: Path) -> Path:
    """Where a run's files are: in the ckpt_0 of what --checkpoint_path named, or in ``path``."""
    own = path / RUN
    return own if own.is_dir() else path


def image_size(path: Path) -> tuple[int, int] | None:
    """Height and width of the images of a run, where its folder says so."""
    file = run_folder(path) / CONFIG
    config = read_yaml(file) if file.is_file() else {}
    height, width = config.get("image_height"), config.get("image_width")
    return (height, width) if height and width else None


class RunLog:
    """Writes the log of a run into its folder.

    Args:
        active: whether this process writes; others only print, into the logs that the launcher
            keeps.
        print_steps: steps between lines on the terminal; 0 for none.
        resume_from: (epoch, step) of the last lines that a resumed run keeps; later ones are
            dropped, as their steps are taken again. None starts a new log.
    """

    def __init__(
        self,
        folder: Path,
        *,
        active: bool,
        print_steps: int = 0,
        resume_from: tuple[int, int] | None = None,
    ) -> None:
        self._active, self._folder, self._print_steps = active, folder, print_steps
        self._bar = tqdm(disable=True)
        root = logging.getLogger()
        shown = _BarHandler()
        shown.addFilter(lambda record: not getattr(record, "file_only", False))
        root.handlers[:] = [shown]
        self._metrics: TextIO | None = None
        self._lines: logging.FileHandler | None = None
        if active:
            cut_jsonl(folder / METRICS, resume_from)
            self._metrics = open(folder / METRICS, "a", encoding="utf-8")
            mode = "w" if resume_from is None else "a"
            self._lines = logging.FileHandler(folder / "train.log", mode=mode)
            self._lines.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            root.addHandler(self._lines)

    def start_epoch(self, title: str, batches: int, done: int) -> None:
        """Show a progress bar of ``batches``, ``done`` of them taken; only on a terminal."""
        self._bar = tqdm(
            total=batches,
            initial=done,
            desc=title,
            unit="batch",
            leave=False,
            disable=not (self._active and sys.stderr.isatty()),
        )

    def advance(self, **shown: Any) -> None:
        """One batch more; ``shown`` stands behind the bar."""
        self._bar.update()
        if shown:
            self._bar.set_postfix(shown)

    def end_epoch(self) -> None:
        """Take the progress bar away."""
        self._bar.close()

    def record(self, kind: str, epoch: int, step: int, **values: Any) -> None:
        """Append a line to metrics.jsonl.

        Args:
            kind: "train" or "val".
            epoch: epochs completed.
            step: batches of the epoch that follows; a value at the end of an epoch is at step 0.
            values: what was measured, by name.
        """
        if self._metrics:
            self._metrics.write(
                json.dumps({"kind": kind, "epoch": epoch, "step": step, **values}) + "\n"
            )
            self._metrics.flush()

    def step(self, epoch: int, batch: int, loss: float, images_per_second: float) -> None:
        """Write a line of one step, in the form that ``scripts/loss.py`` reads.

        Args:
            epoch: from 0.
            batch: of the epoch, from 1.
            loss: of the steps since the last line, on average.
            images_per_second: over the same steps and all ranks.
        """
        log.info(
            "Epoch: %d Iteration: %d rank : 0 train.loss : %.6f train.ips : %.1f imgs/s",
            epoch,
            batch,
            loss,
            images_per_second,
            extra={"file_only": not self._print_steps or batch % self._print_steps != 0},
        )

    def close(self) -> None:
        """Close the files: what is logged from now on belongs to no run."""
        if self._metrics:
            self._metrics.close()
        if self._lines:
            logging.getLogger().removeHandler(self._lines)
            self._lines.close()

    def draw_curves(self) -> None:
        """Write ``curves.png``: loss and accuracy by epoch, from the second point on."""
        if self._active:
            lines = read_jsonl(self._folder / METRICS)
            if len(lines) > 1:
                # Importing Matplotlib takes a second, which the start of a run is spared.
                from src.drawing import draw_curves

                draw_curves(lines, self._folder / "curves.png")
