"""The training loop: from batches of images to checkpoints, whatever is trained.

``train`` starts and ends a run, ``_Loop.train_epoch`` goes through an epoch. What is trained is a
task (``src.training.task``), what it is trained with a run (``src.training.run``).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import mindspore as ms
import numpy as np
import yaml
from mindspore import Tensor

from src.checkpoint.format import EMA_PREFIX
from src.checkpoint.restore import cell_weights, load_weights, overwrite
from src.data.class_balance import describe_imbalance
from src.errors import Fault
from src.files import make_folder, write_json, write_text
from src.result_files import CONFIG
from src.training.classes import CLASSES, ClassCounts
from src.training.compile_cache import CompileCache
from src.training.run import Run
from src.training.run_log import RunLog
from src.training.step import is_averaged
from src.training.step_trace import StepTrace
from src.training.stop_signal import StopSignal
from src.training.task import Task
from src.utils import environment

log = logging.getLogger(__name__)

# What a user can do about classes of different sizes.
BALANCE = "; --balance_classes trains on as many of each, eval.py --per_class shows each class"


def train(run: Run, create_task: Callable[[Run], Task], files: Mapping[str, dict[str, Any]]) -> int:
    """Train to the end, or to a signal; returns the exit code.

    Args:
        create_task: makes what is trained.
        files: JSON files of the run's folder, by name, that say what is trained. The compiled
            graphs depend on them and on the configuration.
    """
    config, ranks, stop = run.config, run.ranks, StopSignal()
    if ranks.rank == 0:
        make_folder(run.folder)
    run_log = RunLog(
        run.folder,
        active=ranks.rank == 0,
        print_steps=config.print_steps,
        resume_from=run.last_logged,
    )
    with closing(run_log):
        cached = config.compile_cache and ranks.size == 1
        with CompileCache({**run.graph_values(), "files": dict(files)}, cached) as graphs:
            ms.set_seed(config.seed)
            task = create_task(run)
            _restore(run, task)  # may refuse, before anything is described anew
            ranks.run_on_rank_0(lambda: _describe(run, files))
            loop = _Loop(run, task, run_log, stop)
            # Epochs, the first one from the batch where a resumed run goes on.
            first_epoch, first_batch = run.start
            for epoch in range(first_epoch, config.epoch_size):
                if not loop.train_epoch(epoch, first_batch):
                    if run.val_loader and not loop.validated:
                        graphs.stopped_early()
                    return _stopped(stop, epoch)
                first_batch = 0
            task.finish()
        ranks.run_on_rank_0(run_log.draw_curves)
        _tell_end(run)
    return 0


def _stopped(stop: StopSignal, epoch: int) -> int:
    """Say what ended the run; returns the exit code that shells give to a signal."""
    assert stop.agreed
    name = stop.agreed.name
    log.info("stopped by %s in epoch %d and saved; --resume continues", name, epoch + 1)
    return 128 + stop.agreed


def _tell_end(run: Run) -> None:
    bad = len(run.loader.bad_images)
    log.info(
        "trained %d epochs%s%s; checkpoints in %s",
        run.config.epoch_size,
        f", best validation top-1 {run.checkpoints.best_top1():.2f} %" if run.val_loader else "",
        f", {bad} images could not be used" if bad else "",
        run.folder,
    )


def _describe(run: Run, files: Mapping[str, dict[str, Any]]) -> None:
    """Make the run's folder explain itself."""
    config = run.config
    run.checkpoints.remove_scratch()
    write_text(
        run.folder / CONFIG,
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
    )
    for name, data in files.items():
        write_json(run.folder / name, data)
    write_json(run.folder / "environment.json", environment(config.device_target))
    classes = _count_classes(run)
    write_json(run.folder / CLASSES, asdict(classes))
    log.info(
        "%s on %d images of %d classes, %d batches of %d per epoch%s; run folder %s",
        run.arch.name,
        len(run.loader),
        len(run.classes),
        run.batches_per_epoch,
        config.batch_size,
        f" on each of {run.ranks.size} devices" if run.ranks.size > 1 else "",
        run.folder,
    )
    uneven = describe_imbalance(classes.classes, classes.train, classes.val)
    if uneven:
        log.info("%s%s", uneven, "" if config.balance_classes else BALANCE)


def _count_classes(run: Run) -> ClassCounts:
    train, val = (
        None if loader is None else tuple(loader.class_counts.tolist())
        for loader in (run.loader, run.val_loader)
    )
    assert train is not None
    return ClassCounts(run.classes, train, val)


def _restore(run: Run, task: Task) -> None:
    """Continue from the checkpoint of a resumed run."""
    if run.resumed is None:
        return
    path, (epoch, batch) = run.resumed.path, run.start
    # Settings, which follow from the configuration: it may have changed since.
    own = {"learning_rate", "momentum"}
    if run.config.loss_scale != "dynamic":
        own.add("loss_scale")
    if not run.same_batches:
        # Sums of gradients and the count of steps are of other batches.
        for parameter in task.step.get_parameters():
            if parameter.name == "global_step":
                parameter.set_data(Tensor([run.step_number(epoch, batch)], ms.int32))
            if parameter.name.startswith(("global_step", "gradient_")):
                own.add(parameter.name)
    kept = {name: value for name, value in cell_weights(task.step).items() if name in own}
    load_weights(task.step, {**run.resumed.weights, **kept}, path)
    log.info("resumed from %s, epoch %d, batch %d", path, epoch + 1, batch + 1)


class _Loop:
    """The epochs of a run.

    Args:
        stop: tells of signals, upon which an epoch ends early.

    Attributes:
        validated: at least once.
    """

    def __init__(self, run: Run, task: Task, run_log: RunLog, stop: StopSignal) -> None:
        self.run, self.task, self.run_log, self.stop = run, task, run_log, stop
        config, folder = run.config, run.folder / "trace"
        self.trace = StepTrace(config.profiled_steps, folder, config.device_target, run.ranks)
        self.validated = False

    def train_epoch(self, epoch: int, first: int) -> bool:
        """Train from batch ``first`` of an epoch to its end; False when a signal ended it."""
        run, config, task, stop = self.run, self.run.config, self.task, self.stop
        title = f"epoch {epoch + 1}/{config.epoch_size}"
        self.run_log.start_epoch(title, run.batches_per_epoch, first)
        losses: list[float] = []
        pending: list[tuple[Tensor, ...]] = []  # outputs of the steps since the last line
        begin = mark = time.perf_counter()
        for batch, (images, labels) in enumerate(run.loader.epoch(epoch, first), start=first + 1):
            stop.listen()

            # Forward, backward and update in one compiled graph.
            with self.trace.step(epoch * run.batches_per_epoch + batch):
                pending.append(task.train_batch(Tensor(images), Tensor(labels), epoch, batch))

            # Its outputs are read seldom, since reading waits for the device. A single process
            # looks for signals at every step, several agree on them when they meet.
            last = batch == run.batches_per_epoch
            stopping = stop.received is not None and run.ranks.size == 1
            if last or batch % config.log_steps == 0 or stopping:
                losses += self._write_line(pending, epoch, batch, mark)
                pending, mark = [], time.perf_counter()
            else:
                self.run_log.advance()

            # Checkpoints within the epoch; one at its end follows the validation.
            if last:
                break
            if stop.agreed:
                self._save(epoch, batch)
                self.run_log.end_epoch()
                return False
            if config.save_checkpoint_steps and batch % config.save_checkpoint_steps == 0:
                self._save(epoch, batch)
        self.run_log.end_epoch()
        images = len(losses) * config.batch_size * run.ranks.size
        speed = images / (time.perf_counter() - begin)
        final = epoch + 1 == config.epoch_size
        self._end_epoch(epoch + 1, losses, speed, final or bool(stop.agreed))
        return final or not stop.agreed

    def _write_line(
        self, pending: list[tuple[Tensor, ...]], epoch: int, batch: int, since: float
    ) -> list[float]:
        """Read the outputs of the last steps and write a line of the run's log; their losses."""
        run, config = self.run, self.run.config
        losses, hits = self._read(pending)
        seconds = time.perf_counter() - since
        self._check_losses(losses, epoch, batch)
        images = len(losses) * config.batch_size * run.ranks.size
        line = {
            "loss": sum(losses) / len(losses),
            "top1": 100 * hits / images,
            "lr": float(run.rates[run.step_number(epoch, batch) - 1]),
            "images_per_second": round(images / seconds, 1),
            "progress": epoch + batch / run.batches_per_epoch,
        }
        extra = self.task.observe(pending, epoch, batch)
        line.update(extra)
        last = batch == run.batches_per_epoch
        self.run_log.record("train", *((epoch + 1, 0) if last else (epoch, batch)), **line)
        self.run_log.step(epoch, batch, line["loss"], line["images_per_second"])
        self.run_log.advance(
            loss=f"{line['loss']:.3f}",
            top1=f"{line['top1']:.1f}",
            lr=f"{line['lr']:.4f}",
            ips=line["images_per_second"],
            **extra,
        )
        return losses

    def _read(self, pending: list[tuple[Tensor, ...]]) -> tuple[list[float], float]:
        """Losses of the given steps and their correct predictions, over all ranks.

        Ranks tell each other their signals too, so that all stop at the same step.
        """
        told = self.run.ranks.gather(
            {
                "losses": [float(outputs[0].asnumpy()) for outputs in pending],
                "hits": sum(float(outputs[1].asnumpy()) for outputs in pending),
                "stop": self.stop.received,
            }
        )
        self.stop.agree([own["stop"] for own in told])
        by_step = zip(*(own["losses"] for own in told), strict=True)
        return [sum(losses) / len(told) for losses in by_step], sum(own["hits"] for own in told)

    def _check_losses(self, losses: list[float], epoch: int, batch: int) -> None:
        """Raise Fault for a loss that is no number, with the batch where it was first seen."""
        for wrong, loss in enumerate(losses, start=batch - len(losses) + 1):
            if not math.isfinite(loss):
                raise Fault(
                    f"loss is {loss} at batch {wrong} of epoch {epoch + 1} (step "
                    f"{self.run.step_number(epoch, wrong)}); the checkpoints saved so far are "
                    "untouched; a lower lr_init, clip_norm or warmup_epochs (one_cycle has none) "
                    "may help"
                )

    def _end_epoch(self, done: int, losses: Sequence[float], speed: float, final: bool) -> None:
        """Validate and save after ``done`` epochs, as often as asked, and always at the end.

        Args:
            losses: of the last epoch's steps, as far as this process trained them.
            speed: images per second over these.
        """
        run, config = self.run, self.run.config
        metrics: dict[str, float] = {}
        text = (
            f"epoch {done}/{config.epoch_size}: loss {sum(losses) / len(losses):.4f}, "
            f"lr {run.rates[run.step_number(done, 0) - 1]:.5f}, {speed:.1f} images/s"
        )
        if run.val_loader and (final or done % config.val_interval_epochs == 0):
            self._update_validation_network()
            result = self.task.evaluate(run.val_loader)
            self.validated = True
            metrics = result.metrics()
            self.run_log.record("val", done, 0, progress=done, images=result.images, **metrics)
            text += (
                f"; validation top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
                f"loss {result.loss:.4f}"
            )
            if result.networks:
                own = ", ".join(f"{name} {top1:.2f}" for name, top1 in result.networks.items())
                text += f" (mean over networks; {own})"
        if final or metrics or done % config.save_checkpoint_epochs == 0:
            self._save(done, 0, metrics)
        log.info("%s", text)

    def _update_validation_network(self) -> None:
        """Give the validation network the current weight average, or the weights without one.

        Moving statistics are those of rank 0, which are those that are saved; each rank has seen
        other images.
        """
        assert self.task.network is not None
        current = {parameter.name: parameter for parameter in self.task.step.get_parameters()}
        prefix = EMA_PREFIX if self.run.config.ema_decay else ""
        parameters = list(self.task.network.get_parameters())
        for parameter in parameters:
            name = parameter.name
            source = current[prefix + name if is_averaged(name) else name]
            overwrite(parameter, source.value())
        statistics = [parameter for parameter in parameters if "moving_" in parameter.name]
        if statistics and self.run.ranks.size > 1:
            own = np.concatenate([parameter.asnumpy() for parameter in statistics])
            values = self.run.ranks.broadcast(own)
            ends = np.cumsum([len(parameter) for parameter in statistics])
            # The last of the parts, behind the last end, is empty.
            for parameter, value in zip(statistics, np.split(values, ends), strict=False):
                overwrite(parameter, Tensor(value))

    def _save(self, epoch: int, batch: int, metrics: Mapping[str, float] | None = None) -> None:
        run = self.run
        meta = replace(run.meta, epoch=epoch, step=batch, metrics=metrics or {})
        run.ranks.run_on_rank_0(lambda: run.checkpoints.save(cell_weights(self.task.step), meta))
