"""Packing an elastic supernet for users who have neither its images nor the time to train it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.arch.cost_table import CostTable
from src.arch.space import Network
from src.checkpoint.packed import SUFFIX, Packed, statistics_file, write_packed
from src.checkpoint.restore import cell_weights
from src.config import PackConfig
from src.errors import UserError
from src.files import make_folder
from src.search.choosing import Predictor
from src.search.subnet_accuracies import multiply_adds, read_accuracies
from src.search.subnet_evaluation import SuperkernelEvaluator, open_images, read_supernet
from src.search.superkernel import inherit

log = logging.getLogger(__name__)

# Keys that say where something lay on the machine that trained.
_PLACES = ("data_path", "val_data_path", "checkpoint_path", "pre_trained", "compile_cache")


def pack_supernet(config: PackConfig) -> int:
    """Write a packed supernet; returns the exit code.

    Statistics are those of networks over the range of multiply-adds of those that were evaluated,
    and of the largest network.

    Raises:
        UserError: the checkpoint holds no elastic supernet, or the accuracies are of another one.
    """
    checkpoint, space = read_supernet(config.ckpt)
    if space.one_shot:
        raise UserError(f"{checkpoint.path}: holds a one-shot supernet, which cannot be packed")
    out = Path(config.out)
    if out.suffix != SUFFIX:
        raise UserError(f"out is '{config.out}', should end in {SUFFIX}")
    if config.accuracies is None:
        raise UserError("accuracies is not given, should be a file of scripts/evaluate_subnets.py")
    table = multiply_adds(checkpoint, space)
    known = read_accuracies(Path(config.accuracies), checkpoint, space)
    chosen = [
        min(known, key=table.total),  # so that there is a network for any limit
        *along_costs(Predictor(space, known), table, config.networks),
        space.largest_choices,  # which stands for the supernet itself
    ]
    # What is packed is rounded: statistics are those of the rounded weights.
    weights = {
        name: value.astype(np.float16).astype(np.float32)
        for name, value in checkpoint.network_weights().items()
    }
    images = open_images(config, checkpoint, space, split=None)
    make_folder(out.parent)
    statistics = {}
    with images.compiling:
        evaluator = SuperkernelEvaluator(replace(checkpoint, weights=weights), images)
        for network in tqdm(sorted(set(chosen)), unit="network", leave=False, disable=None):
            evaluator.calibrate(network)
            own = inherit(cell_weights(evaluator.network), space, network)
            # Copies: the next network's statistics go where these lie.
            statistics[network] = {
                name: value.copy() for name, value in own.items() if ".moving_" in name
            }
    trained = {key: value for key, value in checkpoint.meta.config.items() if key not in _PLACES}
    meta = replace(checkpoint.meta, config=trained)
    parameters = {name: value for name, value in weights.items() if ".moving_" not in name}
    write_packed(Packed(out, meta, parameters, known, statistics))
    log.info(
        "%s: %.2f MB with accuracies of %d networks; %s: %.2f MB, statistics of %d",
        *(out, out.stat().st_size / 1e6, len(known)),
        *(statistics_file(out).name, statistics_file(out).stat().st_size / 1e6, len(statistics)),
    )
    return 0


def along_costs(predictor: Predictor, table: CostTable, parts: int) -> list[Network]:
    """Of each of so many equal parts of the range of costs the network of which most is expected.

    Also where larger networks are hardly better. Parts without a network are left out.
    """
    known = list(predictor.known)
    costs = np.array([table.total(network) for network in known])
    expected = predictor(known)
    width = (costs.max() - costs.min()) / parts or 1.0
    numbers = np.minimum((costs - costs.min()) // width, parts - 1)
    return [
        known[max(np.flatnonzero(numbers == number), key=lambda place: expected[place])]
        for number in np.unique(numbers)
    ]
