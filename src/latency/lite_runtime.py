"""MindSpore Lite as a runtime, through the C++ program ``ascend310_infer/out/profile``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import ClassVar

from src.config import ProfileConfig
from src.errors import EXIT_USER, Fault, UserError
from src.files import whole
from src.latency.model import Model

INFERENCE = Path(__file__).resolve().parents[2] / "ascend310_infer"
PROGRAM = INFERENCE / "out/profile"
VERSION_FILE = INFERENCE / "out/runtime_version"  # what ``profile --version`` says; by build.sh

# Taken before MindSpore is imported, which sets the log level of the processes that it starts.
ENVIRONMENT = dict(os.environ)


class LiteRuntime:
    """The runtime of the deployment; members as in ``src.latency.runtimes.Runtime``.

    Models are exported to the folder; those that are there already are taken as they are.
    """

    name: ClassVar[str] = "MindSpore Lite"
    devices: ClassVar[tuple[str, ...]] = ("CPU", "Ascend310")

    def __init__(self, config: ProfileConfig, folder: Path) -> None:
        _build()
        self.version = _version_of_program()
        self._folder = folder
        self._flags = ["--device", config.device, "--device_id", str(config.device_id)]
        self._flags += ["--runtime_threads", str(config.threads)]

    @staticmethod
    def installed() -> str | None:
        """The version that the program was built with; None where it was not built."""
        try:
            return VERSION_FILE.read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def prepare(self, model: Model) -> None:
        """Export a model."""
        file = self._file(model)
        if file.exists():
            return
        from src.deployment.export import write_model

        with whole(file) as scratch:
            try:
                write_model(model.cell(folded=True), model.shape, scratch, "MINDIR", 1)
            except UserError as error:
                raise UserError(f"{model.name}: cannot be measured: {error}") from None

    def measure(
        self, models: Sequence[Model], repeats: int, seed: int
    ) -> Generator[list[tuple[int, float]], None, None]:
        """Yield the samples of one round after the other, as the program prints them."""
        command = [str(PROGRAM), *(str(self._file(model)) for model in models), *self._flags]
        command += ["--repeats", str(repeats), "--seed", str(seed)]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=ENVIRONMENT
            ) as process,
        ):
            assert process.stdout is not None  # a pipe, as asked for above
            try:
                samples: list[tuple[int, float]] = []
                for line in process.stdout:
                    record = json.loads(line)
                    samples.append((record["model"], record["ms"]))
                    if len(samples) == repeats * len(models):
                        yield samples
                        samples = []
            except BaseException:  # an interrupt, or nobody wants more rounds
                process.kill()
                raise
            # Without --rounds the program goes on until it is killed, so that it has failed here.
            code = process.wait()
            errors.seek(0)
            raise _failure(code, errors.read())

    def _file(self, model: Model) -> Path:
        return self._folder / f"{model.name}.mindir"


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


def _version_of_program() -> str:
    command = [str(PROGRAM), "--version"]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=ENVIRONMENT
    ).stdout.strip()


def _failure(code: int, errors: str) -> Exception:
    """The error that the program named in its own line, or how it ended."""
    for line in errors.splitlines():
        for start in ("profile: error: ", "profile: fault: "):
            if line.startswith(start):
                return (UserError if code == EXIT_USER else Fault)(line[len(start) :])
    return Fault(f"{PROGRAM.name} ended with code {code} while it measured")
