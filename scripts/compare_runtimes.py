r"""Compare the runtimes that are installed here on one network: which to deploy.

    python scripts/compare_runtimes.py runs/digits/ckpt_0 --images data/digits/val --threads 1,2 \
        --precisions float32,bfloat16,int8 --out runs/digits/runtimes.json

exports the network, computes the images in each runtime and measures all of them in turns, each in
a process of its own: in about two minutes on 2 CPU cores. It prints a table, and which one to take.
The model is a checkpoint, the folder of a run, or an exported model, which only the runtimes of its
format compute; int8 is made from a checkpoint or an ONNX model. If the images lie in one folder per
class of the network, accuracies are computed too. Scales of int8 come from the same images. A
runtime that is not installed is named; one that computes another answer than the network makes the
exit code 1.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.cli import Parser
from src.errors import Fault, UserError
from src.latency.runtimes import COMPARISON_FORMAT, COMPARISON_VERSION, INT8, PRECISIONS
from src.utils import run_main

log = logging.getLogger(__name__)

CALIBRATION_IMAGES = 300


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line."""
    parser = Parser(__doc__)
    parser.add_argument("model", help=".ckpt, folder of a run, .mindir or .onnx")
    parser.add_argument("--images", required=True, help="folder of images, or of class folders")
    parser.add_argument("--threads", default="1", help="numbers of threads, such as 1,2")
    parser.add_argument(
        "--precisions", default="float32,bfloat16", help=f"of {','.join(PRECISIONS)}"
    )
    parser.add_argument("--rounds", type=int, default=200, help="turns of each (default: 200)")
    parser.add_argument(
        "--max_images", type=int, default=500, help="images to compute at most (default: 500)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    try:
        args.threads = sorted({int(word) for word in args.threads.split(",")})
    except ValueError:
        args.threads = [0]
    if min(args.threads) < 1:
        raise UserError("threads should be whole numbers from 1, with commas between them")
    args.precisions = list(dict.fromkeys(args.precisions.split(",")))
    for precision in args.precisions:
        if precision not in PRECISIONS:
            raise UserError(f"precisions has '{precision}', should be of {', '.join(PRECISIONS)}")
    if INT8 in args.precisions and Path(args.model).suffix == ".mindir":
        raise UserError(
            f"{args.model}: int8 is made from a checkpoint or an ONNX model; give one of them, or "
            "precisions without int8"
        )
    for key in ("rounds", "max_images"):
        if getattr(args, key) < 1:
            raise UserError(f"{key} is {getattr(args, key)}, should be at least 1")
    if args.out and args.out.suffix != ".json":
        raise UserError(f"out is '{args.out}', should be a file that ends in .json")
    return args


def model_files(model: str, folder: Path) -> dict[str, Path]:
    """Files of the network by format: of an exported model itself, of a checkpoint all."""
    from src.checkpoint.format import read_checkpoint
    from src.deployment.export import SUFFIXES, export
    from src.training.checkpoint_evaluation import find_checkpoints
    from src.training.run_log import run_folder

    path = Path(model)
    formats = {suffix: name for name, suffix in SUFFIXES.items()}
    if path.suffix in formats:
        return {formats[path.suffix]: path}
    checkpoint = read_checkpoint(find_checkpoints(run_folder(path), "best")[0])
    return {
        name: export(checkpoint, file_name=str(folder / name.lower()), file_format=name)
        for name in ("MINDIR", "ONNX")
    }


def compare_runtimes(args: argparse.Namespace, folder: Path) -> None:
    """Compare, print, and write what was found."""
    from src.deployment.classifier import load_classifier
    from src.deployment.quantisation import check_tools, quantise
    from src.files import make_folder, write_json
    from src.latency import comparison
    from src.latency.machine import processor_name, utc_now
    from src.latency.runtimes import Runtime

    # First what costs nothing to find out.
    Runtime("onnxruntime", threads=max(args.threads)).check()
    quantised = INT8 in args.precisions
    if quantised:
        check_tools()
    if args.out:
        make_folder(args.out.parent)
    classifier = load_classifier(args.model)
    if classifier.precision == INT8:
        raise UserError(
            f"{args.model}: a model of int8; give that of float32, and --precisions int8"
        )
    source, labelled = comparison.open_images(args.images, classifier.classes)
    files = model_files(args.model, folder)
    # A checkpoint's classifier takes batches of another size than the files exported from it.
    batch_size = classifier.batch_size if Path(args.model) in files.values() else 1
    images = comparison.read_images(source, classifier, labelled, args.max_images)
    if quantised:
        files[INT8] = folder / "int8.onnx"
        quantise(files["ONNX"], images.pixels[:CALIBRATION_IMAGES], files[INT8])
    candidates, left_out = comparison.find_candidates(files, args.threads, args.precisions)
    log.info(
        "%s: %d images%s, %d candidates, %d rounds",
        args.images,
        len(images.pixels),
        "" if labelled else " without labels of this network",
        len(candidates),
        args.rounds,
    )
    outcomes, unable = comparison.compare(candidates, images, batch_size, args.rounds)
    log.info("%s", comparison.table(outcomes))
    for title, reason in {**left_out, **unable}.items():
        log.info("%s: left out: %s", title, reason)
    advice = comparison.advice(outcomes)
    log.info("%s", advice)
    if args.out:
        record: dict[str, Any] = {
            "format": COMPARISON_FORMAT,
            "version": COMPARISON_VERSION,
            "model": args.model,
            "images": args.images,
            "image_count": len(images.pixels),
            "batch_size": batch_size,
            "rounds": args.rounds,
            "device": processor_name(),
            "date": utc_now(),
            "network_top1": images.top1(images.logits),
            "runtimes": [outcome.to_dict() for outcome in outcomes],
            "left_out": {**left_out, **unable},
            "advice": advice,
        }
        write_json(args.out, record)
    comparison.check_answers(outcomes)
    if not outcomes:
        raise Fault("no runtime could compute the network")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    args = parse_arguments(argv)
    from src.utils import setup_device

    setup_device("CPU", 0)
    with tempfile.TemporaryDirectory() as folder:
        compare_runtimes(args, Path(folder))
    return 0


if __name__ == "__main__":
    run_main(main)
