"""A job of two servers: both are network namespaces of this machine, so it takes root.

    sudo .venv/bin/python benchmarks/two_servers.py

takes some minutes on 2 free cores. Each server has an address of its own and starts its part of the
job by scripts/run_train.sh and the same rank table. Three lines say what was seen: the job to its
end; all processes of the second server killed, and the job resumed; the same of the first server,
on which the scheduler runs. The exit code is 1 if something was not as docs/distributed.md says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.contenders import run
from benchmarks.faults import TIMEOUT, Runs, Unexpected, expect
from src.data.sources import prepare_digits
from src.devices.rank_table import build_rank_table, merge_rank_tables
from src.errors import Fault, UserError

# Addresses for examples (RFC 5737), which exist nowhere but in the namespaces.
SERVERS = {"spnas1": "192.0.2.1", "spnas2": "192.0.2.2"}
NODE_TIMEOUT_SECONDS = 20  # MS_NODE_TIMEOUT


def ip(*words: str) -> None:
    """Run the command ``ip``, which comes with every Linux."""
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network() -> Iterator[None]:
    """Two namespaces, with a cable between them."""
    try:
        for server in SERVERS:
            ip("netns", "add", server)
        first, second = SERVERS
        ip("link", "add", first, "netns", first, "type", "veth", "peer", second, "netns", second)
        for server, address in SERVERS.items():
            ip("-n", server, "address", "add", f"{address}/24", "dev", server)
            for device in ("lo", server):
                ip("-n", server, "link", "set", device, "up")
        yield
    finally:
        for server in SERVERS:  # its end of the cable goes with it
            subprocess.run(["ip", "netns", "delete", server], check=False)


class Job:
    """A job of both servers, one process each."""

    def __init__(self, runs: Runs, table: Path, name: str, *more: str) -> None:
        self.runs, self.name = runs, name
        environment = {"MS_NODE_TIMEOUT": str(NODE_TIMEOUT_SECONDS)}
        self.parts = {
            server: runs.launch(name, *more, table=table, server=server, environment=environment)
            for server in SERVERS
        }

    def expect_success(self) -> None:
        """Wait for the end of both parts."""
        for part in self.parts.values():
            output, _ = part.communicate(timeout=TIMEOUT)
            expect(part.returncode == 0, output)

    def kill_server(self, server: str) -> float:
        """Kill -9 of all processes of a server; returns the seconds until the other one's ended."""
        self.runs.wait_for(self.parts["spnas1"], self.name, "digits-2_4.ckpt")
        part = self.parts.pop(server)
        for process in [*psutil.Process(part.pid).children(recursive=True), part]:
            process.kill()
        start = time.monotonic()
        (left,) = self.parts.values()
        output, _ = left.communicate(timeout=TIMEOUT)
        expect(left.returncode == 1 and "--resume continues" in output, output)
        return time.monotonic() - start


def lose(runs: Runs, table: Path, server: str) -> str:
    """Kill a server, then resume on both; the end is that of the job that was not killed."""
    name = f"without_{server}"
    seconds = Job(runs, table, name).kill_server(server)
    Job(runs, table, name, "--resume").expect_success()
    runs.expect_equal(name, "whole")
    return (
        f"{server} killed: the other server's part ended with exit code 1 after {seconds:.1f} s; "
        "the final state of the resumed job is equal bit for bit to that of the first one"
    )


def measure() -> None:
    """Run the jobs and print what was seen."""
    if os.geteuid():
        raise UserError("network namespaces take root: run it by sudo")
    with tempfile.TemporaryDirectory() as name, network():
        folder = Path(name)
        prepare_digits(folder / "digits")
        runs, table = Runs(folder, folder / "digits"), folder / "table.json"
        servers = [build_rank_table(address, [0], {}) for address in SERVERS.values()]
        table.write_text(json.dumps(merge_rank_tables(servers).to_dict()))
        try:
            Job(runs, table, "whole").expect_success()
            one = runs.launch("one", num=2)
            output, _ = one.communicate(timeout=TIMEOUT)
            expect(one.returncode == 0, output)
            runs.expect_equal("whole", "one")
            print("final state equal bit for bit to that of one server's two processes", flush=True)
            for server in reversed(SERVERS):
                print(lose(runs, table, server), flush=True)
        except Unexpected as problem:
            raise Fault(f"not as documented: {problem}") from None


def main() -> int:
    """Run the benchmark; returns its exit code."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    return run(measure)


if __name__ == "__main__":
    sys.exit(main())
