"""Networks of an elastic supernet for limits of latency, without another training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from src.arch.cost import network_cost
from src.arch.cost_table import CostTable
from src.arch.space import Network, SearchSpace
from src.checkpoint.format import Checkpoint, Meta, Weights
from src.checkpoint.packed import Packed, find_packed, read_packed
from src.checkpoint.restore import cell_weights, write_inherited
from src.config import PLACE_KEYS, SUPERNET_KEYS, ServeConfig, TrainConfig
from src.data.sources import names_digest
from src.errors import UserError
from src.files import different_settings, has_checkpoints, make_folder, read_json, write_json
from src.result_files import ACCURACIES, ARCH, FRONT, IMAGES, INHERITED, RUN, SERVE, SPACE
from src.search.budget import check_limit, cost_bound, open_table, parse_targets, target_name
from src.search.choosing import Choice, Chooser, Predictor, decide
from src.search.subnet_accuracies import Accuracies
from src.search.subnet_evaluation import (
    SuperkernelEvaluator,
    describe_images,
    open_images,
    read_supernet,
)
from src.search.superkernel import inherit
from src.training.single import train_network
from src.utils import environment

log = logging.getLogger(__name__)

FINETUNE_RATE = 0.1  # of the supernet's base learning rate
_RESULTS = (ARCH, INHERITED)  # of each served network
# Keys that may change when a folder's evaluations are used again.
_FREE_KEYS = PLACE_KEYS | {"from_supernet"}
# Keys by which a served network is trained on as it was evaluated.
_DEVICE_KEYS = (
    "device_target",
    "device_id",
    "cpu_kernels",
    "jit_level",
    "num_parallel_workers",
)


def serve(config: ServeConfig) -> int:
    """Choose a network for each limit; returns the exit code.

    Networks go to ``checkpoint_path``, or where there are several limits to a folder in it for each
    of them. Every evaluation is written before the next one begins, so that the same command goes
    on where it was interrupted.

    Raises:
        UserError: the checkpoint holds no supernet of superkernels, a limit or table does not fit,
            no images were held out, or the folder holds other networks.
    """
    packed = find_packed(config.from_supernet or "")
    if packed and config.data_path is None:
        return _serve_packed(config, read_packed(packed))
    checkpoint, space = read_supernet(config.from_supernet)
    if space.one_shot:
        raise UserError(
            f"{checkpoint.path}: holds a one-shot supernet; search.py --method one_shot searches it"
        )
    table = _open_table(config, checkpoint.meta)
    limits = find_limits(config, table, table.range()[0])
    folder = _choose(config, checkpoint, space, table, limits)
    for limit in limits if config.finetune_epochs else ():
        code = _finetune(config, checkpoint, _place(folder, limit, limits))
        if code:
            return code
    return 0


def _choose(
    config: ServeConfig,
    checkpoint: Checkpoint,
    space: SearchSpace,
    table: CostTable,
    limits: list[float],
) -> Path:
    """Choose a network for each limit by images, and write them; returns the folder."""
    images = open_images(config, checkpoint, space, "held")
    folder = _open_folder(config, checkpoint, table, limits, "images")
    with images.compiling:
        evaluator = SuperkernelEvaluator(checkpoint, images)
        names = names_digest(images.validation.source)
        accuracies = Accuracies(
            folder / ACCURACIES, config, "held", checkpoint, space, names, evaluator
        )
        with tqdm(total=config.evaluations, unit="network", leave=False, disable=None) as bar:

            def evaluate(network: Network) -> float:
                bar.update()
                return accuracies(network)["top1"]

            chooser = Chooser(space, table, limits, evaluate, config.seed)
            choices = chooser.choose(config.evaluations)

        def own_weights(network: Network) -> Weights:
            evaluator.calibrate(network)
            return inherit(cell_weights(evaluator.network), space, network)

        origin = Origin(checkpoint.path.name, checkpoint.meta, space, len(chooser.known))
        _write_all(config, origin, table, choices, own_weights)
    return folder


def _serve_packed(config: ServeConfig, packed: Packed) -> int:
    """Choose among the networks that a packed supernet has statistics of; no image is needed."""
    if config.finetune_epochs:
        raise UserError("finetune_epochs needs images to train on: --data_path names their folder")
    for key in config.changed(
        *("evaluations", "val_images", "calibration_images", "batch_size", "seed"),
        *("dataset_name", "val_data_path"),
    ):
        raise UserError(
            f"{key} is for evaluations: --data_path names the folder of their images, without "
            f"it networks are chosen by what {packed.path} knows of them"
        )
    space = packed.meta.space
    assert space is not None
    table = _open_table(config, packed.meta)
    candidates = [network for network in packed.statistics if network in packed.accuracies]
    if not candidates:
        raise UserError(f"{packed.path}: holds no network with accuracy and statistics")
    least = min(map(table.total, candidates))
    limits = find_limits(config, table, least)
    if min(limits) < least:
        raise UserError(
            f"{packed.path}: of its {len(candidates)} networks that need no images the "
            f"cheapest costs {least:.4g} {table.unit}, more than {min(limits):.4g}; --data_path "
            "lets any network be chosen"
        )
    _open_folder(config, packed.checkpoint(), table, limits, "accuracies in its file")

    def own_weights(network: Network) -> Weights:
        return {**inherit(packed.weights, space, network), **packed.statistics[network]}

    predictor = Predictor(space, packed.accuracies)
    choices = [decide(predictor, table, limit, candidates) for limit in limits]
    origin = Origin(packed.path.name, packed.meta, space, len(packed.accuracies))
    _write_all(config, origin, table, choices, own_weights)
    return 0


def _open_table(config: ServeConfig, meta: Meta) -> CostTable:
    assert meta.space is not None
    return open_table(config, meta.space, meta.preprocessing, len(meta.classes))


class Origin(NamedTuple):
    """The supernet that networks are served from.

    Attributes:
        name: of its file.
        evaluated: networks whose accuracies are known.
    """

    name: str
    meta: Meta
    space: SearchSpace
    evaluated: int


def _write_all(
    config: ServeConfig,
    origin: Origin,
    table: CostTable,
    choices: Sequence[Choice],
    own_weights: Callable[[Network], Weights],
) -> None:
    """Write the networks and their front; tell what they are."""
    folder, limits = Path(config.checkpoint_path), [choice.limit for choice in choices]
    rows = [
        _write_network(
            *(config, origin, table, choice, _place(folder, choice.limit, limits)),
            own_weights(choice.decisions),
        )
        for choice in choices
    ]
    write_json(folder / FRONT, {"unit": table.unit, "networks": rows})
    _tell(rows, table.unit, origin.evaluated)


def find_limits(config: ServeConfig, table: CostTable, least: float) -> list[float]:
    """The limits that the configuration asks for, in the unit of the table.

    Args:
        least: cost of the cheapest network that can be served, where a front begins.

    Raises:
        UserError: there is none, there are several kinds, or no network is within one of them.
    """
    bound = cost_bound(config)
    if sum((bound is not None, bool(config.sweep), bool(config.front))) != 1:
        raise UserError(
            "one of target_latency_ms (target for macs and params), sweep and front says what the "
            "networks may cost"
        )
    if config.front == 1:
        raise UserError("front is 1, should be 2 or more: the first of them is the cheapest")
    if config.front:
        return np.linspace(least, table.range()[1], config.front).tolist()
    limits = [bound] if bound is not None else parse_targets("sweep", config.sweep or "", table)
    for limit in limits:
        check_limit(table, limit)
    return limits


def _place(folder: Path, limit: float, limits: list[float]) -> Path:
    """Folder of the network for a limit."""
    return folder if len(limits) == 1 else folder / target_name(limit)


def _open_folder(
    config: ServeConfig, supernet: Checkpoint, table: CostTable, limits: list[float], chosen_by: str
) -> Path:
    """The folder of the results, with settings and space.

    Raises:
        UserError: networks of other settings or of another program are there.
    """
    meta = supernet.meta
    assert meta.space is not None
    folder = make_folder(Path(config.checkpoint_path))
    settings = {
        **config.model_dump(mode="json", exclude=set(_FREE_KEYS)),
        "epoch": meta.epoch,
        "step": meta.step,
        "costs": table.digest(),
        "weights": supernet.digest(),
        "chosen_by": chosen_by,
        IMAGES: describe_images(config, meta),
    }
    file = folder / SERVE
    if file.is_file():
        before = {**settings, **read_json(file)}  # older files lack some keys
        for key, (old, new) in different_settings(before, settings, free=(IMAGES,)).items():
            raise UserError(
                f"{file}: {key} was {old!r} for the networks in this folder, and is {new!r} now; "
                "another --checkpoint_path starts beside them"
            )
    else:
        places = [_place(folder, limit, limits) / name for limit in limits for name in _RESULTS]
        for place in filter(Path.exists, places):
            raise UserError(
                f"{place}: is there already, not of this command; another --checkpoint_path leaves "
                "it as it is"
            )
    write_json(file, settings)
    write_json(folder / SPACE, meta.space.to_dict())
    return folder


def _write_network(
    config: ServeConfig,
    origin: Origin,
    table: CostTable,
    choice: Choice,
    place: Path,
    weights: Weights,
) -> dict[str, Any]:
    """Write architecture and weights of a network; returns its row of the front."""
    make_folder(place)
    meta, space = origin.meta, origin.space
    versions, unit = environment(config.device_target), table.unit
    provenance = {
        "source": "search.py --from_supernet",
        **asdict(choice),
        "unit": unit,
        "table": table.name,
        "device": table.device,
        "supernet": origin.name,
        "epochs": meta.epoch,
        "seed": config.seed,
        "mindspore": versions["mindspore"],
        "commit": versions["commit"],
    }
    arch = space.derive(choice.decisions, f"{config.name}_{choice.cost:.4g}{unit[0]}", provenance)
    write_json(place / ARCH, arch.to_dict())
    own = replace(meta, arch=arch, step=0, metrics={"top1": choice.top1})
    write_inherited(place, weights, own)
    size = meta.preprocessing.height, meta.preprocessing.width
    cost = network_cost(arch, len(meta.classes), size)
    return {
        "target": choice.limit,
        "cost": choice.cost,
        "top1": choice.top1,
        "predicted": choice.predicted,
        "error": choice.error,
        "macs": round(cost.macs / 1e6, 6),
        "params": round(cost.params / 1e6, 6),
        "arch": str(place / ARCH),
    }


def _tell(rows: list[dict[str, Any]], unit: str, evaluated: int) -> None:
    """Print the networks as a table."""
    log.info(
        "%10s %10s %8s %10s %6s %9s %9s   (%s; top-1 of held-out images with inherited weights, "
        "and by a regression over %d networks with its error)",
        *("limit", "cost", "top-1", "predicted", "+-", "M macs", "M params"),
        unit,
        evaluated,
    )
    for row in rows:
        log.info(
            "%10.4g %10.4g %8.2f %10.2f %6s %9.2f %9.3f   %s",
            *(row["target"], row["cost"], row["top1"], row["predicted"]),
            "-" if row["error"] is None else f"{row['error']:.2f}",
            *(row["macs"], row["params"], row["arch"]),
        )


def _finetune(config: ServeConfig, checkpoint: Checkpoint, place: Path) -> int:
    """Train a network on from its inherited weights; returns the exit code."""
    trained = checkpoint.meta.config
    own = {
        **{
            key: trained[key]
            for key in TrainConfig.model_fields
            if key in trained and key not in SUPERNET_KEYS
        },
        "space": None,
        "arch": str(place / ARCH),
        "pre_trained": str(place / INHERITED),
        "epoch_size": config.finetune_epochs,
        "lr_init": FINETUNE_RATE * trained["lr_init"],
        "lr_scheduler": "cosine",
        "warmup_epochs": 0.0,
        "val_while_train": True,
        "checkpoint_path": str(place / "finetuned"),
        "resume": has_checkpoints(place / "finetuned" / RUN),
        "profile_steps": None,
        # MindSpore's cache knows graphs by their order in the process.
        "compile_cache": False,
        **{
            key: value
            for key, value in config.model_dump().items()
            if key in ("dataset_name", "data_path", "val_data_path") and value is not None
        },
        **{key: getattr(config, key) for key in _DEVICE_KEYS},
    }
    return train_network(TrainConfig.model_validate(own))
