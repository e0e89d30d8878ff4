"""Compilation of the operators, at first use, into a cache folder where later runs find them.

The folder's name is a hash of everything that the compiled file depends on: compiler, flags,
processor and sources. A file in it is therefore never out of date.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
FLAGS = (
    "-std=c++17",
    "-fopenmp-simd",  # the pragmas for vectors; threads are the operators' own (pool.h)
    "-fno-math-errno",  # errno and floating-point traps, which nobody reads, stop vectorisation
    "-fno-trapping-math",
    # Two builds in one process must not share each other's functions and tables.
    "-fvisibility=hidden",
    "-fPIC",
    "-pthread",
)
# Processors to compile for: this machine's, every one of the architecture, and, for the tests,
# others that a machine like this can stand for.
NATIVE, ANY = "native", ""
OTHER_TARGETS = (ANY, "x86-64-v3") if platform.machine() == "x86_64" else (ANY,)
TIMEOUT_SECONDS = 300
BFLOAT16_FLAG = "avx512_bf16"  # the instructions that operators in bfloat16 are written for

_log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Where all versions of this project keep what they have compiled."""
    if place := os.environ.get("XDG_CACHE_HOME"):
        return Path(place) / "spnas"
    try:
        return Path.home() / ".cache" / "spnas"
    except RuntimeError:  # the user of a container may have no home
        return Path(tempfile.gettempdir()) / f"spnas-{os.getuid()}"


def cache_folder() -> Path:
    """Where compiled operators are kept."""
    return cache_root() / "kernels"


def _processor() -> str:
    """The processor's description, on which the code that -march=native gives depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def compile_library(target: str = NATIVE) -> Path:
    """The shared library of the operators, compiled unless an equal one is in the cache.

    Args:
        target: NATIVE, ANY, or a processor as the compiler's ``-march`` names it.

    Raises:
        OSError: there is no compiler, or the folder or the file cannot be made.
        subprocess.SubprocessError: the compiler failed, or did not end in TIMEOUT_SECONDS.
    """
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler (g++)")
    version = _run(compiler, "--version")
    # For other processors the tests alone compile, which -O1 lets them do in half the time.
    flags = [*FLAGS, "-O3" if target == NATIVE else "-O1"]
    flags += [f"-march={target}"] if target else []
    key = hashlib.sha256()
    processor = _processor() if target == NATIVE else ""
    for part in (compiler, version, " ".join(flags), platform.machine(), processor):
        key.update(part.encode() + b"\0")  # with an end, so that parts cannot run together
    for source in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        key.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    folder = cache_folder() / key.hexdigest()[:24]
    library = folder / "libspnas_kernels.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Processes of a job come here at once: one compiles, the others wait and find the file.
        with open(folder / "lock", "w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: all compile
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                _log.info("compiling the CPU operators, once for this processor and version")
                with tempfile.TemporaryDirectory(dir=folder) as objects:
                    made = Path(objects) / library.name
                    _compile(compiler, flags, Path(objects), made)
                    os.replace(made, library)
    return library


def _compile(compiler: str, flags: Sequence[str], objects: Path, library: Path) -> None:
    """Compile all files, as many at a time as there are processors, and link them."""
    sources = sorted(SOURCES.glob("*.cpp"))
    outputs = [str(objects / f"{source.stem}.o") for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(
            pool.map(
                lambda source, output: _run(compiler, *flags, "-c", "-o", output, str(source)),
                sources,
                outputs,
            )
        )
    _run(compiler, *flags, "-shared", "-o", str(library), *outputs)


def _run(*command: str) -> str:
    """Output of a command that must succeed."""
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    ).stdout


def _reason(error: Exception) -> str:
    """The telling line of an error, which for a compiler is the first that says "error"."""
    text = getattr(error, "stderr", None) or str(error)
    if isinstance(text, bytes):  # of a command that did not end
        text = text.decode(errors="replace")
    lines = text.strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else repr(error))


@functools.cache
def library() -> str | None:
    """Path of the compiled operators, or None, logged once, where they cannot be had."""
    try:
        path = str(compile_library())
        ctypes.CDLL(path)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning(
            "CPU operators are not available (%s): MindSpore's own are used, and a training step "
            "takes several times as long.",
            _reason(error),
        )
        return None
    return path


def multiplies_bfloat16() -> bool:
    """Whether the operators can be had, and the processor multiplies bfloat16."""
    path = library()
    return path is not None and bool(ctypes.CDLL(path).spnas_multiplies_bfloat16())
