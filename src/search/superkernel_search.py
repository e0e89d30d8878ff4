"""The superkernel search: a training of the supernet, from images and costs to an architecture."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.arch.cost_table import CostTable
from src.arch.space import SearchSpace, load_space
from src.checkpoint.format import Checkpoint, network_weights
from src.checkpoint.restore import cell_weights, overwrite, write_inherited
from src.config import SearchConfig
from src.CrossEntropySmooth import CrossEntropySmooth
from src.dataset import Loader
from src.devices.ranks import Ranks
from src.errors import UserError
from src.files import append_jsonl, cut_jsonl, read_json, read_jsonl, write_json
from src.result_files import ARCH, HISTORY, SPACE, TABLE
from src.search.budget import cost_bound, open_table
from src.search.indicators import (
    FREE,
    indicator_costs,
    match_target,
    missing_indicators,
    to_decisions,
)
from src.search.superkernel import NOT_DRAWN, Supernet, inherit
from src.search.superkernel_step import DecisionState, SearchStep
from src.training.evaluation import Result, evaluate
from src.training.loop import train
from src.training.optimizer import create_optimizer
from src.training.run import Run, prepare
from src.training.step import Update
from src.utils import environment

log = logging.getLogger(__name__)

# How far the cost's weight can raise a typical threshold within the ramp, as a multiple of what it
# has fallen by before: enough to switch off most of a network, in steps that are small beside the
# differences between its parts.
REACH = 4

FIXED = "decisions.fixed"  # in checkpoints

# A random stream of its own for the draws of indicators, beside those of (seed, epoch, batch,
# rank), which draw the dropout of features: no job has so many ranks.
INDICATOR_STREAM = 1 << 20


@dataclass(frozen=True)
class Phases:
    """When the cost counts, in batches since the start of the search.

    Attributes:
        free: first batches, without the cost.
        fixed: batch from which the decisions stay as they are.
    """

    free: int
    fixed: int

    @classmethod
    def of(cls, config: SearchConfig, batches_per_epoch: int) -> Phases:
        """The phases that the configuration asks for, by default shares of all epochs."""
        total = config.epoch_size
        free = total / 2 if config.latency_free_epochs is None else config.latency_free_epochs
        last = total / 8 if config.settle_epochs is None else config.settle_epochs
        if free + last > total:
            raise UserError(
                f"latency_free_epochs {free:g} and settle_epochs {last:g} together are more than "
                f"the {total} of epoch_size"
            )
        return cls(round(free * batches_per_epoch), round((total - last) * batches_per_epoch))

    @property
    def between(self) -> int:
        """Batches of the ramp, at least 1."""
        return max(self.fixed - self.free, 1)

    def ramp(self, done: int) -> float:
        """How much of the time between the two has passed after ``done`` batches, 0 to 1."""
        return min(max((done - self.free) / self.between, 0.0), 1.0)


def search(config: SearchConfig) -> int:
    """Search to the end, or to a signal; returns the exit code.

    Results go to ``checkpoint_path``, checkpoints of the supernet and logs to ``ckpt_0`` in it.
    """
    # What needs no device and no images is checked first.
    space = load_space(config.space)
    if space.one_shot:
        raise UserError(
            f"space '{space.name}' is that of a one-shot supernet: scripts/run_spnas.py trains it, "
            "and --method one_shot searches it"
        )
    target = cost_bound(config)

    def default_lr(ranks: Ranks) -> float:
        return 0.016 * config.batch_size * ranks.size / 256  # of the released code

    run = prepare(config, space.largest(), space, default_lr)
    table = open_table(config, space, config.preprocessing(), len(run.classes))
    if target is not None:
        table.check_target(target)
    phases = Phases.of(config, run.batches_per_epoch)
    if run.last_logged:
        _check_costs(run.folder / TABLE, table)
    if run.resumed:
        _check_undecided(run, run.resumed, phases)
    return train(
        run,
        lambda run: SuperkernelSearch(run, space, table, target, phases),
        {SPACE: space.to_dict(), TABLE: table.to_dict()},
    )


def _check_costs(file: Path, table: CostTable) -> None:
    """Raise UserError where the search that is resumed has other costs than ``table``."""
    now = table.costs()
    before = read_json(file) if file.is_file() else now
    if any(before.get(key) != value for key, value in now.items()):
        raise UserError(
            f"{file}: the search that is resumed has other costs than table '{table.name}' has "
            "now; a search with these begins in another --checkpoint_path"
        )


def _check_undecided(run: Run[SearchConfig], resumed: Checkpoint, phases: Phases) -> None:
    """Raise UserError where decisions that are fixed would be searched on."""
    epoch, batch = run.start
    done = epoch * run.batches_per_epoch + batch
    if done < phases.fixed and not (resumed.weights[FIXED] == FREE).any():
        raise UserError(
            f"{resumed.path}: decisions are fixed in the search that is resumed; a longer one "
            "begins in another --checkpoint_path"
        )


class SuperkernelSearch:
    """A superkernel search as a task of the training loop.

    Args:
        target: cost at which to end, in the unit of the table; None for the paper's lambda.
    """

    def __init__(
        self,
        run: Run[SearchConfig],
        space: SearchSpace,
        table: CostTable,
        target: float | None,
        phases: Phases,
    ) -> None:
        self._run, self._space, self._table = run, space, table
        self._target, self._phases = target, phases
        self._results = Path(run.config.checkpoint_path)
        self._last_decisions: list[str] | None = None
        self._free = missing_indicators(space) == FREE  # until the decisions are fixed
        self._weighed = target is None  # whether the cost has its weight

        network = self._create_supernet()
        self._decisions = network.decisions
        # Compiled first in every run, resumed or not: MindSpore's cache knows graphs by their
        # order.
        self._state = DecisionState(network)
        norms = self._state()[1]
        self.step = self._create_step(network, norms).set_train()
        self.network = self._create_supernet().set_train(False) if run.val_loader else None

        if run.ranks.rank == 0 and self._results.is_dir():
            history = self._results / HISTORY
            cut_jsonl(history, run.last_logged)
            before = read_jsonl(history) if history.is_file() else []
            self._last_decisions = before[-1]["decisions"] if before else None

    def _create_supernet(self) -> Supernet:
        config = self._run.config
        return Supernet(
            self._space,
            self._table,
            len(self._run.classes),
            momentum=config.bn_momentum,
            kernels=self._run.kernels,
            bfloat16=self._run.bfloat16,
            drawn_share=config.indicator_draw_share,
        )

    def _create_step(self, network: Supernet, norms: Tensor) -> SearchStep:
        run, config = self._run, self._run.config
        if not run.resumed:
            self._decisions.scales.set_data(norms.copy())
        update = Update(
            network,
            create_optimizer(
                network,
                config,
                run.rates,
                [self._decisions.thresholds],
                kernels=run.kernels,
            ),
            config,
            mixed_precision=run.mixed_precision,
            device_num=run.ranks.size,
        )
        mixed = run.mixed(network)
        self._decisions.to_float(ms.float32)
        return SearchStep(
            mixed,
            CrossEntropySmooth(config.label_smooth_factor),
            update,
            config,
            decisions=self._decisions,
            largest=self._table.range()[1],
            target=self._target,
            device_num=run.ranks.size,
        )

    def train_batch(
        self, images: Tensor, labels: Tensor, epoch: int, batch: int
    ) -> tuple[Tensor, ...]:
        """One step, with draws of indicators, in the phase of the batch."""
        config, phases = self._run.config, self._phases
        done = epoch * self._run.batches_per_epoch + batch - 1
        if done >= phases.free and not self._weighed:
            self._weigh_cost(done)
        if done >= phases.fixed:
            self._fix_decisions()
        free = self._free
        draws = np.full(free.shape, NOT_DRAWN, np.float32)
        if done < phases.fixed:
            # All ranks draw the same.
            random = np.random.default_rng((config.seed, epoch, batch, INDICATOR_STREAM))
            drawn = free & (random.random(free.shape) < config.indicator_draw_share)
            draws[drawn] = random.random(free.shape)[drawn]
        dropout = self._run.dropout(config.drop_rate, epoch, batch)
        ramp = Tensor(phases.ramp(done), ms.float32)
        return self.step(images, labels, dropout, Tensor(draws), ramp)

    def _margins(self) -> tuple[np.ndarray, np.ndarray]:
        """Indicators, and how far each norm is above its threshold, in norms at the start."""
        indicators, norms = (value.asnumpy() for value in self._state())
        relative = norms / self._decisions.scales.asnumpy()
        return indicators, relative - self._decisions.thresholds.asnumpy()

    def _weigh_cost(self, done: int) -> None:
        """Set the cost's weight in proportion to what the cross-entropy has done so far. Once only.

        The margin of an indicator divided by its cost, relative to that of the largest network, is
        the sum of weights that would switch it off. The weight is such that the ramp can sum up to
        ``REACH`` times the median.

        Args:
            done: batches since the start of the search.
        """
        self._weighed = True
        # A search that is resumed behind it has its weight, unless its phases were longer before.
        if done > self._phases.free and self.step.latency_weight.asnumpy():
            return
        _, margins = self._margins()
        table, (_, largest) = self._table, self._table.range()
        prices = indicator_costs(self._space, table) / largest
        free = self._free & (prices > 0)
        needed = np.median(np.maximum(margins, 0)[free] / prices[free])
        rate, steps = self._run.config.threshold_lr, self._phases.between
        weight = REACH * needed / (1000 * rate * steps)
        overwrite(self.step.latency_weight, Tensor(weight, ms.float32))

    def _fix_decisions(self) -> None:
        """Fix the decisions, near the target if there is one; weights train on. Once only."""
        if not (self._decisions.fixed.asnumpy() == FREE).any():
            return
        space, table = self._space, self._table
        indicators, margins = self._margins()
        found = table.total(to_decisions(space, indicators))
        if self._target is not None:
            indicators = match_target(space, table, indicators, margins, self._target)
        overwrite(self._decisions.fixed, Tensor(indicators.astype(np.float32)))
        fixed = table.total(space.canonical(to_decisions(space, indicators)))
        log.info("decisions fixed at %.2f %s, found were %.2f", fixed, table.unit, found)

    def observe(self, outputs: list[tuple[Tensor, ...]], epoch: int, batch: int) -> dict[str, Any]:
        """Write a line of the history for each step; tell what the last one decided."""
        run = self._run
        lines: list[dict[str, Any]] = []
        # Ranks differ in their losses only.
        own = [[float(step[0].asnumpy()), float(step[2].asnumpy())] for step in outputs]
        losses = np.mean(run.ranks.gather(own), 0)
        first = batch - len(outputs) + 1
        for number, (loss, cross_entropy), (*_, cost, indicators, weight) in zip(
            range(first, batch + 1), losses, outputs, strict=True
        ):
            last = number == run.batches_per_epoch
            lines.append(
                {
                    "epoch": epoch + last,
                    "step": 0 if last else number,
                    "loss": float(loss),
                    "cross_entropy": float(cross_entropy),
                    "cost": float(cost.asnumpy()),
                    "latency_weight": float(weight.asnumpy()),
                    "decisions": to_decisions(self._space, indicators.asnumpy()),
                }
            )
        if run.ranks.rank == 0:
            append_jsonl(self._results / HISTORY, lines)
        first_line, last_line = lines[0], lines[-1]
        now: list[str] = last_line["decisions"]
        before: list[str] = self._last_decisions or first_line["decisions"]
        self._last_decisions = now
        values = {
            "cross_entropy": last_line["cross_entropy"],
            "cost": last_line["cost"],
            "changed": sum(old != new for old, new in zip(before, now, strict=True)),
        }
        return values if self._target is None else {**values, "target": self._target}

    def evaluate(self, loader: Loader) -> Result:
        """Accuracy of the network that the decisions of now describe."""
        assert self.network is not None
        return evaluate(self.network, loader, ranks=self._run.ranks)

    def finish(self) -> None:
        """Write what was found: architecture and inherited weights."""
        self._fix_decisions()
        self._run.ranks.run_on_rank_0(self._write_found)

    def _write_found(self) -> None:
        run, space, table, results = self._run, self._space, self._table, self._results
        decisions = to_decisions(space, self._decisions.fixed.asnumpy())
        named = space.canonical(decisions)  # weights are those of the layers that were decided
        cost = table.total(named)
        arch = space.derive(
            decisions, f"{run.config.name}_{cost:.4g}{table.unit[0]}", self._provenance(cost)
        )
        write_json(results / ARCH, arch.to_dict())
        weights = network_weights(cell_weights(self.step))
        meta = replace(run.meta, arch=arch, epoch=run.config.epoch_size)
        write_inherited(results, inherit(weights, space, decisions), meta)
        log.info(
            "found %s of %.2f %s%s: %s",
            results / ARCH,
            cost,
            table.unit,
            "" if self._target is None else f" for a target of {self._target:g}",
            " ".join(named),
        )

    def _provenance(self, cost: float) -> dict[str, Any]:
        """How the found architecture came about."""
        config, table = self._run.config, self._table
        versions = environment(config.device_target)
        return {
            "source": "search.py",
            "cost": cost,
            "unit": table.unit,
            "table": table.name,
            "device": table.device,
            "target": self._target,
            "latency_weight": float(self.step.latency_weight.asnumpy()),
            "seed": config.seed,
            "epochs": config.epoch_size,
            "images": len(self._run.loader),
            "mindspore": versions["mindspore"],
            "commit": versions["commit"],
        }
