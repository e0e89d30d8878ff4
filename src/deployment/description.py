"""The description beside a model file, ``<name>.json``: all that inference needs to know.

It is read by the C++ application (``ascend310_infer/src/metadata.cc``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from src.arch.architecture import Architecture
from src.data.decoding import MAX_PIXELS
from src.data.preprocessing import Preprocessing

FORMAT = "spnas-export"
VERSION = 1


@dataclass(frozen=True)
class ModelFile:
    """The file of a model.

    Attributes:
        file: its name, without the folder.
        format: "MINDIR", "ONNX" or "AIR".
        mindir_version: format version of a MindIR file, None for other formats.
        folded: whether batch normalisation is part of the convolutions.
        bytes: size of the file.
        sha256: of the file, in hexadecimal.
        precision: of its weights and activations, "float32" or "int8".
    """

    file: str
    format: str
    mindir_version: int | None
    folded: bool
    bytes: int
    sha256: str
    precision: str = "float32"


@dataclass(frozen=True)
class CheckpointFile:
    """The checkpoint that a model was exported from: name without the folder, and SHA-256."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Check:
    """What a model was compared with before it got its name.

    Attributes:
        runtime: name and version of what computed the model file.
        data: name of the data set of the images, or the folder of images that are of none.
        images: how many images were compared.
        largest_difference: of the logits, relative to the largest logit.
    """

    runtime: str
    data: str
    images: int
    largest_difference: float


@dataclass(frozen=True)
class Description:
    """What inference needs to know about a model, and where the model comes from.

    Attributes:
        input_shape: (batch size, 3, height, width) of float32.
        classes: names, in the order of the logits.
        mindspore: version that exported the model.
        checked: None where nothing here can run the model.
    """

    model: ModelFile
    input_shape: tuple[int, ...]
    preprocessing: Preprocessing
    classes: Sequence[str]
    architecture: Architecture
    checkpoint: CheckpointFile
    mindspore: str
    checked: Check | None

    def to_dict(self) -> dict[str, Any]:
        """Content of the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": asdict(self.model),
            "input": {
                "name": "x",
                "shape": list(self.input_shape),
                "layout": "NCHW",
                "type": "float32",
            },
            "preprocessing": {
                **self.preprocessing.to_dict(),
                "interpolation": "bilinear",
                "color_order": "RGB",
                "max_pixels": MAX_PIXELS,
            },
            "classes": list(self.classes),
            "architecture": self.architecture.to_dict(),
            "checkpoint": asdict(self.checkpoint),
            "mindspore": self.mindspore,
            "checked": None if self.checked is None else asdict(self.checked),
        }
