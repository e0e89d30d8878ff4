"""From a checkpoint back to what it was made of: a network, a training step, the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from mindspore import Parameter, Tensor, nn, ops

from src.checkpoint.format import Checkpoint, Meta, Weights, write_checkpoint
from src.data.sources import Source, hold_out, names_digest, open_sources, split_folder
from src.errors import UserError
from src.result_files import INHERITED
from src.spnasnet import SPNASNet, fold_batch_norm


class DataKeys(Protocol):
    """The part of a configuration that names the data."""

    @property
    def dataset_name(self) -> str | None:
        """Data set; None for that of the checkpoint."""

    @property
    def data_path(self) -> str | None:
        """Its folder; None for that of the checkpoint."""

    @property
    def val_data_path(self) -> str | None:
        """Folder of the validation images, where they lie elsewhere."""


def cell_weights(cell: nn.Cell) -> Weights:
    """Arrays of all parameters of a cell, by name; on CPU later steps change them too."""
    return {parameter.name: parameter.asnumpy() for parameter in cell.get_parameters()}


def load_weights(cell: nn.Cell, weights: Weights, origin: str | Path) -> None:
    """Put arrays into a cell.

    Args:
        origin: names the file in errors.

    Raises:
        UserError: a parameter of the cell is missing, or has another shape.
    """
    for parameter in cell.get_parameters():
        stored = weights.get(parameter.name)
        if stored is None:
            raise UserError(
                f"{origin}: holds no '{parameter.name}'; it does not match the architecture or "
                "configuration"
            )
        if stored.shape != tuple(parameter.shape):
            raise UserError(
                f"{origin}: '{parameter.name}' has shape {stored.shape}, should be "
                f"{tuple(parameter.shape)}"
            )
        parameter.set_data(Tensor(stored))


def overwrite(parameter: Parameter, value: Tensor) -> None:
    """Give a parameter other values in the memory that it has.

    A compiled graph with branches that has run once goes on reading that memory: what ``set_data``
    puts in its place is silently not seen by the branches.
    """
    ops.assign(parameter, value)


def build_network(
    checkpoint: Checkpoint, *, kernels: bool = False, folded: bool = False
) -> SPNASNet:
    """The network of a checkpoint, in evaluation mode.

    Args:
        kernels: with the CPU operators.
        folded: batch normalisation is part of the convolutions.

    Raises:
        UserError: the checkpoint holds a supernet, or weights that do not fit.
    """
    meta, weights = checkpoint.meta, checkpoint.network_weights()
    if meta.space is not None:
        raise UserError(
            f"{checkpoint.path}: holds a supernet, not a network; the network that a search found "
            f"is in {INHERITED} of its run folder; search.py --from_supernet serves networks of "
            "train.py's, --method one_shot searches a one-shot supernet"
        )
    network = SPNASNet(meta.arch, len(meta.classes), kernels=kernels, folded=folded)
    if folded:
        weights = fold_batch_norm(weights, meta.arch.bn_epsilon)
    load_weights(network, weights, checkpoint.path)
    return network.set_train(False)


def held_out(checkpoint: Checkpoint) -> float:
    """Share of the training images that the training of a checkpoint has kept apart."""
    return float(checkpoint.meta.config.get("holdout", 0.0))


def open_source(
    checkpoint: Checkpoint, config: DataKeys | None, split: Literal["train", "held", "val"]
) -> Source:
    """A split of the data that ``config`` names, or of the training's data where it names none.

    Args:
        checkpoint: of the training.
        config: may name other data.
        split: "train" for the images that were trained on, "held" for those that were kept apart of
            them, "val" for the others; the held ones too, where a folder has no others.

    Raises:
        UserError: nothing names a folder, it cannot be opened, its classes are others than those
            of the training, that has kept no images apart, or it can no longer be told which.
    """
    trained, classes = checkpoint.meta.config, checkpoint.meta.classes
    dataset_name, data_path, val_data_path = (
        trained.get(key) for key in ("dataset_name", "data_path", "val_data_path")
    )
    if config is not None:
        if config.data_path:
            data_path, val_data_path = config.data_path, None
        val_data_path = config.val_data_path or val_data_path
        dataset_name = config.dataset_name or dataset_name
    if not dataset_name or not data_path:
        raise UserError(
            f"{checkpoint.path}: does not say where its images are; --data_path names their folder"
        )
    share = held_out(checkpoint)
    advice = "--data_path should name those of the training"
    if split == "val":
        advice = "--val_data_path names images to evaluate"
    if split == "val" and share and dataset_name == "folder" and val_data_path is None:
        if not split_folder("val", data_path, None).is_dir():
            split = "held"
    name = "val" if split == "val" else "train"
    source = open_sources(dataset_name, data_path, val_data_path, (name,))[name]
    if tuple(source.classes) != classes:
        others = " others" if len(source.classes) == len(classes) else ""
        raise UserError(
            f"{source.path}: holds {len(source.classes)} classes, {checkpoint.path} was trained on "
            f"{len(classes)}{others}"
        )
    if name == "train" and share:
        parts = hold_out(source, share, trained["seed"])
        before = checkpoint.meta.held_out
        if split == "held" and before and names_digest(parts[1]) != before:
            raise UserError(
                f"{source.path}: holds other images than those of the training of "
                f"{checkpoint.path}, so which of them that has kept apart cannot be told; {advice}"
            )
        return parts[0] if split == "train" else parts[1]
    if split == "held":
        raise UserError(
            f"{checkpoint.path}: its training has kept no images apart (holdout), and test images "
            "should not choose a network"
        )
    return source


def write_inherited(folder: Path, weights: Weights, meta: Meta) -> None:
    """Save the weights that a network has from its supernet, as ``inherited.ckpt``.

    Args:
        meta: that of the network; what it says of a space is left out.
    """
    path = folder / INHERITED
    network = SPNASNet(meta.arch, len(meta.classes))
    load_weights(network, weights, path)  # all are there, in the right shapes
    write_checkpoint(path, cell_weights(network), replace(meta, space=None))
