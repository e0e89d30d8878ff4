"""The training loop."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import yaml
from mindspore import Tensor, nn

from src import kernels
from src.arch.architecture import Architecture, load_architecture
from src.checkpoint.folder import CheckpointFolder
from src.checkpoint.format import EMA_PREFIX, Checkpoint, Meta, load_parameters, overwrite
from src.checkpoint.pretrained import load_pretrained
from src.config import RunConfig
from src.CrossEntropySmooth import CrossEntropySmooth
from src.data.sources import open_sources
from src.dataset import Loader
from src.errors import Fault, UserError
from src.files import make_folder, write_text
from src.lr_scheduler import documented_lr, learning_rates
from src.spnasnet import SPNASNet
from src.training.compile_cache import CompileCache
from src.training.evaluation import evaluate
from src.training.run_log import RunLog
from src.training.step import TrainStep, averaged, create_optimizer
from src.utils import environment, setup_device

log = logging.getLogger(__name__)

# Keys whose change between a run and its resumption alters no result.
_FREE_KEYS = frozenset(
    (
        "resume",
        "data_path",
        "val_data_path",
        "checkpoint_path",
        "device_id",
        "compile_cache",
        "pre_trained",
        "log_steps",
        "print_steps",
        "keep_checkpoint_max",
        "ckpt_save_policy",
        "val_while_train",
        "val_interval_epochs",
        "save_checkpoint_epochs",
        "save_checkpoint_steps",
    )
)


class _StopSignal:
    """Notes SIGTERM and SIGINT, so that the loop can end between two steps; a second one ends at once.

    Attributes:
        received: what this process got.
        agreed: what all ranks know that any of them got; all end at the same step.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.agreed: signal.Signals | None = None
        self.listen()

    def listen(self) -> None:
        """Install the handlers, again after every data pipeline that starts: MindSpore's puts its own in place."""
        if self.received is None:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def agree(self, received: Sequence[int | None]) -> None:
        """Take note of what all ranks got."""
        self.agreed = next((signal.Signals(number) for number in received if number), None)

    def _note(self, number: int, _frame: Any) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)


class Trainer:
    """One training run in its folder ``<checkpoint_path>/ckpt_0``, which rank 0 alone writes.

    Construction checks everything that can be checked and reads what a resumed run continues from;
    ``run`` trains. The search builds on it: see ``src.search.superkernel_search``.
    """

    def __init__(self, config: RunConfig) -> None:
        self.ranks = setup_device(config.device_target, config.device_id)
        self.rank, self.device_num = self.ranks.rank, self.ranks.size
        if config.lr_init is None:
            config = config.model_copy(update={"lr_init": self._default_lr(config)})
        self.config = config
        self.amp_level = config.amp_level or ("O2" if config.device_target == "Ascend" else "O0")
        self.kernels = kernels.use_kernels(config.cpu_kernels if self.amp_level == "O0" else "off")
        if self.amp_level != "O0" and kernels.use_kernels(config.cpu_kernels):
            log.warning(
                "amp_level %s: the CPU operators compute in float32 only; MindSpore's own are used, and a training "
                "step takes two to four times as long",
                self.amp_level,
            )
        self.arch = self._architecture()
        self._check_image_size()
        if config.data_path is None:
            raise UserError(f"data_path is not given; it names the folder of {config.dataset_name}")
        splits = ("train", "val") if config.val_while_train else ("train",)
        sources = open_sources(config.dataset_name, config.data_path, config.val_data_path, splits)
        self.classes = sources["train"].classes
        if config.num_classes is not None and config.num_classes != len(self.classes):
            raise UserError(
                f"num_classes is {config.num_classes}, {sources['train'].path} holds "
                f"{len(self.classes)} classes; leave it out or make them agree"
            )
        shared = {
            "preprocessing": config.preprocessing(),
            "batch_size": config.batch_size,
            "seed": config.seed,
            "num_parallel_workers": config.num_parallel_workers,
            "rank": self.rank,
            "device_num": self.device_num,
        }
        self.loader = Loader(
            sources["train"],
            training=True,
            augmentation=config.augmentation(),
            max_images=config.train_images,
            **shared,
        )
        self.val_loader = (
            Loader(sources["val"], training=False, **shared) if config.val_while_train else None
        )
        batches = self.loader.batches_per_epoch
        self.steps_per_epoch = (
            min(batches, config.epoch_steps or batches) // config.accumulate_steps
        )
        self.batches_per_epoch = self.steps_per_epoch * config.accumulate_steps
        if not self.steps_per_epoch:
            raise UserError(
                f"accumulate_steps {config.accumulate_steps} of batch_size {config.batch_size} need more "
                f"images than the {len(sources['train'])} of {sources['train'].path}"
            )
        self.folder = Path(config.checkpoint_path) / "ckpt_0"
        self.checkpoints = CheckpointFolder(
            self.folder, config.name, config.keep_checkpoint_max, config.ckpt_save_policy
        )
        self.resumed = self._find_checkpoint()
        self.rates = learning_rates(
            config.lr_scheduler,
            base_lr=config.lr_init,
            steps_per_epoch=self.steps_per_epoch,
            epoch_size=config.epoch_size,
            warmup_epochs=config.warmup_epochs,
            min_lr=config.eta_min,
            decay_rate=config.lr_gamma,
            decay_epochs=config.lr_decay_epochs,
            milestones=config.lr_epochs,
        )
        self.meta = Meta(
            self.arch.to_dict(),
            config.preprocessing().to_dict(),
            list(self.classes),
            config.model_dump(mode="json"),
            device_num=self.device_num,
        )

    def _default_lr(self, _config: RunConfig) -> float:
        return documented_lr(self.device_num)

    def _architecture(self) -> Architecture:
        """The network that is trained."""
        return load_architecture(self.config.arch)

    def _check_image_size(self) -> None:
        smallest = min(self.config.image_height, self.config.image_width)
        if smallest < self.arch.total_stride:
            raise UserError(
                f"image size {self.config.image_height}x{self.config.image_width} is below the total "
                f"stride {self.arch.total_stride} of architecture '{self.arch.name}'; use larger images "
                "or an architecture of smaller strides"
            )
        resize = self.config.preprocessing().resize
        if resize < max(self.config.image_height, self.config.image_width):
            raise UserError(
                f"resize is {resize}, smaller than the crop of {self.config.image_height}x"
                f"{self.config.image_width}; make it at least as large"
            )

    def _find_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to continue from, None for a new run; refuses to mix a new run into an old one."""
        if not self.config.resume:
            if self.folder.is_dir() and any(self.folder.glob("*.ckpt")):
                raise UserError(
                    f"{self.folder}: holds the checkpoints of an earlier run; --resume continues it, "
                    "another --checkpoint_path starts beside it"
                )
            return None
        newest = self.checkpoints.newest()
        names = self.ranks.gather(newest.path.name if newest else None)
        if len(set(names)) > 1:
            rank = next(rank for rank, name in enumerate(names) if name != names[0])
            raise UserError(
                f"{self.folder}: newest checkpoint is {names[0]} for rank 0, and {names[rank]} for rank "
                f"{rank}; checkpoint_path should be a folder that all servers share"
            )
        if newest is None:
            log.warning("%s: no checkpoint to resume from; starting anew", self.folder)
            return None
        if newest.arch != self.arch:
            raise UserError(
                f"{newest.path}: trained with architecture '{newest.arch.name}', which differs from "
                f"'{self.arch.name}'"
            )
        if newest.meta.classes != list(self.classes):
            raise UserError(
                f"{newest.path}: trained on {len(newest.meta.classes)} classes, which differ from the "
                f"{len(self.classes)} of {self.loader.source.path}"
            )
        current = self.config.model_dump(mode="json")
        for key, old in newest.meta.config.items():
            if key not in _FREE_KEYS and current.get(key) != old:
                log.warning(
                    "%s was %s in the run that is resumed, and is %s now",
                    key,
                    old,
                    current.get(key),
                )
        return newest

    def _same_batches(self) -> bool:
        """Whether an optimizer step takes as many images as in the run that is resumed."""
        old, config = self.resumed.meta, self.config
        return (old.config["batch_size"] * old.device_num, old.config["accumulate_steps"]) == (
            config.batch_size * self.device_num,
            config.accumulate_steps,
        )

    def _position(self) -> tuple[int, int]:
        """Epochs completed and batches trained of the one that follows, where this run starts.

        With another number of devices or images a batch a resumed run continues behind the same
        images of the epoch, at the last full optimizer step before them.
        """
        if not self.resumed:
            return 0, 0
        old, config = self.resumed.meta, self.config
        if self._same_batches():
            return old.epoch, old.step
        batch = (
            old.step
            * old.config["batch_size"]
            * old.device_num
            // (config.batch_size * self.device_num)
        )
        steps = min(batch // config.accumulate_steps, self.steps_per_epoch - 1)
        return old.epoch, steps * config.accumulate_steps

    def run(self) -> int:
        """Train to the end, or to a signal; returns the exit code."""
        config, stop = self.config, _StopSignal()
        epoch, batch = self._position()
        if self.rank == 0:
            make_folder(self.folder)
        saved = (self.resumed.meta.epoch, self.resumed.meta.step) if self.resumed else None
        run_log = RunLog(
            self.folder, active=self.rank == 0, print_steps=config.print_steps, resume_from=saved
        )
        try:
            self.ranks.run_on_rank_0(self._describe)
            with CompileCache(self._graph_values(), config.compile_cache and self.device_num == 1):
                self._build()
                for epoch in range(epoch, config.epoch_size):
                    if not self._train_epoch(epoch, batch, run_log, stop):
                        log.info(
                            "stopped by %s in epoch %d and saved; --resume continues",
                            stop.agreed.name,
                            epoch + 1,
                        )
                        return 128 + stop.agreed
                    batch = 0
                self._finish()
        finally:
            run_log.close()
        self.ranks.run_on_rank_0(run_log.draw_curves)
        bad = len(self.loader.bad_images)
        log.info(
            "trained %d epochs%s%s; checkpoints in %s",
            config.epoch_size,
            f", best validation top-1 {self.checkpoints.best_top1():.2f} %"
            if self.val_loader
            else "",
            f", {bad} images could not be used" if bad else "",
            self.folder,
        )
        return 0

    def _describe(self) -> None:
        """Make the run's folder explain itself."""
        self.checkpoints.remove_scratch()
        write_text(
            self.folder / "config.yaml",
            yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False),
        )
        for name, data in self._own_files().items():
            write_text(self.folder / name, json.dumps(data, indent=2) + "\n")
        write_text(
            self.folder / "environment.json",
            json.dumps(environment(self.config.device_target), indent=2),
        )
        log.info(
            "%s on %d images of %d classes, %d batches of %d an epoch%s; run folder %s",
            self.arch.name,
            len(self.loader),
            len(self.classes),
            self.batches_per_epoch,
            self.config.batch_size,
            f" on each of {self.device_num} devices" if self.device_num > 1 else "",
            self.folder,
        )

    def _own_files(self) -> dict[str, dict[str, Any]]:
        """JSON files of the run's folder that say what is trained."""
        return {"arch.json": self.arch.to_dict()}

    def _graph_values(self) -> dict[str, Any]:
        """All that shapes the compiled graphs, for the key of their cache."""
        return {
            "config": self.config.model_dump(mode="json", exclude=_FREE_KEYS),
            "arch": self.arch.to_dict(),
            "classes": len(self.classes),
            "steps": len(self.rates),
            "kernels": self.kernels,
        }

    def _create_network(self) -> nn.Cell:
        return SPNASNet(
            self.arch, len(self.classes), momentum=self.config.bn_momentum, kernels=self.kernels
        )

    def _create_step(self) -> TrainStep:
        network = self._create_network()
        if self.config.pre_trained and not self.resumed:
            log.info("%s", load_pretrained(network, self.config.pre_trained).summary())
        optimizer = create_optimizer(network, self.config, self.rates)
        return TrainStep(
            self._mixed(network),
            CrossEntropySmooth(self.config.label_smooth_factor),
            optimizer,
            self.config,
            mixed_precision=self.amp_level != "O0",
            device_num=self.device_num,
        )

    def _mixed(self, network: nn.Cell) -> nn.Cell:
        """The network in the precision asked for."""
        return (
            network
            if self.amp_level == "O0"
            else ms.amp.auto_mixed_precision(network, self.amp_level)
        )

    def _build(self) -> None:
        ms.set_seed(self.config.seed)
        self.step = self._create_step().set_train()
        if self.resumed:
            # The rates follow from the configuration, which may train longer than the run that is
            # resumed.
            own, (epoch, batch) = ["learning_rate"], self._position()
            if not self._same_batches():
                own += ["global_step", "gradient_"]
                self.step.optimizer.global_step.set_data(
                    Tensor([self._step_number(epoch, batch)], ms.int32)
                )
            kept = {p.name: p for p in self.step.get_parameters() if p.name.startswith(tuple(own))}
            load_parameters(self.step, {**self.resumed.parameters, **kept}, self.resumed.path)
            log.info("resumed from %s, epoch %d, batch %d", self.resumed.path, epoch + 1, batch + 1)
            self.resumed = replace(self.resumed, parameters={})
        # Validation has a network of its own: no recompilation between modes, and it can hold the
        # average.
        self.val_network = None
        if self.val_loader:
            self.val_network = self._create_network().set_train(False)

    def _step_inputs(self, epoch: int, batch: int) -> tuple[Tensor, ...]:
        """What the step takes besides images and labels."""
        return (self._dropout(epoch, batch),)

    def _observe(
        self, _outputs: list[tuple[Tensor, ...]], _epoch: int, _batch: int
    ) -> dict[str, Any]:
        """Further values of the steps since the last line, up to ``batch``, for ``metrics.jsonl`` and progress bar."""
        return {}

    def _finish(self) -> None:
        """Work at the end of the last epoch."""

    def _dropout(self, epoch: int, batch: int) -> Tensor:
        """Dropout's factors for this batch, drawn from its number alone, so that a resumed run draws the same."""
        rate = self.config.drop_rate
        if not rate:
            return Tensor(np.ones(1, np.float32))
        generator = np.random.default_rng((self.config.seed, epoch, batch, self.rank))
        shape = (self.config.batch_size, self.arch.head_channels)
        kept = generator.random(shape, np.float32) >= rate
        return Tensor(kept.astype(np.float32) / np.float32(1 - rate))

    def _train_epoch(self, epoch: int, first: int, run_log: RunLog, stop: _StopSignal) -> bool:
        """Train from batch ``first`` of an epoch to its end; False when a signal ended it."""
        config = self.config
        run_log.start_epoch(f"epoch {epoch + 1}/{config.epoch_size}", self.batches_per_epoch, first)
        images_seen, mark = 0, time.perf_counter()
        pending: list[tuple[Tensor, ...]] = []
        for batch, (images, labels) in enumerate(self.loader.epoch(epoch, first), start=first + 1):
            stop.listen()
            pending.append(
                self.step(Tensor(images), Tensor(labels), *self._step_inputs(epoch, batch))
            )
            images_seen += len(labels)
            last = batch == self.batches_per_epoch
            if last or batch % config.log_steps == 0 or (stop.received and self.device_num == 1):
                losses, hits = self._meet(pending, stop)
                self._check_losses(losses, epoch, batch)
                now = time.perf_counter()
                line = {
                    "loss": sum(losses) / len(losses),
                    "top1": 100 * hits / (len(losses) * config.batch_size * self.device_num),
                    "lr": float(self.rates[self._step_number(epoch, batch) - 1]),
                    "images_per_second": round(self.device_num * images_seen / (now - mark), 1),
                    "progress": epoch + batch / self.batches_per_epoch,
                }
                extra = self._observe(pending, epoch, batch)
                line.update(extra)
                run_log.record("train", *((epoch + 1, 0) if last else (epoch, batch)), **line)
                run_log.step(epoch, batch, line["loss"], line["images_per_second"])
                run_log.advance(
                    loss=f"{line['loss']:.3f}",
                    top1=f"{line['top1']:.1f}",
                    lr=f"{line['lr']:.4f}",
                    ips=line["images_per_second"],
                    **extra,
                )
                pending, images_seen, mark = [], 0, now
            else:
                run_log.advance()
            if last:
                break
            if stop.agreed:
                self._save(epoch, batch)
                run_log.end_epoch()
                return False
            if config.save_checkpoint_steps and batch % config.save_checkpoint_steps == 0:
                self._save(epoch, batch)
        run_log.end_epoch()
        self._end_epoch(
            epoch + 1, line, run_log, final=epoch + 1 == config.epoch_size or bool(stop.agreed)
        )
        return not stop.agreed or epoch + 1 == config.epoch_size

    def _meet(
        self, pending: list[tuple[Tensor, ...]], stop: _StopSignal
    ) -> tuple[list[float], float]:
        """Losses of the given steps and their correct predictions, over all ranks.

        Ranks tell each other their signals too, so that all stop at the same step.
        """
        told = self.ranks.gather(
            {
                "losses": [float(outputs[0].asnumpy()) for outputs in pending],
                "hits": sum(float(outputs[1].asnumpy()) for outputs in pending),
                "stop": stop.received,
            }
        )
        stop.agree([own["stop"] for own in told])
        losses = [sum(of_ranks) / len(told) for of_ranks in zip(*(own["losses"] for own in told))]
        return losses, sum(own["hits"] for own in told)

    def _step_number(self, epoch: int, batch: int) -> int:
        """Optimizer steps planned up to and including a batch."""
        return epoch * self.steps_per_epoch + math.ceil(batch / self.config.accumulate_steps)

    def _check_losses(self, losses: list[float], epoch: int, batch: int) -> None:
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                wrong = batch - len(losses) + 1 + offset
                raise Fault(
                    f"loss is {loss} at batch {wrong} of epoch {epoch + 1} (step "
                    f"{self._step_number(epoch, wrong)}); the checkpoints saved so far are untouched; a lower "
                    "lr_init, a warm-up or clip_norm may help"
                )

    def _end_epoch(self, done: int, line: dict[str, float], run_log: RunLog, final: bool) -> None:
        """Validate and save after ``done`` epochs, as often as the configuration asks, and always at the end."""
        config, metrics = self.config, {}
        text = (
            f"epoch {done}/{config.epoch_size}: loss {line['loss']:.4f}, lr {line['lr']:.5f}, "
            f"{line['images_per_second']:.1f} images/s"
        )
        if self.val_loader and (final or done % config.val_interval_epochs == 0):
            network = self._average_network()
            self._share_statistics()
            result = evaluate(network, self.val_loader, ranks=self.ranks)
            metrics = result.metrics()
            run_log.record("val", done, 0, progress=done, images=result.images, **metrics)
            text += f"; validation top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, loss {result.loss:.4f}"
        if final or metrics or done % config.save_checkpoint_epochs == 0:
            self._save(done, 0, metrics)
        log.info("%s", text)

    def _average_network(self) -> nn.Cell:
        """The validation network with the current weight average, or the current weights without one."""
        current = {parameter.name: parameter for parameter in self.step.get_parameters()}
        prefix = EMA_PREFIX if self.config.ema_decay else ""
        for parameter in self.val_network.get_parameters():
            name = prefix + parameter.name if averaged(parameter.name) else parameter.name
            overwrite(parameter, current[name].value())
        return self.val_network

    def _share_statistics(self) -> None:
        """Validate with rank 0's moving statistics, which are those that are saved; each rank has seen other images."""
        own = [
            parameter
            for parameter in self.val_network.get_parameters()
            if "moving_" in parameter.name
        ]
        if not own:
            return
        values = self.ranks.broadcast(np.concatenate([parameter.asnumpy() for parameter in own]))
        for parameter, value in zip(
            own, np.split(values, np.cumsum([len(parameter) for parameter in own]))
        ):
            overwrite(parameter, Tensor(value))

    def _save(self, epoch: int, batch: int, metrics: dict[str, float] | None = None) -> None:
        meta = replace(self.meta, epoch=epoch, step=batch, metrics=metrics or {})
        self.ranks.run_on_rank_0(
            lambda: self.checkpoints.save(self.step, meta, self.batches_per_epoch)
        )
