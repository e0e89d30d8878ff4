"""Choosing a path of a one-shot supernet: random or evolutionary search with inherited weights.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", arXiv
1904.00420, section 3.4. An evaluation depends only on its path, a draw only on the seed.
So a search is resumed by taking it again from its beginning, with the results that it has written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from src.arch.cost_table import CostTable
from src.arch.space import SearchSpace
from src.checkpoint.format import Checkpoint
from src.checkpoint.restore import cell_weights, held_out, write_inherited
from src.config import PLACE_KEYS, OneShotSearchConfig
from src.data.sources import names_digest
from src.errors import UserError
from src.files import (
    append_jsonl,
    different_settings,
    make_folder,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from src.result_files import ARCH, IMAGES, PATHS, SEARCH, SPACE
from src.search.budget import check_limit, cost_bound, open_table
from src.search.one_shot import BlockPath, inherit, path_names
from src.search.subnet_evaluation import (
    PathEvaluator,
    Split,
    describe_images,
    open_images,
    read_supernet,
)
from src.utils import environment

log = logging.getLogger(__name__)

# Keys that may change when a search is resumed.
_FREE_KEYS = PLACE_KEYS | {"ckpt", "resume"}
_TRIES = 100_000  # draws until one is new and within the limit

Evaluated = dict[str, Any]  # a line of PATHS: path, generation, top1, loss, images, cost


def search_paths(config: OneShotSearchConfig) -> int:
    """Search to the end; everything is written to ``checkpoint_path``. Returns the exit code."""
    checkpoint, space = read_supernet(config.ckpt)
    if not space.one_shot:
        raise UserError(
            f"{checkpoint.path}: holds no one-shot supernet; scripts/run_spnas.py trains one"
        )
    meta = checkpoint.meta
    limit = cost_bound(config)
    table = open_table(config, space, meta.preprocessing, len(meta.classes))
    if limit is not None:
        check_limit(table, limit)
    bfloat16 = config.precision == "bfloat16"
    split: Split = "held" if held_out(checkpoint) else "val"
    if split == "val":
        log.warning(
            "the supernet's training has kept no images apart (--holdout): paths are chosen by "
            "the validation images, on which what is chosen then looks better than it is"
        )
    images = open_images(config, checkpoint, space, split, bfloat16=bfloat16)
    folder = make_folder(Path(config.checkpoint_path))
    names = names_digest(images.validation.source)
    results = _take_up(config, checkpoint, table, split, names, folder)
    write_json(folder / SPACE, space.to_dict())
    draws = PathDraws(space, table, limit, np.random.default_rng(config.seed))
    with images.compiling:
        evaluator = PathEvaluator(checkpoint, images)
        with tqdm(total=_planned(config), unit="path", leave=False, disable=None) as bar:
            history = History(folder / PATHS, results, evaluator, draws, bar)
            strategy = _search_randomly if config.strategy == "random" else _evolve
            strategy(config, draws, history)
        _write_found(config, checkpoint, evaluator, draws, history)
    return 0


def _planned(config: OneShotSearchConfig) -> int:
    """Evaluations at most."""
    if config.strategy == "random":
        return config.search_num
    return config.population * config.generations


def _take_up(
    config: OneShotSearchConfig,
    checkpoint: Checkpoint,
    table: CostTable,
    split: Split,
    names: str,
    folder: Path,
) -> dict[BlockPath, Evaluated]:
    """Start the folder, or read what an interrupted search has left in it."""
    settings = {
        **config.model_dump(mode="json", exclude=set(_FREE_KEYS)),
        "epoch": checkpoint.meta.epoch,
        "step": checkpoint.meta.step,
        "weights": checkpoint.digest(),
        "costs": table.digest(),
        "split": split,
        "names": names,
        IMAGES: describe_images(config, checkpoint.meta),
    }
    file, history = folder / SEARCH, folder / PATHS
    if history.is_file() and not config.resume:
        raise UserError(
            f"{folder}: holds an earlier search; --resume continues it, another --checkpoint_path "
            "starts beside it"
        )
    if not (config.resume and file.is_file()):
        write_json(file, settings)
        return {}
    # What older files do not name.
    same = {key: settings[key] for key in ("weights", "costs", "names")}
    older = {"precision": "float32", "split": "val", **same}
    before = {**older, **read_json(file)}
    for key, (old, new) in different_settings(before, settings, (IMAGES,)).items():
        if key in settings:  # others were of an earlier version of this program
            raise UserError(
                f"{file}: {key} is {old!r} in the search that is resumed, and {new!r} now"
            )
    results = {tuple(line["path"]): line for line in read_jsonl(history)}
    log.info("resumed: %d paths are evaluated already", len(results))
    # What a crash cut short is left out, so that lines can follow.
    write_jsonl(history, results.values())
    return results


class PathDraws:
    """Random paths, no path twice and none above the limit of the cost.

    Args:
        limit: in the unit of the table; None for none.
    """

    def __init__(
        self,
        space: SearchSpace,
        table: CostTable,
        limit: float | None,
        random: np.random.Generator,
    ) -> None:
        self.space, self.table, self.limit, self.random = space, table, limit, random
        self._taken: set[BlockPath] = set()

    def cost(self, path: BlockPath) -> float:
        """Cost of the network on a path, in the unit of the table."""
        return self.table.total(path_names(self.space, path))

    def any_path(self) -> np.ndarray:
        """One of all paths of the space, (L,), whatever it costs."""
        return self.random.integers([len(layer.names) for layer in self.space.searched.values()])

    def take(self, count: int, draw: Callable[[], np.ndarray]) -> list[BlockPath]:
        """Up to ``count`` new paths by ``draw``; fewer where there are no more."""
        paths: list[BlockPath] = []
        while len(paths) < count and (path := self._new(draw)) is not None:
            paths.append(path)
        return paths

    def first(self, count: int) -> list[BlockPath]:
        """Random paths; raises UserError where the limit leaves none."""
        paths = self.take(count, self.any_path)
        if not paths:
            raise UserError(
                f"no path of space '{self.space.name}' was found that costs at most "
                f"{self.limit:g} {self.table.unit}; the limit leaves too few"
            )
        return paths

    def _new(self, draw: Callable[[], np.ndarray]) -> BlockPath | None:
        """A new path within the limit; None where a long time of drawing finds none."""
        for _ in range(_TRIES if self.limit is not None else 1000):
            path = tuple(int(choice) for choice in draw())
            if path in self._taken or (self.limit is not None and self.cost(path) > self.limit):
                continue
            self._taken.add(path)
            return path
        return None


class History:
    """The paths evaluated so far; each is written before the next one begins.

    Args:
        file: JSON lines.
        results: what an interrupted search has evaluated already.
    """

    def __init__(
        self,
        file: Path,
        results: dict[BlockPath, Evaluated],
        evaluator: PathEvaluator,
        draws: PathDraws,
        bar: tqdm,
    ) -> None:
        self.lines: list[Evaluated] = []
        self._file, self._results = file, results
        self._evaluator, self._draws, self._bar = evaluator, draws, bar

    def evaluate(self, path: BlockPath, generation: int) -> None:
        """Evaluate a path, unless its result is known."""
        line = self._results.get(path)
        if line is None:
            result = self._evaluator(path)
            line = {
                "path": list(path),
                "generation": generation,
                "top1": result.top1,
                "loss": result.loss,
                "images": result.images,
                "cost": self._draws.cost(path),
            }
            append_jsonl(self._file, [line])
        self.lines.append(line)
        best = self.ranked()[0]
        if line is best:
            log.info(
                "path %s: top-1 %.2f %%, %.2f %s, the best of %d",
                " ".join(map(str, path)),
                line["top1"],
                line["cost"],
                self._draws.table.unit,
                len(self.lines),
            )
        self._bar.update()
        self._bar.set_postfix(top1=f"{line['top1']:.2f}", best=f"{best['top1']:.2f}")

    def ranked(self) -> list[Evaluated]:
        """The best path first: of equal top-1 the one of lower loss."""
        return sorted(self.lines, key=lambda line: (-line["top1"], line["loss"]))


def _search_randomly(config: OneShotSearchConfig, draws: PathDraws, history: History) -> None:
    for path in draws.first(config.search_num):
        history.evaluate(path, 0)


def _evolve(config: OneShotSearchConfig, draws: PathDraws, history: History) -> None:
    """Algorithm 1 of the paper: random paths first, then generations of children of the best."""
    population = draws.first(config.population)
    for generation in range(config.generations):
        for path in population:
            history.evaluate(path, generation)
        if generation + 1 == config.generations:
            break
        parents = [np.array(line["path"]) for line in history.ranked()[: config.top_k]]
        population = [
            *draws.take(config.crossover, partial(_cross, draws.random, parents)),
            *draws.take(config.mutation, partial(_mutate, draws, parents, config.mutation_prob)),
        ]
        # Where parents are too much alike to have new children.
        population += draws.take(config.population - len(population), draws.any_path)


def _cross(random: np.random.Generator, parents: list[np.ndarray]) -> np.ndarray:
    """Each layer of one of two parents, (L,)."""
    one, other = (parents[i] for i in random.integers(len(parents), size=2))
    return np.where(random.random(len(one)) < 0.5, one, other)


def _mutate(draws: PathDraws, parents: list[np.ndarray], probability: float) -> np.ndarray:
    """A parent with some layers drawn anew, (L,)."""
    parent = parents[draws.random.integers(len(parents))]
    changed = draws.random.random(len(parent)) < probability
    return np.where(changed, draws.any_path(), parent)


def _write_found(
    config: OneShotSearchConfig,
    checkpoint: Checkpoint,
    evaluator: PathEvaluator,
    draws: PathDraws,
    history: History,
) -> None:
    """Write what was found: architecture and inherited weights."""
    folder, space, unit = Path(config.checkpoint_path), draws.space, draws.table.unit
    best, versions = history.ranked()[0], environment(config.device_target)
    path = tuple(best["path"])
    decisions = path_names(space, path)
    provenance = {
        "source": "search.py --method one_shot",
        "strategy": config.strategy,
        "path": list(path),
        "decisions": decisions,
        "top1": best["top1"],
        "images": best["images"],
        "precision": config.precision,
        "evaluated": len(history.lines),
        "cost": best["cost"],
        "unit": unit,
        "limit": draws.limit,
        "seed": config.seed,
        "supernet": checkpoint.path.name,
        "epochs": checkpoint.meta.epoch,
        "mindspore": versions["mindspore"],
        "commit": versions["commit"],
    }
    name = f"{config.name}_{best['cost']:.4g}{unit[0]}"
    arch = space.derive(decisions, name, provenance)
    write_json(folder / ARCH, arch.to_dict())
    evaluator.calibrate(path)
    weights = inherit(cell_weights(evaluator.network), path)
    metrics = {"top1": best["top1"]}
    write_inherited(folder, weights, replace(checkpoint.meta, arch=arch, step=0, metrics=metrics))
    log.info(
        "best of %d paths: %s, top-1 %.2f %%, %.2f %s; %s",
        len(history.lines),
        " ".join(map(str, path)),
        best["top1"],
        best["cost"],
        unit,
        folder / ARCH,
    )
