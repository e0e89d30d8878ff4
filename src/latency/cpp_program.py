"""The C++ program ``ascend310_infer/out/profile``, which measures models in its runtimes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from src.errors import UserError
from src.utils import without_allocator

INFERENCE = Path(__file__).resolve().parents[2] / "ascend310_infer"
PROGRAM = INFERENCE / "out/profile"
APPLICATION = INFERENCE / "out/main"
VERSIONS_FILE = INFERENCE / "out/runtime_versions"  # what ``profile --version`` says; by build.sh

# Taken before MindSpore is imported, which sets the log level of the processes that it starts.
ENVIRONMENT = without_allocator(os.environ)


def version_in_program(title: str) -> str | None:
    """Name and version of a runtime that the program was built with; None where it was not.

    Args:
        title: the name of the runtime. Starts nothing.
    """
    try:
        lines = VERSIONS_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line for line in lines if line.startswith(f"{title} ")), None)


def can_start() -> bool:
    """Whether the program that was built last could say its runtimes; a library may be missing."""
    return VERSIONS_FILE.is_file()


@functools.cache
def build_program() -> None:
    """Build the program where it is not there, or its sources or runtimes have changed; once only.

    Raises:
        UserError: it cannot be built.
    """
    build = subprocess.run(
        ["bash", str(INFERENCE / "build.sh")],
        capture_output=True,
        text=True,
        check=False,
        env={**ENVIRONMENT, "PYTHON": sys.executable},
    )
    if build.returncode:
        lines = build.stderr.strip().splitlines() or ["the build failed"]
        raise UserError(lines[-1])
