"""Accuracy of the C++ application's answers: the class folder of an image is its label.

    python scripts/postprocess.py result_Files/top5.jsonl MODEL.json

prints "Total data: N, top1 accuracy: x, top5 accuracy: y."; files that could not be answered are
not counted. It needs nothing but Python, as the device that classifies may have nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Parsed = TypeVar("Parsed")

USAGE = "usage: python scripts/postprocess.py result_Files/top5.jsonl MODEL.json"


def accuracy(
    answers: Iterable[Mapping[str, Any]], classes: Collection[str]
) -> tuple[int, float, float]:
    """Number of answered images and their top-1 and top-5 accuracy.

    Args:
        answers: the lines of top5.jsonl.
        classes: names of the model's classes.

    Raises:
        ValueError: no image was answered, or one lies in no folder of a known class.
    """
    known, total, hits1, hits5 = set(classes), 0, 0, 0
    for answer in answers:
        if "error" in answer:
            continue  # the application has named it, and its exit code says so
        # "7/12.jpg" lies in the folder of class 7.
        label = answer["file"].rpartition("/")[0]
        if label not in known:
            raise ValueError(
                f"{answer['file']}: '{label}' is no class of the model; "
                "expected one folder of images per class"
            )
        top5 = [candidate["class"] for candidate in answer["top5"]]
        total += 1
        hits1 += label == top5[0]
        hits5 += label in top5
    if not total:
        raise ValueError("no image was answered")
    return total, hits1 / total, hits5 / total


def read_answers(text: str) -> list[dict[str, Any]]:
    """The lines of top5.jsonl."""
    # A name may contain what Python takes for the end of a line.
    answers = [json.loads(line) for line in text.split("\n") if line]
    for answer in answers:
        if "error" not in answer:
            _ = answer["file"], answer["top5"][0]["class"]
    return answers


def read_classes(text: str) -> list[str]:
    """Names of the classes from the description of a model."""
    classes: list[str] = json.loads(text)["classes"]
    return classes


def read(file: Path, parse: Callable[[str], Parsed], content: str) -> Parsed:
    """Parse a file.

    Raises:
        ValueError: it holds something else than its content should be.
    """
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file}: should hold {content} ({error!r})") from None


def main(argv: Sequence[str]) -> int:
    """Print the accuracy; returns the exit code."""
    if len(argv) != 2:
        print(USAGE, file=sys.stderr)
        return 2
    answers, model = map(Path, argv)
    try:
        total, top1, top5 = accuracy(
            read(answers, read_answers, "the answers of the C++ application"),
            read(model, read_classes, "the description that export.py writes"),
        )
    except (OSError, ValueError) as error:
        print(f"postprocess.py: error: {error}", file=sys.stderr)
        return 2
    print(f"Total data: {total}, top1 accuracy: {top1:.5f}, top5 accuracy: {top5:.5f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
