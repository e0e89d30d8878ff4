"""Training of an elastic supernet: all networks of a space share its weights, and all work.

In a sandwich, the largest network learns the labels of a batch, and the smallest and some random
ones learn what the largest says, by the Kullback-Leibler divergence (Yu et al., BigNAS, arXiv
2003.11142). Random networks that learn the labels, one per step, are the recipe of Shi et al., RSS
(arXiv 2204.09210).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.common.initializer import initializer

from src.arch.cost_table import arithmetic_table
from src.arch.sampling import UniformInCost
from src.arch.space import SearchSpace, load_space
from src.checkpoint.pretrained import load_pretrained
from src.config import TrainConfig
from src.CrossEntropySmooth import CrossEntropySmooth
from src.dataset import Loader
from src.errors import UserError
from src.result_files import SPACE
from src.search.elastic_step import ElasticStep, UsedParts
from src.search.subnet_evaluation import Batches, SubnetEvaluator, forward_parts, parts
from src.spnasnet import SPNASNet
from src.training.evaluation import Result
from src.training.loop import train
from src.training.optimizer import create_optimizer
from src.training.run import Run, prepare
from src.training.step import Update

log = logging.getLogger(__name__)

# What a random draw is for, beside seed and place.
_TRAINING, _VALIDATION = 1 << 21, 1 << 22
VALIDATED = 3  # random networks beside the smallest and the largest, one per third of the costs


def train_elastic(config: TrainConfig) -> int:
    """Train the supernet of the configuration's space; returns the exit code."""
    assert config.space is not None
    space = load_space(config.space)
    if space.one_shot:
        raise UserError(
            f"space '{space.name}' is that of a one-shot supernet, which scripts/run_spnas.py "
            "trains; train.py --space trains superkernels"
        )
    run = prepare(config, space.largest(), space)
    return train(run, lambda run: ElasticTraining(run, space), {SPACE: space.to_dict()})


class Subnets:
    """Which networks of a space learn from a batch, and which are validated.

    Args:
        space: of superkernels.
        config: of it ``subnets``, ``random_subnets`` and ``seed`` count.
        num_classes: outputs of the classifier.

    Attributes:
        validated: decisions of the networks that are validated, by name.
    """

    def __init__(self, space: SearchSpace, config: TrainConfig, num_classes: int) -> None:
        size = config.image_height, config.image_width
        table = arithmetic_table(space, "macs", num_classes, size)
        self._random = UniformInCost(space, table)
        self._seed, self._sandwich = config.seed, config.subnets == "sandwich"
        self._count = config.random_subnets if self._sandwich else 1
        ends = {"largest": space.largest_choices, "smallest": space.smallest_choices}
        self._ends = list(ends.values()) if self._sandwich else []
        self.validated = dict(ends)
        random = np.random.default_rng((self._seed, _VALIDATION))
        bounds = np.linspace(*table.range(), VALIDATED + 1)
        for number, (low, high) in enumerate(pairwise(bounds), start=1):
            drawn = UniformInCost(space, table, low, high).draw(random)
            self.validated[f"random_{number}"] = drawn

    def __len__(self) -> int:
        """Networks per batch."""
        return len(self._ends) + self._count

    def of_step(self, epoch: int, step: int) -> list[tuple[str, ...]]:
        """Decisions of the networks that learn in an optimizer step; in a sandwich largest first.

        All ranks draw the same.
        """
        random = np.random.default_rng((self._seed, epoch, step, _TRAINING))
        return self._ends + [self._random.draw(random) for _ in range(self._count)]


class ElasticTraining:
    """The training of an elastic supernet as a task of the training loop."""

    def __init__(self, run: Run[TrainConfig], space: SearchSpace) -> None:
        self._run, self._space = run, space
        config = run.config
        self._subnets = Subnets(space, config, len(run.classes))
        # Moving statistics stay as they are: those of all networks together are those of none.
        network = self._create_supernet(momentum=1.0, bfloat16=run.bfloat16)
        if not run.resumed:
            _start_as_identities(network)
            if config.pre_trained:
                log.info("%s", load_pretrained(network, config.pre_trained).summary())
        optimizer = create_optimizer(network, config, run.rates, kernels=run.kernels)
        update = Update(
            network,
            optimizer,
            config,
            mixed_precision=run.mixed_precision,
            device_num=run.ranks.size,
            subnets=len(self._subnets),
        )
        used = UsedParts(run.arch, update.weights) if config.subnets == "random" else None
        loss_fn = CrossEntropySmooth(config.label_smooth_factor)
        self.step = ElasticStep(run.mixed(network), loss_fn, update, used).set_train()
        shape = (config.batch_size, len(run.classes))
        self._no_teacher = Tensor(np.zeros(shape, np.float32))
        self._labels, self._teacher = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)
        self._undropped = Tensor(np.ones((config.batch_size, run.arch.head_channels), np.float32))
        self.network, self._evaluator = None, None
        if run.val_loader:
            self._evaluator = SubnetEvaluator(
                self._create_supernet, self._calibration(), forward_parts
            )
            self.network = self._evaluator.network

    def _create_supernet(self, momentum: float, bfloat16: bool = False) -> SPNASNet:
        run = self._run
        return SPNASNet(
            run.arch,
            len(run.classes),
            momentum=momentum,
            kernels=run.kernels,
            bfloat16=bfloat16,
        )

    def _calibration(self) -> Batches:
        """The first training images in an order of their own, not augmented."""
        run, config = self._run, self._run.config
        return Batches(
            Loader(
                run.loader.source,
                config.preprocessing(),
                batch_size=min(config.batch_size, config.calibration_images, len(run.loader)),
                training=False,
                max_images=config.calibration_images,
                num_parallel_workers=config.num_parallel_workers,
                replace_damaged=True,
            )
        )

    def train_batch(
        self, images: Tensor, labels: Tensor, epoch: int, batch: int
    ) -> tuple[Tensor, ...]:
        """The networks of the step one after the other; the last of them ends with the update.

        Returns:
            Loss and correct predictions of the first, and the loss of the last.
        """
        config, teacher = self._run.config, self._no_teacher
        step = (batch - 1) // config.accumulate_steps  # its batches train the same networks
        dropout, learns, results = self._undropped, self._labels, []
        if config.drop_rate:
            dropout = self._run.dropout(config.drop_rate, epoch, batch)
        for decisions in self._subnets.of_step(epoch, step):
            own = parts(self._space, decisions)
            loss, correct, logits = self.step(images, labels, dropout, own, teacher, learns)
            results.append((loss, correct))
            if len(results) == 1 and config.subnets == "sandwich":
                # The largest alone is regularised, and teaches the others.
                dropout = self._undropped
                if config.distill:
                    teacher, learns = logits, self._teacher
        return *results[0], results[-1][0]

    def observe(self, outputs: list[tuple[Tensor, ...]], epoch: int, batch: int) -> dict[str, Any]:
        """The loss of the networks that learn from the largest."""
        if self._run.config.subnets == "random":
            return {}
        own = [float(last.asnumpy()) for *_, last in outputs]
        return {"loss_random": float(np.mean(self._run.ranks.gather(own)))}

    def evaluate(self, loader: Loader) -> Result:
        """Mean over the largest, the smallest and some random networks, and the top-1 of each.

        Each has statistics of its own.
        """
        assert self._evaluator is not None
        self._evaluator.take_weights()
        results = {
            name: self._evaluator(parts(self._space, decisions), loader, ranks=self._run.ranks)
            for name, decisions in self._subnets.validated.items()
        }
        return mean_result(results)

    def finish(self) -> None:
        """Nothing: ``search.py --from_supernet`` goes on from the checkpoints."""


def mean_result(results: Mapping[str, Result]) -> Result:
    """The mean of results over networks, with the top-1 of each by name."""

    def mean(key: str) -> float:
        return float(np.mean([getattr(result, key) for result in results.values()]))

    return Result(
        mean("top1"),
        mean("top5"),
        mean("loss"),
        next(iter(results.values())).images,
        mean("images_per_second"),
        {name: result.top1 for name, result in results.items()},
    )


def _start_as_identities(network: SPNASNet) -> None:
    """Let residual blocks start as identities (BigNAS): gamma of their last normalisation is 0."""
    for block in network.blocks:
        if block.residual:
            gamma = block.last[1]
            gamma.set_data(initializer("zeros", gamma.shape, gamma.dtype))
