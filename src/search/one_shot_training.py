"""Training of a one-shot supernet, one random path per step."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from mindspore import Tensor, nn

from src.arch.space import SearchSpace, load_space
from src.config import OneShotConfig
from src.CrossEntropySmooth import CrossEntropySmooth
from src.dataset import Loader
from src.errors import UserError
from src.result_files import SPACE
from src.search.one_shot import OneShotStep, OneShotSupernet, PathMomentum, draw_path
from src.training.evaluation import Result, evaluate
from src.training.loop import train
from src.training.run import Run, prepare
from src.training.step import Update

# What a random draw is for, beside seed and place.
_TRAINING, _VALIDATION = 0, 1


def one_shot_space(name_or_file: str, layers: int, num_choices: int) -> SearchSpace:
    """The first layers of a space, with the first choices of each."""
    space = load_space(name_or_file)
    searched = space.block_layers
    most = min(len(layer.names) for layer in searched)
    for what, value, limit in (
        ("layers", layers, len(searched)),
        ("num_choices", num_choices, most),
    ):
        if not 1 <= value <= limit:
            raise UserError(f"{what} is {value}, space '{space.name}' has {limit}")
    chosen = tuple(replace(layer, names=layer.names[:num_choices]) for layer in searched[:layers])
    if chosen == searched:
        return space
    return replace(space, name=f"{space.name}_{layers}x{num_choices}", layers=chosen)


def train_supernet(config: OneShotConfig) -> int:
    """Train the supernet of the configuration; returns the exit code."""
    space = one_shot_space(config.space, config.layers, config.num_choices)
    run = prepare(config, space.largest(), space)
    return train(run, lambda run: OneShotTraining(run, space), {SPACE: space.to_dict()})


class RandomPaths:
    """The supernet as an evaluation takes it: each batch goes a random path, always the same."""

    def __init__(self, network: nn.Cell, space: SearchSpace, seed: int) -> None:
        self._network, self._space, self._seed, self._batch = network, space, seed, 0

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of the next batch."""
        self._batch += 1
        path = draw_path(self._space, self._seed, _VALIDATION, self._batch)
        return self._network(images, Tensor(path))


class OneShotTraining:
    """The training of a one-shot supernet as a task of the training loop.

    The path of a step depends only on seed, epoch and batch, so that all ranks agree.
    """

    def __init__(self, run: Run[OneShotConfig], space: SearchSpace) -> None:
        self._run, self._space = run, space
        config, network = run.config, self._create_supernet()
        optimizer = PathMomentum(network, run.rates, config.momentum, config.weight_decay)
        update = Update(
            network,
            optimizer,
            config,
            mixed_precision=run.mixed_precision,
            device_num=run.ranks.size,
        )
        loss_fn = CrossEntropySmooth(config.label_smooth_factor)
        self.step = OneShotStep(run.mixed(network), loss_fn, update).set_train()

    @cached_property
    def network(self) -> OneShotSupernet | None:
        """Made for the first validation: creating all blocks takes as long as a few steps."""
        return self._create_supernet().set_train(False) if self._run.val_loader else None

    def _create_supernet(self) -> OneShotSupernet:
        return OneShotSupernet(
            self._space,
            len(self._run.classes),
            momentum=self._run.config.bn_momentum,
            kernels=self._run.kernels,
        )

    def train_batch(
        self, images: Tensor, labels: Tensor, epoch: int, batch: int
    ) -> tuple[Tensor, ...]:
        """One step, on the path of the batch."""
        path = draw_path(self._space, self._run.config.seed, _TRAINING, epoch, batch)
        return self.step(images, labels, Tensor(path))

    def observe(self, outputs: list[tuple[Tensor, ...]], epoch: int, batch: int) -> dict[str, Any]:
        """Nothing beside loss and accuracy."""
        return {}

    def evaluate(self, loader: Loader) -> Result:
        """Accuracy on random paths, one per batch."""
        assert self.network is not None
        paths = RandomPaths(self.network, self._space, self._run.config.seed)
        return evaluate(paths, loader, ranks=self._run.ranks)

    def finish(self) -> None:
        """Nothing: ``search.py --method one_shot`` goes on from the checkpoints."""
