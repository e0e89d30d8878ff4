"""Several processes through the launcher.

They equal one process, agree among each other, and can be stopped, killed and resumed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from src.checkpoint.folder import CheckpointFolder
from src.devices.ranks import Ranks
from src.errors import UserError
from src.files import read_jsonl
from src.training.run import _check_same_everywhere
from tests.conftest import ROOT
from tests.devices.distributed_worker import ARCH, PROCESSES

pytestmark = pytest.mark.slow
STEPS = {
    "plain": 10,
    "rest": 10,
    "search": 20,
    "elastic": 10,
    "one_shot": 10,
    "own_statistics": 4,
}


def start(*flags: object, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts/run_train.sh"), *map(str, flags)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "DEVICE_TARGET": "CPU",
            "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
        },
    )


@pytest.fixture(scope="module")
def found(digits, tmp_path_factory):
    """Folders and findings of the same work on one and on several processes."""
    folder = tmp_path_factory.mktemp("distributed")
    shutil.copytree(digits / "val", folder / "broken")
    (folder / "broken" / "4" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    flags = ("--data_path", digits, "--broken", folder / "broken", "--folder")
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests/devices/distributed_worker.py"),
            *map(str, flags),
            str(folder / "one"),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    job = start(
        "--device_num",
        PROCESSES,
        "--program",
        "tests/devices/distributed_worker.py",
        "digits",
        *flags,
        folder / "several",
        "--foreground",
        cwd=folder,
    )
    output, errors = job.communicate(timeout=600)
    assert job.returncode == 0, output[-2000:] + errors
    assert "[INFO]" not in output  # lines of MindSpore's runtime stay in the logs
    return {
        name: (folder / name, json.loads((folder / name / "found.json").read_text()))
        for name in ("one", "several")
    }


@pytest.mark.parametrize("case", STEPS)
def test_two_processes_equal_one_of_the_double_batch(found, case):
    """Where batch normalisation trains, each rank has its own statistics.

    So has each batch of one process that accumulates the gradients of both.
    """
    own_statistics = case == "own_statistics"
    (one, _), (several, findings) = found["one"], found["several"]
    expected, got = (
        CheckpointFolder(folder / case / "ckpt_0").newest().weights for folder in (one, several)
    )
    compared = 0
    for name, value in got.items():
        if own_statistics and "moving_" in name:
            continue  # rank 0's own batches only
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-5, err_msg=name)
        compared += 1
    assert compared > 10
    losses, top1 = (
        [
            [line[key] for line in read_jsonl(folder / case / "ckpt_0/metrics.jsonl")]
            for folder in (one, several)
        ]
        for key in ("loss", "top1")
    )
    if own_statistics:
        losses[0], top1[0] = (
            np.reshape(values[0], (-1, PROCESSES)).mean(1) for values in (losses, top1)
        )
    assert len(losses[1]) == STEPS[case]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(top1[1], top1[0], rtol=0, atol=1e-5)
    assert len(set(findings[case]["digests"])) == 1  # bit for bit on all ranks


def test_search_decides_alike_on_all_ranks(found):
    _, findings = found["several"]
    first, second = findings["search"]["states"]
    assert first == second
    assert np.ptp(first[0]) > 0.1  # thresholds moved
    one, several = (found[name][0] / "search" for name in ("one", "several"))
    assert (one / "arch.json").read_text() == (several / "arch.json").read_text()
    histories = [
        [
            json.loads(line)["cross_entropy"]
            for line in (folder / "history.jsonl").read_text().splitlines()
        ]
        for folder in (one, several)
    ]
    np.testing.assert_allclose(histories[1], histories[0], rtol=0, atol=1e-5)


def test_losses_of_an_elastic_supernet_are_those_of_all_ranks(found):
    files = [found[name][0] / "elastic/ckpt_0/metrics.jsonl" for name in ("one", "several")]
    one, several = (
        [json.loads(line)["loss_random"] for line in file.read_text().splitlines()]
        for file in files
    )
    np.testing.assert_allclose(several, one, rtol=0, atol=1e-5)


def test_one_shot_operators_change_all_ranks_alike(found):
    digests = found["several"][1]["one_shot_operators"]["digests"]
    assert len(digests) == PROCESSES and len(set(digests)) == 1


def test_rank_0_alone_writes(found):
    folder, findings = found["several"]
    first, *others = findings["written"]
    assert any(name.endswith("plain/ckpt_0/metrics.jsonl") for name in first)
    assert others == [[]] * (PROCESSES - 1)
    assert (folder / "plain/ckpt_0/curves.png").is_file()


def test_evaluation_counts_each_image_once(found):
    one, several = (found[name][1]["evaluation"] for name in ("one", "several"))
    assert several["images"] == one["images"] == 360
    assert sum(several["bad"]) == sum(one["bad"]) == 1
    assert (several["top1"], several["top5"]) == (one["top1"], one["top5"])
    assert several["loss"] == pytest.approx(one["loss"], rel=1e-7)
    assert sorted(sum(several["shares"], [])) == one["shares"][0]


def test_ranks_agree_on_overflow_nan_and_signals(found):
    _, findings = found["several"]
    assert findings["overflow"] == {
        "scales": [32768.0] * PROCESSES,
        "unchanged": [True] * PROCESSES,
    }
    errors = findings["nan"]["errors"]
    assert len(set(errors)) == 1 and "loss is nan at batch 3 of epoch 1" in errors[0]
    assert findings["signal"]["exit code"] == 128 + signal.SIGTERM
    assert len(set(findings["signal"]["digests"])) == 1
    meta = CheckpointFolder(found["several"][0] / "signal/ckpt_0").newest().meta
    assert (meta.epoch, meta.step, meta.device_num) == (0, 3, PROCESSES)
    assert findings["alone"]["errors"] == ["disk full", "rank 0 failed: disk full"]


def test_one_process_needs_no_others():
    done = []
    Ranks().run_on_rank_0(lambda: done.append(1))
    assert done == [1] and Ranks().gather({"x": 0.1}) == [{"x": 0.1}]


def wait_for(file: Path, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not file.exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert file.exists(), job.communicate()


def worker(job: subprocess.Popen, rank: int) -> psutil.Process:
    for child in psutil.Process(job.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that ends meanwhile
            role = child.environ()
            if (role.get("MS_ROLE"), role.get("RANK_ID")) == ("MS_WORKER", str(rank)):
                return child
    raise AssertionError(f"no worker of rank {rank}")


def test_stopped_killed_and_resumed_by_another_number(digits, run_program, tmp_path):
    """SIGTERM to the launcher; kill -9 of a worker of the resumed job; one process ends the run."""
    (tmp_path / "tiny.json").write_text(json.dumps(ARCH))
    images = (
        "--arch",
        "tiny.json",
        "--image_height",
        16,
        "--image_width",
        16,
        "--resize",
        16,
        "--data_path",
        digits,
        "--batch_size",
        10,
        "--train_images",
        800,
        "--epoch_size",
        4,
        "--log_steps",
        4,
        "--save_checkpoint_steps",
        8,
        "--checkpoint_path",
        tmp_path,
    )
    folder = tmp_path / "ckpt_0"
    launch = ("--device_num", 2, "digits", *images, "--foreground", "--log_dir", tmp_path / "logs")

    job = start(*launch, cwd=tmp_path)
    wait_for(folder / "digits-1_8.ckpt", job)
    job.send_signal(signal.SIGTERM)
    output, errors = job.communicate(timeout=200)
    assert job.returncode == 128 + signal.SIGTERM, output + errors
    assert "stopped by SIGTERM" in output
    stopped = CheckpointFolder(folder).newest().meta
    assert stopped.device_num == 2

    job = start(*launch, "--resume", cwd=tmp_path)
    epoch = stopped.epoch + 2
    wait_for(folder / f"digits-{epoch}_8.ckpt", job)
    worker(job, 1).kill()
    output, errors = job.communicate(timeout=200)
    assert job.returncode == 1
    assert re.search(
        r"error: rank 1 was ended by SIGKILL .* see .*worker_1\.log; --resume continues", errors
    ), errors
    killed = CheckpointFolder(folder).newest().meta
    assert (killed.epoch, killed.step) >= (epoch - 1, 8)

    more = ("--resume", "--val_while_train", "false")
    run = run_program("train.py", "--dataset_name", "digits", *images, *more)
    assert run.returncode == 0, run.stderr
    # Each batch of one process has half the images of those before: as many images on, twice the
    # batches.
    assert f"epoch {killed.epoch + 1}, batch {2 * killed.step + 1}\n" in run.stdout
    last = CheckpointFolder(folder).newest().meta
    assert (last.epoch, last.step, last.device_num) == (4, 0, 1)
    weights = CheckpointFolder(folder).newest().weights
    assert int(weights["global_step"][0]) == 4 * 80


def test_mistakes_in_flags_end_a_job_in_the_background(tmp_path):
    job = start("--device_num", 2, "digits", "--epoch_sise", 3, "--log_dir", "logs", cwd=tmp_path)
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0 and "output in logs/job.log" in output
    deadline = time.monotonic() + 60
    while (
        "exit code 2" not in (tmp_path / "logs/job.log").read_text() and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert "did you mean '--epoch_size'" in (tmp_path / "logs/job.log").read_text()


def test_ranks_with_other_checkpoints_are_told():
    ranks = SimpleNamespace(gather=lambda _: ["n-2_4.ckpt", None])
    with pytest.raises(UserError, match="n-2_4.ckpt for rank 0, and None for rank 1; .* share"):
        _check_same_everywhere(ranks, Path("runs/ckpt_0"), None)
