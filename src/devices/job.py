"""A job of several processes: MindSpore's ``msrun`` starts them, this module sees it to its end.

``msrun`` starts the processes of this server and a scheduler by which all processes find each
other, and ends them all when one fails. Around it this module passes signals on, shows the output
of one process, and says which process ended the job. Imports no framework.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from src.errors import EXIT_FAULT

ROOT = Path(__file__).resolve().parents[2]

# How long a process waits for another one. MindSpore's 30 s are short where several processes
# compile on few cores.
NODE_TIMEOUT_SECONDS = 120
POLL_SECONDS = 0.2
MSRUN_LOG = "msrun.log"

_FAILURE = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")

# Lines of MindSpore's runtime that tell of no problem. It writes a few when a process ends,
# whatever GLOG_v says: its threads live longer than its table of log levels.
_RUNTIME_INFO = re.compile(rb"\[(?:INFO|DEBUG)\] [A-Z_]+\(\d+,")


@dataclass(frozen=True)
class Launch:
    """What to start on this server; ``worker`` is msrun's word for a process of the job.

    Attributes:
        program: script and its flags.
        worker_num: processes of the whole job.
        local_worker_num: processes on this server.
        node_rank: number of this server.
        master_addr: address of the server of rank 0.
        master_port: its port, on which the scheduler listens; 0 for any, where there is one server.
        device_ids: Ascend devices of this server in the order of their ranks, None for the first
            ``local_worker_num``.
        log_dir: folder of the output of each process.
    """

    program: tuple[str, ...]
    worker_num: int
    local_worker_num: int
    node_rank: int
    master_addr: str
    master_port: int
    device_ids: tuple[int, ...] | None
    log_dir: Path

    def command(self) -> list[str]:
        """The msrun command."""
        return [
            sys.executable,
            "-m",
            "mindspore.parallel.cluster.run",
            f"--worker_num={self.worker_num}",
            f"--local_worker_num={self.local_worker_num}",
            f"--node_rank={self.node_rank}",
            f"--master_addr={self.master_addr}",
            f"--master_port={self.master_port}",
            f"--log_dir={self.log_dir}",
            "--join=True",
            # The number of no process: msrun shows the output of none, ``Job`` follows it instead.
            f"--tail_worker_log={self.worker_num}",
            "python3",
            *self.program,
        ]

    def environment(self) -> dict[str, str]:
        """Environment of msrun and of all that it starts."""
        values = {
            "MS_NODE_TIMEOUT": str(NODE_TIMEOUT_SECONDS),
            "DEVICE_TARGET": "Ascend",
            **os.environ,
        }
        # msrun starts the first python3 of PATH: this one. Programs in any folder import this src.
        for name, first in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", ROOT)):
            others = os.environ.get(name)
            values[name] = f"{first}{os.pathsep}{others}" if others else str(first)
        if self.device_ids is not None:
            values["ASCEND_RT_VISIBLE_DEVICES"] = ",".join(map(str, self.device_ids))
        return values

    def worker_log(self, rank: int) -> Path:
        """Output of the process of a rank."""
        return self.log_dir / f"worker_{rank}.log"

    @property
    def first_rank(self) -> int:
        """Lowest rank of this server."""
        return self.node_rank * self.local_worker_num


class LogReader:
    """Copies what is new in a growing log, without the lines of MindSpore's runtime."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def copy(self, output: IO[str], ended: bool = False) -> None:
        """Write the lines that were not written before.

        Args:
            output: where to.
            ended: whether the log has its last line, which may lack its end of line.
        """
        if not self._path.is_file():
            return
        with open(self._path, "rb") as file:
            file.seek(self._position)
            data = file.read()
        if not ended:
            data = data[: data.rfind(b"\n") + 1]
        self._position += len(data)
        for line in data.splitlines(keepends=True):
            if not _RUNTIME_INFO.match(line):
                output.write(line.decode("utf-8", errors="replace"))
        output.flush()


class Job:
    """A running msrun and the processes that it started on this server."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.signals: list[int] = []  # those that were passed on
        self._rank_of: dict[int, int] = {}  # by process id
        self._scheduler: psutil.Process | None = None
        self._started = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        for old in launch.log_dir.glob("worker_*.log"):
            old.unlink()
        with open(self._msrun_log, "w", encoding="utf-8") as log:
            # In a session of its own: Ctrl-C reaches only this process, which lets the others save.
            self._msrun = subprocess.Popen(
                launch.command(),
                env=launch.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started = True
        if self.signals:  # that came before there was anything to end
            self._kill_all()

    @property
    def _msrun_log(self) -> Path:
        return self.launch.log_dir / MSRUN_LOG

    def wait(self, output: IO[str]) -> int:
        """Copy the output of the first process of this server until the job ends.

        Returns:
            The job's exit code: that of the process that ended it, 128 + signal after a signal.
        """
        shown = LogReader(self.launch.worker_log(self.launch.first_rank))
        ended = False
        while not ended:
            ended = self._msrun.poll() is not None
            self._find_processes()
            shown.copy(output, ended)
            if not ended:
                self._end_scheduler_of_failed_job()
                time.sleep(POLL_SECONDS)
        return self._exit_code()

    def _find_processes(self) -> None:
        """Note the rank of each process, and which one is the scheduler."""
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            for child in psutil.Process(self._msrun.pid).children():
                if child.pid not in self._rank_of:
                    values = child.environ()
                    if values.get("MS_ROLE") == "MS_WORKER":
                        self._rank_of[child.pid] = int(values["RANK_ID"])
                    elif values.get("MS_ROLE") == "MS_SCHED":
                        self._scheduler = child

    def _end_scheduler_of_failed_job(self) -> None:
        """It would wait for the processes that msrun has ended, and msrun for it."""
        if self._scheduler and self._failure():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._scheduler.kill()

    def _pass_on(self, number: int, _frame: Any) -> None:
        """Ask all processes to save and stop; the second time end them."""
        self.signals.append(number)
        again = len(self.signals) > 1
        for pid in self._rank_of:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if again else signal.SIGTERM)
        if self._started and not self._rank_of:
            self._kill_all()

    def _kill_all(self) -> None:
        """End msrun and all that it has started, of which nothing is known yet."""
        with contextlib.suppress(psutil.NoSuchProcess):
            msrun = psutil.Process(self._msrun.pid)
            msrun.suspend()  # so that it starts no more of them
            for process in (*msrun.children(recursive=True), msrun):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def _failure(self) -> tuple[int, int] | None:
        """Process id of the first process that failed, and its exit code or minus its signal."""
        text = self._msrun_log.read_text(encoding="utf-8", errors="replace")
        match = _FAILURE.search(text)
        return (int(match[1]), int(match[2])) if match else None

    def _exit_code(self) -> int:
        """Exit code of the job, after a line about the process that ended it, if one did."""
        failure = self._failure()
        if failure is None:
            if self._msrun.returncode and not self.signals:
                _print_error(f"msrun failed; see {self._msrun_log}")
                return EXIT_FAULT
            return 128 + self.signals[0] if self._msrun.returncode else 0
        pid, code = failure
        # What a process ends with that stops when it is asked to: training saves first and exits
        # with 128 + signal, a process that had not begun to train ends by the signal itself. The
        # second request ends it by SIGKILL.
        asked = (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)[: 1 + len(self.signals)]
        if self.signals and code in asked:
            return 128 + self.signals[0]
        self._report(pid, code)
        return code if code > 0 else EXIT_FAULT

    def _report(self, pid: int, code: int) -> None:
        """Print which process ended the job, how, and where its output is."""
        rank = self._rank_of.get(pid)
        who, log = f"process {pid}", self.launch.log_dir
        if rank is not None:
            who, log = f"rank {rank}", self.launch.worker_log(rank)
        how = (
            f"was ended by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        _print_error(
            f"{who} {how} and the job with it; see {log}; --resume continues from the last "
            "checkpoint"
        )


def _print_error(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
