"""Accuracies of many networks of one supernet, as a file that grows network by network."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from src.arch.cost_table import CostTable, arithmetic_table
from src.arch.sampling import sample_decisions
from src.arch.space import SearchSpace
from src.config import SubnetConfig
from src.errors import UserError
from src.files import append_jsonl, different_settings, make_folder, read_jsonl, write_jsonl
from src.search.budget import parse_targets
from src.search.indicators import without_parts
from src.search.subnet_evaluation import SuperkernelEvaluator, open_images, read_supernet

log = logging.getLogger(__name__)

FORMAT, VERSION = "spnas-subnets", 1
NEAR = 0.02  # relative distance from a cost
MOST = 100_000  # networks of a space that is enumerated


def evaluate_subnets(config: SubnetConfig) -> int:
    """Evaluate the networks that the configuration asks for; returns the exit code.

    ``config.out`` gets a header and a line per network: ``decisions``, ``macs`` in millions,
    ``top1`` and ``top5`` in percent and ``loss``. Networks that are in it already are left out.

    Raises:
        UserError: the checkpoint holds no superkernel supernet, or the file is of another one.
    """
    checkpoint, space = read_supernet(config.ckpt)
    if space.one_shot:
        raise UserError(
            f"{checkpoint.path}: holds a one-shot supernet; search.py --method one_shot evaluates "
            "its paths"
        )
    meta = checkpoint.meta
    size = meta.preprocessing.height, meta.preprocessing.width
    table = arithmetic_table(space, "macs", len(meta.classes), size)
    chosen = choose(space, table, config)
    out = Path(config.out)
    make_folder(out.parent)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "space": space.name,
        "supernet": meta.config.get("name"),
        "epoch": meta.epoch,
        "step": meta.step,
        "seed": meta.config.get("seed"),
        "calibration_images": config.calibration_images,
        "val_images": config.val_images,
    }
    done = _take_up(out, header)
    chosen = [decisions for decisions in chosen if decisions not in done]
    images = open_images(config, checkpoint, space)
    with images.compiling:
        evaluator = SuperkernelEvaluator(checkpoint, images)
        for decisions in tqdm(chosen, unit="network", leave=False, disable=None):
            result = evaluator(decisions)
            line = {
                "decisions": list(decisions),
                "macs": round(table.total(decisions), 6),
                "top1": result.top1,
                "top5": result.top5,
                "loss": result.loss,
            }
            append_jsonl(out, [line])
    log.info("%d networks, %d of them now: %s", len(done) + len(chosen), len(chosen), out)
    return 0


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
        targets = parse_targets("near", config.near) if config.near else []
        for decisions in space.networks():
            cost = table.total(decisions)
            if not targets or any(abs(cost / target - 1) <= NEAR for target in targets):
                found[decisions] = None
    if config.even:
        low, high = table.range()
        # The ends have few networks near them.
        for number, target in enumerate(np.linspace(low, high, config.even + 2)[1:-1]):
            drawn = sample_decisions(
                space, table, target, 1, tolerance=0.05, seed=config.seed + number
            )
            found[tuple(drawn[0])] = None
    return list(found)


def _take_up(out: Path, header: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """Networks that the file has already; starts it where there is none."""
    if not out.is_file():
        write_jsonl(out, [header])
        return set()
    before, *lines = read_jsonl(out) or [{}]
    for key, (old, new) in different_settings(before, header).items():
        raise UserError(f"{out}: {key} is {old!r} there, and {new!r} now")
    # What a crash cut short is left out, so that lines can follow.
    write_jsonl(out, [before, *lines])
    return {tuple(line["decisions"]) for line in lines}
