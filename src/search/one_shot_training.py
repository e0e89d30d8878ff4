"""Training of a one-shot supernet, one random path a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mindspore import Tensor, nn

from src.arch.architecture import Architecture
from src.arch.space import BlockLayer, SearchSpace, load_space
from src.config import OneShotConfig
from src.CrossEntropySmooth import CrossEntropySmooth
from src.errors import UserError
from src.search.one_shot import OneShotStep, OneShotSupernet, PathMomentum, draw_path
from src.training.loop import Trainer

# What a random draw is for, beside seed and place.
_TRAINING, _VALIDATION = 0, 1


def one_shot_space(name_or_file: str, layers: int, num_choices: int) -> SearchSpace:
    """The first layers of a space, with the first choices of each."""
    space = load_space(name_or_file)
    if not all(isinstance(layer, BlockLayer) for layer in space.layers):
        raise UserError(
            f"space '{space.name}' is none of a one-shot supernet, whose layers all choose among blocks"
        )
    most = min(len(layer.names) for layer in space.layers)
    for what, value, limit in (
        ("layers", layers, len(space.layers)),
        ("num_choices", num_choices, most),
    ):
        if not 1 <= value <= limit:
            raise UserError(f"{what} is {value}, space '{space.name}' has {limit}")
    chosen = tuple(
        replace(layer, names=layer.names[:num_choices]) for layer in space.layers[:layers]
    )
    if chosen == space.layers:
        return space
    return replace(space, name=f"{space.name}_{layers}x{num_choices}", layers=chosen)


class RandomPaths:
    """The supernet as an evaluation takes it: each batch goes a random path, the same in every evaluation."""

    def __init__(self, network: nn.Cell, space: SearchSpace, seed: int) -> None:
        self._network, self._space, self._seed, self._batch = network, space, seed, 0

    def __call__(self, images: Tensor) -> Tensor:
        self._batch += 1
        return self._network(
            images, Tensor(draw_path(self._space, self._seed, _VALIDATION, self._batch))
        )


class OneShotTrainer(Trainer):
    """One training of a supernet; the path of each step depends on seed, epoch and batch alone, so all ranks agree."""

    def __init__(self, config: OneShotConfig) -> None:
        self.space = one_shot_space(config.space, config.layers, config.num_choices)
        super().__init__(config)
        self.meta = replace(self.meta, space=self.space.to_dict())

    def _architecture(self) -> Architecture:
        return self.space.largest()

    def _own_files(self) -> dict[str, dict[str, Any]]:
        return {"space.json": self.space.to_dict()}

    def _graph_values(self) -> dict[str, Any]:
        return {**super()._graph_values(), **self._own_files()}

    def _create_network(self) -> OneShotSupernet:
        return OneShotSupernet(
            self.space, len(self.classes), momentum=self.config.bn_momentum, kernels=self.kernels
        )

    def _create_step(self) -> OneShotStep:
        config, network = self.config, self._create_network()
        optimizer = PathMomentum(network, self.rates, config.momentum, config.weight_decay)
        return OneShotStep(
            self._mixed(network),
            CrossEntropySmooth(config.label_smooth_factor),
            optimizer,
            config,
            mixed_precision=self.amp_level != "O0",
            device_num=self.device_num,
        )

    def _step_inputs(self, epoch: int, batch: int) -> tuple[Tensor, ...]:
        return (Tensor(draw_path(self.space, self.config.seed, _TRAINING, epoch, batch)),)

    def _average_network(self) -> Callable[[Tensor], Tensor]:
        return RandomPaths(super()._average_network(), self.space, self.config.seed)
