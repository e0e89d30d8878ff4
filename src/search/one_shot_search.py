"""Choosing a path of a one-shot supernet: random or evolutionary search with inherited weights.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", arXiv
1904.00420, section 3.4. Before a path is evaluated its batch normalisation gets statistics of its
own: the mean over some batches of training images of the statistics of each batch. They depend on
the path alone, not on what was evaluated before it, and every draw depends on the seed alone. So a
search is resumed by taking it again from its beginning, with the results that it has written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from src import kernels
from src.arch.space import SearchSpace
from src.checkpoint.folder import CheckpointFolder
from src.checkpoint.format import (
    Checkpoint,
    load_parameters,
    overwrite,
    read_checkpoint,
    write_inherited,
)
from src.config import OneShotSearchConfig
from src.dataset import Loader
from src.drawing import draw_path_search
from src.errors import UserError
from src.files import make_folder, read_jsonl, write_text
from src.search.budget import cost_bound, open_table
from src.search.one_shot import OneShotSupernet, inherit, path_names
from src.training.compile_cache import CompileCache
from src.training.evaluation import Result, evaluate
from src.utils import environment, setup_device

log = logging.getLogger(__name__)

HISTORY, SETTINGS = "paths.jsonl", "search.json"
# Keys that may change when a search is resumed.
_FREE_KEYS = frozenset(
    ("resume", "checkpoint_path", "compile_cache", "device_id", "data_path", "val_data_path")
)
_TRIES = 100_000  # draws until one is new and within the limit

BlockPath = tuple[int, ...]


def read_supernet(path: str | None) -> Checkpoint:
    """The supernet of a checkpoint, or the newest of a run's folder."""
    if path is None:
        raise UserError(
            "ckpt is not given; it names the supernet's checkpoint, or the folder of its run"
        )
    if Path(path).is_dir():
        checkpoint = CheckpointFolder(Path(path)).newest()
        if checkpoint is None:
            raise UserError(f"{path}: holds no checkpoint that can be read")
    else:
        checkpoint = read_checkpoint(path)
    if (
        checkpoint.meta.space is None
        or not SearchSpace.from_dict(checkpoint.meta.space, str(path)).one_shot
    ):
        raise UserError(
            f"{checkpoint.path}: holds no one-shot supernet; scripts/run_spnas.py trains one"
        )
    return checkpoint


class Batches:
    """Batches of a split, kept in memory unless they are too many; what ``evaluate`` needs of a ``Loader``."""

    MOST_BYTES = 1 << 30

    def __init__(self, loader: Loader) -> None:
        self.source, self.batch_size, self._loader = loader.source, loader.batch_size, loader
        self._kept: list = []

    def epoch(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self._kept:
            yield from self._kept
            return
        batches, size = [], 0
        for images, labels in self._loader.epoch():
            size += images.nbytes
            batches = [*batches, (images.copy(), labels.copy())] if size <= self.MOST_BYTES else []
            yield images, labels
        self._kept = batches


class PathEvaluator:
    """Accuracy of paths of a supernet, each with its own statistics."""

    def __init__(
        self, checkpoint: Checkpoint, calibration: Batches, validation: Batches, use_kernels: bool
    ) -> None:
        space, classes = SearchSpace.from_dict(checkpoint.meta.space), len(checkpoint.meta.classes)
        self._calibration, self._validation = calibration, validation
        # With momentum 0 moving statistics are those of the last batch.
        self._sampler = OneShotSupernet(
            space, classes, momentum=0.0, kernels=use_kernels
        ).set_train()
        self.network = OneShotSupernet(space, classes, kernels=use_kernels).set_train(False)
        for network in (self._sampler, self.network):
            load_parameters(network, checkpoint.network_parameters(), checkpoint.path)
        self._own = dict(self.network.parameters_dict())

    def calibrate(self, path: BlockPath) -> None:
        """Give the blocks on a path, stem and head the statistics of that path."""
        wanted = [
            parameter
            for name, parameter in self._sampler.parameters_dict().items()
            if ".moving_" in name and _on_path(name, path)
        ]
        sums, batches = [0.0] * len(wanted), 0
        for images, _ in self._calibration.epoch():
            if len(images) < self._calibration.batch_size and batches:
                break  # a last batch that is shorter would need a graph of its own
            self._sampler(Tensor(images), Tensor(np.array(path, np.int32))).asnumpy()
            sums = [
                total + parameter.asnumpy().astype(np.float64)
                for total, parameter in zip(sums, wanted)
            ]
            batches += 1
        for total, parameter in zip(sums, wanted):
            overwrite(self._own[parameter.name], Tensor((total / batches).astype(np.float32)))

    def __call__(self, path: BlockPath) -> Result:
        self.calibrate(path)
        tensor = Tensor(np.array(path, np.int32))
        return evaluate(lambda images: self.network(images, tensor), self._validation)


def _on_path(name: str, path: BlockPath) -> bool:
    words = name.split(".")
    return words[0] != "blocks" or path[int(words[1])] == int(words[2])


class OneShotSearch:
    """One search; everything is written to ``checkpoint_path``."""

    def __init__(self, config: OneShotSearchConfig) -> None:
        self.config = config
        self.checkpoint = read_supernet(config.ckpt)
        meta = self.checkpoint.meta
        self.space = SearchSpace.from_dict(meta.space, str(self.checkpoint.path))
        self.limit = cost_bound(config)
        self.table = open_table(
            config, self.space, self.checkpoint.preprocessing, len(meta.classes)
        )
        if self.limit is not None and self.limit < self.table.range()[0]:
            self.table.check_target(self.limit)
        self.folder = Path(config.checkpoint_path)
        self.random = np.random.default_rng(config.seed)
        self.history: list[dict[str, Any]] = []
        self.known: dict[BlockPath, dict[str, Any]] = {}

    def _open_batches(self, split: str, count: int | None) -> Batches:
        config, source = self.config, self.checkpoint.source(self.config, split)
        batch_size = min(config.batch_size, count or len(source), len(source))
        return Batches(
            Loader(
                source,
                self.checkpoint.preprocessing,
                batch_size=batch_size,
                training=False,
                max_images=count,
                num_parallel_workers=config.num_parallel_workers,
            )
        )

    def run(self) -> int:
        """Search to the end; returns the exit code."""
        config = self.config
        setup_device(config.device_target, config.device_id)
        use_kernels = kernels.use_kernels(config.cpu_kernels)
        calibration = self._open_batches("train", config.calibration_images)
        validation = self._open_batches("val", config.val_images)
        make_folder(self.folder)
        self._take_up()
        values = {
            "search": self.space.to_dict(),
            "classes": len(self.checkpoint.meta.classes),
            "kernels": use_kernels,
            "size": asdict(self.checkpoint.preprocessing),
            "batches": [calibration.batch_size, validation.batch_size],
        }
        with CompileCache(values, config.compile_cache):
            self.evaluator = PathEvaluator(self.checkpoint, calibration, validation, use_kernels)
            with tqdm(total=self._planned(), unit="path", leave=False, disable=None) as self._bar:
                self._search_randomly() if config.strategy == "random" else self._evolve()
            self._finish()
        return 0

    def _planned(self) -> int:
        """Evaluations at most."""
        config = self.config
        return (
            config.search_num
            if config.strategy == "random"
            else config.population * config.generations
        )

    def _take_up(self) -> None:
        """Start the folder, or read what an interrupted search has left in it."""
        settings = {
            **self.config.model_dump(mode="json", exclude=_FREE_KEYS),
            "epoch": self.checkpoint.meta.epoch,
            "step": self.checkpoint.meta.step,
        }
        file, history = self.folder / SETTINGS, self.folder / HISTORY
        if history.is_file() and not self.config.resume:
            raise UserError(
                f"{self.folder}: holds an earlier search; --resume continues it, another --checkpoint_path "
                "starts beside it"
            )
        if self.config.resume and file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            for key, value in settings.items():
                if before.get(key) != value:
                    raise UserError(
                        f"{file}: {key} is {before.get(key)!r} in the search that is resumed, and {value!r} "
                        "now"
                    )
            self._results = {tuple(line["path"]): line for line in read_jsonl(history)}
            log.info("resumed: %d paths are evaluated already", len(self._results))
            # What a crash cut short is left out, so that lines can follow.
            write_text(history, "".join(json.dumps(line) + "\n" for line in self._results.values()))
            return
        self._results = {}
        write_text(file, json.dumps(settings, indent=2) + "\n")

    def cost(self, path: BlockPath) -> float:
        """Cost of the network on a path, in the unit of the table."""
        return self.table.total(path_names(self.space, path))

    def _new(self, draw: Callable[[], np.ndarray], taken: set[BlockPath]) -> BlockPath | None:
        """A path that is not taken yet and within the limit; None where a long time of drawing finds none."""
        for _ in range(_TRIES if self.limit is not None else 1000):
            path = tuple(int(choice) for choice in draw())
            if path not in taken and (self.limit is None or self.cost(path) <= self.limit):
                taken.add(path)
                return path
        return None

    def _any_path(self) -> np.ndarray:
        return self.random.integers([len(layer.names) for layer in self.space.layers])

    def _draw(
        self, count: int, draw: Callable[[], np.ndarray], taken: set[BlockPath]
    ) -> list[BlockPath]:
        """Up to ``count`` new paths; fewer where there are no more."""
        paths = []
        while len(paths) < count and (path := self._new(draw, taken)) is not None:
            paths.append(path)
        return paths

    def _evaluate(self, path: BlockPath, generation: int) -> dict[str, Any]:
        line = self._results.get(path)
        if line is None:
            result = self.evaluator(path)
            line = {
                "path": list(path),
                "generation": generation,
                "top1": result.top1,
                "loss": result.loss,
                "images": result.images,
                "cost": self.cost(path),
            }
            with open(self.folder / HISTORY, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.history.append(line)
        best = self.best()
        if line is best:
            log.info(
                "path %s: top-1 %.2f %%, %.2f %s, the best of %d",
                " ".join(map(str, path)),
                line["top1"],
                line["cost"],
                self.table.unit,
                len(self.history),
            )
        self._bar.update()
        self._bar.set_postfix(top1=f"{line['top1']:.2f}", best=f"{best['top1']:.2f}")
        return line

    def _ranked(self) -> list[dict[str, Any]]:
        return sorted(self.history, key=lambda line: (-line["top1"], line["loss"]))

    def best(self) -> dict[str, Any]:
        """The best path so far: of equal top-1 the one of lower loss."""
        return self._ranked()[0]

    def _search_randomly(self) -> None:
        paths = self._draw(self.config.search_num, self._any_path, set())
        self._check_found(paths)
        for path in paths:
            self._evaluate(path, 0)

    def _evolve(self) -> None:
        """Algorithm 1 of the paper: the first generation is random, the later ones are children of the best."""
        config, taken = self.config, set()
        population = self._draw(config.population, self._any_path, taken)
        self._check_found(population)
        for generation in range(config.generations):
            for path in population:
                self._evaluate(path, generation)
            parents = [np.array(line["path"]) for line in self._ranked()[: config.top_k]]

            def cross() -> np.ndarray:
                one, other = (parents[i] for i in self.random.integers(len(parents), size=2))
                return np.where(self.random.random(len(one)) < 0.5, one, other)

            def mutate() -> np.ndarray:
                parent = parents[self.random.integers(len(parents))]
                return np.where(
                    self.random.random(len(parent)) < config.mutation_prob, self._any_path(), parent
                )

            population = self._draw(config.crossover, cross, taken) + self._draw(
                config.mutation, mutate, taken
            )
            # Where parents are too much alike to have new children.
            population += self._draw(config.population - len(population), self._any_path, taken)

    def _check_found(self, paths: list[BlockPath]) -> None:
        if not paths:
            raise UserError(
                f"no path of space '{self.space.name}' was found that costs at most {self.limit:g} "
                f"{self.table.unit}; the limit leaves too few"
            )

    def _finish(self) -> None:
        """Write what was found: architecture, inherited weights, picture."""
        config, best, checkpoint = self.config, self.best(), self.checkpoint
        path, versions = tuple(best["path"]), environment(config.device_target)
        name = f"{config.name}_{best['cost']:.4g}{self.table.unit[0]}"
        arch = self.space.derive(
            path_names(self.space, path),
            name,
            {
                "source": "search.py --method one_shot",
                "strategy": config.strategy,
                "path": list(path),
                "top1": best["top1"],
                "images": best["images"],
                "evaluated": len(self.history),
                "cost": best["cost"],
                "unit": self.table.unit,
                "limit": self.limit,
                "seed": config.seed,
                "supernet": checkpoint.path.name,
                "epochs": checkpoint.meta.epoch,
                "mindspore": versions["mindspore"],
                "commit": versions["commit"],
            },
        )
        write_text(self.folder / "arch.json", json.dumps(arch.to_dict(), indent=2) + "\n")
        self.evaluator.calibrate(path)
        weights = {
            parameter.name: parameter.asnumpy()
            for parameter in self.evaluator.network.get_parameters()
        }
        write_inherited(
            self.folder,
            inherit(weights, path),
            replace(
                checkpoint.meta,
                arch=arch.to_dict(),
                space=None,
                step=0,
                metrics={"top1": best["top1"]},
            ),
        )
        draw_path_search(self.history, config.strategy, self.table.unit, self.folder / "search.png")
        log.info(
            "best of %d paths: %s, top-1 %.2f %%, %.2f %s; %s",
            len(self.history),
            " ".join(map(str, path)),
            best["top1"],
            best["cost"],
            self.table.unit,
            self.folder / "arch.json",
        )
