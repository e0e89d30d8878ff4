"""What happens when something fails: real faults, on the embedded digits and a tiny network.

    python benchmarks/faults.py                       # all, about half an hour on 2 cores
    python benchmarks/faults.py kills --kills 50      # one of them
    python benchmarks/faults.py --list

Prints one line per fault: what was seen, the exit code, and after how long. The exit code is 1 if
one of them was not as docs/distributed.md says.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil

from benchmarks.contenders import ROOT

ARCH = {
    "format": "spnas-architecture",
    "version": 1,
    "name": "tiny",
    "image_size": 16,
    "stem_channels": 8,
    "stem_stride": 2,
    "blocks": ["r1_k3_s11_e1_i8_o8_noskip", "r1_k3_s22_e3_i8_o16", "r1_k5_s11_e3_i16_o16"],
    "head_channels": 32,
    "bn_epsilon": 1e-5,
    "provenance": {},
}
EPOCHS = 10
TIMEOUT = 300  # seconds after which a run counts as hanging


class Unexpected(Exception):
    """A fault did not end as documented."""


def expect(condition: Any, text: str) -> None:
    """Raise ``Unexpected`` with the text unless the condition holds."""
    if not condition:
        raise Unexpected(text)


class Runs:
    """Training runs in a folder of their own."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        (folder / "tiny.json").write_text(json.dumps(ARCH))

    def flags(self, name: str, *more: object, **changed: object) -> list[str]:
        """Flags of ``train.py`` for the run of that name."""
        keys = {
            "dataset_name": "digits",
            "data_path": self.data,
            "arch": self.folder / "tiny.json",
            "image_height": 16,
            "image_width": 16,
            "resize": 16,
            "batch_size": 30,
            "epoch_size": EPOCHS,
            "save_checkpoint_steps": 4,
            "log_steps": 4,
            "drop_rate": 0.2,
            "ema_decay": 0.9,
            "keep_checkpoint_max": 3,
            "checkpoint_path": self.folder / name,
            **changed,
        }
        return [text for key, value in keys.items() for text in (f"--{key}", str(value))] + list(
            map(str, more)
        )

    def start(
        self,
        name: str,
        *more: object,
        limit: int | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
        **changed: object,
    ) -> subprocess.Popen[str]:
        """A single process, which may write no file beyond ``limit`` bytes."""
        command = [sys.executable, str(ROOT / "train.py"), *self.flags(name, *more, **changed)]
        before = (
            None
            if limit is None
            else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        )
        return subprocess.Popen(
            command,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=before,
            env={**os.environ, **environment},
        )

    def run(self, name: str, *more: object, **changed: Any) -> tuple[int, str]:
        """Exit code and output of a single process."""
        process = self.start(name, *more, **changed)
        output, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, output

    def launch(
        self,
        name: str,
        *more: object,
        num: int = 2,
        table: Path | None = None,
        server: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
        **changed: object,
    ) -> subprocess.Popen[str]:
        """Several processes: ``num`` of this machine, or those of a server of a rank table.

        Args:
            server: the network namespace that is the server; empty for this machine.
        """
        flags = self.flags(name, *more, **changed)
        command = [
            *(["ip", "netns", "exec", server] if server else []),
            "bash",
            str(ROOT / "scripts/run_train.sh"),
            *([str(table)] if table else ["--device_num", str(num)]),
            *flags[1:],
            "--foreground",
            "--log_dir",
            str(self.folder / f"logs_{name}{server}"),
        ]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "DEVICE_TARGET": "CPU",
                **environment,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
        )

    def checkpoints(self, name: str) -> list[Path]:
        """Checkpoints of a run, oldest first."""
        return sorted(
            (self.folder / name / "ckpt_0").glob("digits-*.ckpt"),
            key=lambda file: file.stat().st_mtime,
        )

    def wait_for(self, process: subprocess.Popen[str], name: str, file: str) -> None:
        """Wait until a run has written a checkpoint."""
        path = self.folder / name / "ckpt_0" / file
        while not path.exists() and process.poll() is None:
            time.sleep(0.02)
        if not path.exists():
            raise Unexpected(f"{file} was not written: {remaining_output(process)}")

    def weights(self, name: str) -> dict[str, np.ndarray]:
        """State at the end of a run."""
        from src.checkpoint.folder import CheckpointFolder

        newest = CheckpointFolder(self.folder / name / "ckpt_0").newest()
        if newest is None or newest.meta.epoch != EPOCHS:
            raise Unexpected(f"{name} did not end")
        return dict(newest.weights)

    def expect_equal(self, name: str, reference: str) -> None:
        """Expect that the states at the end of two runs are equal bit for bit."""
        ours, theirs = self.weights(name), self.weights(reference)
        expect(ours.keys() == theirs.keys(), "other parameters than the uninterrupted run")
        for key, value in ours.items():
            expect(np.array_equal(value, theirs[key]), f"{key} differs from the uninterrupted run")


def remaining_output(process: subprocess.Popen[str]) -> str:
    """What a process that has ended printed, as far as nobody has read it."""
    assert process.stdout is not None  # a pipe
    return process.stdout.read()


def worker(job: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of a rank."""
    return next(
        child
        for child in psutil.Process(job.pid).children(recursive=True)
        if child.environ().get("MS_ROLE") == "MS_WORKER" and child.environ()["RANK_ID"] == str(rank)
    )


def kills(runs: Runs, args: argparse.Namespace) -> str:
    """Kill -9 of a single process at random moments, resumed each time until the run ends."""
    start = time.monotonic()
    code, output = runs.run("reference")
    expect(code == 0, output)
    length = time.monotonic() - start
    generator = random.Random(args.seed)
    done, resumed, interrupted_saves, chains = 0, 0, 0, 0
    while done < args.kills:
        name = f"chain{chains}"
        chains += 1
        more: tuple[str, ...] = ()
        while True:
            process = runs.start(name, *more)
            more = ("--resume",)
            if done == args.kills:
                output, _ = process.communicate(timeout=TIMEOUT)
                expect(process.returncode == 0, output)
                break
            folder = runs.folder / name / "ckpt_0"
            if done % 2:  # every second kill falls into a save
                wait_for_save(process, folder, generator.randrange(1, 6))
            else:
                wait_for_end(process, generator.uniform(0, length))
            if process.poll() is not None:  # it was at its end before
                expect(process.returncode == 0, remaining_output(process))
                break
            process.kill()
            process.communicate()
            interrupted_saves += any(folder.glob(f".*.{process.pid}.*"))
            done += 1
            resumed += bool(runs.checkpoints(name))
        runs.expect_equal(name, "reference")
        shutil.rmtree(runs.folder / name)
    return (
        f"{done} kills in {chains} runs, {interrupted_saves} with a half-written file, {resumed} "
        "with a checkpoint to resume from; the final state of every run is bit-equal to the "
        "uninterrupted one's"
    )


def wait_for_save(process: subprocess.Popen[str], folder: Path, number: int) -> None:
    """Wait until a process has a half-written file: that of its save of that number."""
    deadline, seen = time.monotonic() + TIMEOUT, False
    while number and process.poll() is None and time.monotonic() < deadline:
        here = any(folder.glob(f".*.{process.pid}.*"))
        number -= here and not seen
        seen = here
        time.sleep(0)  # a save lasts a few milliseconds


def wait_for_end(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait until a process has ended, but no longer than that."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def worker_killed(runs: Runs, args: argparse.Namespace) -> str:
    """Kill -9 of rank 1 of 2; resumed by as many, by one and by three processes."""
    job = runs.launch("job", epoch_size=1000)
    runs.wait_for(job, "job", "digits-2_4.ckpt")
    start = time.monotonic()
    worker(job, 1).kill()
    output, _ = job.communicate(timeout=TIMEOUT)
    seconds = time.monotonic() - start
    expect(job.returncode == 1 and "rank 1 was ended by SIGKILL" in output, output)
    seen = []
    for num in (2, 1, 3):
        done = runs.launch("job", "--resume", num=num, epoch_size=EPOCHS, keep_checkpoint_max=100)
        again, _ = done.communicate(timeout=TIMEOUT)
        expect(done.returncode == 0, again)
        resumption = next(
            (line for line in again.splitlines() if line.startswith("resumed from")), None
        )
        if resumption is None:
            raise Unexpected(again)
        seen.append(resumption.split(", ", 1)[1])
        for file in (runs.folder / "job/ckpt_0").glob(f"digits-{EPOCHS}_*.ckpt"):
            file.unlink()  # so that the next one has something to do
    places = "; ".join(seen)
    return (
        f"exit code 1 after {seconds:.1f} s, rank 1 named; resumed by 2, 1 and 3 processes at "
        f"{places}"
    )


def worker_hangs(runs: Runs, args: argparse.Namespace) -> str:
    """Rank 1 of 2 stops to answer, under a timeout of 20 s."""
    job = runs.launch("hang", epoch_size=1000, environment={"MS_NODE_TIMEOUT": "20"})
    runs.wait_for(job, "hang", "digits-2_4.ckpt")
    start = time.monotonic()
    hanging = worker(job, 1)
    hanging.suspend()
    output, _ = job.communicate(timeout=TIMEOUT)
    seconds = time.monotonic() - start
    expect(job.returncode == 1 and "rank 0 ended" in output and not hanging.is_running(), output)
    return f"rank 0 gives up, exit code 1 after {seconds:.1f} s; nothing is left running"


def stopped(runs: Runs, args: argparse.Namespace) -> str:
    """SIGTERM to a job of two processes, resumed by two: equal to the job that was not stopped."""
    job = runs.launch("whole")
    output, _ = job.communicate(timeout=TIMEOUT)
    expect(job.returncode == 0, output)
    job = runs.launch("stopped")
    runs.wait_for(job, "stopped", "digits-3_4.ckpt")
    start = time.monotonic()
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=TIMEOUT)
    seconds = time.monotonic() - start
    expect(job.returncode == 143 and "stopped by SIGTERM" in output, output)
    job = runs.launch("stopped", "--resume")
    output, _ = job.communicate(timeout=TIMEOUT)
    expect(job.returncode == 0, output)
    runs.expect_equal("stopped", "whole")
    return f"exit code 143 after {seconds:.1f} s; the resumed job's final state is bit-equal"


def slow_rank_0(runs: Runs, args: argparse.Namespace) -> str:
    """Only rank 0 works, for longer than the others would wait in an operation."""
    program = runs.folder / "slow.py"
    program.write_text(
        "import time\n"
        "from src.utils import setup_device\nranks = setup_device('CPU', 0)\n"
        "ranks.run_on_rank_0(lambda: time.sleep(45))\nprint('met', ranks.gather(ranks.rank))\n"
    )
    process = runs.launch("slow", "--program", program, environment={"MS_NODE_TIMEOUT": "30"})
    output, _ = process.communicate(timeout=TIMEOUT)
    expect(process.returncode == 0 and "met [0, 1]" in output, output)
    return "45 s of work on rank 0 only, under a timeout of 30 s: the others wait, exit code 0"


def disk_full(runs: Runs, args: argparse.Namespace) -> str:
    """The system refuses to write the second half of a checkpoint, as on a full disk."""
    code, output = runs.run("full", epoch_size=2)
    expect(code == 0, output)
    whole = {file.name: file.read_bytes() for file in runs.checkpoints("full")}
    size = len(next(iter(whole.values())))
    process = runs.start("full", "--resume", limit=size // 2)
    output, _ = process.communicate(timeout=TIMEOUT)
    expect(process.returncode == 1 and "cannot be saved" in output, output)
    expect(
        {file.name: file.read_bytes() for file in runs.checkpoints("full")} == whole,
        "a checkpoint changed",
    )
    expect(not list((runs.folder / "full/ckpt_0").glob(".*")), "something half-written was left")
    code, output = runs.run("full", "--resume")
    expect(code == 0, output)
    return (
        "exit code 1, 'cannot be saved'; checkpoints before it unchanged; resumed with room again"
    )


def damaged_checkpoint(runs: Runs, args: argparse.Namespace) -> str:
    """The newest checkpoint is cut off, the one before has a flipped bit; the third is taken."""
    process = runs.start("damaged")
    runs.wait_for(process, "damaged", "digits-3_4.ckpt")
    process.kill()
    process.communicate()
    newest, before, third = list(reversed(runs.checkpoints("damaged")))[:3]
    data = newest.read_bytes()
    newest.write_bytes(data[: len(data) // 2])
    flipped = bytearray(before.read_bytes())
    flipped[len(flipped) // 3] ^= 4
    before.write_bytes(flipped)
    code, output = runs.run("damaged", "--resume")
    expect(code == 0 and f"resumed from {third}" in output, output)
    for file in (newest, before):
        expect(f"{file}: damaged or no MindSpore checkpoint" in output, output)
    runs.run("healthy")
    runs.expect_equal("damaged", "healthy")
    return "two warnings name the files, the run resumes from the third; final state bit-equal"


def vanished_data(runs: Runs, args: argparse.Namespace) -> str:
    """The folder of images disappears during a run, and is there again for the next one."""
    data = runs.folder / "digits"
    shutil.copytree(runs.data, data)
    process = runs.start("vanished", data_path=data, epoch_size=1000)
    runs.wait_for(process, "vanished", "digits-1_4.ckpt")
    data.rename(runs.folder / "away")
    start = time.monotonic()
    output, _ = process.communicate(timeout=TIMEOUT)
    expect(
        process.returncode == 1 and "100 images in a row cannot be used" in output, output[-3000:]
    )
    seconds = time.monotonic() - start
    (runs.folder / "away").rename(data)
    code, output = runs.run("vanished", "--resume", data_path=data)
    expect(code == 0 and "resumed from" in output, output)
    return (
        f"exit code 1 after {seconds:.1f} s, '100 images in a row cannot be used'; resumed when "
        "the folder is back"
    )


def corrupt_images(runs: Runs, args: argparse.Namespace) -> str:
    """One image of a hundred is cut off."""
    data = runs.folder / "corrupt"
    shutil.copytree(runs.data, data)
    images = sorted(data.rglob("*.jpg"))
    bad = random.Random(0).sample(images, len(images) // 100)
    for file in bad:
        file.write_bytes(file.read_bytes()[:200])
    code, output = runs.run("corrupt_run", data_path=data, epoch_size=3)
    expect(code == 0 and "images could not be used" in output, output)
    evaluation = subprocess.run(
        [
            sys.executable,
            str(ROOT / "eval.py"),
            "--checkpoint_path",
            str(runs.folder / "corrupt_run/ckpt_0"),
        ],
        text=True,
        capture_output=True,
        check=False,
    )
    val = sum("val" in file.parts for file in bad)
    expect(evaluation.returncode == (1 if val else 0), evaluation.stderr)
    return (
        f"{len(bad)} of {len(images)} images: training names them and ends with 0, evaluation "
        f"with 1 ({val} of them)"
    )


def port_in_use(runs: Runs, args: argparse.Namespace) -> str:
    """Another program listens on the master port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        start = time.monotonic()
        job = runs.launch("port", "--master_port", other.getsockname()[1])
        output, _ = job.communicate(timeout=TIMEOUT)
        seconds = time.monotonic() - start
    expect(job.returncode == 2 and "give another --master_port" in output, output)
    return f"exit code 2 after {seconds:.1f} s, one line names the port"


def clock_jump(runs: Runs, args: argparse.Namespace) -> str:
    """The clock jumps by years during a run that is killed; its newest file seems the oldest."""
    runs.run("whole")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    offset = runs.folder / "offset"
    faked: dict[str, str] = {}
    offset.write_text("+0\n")
    if library:
        faked = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    process = runs.start("clock", environment=faked)
    for file, jump in (
        ("digits-1_4.ckpt", "-365d"),
        ("digits-2_4.ckpt", "+365d"),
        ("digits-3_4.ckpt", "+0"),
    ):
        runs.wait_for(process, "clock", file)
        offset.write_text(f"{jump}\n")
    process.kill()
    process.communicate()
    files = runs.checkpoints("clock")
    newest = max(files, key=lambda path: tuple(map(int, path.stem.split("-")[1].split("_"))))
    for path in files:
        os.utime(path, (1e9, 1e9 if path == newest else 2e9))
    code, output = runs.run("clock", "--resume")
    expect(code == 0 and f"resumed from {newest}" in output, output)
    runs.expect_equal("clock", "whole")
    how = "the clock jumped" if library else "no libfaketime: file times only"
    return f"resumed from {newest.name}, final state bit-equal ({how})"


def memory(runs: Runs, args: argparse.Namespace) -> str:
    """Resident size of a process that trains the published network, after epochs 1 and 10."""
    process = runs.start(
        "memory",
        arch="spnas_pixel1_32",
        image_height=32,
        image_width=32,
        resize=32,
        train_images=240,
        epoch_size=11,
        save_checkpoint_steps=0,
    )
    sizes = {}
    for epoch in (1, 10):
        # It gets a line when an epoch is validated and saved.
        run_log = runs.folder / "memory/ckpt_0/train.log"
        while process.poll() is None and not (
            run_log.exists() and f" epoch {epoch}/11: " in run_log.read_text()
        ):
            time.sleep(0.002)
        expect(process.poll() is None, "the run ended before its size was read")
        sizes[epoch] = psutil.Process(process.pid).memory_info().rss / 1e6
    output, _ = process.communicate(timeout=TIMEOUT)
    expect(process.returncode == 0, output)
    growth = 100 * (sizes[10] / sizes[1] - 1)
    text = f"{sizes[1]:.0f} MB after epoch 1, {sizes[10]:.0f} MB after epoch 10: {growth:+.2f} %"
    expect(growth <= 2, text)
    return text


FAULTS: dict[str, Callable[[Runs, argparse.Namespace], str]] = {
    function.__name__: function
    for function in (
        worker_killed,
        worker_hangs,
        stopped,
        slow_rank_0,
        kills,
        disk_full,
        damaged_checkpoint,
        vanished_data,
        corrupt_images,
        port_in_use,
        clock_jump,
        memory,
    )
}


def main(argv: list[str] | None = None) -> int:
    """Cause the faults and print what happened; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="which; all where omitted")
    parser.add_argument("--list", action="store_true", help="name all faults")
    parser.add_argument("--kills", type=int, default=50, help="how many for the fault of that name")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args(argv)
    for name in args.faults:
        if name not in FAULTS:
            parser.error(f"'{name}' is none of {', '.join(FAULTS)}")
    if args.list:
        print("\n".join(f"{name:<20}{function.__doc__}" for name, function in FAULTS.items()))
        return 0
    from src.data.sources import prepare_digits

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare_digits(data)
        for name in args.faults or FAULTS:
            place = Path(folder) / name
            place.mkdir()
            try:
                print(f"{name}: {FAULTS[name](Runs(place, data), args)}", flush=True)
            except (Unexpected, subprocess.TimeoutExpired) as error:
                failed = 1
                print(f"{name}: UNEXPECTED: {error}", flush=True)
            shutil.rmtree(place, ignore_errors=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
