"""Start and end of a program: memory, logging, errors in one line, device and ranks."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib.util
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from src.devices.ranks import Ranks
from src.errors import EXIT_FAULT, Fault, UserError

log = logging.getLogger(__name__)

Main: TypeAlias = Callable[[Sequence[str] | None], int]  # takes the words of a command line

M_ARENA_MAX = -8  # parameter of mallopt, from glibc's malloc.h
# jemalloc keeps what was freed for 10 s by default, and a training step begins right after the
# compiler has freed 0.1 GB.
MALLOC_CONF = "dirty_decay_ms:1000"
GC_THRESHOLD = 100_000  # new objects between two searches for cycles; Python's default is 700
LAUNCHED = "MS_ROLE"  # set by msrun in the processes of a job
EXIT_INTERRUPTED = 128 + signal.SIGINT

# On CPU these releases run convolutions other than the project's operators in oneDNN's reference
# kernels (docs/mindspore_versions.md): a step takes about six times as long.
SLOW_CPU_VERSIONS = ("2.9.", "2.10.")


def jemalloc() -> Path | None:
    """The allocator in MindSpore's package for Linux, None where there is none."""
    package = importlib.util.find_spec("mindspore")  # found, not imported
    if package is None or not package.origin:
        return None
    library = Path(package.origin).parent / "lib" / "libjemalloc.so.2"
    return library if library.is_file() else None


def allocator_environment() -> dict[str, str]:
    """What an environment needs for a process to start with jemalloc, nothing where there is none.

    Whoever sets MALLOC_CONF keeps their own settings.
    """
    library = jemalloc()
    if library is None:
        return {}
    return {"LD_PRELOAD": str(library), "MALLOC_CONF": os.environ.get("MALLOC_CONF", MALLOC_CONF)}


def without_allocator(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for other programs: the allocator that this one was started with stays here.

    With jemalloc OpenVINO ends at its start on some machines: its hwloc frees by glibc.
    """
    own = allocator_environment().get("LD_PRELOAD")
    return {
        name: value for name, value in environment.items() if name != "LD_PRELOAD" or value != own
    }


def _prepare_memory() -> None:
    """Choose the allocator, which may run the program again, and look for cycles less often.

    Compiling a graph makes millions of small objects, which takes a fifth less time with jemalloc,
    and a process holds less memory. An allocator is chosen when a process starts: whoever sets
    ``LD_PRELOAD``, to nothing too, keeps their own. Processes that this one starts, a C++ program
    whose time is measured for example, do not inherit it.

    Without jemalloc all threads share one heap. glibc gives threads heaps of their own; the threads
    of the data pipeline are new in every epoch and leave such heaps half-filled, so that a process
    grows by some percent in its first epochs.
    """
    allocator = allocator_environment()
    chosen = os.environ.get("LD_PRELOAD")
    if allocator and chosen is None:
        environ = {**os.environ, **allocator}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
    if allocator and chosen == allocator["LD_PRELOAD"]:
        del os.environ["LD_PRELOAD"]
    else:
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    gc.set_threshold(GC_THRESHOLD)


def release_memory() -> None:
    """Give memory that is no longer used back to the system, in reference cycles too.

    jemalloc does so by itself, a second after it was freed; glibc has to be told.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def drop_output() -> None:
    """Write standard output to nothing from now on: its reader, such as ``head``, has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Output(logging.StreamHandler):
    """Messages on standard output. That nobody reads them any more is no mistake."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of logging
        """Write to nothing from now on, or do what logging does with other errors."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            drop_output()
        else:
            super().handleError(record)


def exit_code_of(main: Main) -> int:
    """Run a program's ``main`` with the words of this process's command line.

    Errors become one line; SPNAS_DEBUG=1 shows the traceback of those that nobody expected.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[Output(sys.stdout)])
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    program = Path(sys.argv[0]).name
    try:
        return main(None)
    except (UserError, Fault) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:  # of any kind: a user sees one line whatever went wrong
        if os.environ.get("SPNAS_DEBUG"):
            traceback.print_exc()
        # MindSpore's messages are many lines long; the first one that holds text says what it is.
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        print(
            f"{program}: fault: {type(error).__name__}: {first} (SPNAS_DEBUG=1 shows where)",
            file=sys.stderr,
        )
        return EXIT_FAULT


def run_main(main: Main) -> NoReturn:
    """Run a program's ``main`` in a process of its own, and end the process.

    The process may start anew before (``_prepare_memory``): programs import what takes long within
    their ``main``.
    """
    _prepare_memory()
    _leave(exit_code_of(main))


def _leave(code: int) -> NoReturn:
    """End the process without taking its objects apart, which takes a second with MindSpore.

    A rank of a job ends as Python does: leaving the job is among what it takes apart.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
    if LAUNCHED in os.environ:
        sys.exit(code)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # there is no public form
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def setup_device(device_target: str, device_id: int, jit_level: str | None = None) -> Ranks:
    """Select the device, in GRAPH mode, and join the other processes of the job if there are any.

    Of several processes on a server each gets the device of its place among them, whatever
    ``device_id`` is.

    Args:
        jit_level: at which graphs are compiled; None for MindSpore's own choice.

    Raises:
        UserError: the installed MindSpore has no such device, or the device no such level.
    """
    if jit_level == "O2" and device_target == "CPU":
        raise UserError(
            "jit_level is O2, which Ascend's graph engine compiles; should be O0 or O1 on CPU"
        )
    import mindspore as ms
    from mindspore import communication
    from mindspore.communication import GlobalComm

    launched = LAUNCHED in os.environ
    try:
        ms.set_context(mode=ms.GRAPH_MODE)
        if not GlobalComm.INITED:  # a process that searches several times joins once
            own = {"device_id": device_id} if device_target == "Ascend" and not launched else {}
            ms.set_device(device_target, **own)
    except (ValueError, RuntimeError) as error:
        # Where the targets agree, this process computes on the device already, which is what the
        # error is about.
        if ms.get_context("device_target") != device_target:
            raise UserError(
                f"device_target {device_target}: not available with this installation of MindSpore "
                f"({str(error).strip().splitlines()[0]}); --device_target CPU runs everywhere"
            ) from None
    if device_target == "CPU" and ms.__version__.startswith(SLOW_CPU_VERSIONS):
        log.warning(
            "MindSpore %s is about six times slower on CPU than 2.8.0 where the project's CPU "
            "operators are not used; ONEDNN_MAX_CPU_ISA=AVX2 in the environment avoids the worst",
            ms.__version__,
        )
    if jit_level:
        # Of all graphs. What MindSpore recommends in its place, mindspore.jit, is for one function.
        ms.set_context(jit_config={"jit_level": jit_level})
    if not launched:
        return Ranks()
    # The scheduler, the one process without a device, does not return from this call: it stays in
    # it until the job ends, and exits.
    communication.init()
    ranks = Ranks(communication.get_rank(), communication.get_group_size())
    if ranks.size > 1:
        ms.set_auto_parallel_context(
            parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=ranks.size
        )
    return ranks


def environment(device_target: str) -> dict[str, Any]:
    """Versions, machine and commit, for the record of a run."""
    import mindspore as ms
    import numpy as np

    command = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:  # there is no git
        commit = ""
    return {
        "python": platform.python_version(),
        "mindspore": ms.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device_target": device_target,
        "commit": commit or None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
