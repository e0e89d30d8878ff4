"""Weights of earlier trainings for a network: this project's, the model zoo's or timm's.

A file is recognised by the name that its stem has. Model zoo and timm number blocks within stages,
this project throughout; blocks correspond by their order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor, nn
from safetensors.numpy import load_file

from src.checkpoint.format import META, NETWORK_NAME, network_weights, read_entries
from src.data.safe_pickle import damage_reported, load_torch
from src.errors import UserError

SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt")
FOREIGN_EPSILON = 1e-5  # of batch normalisation in the model zoo's spnasnet and timm's spnasnet_100

_STEMS = {
    "project": "stem.conv.weight",
    "model zoo": "features.0.conv1.conv.weight",
    "timm": "conv_stem.weight",
}
_ZOO_BLOCK = re.compile(r"features\.(0\.conv2|[1-4]\.\d+|5\.conv1)(?=\.)")
_TIMM_BLOCK = re.compile(r"blocks\.\d+\.\d+(?=\.)")
_TIMM_ENDS = {
    "conv_stem": "stem.conv",
    "bn1": "stem.bn",
    "conv_head": "head.conv",
    "bn2": "head.bn",
    "classifier": "classifier",
}
_TIMM_BN = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_PARTS = ("expand", "depthwise", "project")


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's weights.

    Attributes:
        source: whose names the file uses: "project", "model zoo" or "timm".
        loaded: parameters of the network that the file gave.
        fresh: parameters of the network that keep their initial values.
        unused: entries of the file that the network has no place for.
        notes: sentences on what else matters to the user.
    """

    path: Path
    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]

    def summary(self) -> str:
        """One line for the log, and a further one for everything that is not as expected."""
        total = len(self.loaded) + len(self.fresh)
        lines = [
            f"{self.path}: {len(self.loaded)} of {total} parameters loaded ({self.source} names)"
        ]
        if self.fresh:
            lines.append(f"initial values kept: {_some(self.fresh)}")
        if self.unused:
            lines.append(f"in the file, but not of this network: {_some(self.unused)}")
        return "\n  ".join([*lines, *self.notes])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file, under the names they have there.

    Of a checkpoint of this project, known by its ``meta``, these are only the network's; averaged
    ones (``ema.<name>``) stand in place of those that they average.

    Raises:
        UserError: there is no such file, it is of an unknown kind, or damaged.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: weights come in files that end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".ckpt":
        return _read_checkpoint(path)
    if path.suffix == ".safetensors":
        with damage_reported(path, "safetensors file"):
            return load_file(path)
    entries = load_torch(path)
    # The file of a training holds the weights beside epoch and optimizer.
    if isinstance(entries, Mapping) and "state_dict" in entries:
        entries = entries["state_dict"]
    if not isinstance(entries, Mapping):
        raise UserError(f"{path}: holds {type(entries).__name__}, should hold a state dict")
    return {name: value for name, value in entries.items() if isinstance(value, np.ndarray)}


def _read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    entries = read_entries(path)
    weights = {name: value for name, value in entries.items() if isinstance(value, np.ndarray)}
    return network_weights(weights) if isinstance(entries.get(META), str) else weights


def to_project_names(names: Collection[str], origin: str | Path) -> tuple[str, dict[str, str]]:
    """Whose names these are, and the project's name for each that has one.

    A prefix that the names of the network share (``huawei``, ``module.``) is dropped.

    Raises:
        UserError: no known stem is among them; ``origin`` names the file.
    """
    prefixes = {
        source: [name[: -len(stem)] for name in names if name.endswith(stem)]
        for source, stem in _STEMS.items()
    }
    source = next((source for source in prefixes if prefixes[source]), None)
    if source is None:
        raise UserError(
            f"{origin}: holds no weights of such a network; expected one of the names "
            f"{', '.join(_STEMS.values())}, found {_some(sorted(names)) or 'none'}"
        )
    # The state of an optimizer has longer prefixes (moments.huawei...).
    prefix = min(prefixes[source], key=len)
    bare = {name[len(prefix) :]: name for name in names if name.startswith(prefix)}
    if source == "project":
        return source, {name: rest for rest, name in bare.items() if NETWORK_NAME.fullmatch(rest)}
    layers = dict(_zoo_layers(bare) if source == "model zoo" else _timm_layers(bare))
    renamed = {}
    for rest, name in bare.items():
        layer, _, leaf = rest.rpartition(".")
        if layer in layers:
            leaf = _TIMM_BN.get(leaf, leaf) if layers[layer].endswith(".bn") else leaf
            renamed[name] = f"{layers[layer]}.{leaf}"
    return source, renamed


def _zoo_layers(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a layer's name in the model zoo and here."""
    yield "output", "classifier"
    units = {"features.0.conv1": "stem", "features.5.conv2": "head"}
    for theirs, ours in _numbered(_ZOO_BLOCK, names):
        for unit, part in zip(("exp_conv", "conv1", "conv2"), _PARTS, strict=True):
            units[f"{theirs}.{unit}"] = f"{ours}.{part}"
    for theirs, ours in units.items():
        yield f"{theirs}.conv", f"{ours}.conv"
        yield f"{theirs}.bn", f"{ours}.bn"


def _timm_layers(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a layer's name in timm and here."""
    yield from _TIMM_ENDS.items()
    for theirs, ours in _numbered(_TIMM_BLOCK, names):
        yield from _timm_block(theirs, ours, expands=f"{theirs}.conv_pwl.weight" in names)


def _timm_block(theirs: str, ours: str, *, expands: bool) -> Iterator[tuple[str, str]]:
    """The same of a block; without expansion it is depthwise-separable in timm."""
    convolutions = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
    parts = _PARTS[-len(convolutions) :]
    for index, (conv, part) in enumerate(zip(convolutions, parts, strict=True), start=1):
        yield f"{theirs}.{conv}", f"{ours}.{part}.conv"
        yield f"{theirs}.bn{index}", f"{ours}.{part}.bn"
    for part in ("reduce", "expand"):
        yield f"{theirs}.se.conv_{part}", f"{ours}.se.{part}"


def to_timm_names(names: Collection[str], blocks: Sequence[str]) -> dict[str, str]:
    """Name in timm of each parameter of a network of MBConv blocks; undoes ``to_project_names``.

    Args:
        names: of all parameters of the network.
        blocks: what timm calls its blocks, in order, for example "blocks.1.0".
    """
    layers = {ours: theirs for theirs, ours in _TIMM_ENDS.items()}
    for index, theirs in enumerate(blocks):
        ours = f"blocks.{index}"
        pairs = _timm_block(theirs, ours, expands=f"{ours}.expand.conv.weight" in names)
        layers.update((own, other) for other, own in pairs)
    leaves = {ours: theirs for theirs, ours in _TIMM_BN.items()}
    renamed = {}
    for name in names:
        layer, _, leaf = name.rpartition(".")
        renamed[name] = f"{layers[layer]}.{leaves.get(leaf, leaf)}"
    return renamed


def _numbered(block: re.Pattern[str], names: Collection[str]) -> list[tuple[str, str]]:
    """The blocks among the names in the order of their numbers, with the names they have here."""
    found = {match[0] for match in map(block.match, names) if match}
    ordered = sorted(
        found, key=lambda prefix: [int(number) for number in re.findall(r"\d+", prefix)]
    )
    return [(prefix, f"blocks.{index}") for index, prefix in enumerate(ordered)]


def load_pretrained(network: nn.Cell, path: str | Path) -> LoadReport:
    """Put a file's weights into an SPNASNet, all of them or, on an error, none.

    Where the class counts differ the classifier keeps its initial values.

    Raises:
        UserError: the file cannot be read, holds nothing for this network, or a shape differs
            elsewhere.
    """
    path = Path(path)
    weights = read_weights(path)
    source, renamed = to_project_names(weights, path)
    parameters = dict(network.parameters_and_names())
    usable, notes = _match(weights, renamed, parameters, path)
    epsilon = network.stem.bn.eps
    if source != "project" and abs(epsilon - FOREIGN_EPSILON) > 1e-9:
        notes.append(
            f"batch normalisation here adds {epsilon:g} to the variance, these weights were "
            f"trained with {FOREIGN_EPSILON:g}: set bn_epsilon in the architecture to that"
        )
    for name, value in usable.items():
        parameters[name].set_data(Tensor(value, parameters[name].dtype))
    return LoadReport(
        path=path,
        source=source,
        loaded=tuple(usable),
        fresh=tuple(name for name in parameters if name not in usable),
        # PyTorch counts batches in each normalisation, which has no effect here.
        unused=tuple(
            name
            for name in weights
            if renamed.get(name) not in parameters and not name.endswith("num_batches_tracked")
        ),
        notes=tuple(notes),
    )


def _match(
    weights: Mapping[str, np.ndarray],
    renamed: Mapping[str, str],
    parameters: Mapping[str, Parameter],
    path: Path,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Weights for the parameters of a network, by their names there, and notes for the user."""
    usable: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for theirs, ours in renamed.items():
        if ours not in parameters:
            continue
        shape, needed = weights[theirs].shape, tuple(parameters[ours].shape)
        if shape == needed:
            usable[ours] = weights[theirs]
        elif ours.startswith("classifier.") and shape and shape[1:] == needed[1:]:
            if ours == "classifier.weight":
                notes.append(
                    f"the classifier starts anew: {shape[0]} classes in the file, {needed[0]} in "
                    "the network"
                )
        else:
            raise UserError(
                f"{path}: '{theirs}' has shape {shape}, the network's '{ours}' has {needed}; "
                "choose the architecture that these weights were trained for"
            )
    return usable, notes
