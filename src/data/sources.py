"""Labelled images on disk: class folders, CIFAR-10 in its published forms, the embedded digits.

A source is a sequence of images (H, W, 3) with labels. It checks at construction, in seconds, what
would otherwise fail in the middle of a run. No framework is imported.
"""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from src.data.decoding import EXTENSIONS, ImageError, decode_image
from src.data.safe_pickle import load_arrays
from src.errors import UserError

log = logging.getLogger(__name__)


class ImageFolder:
    """A folder with one subfolder of images a class; labels follow the sorted folder names."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(
                f"{self.path}: no such folder; expected one folder of images a class in it"
            )
        folders = sorted(
            entry.name
            for entry in os.scandir(self.path)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        if not folders:
            raise UserError(
                f"{self.path}: holds no class folders; expected one folder of images a class"
            )
        self.classes = tuple(folders)
        self._files: list[str] = []
        labels: list[int] = []
        foreign: list[str] = []
        for label, folder in enumerate(folders):
            names = sorted(
                entry.name for entry in os.scandir(self.path / folder) if entry.is_file()
            )
            images = [name for name in names if name.lower().endswith(EXTENSIONS)]
            if not images:
                raise UserError(
                    f"{self.path / folder}: class folder without images; fill it or remove it"
                )
            foreign += [
                os.path.join(folder, name)
                for name in names
                if not name.lower().endswith(EXTENSIONS)
            ]
            self._files += [os.path.join(folder, name) for name in images]
            labels += [label] * len(images)
        self.labels = np.array(labels, np.int32)
        if foreign:
            more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
            log.warning(
                "%s: skipped %d files that are no images: %s%s",
                self.path,
                len(foreign),
                ", ".join(foreign[:5]),
                more,
            )

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return str(self.path / self._files[index])

    def read(self, index: int) -> np.ndarray:
        """Pixels (H, W, 3) of uint8; raises ImageError with the reason for a file that is none."""
        try:
            with open(self.path / self._files[index], "rb") as file:
                return decode_image(file.read())
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from None


class PixelArray:
    """Images that are already pixels: (N, H, W, 3) of uint8 in memory."""

    def __init__(
        self, path: Path, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
    ) -> None:
        self.path, self.images, self.labels, self.classes = (
            path,
            images,
            labels.astype(np.int32),
            classes,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{self.path}, image {index}"

    def read(self, index: int) -> np.ndarray:
        return self.images[index]


CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_CIFAR_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
_CIFAR_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "val": ["test_batch"]}


def _cifar_file(file, name: str, origin: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and rows of pixels (N, 3072) of one batch file, by the form its name tells."""
    if name.endswith(".bin"):
        records = np.frombuffer(file.read(), np.uint8)
        if not records.size or records.size % 3073:
            raise UserError(f"{origin}: {records.size} bytes, should be records of 3073 bytes")
        records = records.reshape(-1, 3073)
        labels, pixels = records[:, 0], records[:, 1:]
    else:
        batch = load_arrays(file, origin)
        try:
            labels, pixels = np.asarray(batch[b"labels"]), np.asarray(batch[b"data"])
        except (KeyError, TypeError):
            raise UserError(f"{origin}: no CIFAR-10 batch (it lacks 'labels' or 'data')") from None
    if pixels.ndim != 2 or pixels.shape != (len(labels), 3072) or pixels.dtype != np.uint8:
        raise UserError(
            f"{origin}: pixels of shape {pixels.shape}, should be ({len(labels)}, 3072) of uint8"
        )
    if len(labels) and (labels.min() < 0 or labels.max() > 9):
        raise UserError(f"{origin}: labels from {labels.min()} to {labels.max()}, should be 0 to 9")
    return labels, pixels


def cifar10(path: str | Path, split: str) -> PixelArray:
    """CIFAR-10 from its python or binary version, as folder (or its parent) or ``.tar.gz``.

    Args:
        split: "train" or "val", the published test images.
    """
    path = Path(path)
    batches = []
    if path.is_file():
        try:
            with tarfile.open(path) as archive:
                members = {
                    Path(member.name).name: member
                    for member in archive.getmembers()
                    if member.isfile()
                }
                for stem in _CIFAR_FILES[split]:
                    name = stem if stem in members else f"{stem}.bin"
                    if name not in members:
                        raise UserError(
                            f"{path}: holds no '{stem}' or '{stem}.bin'; expected the published archive"
                        )
                    batches.append(
                        _cifar_file(archive.extractfile(members[name]), name, f"{path}, {name}")
                    )
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"{path}: not readable as a tar archive ({error})") from None
    elif path.is_dir():
        first = _CIFAR_FILES[split][0]
        places = [path, *(path / name for name in _CIFAR_FOLDERS), *sorted(path.glob("*/"))]
        folder = next(
            (p for p in places if (p / first).is_file() or (p / f"{first}.bin").is_file()), None
        )
        if folder is None:
            raise UserError(
                f"{path}: holds no '{first}' or '{first}.bin', neither directly nor one folder below; "
                f"expected {' or '.join(_CIFAR_FOLDERS)}"
            )
        for stem in _CIFAR_FILES[split]:
            file_path = next(
                (p for p in (folder / stem, folder / f"{stem}.bin") if p.is_file()), None
            )
            if file_path is None:
                raise UserError(
                    f"{folder / stem}: missing; expected all of {', '.join(_CIFAR_FILES[split])}"
                )
            with open(file_path, "rb") as file:
                batches.append(_cifar_file(file, file_path.name, str(file_path)))
    else:
        raise UserError(
            f"{path}: no such file or folder; expected CIFAR-10 in its python or binary version"
        )
    labels = np.concatenate([batch[0] for batch in batches])
    pixels = (
        np.concatenate([batch[1] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    )
    return PixelArray(path, np.ascontiguousarray(pixels), labels, CIFAR10_CLASSES)


def prepare_digits(path: str | Path) -> None:
    """Write scikit-learn's 1,797 handwritten digits as 32x32 RGB JPEG class folders, unless they are there.

    The split is fixed and stratified: 1,437 images in ``train/``, 360 in ``val/``. From Alpaydin
    and Kaynak's "Optical Recognition of Handwritten Digits" (UCI), 8x8 with 17 grey levels.
    """
    path = Path(path)

    def complete() -> bool:
        return (path / "train").is_dir() and (path / "val").is_dir()

    if complete():
        return
    if path.exists() and any(path.iterdir()) and not complete():
        raise UserError(
            f"{path}: exists but holds no digits (train/ and val/); give another --data_path"
        )
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    indices = np.arange(len(digits.target))
    train, val = train_test_split(indices, test_size=0.2, stratify=digits.target, random_state=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed, so that a folder under the final name is always
    # complete.
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        for split, members in (("train", train), ("val", val)):
            for index in members:
                folder = scratch / split / str(digits.target[index])
                folder.mkdir(parents=True, exist_ok=True)
                pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
                image = Image.fromarray(pixels).resize((32, 32), Image.BICUBIC).convert("RGB")
                image.save(folder / f"{index:04d}.jpg", quality=95)
        scratch.chmod(0o755)
        try:
            scratch.replace(path)  # also in place of an empty folder
        except OSError:
            if not complete():  # if it is, another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def open_sources(
    dataset_name: str,
    data_path: str,
    val_data_path: str | None = None,
    splits: tuple[str, ...] = ("train", "val"),
) -> dict[str, ImageFolder | PixelArray]:
    """The sources of a data set by split, checked against each other.

    ``data_path`` holds ``train/`` and ``val/``, or is the training folder itself as in the model
    zoo; ``val_data_path`` names the validation images where they lie elsewhere.
    """
    if dataset_name == "digits":
        prepare_digits(data_path)
    sources = {}
    for split in splits:
        if dataset_name == "cifar10":
            place = val_data_path if split == "val" and val_data_path else data_path
            sources[split] = cifar10(place, split)
            continue
        root = Path(data_path)
        if split == "val" and val_data_path:
            folder = Path(val_data_path)
        elif (root / split).is_dir() or not root.is_dir():
            folder = root / split
        elif split == "val":
            # A training folder given by itself has its validation images beside it.
            folder = root.parent / "val" if root.name == "train" else root / "val"
        else:
            folder = root
        sources[split] = ImageFolder(folder)
    if len(sources) == 2 and sources["train"].classes != sources["val"].classes:
        train, val = sources["train"], sources["val"]
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise UserError(
            f"{train.path} has {len(train.classes)} classes, {val.path} has {len(val.classes)}; "
            f"only in one of them: {', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}"
        )
    return sources
