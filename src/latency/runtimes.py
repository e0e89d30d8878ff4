"""The runtimes that latencies are measured in, behind one interface: prepare models, then measure them interleaved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.arch.architecture import Architecture
from src.arch.blocks import AnyBlock
from src.config import ProfileConfig
from src.errors import EXIT_USER, Fault, UserError
from src.utils import setup_device

INFERENCE = Path(__file__).resolve().parents[2] / "ascend310_infer"
PROGRAM = INFERENCE / "out/profile"
LITE = "MindSpore Lite"
TRAINING = "MindSpore"
WARM_UP = 3  # inferences of a model before its first round
ENVIRONMENT = dict(
    os.environ
)  # before MindSpore, when imported, sets the log level of the processes it starts

Sample = tuple[int, float]  # number of the model, milliseconds


@dataclass(frozen=True)
class Model:
    """A block or a whole network that is measured, for inputs of ``shape`` (N, C, H, W)."""

    name: str
    network: AnyBlock | Architecture
    shape: tuple[int, int, int, int]
    num_classes: int = 0

    def cell(self, **options: bool):
        """Its network in evaluation mode; ``options`` are kernels and folded of ``SPNASNet``."""
        from src.layers.mbconv import create_block
        from src.spnasnet import SPNASNet

        cell = (
            SPNASNet(self.network, self.num_classes, **options)
            if isinstance(self.network, Architecture)
            else create_block(self.network, **options)
        )
        return cell.set_train(False)


class Runtime(ABC):
    """What measures models.

    Attributes:
        version: name and version, as in a latency table.
    """

    version: str

    @abstractmethod
    def prepare(self, model: Model) -> None:
        """Make a model ready to be measured, once; raises UserError where it cannot be."""

    @abstractmethod
    def measure(self, models: Sequence[Model], repeats: int, seed: int) -> Iterator[list[Sample]]:
        """Measure prepared models for as many rounds as are asked for, in another random order each.

        A model's turn is an inference that does not count, which brings its weights back into the
        caches, and ``repeats`` samples.

        Yields:
            The samples of each round, in the order in which they were taken.
        """


class LiteRuntime(Runtime):
    """The deployment's runtime: MindSpore Lite, through the C++ program ``profile``.

    Args:
        folder: where models are exported to; those that are there already are taken as they are.
    """

    def __init__(self, config: ProfileConfig, folder: Path) -> None:
        _build()
        self.version = _program_version()
        self.folder = folder
        self.flags = [
            "--device",
            config.device,
            "--device_id",
            str(config.device_id),
            "--runtime_threads",
            str(config.threads),
        ]

    def _file(self, model: Model) -> Path:
        return self.folder / f"{model.name}.mindir"

    def prepare(self, model: Model) -> None:
        file = self._file(model)
        if file.exists():
            return
        from src.deployment.export import write_model

        scratch = file.with_name(f".{file.name}")
        scratch.unlink(
            missing_ok=True
        )  # of an interrupted run; MindSpore makes files that it cannot write again
        try:
            write_model(model.cell(folded=True), model.shape, scratch, "MINDIR", 1)
        except UserError as error:
            raise UserError(f"{model.name}: cannot be measured: {error}") from None
        scratch.replace(file)

    def measure(self, models: Sequence[Model], repeats: int, seed: int) -> Iterator[list[Sample]]:
        command = [
            str(PROGRAM),
            *(str(self._file(model)) for model in models),
            *self.flags,
            "--repeats",
            str(repeats),
            "--seed",
            str(seed),
        ]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=ENVIRONMENT
            ) as process,
        ):
            try:
                samples: list[Sample] = []
                for line in process.stdout:
                    record = json.loads(line)
                    samples.append((record["model"], record["ms"]))
                    if len(samples) == repeats * len(models):
                        yield samples
                        samples = []
            except BaseException:  # an interrupt, or nobody wants more rounds
                process.kill()
                raise
            code = process.wait()
            errors.seek(0)
            raise _failure(code, errors.read())  # it ends only where something is wrong


def _build() -> None:
    """Build the program where it is not there or its sources have changed."""
    build = subprocess.run(
        ["bash", str(INFERENCE / "build.sh")],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHON": sys.executable, **ENVIRONMENT},
    )
    if build.returncode:
        lines = build.stderr.strip().splitlines() or ["the build failed"]
        raise UserError(f"{lines[-1]}; --runtime mindspore measures without C++")


def _program_version() -> str:
    return subprocess.run(
        [str(PROGRAM), "--version"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    ).stdout.strip()


def _failure(code: int, errors: str) -> Exception:
    """The error that the program named in its own line, or how it ended."""
    for line in errors.splitlines():
        for start in ("profile: error: ", "profile: fault: "):
            if line.startswith(start):
                return (UserError if code == EXIT_USER else Fault)(line[len(start) :])
    return Fault(f"{PROGRAM.name} ended with code {code} while it measured")


class TrainingRuntime(Runtime):
    """MindSpore itself, with the networks that ``eval.py`` evaluates."""

    def __init__(self, config: ProfileConfig) -> None:
        import mindspore as ms

        from src import kernels

        setup_device(config.device, config.device_id)
        ms.set_context(runtime_num_threads=config.threads)
        self.version = f"{TRAINING} {ms.__version__}"
        self.kernels = kernels.available()
        self.cells: dict[str, Any] = {}
        self.random = np.random.default_rng(0)

    def prepare(self, model: Model) -> None:
        from mindspore import Tensor

        if model.name in self.cells:
            return
        cell = model.cell(kernels=self.kernels, folded=self.kernels)  # as eval.py chooses
        image = Tensor(self.random.standard_normal(model.shape).astype(np.float32))
        try:
            for _ in range(WARM_UP):  # the first one compiles
                cell(image).asnumpy()
        except RuntimeError as error:
            raise UserError(
                f"{model.name}: cannot be measured: {str(error).strip().splitlines()[0]}"
            ) from None
        self.cells[model.name] = (cell, image)

    def measure(self, models: Sequence[Model], repeats: int, seed: int) -> Iterator[list[Sample]]:
        random = np.random.default_rng(seed)
        while True:
            samples = []
            for index in random.permutation(len(models)):
                cell, image = self.cells[models[index].name]
                cell(image).asnumpy()
                for _ in range(repeats):
                    start = time.perf_counter()
                    cell(image).asnumpy()
                    samples.append((int(index), (time.perf_counter() - start) * 1e3))
            yield samples


def open_runtime(config: ProfileConfig, folder: Path) -> Runtime:
    """The runtime that the configuration asks for; raises UserError where the device is not there."""
    wanted = {"lite": ("CPU", "Ascend310"), "mindspore": ("CPU", "Ascend")}[config.runtime]
    if config.device not in wanted:
        raise UserError(
            f"device is {config.device}; with --runtime {config.runtime} it should be "
            f"{' or '.join(wanted)}"
        )
    return LiteRuntime(config, folder) if config.runtime == "lite" else TrainingRuntime(config)


def installed_version(runtime: str) -> str | None:
    """What is installed here of the runtime that a table names, None where that cannot be told."""
    if runtime.startswith(LITE):
        return _program_version() if PROGRAM.exists() else None
    if runtime.startswith(TRAINING):
        import mindspore as ms

        return f"{TRAINING} {ms.__version__}"
    return None
