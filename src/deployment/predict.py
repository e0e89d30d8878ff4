"""Classification of any images: the most probable classes as a table, as JSON or as a picture."""

from __future__ import annotations

import glob
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from src.data.decoding import EXTENSIONS
from src.data.sources import ImageFolder
from src.dataset import Loader
from src.deployment.classifier import Classifier, load_classifier
from src.deployment.logits import full_batches
from src.errors import EXIT_FAULT, Fault, UserError
from src.files import make_folder
from src.utils import drop_output, setup_device

log = logging.getLogger(__name__)

# A line per class of ImageNet: its id and its English name.
IMAGENET_CLASSES = Path(__file__).resolve().parents[1] / "data/imagenet_classes.txt"

MOST_TILES = 100  # images in a picture; more would be too small to see, and take gigabytes
TILE_PIXELS = 240  # longest side of an image in it
LABEL_LETTERS = 24  # of a class name or file name that fit above an image


class ImageFiles(ImageFolder):
    """Image files from anywhere; the label of an image is its number.

    They are read as those of a data set are.

    Args:
        files: of the images.
        path: names all of them in messages.
    """

    def __init__(self, files: Sequence[str], path: str | Path = ".") -> None:
        self.path, self.classes, self._files = Path(path), (), list(files)
        self.labels = np.arange(len(files), dtype=np.int32)

    def name(self, index: int) -> str:
        """The image's file, as it was given."""
        return self._files[index]


@dataclass(frozen=True)
class Guess:
    """A class that an image may belong to.

    Attributes:
        index: place of the class among the logits.
        name: its name in the data set.
        english: what an id of ImageNet stands for; None for other classes.
    """

    index: int
    name: str
    english: str | None
    probability: float

    def __str__(self) -> str:
        return f"{self.name} {self.english}" if self.english else self.name

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints of it."""
        english = {"name": self.english} if self.english else {}
        return {
            "class": self.name,
            **english,
            "index": self.index,
            "probability": self.probability,
        }


@dataclass(frozen=True)
class Prediction:
    """The guesses of an image, most probable first; ``number`` is its place among all images."""

    number: int
    image: str
    guesses: Sequence[Guess]


def predict(
    model: str,
    images: Iterable[str],
    *,
    top: int = 5,
    as_json: bool = False,
    picture: Path | None = None,
) -> int:
    """Classify images and print the answers; returns the exit code.

    Args:
        model: checkpoint, folder of a run, or exported model.
        images: files, folders and patterns.
        top: classes per image.
        as_json: print a line of JSON per image, as soon as it is known, instead of a table.
        picture: where to draw the images with their first class; None for nowhere.

    Raises:
        UserError: the model cannot be used, or there is no image.
    """
    _log_to_stderr()
    source = ImageFiles(find_images(images))
    setup_device("CPU", 0)
    classifier = load_classifier(model)
    if picture:
        make_folder(picture.parent)
    loader = Loader(
        source, classifier.preprocessing, batch_size=classifier.batch_size, training=False
    )
    found = []
    for prediction in classify(classifier, loader, top):
        found.append(prediction)
        if as_json:
            guesses = [guess.to_dict() for guess in prediction.guesses]
            if not _printed(json.dumps({"image": prediction.image, "top": guesses})):
                break
    if not as_json and found:
        _printed(table(found))
    if picture and found:
        draw_sheet(source, found, picture)
        log.info("%s: written", picture)
    # The loader has named each of them.
    return EXIT_FAULT if loader.bad_images else 0


def _printed(text: str) -> bool:
    """Print; False where the reader, such as ``head``, has ended, which is no mistake."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        drop_output()  # what is left in the buffer must not fail when the process ends
        return False
    return True


def _log_to_stderr() -> None:
    """Leave standard output to the answers, which another program may read."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def find_images(words: Iterable[str]) -> list[str]:
    """Image files that the words stand for, each once.

    A file is taken as it is. Of folders, recursively, and of patterns that the shell did not
    expand, those files are taken whose suffix is that of an image, in sorted order.

    Raises:
        UserError: a word stands for no image.
    """
    found: dict[str, None] = {}  # keeps the order
    for word in words:
        files = [word] if os.path.isfile(word) else _images_in(word)
        if not files:
            what = "holds no image" if os.path.isdir(word) else "no such image, folder or pattern"
            raise UserError(f"{word}: {what} ({', '.join(EXTENSIONS)})")
        found.update(dict.fromkeys(files))
    return list(found)


def _images_in(word: str) -> list[str]:
    """Images in a folder, or in what a pattern matches; hidden files and folders are left out."""
    files: set[str] = set()
    for place in [word] if os.path.isdir(word) else glob.glob(word, recursive=True):
        if os.path.isdir(place):
            inside = os.path.join(glob.escape(place), "**", "*")
            files.update(glob.glob(inside, recursive=True))
        else:
            files.add(place)
    return sorted(
        path for path in files if path.lower().endswith(EXTENSIONS) and os.path.isfile(path)
    )


def classify(classifier: Classifier, loader: Loader, top: int) -> Iterator[Prediction]:
    """Predictions of the images of a loader in order, without those that cannot be decoded.

    Args:
        loader: in evaluation, of ``ImageFiles``, with the preprocessing and the batch size of the
            classifier.
        top: classes per image; all where there are fewer.

    Raises:
        Fault: the model's answer is no number.
    """
    names, english = classifier.classes, imagenet_names()
    with classifier.compiling:
        for batch, numbers in loader.epoch():
            count = len(numbers)
            if not count:  # a batch of images that could not be decoded
                continue
            logits = classifier.logits(full_batches(batch, loader.batch_size))[:count]
            probabilities = softmax(logits.astype(np.float64), axis=1)
            # Of equal ones the lower class comes first, as in evaluation.
            order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
            for number, row, chosen in zip(numbers.tolist(), probabilities, order, strict=True):
                image = loader.source.name(number)
                if not np.isfinite(row).all():
                    raise Fault(f"{image}: the model's logits are no finite numbers")
                guesses = [
                    Guess(index, names[index], english.get(names[index]), float(row[index]))
                    for index in chosen.tolist()
                ]
                yield Prediction(number, image, guesses)


def imagenet_names() -> Mapping[str, str]:
    """English names of ImageNet's 1000 classes by their ids, such as n01440764."""
    lines = IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines)
    return {name: english.replace("_", " ") for name, english in pairs}


def table(predictions: Sequence[Prediction]) -> str:
    """A line per guess below a header; the first line of an image names it."""
    rows = [("image", "class", "probability")]
    for prediction in predictions:
        for place, guess in enumerate(prediction.guesses):
            image = "" if place else prediction.image
            rows.append((image, str(guess), f"{100 * guess.probability:.2f} %"))
    image_width, class_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(
        f"{image:{image_width}}  {name:{class_width}}  {probability:>11}"
        for image, name, probability in rows
    )


def draw_sheet(source: ImageFiles, predictions: Sequence[Prediction], path: Path) -> None:
    """Draw images in a grid, each below its first class and that one's probability."""
    # Importing Matplotlib takes a second.
    from matplotlib.figure import Figure
    from PIL import Image

    from src.drawing import save

    shown = predictions[:MOST_TILES]
    if len(shown) < len(predictions):
        log.warning("%s: shows the first %d of %d images", path, len(shown), len(predictions))
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.6 * rows), layout="constrained")
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in all_axes:
        axes.set_axis_off()
    for axes, prediction in zip(all_axes, shown, strict=False):
        thumbnail = Image.fromarray(source.read(prediction.number))
        thumbnail.thumbnail((TILE_PIXELS, TILE_PIXELS))
        axes.imshow(thumbnail)
        first = prediction.guesses[0]
        label = _shortened(first.english or first.name)
        title = (
            f"{_shortened(Path(prediction.image).name)}\n{label}, {100 * first.probability:.0f} %"
        )
        # Names are no formulas, whatever dollar signs they hold.
        axes.set_title(title, fontsize=8, parse_math=False)
    save(figure, path)


def _shortened(text: str) -> str:
    return text if len(text) <= LABEL_LETTERS else f"{text[: LABEL_LETTERS - 3]}..."
