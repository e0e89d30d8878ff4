"""The search: a training run of the supernet, from images and a latency table to an architecture file."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.arch.architecture import Architecture
from src.arch.space import load_space
from src.checkpoint.format import overwrite, write_inherited
from src.config import SearchConfig
from src.CrossEntropySmooth import CrossEntropySmooth
from src.drawing import draw_decisions, draw_search
from src.errors import UserError
from src.files import cut_jsonl, read_jsonl, write_text
from src.search.budget import cost_bound, open_table
from src.search.indicators import FREE, settle, to_decisions
from src.search.superkernel import Supernet, inherit
from src.training.loop import Trainer
from src.training.step import TrainStep, create_optimizer
from src.utils import environment

log = logging.getLogger(__name__)

HISTORY = "history.jsonl"
TYPICAL_GRADIENT = 0.3  # of a decision that costs some percent, at the paper's lambda


class SearchStep(TrainStep):
    """A training step of the supernet with the cost in its loss.

    Without a target the loss is cross-entropy + weight * 1000 * ln(cost), as in the released code.
    With one, ln(cost) gives way to the Huber function of ln(cost / target): the same slope above
    the target, the opposite one below, and in proportion to the distance within ``NEAR`` of it. The
    weight grows as long as the cost stays further away.

    Args:
        target: cost at which to end.
        gain: growth of the weight's logarithm in a step.
        threshold_rate: learning rate of bounded thresholds, which take plain gradient steps with
            momentum; 0 where they follow the paper's formula, in the optimizer with the weights.
    """

    NEAR = 0.05

    def __init__(
        self,
        network: nn.Cell,
        loss_fn: nn.Cell,
        optimizer: nn.Optimizer,
        config: SearchConfig,
        *,
        decisions: nn.Cell,
        target: float | None,
        gain: float,
        threshold_rate: float,
        **options: Any,
    ) -> None:
        super().__init__(network, loss_fn, optimizer, config, **options)
        self.target, self.gain = target, gain
        self.thresholds, self.scales = decisions.thresholds, decisions.scales
        self.threshold_rate, self.momentum = threshold_rate, config.momentum
        if threshold_rate:
            self.velocity = self.thresholds.clone(init="zeros")
            self.velocity.name = "threshold_velocity"
            self.gradient = ops.value_and_grad(
                self.forward, None, ParameterTuple([*self.weights, self.thresholds]), has_aux=True
            )
            self.reduce_thresholds = (
                nn.DistributedGradReducer([self.thresholds], True, options["device_num"])
                if options["device_num"] > 1
                else None
            )
        self.latency_weight = Parameter(
            Tensor(config.latency_weight, ms.float32), name="latency_weight", requires_grad=False
        )

    def forward(self, images, labels, dropout, factors, ramp):  # type: ignore[override]
        logits, cost, indicators, norms = self.network(images, dropout, factors)
        cross_entropy = self.loss_fn(logits, labels)
        loss = cross_entropy + ramp * self.latency_weight * 1000 * self.penalty(cost)
        scaled, correct = self.score(logits, labels, loss)
        return scaled, loss, correct, cross_entropy, cost, indicators, norms

    def penalty(self, cost: Tensor) -> Tensor:
        """What the weight weighs."""
        if not self.target:
            return ops.log(cost)
        distance = ops.log(cost / self.target) / self.NEAR
        bounded = ops.clamp(distance, -1.0, 1.0)
        return self.NEAR * (bounded * distance - 0.5 * bounded * bounded)

    def construct(self, images, labels, dropout, factors, ramp):  # type: ignore[override]
        """Train on one batch.

        Args:
            images, labels, dropout: as in ``TrainStep``.
            factors: dropout of the indicators, (L, D).
            ramp: how much of the cost's weight counts, (): 0 to 1.

        Returns:
            Loss, number of correct predictions, cross-entropy, cost, indicators (L, D), latency
            weight.
        """
        (scaled, loss, correct, cross_entropy, cost, indicators, norms), gradients = self.gradient(
            images, labels, dropout, factors, ramp
        )
        scale = scaled / loss
        loss = ops.depend(loss, self.learn(gradients[: len(self.weights)]))
        weight = self.latency_weight * 1.0
        if self.target:
            far = (ops.abs(ops.log(cost / self.target)) > self.NEAR).astype("float32") * (
                ramp == 1
            ).astype("float32")
            loss = ops.depend(
                loss,
                ops.assign(self.latency_weight, ops.depend(weight, loss) * (1 + self.gain * far)),
            )
        if self.threshold_rate:
            loss = ops.depend(
                loss, self.move_thresholds(gradients[-1] / scale, norms / self.scales)
            )
        return loss, correct, cross_entropy, cost, indicators, weight

    def move_thresholds(self, gradient: Tensor, relative: Tensor) -> Tensor:
        """A gradient step of the thresholds, which stay within 1 of the norms; both in units of the starting norms.

        RMSProp's steps, nearly independent of the gradient's size, would let all thresholds travel
        alike and cross their norms at once.
        """
        if self.reduce_thresholds is not None:
            gradient = self.reduce_thresholds((gradient,))[0]
        gradient = ops.select(ops.isfinite(gradient), gradient, ops.zeros_like(gradient))
        velocity = ops.assign(self.velocity, self.momentum * self.velocity + gradient)
        moved = self.thresholds - self.threshold_rate * velocity
        return ops.assign(
            self.thresholds, ops.maximum(ops.minimum(moved, relative + 1), relative - 1)
        )


class DecisionState(nn.Cell):
    """Indicators and norms, each (L, D), of the current weights and thresholds."""

    def __init__(self, network: Supernet) -> None:
        super().__init__(auto_prefix=False)
        self.network = (
            network  # all of it: a cached graph finds its parameters among those of its cell only
        )

    def construct(self) -> tuple[Tensor, Tensor]:
        return self.network.decisions.indicators()


class Searcher(Trainer):
    """One search. Results go to ``checkpoint_path``, checkpoints of the supernet and logs to ``ckpt_0`` in it."""

    def __init__(self, config: SearchConfig) -> None:
        # What needs no device and no images is checked first.
        self.space = load_space(config.space)
        if self.space.one_shot:
            raise UserError(
                f"space '{self.space.name}' is that of a one-shot supernet: scripts/run_spnas.py trains it, "
                "and --method one_shot searches it"
            )
        self.target = cost_bound(config)
        super().__init__(config)
        self.table = open_table(config, self.space, config.preprocessing(), len(self.classes))
        if self.target is not None:
            self.table.check_target(self.target)
        self.results = Path(config.checkpoint_path)
        self.meta = replace(self.meta, space=self.space.to_dict())
        total = config.epoch_size
        free = 5 / 8 * total if config.latency_free_epochs is None else config.latency_free_epochs
        ramp = (total - free) / 4 if config.ramp_epochs is None else config.ramp_epochs
        last = total / 8 if config.settle_epochs is None else config.settle_epochs
        if free + ramp + last > total:
            raise UserError(
                f"latency_free_epochs {free:g}, ramp_epochs {ramp:g} and settle_epochs {last:g} together "
                f"are more than the {total} of epoch_size"
            )
        per_epoch = self.batches_per_epoch
        self.free_batches = round(free * per_epoch)
        self.ramp_batches = max(1, round(ramp * per_epoch))
        self.settle_batch = round((total - last) * per_epoch)

    def _default_lr(self, config: SearchConfig) -> float:
        return 0.016 * config.batch_size * self.device_num / 256

    def _architecture(self) -> Architecture:
        return self.space.largest()

    def _find_checkpoint(self):
        resumed = super()._find_checkpoint()
        if resumed and resumed.meta.space != self.space.to_dict():
            raise UserError(
                f"{resumed.path}: of a search in another space than '{self.config.space}'"
            )
        return resumed

    def _own_files(self) -> dict[str, dict[str, Any]]:
        return {"space.json": self.space.to_dict(), "latency_table.json": self.table.to_dict()}

    def _graph_values(self) -> dict[str, Any]:
        return {
            **super()._graph_values(),
            **self._own_files(),
            "target": self.target,
            "phases": [self.free_batches, self.ramp_batches, self.settle_batch],
        }

    def _create_network(self) -> Supernet:
        return Supernet(
            self.space,
            self.table,
            len(self.classes),
            momentum=self.config.bn_momentum,
            kernels=self.kernels,
            even_slope=self.config.threshold_rule == "bounded",
        )

    def _create_step(self) -> SearchStep:
        config, network = self.config, self._create_network()
        self.decisions = network.decisions
        # Compiled first in every run, resumed or not: MindSpore's cache knows graphs by their
        # order.
        self.state = DecisionState(network)
        norms = self.state()[1]
        by_itself, rate = [], 0.0
        if config.threshold_rule == "bounded":
            if not self.resumed:
                self.decisions.scales.set_data(norms.copy())
            by_itself = [self.decisions.thresholds]
            # A threshold of typical gradient crosses its norm within a ramp.
            rate = config.threshold_lr or (1 - config.momentum) / (
                TYPICAL_GRADIENT * self.ramp_batches
            )
        optimizer = create_optimizer(network, config, self.rates, by_itself)
        mixed = self._mixed(network)
        self.decisions.to_float(ms.float32)
        return SearchStep(
            mixed,
            CrossEntropySmooth(config.label_smooth_factor),
            optimizer,
            config,
            decisions=self.decisions,
            target=self.target,
            gain=0.5 / self.ramp_batches,
            threshold_rate=rate,
            mixed_precision=self.amp_level != "O0",
            device_num=self.device_num,
        )

    def _step_inputs(self, epoch: int, batch: int) -> tuple[Tensor, ...]:
        done = epoch * self.batches_per_epoch + batch - 1
        if done >= self.settle_batch and not self._settled():
            self._settle()
        shape, keep = self.decisions.thresholds.shape, self.config.indicator_keep_prob
        factors = np.ones(shape, np.float32)
        if done < self.free_batches and keep < 1:
            # All ranks drop the same indicators.
            random = np.random.default_rng((self.config.seed, epoch, batch, 1 << 20))
            factors = (random.random(shape) < keep).astype(np.float32) / np.float32(keep)
        ramp = min(max((done - self.free_batches) / self.ramp_batches, 0.0), 1.0)
        return self._dropout(epoch, batch), Tensor(factors), Tensor(ramp, ms.float32)

    def _settled(self) -> bool:
        return not (self.decisions.fixed.asnumpy() == FREE).any()

    def _settle(self) -> None:
        """Fix the decisions, near the target if there is one; weights train on."""
        indicators, norms = (value.asnumpy() for value in self.state())
        found = self.table.total(to_decisions(self.space, indicators))
        if self.target is not None:
            margins = norms / self.decisions.scales.asnumpy() - self.decisions.thresholds.asnumpy()
            indicators = settle(self.space, self.table, indicators, margins, self.target)
        overwrite(self.decisions.fixed, Tensor(indicators.astype(np.float32)))
        log.info(
            "decisions settle at %.2f %s, found were %.2f",
            self.table.total(to_decisions(self.space, indicators)),
            self.table.unit,
            found,
        )

    def _observe(self, outputs: list[tuple[Tensor, ...]], epoch: int, batch: int) -> dict[str, Any]:
        lines, first = [], batch - len(outputs) + 1
        # The rest is the same on all ranks.
        losses = np.mean(
            self.ranks.gather(
                [[float(step[0].asnumpy()), float(step[2].asnumpy())] for step in outputs]
            ),
            0,
        )
        for number, ((loss, cross_entropy), (*_, cost, indicators, weight)) in enumerate(
            zip(losses, outputs), start=first
        ):
            last = number == self.batches_per_epoch
            lines.append(
                {
                    "epoch": epoch + last,
                    "step": 0 if last else number,
                    "loss": float(loss),
                    "cross_entropy": float(cross_entropy),
                    "cost": float(cost.asnumpy()),
                    "latency_weight": float(weight.asnumpy()),
                    "decisions": to_decisions(self.space, indicators.asnumpy()),
                }
            )
        if self.rank == 0:
            with open(self.results / HISTORY, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        before = self._last_decisions or lines[0]["decisions"]
        self._last_decisions = lines[-1]["decisions"]
        changed = sum(old != new for old, new in zip(before, self._last_decisions))
        values = {
            "cross_entropy": lines[-1]["cross_entropy"],
            "cost": lines[-1]["cost"],
            "changed": changed,
        }
        return values if self.target is None else {**values, "target": self.target}

    def run(self) -> int:
        self._last_decisions: list[str] | None = None
        progress = (self.resumed.meta.epoch, self.resumed.meta.step) if self.resumed else None
        if self.rank == 0 and self.results.is_dir():
            cut_jsonl(self.results / HISTORY, progress)
        return super().run()

    def _finish(self) -> None:
        """Write what was found: architecture, inherited weights, pictures."""
        if not self._settled():
            self._settle()
        indicators = self.decisions.fixed.asnumpy()
        decisions = to_decisions(self.space, indicators)
        cost = self.table.total(decisions)
        config, versions = self.config, environment(self.config.device_target)
        self.arch = self.space.derive(
            decisions,
            f"{config.name}_{cost:.4g}{self.table.unit[0]}",
            {
                "source": "search.py",
                "cost": cost,
                "unit": self.table.unit,
                "table": self.table.name,
                "device": self.table.device,
                "target": self.target,
                "latency_weight": config.latency_weight,
                "seed": config.seed,
                "epochs": config.epoch_size,
                "images": len(self.loader),
                "mindspore": versions["mindspore"],
                "commit": versions["commit"],
            },
        )
        self.ranks.run_on_rank_0(lambda: self._write_found(decisions, cost))
        log.info(
            "found %s of %.2f %s%s: %s",
            self.results / "arch.json",
            cost,
            self.table.unit,
            "" if self.target is None else f" for a target of {self.target:g}",
            " ".join(decisions),
        )

    def _write_found(self, decisions: list[str], cost: float) -> None:
        write_text(self.results / "arch.json", json.dumps(self.arch.to_dict(), indent=2) + "\n")
        self._write_inherited(decisions)
        draw_search(
            read_jsonl(self.results / HISTORY),
            self.space,
            self.table,
            self.target,
            self.results / "search.png",
        )
        for suffix in (".png", ".svg"):
            draw_decisions(
                self.space,
                decisions,
                f"{self.arch.name}: {cost:.2f} {self.table.unit}",
                self.results / f"arch{suffix}",
            )

    def last_top1(self) -> float:
        """Validation top-1 of the newest checkpoint that was validated, in percent."""
        scores = [
            entry["metrics"]["top1"] for entry in self.checkpoints.entries() if entry["metrics"]
        ]
        return scores[-1] if scores else float("nan")

    def _write_inherited(self, decisions: list[str]) -> None:
        source = self._average_network() if self.val_network else self.step.network
        parameters = {parameter.name: parameter.asnumpy() for parameter in source.get_parameters()}
        write_inherited(
            self.results,
            inherit(parameters, self.space, decisions),
            replace(self.meta, arch=self.arch.to_dict(), space=None, epoch=self.config.epoch_size),
        )
