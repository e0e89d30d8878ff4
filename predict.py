"""Classify images with a checkpoint, the folder of a run, or an exported model.

    python predict.py runs/digits/ckpt_0 data/digits/val/3 --top 3 --picture runs/digits/threes.png

takes seconds on 2 CPU cores after training the digits, and prints the three most probable classes
of each of 37 images, almost always 3 first. Classes and preprocessing come from the checkpoint, or
from the description ``NAME.json`` beside a MindIR or ONNX model. Answers are on standard output,
messages on standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from src.utils import run_main


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line."""
    from src.cli import Parser, picture_file
    from src.errors import UserError

    parser = Parser(__doc__)
    parser.add_argument("model", metavar="MODEL", help=".ckpt, folder of a run, .mindir or .onnx")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image, folder of images, or pattern"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object per image")
    parser.add_argument(
        "--picture", type=picture_file, help="draw the images and their classes, .png"
    )
    parser.add_argument(
        "--top", type=int, default=5, help="classes to print of each image (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.top < 1:
        raise UserError(f"top is {args.top}, should be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    args = parse_arguments(argv)
    # Importing MindSpore takes seconds, so mistakes in the flags are told before.
    from src.deployment.predict import predict

    return predict(args.model, args.images, top=args.top, as_json=args.json, picture=args.picture)


if __name__ == "__main__":
    run_main(main)
