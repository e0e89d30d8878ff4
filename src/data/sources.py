"""Labelled images on disk: class folders, CIFAR-10 in its published forms, scikit-learn's digits.

A source is a sequence of images (H, W, 3) with labels. It checks at construction, in seconds, what
would otherwise fail in the middle of a run. Imports no framework.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeAlias, cast

import numpy as np

from src.data.decoding import EXTENSIONS, ImageError, decode_image
from src.data.safe_pickle import load_arrays
from src.errors import UserError
from src.files import make_folder

log = logging.getLogger(__name__)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


class ImageFolder:
    """A folder with one subfolder of images per class.

    Labels are the places of the subfolders' names in sorted order. Files that are no images, and
    hidden subfolders, are left out.

    Raises:
        UserError: there is no such folder, it has no subfolders, or one of them holds no image.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.classes = self._class_folders()
        self._files: list[str] = []
        labels: list[int] = []
        foreign: list[str] = []
        for label, folder in enumerate(self.classes):
            # Sorted, so that indices and labels are the same on every machine.
            names = sorted(entry.name for entry in _scan(self.path / folder) if entry.is_file())
            images = [name for name in names if _is_image(name)]
            if not images:
                raise UserError(
                    f"{self.path / folder}: class folder without images; fill it or remove it"
                )
            foreign += [os.path.join(folder, name) for name in names if not _is_image(name)]
            self._files += [os.path.join(folder, name) for name in images]
            labels += [label] * len(images)
        self.labels = np.array(labels, np.int32)
        self._foreign = foreign

    def warn_of_foreign(self) -> None:
        """Name files that are no images, if there are any."""
        if self._foreign:
            # Five names show what they are; a folder may hold thousands.
            more = f" and {len(self._foreign) - 5} more" if len(self._foreign) > 5 else ""
            log.warning(
                "%s: skipped %d files that are no images: %s%s",
                self.path,
                len(self._foreign),
                ", ".join(self._foreign[:5]),
                more,
            )

    def _class_folders(self) -> tuple[str, ...]:
        expected = "expected one folder of images per class"
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder; {expected} in it")
        folders = sorted(
            entry.name
            for entry in _scan(self.path)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        if not folders:
            raise UserError(f"{self.path}: holds no class folders; {expected}")
        return tuple(folders)

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The image's file, for messages."""
        return os.path.join(self.path, self._files[index])  # in a third of the time of pathlib

    def read(self, index: int) -> np.ndarray:
        """Pixels (H, W, 3) of uint8.

        Raises:
            ImageError: the file cannot be read or is no image.
        """
        try:
            with open(self.name(index), "rb") as file:
                return decode_image(file.read())
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from None


class PixelArray:
    """Images that are already pixels: (N, H, W, 3) of uint8 in memory."""

    def __init__(
        self, path: Path, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
    ) -> None:
        self.path, self.images, self.classes = path, images, classes
        self.labels = labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """File and number of the image, for messages."""
        return f"{self.path}, image {index}"

    def read(self, index: int) -> np.ndarray:
        """Pixels (H, W, 3) of uint8."""
        return self.images[index]


class Part:
    """Some images of another source, as a source of their own.

    Args:
        whole: the other source.
        indices: of the images in it.
    """

    def __init__(self, whole: Source, indices: np.ndarray) -> None:
        self.path: Path = whole.path
        self.classes: tuple[str, ...] = whole.classes
        self.labels: np.ndarray = whole.labels[indices]
        self._whole, self._indices = whole, indices.tolist()

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        """As in the other source."""
        return self._whole.name(self._indices[index])

    def read(self, index: int) -> np.ndarray:
        """As in the other source."""
        return self._whole.read(self._indices[index])


Source: TypeAlias = ImageFolder | PixelArray | Part


def hold_out(source: Source, share: float, seed: int) -> tuple[Part, Part]:
    """Divide a source into images to train on and held-out ones.

    Of every class the same share is held out, at least one image.

    Args:
        source: training images.
        share: of the images to hold out, above 0 and below 1.
        seed: of the choice.

    Raises:
        UserError: a class has so few images that none would be left to train on.
    """
    random, held = np.random.default_rng(seed), np.zeros(len(source), bool)
    for label, name in enumerate(source.classes):
        own = random.permutation(np.flatnonzero(source.labels == label))
        count = max(round(share * len(own)), 1)
        if count >= len(own):
            raise UserError(
                f"{source.path}: class {name} has {len(own)} image(s), too few to hold out "
                f"{share:g} of them; --holdout 0 holds out none"
            )
        held[own[:count]] = True
    return Part(source, np.flatnonzero(~held)), Part(source, np.flatnonzero(held))


def names_digest(source: Source) -> str:
    """SHA-256 of the images' names within the source's folder, wherever that lies."""
    folder = str(source.path)
    names = [source.name(index).removeprefix(folder) for index in range(len(source))]
    return hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()


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
# The binary version has one record per image: its label, then the rows of red, green and blue.
_CIFAR_PIXELS = 3 * 32 * 32
_CIFAR_RECORD = 1 + _CIFAR_PIXELS


def _cifar_batch(file: IO[bytes], name: str, origin: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and rows of pixels (N, 3072) of one batch file, of the form its name tells."""
    if name.endswith(".bin"):
        records = np.frombuffer(file.read(), np.uint8)
        if not records.size or records.size % _CIFAR_RECORD:
            raise UserError(
                f"{origin}: {records.size} bytes, should be records of {_CIFAR_RECORD} bytes"
            )
        records = records.reshape(-1, _CIFAR_RECORD)
        labels, pixels = records[:, 0], records[:, 1:]
    else:
        # Written by Python 2, whose strings are read as bytes.
        batch = load_arrays(file, origin)
        try:
            labels, pixels = np.asarray(batch[b"labels"]), np.asarray(batch[b"data"])
        except (KeyError, TypeError, IndexError, ValueError):
            raise UserError(f"{origin}: no CIFAR-10 batch (it lacks 'labels' or 'data')") from None
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise UserError(f"{origin}: no CIFAR-10 batch (its labels are no list of whole numbers)")
    if pixels.shape != (len(labels), _CIFAR_PIXELS) or pixels.dtype != np.uint8:
        raise UserError(
            f"{origin}: pixels of shape {pixels.shape}, should be ({len(labels)}, {_CIFAR_PIXELS}) "
            "of uint8"
        )
    if len(labels) and (labels.min() < 0 or labels.max() > 9):
        raise UserError(f"{origin}: labels from {labels.min()} to {labels.max()}, should be 0 to 9")
    return labels, pixels


def _batches_of_archive(path: Path, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels and rows of pixels of each batch in the published archive."""
    try:
        with tarfile.open(path) as archive:
            # By file name, whatever folder they are in.
            members = {
                Path(member.name).name: member for member in archive.getmembers() if member.isfile()
            }
            for stem in _CIFAR_FILES[split]:
                name = stem if stem in members else f"{stem}.bin"
                if name not in members:
                    raise UserError(
                        f"{path}: holds no '{stem}' or '{stem}.bin'; expected the published archive"
                    )
                # Only members that are no files have no contents.
                file = cast(IO[bytes], archive.extractfile(members[name]))
                yield _cifar_batch(file, name, f"{path}, {name}")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path}: not readable as a tar archive ({error})") from None


def _batches_of_folder(path: Path, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels and rows of pixels of each batch file in a folder, or in one folder below it."""

    def find(folder: Path, stem: str) -> Path | None:
        return next((p for p in (folder / stem, folder / f"{stem}.bin") if p.is_file()), None)

    stems = _CIFAR_FILES[split]
    places = [path, *(path / name for name in _CIFAR_FOLDERS), *sorted(path.glob("*/"))]
    folder = next((place for place in places if find(place, stems[0])), None)
    if folder is None:
        raise UserError(
            f"{path}: holds no '{stems[0]}' or '{stems[0]}.bin', neither directly nor one folder "
            f"below; expected {' or '.join(_CIFAR_FOLDERS)}"
        )
    for stem in stems:
        file_path = find(folder, stem)
        if file_path is None:
            raise UserError(f"{folder / stem}: missing; expected all of {', '.join(stems)}")
        try:
            file = open(file_path, "rb")
        except OSError as error:
            raise UserError(f"{file_path}: cannot be read ({error.strerror})") from None
        with file:
            yield _cifar_batch(file, file_path.name, str(file_path))


def cifar10(path: str | Path, split: str) -> PixelArray:
    """CIFAR-10 in its python or binary version.

    Args:
        path: the published ``.tar.gz``, the folder that it unpacks to, or the folder around that.
        split: "train" or "val", the published test images.

    Raises:
        UserError: there is no CIFAR-10, or one of its files is missing or damaged.
    """
    path = Path(path)
    if path.is_file():
        batches = list(_batches_of_archive(path, split))
    elif path.is_dir():
        batches = list(_batches_of_folder(path, split))
    else:
        raise UserError(
            f"{path}: no such file or folder; expected CIFAR-10 in its python or binary version"
        )
    labels = np.concatenate([labels for labels, _ in batches])
    rows = np.concatenate([pixels for _, pixels in batches])
    pixels = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # channels last
    return PixelArray(path, np.ascontiguousarray(pixels), labels, CIFAR10_CLASSES)


def prepare_digits(path: str | Path) -> None:
    """Write scikit-learn's 1,797 handwritten digits as class folders, unless they are there.

    The images are RGB JPEG of 32x32. The split is fixed and stratified: 1,437 images in
    ``train/``, 360 in ``val/``. From Alpaydin and Kaynak's "Optical Recognition of Handwritten
    Digits" (UCI), 8x8 with 17 grey levels.
    """
    path = Path(path)

    def complete() -> bool:
        return (path / "train").is_dir() and (path / "val").is_dir()

    if complete():
        return
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not complete():
        raise UserError(
            f"{path}: exists but holds no digits (train/ and val/); give another --data_path"
        )
    make_folder(path.parent)
    # Written beside its place and renamed, so that a folder of that name is always complete.
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        _write_digits(scratch)
        scratch.chmod(0o755)  # mkdtemp's folders are closed to other users
        try:
            scratch.replace(path)  # also in place of an empty folder
        except OSError:
            if not complete():  # if it is, another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_digits(folder: Path) -> None:
    # Imported here: scikit-learn takes seconds, and most runs do not need it.
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    indices = np.arange(len(digits.target))
    train, val = train_test_split(indices, test_size=0.2, stratify=digits.target, random_state=0)
    for split, members in (("train", train), ("val", val)):
        for index in members:
            place = folder / split / str(digits.target[index])
            place.mkdir(parents=True, exist_ok=True)
            # Grey levels 0..16 become 0..255.
            pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            image = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
            image.convert("RGB").save(place / f"{index:04d}.jpg", quality=95)


def split_folder(split: str, data_path: str, val_data_path: str | None = None) -> Path:
    """The folder of class folders of a split, whether it is there or not."""
    root = Path(data_path)
    if split == "val" and val_data_path:
        return Path(val_data_path)
    # Also where there is no such folder, so that the error names what was expected.
    if (root / split).is_dir() or not root.is_dir():
        return root / split
    if split == "val":
        # A training folder given by itself has its validation images beside it.
        return root.parent / "val" if root.name == "train" else root / "val"
    return root


def open_sources(
    dataset_name: str,
    data_path: str,
    val_data_path: str | None = None,
    splits: tuple[str, ...] = ("train", "val"),
) -> dict[str, Source]:
    """The sources of a data set by split, checked against each other.

    Args:
        dataset_name: "digits", "cifar10", or any other for class folders.
        data_path: holds ``train/`` and ``val/``, or is the training folder itself as in the model
            zoo; or CIFAR-10.
        val_data_path: the validation images, where they are elsewhere.
        splits: the splits to open.

    Raises:
        UserError: a source cannot be opened, or their classes differ.
    """
    if dataset_name == "digits":
        prepare_digits(data_path)
    sources: dict[str, Source] = {}
    for split in splits:
        if dataset_name == "cifar10":
            elsewhere = val_data_path if split == "val" else None
            sources[split] = cifar10(elsewhere or data_path, split)
        else:
            folder = ImageFolder(split_folder(split, data_path, val_data_path))
            folder.warn_of_foreign()
            sources[split] = folder
    if len(sources) == 2 and sources["train"].classes != sources["val"].classes:
        train, val = sources["train"], sources["val"]
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise UserError(
            f"{train.path} has {len(train.classes)} classes, {val.path} has {len(val.classes)}; "
            f"only in one of them: {', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}"
        )
    return sources
