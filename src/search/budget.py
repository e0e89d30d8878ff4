"""What a search counts as cost, and the value that the cost should have.

The cost is latency by a table, multiply-adds or parameters. Imports no framework.
"""

from __future__ import annotations

import contextlib
import logging
import math

from src.arch.cost_table import CostTable, arithmetic_table, load_table, measured_name
from src.arch.space import SearchSpace
from src.config import OneShotSearchConfig, SearchConfig, ServeConfig
from src.data.preprocessing import Preprocessing
from src.data.sources import CIFAR10_CLASSES, open_sources
from src.errors import UserError
from src.latency.machine import days_since, processor_name
from src.latency.runtimes import installed_version

log = logging.getLogger(__name__)

DEFAULT_CLASSES = 1000  # where the number of classes is not known: those of ImageNet


def open_table(
    config: SearchConfig | OneShotSearchConfig | ServeConfig,
    space: SearchSpace,
    images: Preprocessing,
    num_classes: int | None,
) -> CostTable:
    """The table of costs that the configuration asks for.

    Args:
        config: names the cost and, for latency, the table.
        space: that is searched.
        images: the size of the images, for which arithmetic is counted.
        num_classes: outputs of the classifier, for which arithmetic is counted; None where not
            known.

    Raises:
        UserError: a table is missing, damaged, of another space or other images, or not for this
            cost.
    """
    if config.cost == "latency":
        if config.latency_table is None:
            raise UserError(
                "latency_table is not given; it names a shipped table (pixel1) or a table file, "
                "or --cost macs|params does without"
            )
        table = load_table(config.latency_table, space)
        _check_blocks(table, space, images)
        _warn_of_other_classes(table, num_classes)
        _warn_of_another_version(table)
        _tell_age(table)
        return table
    if config.latency_table is not None:
        raise UserError(
            f"latency_table is for --cost latency, cost is {config.cost}; give one of the two"
        )
    size = (images.height, images.width)
    return arithmetic_table(space, config.cost, num_classes or DEFAULT_CLASSES, size)


def _check_blocks(table: CostTable, space: SearchSpace, images: Preprocessing) -> None:
    """Raise UserError where a table was measured with other images, or another space of this name.

    Tables that were not measured by this project do not say what was measured.
    """
    side = table.provenance.get("image_size")
    if side and (side, side) != (images.height, images.width):
        raise UserError(
            f"latency table '{table.name}' is of images of {side}x{side}, these are of "
            f"{images.height}x{images.width}; scripts/profile_latency.py --input_size makes another"
        )
    measured = table.provenance.get("isolated")
    if not measured:
        return
    for name, layer, (height, width) in space.searched_inputs((images.height, images.width)):
        for choice in layer.choices:
            block = measured_name(layer.block(choice), height, width)
            if block not in measured:
                raise UserError(
                    f"latency table '{table.name}' was measured for a space '{space.name}' that "
                    f"has been edited since: it lacks block {block}, {choice} of {name}; "
                    "scripts/profile_latency.py makes another"
                )


def _warn_of_other_classes(table: CostTable, num_classes: int | None) -> None:
    """Warn where a table was measured with a classifier of another size: so is its constant."""
    measured = table.provenance.get("num_classes")
    if measured and num_classes and measured != num_classes:
        log.warning(
            "latency table '%s' was made with a classifier of %s classes, this one has %d; "
            "scripts/profile_latency.py --num_classes %d makes another",
            *(table.name, measured, num_classes, num_classes),
        )


def _warn_of_another_version(table: CostTable) -> None:
    """Warn where a table was measured with another runtime than is installed."""
    installed = installed_version(table.runtime)
    if installed not in (None, table.runtime):
        log.warning(
            "latency table '%s' was made with %s, installed is %s; "
            "scripts/profile_latency.py makes it again",
            table.name,
            table.runtime,
            installed,
        )


def _tell_age(table: CostTable) -> None:
    """Say how old the machine's speed in a table is, and what renews it if this is the machine."""
    facts = table.provenance
    # No date, or one of another program.
    with contextlib.suppress(TypeError, ValueError, LookupError, AttributeError):
        merged = [part["date"] for part in facts.get("merged", ()) if part["date"]]
        date = facts.get("rescaled", facts).get("date") or max(merged, default=None)
        age = days_since(str(date))
        can_renew = table.device == processor_name() and "networks" in facts
        advice = "; scripts/profile_latency.py --rescale measures it again in seconds"
        log.info(
            "table '%s': for the machine's speed of %d days ago (%s)%s",
            table.name,
            age,
            date,
            advice if can_renew else "",
        )


def cost_bound(config: SearchConfig | OneShotSearchConfig | ServeConfig) -> float | None:
    """The target or limit of the cost, in the unit of its table; None where none is given.

    Raises:
        UserError: the value given is one for another cost.
    """
    if config.cost == "latency":
        if config.target is not None:
            raise UserError(
                "target is for --cost macs and params; a latency has --target_latency_ms"
            )
        return config.target_latency_ms
    if config.target_latency_ms is not None:
        raise UserError(
            f"target_latency_ms is for --cost latency; {config.cost} have --target, in millions"
        )
    return config.target


def check_limit(table: CostTable, limit: float) -> None:
    """Raise UserError where no network is within a limit; one that all are within is none."""
    if not limit >= table.range()[0]:  # not a number is not within a limit either
        table.check_target(limit)


def parse_targets(key: str, text: str, table: CostTable) -> list[float]:
    """The costs of a key such as ``sweep``: numbers with commas between them.

    A number with % is a share of the way from the smallest to the largest network of ``table``.

    Raises:
        UserError: a word is no number, or two have one name.
    """
    low, high = table.range()
    try:
        targets = [
            low + float(word[:-1]) / 100 * (high - low) if word.endswith("%") else float(word)
            for word in text.split(",")
        ]
        if not all(map(math.isfinite, targets)):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{key} is '{text}', should be numbers with commas between them, for example 2,3 or "
            "30%,60%"
        ) from None
    if len(set(map(target_name, targets))) < len(targets):
        raise UserError(f"{key} is '{text}', should be numbers that differ in their first 4 digits")
    return targets


def target_name(target: float) -> str:
    """Name of the folder for one of several targets."""
    return f"target_{target:.4g}"


def count_classes(config: SearchConfig) -> int | None:
    """Classes that the flags or the data tell, for arithmetic costs; None where neither does."""
    if config.num_classes or config.cost == "latency":
        return config.num_classes
    if config.data_path is None:
        return len(CIFAR10_CLASSES) if config.dataset_name == "cifar10" else None
    sources = open_sources(config.dataset_name, config.data_path, splits=("train",))
    return len(sources["train"].classes)
