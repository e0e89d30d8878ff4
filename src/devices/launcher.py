"""The command line of ``scripts/run_train.sh``: a program, once for each device of a job.

The devices come from a rank table or a number, everything else goes to the program. See
``src.devices.job`` for how the processes run. Imports no framework.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from src.cli import Parser
from src.config import PRESETS
from src.devices.job import ROOT, Job, Launch
from src.devices.rank_table import load_rank_table
from src.errors import UserError
from src.files import make_folder

log = logging.getLogger(__name__)

USAGE = "bash scripts/run_train.sh [RANK_TABLE_FILE] DATASET [flags]"
SHARED_PORT = 8118  # msrun's own default
# A program with flags of its own: --dataset, and DEVICE_TARGET from the environment.
ONE_SHOT = "scripts/run_spnas.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Start the job, in the background unless told otherwise; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # All that can be wrong is found here, before anything runs in the background.
    launch, foreground = parse(words)
    launch = _with_free_port(launch)
    make_folder(launch.log_dir)
    if foreground:
        return Job(launch).wait(sys.stdout)
    _start_in_background(launch, words)
    return 0


def parse(argv: Sequence[str]) -> tuple[Launch, bool]:
    """What the command line asks for, and whether in the foreground.

    Raises:
        UserError: a word is missing or wrong, or the rank table is.
    """
    args, rest = _create_parser().parse_known_args(argv)
    table_file, dataset, flags = _split_words(rest)
    if table_file and args.device_num is not None:
        raise UserError("give either a rank table or --device_num")
    if not table_file and args.device_num is None:
        raise UserError("give the devices, by a rank table or --device_num")
    program = ROOT / args.program
    if not program.is_file():
        raise UserError(
            f"program is '{args.program}', should be a script of {ROOT}, such as train.py or "
            "search.py"
        )
    # Ascend unless the user says otherwise, as in the model zoo's scripts.
    target = os.environ.get("DEVICE_TARGET", "Ascend")
    own = ["--dataset_name", dataset, "--device_target", target]
    if program.resolve() == ROOT / ONE_SHOT:
        own = ["--dataset", dataset]
    command = (str(program), *own, *flags)
    log_dir = args.log_dir or Path("logs") / time.strftime("%Y%m%d-%H%M%S")
    if table_file:
        launch = _launch_of_table(table_file, command, args.master_port, target, log_dir)
    else:
        launch = _launch_of_number(args.device_num, command, args.master_port, log_dir)
    return launch, args.foreground


def _create_parser() -> argparse.ArgumentParser:
    parser = Parser(
        "Train on several devices, one process each. All other flags go to the program.",
        prog="run_train.sh",
        usage=USAGE,
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
        help="wait for the job, and exit with its exit code",
    )
    parser.add_argument(
        "--master_port",
        type=int,
        help="port of the first server (default: any free one where there is only one, "
        f"{SHARED_PORT} for several)",
    )
    parser.add_argument(
        "--log_dir", type=Path, help="folder of the logs (default: logs/<date and time>)"
    )
    return parser


def _split_words(words: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """Rank table, if there is one, data set, and flags of the program."""
    # Words end at the first flag: a later one without a dash is the value of a flag of the program.
    rest = list(words)
    named = []
    while rest and not rest[0].startswith("-"):
        named.append(rest.pop(0))
    table_file = named.pop(0) if named and named[0] not in PRESETS else None
    if len(named) != 1 or named[0] not in PRESETS:
        raise UserError(
            f"data set is '{' '.join(named)}', should be one of {', '.join(PRESETS)}, after the "
            f"rank table if there is one; usage: {USAGE}"
        )
    return table_file, named[0], rest


def _launch_of_number(
    device_num: int, command: tuple[str, ...], port: int | None, log_dir: Path
) -> Launch:
    """A job of the first devices of this machine."""
    if device_num < 1:
        raise UserError(f"device_num is {device_num}, should be at least 1")
    return Launch(
        program=command,
        worker_num=device_num,
        local_worker_num=device_num,
        node_rank=0,
        master_addr="127.0.0.1",  # no other machine takes part
        master_port=port or 0,
        device_ids=None,
        log_dir=log_dir,
    )


def _launch_of_table(
    table_file: str, command: tuple[str, ...], port: int | None, target: str, log_dir: Path
) -> Launch:
    """This machine's part of the job that a rank table describes."""
    table = load_rank_table(table_file)
    node_rank = table.node_rank(own_addresses(), table_file)
    devices = tuple(device.device_id for device in table.servers[node_rank].devices)
    # All servers have to know the port; on a single one any free port will do.
    default_port = SHARED_PORT if len(table.servers) > 1 else 0
    return Launch(
        program=command,
        worker_num=table.device_num,
        local_worker_num=len(devices),
        node_rank=node_rank,
        master_addr=table.master,
        master_port=port or default_port,
        # On CPU the table says how many processes to start, and devices have no meaning.
        device_ids=devices if target == "Ascend" else None,
        log_dir=log_dir,
    )


def own_addresses() -> set[str]:
    """Addresses and name of this machine."""
    addresses = {
        entry.address.split("%")[0]  # fe80::1%eth0: without the interface
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }
    return addresses | {socket.gethostname()}


def _with_free_port(launch: Launch) -> Launch:
    """The launch with a port of which the server of rank 0 knows that it is free.

    MindSpore itself would wait for minutes for a port that is in use.
    """
    if launch.node_rank:
        return launch  # the scheduler runs on another server
    with socket.socket() as probe:
        try:
            # As the scheduler does: connections of a job that has just ended do not block it.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((launch.master_addr, launch.master_port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"master_port {launch.master_port}: cannot be used on {launch.master_addr} "
                f"({getattr(error, 'strerror', None) or error}); give another --master_port"
            ) from None
        return replace(launch, master_port=probe.getsockname()[1])


def _start_in_background(launch: Launch, words: Sequence[str]) -> None:
    """Run the same command with ``--foreground`` in a process that outlives the terminal."""
    output = launch.log_dir / "job.log"
    foreground = ["--foreground", "--log_dir", str(launch.log_dir)]
    with open(output, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            # nohup: the end of the terminal must not end the job.
            ["nohup", sys.executable, sys.argv[0], *words, *foreground],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    log.info(
        "started %d processes under process %d; output in %s, of each in %s; "
        "kill %d saves and stops",
        launch.local_worker_num,
        process.pid,
        output,
        launch.log_dir,
        process.pid,
    )
