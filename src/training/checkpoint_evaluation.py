"""Evaluation of the checkpoints of a folder: a table of their accuracies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src.checkpoint.folder import CheckpointFolder
from src.checkpoint.format import read_checkpoint
from src.checkpoint.restore import build_network, open_source
from src.config import EvalConfig
from src.dataset import Loader
from src.devices.ranks import Ranks
from src.errors import EXIT_FAULT, UserError
from src.files import make_folder, write_json
from src.kernels import use_kernels
from src.result_files import BEST
from src.training.classes import OfClass, of_classes
from src.training.compile_cache import CompileCache
from src.training.evaluation import evaluate
from src.utils import setup_device

log = logging.getLogger(__name__)

SHOWN = 5  # classes on the terminal; the file holds all


def evaluate_checkpoints(config: EvalConfig) -> int:
    """Evaluate what the configuration selects and write a table; returns the exit code."""
    files = find_checkpoints(config.checkpoint_path, config.which)
    output = Path(config.output) if config.output else files[0].parent / "eval.json"
    if output.is_dir():
        raise UserError(f"output is '{output}', a folder; should be a JSON file")
    make_folder(output.parent)
    ranks = setup_device(config.device_target, config.device_id, config.jit_level)
    rows, bad, by_file = [], {}, []
    for file in files:
        row, classes, bad_here = _evaluate_file(file, config, ranks)
        rows.append(row)
        by_file.append(classes)
        bad.update(bad_here)
    _print_table(rows)
    for classes in by_file:
        _print_classes(classes)
    if ranks.rank == 0:
        write_json(output, {"results": rows, "bad_images": bad})
    if bad:
        log.error("%d images could not be evaluated; they are listed in %s", len(bad), output)
        return EXIT_FAULT
    return 0


def find_checkpoints(name: str | Path, which: str) -> list[Path]:
    """Checkpoint files that are selected: a file itself, of a folder "best", "last" or "all"."""
    path = Path(name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint or folder")
    best = path / BEST
    if which == "best" and best.is_file():
        return [best]
    files = [path / entry.file for entry in CheckpointFolder(path).entries()]
    if not files:
        raise UserError(f"{path}: holds no checkpoint that can be read")
    return files if which == "all" else files[-1:]


def _evaluate_file(
    file: Path, config: EvalConfig, ranks: Ranks
) -> tuple[dict[str, Any], list[OfClass], dict[str, str]]:
    """The row of a checkpoint, its classes, and the images that could not be evaluated and why."""
    checkpoint = read_checkpoint(file)
    meta, source = checkpoint.meta, open_source(checkpoint, config, "val")
    loader = Loader(
        source,
        meta.preprocessing,
        batch_size=min(config.batch_size, len(source)),
        training=False,
        num_parallel_workers=config.num_parallel_workers,
        rank=ranks.rank,
        device_num=ranks.size,
    )
    kernels = use_kernels(config.cpu_kernels)
    # The operators are fastest on the folded network; MindSpore's own gain little by folding.
    network = build_network(checkpoint, kernels=kernels, folded=kernels)
    graph_values = {
        "evaluate": meta.arch.to_dict(),
        "classes": len(source.classes),
        "batch_size": loader.batch_size,
        "preprocessing": meta.preprocessing.to_dict(),
        "device": config.device_target,
        "kernels": kernels,
        "jit_level": config.jit_level,
    }
    with (
        CompileCache(graph_values, config.compile_cache and ranks.size == 1),
        tqdm(total=len(source), unit="image", leave=False, disable=None) as bar,
    ):
        num_classes = len(source.classes) if config.per_class else None
        result = evaluate(network, loader, bar.update, ranks, num_classes)
    own = {source.name(index): reason for index, reason in loader.bad_images.items()}
    bad: dict[str, str] = {}
    for of_rank in ranks.gather(own):
        bad.update(of_rank)
    row = {
        key: value for key, value in vars(result).items() if key not in ("networks", "confusion")
    }
    classes: list[OfClass] = []
    if result.confusion is not None:
        classes = of_classes(source.classes, result.confusion)
        row["per_class"] = [of_class.to_dict() for of_class in classes]
    return {"file": str(file), "epoch": meta.epoch, **row}, classes, bad


def _print_table(rows: list[dict[str, Any]]) -> None:
    width = max(len(row["file"]) for row in rows)
    log.info("%s  epoch   top-1   top-5    loss  images  images/s", "file".ljust(width))
    for row in rows:
        log.info(
            "%s  %5d  %6.2f  %6.2f  %6.4f  %6d  %8.1f",
            row["file"].ljust(width),
            row["epoch"],
            row["top1"],
            row["top5"],
            row["loss"],
            row["images"],
            row["images_per_second"],
        )


def _print_classes(classes: Sequence[OfClass]) -> None:
    """The classes of a checkpoint that are recognised least, where they were counted."""
    seen = [(of_class.top1, of_class) for of_class in classes if of_class.top1 is not None]
    for top1, of_class in sorted(seen, key=lambda pair: pair[0])[:SHOWN]:
        log.info(
            "class %s: top-1 %.2f of %d images%s",
            of_class.name,
            top1,
            of_class.images,
            f", taken most often for {of_class.taken_for}" if of_class.taken_for else "",
        )
