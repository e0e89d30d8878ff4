"""Training of a single network."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mindspore import Tensor, nn

from src.arch.architecture import load_architecture
from src.checkpoint.pretrained import load_pretrained
from src.config import TrainConfig
from src.CrossEntropySmooth import CrossEntropySmooth
from src.dataset import Loader
from src.result_files import ARCH
from src.spnasnet import SPNASNet
from src.training.evaluation import Result, evaluate
from src.training.loop import train
from src.training.optimizer import create_optimizer
from src.training.run import Run, prepare
from src.training.step import TrainStep, Update

log = logging.getLogger(__name__)


def train_network(config: TrainConfig) -> int:
    """Train the network that the configuration names; returns the exit code."""
    assert config.arch is not None  # where no space is given
    arch = load_architecture(config.arch)
    return train(prepare(config, arch), SingleNetwork, {ARCH: arch.to_dict()})


def create_network(run: Run[TrainConfig]) -> nn.Cell:
    """The network of a run's architecture."""
    return SPNASNet(
        run.arch,
        len(run.classes),
        momentum=run.config.bn_momentum,
        kernels=run.kernels,
        bfloat16=run.bfloat16,
    )


class SingleNetwork:
    """A network with fixed layers, as a task of the training loop.

    Args:
        create: makes the network, once to be trained and once to be validated.
    """

    def __init__(
        self,
        run: Run[TrainConfig],
        create: Callable[[Run[TrainConfig]], nn.Cell] = create_network,
    ) -> None:
        self._run = run
        config, network = run.config, create(run)
        if config.pre_trained and not run.resumed:
            log.info("%s", load_pretrained(network, config.pre_trained).summary())
        optimizer = create_optimizer(network, config, run.rates, kernels=run.kernels)
        update = Update(
            network,
            optimizer,
            config,
            mixed_precision=run.mixed_precision,
            device_num=run.ranks.size,
        )
        loss_fn = CrossEntropySmooth(config.label_smooth_factor)
        drops = config.drop_rate > 0
        self.step = TrainStep(run.mixed(network), loss_fn, update, drops=drops).set_train()
        self.network = create(run).set_train(False) if run.val_loader else None

    def train_batch(
        self, images: Tensor, labels: Tensor, epoch: int, batch: int
    ) -> tuple[Tensor, ...]:
        """One step, with dropout of the pooled features."""
        dropout = self._run.dropout(self._run.config.drop_rate, epoch, batch)
        return self.step(images, labels, dropout)

    def observe(self, outputs: list[tuple[Tensor, ...]], epoch: int, batch: int) -> dict[str, Any]:
        """Nothing beside loss and accuracy."""
        return {}

    def evaluate(self, loader: Loader) -> Result:
        """Accuracy on all images of ``loader``."""
        assert self.network is not None
        return evaluate(self.network, loader, ranks=self._run.ranks)

    def finish(self) -> None:
        """Nothing: the checkpoints hold all."""
