"""How a program starts and ends."""

from __future__ import annotations

import os
import subprocess
import sys

import mindspore as ms
import pytest

from src.errors import Fault, UserError
from src.training.run import FREE_KEYS
from src.utils import environment, exit_code_of, jemalloc, setup_device
from tests.conftest import ROOT

# Says which allocator it has, what a program that it starts inherits, and what runs at its end.
PROGRAM = """
import atexit, ctypes, subprocess, sys, threading, time
from src.latency.runtimes import environment
from src.utils import run_main

def allocator():
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallctl"):
        return "malloc"
    value, size = ctypes.c_ssize_t(), ctypes.c_size_t(8)
    library.mallctl(b"opt.dirty_decay_ms", ctypes.byref(value), ctypes.byref(size), None, 0)
    return f"jemalloc, {value.value} ms"

def finish():
    time.sleep(0.2)
    print("thread")

def main(argv):
    print(allocator())
    for own in (None, environment()):  # of any program, of one whose time is measured
        child = subprocess.run("echo child:$LD_PRELOAD", shell=True, stdout=-1, text=True, env=own)
        print(child.stdout, end="")
    print(" ".join(sys.argv[1:]))
    atexit.register(print, "atexit")
    threading.Thread(target=finish).start()
    return 3

run_main(main)
"""


MESSAGES = """
import logging
from src.utils import run_main

def main(argv):
    for number in range(100_000):
        logging.info("message %d", number)
    return 3

run_main(main)
"""


def run(tmp_path, **environment: str) -> subprocess.CompletedProcess:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    own = "LD_PRELOAD", "MALLOC_CONF"
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    return subprocess.run(
        [sys.executable, "-u", str(script), "two words", "--flag"],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(jemalloc() is None, reason="MindSpore's package has none here")
def test_a_program_has_jemalloc_and_what_it_starts_has_not(tmp_path):
    finished = run(tmp_path)
    lines = ["jemalloc, 1000 ms", "child:", "child:", "two words --flag", "thread", "atexit"]
    assert finished.stdout.splitlines() == lines and finished.stderr == ""
    assert finished.returncode == 3


def test_whoever_sets_ld_preload_decides(tmp_path):
    finished = run(tmp_path, LD_PRELOAD="")
    lines = ["malloc", "child:", "child:", "two words --flag", "thread", "atexit"]
    assert finished.stdout.splitlines() == lines and finished.returncode == 3


@pytest.mark.skipif(jemalloc() is None, reason="MindSpore's package has none here")
def test_whoever_sets_malloc_conf_decides(tmp_path):
    finished = run(tmp_path, MALLOC_CONF="dirty_decay_ms:50")
    assert finished.stdout.splitlines()[0] == "jemalloc, 50 ms" and finished.returncode == 3


# The log of a training, which prints in a way of its own.
MESSAGES_OF_A_RUN = MESSAGES.replace(
    "    for",
    """    from pathlib import Path
    from src.training.run_log import RunLog
    RunLog(Path("."), active=False)
    for""",
)


@pytest.mark.parametrize("program", [MESSAGES, MESSAGES_OF_A_RUN], ids=("any", "training"))
def test_nobody_has_to_read_the_messages_to_their_end(tmp_path, program):
    script = tmp_path / "program.py"
    script.write_text(program)
    finished = subprocess.run(
        ["bash", "-c", f"{sys.executable} {script} | head -1; exit ${{PIPESTATUS[0]}}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.stdout, finished.stderr, finished.returncode) == ("message 0\n", "", 3)


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("key is 1"), 2, "program.py: error: key is 1"),
        (Fault("the disk is full"), 1, "program.py: error: the disk is full"),
        (KeyboardInterrupt(), 130, "program.py: interrupted"),
        (
            ValueError("\n first\nsecond"),
            1,
            "program.py: fault: ValueError:  first (SPNAS_DEBUG=1 shows where)",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_end_in_one_line(error, code, line, monkeypatch, capsys):
    def main(argv):
        raise error

    monkeypatch.setattr(sys, "argv", ["folder/program.py"])
    assert exit_code_of(main) == code
    assert capsys.readouterr().err == line + "\n"


def test_a_record_needs_no_git(monkeypatch):
    assert environment("CPU")["commit"]
    monkeypatch.setenv("PATH", "")
    assert environment("CPU")["commit"] is None


def test_a_rank_ends_as_python_does(tmp_path):
    finished = run(tmp_path, MS_ROLE="MS_WORKER")
    assert finished.stdout.splitlines()[3:] == ["two words --flag", "thread", "atexit"]
    assert finished.returncode == 3


def test_the_level_of_compilation_is_that_of_all_graphs(monkeypatch):
    """It is part of the key of cached graphs, which leaves out only the keys of FREE_KEYS."""
    given = []
    monkeypatch.setattr(ms, "set_context", lambda **values: given.append(values))
    setup_device("CPU", 0, "O1")
    setup_device("CPU", 0)
    assert [values["jit_config"] for values in given if "jit_config" in values] == [
        {"jit_level": "O1"}
    ]
    assert "jit_level" not in FREE_KEYS
