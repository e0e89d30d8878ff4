"""Accuracy of the C++ application's answers: the class folder of an image is its label.

    python scripts/postprocess.py result_Files/top5.jsonl MODEL.json

prints "Total data: N, top1 accuracy: x, top5 accuracy: y."; files that could not be answered are
not counted.
"""

import json
import sys
from pathlib import Path


def accuracy(answers, classes):
    """Number of answered images and their top-1 and top-5 accuracy, from the lines of top5.jsonl.

    Raises:
        ValueError: no image was answered, or one lies in no folder of a known class.
    """
    classes, total, hits = set(classes), 0, [0, 0]
    for answer in answers:
        if "error" in answer:
            continue
        label = answer["file"].rpartition("/")[0]
        if label not in classes:
            raise ValueError(
                f"{answer['file']}: '{label}' is no class of the model; "
                "expected one folder of images a class"
            )
        top5 = [candidate["class"] for candidate in answer["top5"]]
        total += 1
        hits[0] += label == top5[0]
        hits[1] += label in top5
    if not total:
        raise ValueError("no image was answered")
    return total, hits[0] / total, hits[1] / total


def main(argv):
    if len(argv) != 2:
        print(
            "usage: python scripts/postprocess.py result_Files/top5.jsonl MODEL.json",
            file=sys.stderr,
        )
        return 2
    answers, model = map(Path, argv)
    try:
        lines = answers.read_text(encoding="utf-8").splitlines()
        total, top1, top5 = accuracy(
            map(json.loads, lines), json.loads(model.read_text(encoding="utf-8"))["classes"]
        )
    except (OSError, ValueError, KeyError) as error:
        print(f"postprocess.py: error: {error}", file=sys.stderr)
        return 2
    print(f"Total data: {total}, top1 accuracy: {top1:.5f}, top5 accuracy: {top5:.5f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
