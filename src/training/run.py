"""What a run trains with: all is opened and checked here, in seconds, before hours of work."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.arch.architecture import Architecture
from src.arch.space import SearchSpace
from src.checkpoint.folder import CheckpointFolder
from src.checkpoint.format import Checkpoint, Meta
from src.config import PLACE_KEYS, RunConfig
from src.data.sources import hold_out, names_digest, open_sources
from src.dataset import Loader
from src.devices.ranks import Ranks
from src.errors import UserError
from src.files import different_settings, has_checkpoints
from src.kernels import BFLOAT16_FLAG, use_kernels
from src.kernels.build import library
from src.layers.ends import trains_in_bfloat16
from src.lr_scheduler import documented_lr, learning_rates
from src.result_files import RUN
from src.utils import setup_device

log = logging.getLogger(__name__)

# Keys whose change between a run and its resumption alters no result.
FREE_KEYS = PLACE_KEYS.union(
    (
        "resume",
        "pre_trained",
        "log_steps",
        "print_steps",
        "profile_steps",
        "keep_checkpoint_max",
        "ckpt_save_policy",
        "val_while_train",
        "val_interval_epochs",
        "save_checkpoint_epochs",
        "save_checkpoint_steps",
    )
)

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Run(Generic[Config]):
    """A training run in its folder ``<checkpoint_path>/ckpt_0``, which only rank 0 writes.

    Attributes:
        arch: the network that is trained, of a supernet its largest.
        space: the space of a supernet, None for a network.
        amp_level: MindSpore's level of mixed precision, "O0" for none.
        kernels: whether networks are built with the CPU operators.
        bfloat16: whether these train in bfloat16, which needs nothing of MindSpore's.
        loader: training images of this rank.
        val_loader: validation images of this rank; None without validation.
        steps_per_epoch: optimizer steps.
        resumed: the checkpoint to continue from, None for a new run.
        rates: learning rate of each optimizer step, (epochs * steps per epoch,) of float32.
        held_out: see ``Meta``.
    """

    config: Config
    ranks: Ranks
    arch: Architecture
    space: SearchSpace | None
    amp_level: str
    kernels: bool
    bfloat16: bool
    loader: Loader
    val_loader: Loader | None
    steps_per_epoch: int
    checkpoints: CheckpointFolder
    resumed: Checkpoint | None
    rates: np.ndarray
    held_out: str = ""

    @property
    def folder(self) -> Path:
        """Where checkpoints and logs are written."""
        return self.checkpoints.path

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return self.loader.source.classes

    @property
    def batches_per_epoch(self) -> int:
        """Batches that each rank trains on; several of them make a step of the optimizer."""
        return self.steps_per_epoch * self.config.accumulate_steps

    @property
    def mixed_precision(self) -> bool:
        """Whether MindSpore changes the type in which networks compute."""
        return self.amp_level != "O0"

    @property
    def meta(self) -> Meta:
        """What its checkpoints say, but for progress and results."""
        return Meta(
            self.arch,
            self.config.preprocessing(),
            self.classes,
            self.config.model_dump(mode="json"),
            space=self.space,
            device_num=self.ranks.size,
            batches_per_epoch=self.batches_per_epoch,
            held_out=self.held_out,
        )

    @property
    def same_batches(self) -> bool:
        """Whether steps, and epochs of them, take as many images as in the run that is resumed."""
        if self.resumed is None:
            return True
        old, config = self.resumed.meta, self.config
        return (
            old.config["batch_size"] * old.device_num == config.batch_size * self.ranks.size
            and old.config["accumulate_steps"] == config.accumulate_steps
            and old.batches_per_epoch == self.batches_per_epoch
        )

    @property
    def start(self) -> tuple[int, int]:
        """Epochs completed and batches trained of the one that follows, where this run starts.

        With another number of devices, of images per batch or of batches per epoch a resumed run
        continues behind the same images of the epoch, at the last full optimizer step before them.
        """
        if self.resumed is None:
            return 0, 0
        old, config = self.resumed.meta, self.config
        if self.same_batches:
            return old.progress
        batch = old.images // (config.batch_size * self.ranks.size)
        steps = min(batch // config.accumulate_steps, self.steps_per_epoch - 1)
        return old.epoch, steps * config.accumulate_steps

    @property
    def last_logged(self) -> tuple[int, int] | None:
        """Epoch and step of the last lines that logs of earlier starts keep; None for a new run.

        With other batches steps have other numbers. Lines are then kept only up to the number where
        this run starts, so that no number stands in a log twice.
        """
        return None if self.resumed is None else min(self.resumed.meta.progress, self.start)

    def step_number(self, epoch: int, batch: int) -> int:
        """Optimizer steps planned up to and including a batch."""
        return epoch * self.steps_per_epoch + math.ceil(batch / self.config.accumulate_steps)

    def mixed(self, network: nn.Cell) -> nn.Cell:
        """A network in the precision asked for."""
        if not self.mixed_precision:
            return network
        return ms.amp.auto_mixed_precision(network, self.amp_level)

    def dropout(self, drop_rate: float, epoch: int, batch: int) -> Tensor:
        """Factors of the pooled features for a batch, (N, head channels); (1,) without dropout.

        Drawn from the number of the batch, so that a resumed run draws the same.
        """
        if not drop_rate:
            return Tensor(np.ones(1, np.float32))
        generator = np.random.default_rng((self.config.seed, epoch, batch, self.ranks.rank))
        shape = (self.config.batch_size, self.arch.head_channels)
        kept = generator.random(shape, np.float32) >= drop_rate
        return Tensor(kept.astype(np.float32) / np.float32(1 - drop_rate))

    def graph_values(self) -> dict[str, Any]:
        """All that shapes the compiled graphs, for the key of their cache."""
        return {
            "config": self.config.model_dump(mode="json", exclude=set(FREE_KEYS)),
            "classes": len(self.classes),
            "validates": self.val_loader is not None,
            "steps": len(self.rates),
            "kernels": self.kernels,
            "bfloat16": self.bfloat16,
        }


def prepare(
    config: Config,
    arch: Architecture,
    space: SearchSpace | None = None,
    default_lr: Callable[[Ranks], float] | None = None,
) -> Run[Config]:
    """Open and check everything that a run needs; joins the other processes of its job.

    Args:
        arch: the network that is trained, of a supernet its largest.
        default_lr: base learning rate where the configuration names none; by default that of the
            model zoo, which depends on the number of devices.

    Raises:
        UserError: a value of the configuration does not fit the data, the architecture or the
            checkpoint that is to be continued.
    """
    if config.device_target == "CPU" and config.cpu_kernels != "off":
        library()  # compiled before the job is joined, where others would wait for it in vain
    ranks = setup_device(config.device_target, config.device_id, config.jit_level)
    base_lr = config.lr_init
    if base_lr is None:
        base_lr = documented_lr(ranks.size) if default_lr is None else default_lr(ranks)
        config = config.model_copy(update={"lr_init": base_lr})
    amp_level, kernels, bfloat16 = _precision(config, arch)
    _check_image_size(config, arch)
    loader, val_loader, held_out = _open_loaders(config, ranks)
    steps_per_epoch = _count_steps(config, loader)
    checkpoints = CheckpointFolder(
        Path(config.checkpoint_path) / RUN,
        config.name,
        config.keep_checkpoint_max,
        config.ckpt_save_policy,
    )
    run = Run(
        config=config,
        ranks=ranks,
        arch=arch,
        space=space,
        amp_level=amp_level,
        kernels=kernels,
        bfloat16=bfloat16,
        loader=loader,
        val_loader=val_loader,
        held_out=held_out,
        steps_per_epoch=steps_per_epoch,
        checkpoints=checkpoints,
        resumed=_find_checkpoint(config, ranks, arch, space, loader, checkpoints),
        rates=_rates(config, base_lr, steps_per_epoch),
    )
    if run.resumed:
        _check_resumed(run, run.resumed)
    _check_profiled_steps(run)
    return run


def _check_resumed(run: Run, resumed: Checkpoint) -> None:
    """Raise UserError where a run has trained on images that would be validated on from now on.

    Or where it has trained longer than it now should.
    """
    before = resumed.meta.held_out
    older = not before and resumed.meta.config.get("holdout")  # than the entry, and does not say it
    if run.held_out and run.held_out != before and not older:
        raise UserError(
            f"{resumed.path}: other images would be held out than in the run that is resumed, "
            f"which has trained on some of them: {run.loader.source.path}, seed or holdout has "
            "changed; --holdout 0 --val_data_path FOLDER validates on others"
        )
    (epoch, batch), asked = run.start, run.config.epoch_size
    if (epoch, batch) > (asked, 0):
        raise UserError(
            f"epoch_size is {asked}, should be at least {epoch + bool(batch)}: as far is the run "
            f"that is resumed, {resumed.path}"
        )


def _check_profiled_steps(run: Run) -> None:
    """Raise UserError for steps behind the end of the run, warn of those that were taken before."""
    steps, (epoch, batch) = run.config.profiled_steps, run.start
    last = run.config.epoch_size * run.batches_per_epoch
    if steps and steps[-1] > last:
        raise UserError(
            f"profile_steps is {run.config.profile_steps}, should lie within the run, which has "
            f"{last} steps"
        )
    done = epoch * run.batches_per_epoch + batch
    if steps and steps[0] <= done:
        log.warning("profile_steps: no trace is written, as the run continues behind step %d", done)


def _rates(config: RunConfig, base_lr: float, steps_per_epoch: int) -> np.ndarray:
    """Learning rate of each optimizer step."""
    return learning_rates(
        config.lr_scheduler,
        base_lr=base_lr,
        steps_per_epoch=steps_per_epoch,
        epoch_size=config.epoch_size,
        warmup_epochs=config.warmup_epochs,
        min_lr=config.eta_min,
        decay_rate=config.lr_gamma,
        decay_epochs=config.lr_decay_epochs,
        milestones=config.lr_epochs,
    )


def _precision(config: RunConfig, arch: Architecture) -> tuple[str, bool, bool]:
    """MindSpore's level of mixed precision, whether to use the CPU operators, and in bfloat16."""
    level = config.amp_level or ("O2" if config.device_target == "Ascend" else "O0")
    kernels = use_kernels(config.cpu_kernels)
    if level == "O0" or not kernels:
        return level, kernels, False
    if level != "O2":
        log.warning(
            "amp_level %s: the CPU operators compute in float32 or bfloat16 only; MindSpore's own "
            "are used, and a training step takes several times as long",
            level,
        )
        return level, False, False
    bfloat16 = trains_in_bfloat16(arch)
    if bfloat16:
        log.info("amp_level O2: the CPU operators train in bfloat16 (%s)", BFLOAT16_FLAG)
    else:
        log.warning(
            "amp_level O2: training in float32, since bfloat16 takes a processor with %s and "
            "MBConv blocks without squeeze-and-excitation",
            BFLOAT16_FLAG,
        )
    return "O0", True, bfloat16


def _check_image_size(config: RunConfig, arch: Architecture) -> None:
    size = f"{config.image_height}x{config.image_width}"
    if min(config.image_height, config.image_width) < arch.total_stride:
        raise UserError(
            f"image size {size} is below the total stride {arch.total_stride} of architecture "
            f"'{arch.name}'; use larger images or an architecture of smaller strides"
        )
    resize = config.preprocessing().resize
    if resize < max(config.image_height, config.image_width):
        raise UserError(
            f"resize is {resize}, smaller than the crop of {size}; make it at least as large"
        )


def _open_loaders(config: RunConfig, ranks: Ranks) -> tuple[Loader, Loader | None, str]:
    """Training and validation images of this rank, and the digest of those that are held out."""
    if config.data_path is None:
        raise UserError(f"data_path is not given; it names the folder of {config.dataset_name}")
    splits = ("train", "val") if config.val_while_train and not config.holdout else ("train",)
    sources = open_sources(config.dataset_name, config.data_path, config.val_data_path, splits)
    held_out = ""
    if config.holdout:
        sources["train"], sources["val"] = hold_out(sources["train"], config.holdout, config.seed)
        held_out = names_digest(sources["val"])
    train = sources["train"]
    if config.num_classes is not None and config.num_classes != len(train.classes):
        raise UserError(
            f"num_classes is {config.num_classes}, {train.path} holds {len(train.classes)} "
            "classes; leave it out or make them agree"
        )
    shared: dict[str, Any] = {
        "preprocessing": config.preprocessing(),
        "batch_size": config.batch_size,
        "seed": config.seed,
        "num_parallel_workers": config.num_parallel_workers,
        "rank": ranks.rank,
        "device_num": ranks.size,
    }
    loader = Loader(
        train,
        training=True,
        augmentation=config.augmentation(),
        max_images=config.train_images,
        balanced=config.balance_classes,
        **shared,
    )
    if not config.val_while_train:
        return loader, None, held_out
    return loader, Loader(sources["val"], training=False, **shared), held_out


def _count_steps(config: RunConfig, loader: Loader) -> int:
    """Optimizer steps per epoch."""
    batches = loader.batches_per_epoch
    steps = min(batches, config.epoch_steps or batches) // config.accumulate_steps
    if steps:
        return steps
    if batches >= config.accumulate_steps:
        raise UserError(
            f"epoch_steps is {config.epoch_steps}, should be at least accumulate_steps, "
            f"{config.accumulate_steps}"
        )
    raise UserError(
        f"accumulate_steps {config.accumulate_steps} of batch_size {config.batch_size} need "
        f"more images than the {len(loader)} of {loader.source.path}"
    )


def _find_checkpoint(
    config: RunConfig,
    ranks: Ranks,
    arch: Architecture,
    space: SearchSpace | None,
    loader: Loader,
    checkpoints: CheckpointFolder,
) -> Checkpoint | None:
    """The checkpoint to continue from, None for a new run; refuses to mix two runs."""
    folder = checkpoints.path
    if not config.resume:
        if has_checkpoints(folder):
            raise UserError(
                f"{folder}: holds the checkpoints of an earlier run; --resume continues it, "
                "another --checkpoint_path starts beside it"
            )
        return None
    newest = checkpoints.newest()
    _check_same_everywhere(ranks, folder, newest)
    if newest is None:
        log.warning("%s: no checkpoint to resume from; starting anew", folder)
        return None
    if newest.meta.arch != arch:
        raise UserError(
            f"{newest.path}: trained with architecture '{newest.meta.arch.name}', which differs "
            f"from '{arch.name}'"
        )
    if newest.meta.classes != tuple(loader.source.classes):
        raise UserError(
            f"{newest.path}: trained on {len(newest.meta.classes)} classes, which differ from the "
            f"{len(loader.source.classes)} of {loader.source.path}"
        )
    if newest.meta.space != space:
        name = "none" if space is None else f"'{space.name}'"
        raise UserError(f"{newest.path}: of a search in another space than {name}")
    _tell_changes(newest.meta.config, config.model_dump(mode="json"))
    return newest


def _check_same_everywhere(ranks: Ranks, folder: Path, newest: Checkpoint | None) -> None:
    """Raise UserError where ranks see different checkpoints, as on servers with own disks."""
    names = ranks.gather(newest.path.name if newest else None)
    for rank, name in enumerate(names):
        if name != names[0]:
            raise UserError(
                f"{folder}: newest checkpoint is {names[0]} for rank 0, and {name} for rank "
                f"{rank}; checkpoint_path should be a folder that all servers share"
            )


def _tell_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # With other images to validate on, best.ckpt may be the best of the earlier ones.
    free = FREE_KEYS - {"val_data_path"}
    for key, (old, new) in different_settings(before, now, free).items():
        if key in before and key in now:  # others came or went with a version of this program
            log.warning("%s was %s in the run that is resumed, and is %s now", key, old, new)
