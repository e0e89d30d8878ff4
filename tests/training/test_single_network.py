"""What the configuration of a training says reaches its step, its batches and its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from scipy.special import log_softmax

from src.checkpoint.folder import CheckpointFolder
from src.checkpoint.restore import cell_weights, load_weights
from src.cli import build_config
from src.config import TrainConfig
from src.data.preprocessing import Augmentation
from src.data.sources import ImageFolder
from src.dataset import Loader
from src.devices.ranks import Ranks
from src.errors import UserError
from src.spnasnet import SPNASNet
from src.training.loop import _Loop
from src.training.run import Run, _check_resumed, prepare
from src.training.single import SingleNetwork
from tests.conftest import TINY, mode_of
from tests.kernels.reference import normal

BATCH = 10


@pytest.fixture
def run_of(few_digits, tmp_path) -> Callable[..., Run]:
    """Makes a run of a tiny network."""

    def build(**keys) -> Run:
        given = {
            "dataset_name": "digits",
            "data_path": str(few_digits),
            "batch_size": BATCH,
            "checkpoint_path": str(tmp_path),
            "seed": 3,
            **keys,
        }
        config = build_config(TrainConfig, {**TrainConfig.preset(given), **given})
        return prepare(config, TINY)

    return build


def test_a_step_has_the_smoothing_dropout_and_momentum_of_the_configuration(run_of):
    run = run_of(
        label_smooth_factor=0.3,
        bn_momentum=0.6,
        drop_rate=0.4,
        cpu_kernels="off",
        val_while_train=False,
    )
    with mode_of(ms.PYNATIVE_MODE):
        task = SingleNetwork(run)
        reference = SPNASNet(TINY, 10, momentum=0.6).set_train()
        load_weights(reference, cell_weights(task.step), run.folder)
        images = normal(0, BATCH, 3, 32, 32)
        labels = np.arange(BATCH, dtype=np.int32)
        dropout = run.dropout(0.4, 0, 1)
        factors = dropout.asnumpy()
        assert set(np.unique(factors)) == {0, np.float32(1) / np.float32(0.6)}
        assert 0.5 < (factors > 0).mean() < 0.7
        logits = reference(Tensor(images), dropout).asnumpy().astype(np.float64)
        loss, hits = (
            float(value.asnumpy())
            for value in task.train_batch(Tensor(images), Tensor(labels), 0, 1)
        )
        target = 0.7 * np.eye(10)[labels] + 0.3 / 10
        expected = -(target * log_softmax(logits, 1)).sum(1).mean()
        assert loss == pytest.approx(expected, rel=1e-5)
        assert hits == (logits.argmax(1) == labels).sum()
        moved = cell_weights(task.step)
        for name, value in cell_weights(reference).items():
            if ".moving_" in name:
                np.testing.assert_allclose(moved[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
        # The moving mean was 0: what is there is 0.4 of the mean of the batch.
        stem = reference.stem.conv(Tensor(images)).asnumpy().mean((0, 2, 3))
        np.testing.assert_allclose(moved["stem.bn.moving_mean"], 0.4 * stem, rtol=1e-4, atol=1e-6)


def test_each_rank_drops_other_features(run_of):
    run = run_of(drop_rate=0.4)
    drawn = [replace(run, ranks=Ranks(rank, 2)).dropout(0.4, 1, 5).asnumpy() for rank in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert 0.4 < (drawn[0] == drawn[2]).mean() < 0.65  # 0.52 where they are independent


def test_batches_are_augmented_balanced_and_seeded_as_configured(run_of, few_digits):
    run = run_of(flip=True, crop_padding=3, cutout=5, balance_classes=True, train_images=90)
    augmentation = Augmentation(crop_padding=3, flip=True, cutout=5)
    expected = Loader(
        ImageFolder(few_digits / "train"),
        run.config.preprocessing(),
        batch_size=BATCH,
        training=True,
        augmentation=augmentation,
        seed=3,
        max_images=90,
        balanced=True,
    )
    for got, wanted in zip(run.loader.epoch(2), expected.epoch(2), strict=True):
        for ours, theirs in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    plain, plain_labels = next(run_of(augment=False).loader.epoch(2))
    assert not np.array_equal(plain, next(run.loader.epoch(2))[0])
    assert not np.array_equal(plain_labels, next(run_of(augment=False, seed=4).loader.epoch(2))[1])


def test_validation_and_checkpoints_have_their_periods(run_of):
    run, validated, saved = run_of(val_interval_epochs=2, save_checkpoint_epochs=3), [], []
    result = SimpleNamespace(
        top1=1.0, top5=2.0, loss=3.0, images=4, networks={}, metrics=lambda: {"top1": 1.0}
    )
    loop = object.__new__(_Loop)
    loop.run = replace(run, config=run.config.model_copy(update={"epoch_size": 5}))
    loop.run.rates[:] = 1
    loop.run_log = SimpleNamespace(record=lambda kind, done, *_, **__: validated.append(done))
    loop.task = SimpleNamespace(evaluate=lambda _: result)
    loop._update_validation_network = lambda: None
    loop._save = lambda done, *_: saved.append(done)
    for done in range(1, 6):
        loop._end_epoch(done, [1.0], 1.0, done == 5)
    assert (validated, saved) == ([2, 4, 5], [2, 3, 4, 5])


def test_a_run_keeps_its_checkpoints_as_configured(run_of):
    folder = run_of(keep_checkpoint_max=2, ckpt_save_policy="top_k", name="n").checkpoints
    folder.path.mkdir()
    meta = run_of().meta
    for epoch, top1 in enumerate([50.0, 70.0, 10.0, 20.0], start=1):
        folder.save({"weight": np.ones(1)}, replace(meta, epoch=epoch, metrics={"top1": top1}))
    kept = [entry.top1 for entry in CheckpointFolder(folder.path).entries()]
    assert kept == [70.0, 20.0]  # the best and, always, the newest


def test_what_was_trained_on_is_not_held_out_later(run_of):
    run, other = run_of(holdout=0.25), run_of(holdout=0.25, seed=4)
    checkpoint = SimpleNamespace(path="n-1_4.ckpt", meta=replace(run.meta, epoch=1))
    again = replace(run, resumed=checkpoint)
    _check_resumed(again, checkpoint)
    resumed = replace(other, resumed=checkpoint)
    with pytest.raises(UserError, match="n-1_4.ckpt: other images would be held out than in the"):
        _check_resumed(resumed, checkpoint)
    # Files that are older than the entry do not say which images they held out.
    older = SimpleNamespace(path="n-1_4.ckpt", meta=replace(checkpoint.meta, held_out=""))
    _check_resumed(replace(other, resumed=older), older)
    none = run_of()
    checkpoint = SimpleNamespace(path="n-1_4.ckpt", meta=replace(none.meta, epoch=1))
    with pytest.raises(UserError, match="seed or holdout has changed"):
        _check_resumed(replace(run, resumed=checkpoint), checkpoint)
    long = SimpleNamespace(path="n-1_4.ckpt", meta=replace(none.meta, epoch=9, step=2))
    with pytest.raises(UserError, match="epoch_size is 5, should be at least 10"):
        _check_resumed(replace(none, resumed=long), long)
