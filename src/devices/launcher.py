"""Start a program once for each device, through MindSpore's ``msrun``, and see it to its end. Imports no framework.

``msrun`` starts the processes of this server and a scheduler by which all processes find each
other, and ends them all when one fails. This module decides what it should start, passes signals
on, and says whose failure ended the job.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from src.config import PRESETS
from src.devices.rank_table import load_rank_table
from src.errors import EXIT_FAULT, UserError

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
SHARED_PORT = 8118  # msrun's own default
# How long a process waits for another one. MindSpore's 30 s are short where several processes
# compile on few cores.
NODE_TIMEOUT_SECONDS = 120
POLL_SECONDS = 0.2
ONE_SHOT = "scripts/run_spnas.py"  # whose flags are those of another program; it takes DEVICE_TARGET from the environment
LOG = "msrun.log"
_FAILURE = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")


@dataclass(frozen=True)
class Launch:
    """What to start on this server.

    Attributes:
        program: script and its flags.
        device_num: processes of the whole job.
        local_num: processes on this server.
        node_rank: number of this server.
        master: address of the server of rank 0.
        port: its port, on which the scheduler listens; 0 for any, where there is one server.
        device_ids: Ascend devices of this server in the order of their ranks, None for the first
            ``local_num``.
        log_dir: where the output of each process goes.
    """

    program: tuple[str, ...]
    device_num: int
    local_num: int
    node_rank: int
    master: str
    port: int
    device_ids: tuple[int, ...] | None
    log_dir: Path

    def command(self) -> list[str]:
        """The msrun command; it tells no process's output, which is followed here instead."""
        return [
            sys.executable,
            "-m",
            "mindspore.parallel.cluster.run",
            f"--worker_num={self.device_num}",
            f"--local_worker_num={self.local_num}",
            f"--node_rank={self.node_rank}",
            f"--master_addr={self.master}",
            f"--master_port={self.port}",
            f"--log_dir={self.log_dir}",
            "--join=True",
            f"--tail_worker_log={self.device_num}",
            "python3",
            *self.program,
        ]

    def environment(self) -> dict[str, str]:
        """Environment of msrun and all that it starts."""
        # msrun starts the first python3 of PATH.
        values = {
            "MS_NODE_TIMEOUT": str(NODE_TIMEOUT_SECONDS),
            "DEVICE_TARGET": "Ascend",
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        if self.device_ids is not None:
            values["ASCEND_RT_VISIBLE_DEVICES"] = ",".join(map(str, self.device_ids))
        return values

    def worker_log(self, rank: int) -> Path:
        return self.log_dir / f"worker_{rank}.log"


def _name() -> str:
    return Path(sys.argv[0]).name


def own_addresses() -> set[str]:
    """Addresses and name of this machine."""
    addresses = {
        entry.address.split("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }
    return addresses | {socket.gethostname()}


def parse(argv: Sequence[str]) -> tuple[Launch, bool]:
    """What the command line asks for, and whether in the foreground."""
    parser = argparse.ArgumentParser(
        prog="run_train.sh",
        usage="bash scripts/run_train.sh [RANK_TABLE_FILE] DATASET [flags]",
        allow_abbrev=False,
        description="Train on several devices, one process each. All other flags go to the program.",
    )
    parser.add_argument(
        "--device_num", type=int, help="number of devices of this machine, in place of a rank table"
    )
    parser.add_argument(
        "--program",
        default="train.py",
        help="script to run, of this repository (default: train.py)",
    )
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="wait for the job, whose exit code is the script's",
    )
    parser.add_argument(
        "--master_port",
        type=int,
        help="port of the first server (default: any free one where "
        f"there is only one, {SHARED_PORT} for several)",
    )
    parser.add_argument(
        "--log_dir", type=Path, help="folder of the logs (default: logs/<date and time>)"
    )
    args, rest = parser.parse_known_args(argv)
    words = []
    while rest and not rest[0].startswith("-"):
        words.append(rest.pop(0))
    table_file = words.pop(0) if words and words[0] not in PRESETS else None
    if len(words) != 1 or words[0] not in PRESETS:
        raise UserError(
            f"data set is '{' '.join(words)}', should be one of {', '.join(PRESETS)}, behind the rank "
            f"table if there is one; usage: {parser.usage}"
        )
    if (table_file is None) == (args.device_num is None):
        raise UserError(
            "give either a rank table or --device_num"
            if table_file
            else "give the devices, by a rank table or --device_num"
        )
    program = ROOT / args.program
    if not program.is_file():
        raise UserError(
            f"program is '{args.program}', should be a script of {ROOT}, such as train.py or search.py"
        )
    target = os.environ.get("DEVICE_TARGET", "Ascend")
    own = (
        ("--dataset", words[0])
        if args.program == ONE_SHOT
        else ("--dataset_name", words[0], "--device_target", target)
    )
    flags = (str(program), *own, *rest)
    log_dir = args.log_dir or Path("logs") / time.strftime("%Y%m%d-%H%M%S")
    if table_file is None:
        if args.device_num < 1:
            raise UserError(f"device_num is {args.device_num}, should be at least 1")
        launch = Launch(
            flags,
            args.device_num,
            args.device_num,
            0,
            "127.0.0.1",
            args.master_port or 0,
            None,
            log_dir,
        )
    else:
        table = load_rank_table(table_file)
        node_rank = table.node_rank(own_addresses(), table_file)
        devices = tuple(device.device_id for device in table.servers[node_rank].devices)
        port = args.master_port or (SHARED_PORT if len(table.servers) > 1 else 0)
        launch = Launch(
            flags,
            table.device_num,
            len(devices),
            node_rank,
            table.master,
            port,
            devices if target == "Ascend" else None,
            log_dir,
        )
    return launch, args.foreground


def _with_free_port(launch: Launch) -> Launch:
    """The launch with a port; the scheduler's is checked here, as MindSpore would wait for it for minutes."""
    if launch.node_rank:
        return launch
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((launch.master, launch.port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"master_port {launch.port}: cannot be used on {launch.master} "
                f"({getattr(error, 'strerror', None) or error}); give another --master_port"
            ) from None
        return Launch(**{**vars(launch), "port": probe.getsockname()[1]})


class Job:
    """A running msrun and the processes that it started on this server."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.signals: list[int] = []  # those that were passed on
        self._ranks: dict[int, int] = {}
        self._scheduler: psutil.Process | None = None
        for old in launch.log_dir.glob("worker_*.log"):
            old.unlink()
        self._log = open(launch.log_dir / LOG, "w", encoding="utf-8")
        # In a session of its own: Ctrl-C reaches this process alone, which lets the others save.
        self._msrun = subprocess.Popen(
            launch.command(),
            env=launch.environment(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def _look(self) -> None:
        """Note which process has which rank."""
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            for child in psutil.Process(self._msrun.pid).children():
                if child.pid not in self._ranks:
                    values = child.environ()
                    if values.get("MS_ROLE") == "MS_WORKER":
                        self._ranks[child.pid] = int(values["RANK_ID"])
                    elif values.get("MS_ROLE") == "MS_SCHED":
                        self._scheduler = child

    def _pass_on(self, number: int, _frame: Any) -> None:
        """Ask all processes to save and stop; the second time end them."""
        self.signals.append(number)
        again = len(self.signals) > 1
        for pid in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if again else signal.SIGTERM)
        if not self._ranks:
            self._msrun.kill()

    def failure(self) -> tuple[int, int] | None:
        """Process and exit code, or minus the signal, of whom msrun saw fail first."""
        text = (self.launch.log_dir / LOG).read_text(encoding="utf-8", errors="replace")
        match = _FAILURE.search(text)
        return (int(match[1]), int(match[2])) if match else None

    def wait(self, output: IO[str]) -> int:
        """Copy the output of the first process of this server until the job ends; returns the job's exit code."""
        shown = self.launch.worker_log(self.launch.node_rank * self.launch.local_num)
        position, ended = 0, False
        while not ended:
            ended = self._msrun.poll() is not None
            self._look()
            if shown.is_file():
                with open(shown, encoding="utf-8", errors="replace") as file:
                    file.seek(position)
                    output.write(file.read())
                    output.flush()
                    position = file.tell()
            if not ended:
                if self._scheduler and self.failure():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        self._scheduler.kill()  # it would wait for those that msrun has ended
                time.sleep(POLL_SECONDS)
        return self._outcome()

    def _outcome(self) -> int:
        failure = self.failure()
        if failure is None:
            if self._msrun.returncode and not self.signals:
                print(
                    f"{_name()}: error: msrun failed; see {self.launch.log_dir / LOG}",
                    file=sys.stderr,
                )
                return EXIT_FAULT
            return 128 + self.signals[0] if self._msrun.returncode else 0
        pid, code = failure
        rank = self._ranks.get(pid)
        # A process that had not begun to train ends by the signal itself.
        asked = (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)[: 1 + len(self.signals)]
        if self.signals and code in asked:
            return 128 + self.signals[0]
        who = f"rank {rank}" if rank is not None else f"process {pid}"
        how = (
            f"was ended by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        where = self.launch.worker_log(rank) if rank is not None else self.launch.log_dir
        print(
            f"{_name()}: error: {who} {how} and the job with it; see {where}; --resume continues from the last "
            "checkpoint",
            file=sys.stderr,
        )
        return code if code > 0 else EXIT_FAULT


def main(argv: Sequence[str] | None = None) -> int:
    """Start the job, in the background unless told otherwise; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    launch, foreground = parse(words)
    launch = _with_free_port(launch)
    try:
        launch.log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{launch.log_dir}: cannot be made ({error.strerror}); give another --log_dir"
        ) from None
    if foreground:
        return Job(launch).wait(sys.stdout)
    output = launch.log_dir / "job.log"
    with open(output, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [
                "nohup",
                sys.executable,
                *sys.argv[:1],
                *words,
                "--foreground",
                "--log_dir",
                str(launch.log_dir),
            ],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    log.info(
        "started %d processes under process %d; output in %s, of each in %s; kill %d saves and stops",
        launch.local_num,
        process.pid,
        output,
        launch.log_dir,
        process.pid,
    )
    return 0
