r"""What test_distributed.py runs on several processes, and once on a single one for comparison.

    bash scripts/run_train.sh --device_num 2 --program tests/devices/distributed_worker.py \
        digits --data_path DATA --folder OUT

Rank 0 writes what all ranks found to ``OUT/found.json``. With one process, batches are larger, by
the number of processes that it is compared with.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.arch.architecture import load_architecture
from src.arch.cost_table import arithmetic_table
from src.arch.space import load_space
from src.checkpoint.restore import overwrite
from src.cli import Parser, build_config
from src.config import PRESETS, SEARCH_PRESETS, OneShotConfig, SearchConfig, TrainConfig
from src.dataset import Loader
from src.errors import Fault
from src.search.elastic_training import ElasticTraining
from src.search.one_shot_training import OneShotTraining, one_shot_space
from src.search.superkernel_search import Phases, SuperkernelSearch
from src.spnasnet import SPNASNet
from src.training.loop import train
from src.training.run import Run, prepare
from src.training.single import SingleNetwork
from src.training.task import Task
from src.utils import run_main, setup_device

PROCESSES = 2
BATCH = 8  # images per batch on each of the processes
ARCH = {
    "format": "spnas-architecture",
    "version": 1,
    "name": "tiny",
    "image_size": 16,
    "stem_channels": 8,
    "stem_stride": 2,
    "blocks": ["r1_k3_s22_e3_i8_o16", "r1_k5_s11_e3_i16_o16"],
    "head_channels": 32,
    "bn_epsilon": 1e-5,
    "provenance": {},
}
SPACE = {
    "format": "spnas-space",
    "version": 1,
    "name": "tiny",
    "image_size": 16,
    "stem_channels": 8,
    "stem_stride": 2,
    "layers": ["r1_k3_s11_e1_i8_o8_noskip"]
    + [
        {
            "stride": stride,
            "in_channels": inner,
            "out_channels": 16,
            "kernel_sizes": [3, 5],
            "expansions": [3, 6],
            "skippable": stride == 1,
        }
        for stride, inner in ((2, 8), (1, 16))
    ],
    "head_channels": 32,
    "bn_epsilon": 1e-3,
    "provenance": {},
}
COMMON = {
    "augment": False,
    "image_height": 16,
    "image_width": 16,
    "resize": 16,
    "epoch_size": 1,
    "log_steps": 1,
    "lr_init": 0.1,
    "lr_scheduler": "constant",
    "val_while_train": False,
    "compile_cache": False,
}
IMAGE_KEYS = {key: PRESETS["digits"][key] for key in ("name", "mean", "std")}


def digest(task: Task) -> str:
    """Of all that training changes, but for moving statistics, which differ between ranks."""
    code = hashlib.sha256()
    for parameter in task.step.get_parameters():
        if "moving_" not in parameter.name:
            code.update(parameter.name.encode() + parameter.asnumpy().tobytes())
    return code.hexdigest()


def digest_of_weights(task: SingleNetwork) -> str:
    """Of what the optimizer changes."""
    weights = [parameter.asnumpy().tobytes() for parameter in task.step.update.weights]
    return hashlib.sha256(b"".join(weights)).hexdigest()


def without_bn(run: Run) -> SingleNetwork:
    """The network whose convolutions have biases and that has no batch normalisation."""
    return SingleNetwork(run, network_without_bn)


def network_without_bn(run: Run) -> nn.Cell:
    """See above."""
    return SPNASNet(run.arch, len(run.classes), folded=True)


def frozen(task: Task) -> Task:
    """Batch normalisation in evaluation form, in which an image does not depend on its batch."""
    task.step.network.set_train(False)
    return task


def in_turn(loader: Loader, epoch: int, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """On one process: the batches of every rank in turn, whose gradients are accumulated."""
    batches = Loader.epoch(loader, epoch, first)
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    for start in range(0, len(images) - PROCESSES * BATCH + 1, PROCESSES * BATCH):
        for rank in range(PROCESSES):
            own = slice(start + rank, start + PROCESSES * BATCH, PROCESSES)
            yield images[own], labels[own]


class Disturbed(SingleNetwork):
    """The last rank alone gets a signal, or not-a-number, at the third batch, once it is set so."""

    def __init__(self, run: Run) -> None:
        super().__init__(run, network_without_bn)
        self._disturbance = ""

    def set_disturbance(self, disturbance: str) -> None:
        """To be trained anew with a disturbance, by the graph that is compiled already."""
        overwrite(self.step.update.optimizer.global_step, Tensor([0], ms.int32))
        ranks = self._run.ranks
        self._disturbance = disturbance if ranks.rank == ranks.size - 1 else ""

    def train_batch(
        self, images: Tensor, labels: Tensor, epoch: int, batch: int
    ) -> tuple[Tensor, ...]:
        """As ever, and a disturbance."""
        if batch == 3 and self._disturbance == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if batch == 3 and self._disturbance == "nan":
            # Of the classifier: ReLU turns not-a-number into 0 on CPU.
            weight = self.step.update.weights[-1]
            weight.set_data(Tensor(np.full(weight.shape, np.nan, np.float32)))
        return super().train_batch(images, labels, epoch, batch)


class Work:
    """All that one process does."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.folder
        self.processes = int(os.environ.get("MS_WORKER_NUM", 1))
        self.batch = BATCH * PROCESSES // self.processes
        for name, value in (("arch", ARCH), ("space", SPACE)):
            (self.folder / f"{name}.{os.getpid()}").write_text(json.dumps(value))
            os.replace(self.folder / f"{name}.{os.getpid()}", self.folder / f"{name}.json")

    def config(self, name: str, **keys: Any) -> TrainConfig:
        values = {
            **PRESETS["digits"],
            "dataset_name": "digits",
            "data_path": self.args.data_path,
            **COMMON,
            "arch": str(self.folder / "arch.json"),
            "batch_size": self.batch,
            "train_images": 10 * PROCESSES * BATCH,
            "checkpoint_path": str(self.folder / name),
            **keys,
        }
        return build_config(TrainConfig, values, name)

    def run(self, name: str, **keys: Any) -> Run:
        """A run that is ready to be trained."""
        config = self.config(name, **keys)
        return prepare(config, load_architecture(config.arch))

    def train(self, run: Run, create_task: Callable[[Run], Task]) -> dict[str, Any]:
        """Train; what all ranks have at the end."""
        tasks: list[Task] = []

        def create(run: Run) -> Task:
            tasks.append(create_task(run))
            return tasks[0]

        code = train(run, create, {})
        return {"exit code": code, "digests": run.ranks.gather(digest(tasks[0]))}

    def search(self) -> dict[str, Any]:
        values = {
            **SEARCH_PRESETS["digits"],
            "dataset_name": "digits",
            "data_path": self.args.data_path,
            **COMMON,
            "space": str(self.folder / "space.json"),
            "cost": "params",
            "target": 0.006,
            "batch_size": self.batch,
            "train_images": 20 * PROCESSES * BATCH,
            "checkpoint_path": str(self.folder / "search"),
            "cpu_kernels": "off",
        }
        config = build_config(SearchConfig, values, "search")
        space = load_space(config.space)
        run = prepare(config, space.largest(), space)
        table = arithmetic_table(space, "params", len(run.classes), (16, 16))
        phases = Phases.of(config, run.batches_per_epoch)
        tasks: list[SuperkernelSearch] = []

        def create(run: Run) -> Task:
            tasks.append(SuperkernelSearch(run, space, table, config.target, phases))
            return frozen(tasks[0])

        found = self.train(run, create)
        thresholds = tasks[0].step.thresholds
        values_at_the_end = (thresholds, *tasks[0]._state())
        state = [value.asnumpy().tolist() for value in values_at_the_end]
        return {**found, "states": run.ranks.gather(state)}

    def elastic(self) -> dict[str, Any]:
        keys = {"clip_norm": 1.0, "cpu_kernels": "off"}
        config = self.config("elastic", arch=None, space=str(self.folder / "space.json"), **keys)
        space = load_space(config.space)
        run = prepare(config, space.largest(), space)
        return self.train(run, lambda run: frozen(ElasticTraining(run, space)))

    def one_shot(self, name: str, cpu_kernels: str) -> dict[str, Any]:
        """With the operators each rank has its own statistics: they have no other gradients."""
        values = {
            **IMAGE_KEYS,
            **COMMON,
            "dataset_name": "digits",
            "data_path": self.args.data_path,
            "layers": 1,
            "num_choices": 2,
            "lr_init": 0.025,
            "batch_size": self.batch,
            "train_images": 10 * PROCESSES * BATCH,
            "checkpoint_path": str(self.folder / name),
            "cpu_kernels": cpu_kernels,
        }
        config = build_config(OneShotConfig, values, name)
        space = one_shot_space(config.space, config.layers, config.num_choices)
        run = prepare(config, space.largest(), space)
        freeze = (lambda task: task) if run.kernels else frozen
        return self.train(run, lambda run: freeze(OneShotTraining(run, space)))

    def evaluation(self) -> dict[str, Any]:
        """Of an untrained network on images of which one is broken."""
        run = self.run("evaluation", val_data_path=str(self.args.broken), val_while_train=True)
        ms.set_seed(run.config.seed)
        result = SingleNetwork(run).evaluate(run.val_loader)
        return {
            **vars(result),
            "bad": run.ranks.gather(len(run.val_loader.bad_images)),
            "shares": run.ranks.gather(run.val_loader._indices(0).tolist()),
        }

    def overflow(self) -> dict[str, Any]:
        """A gradient that overflows on the last rank only.

        All ranks must leave the step out and halve the scale.
        """
        run = self.run("overflow", amp_level="O3", cpu_kernels="off")
        ms.set_seed(run.config.seed)
        task = without_bn(run)
        before = digest_of_weights(task)
        factor = 300 if run.ranks.rank == run.ranks.size - 1 else 1e-3
        images, labels = next(iter(run.loader.epoch(0)))
        task.step(Tensor(images * factor), Tensor(labels), Tensor(np.ones(1, np.float32)))
        scale = float(task.step.update.loss_scale.scale.asnumpy())
        return {
            "scales": run.ranks.gather(scale),
            "unchanged": run.ranks.gather(digest_of_weights(task) == before),
        }

    def plain(self) -> tuple[dict[str, Any], Disturbed]:
        """An undisturbed training, and what was trained."""
        tasks: list[Disturbed] = []

        def create(run: Run) -> Task:
            tasks.append(Disturbed(run))
            return tasks[0]

        return self.train(self.run("plain"), create), tasks[0]

    def not_a_number(self, task: Disturbed) -> dict[str, Any]:
        """The error that all ranks raise when one of them has seen it."""
        task.set_disturbance("nan")
        run = self.run("nan")
        try:
            train(run, lambda _: task, {})
        except Fault as error:
            return {"errors": run.ranks.gather(str(error))}
        return {}

    def signal(self, task: Disturbed) -> dict[str, Any]:
        """The end of a run of which one rank got a signal."""
        task.set_disturbance("signal")
        return self.train(self.run("signal"), lambda _: task)

    def alone(self) -> dict[str, Any]:
        """What all ranks hear when only rank 0 fails."""
        ranks = setup_device("CPU", 0)

        def work() -> None:
            raise Fault("disk full")

        try:
            ranks.run_on_rank_0(work)
        except Fault as error:
            return {"errors": ranks.gather(str(error))}
        return {}

    def all(self) -> dict[str, Any]:
        """Everything, by name."""
        rest = self.run(
            "rest",
            accumulate_steps=2,
            clip_norm=0.5,
            ema_decay=0.9,
            optimizer="rmsprop",
            lr_init=0.01,
        )
        plain, task = self.plain()
        found = {
            "plain": plain,
            "rest": self.train(rest, without_bn),
            "search": self.search(),
            "elastic": self.elastic(),
            "one_shot": self.one_shot("one_shot", "off"),
            "evaluation": self.evaluation(),
            "own_statistics": self.of_all_ranks(
                "own_statistics", train_images=4 * PROCESSES * BATCH
            ),
        }
        if self.processes > 1:
            found["one_shot_operators"] = self.one_shot("one_shot_operators", "auto")
            found["overflow"] = self.overflow()
            found["signal"] = self.signal(task)
            found["nan"] = self.not_a_number(task)
            found["alone"] = self.alone()
        return found

    def of_all_ranks(self, name: str, **keys: Any) -> dict[str, Any]:
        """A training in which one process accumulates the gradients of all ranks' batches."""
        if self.processes > 1:
            return self.train(self.run(name, **keys), SingleNetwork)
        run = self.run(name, batch_size=BATCH, accumulate_steps=PROCESSES, **keys)
        run.loader.epoch = functools.partial(in_turn, run.loader)
        return self.train(run, SingleNetwork)


def note_writes(folder: Path) -> set[str]:
    """Files below a folder that Python opens to write, or gives a new name, from now on."""
    written: set[str] = set()

    def note(event: str, values: tuple[Any, ...]) -> None:
        writes = event == "open" and set(values[1] or "") & set("wax+")
        if writes or event == "os.rename":
            path = os.path.abspath(os.fsdecode(values[0])) if not isinstance(values[0], int) else ""
            if path.startswith(f"{folder.resolve()}{os.sep}"):
                written.add(path)

    sys.addaudithook(note)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    for flag in ("--dataset_name", "--device_target", "--data_path"):
        parser.add_argument(flag)
    for flag in ("--broken", "--folder"):
        parser.add_argument(flag, type=Path)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    work = Work(args)
    written = note_writes(args.folder)
    found = work.all()
    found["written"] = setup_device("CPU", 0).gather(sorted(written))
    if os.environ.get("RANK_ID", "0") == "0":
        (args.folder / "found.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    run_main(main)
