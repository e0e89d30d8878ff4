"""Processes that take turns: while one works, the others are stopped.

So all are measured on the same machine at almost the same time, and threads that spin while they
wait for work take no time from the others: those of NumPy's matrix product do so for 0.1 s.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from src.errors import EXIT_USER, Fault, UserError

ROOT = Path(__file__).resolve().parents[2]
READY = "ready"  # what a process says before its first turn
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def python_path(environment: Mapping[str, str]) -> str:
    """PYTHONPATH for an interpreter in which this project may not be installed."""
    return os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))


def take_turns() -> IO[str]:
    """Make this process one that takes turns; returns where it writes its answers."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # A stopped process would outlive a parent that is killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return answers


class TurnProcess:
    """A process that works when it is asked to, seen from the parent; stopped outside its turns.

    It says ``READY``, and then does a piece of work for each line that it reads.

    Args:
        name: in errors.
        command: starts it.
        environment: its whole environment.
        keep_errors: what it writes to standard error is for its error alone, not for the user.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        keep_errors: bool = False,
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+") if keep_errors else None
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            env=environment,
        )

    def read(self, lines: int = 1) -> list[str]:
        """The next lines of the process, which runs until it has written them.

        Raises:
            UserError, Fault: it has ended.
        """
        assert self.process.stdout is not None  # a pipe
        self.process.send_signal(signal.SIGCONT)
        found = [self.process.stdout.readline().strip() for _ in range(lines)]
        if not all(found):
            code = self.process.wait()
            errors = ""
            if self._errors:
                self._errors.seek(0)
                errors = self._errors.read()
            raise error_of(self.name, code, errors)
        self.process.send_signal(signal.SIGSTOP)
        return found

    def take_turn(self, lines: int = 1) -> list[str]:
        """Have a piece of work done; returns the lines that answer."""
        assert self.process.stdin is not None  # a pipe
        with contextlib.suppress(BrokenPipeError):  # reading the answer tells the exit code
            self.process.stdin.write("\n")
        return self.read(lines)

    def kill(self) -> None:
        """End the process whatever it does."""
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self._errors):
            with contextlib.suppress(OSError):  # what was written to a process that has ended
                if file:
                    file.close()


def error_of(name: str, code: int, errors: str) -> Exception:
    """The error that a process named in a line of its own, or how it ended and its last words.

    Args:
        name: of the process.
        code: its exit code.
        errors: its standard error.
    """
    for line in errors.splitlines():
        found = re.match(r"\S+: (?:error|fault): (.*)", line)
        if found:
            return (UserError if code == EXIT_USER else Fault)(found[1])
    last = "".join(f" ({line})" for line in errors.strip().splitlines()[-1:])
    return Fault(f"{name}: ended with exit code {code}{last}")


def run_to_end(name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a process that needs no turns.

    Raises:
        UserError, Fault: as the process named it.
    """
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise error_of(name, done.returncode, done.stderr)
