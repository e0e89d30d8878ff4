"""What there is to measure for a search space: its blocks, and whole networks to compare with."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.arch.architecture import load_architecture, shipped_architectures
from src.arch.blocks import AnyBlock
from src.arch.cost_table import CostTableError, arithmetic_table, measured_name
from src.arch.sampling import sample_decisions
from src.arch.space import SearchSpace, SpaceError
from src.config import ProfileConfig
from src.errors import UserError
from src.latency.machine import processor_name
from src.latency.model import Model
from src.latency.runtimes import Runtime

# Added to the seed for the networks of a verification: far from the seeds of the fitted networks,
# which are one apart.
VERIFICATION_SEED = 1000


@dataclass(frozen=True)
class ProfilePlan:
    """What there is to measure for a space under a configuration."""

    space: SearchSpace
    config: ProfileConfig

    @property
    def image_size(self) -> int:
        """Side of the square images, pixels."""
        return self.config.input_size or self.space.image_size

    @property
    def runtime(self) -> Runtime:
        """What computes."""
        config = self.config
        return Runtime(
            config.runtime, config.precision, config.threads, config.device, config.device_id
        )

    @property
    def device(self) -> str:
        """For example "AMD EPYC", the processor's own name, or "Ascend310"."""
        return processor_name() if self.config.device == "CPU" else self.config.device

    def blocks(self) -> dict[str, dict[str, Model]]:
        """The block of each searched layer and choice but SKIP; equal blocks are equal models."""
        size = (self.image_size, self.image_size)
        return {
            name: {choice: self._block(layer.block(choice), size) for choice in layer.choices}
            for name, layer, size in self.space.searched_inputs(size)
        }

    def _block(self, block: AnyBlock, size: tuple[int, int]) -> Model:
        height, width = size
        shape = (self.config.batch_size, block.in_channels, height, width)
        return Model(measured_name(block, height, width), block, shape)

    def network(self, decisions: Sequence[str], name: str) -> Model:
        """A whole network of the space."""
        shape = (self.config.batch_size, 3, self.image_size, self.image_size)
        return Model(name, self.space.derive(decisions, name), shape, self.config.num_classes)

    def networks(self, chosen: dict[str, list[str]]) -> list[Model]:
        """The networks of decisions by name."""
        return [self.network(decisions, name) for name, decisions in chosen.items()]

    def extremes(self) -> list[list[str]]:
        """Decisions of the smallest and the largest network, by multiply-adds."""
        layers = arithmetic_table(self.space, "macs").layers.values()
        return [
            [pick(costs, key=lambda choice: costs[choice]) for costs in layers]
            for pick in (min, max)
        ]

    def evenly_spaced(self, count: int, seed: int) -> list[list[str]]:
        """Decisions of random networks, one in each of ``count`` equal parts of the range of MACs.

        A part in which the space has no network is left out.
        """
        table = arithmetic_table(self.space, "macs")
        (low, high), found = table.range(), []
        half = (high - low) / count / 2
        for index in range(count):
            target = low + (2 * index + 1) * half
            with suppress(CostTableError):  # a small space has gaps
                found += sample_decisions(
                    self.space, table, target, 1, tolerance=half / target, seed=seed + index
                )
        return found

    def uniform(self, count: int, seed: int) -> list[list[str]]:
        """Decisions of random networks, every choice of a layer equally likely."""
        random = np.random.default_rng(seed)
        return [
            [str(random.choice(layer.names)) for layer in self.space.searched.values()]
            for _ in range(count)
        ]

    def networks_to_fit(self, count: int) -> dict[str, list[str]]:
        """Decisions of the smallest, the largest and ``count`` networks between them, by name."""
        chosen = [*self.extremes(), *self.evenly_spaced(count, self.config.seed)]
        return {f"network{index}": decisions for index, decisions in enumerate(chosen)}

    def networks_to_verify(self, fitted: Collection[str]) -> dict[str, list[str]]:
        """Decisions of random networks, of the shipped and of the given ones of the space, by name.

        Args:
            fitted: decisions, joined by spaces, of networks that are not to be drawn.

        Raises:
            SpaceError: a given architecture is not of the space.
            UserError: two networks have one name, or one that is not free.
        """
        draw = self.uniform if self.config.verify_draw == "uniform" else self.evenly_spaced
        drawn = draw(self.config.verify, self.config.seed + VERIFICATION_SEED)
        new = [decisions for decisions in drawn if " ".join(decisions) not in fitted]
        chosen = {f"random{index}": decisions for index, decisions in enumerate(new)}
        for name in shipped_architectures():
            with suppress(SpaceError):  # those of other spaces
                chosen[name] = self.space.decisions_of(load_architecture(name))
        given = self.config.verify_arch
        for file in given.split(",") if given else ():
            arch = load_architecture(file)
            if re.fullmatch(r"(network|random)\d+", arch.name):
                raise UserError(
                    f"{file}: the name '{arch.name}' is one of those that a verification gives "
                    "itself; change it in the file"
                )
            decisions = self.space.decisions_of(arch)
            if chosen.setdefault(arch.name, decisions) != decisions:
                raise UserError(
                    f"{file}: another network to verify has the name '{arch.name}' too; change "
                    "it in the file"
                )
        return chosen

    def settings(self, runtime_version: str, purpose: str) -> dict[str, Any]:
        """All that the samples of a measurement depend on (``Session``)."""
        keys = ("device", "device_id", "threads", "precision", "batch_size", "num_classes", "seed")
        return {
            "purpose": purpose,
            "space": self.space.to_dict(),
            "runtime": runtime_version,
            "image_size": self.image_size,
            **{key: getattr(self.config, key) for key in keys},
        }

    def conditions(self) -> dict[str, Any]:
        """``src.latency.tables.CONDITIONS`` of a table."""
        return {
            "threads": self.config.threads,
            "precision": self.config.precision,
            "image_size": self.image_size,
            "num_classes": self.config.num_classes,
        }
