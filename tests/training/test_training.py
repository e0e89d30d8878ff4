"""Training and evaluation through the command line on real images.

Resumed runs, signals, the cache of compiled graphs, mistakes, and what is left of a run.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.arch.architecture import load_architecture
from src.checkpoint.folder import CheckpointFolder
from src.checkpoint.format import Checkpoint, Meta, read_checkpoint, write_checkpoint
from src.checkpoint.restore import cell_weights
from src.config import TrainConfig
from src.data.preprocessing import Preprocessing
from src.devices.ranks import Ranks
from src.errors import Fault, UserError
from src.kernels import available, build, supports_bfloat16
from src.spnasnet import SPNASNet
from src.training.checkpoint_evaluation import find_checkpoints
from src.training.loop import _restore
from src.training.optimizer import create_optimizer
from src.training.run import Run, _precision, _tell_changes
from src.training.run_log import RunLog
from src.training.step import Update
from tests.conftest import ROOT, TINY, assert_nothing_deprecated

TRAIN = (
    "--dataset_name",
    "digits",
    "--batch_size",
    20,
    "--epoch_size",
    2,
    "--log_steps",
    1,
    "--save_checkpoint_steps",
    2,
    "--drop_rate",
    0.2,
    "--ema_decay",
    0.9,
    "--clip_norm",
    5,
)


def losses(folder) -> list[tuple]:
    lines = [
        json.loads(line) for line in (folder / "ckpt_0" / "metrics.jsonl").read_text().splitlines()
    ]
    return [(line["kind"], line["epoch"], line["step"], line["loss"]) for line in lines]


def weights(file) -> dict[str, np.ndarray]:
    return dict(read_checkpoint(file).weights)


def assert_same_run(folder, reference) -> None:
    """Same losses at every step and bit-equal state at the end."""
    assert losses(folder) == losses(reference)
    ours, theirs = (weights(place / "ckpt_0" / "digits-2_6.ckpt") for place in (folder, reference))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def train(few_digits, tiny_arch):
    """Flags of a short training of a tiny network."""
    return [*map(str, TRAIN), "--arch", str(tiny_arch), "--data_path", str(few_digits)]


@pytest.fixture(scope="module")
def reference(train, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    run = subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            *train,
            "--checkpoint_path",
            str(folder),
            "--profile_steps",
            "8-9",
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    (folder / "stdout").write_text(run.stdout)
    return folder


def test_an_epoch_is_told_by_all_of_its_steps(reference):
    told = re.findall(r"^epoch (\d)/2: loss ([\d.]+), lr", (reference / "stdout").read_text(), re.M)
    steps = [loss for kind, _, _, loss in losses(reference) if kind == "train"]
    means = [f"{np.mean(steps[:6]):.4f}", f"{np.mean(steps[6:]):.4f}"]
    assert told == [("1", means[0]), ("2", means[1])]


def test_a_run_explains_itself(reference):
    names = {file.name for file in (reference / "ckpt_0").iterdir()}
    assert {
        "config.yaml",
        "arch.json",
        "classes.json",
        "environment.json",
        "metrics.jsonl",
        "train.log",
        "curves.png",
        "best.ckpt",
        "digits-1_6.ckpt",
        "digits-2_6.ckpt",
    } <= names
    assert load_architecture(reference / "ckpt_0" / "arch.json") == TINY
    kinds = [(kind, epoch) for kind, epoch, _, _ in losses(reference)]
    assert kinds.count(("val", 1)) == kinds.count(("val", 2)) == 1
    assert len([kind for kind, _ in kinds if kind == "train"]) == 12


def test_a_trace_holds_the_steps_that_were_asked_for(reference):
    folder = reference / "ckpt_0"
    (trace,) = (folder / "trace").rglob("trace_view.json")
    events = [event for event in json.loads(trace.read_text()) if event["ph"] == "X"]
    # The optimizer counts each of its steps.
    counted = "optimizer-Momentum/AssignAdd"
    updates = Counter(event["name"] for event in events if counted in event["name"])
    assert list(updates.values()) == [2]
    log = (folder / "train.log").read_text()
    assert f"trace of steps 8 to 9: {trace}; https://ui.perfetto.dev" in log


@pytest.mark.slow
def test_resume_after_kill_equals_the_uninterrupted_run(reference, train, run_program, tmp_path):
    flags = [*train, "--checkpoint_path", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while (
        not (tmp_path / "ckpt_0" / "digits-1_4.ckpt").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it had not ended by itself
    resumed = run_program("train.py", *flags, "--resume")
    assert resumed.returncode == 0 and "resumed from" in resumed.stdout, resumed.stderr
    assert_same_run(tmp_path, reference)


@pytest.mark.slow
def test_sigterm_saves_and_resume_continues(reference, train, run_program, tmp_path):
    flags = [*train, "--checkpoint_path", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags], stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "ckpt_0" / "digits-1_2.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in output
    resumed = run_program("train.py", *flags, "--resume", GLOG_v="2")
    assert resumed.returncode == 0, resumed.stderr
    assert_nothing_deprecated(resumed)
    assert_same_run(tmp_path, reference)


@pytest.mark.slow
def test_compile_cache_does_not_go_stale(train, run_program, tmp_path):
    """A changed value that is no source must change the result just as it does without a cache."""
    cache = tmp_path / "cache"
    (cache / "spnas").mkdir(parents=True)
    (cache / "spnas/kernels").symlink_to(build.cache_folder())  # these are compiled already
    flags = [*train, "--clip_norm", 0, "--epoch_size", 1, "--val_while_train", "false"]

    def last_loss(name: str, *more: object) -> float:
        run = run_program(
            "train.py",
            *flags,
            "--checkpoint_path",
            tmp_path / name,
            *more,
            XDG_CACHE_HOME=str(cache),
        )
        assert run.returncode == 0, run.stderr
        return losses(tmp_path / name)[-1][-1], "compiled graphs from" in run.stdout

    plain, first_cached = last_loss("plain")
    again, second_cached = last_loss("again")
    assert again == plain and not first_cached and second_cached
    changed = ("--weight_decay", 0.05)
    cached, _ = last_loss("cached", *changed)
    uncached, _ = last_loss("uncached", *changed, "--compile_cache", "false")
    assert uncached == cached != plain


@pytest.mark.slow
def test_evaluation_counts_every_image_whatever_the_batch(reference, call_program, tmp_path):
    rows = []
    for batch_size, which in ((7, "last"), (50, "all")):
        output = tmp_path / f"{batch_size}.json"
        run = call_program(
            "eval.py",
            "--checkpoint_path",
            reference / "ckpt_0",
            "--which",
            which,
            "--batch_size",
            batch_size,
            "--per_class",
            "--output",
            output,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("top-1 ") >= 5 * len(json.loads(output.read_text())["results"])
        rows.append(json.loads(output.read_text())["results"])
    (small,), (*_, large) = rows
    assert [row["images"] for row in rows[1]] == [50] * 6
    for key in ("file", "images", "top1", "top5", "per_class"):
        assert small[key] == large[key]
    assert small["loss"] == pytest.approx(large["loss"], rel=1e-5)
    classes = small["per_class"]
    assert [row["class"] for row in classes] == list("0123456789")
    assert all(row["images"] == 5 == sum(row["predicted"].values()) for row in classes)
    hits = [row["predicted"].get(row["class"], 0) for row in classes]
    assert small["top1"] == pytest.approx(100 * sum(hits) / 50)
    assert [row["top1"] for row in classes] == [100 * count / 5 for count in hits]
    # What training reported for its weight average is what evaluation finds in the checkpoint.
    trained = [loss for kind, _, _, loss in losses(reference) if kind == "val"]
    assert large["loss"] == pytest.approx(trained[-1], rel=1e-5)


def test_bad_image_makes_evaluation_fail_and_is_named(
    reference, few_digits, call_program, tmp_path
):
    folder = tmp_path / "data"
    shutil.copytree(few_digits, folder)
    (folder / "val" / "4" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    run = call_program(
        "eval.py",
        "--checkpoint_path",
        reference / "ckpt_0",
        "--data_path",
        folder,
        "--output",
        tmp_path / "eval.json",
    )
    assert run.returncode == 1
    result = json.loads((tmp_path / "eval.json").read_text())
    assert result["results"][0]["images"] == 50
    run = call_program(
        *("eval.py", "--checkpoint_path", reference / "ckpt_0", "--output", tmp_path)
    )
    assert run.returncode == 2 and "a folder; should be a JSON file" in run.stderr
    assert [os.path.basename(name) for name in result["bad_images"]] == ["broken.jpg"]


def test_nan_loss_stops_the_run_and_names_the_step(train, call_program, tmp_path):
    run = call_program(
        "train.py",
        *train,
        "--checkpoint_path",
        tmp_path,
        "--lr_init",
        1e30,
        "--clip_norm",
        0,
    )
    assert run.returncode == 1
    assert "loss is" in run.stderr and "of epoch 1" in run.stderr and "Traceback" not in run.stderr


def test_runs_are_not_mixed(reference, train, few_digits, call_program, tmp_path, caplog):
    shutil.copytree(reference / "ckpt_0", tmp_path / "ckpt_0")
    fewer = tmp_path / "fewer"
    for split in ("train", "val"):
        for name in "01234":
            shutil.copytree(few_digits / split / name, fewer / split / name)
    other = json.loads((reference / "ckpt_0/arch.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**other, "head_channels": 40}))
    for flags, reason in (
        (("--arch", tmp_path / "other.json"), "which differs from"),
        (("--dataset_name", "folder", "--data_path", fewer), "classes, which differ from the 5 of"),
    ):
        resumed = ("--checkpoint_path", tmp_path, "--resume", *flags)
        run = call_program("train.py", *train, *resumed)
        assert run.returncode == 2 and reason in run.stderr, run.stderr
        assert run.stderr.count("\n") == 1
    with caplog.at_level(logging.WARNING):
        _tell_changes({"lr_init": 0.1, "log_steps": 1}, {"lr_init": 0.2, "log_steps": 2})
    assert caplog.messages == ["lr_init was 0.1 in the run that is resumed, and is 0.2 now"]


MISTAKES = [
    (("--dataset_name", "folder", "--data_path", "nowhere"), "nowhere"),
    (("--lr_int", 3), "did you mean '--lr_init'"),
    (("--name", "digits/a"), "name is 'digits/a'"),
    (("--name", ".digits"), "name is '.digits'"),
    (("--epoch_steps", 2, "--accumulate_steps", 3), "epoch_steps is 2, should be at least"),
    (("--accumulate_steps", 500), "need more images than the"),
    (("--momentum", "high"), "momentum is 'high'"),
    (("--arch", "spnas_pixel9"), "spnas_pixel9"),
    (("--batch_size", 5000), "batch_size 5000"),
    (("--num_classes", 11), "num_classes is 11"),
    (("--image_height", 2, "--image_width", 2, "--resize", 2), "below the total stride 4"),
    (("--pre_trained", "missing.ckpt"), "missing.ckpt"),
    (("--cpu_kernels", "perhaps"), "cpu_kernels is 'perhaps'"),
    (("--jit_level", "O3"), "jit_level is 'O3'"),
    (("--jit_level", "O2"), "jit_level is O2"),
    (("--profile_steps", "9-8"), "profile_steps is '9-8': should be the first and the last step"),
    (("--profile_steps", "8-13"), "should lie within the run, which has 12 steps"),
    (("--subnets", "random"), "subnets is for a supernet: --space names its search space"),
    (("--std", "0,1,1"), "std"),
    (("--loss_scale", 0), "loss_scale is 0: should be dynamic or a number above 0"),
]


@pytest.mark.parametrize("flags, named", MISTAKES, ids=lambda value: str(value)[:30])
def test_mistakes_get_one_line_and_exit_code_2(train, call_program, tmp_path, flags, named):
    run = call_program("train.py", *train, "--checkpoint_path", tmp_path, *flags)
    assert run.returncode == 2
    assert named in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_a_new_run_does_not_overwrite_an_old_one(reference, train, run_program):
    before = (reference / "ckpt_0" / "best.ckpt").read_bytes()
    run = run_program("train.py", *train, "--checkpoint_path", reference)
    assert run.returncode == 2 and "--resume" in run.stderr
    assert (reference / "ckpt_0" / "best.ckpt").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "random", "foreign"])
def test_damaged_checkpoints_are_refused(reference, tmp_path, damage):
    data = bytearray((reference / "ckpt_0" / "best.ckpt").read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 3] ^= 4
    elif damage == "random":
        data = bytearray(np.random.default_rng(0).bytes(5000))
    path = tmp_path / "x.ckpt"
    path.write_bytes(data)
    if damage == "foreign":
        path.unlink()
        ms.save_checkpoint(SPNASNet(load_architecture("spnas_smallest"), 10), str(path))
    with pytest.raises(UserError, match="x.ckpt"):
        read_checkpoint(path)


def test_newest_checkpoint_falls_back_to_the_one_before(reference, tmp_path):
    folder = tmp_path / "ckpt_0"
    shutil.copytree(reference / "ckpt_0", folder)
    (folder / "digits-2_6.ckpt").write_bytes(b"lost")
    newest = CheckpointFolder(folder).newest()
    assert newest.path.name == "digits-2_4.ckpt" and (newest.meta.epoch, newest.meta.step) == (1, 4)


META = Meta(
    load_architecture("spnas_smallest"),
    Preprocessing(8, 8, 8, (0, 0, 0), (1, 1, 1)),
    (),
    batches_per_epoch=10,
)


def some_weights(size: int) -> dict[str, np.ndarray]:
    return {"weight": np.ones((size, size), np.float32), "bias": np.zeros(size, np.float32)}


def _save(folder: CheckpointFolder, scores) -> None:
    for epoch, top1 in enumerate(scores, start=1):
        folder.save(some_weights(2), replace(META, epoch=epoch, metrics={"top1": top1}))


@pytest.mark.parametrize("policy, kept", [("latest_k", {3, 4, 5}), ("top_k", {1, 3, 5})])
def test_which_checkpoints_are_kept(tmp_path, policy, kept):
    folder = CheckpointFolder(tmp_path, "n", keep=3, policy=policy)
    _save(folder, [50.0, 20.0, 70.0, 10.0, 30.0])
    assert {file.name for file in tmp_path.glob("n-*.ckpt")} == {
        f"n-{epoch}_10.ckpt" for epoch in kept
    }
    assert read_checkpoint(tmp_path / "best.ckpt").meta.epoch == 3


def test_the_best_is_copied_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(source, link):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    _save(CheckpointFolder(tmp_path, "n"), [50.0, 70.0, 20.0])
    assert read_checkpoint(tmp_path / "best.ckpt").meta.epoch == 2


def test_the_best_may_have_been_copied_elsewhere(tmp_path):
    for name in ("run", "models"):
        (tmp_path / name).mkdir()
    _save(CheckpointFolder(tmp_path / "run", "n"), [50.0, 70.0, 20.0])
    shutil.copy(tmp_path / "run/best.ckpt", tmp_path / "models")
    assert find_checkpoints(tmp_path / "models", "best") == [tmp_path / "models/best.ckpt"]
    with pytest.raises(UserError, match="models: holds no checkpoint"):
        find_checkpoints(tmp_path / "models", "last")


def test_the_best_stays_the_best_when_its_own_file_is_deleted(tmp_path):
    folder, scores = CheckpointFolder(tmp_path, "n", keep=2), [70.0, 20.0, 50.0, 10.0, 60.0]
    _save(folder, scores)
    assert folder.best_top1() == 70 and read_checkpoint(tmp_path / "best.ckpt").meta.epoch == 1
    (tmp_path / "checkpoints.json").unlink()  # as if by a folder of an older version
    assert folder.best_top1() == 70


def test_a_crash_before_the_best_is_replaced_is_made_good_by_the_next_save(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, "n", keep=1)
    _save(folder, [50.0])
    with monkeypatch.context() as patch:
        patch.setattr("src.checkpoint.folder.whole", lambda path: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            folder.save(some_weights(2), replace(META, epoch=2, metrics={"top1": 80.0}))
    assert read_checkpoint(tmp_path / "best.ckpt").meta.epoch == 1
    folder.save(some_weights(2), replace(META, epoch=3, metrics={"top1": 70.0}))
    assert read_checkpoint(tmp_path / "best.ckpt").meta.epoch == 2 and folder.best_top1() == 80


def test_the_newest_has_the_most_images_whatever_the_batches(tmp_path):
    """One device stopped at its batch 16; two went on from their batch 8, to batch 12."""
    folder, index = CheckpointFolder(tmp_path, "n"), tmp_path / "checkpoints.json"
    for meta in (replace(META, step=16), replace(META, step=12, device_num=2)):
        folder.save(some_weights(2), replace(meta, config={"batch_size": 20}))
    assert folder.newest().path.name == "n-1_12.ckpt"
    # An index of version 1.0.0 has no images; the files tell them.
    entries = json.loads(index.read_text())
    for entry in entries:
        del entry["images"]
    index.write_text(json.dumps(entries))
    assert folder.newest().path.name == "n-1_12.ckpt"


def resumed_at(old: Meta, batches_per_epoch: int, devices: int = 1, batch_size: int = 20) -> Run:
    """A run that continues ``old``, without data and a network."""
    return Run(
        config=TrainConfig(batch_size=batch_size),
        ranks=Ranks(0, devices),
        arch=old.arch,
        space=None,
        amp_level="O0",
        kernels=False,
        bfloat16=False,
        loader=None,
        val_loader=None,
        steps_per_epoch=batches_per_epoch,
        checkpoints=CheckpointFolder(Path()),  # which is neither read nor written
        resumed=Checkpoint(Path("n-2_4.ckpt"), old, {}),
        rates=np.ones(1),
    )


@pytest.mark.parametrize(
    "told, now, start, last_logged",
    [
        (10, (10,), (1, 4), (1, 4)),
        (10, (3,), (1, 2), (1, 2)),  # images are gone: the last step of the epoch is left
        (10, (20,), (1, 4), (1, 4)),
        (10, (5, 2), (1, 2), (1, 2)),
        (10, (20, 1, 10), (1, 8), (1, 4)),
        (0, (10,), (1, 4), (1, 4)),  # of version 1.0.0
    ],
)
def test_where_a_resumed_run_starts(told, now, start, last_logged):
    config = {"batch_size": 20, "accumulate_steps": 1}
    old = replace(META, config=config, epoch=1, step=4, batches_per_epoch=told)
    run = resumed_at(old, *now)
    assert (run.start, run.last_logged) == (start, last_logged)
    assert run.same_batches == (told == 10 and now == (10,))
    assert resumed_at(replace(old, step=0), *now).start == (1, 0)


@pytest.mark.parametrize("loss_scale, scale", [(8.0, 8), ("dynamic", 4)])
def test_a_resumed_run_has_the_settings_of_its_configuration(loss_scale, scale):
    config, network = TrainConfig(momentum=0.5, loss_scale=loss_scale), nn.Dense(2, 3)
    optimizer = create_optimizer(network, config, np.ones(5, np.float32))
    step = Update(network, optimizer, config, mixed_precision=True)
    stored = {name: np.full_like(value, 4) for name, value in cell_weights(step).items()}
    settings = {"learning_rate": 1, "momentum": 0.5, "loss_scale": scale}
    assert settings.keys() | {"moments.weight", "loss_scale_good_steps"} <= stored.keys()
    resumed = Checkpoint(Path("n-2_4.ckpt"), META, stored)
    run = SimpleNamespace(config=config, resumed=resumed, start=(1, 4), same_batches=True)
    _restore(run, SimpleNamespace(step=step))
    for name, value in cell_weights(step).items():
        np.testing.assert_array_equal(value, settings.get(name, 4), err_msg=name)


def test_a_failed_write_leaves_the_previous_checkpoint_whole(tmp_path):
    """With a limit on the size of files the system refuses to write on, as on a full disk."""
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, some_weights(2), replace(META, epoch=1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(Fault, match="a.ckpt: cannot be saved"):
            write_checkpoint(path, some_weights(200), replace(META, epoch=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(path).meta.epoch == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("level", ["O2", "O3"])
def test_mixed_precision_with_dynamic_loss_scale_trains(
    train, reference, call_program, tmp_path, level
):
    run = call_program(
        "train.py",
        *train,
        "--checkpoint_path",
        tmp_path,
        "--amp_level",
        level,
        "--cpu_kernels",
        "off" if level == "O2" else "auto",
        "--epoch_size",
        1,
        "--ema_decay",
        0,
        "--lr_init",
        0.02,
    )
    warned = "the CPU operators compute in float32 or bfloat16 only" in run.stdout
    assert warned == (available() and level == "O3")
    assert run.returncode == 0, run.stderr
    own = [loss for *_, loss in losses(tmp_path)]
    assert all(np.isfinite(own))
    assert own[0] == pytest.approx(losses(reference)[0][-1], rel=0.02)  # before any update


@pytest.mark.skipif(not supports_bfloat16(), reason="the processor does not multiply bfloat16")
@pytest.mark.slow
def test_bfloat16_on_cpu_learns_and_resumes_bit_for_bit(train, reference, call_program, tmp_path):
    flags, whole, resumed = [*train, "--amp_level", "O2"], tmp_path / "whole", tmp_path / "resumed"
    run = call_program("train.py", *flags, "--checkpoint_path", whole)
    assert run.returncode == 0, run.stderr
    assert "train in bfloat16 (avx512_bf16)" in run.stdout
    assert not any("loss_scale" in name for name in weights(whole / "ckpt_0" / "digits-2_6.ckpt"))
    expected = losses(reference)
    assert losses(whole) != expected
    np.testing.assert_allclose(
        [loss for *_, loss in losses(whole)], [loss for *_, loss in expected], rtol=0.05
    )
    shutil.copytree(whole, resumed)
    for file in (*resumed.glob("ckpt_0/digits-2_*.ckpt"), resumed / "ckpt_0" / "best.ckpt"):
        file.unlink()
    run = call_program("train.py", *flags, "--checkpoint_path", resumed, "--resume")
    assert run.returncode == 0, run.stderr
    assert_same_run(resumed, whole)


@pytest.mark.skipif(not available(), reason="no CPU operators here")
def test_float32_takes_the_place_of_bfloat16_where_it_must(monkeypatch, caplog):
    config = TrainConfig(amp_level="O2", arch="spnas_pixel1")
    arch = load_architecture("spnas_pixel1")
    assert _precision(config, arch) == ("O0", True, supports_bfloat16())
    monkeypatch.setattr(build, "multiplies_bfloat16", lambda: False)
    assert _precision(config, arch) == ("O0", True, False)
    assert "training in float32" in caplog.text
    off = config.model_copy(update={"cpu_kernels": "off"})
    assert _precision(off, arch) == ("O2", False, False)


def test_what_follows_a_run_is_not_in_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    run_log = RunLog(tmp_path, active=True)
    logging.warning("of this run")
    run_log.close()
    logging.warning("of the next one")
    (line,) = (tmp_path / "train.log").read_text().splitlines()
    assert line.endswith("of this run")
