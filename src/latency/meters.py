"""What measures the models of a latency table, each in its runtime."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Protocol

from src.errors import UserError
from src.files import whole
from src.latency.model import Model
from src.latency.runtimes import Runtime, environment
from src.latency.turns import TurnProcess


class Meter(Protocol):
    """Prepares each model once, then measures them interleaved.

    Attributes:
        version: name and version of the runtime, as in a latency table.
    """

    version: str

    def prepare(self, model: Model) -> None:
        """Make a model ready to be measured, once.

        Raises:
            UserError: the runtime cannot compute it.
        """

    def measure(
        self, models: Sequence[Model], repeats: int, seed: int
    ) -> Generator[list[tuple[int, float]], None, None]:
        """Measure prepared models, in each round in another random order, until it is closed.

        A model's turn in a round is one inference that is not counted, which brings its weights
        back into the caches, and then ``repeats`` samples.

        Yields:
            The samples of each round in the order in which they were taken: the model's index in
            ``models``, and milliseconds.
        """
        ...


def open_meter(runtime: Runtime, folder: Path) -> Meter:
    """What measures in a runtime; ``folder`` keeps what is prepared until all is measured.

    Raises:
        UserError: the runtime is not there, or cannot compute so.
    """
    runtime.check()
    version = runtime.find()
    if runtime.library.file_format is None:
        from src.latency.mindspore_meter import MindSporeMeter

        return MindSporeMeter(runtime, version)
    return FileMeter(runtime, version, folder)


class FileMeter:
    """Measures model files in a process of the runtime.

    Models are exported to the folder; those that are there already are taken as they are.
    """

    def __init__(self, runtime: Runtime, version: str, folder: Path) -> None:
        self.version = version
        self._runtime, self._folder = runtime, folder

    def prepare(self, model: Model) -> None:
        """Export a model."""
        file = self._file(model)
        if file.exists():
            return
        from src.deployment.export import write_model

        kind = self._runtime.library.file_format
        assert kind is not None
        with whole(file) as scratch:
            try:
                write_model(model.cell(folded=True), model.shape, scratch, kind, 1)
            except UserError as error:
                raise UserError(f"{model.name}: cannot be measured: {error}") from None

    def measure(
        self, models: Sequence[Model], repeats: int, seed: int
    ) -> Generator[list[tuple[int, float]], None, None]:
        """Yield the samples of one round after the other, as the process prints them."""
        files = [self._file(model) for model in models]
        command = self._runtime.command(files, "--repeats", repeats, "--seed", seed)
        process = TurnProcess(self.version, command, environment(), keep_errors=True)
        try:
            process.read()  # that it is ready
            while True:
                lines = map(json.loads, process.take_turn(repeats * len(models)))
                yield [(line["model"], line["ms"]) for line in lines]
        finally:
            process.kill()

    def _file(self, model: Model) -> Path:
        return self._folder / f"{model.name}.{str(self._runtime.library.file_format).lower()}"
