r"""What test_distributed.py runs on several processes, and once on a single one for comparison.

    bash scripts/run_train.sh --device_num 2 --program tests/devices/distributed_worker.py \
        digits --data_path DATA --folder OUT

Rank 0 writes what all ranks found to ``OUT/found.json``. With one process, batches are larger, by
the number of processes that it is compared with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from src.cli import Parser, build_config
from src.config import PRESETS, SEARCH_PRESETS, OneShotConfig, SearchConfig, TrainConfig
from src.errors import Fault
from src.search.one_shot_training import OneShotTrainer
from src.search.superkernel_search import Searcher
from src.spnasnet import SPNASNet
from src.training.evaluation import evaluate
from src.training.loop import Trainer
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
    "blocks": ["r1_k3_s11_e1_i8_o8_noskip", "r1_k3_s22_e3_i8_o16", "r1_k5_s11_e3_i16_o16"],
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
        for stride, inner in ((2, 8), (1, 16), (1, 16))
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


def digest(trainer: Trainer) -> str:
    """Digest of everything that training changes and that is the same on all ranks.

    Moving statistics differ from rank to rank.
    """
    code = hashlib.sha256()
    for parameter in trainer.step.get_parameters():
        if "moving_" not in parameter.name:
            code.update(parameter.name.encode() + parameter.asnumpy().tobytes())
    return code.hexdigest()


class WithoutBN(Trainer):
    """Trains the network whose convolutions have biases and that has no batch normalisation."""

    def _create_network(self) -> nn.Cell:
        return SPNASNet(self.arch, len(self.classes), folded=True)


class FrozenBN(Trainer):
    """Trains with batch normalisation in evaluation form.

    In it the output for an image does not depend on the other images of its batch.
    """

    def _build(self) -> None:
        super()._build()
        self.step.network.set_train(False)


class FrozenBNSearch(FrozenBN, Searcher):
    """A search."""


class FrozenBNOneShot(FrozenBN, OneShotTrainer):
    """Training of a one-shot supernet."""


class OfAllRanks(Trainer):
    """On one process: the batches of every rank in turn, whose gradients are accumulated."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        if self.device_num == 1:
            self.loader.epoch = self._in_turn

    def _in_turn(self, epoch: int, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        images, labels = (
            np.concatenate(parts)
            for parts in zip(*type(self.loader).epoch(self.loader, epoch, first), strict=True)
        )
        for start in range(0, len(images) - PROCESSES * BATCH + 1, PROCESSES * BATCH):
            for rank in range(PROCESSES):
                own = slice(start + rank, start + PROCESSES * BATCH, PROCESSES)
                yield images[own], labels[own]


class Disturbed(WithoutBN):
    """Only the last rank gets a signal, or not-a-number, at the third batch."""

    DISTURBANCE = ""

    def _step_inputs(self, epoch: int, batch: int) -> tuple[Tensor, ...]:
        if batch == 3 and self.rank == self.device_num - 1:
            if self.DISTURBANCE == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                # The classifier's: ReLU turns not-a-number into 0 on CPU.
                weight = self.step.weights[-1]
                weight.set_data(Tensor(np.full(weight.shape, np.nan, np.float32)))
        return super()._step_inputs(epoch, batch)


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
            "train_images": 20 * PROCESSES * BATCH,
            "checkpoint_path": str(self.folder / name),
            **keys,
        }
        return build_config(TrainConfig, values, name)

    def train(self, kind: type[Trainer], name: str, **keys: Any) -> dict[str, Any]:
        trainer = kind(self.config(name, **keys))
        code = trainer.run()
        return {"exit code": code, "digests": trainer.ranks.gather(digest(trainer))}

    def search(self) -> dict[str, Any]:
        values = {
            **SEARCH_PRESETS["digits"],
            "dataset_name": "digits",
            "data_path": self.args.data_path,
            **COMMON,
            "space": str(self.folder / "space.json"),
            "cost": "params",
            "target": 0.01,
            "batch_size": self.batch,
            "train_images": 20 * PROCESSES * BATCH,
            "checkpoint_path": str(self.folder / "search"),
            "indicator_keep_prob": 0.8,
            "cpu_kernels": "off",
        }
        trainer = FrozenBNSearch(build_config(SearchConfig, values, "search"))
        trainer.run()
        state = [
            value.asnumpy().tolist() for value in (trainer.decisions.thresholds, *trainer.state())
        ]
        return {
            "digests": trainer.ranks.gather(digest(trainer)),
            "states": trainer.ranks.gather(state),
        }

    def one_shot(self) -> dict[str, Any]:
        values = {
            **IMAGE_KEYS,
            **COMMON,
            "dataset_name": "digits",
            "data_path": self.args.data_path,
            "layers": 3,
            "lr_init": 0.025,
            "batch_size": self.batch,
            "train_images": 20 * PROCESSES * BATCH,
            "checkpoint_path": str(self.folder / "one_shot"),
        }
        trainer = FrozenBNOneShot(build_config(OneShotConfig, values, "one_shot"))
        trainer.run()
        return {"digests": trainer.ranks.gather(digest(trainer))}

    def evaluation(self) -> dict[str, Any]:
        """Evaluation of an untrained network on images of which one is broken."""
        trainer = Trainer(
            self.config("evaluation", val_data_path=str(self.args.broken), val_while_train=True)
        )
        trainer._build()
        result = evaluate(trainer.val_network, trainer.val_loader, ranks=trainer.ranks)
        return {
            **vars(result),
            "bad": trainer.ranks.gather(len(trainer.val_loader.bad_images)),
            "shares": trainer.ranks.gather(trainer.val_loader._indices(0).tolist()),
        }

    def overflow(self) -> dict[str, Any]:
        """A gradient that overflows on the last rank only.

        All ranks must leave the step out and halve the scale.
        """
        trainer = WithoutBN(self.config("overflow", amp_level="O3", cpu_kernels="off"))
        trainer._build()
        before = digest_of_weights(trainer)
        last = trainer.rank == trainer.device_num - 1
        for images, labels in trainer.loader.epoch(0):
            trainer.step(
                Tensor(images * (300 if last else 1e-3)),
                Tensor(labels),
                Tensor(np.ones(1, np.float32)),
            )
            break
        return {
            "scales": trainer.ranks.gather(float(trainer.step.loss_scale.scale.asnumpy())),
            "unchanged": trainer.ranks.gather(digest_of_weights(trainer) == before),
        }

    def not_a_number(self) -> dict[str, Any]:
        Disturbed.DISTURBANCE = "nan"
        trainer = Disturbed(self.config("nan"))
        try:
            trainer.run()
        except Fault as error:
            return {"errors": trainer.ranks.gather(str(error))}
        return {}

    def signal(self) -> dict[str, Any]:
        Disturbed.DISTURBANCE = "signal"
        return self.train(Disturbed, "signal")

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
        found = {
            "plain": self.train(WithoutBN, "plain"),
            "rest": self.train(
                WithoutBN,
                "rest",
                accumulate_steps=2,
                clip_norm=0.5,
                ema_decay=0.9,
                optimizer="rmsprop",
                lr_init=0.01,
            ),
            "search": self.search(),
            "one_shot": self.one_shot(),
            "evaluation": self.evaluation(),
        }
        alone = {"batch_size": BATCH, "accumulate_steps": PROCESSES} if self.processes == 1 else {}
        found["own_statistics"] = self.train(
            OfAllRanks, "own_statistics", train_images=4 * PROCESSES * BATCH, **alone
        )
        # One step: at its start this network turns the last bit of a gradient into a percent of the
        # next one.
        found["published"] = self.train(
            OfAllRanks,
            "published",
            arch="spnas_pixel1_32",
            image_height=32,
            resize=32,
            image_width=32,
            train_images=PROCESSES * BATCH,
            lr_init=0.01,
            **alone,
        )
        if self.processes > 1:
            found.update(
                overflow=self.overflow(),
                nan=self.not_a_number(),
                signal=self.signal(),
                alone=self.alone(),
            )
        return found


def digest_of_weights(trainer: Trainer) -> str:
    return hashlib.sha256(
        b"".join(parameter.asnumpy().tobytes() for parameter in trainer.step.weights)
    ).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    for flag in ("--dataset_name", "--device_target", "--data_path"):
        parser.add_argument(flag)
    for flag in ("--broken", "--folder"):
        parser.add_argument(flag, type=Path)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    found = Work(args).all()
    if os.environ.get("RANK_ID", "0") == "0":
        (args.folder / "found.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    run_main(main)
