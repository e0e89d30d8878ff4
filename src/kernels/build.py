"""Compiles the operators at first use, into a cache folder, and finds them there afterwards."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
# Hidden: two builds in one process must not share each other's functions and tables.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-shared",
    "-fPIC",
    "-pthread",
)
NATIVE = ("-march=native",)
TIMEOUT_SECONDS = 300

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where compiled operators are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spnas" / "kernels"


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def compile_library(*, native: bool = True, folder: Path | None = None) -> Path:
    """The shared library of the operators, compiled unless an equal one is in the cache.

    Args:
        native: for this machine's processor; otherwise for every one of its architecture.
        folder: in place of the cache folder.

    Raises:
        OSError: no compiler, or the folder cannot be written.
        subprocess.SubprocessError: the compiler failed or did not end.
    """
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler (g++)")
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    ).stdout
    flags = FLAGS + (NATIVE if native else ())
    key = hashlib.sha256()
    for part in (compiler, version, " ".join(flags), platform.machine(), _cpu() if native else ""):
        key.update(part.encode() + b"\0")
    for source in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        key.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    folder = (cache_folder() if folder is None else folder) / key.hexdigest()[:24]
    library = folder / "libspnas_kernels.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Several processes may compile at once; each puts a complete file in place.
        partial = folder / f"partial.{os.getpid()}.so"
        try:
            subprocess.run(
                [compiler, *flags, "-o", str(partial), str(SOURCES / "operators.cpp")],
                check=True,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
            )
            os.replace(partial, library)
        finally:
            partial.unlink(missing_ok=True)
    return library


@functools.cache
def library() -> str | None:
    """Path of the compiled operators, or None, logged once, where they cannot be had."""
    try:
        path = str(compile_library())
        ctypes.CDLL(path)
        return path
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        reason = next(
            (line for line in lines if "error" in line), lines[0] if lines else repr(error)
        )
        _log.warning(
            "CPU operators are not available (%s): MindSpore's own are used, and a training step takes "
            "two to four times as long.",
            reason,
        )
        return None
