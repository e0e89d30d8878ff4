"""Accuracies of many networks of one supernet, as a file that grows network by network."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from src.arch.cost_table import CostTable, arithmetic_table
from src.arch.sampling import UniformInCost
from src.arch.space import Network, SearchSpace, SpaceError
from src.checkpoint.format import Checkpoint
from src.checkpoint.restore import held_out
from src.config import SubnetConfig, SubnetDataConfig
from src.data.sources import names_digest
from src.errors import UserError
from src.files import append_jsonl, different_settings, make_folder, read_jsonl, write_jsonl
from src.result_files import ACCURACIES_FORMAT, ACCURACIES_VERSION, IMAGES
from src.search.budget import parse_targets
from src.search.indicators import without_parts
from src.search.subnet_evaluation import (
    Split,
    SuperkernelEvaluator,
    describe_images,
    open_images,
    read_supernet,
)
from src.training.evaluation import Result

log = logging.getLogger(__name__)

NEAR = 0.02  # relative distance from a cost
MOST = 100_000  # networks of a space that is enumerated


def evaluate_subnets(config: SubnetConfig) -> int:
    """Evaluate the networks that the configuration asks for; returns the exit code.

    They are written to ``config.out`` (``Accuracies``). Networks that are in it are left out.

    Raises:
        UserError: the checkpoint holds no superkernel supernet, or the file is of another one.
    """
    checkpoint, space = read_supernet(config.ckpt)
    if space.one_shot:
        raise UserError(
            f"{checkpoint.path}: holds a one-shot supernet; search.py --method one_shot evaluates "
            "its paths"
        )
    chosen = choose(space, multiply_adds(checkpoint, space), config)
    out = Path(config.out)
    make_folder(out.parent)
    split = config.split or ("held" if held_out(checkpoint) else "val")
    images = open_images(config, checkpoint, space, split)
    with images.compiling:
        evaluator = SuperkernelEvaluator(checkpoint, images)
        names = names_digest(images.validation.source)
        accuracies = Accuracies(out, config, split, checkpoint, space, names, evaluator)
        before = len(accuracies)
        # In this order neighbours have most layers in common, which are computed once.
        for decisions in tqdm(sorted(chosen), unit="network", leave=False, disable=None):
            accuracies(decisions)
    log.info("%d networks, %d of them now: %s", len(accuracies), len(accuracies) - before, out)
    return 0


def multiply_adds(checkpoint: Checkpoint, space: SearchSpace) -> CostTable:
    """Those of a supernet's networks, in millions."""
    meta = checkpoint.meta
    size = meta.preprocessing.height, meta.preprocessing.width
    return arithmetic_table(space, "macs", len(meta.classes), size)


class Accuracies:
    """Accuracies of a supernet's networks in a file, where each is looked up or evaluated.

    The file has a header and a line per network: ``decisions``, ``macs`` in millions, ``top1`` and
    ``top5`` in percent and ``loss``. A line is written before the next network is evaluated.

    Args:
        file: JSON lines; taken up where it is there already.
        config: of the evaluation.
        split: of which the images for the accuracy are.
        checkpoint: the supernet.
        space: that of the supernet.
        names: digest of those of the images for the accuracy.
        evaluate: accuracy of a network.

    Raises:
        UserError: the file is of another supernet or evaluation.
    """

    def __init__(
        self,
        file: Path,
        config: SubnetDataConfig,
        split: Split,
        checkpoint: Checkpoint,
        space: SearchSpace,
        names: str,
        evaluate: Callable[[Sequence[str]], Result],
    ) -> None:
        header = {
            "format": ACCURACIES_FORMAT,
            "version": ACCURACIES_VERSION,
            **_origin(checkpoint, space),
            "split": split,
            "batch_size": config.batch_size,
            "calibration_images": config.calibration_images,
            "val_images": config.val_images,
            "names": names,
            IMAGES: describe_images(config, checkpoint.meta),
        }
        self._file, self._evaluate = file, evaluate
        self._table = multiply_adds(checkpoint, space)
        self._lines = _take_up(file, space, header)

    def __len__(self) -> int:
        return len(self._lines)

    def __call__(self, decisions: Sequence[str]) -> dict[str, Any]:
        """The line of a network."""
        network = tuple(decisions)
        if network not in self._lines:
            result = self._evaluate(network)
            line = {
                "decisions": list(network),
                "macs": round(self._table.total(network), 6),
                "top1": result.top1,
                "top5": result.top5,
                "loss": result.loss,
            }
            append_jsonl(self._file, [line])
            self._lines[network] = line
        return self._lines[network]


def read_accuracies(file: Path, checkpoint: Checkpoint, space: SearchSpace) -> dict[Network, float]:
    """Top-1 of each network in a file of ``Accuracies``, in percent.

    They are for choosing networks, so they must not be of test images where the training has kept
    others apart.

    Raises:
        UserError: there is no such file, it has no networks, it is of another supernet, or of test
            images.
    """
    if not file.is_file():
        raise UserError(f"accuracies is '{file}', should be a file of scripts/evaluate_subnets.py")
    header, *lines = read_jsonl(file) or [{}]
    if header.get("format") != ACCURACIES_FORMAT or not lines:
        raise UserError(f"{file}: holds no accuracies of scripts/evaluate_subnets.py")
    for key, (there, here) in different_settings(
        {**_origin(checkpoint, space), **header}, {**header, **_origin(checkpoint, space)}
    ).items():
        raise UserError(f"{file}: {key} is {there!r} there, and {here!r} in {checkpoint.path}")
    if held_out(checkpoint) and header.get("split") != "held":
        raise UserError(
            f"{file}: split is {header.get('split')!r}, should be 'held': test images should not "
            "choose a network"
        )
    return {network: line["top1"] for network, line in _by_network(file, space, lines).items()}


def _by_network(
    file: Path, space: SearchSpace, lines: Iterable[dict[str, Any]]
) -> dict[Network, dict[str, Any]]:
    found = {}
    for line in lines:
        try:
            network, known = tuple(line["decisions"]), math.isfinite(line["top1"])
            space.check(network)
        except (KeyError, TypeError, SpaceError):
            known = False
        if not known:
            raise UserError(
                f"{file}: '{json.dumps(line)[:60]}' is a line of no network of space "
                f"'{space.name}', or without its accuracy"
            )
        found[network] = line
    return found


def _origin(checkpoint: Checkpoint, space: SearchSpace) -> dict[str, Any]:
    """Keys of a header that say which supernet the accuracies are of."""
    meta = checkpoint.meta
    return {
        "space": space.name,
        "supernet": meta.config.get("name"),
        "epoch": meta.epoch,
        "step": meta.step,
        "seed": meta.config.get("seed"),
        "weights": checkpoint.digest(),
    }


def choose(space: SearchSpace, table: CostTable, config: SubnetConfig) -> list[tuple[str, ...]]:
    """Decisions of the networks to evaluate; without a choice, all networks of the space."""
    found: dict[tuple[str, ...], None] = {}  # a set that keeps its order
    if config.parts:
        found.update(dict.fromkeys([space.largest_choices, *without_parts(space).values()]))
    if config.near or not (config.even or config.parts):
        if space.size() > MOST:
            raise UserError(
                f"space '{space.name}' has {space.size():,} networks, too many for near or for all "
                "of them; --even draws some"
            )
        targets = parse_targets("near", config.near, table) if config.near else []
        for target in targets:
            table.check_target(target)
        for decisions in space.networks():
            cost = table.total(decisions)
            if not targets or any(abs(cost / target - 1) <= NEAR for target in targets):
                found[decisions] = None
    if config.even:
        random, drawn = np.random.default_rng(config.seed), UniformInCost(space, table)
        found.update(dict.fromkeys(drawn.distinct(random, config.even, set(found))))
    return list(found)


def _take_up(
    file: Path, space: SearchSpace, header: Mapping[str, Any]
) -> dict[Network, dict[str, Any]]:
    """Lines that the file has already, by network; starts it where there is none."""
    if not file.is_file() or not file.stat().st_size:
        write_jsonl(file, [header])
        return {}
    before, *lines = read_jsonl(file) or [{}]
    if not isinstance(before, dict) or before.get("format") != ACCURACIES_FORMAT:
        raise UserError(f"{file}: is there already, and holds no accuracies; give another file")
    # Older files lack some keys.
    for key, (old, new) in different_settings({**header, **before}, header).items():
        raise UserError(f"{file}: {key} is {old!r} there, and {new!r} now")
    # What a crash cut short is left out, so that lines can follow.
    write_jsonl(file, [{**before, IMAGES: header[IMAGES]}, *lines])
    return _by_network(file, space, lines)
