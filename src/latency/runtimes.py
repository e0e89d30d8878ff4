"""The runtimes that compute models, by name: which there are, what each can do, how it is started.

This is the only description of them. Latency tables, comparisons, the verdict on int8 and
benchmarks take it. A further runtime is an entry in ``LIBRARIES`` and, if it is a Python package, a
function in ``src.latency.worker``. Imports no framework.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from src.errors import UserError
from src.latency.cpp_program import (
    ENVIRONMENT,
    PROGRAM,
    build_program,
    can_start,
    version_in_program,
)
from src.latency.turns import ROOT, python_path

# Inferences of a model before its first round: the first one compiles, the next ones still allocate
# memory. As many as kWarmUp of ascend310_infer/src/model.cc, so that all are measured alike.
WARM_UP = 3
REPEATS = 2  # samples of a model in each of its turns

INT8 = "int8"  # the precision, and the key, of a model that is quantised
PRECISIONS = ("float32", "bfloat16", INT8)
# Starts the worker of this project, even where the current folder has a package src of its own,
# which -m would find first.
_WORKER = f"""
import runpy, sys
sys.path[0] = {str(ROOT)!r}
runpy.run_module("src.latency.worker", run_name="__main__", alter_sys=True)
"""
# Of the file that scripts/compare_runtimes.py writes and the page of runs reads.
COMPARISON_FORMAT, COMPARISON_VERSION = "spnas-runtimes", 1


@dataclass(frozen=True)
class Library:
    """What can compute models.

    Attributes:
        title: with which its version begins in a latency table.
        installed: its name and version here; None where it is not there. Starts nothing.
        file_format: of the models that it reads, as of ``export.py``; None where it computes
            networks in this process.
        precisions: in which it computes a model of float32.
        devices: on which it computes.
        install: the command that brings it.
        in_cpp: it is part of the C++ programs.
        int8: it also computes models that are quantised to int8.
    """

    title: str
    installed: Callable[[], str | None]
    file_format: str | None = "ONNX"
    precisions: tuple[str, ...] = ("float32",)
    devices: tuple[str, ...] = ("CPU",)
    install: str = "bash scripts/setup_env.sh"
    in_cpp: bool = False
    int8: bool = False

    def why_missing(self) -> str:
        """Why it is not ``installed``, where the C++ programs could be built."""
        if self.in_cpp and not can_start():
            return f"{PROGRAM} does not start; {PROGRAM} --version says why"
        return f"not installed ({self.install})"


def _package(title: str, *packages: str) -> Callable[[], str | None]:
    """``Library.installed`` of Python packages; the version is that of the first one."""

    def installed() -> str | None:
        try:
            versions = [metadata.version(package) for package in packages]
        except metadata.PackageNotFoundError:
            return None
        return f"{title} {versions[0]}"

    return installed


MORE_RUNTIMES = "bash scripts/setup_env.sh more_runtimes"

LIBRARIES: Mapping[str, Library] = MappingProxyType(
    {
        "lite": Library(
            "MindSpore Lite",
            lambda: version_in_program("MindSpore Lite"),
            file_format="MINDIR",
            devices=("CPU", "Ascend310"),
            install="bash ascend310_infer/build.sh",
            in_cpp=True,
        ),
        "openvino": Library(
            "OpenVINO",
            lambda: version_in_program("OpenVINO"),
            precisions=("float32", "bfloat16"),
            install="bash scripts/setup_env.sh runtimes",
            in_cpp=True,
            int8=True,
        ),
        "mindspore": Library(
            "MindSpore",
            _package("MindSpore", "mindspore"),
            file_format=None,
            devices=("CPU", "Ascend"),
        ),
        "onnxruntime": Library("ONNX Runtime", _package("ONNX Runtime", "onnxruntime"), int8=True),
        "ncnn": Library(
            "ncnn",
            _package("ncnn", "ncnn", "pnnx"),
            # PyTorch, which the converter asks for, is not needed.
            install=f"{MORE_RUNTIMES} && .venv/bin/pip install --no-deps pnnx",
        ),
        "mnn": Library("MNN", _package("MNN", "MNN"), install=MORE_RUNTIMES),
    }
)


@dataclass(frozen=True)
class Runtime:
    """What computes a model, and how.

    Attributes:
        name: key of ``LIBRARIES``.
        precision: in which models of float32 are computed, "float32" or "bfloat16".
        threads: on CPU.
        device: one of ``Library.devices``.
        device_id: number of the Ascend device.
    """

    name: str
    precision: str = "float32"
    threads: int = 1
    device: str = "CPU"
    device_id: int = 0

    @property
    def library(self) -> Library:
        """What computes."""
        return LIBRARIES[self.name]

    def check(self) -> None:
        """Raise UserError where the library cannot compute so."""
        for key, value, known in (
            ("device", self.device, self.library.devices),
            ("precision", self.precision, self.library.precisions),
        ):
            if value not in known:
                raise UserError(
                    f"{key} is {value}; with --runtime {self.name} it should be "
                    f"{' or '.join(known)}"
                )
        cores = os.cpu_count() or 1
        if self.threads > cores:
            raise UserError(f"threads is {self.threads}; this machine has {cores}")

    def find(self) -> str:
        """Name and version of the library, whose C++ program is built where it has to be.

        Raises:
            UserError: it is not there.
        """
        if self.library.in_cpp:
            try:
                build_program()
            except UserError as error:
                raise UserError(f"{error}; --runtime mindspore measures without C++") from None
        version = self.library.installed()
        if version is None:
            raise UserError(f"runtime {self.name}: {self.library.why_missing()}")
        return version

    @property
    def flags(self) -> list[str]:
        """Of ``profile`` and ``main`` in C++, and of ``src.latency.worker``."""
        flags = ["--runtime", self.name, "--precision", self.precision, "--device", self.device]
        return [*flags, "--device_id", str(self.device_id), "--runtime_threads", str(self.threads)]

    def command(self, files: Sequence[Path], *flags: object) -> list[str]:
        """Starts the program that measures model files, or computes their answers.

        Args:
            files: the models.
            flags: further ones, of ``profile`` in C++.
        """
        program = [str(PROGRAM)]
        if not self.library.in_cpp:
            program = [sys.executable, "-c", _WORKER]
        return [*program, *map(str, files), *self.flags, *map(str, flags)]


def environment() -> dict[str, str]:
    """For the processes that ``Runtime.command`` starts."""
    return {**ENVIRONMENT, "PYTHONPATH": python_path(ENVIRONMENT)}


def runtime_of(version: str) -> str | None:
    """Key of ``LIBRARIES`` for the runtime that made a table; None where it is unknown.

    Args:
        version: name and version of the runtime, as in a latency table.
    """
    known = [name for name, library in LIBRARIES.items() if version.startswith(library.title)]
    # The name of MindSpore Lite begins with that of MindSpore.
    return max(known, key=lambda name: len(LIBRARIES[name].title), default=None)


def installed_version(version: str) -> str | None:
    """Name and installed version of the runtime that made a table.

    None where the runtime is unknown or its version cannot be told.
    """
    name = runtime_of(version)
    return LIBRARIES[name].installed() if name else None
