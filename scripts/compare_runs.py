"""Compare trained networks: a table, and their curves in one picture.

    python scripts/compare_runs.py runs/found runs/random_0 runs/random_1 runs/largest --out runs/comparison.png

Runs whose folders differ only in a number at the end, such as ``random_0`` and ``random_1``, are a
group, which gets a line with mean and standard deviation. Accuracies are those of the last epoch,
on the validation images: none is picked for being the best. Parameters and multiply-adds are those
of ``--num_classes``.
"""

import argparse
import logging
import re
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.arch.architecture import load_architecture  # noqa: E402
from src.arch.cost import network_cost  # noqa: E402
from src.cli import Parser  # noqa: E402
from src.errors import UserError  # noqa: E402
from src.files import make_folder, read_jsonl  # noqa: E402
from src.training.run_log import RunLog  # noqa: E402
from src.utils import run_main  # noqa: E402

log = logging.getLogger(__name__)


def read_run(folder, num_classes):
    """What a run has written: cost of its network, and its validations."""
    own = folder / "ckpt_0" if (folder / "ckpt_0").is_dir() else folder
    lines = [line for line in read_jsonl(own / RunLog.METRICS) if line["kind"] == "val"]
    if not lines or not (own / "arch.json").is_file():
        raise UserError(
            f"{folder}: should be the folder of a training run, with {RunLog.METRICS}, in which there are "
            "validations, and arch.json"
        )
    return {"cost": network_cost(load_architecture(own / "arch.json"), num_classes), "val": lines}


def print_table(runs, groups):
    log.info(
        "%-16s %8s %8s %7s %8s %8s %8s", "run", "params", "macs", "epochs", "top-1", "top-5", "loss"
    )
    for name, run in runs.items():
        last = run["val"][-1]
        log.info(
            "%-16s %7.2fM %7.1fM %7d %8.2f %8.2f %8.4f",
            name,
            run["cost"].params / 1e6,
            run["cost"].macs / 1e6,
            last["progress"],
            last["top1"],
            last["top5"],
            last["loss"],
        )
    for group, names in groups.items():
        if len(names) > 1:
            top1 = [runs[name]["val"][-1]["top1"] for name in names]
            log.info(
                "%s: top-1 %.2f +- %.2f (mean and standard deviation of %d), %.2f to %.2f",
                group,
                statistics.mean(top1),
                statistics.stdev(top1),
                len(top1),
                min(top1),
                max(top1),
            )


def main(argv=None):
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="checkpoint_path of a training run")
    parser.add_argument("--out", default="comparison.png", help="picture, .png or .svg")
    parser.add_argument(
        "--num_classes",
        type=int,
        default=1000,
        help="that costs are counted for (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.suffix not in (".png", ".svg"):
        raise UserError(f"out is '{args.out}', should be a file that ends in .png or .svg")
    if args.num_classes < 1:
        raise UserError(f"num_classes is {args.num_classes}, should be at least 1")
    runs = {Path(folder).name: read_run(Path(folder), args.num_classes) for folder in args.runs}
    groups = {}
    for name in runs:
        groups.setdefault(re.sub(r"_\d+$", "", name), []).append(name)
    print_table(runs, groups)
    from src.drawing import draw_comparison  # importing Matplotlib takes a second

    make_folder(out.parent)
    draw_comparison(
        {group: [runs[name]["val"] for name in names] for group, names in groups.items()}, out
    )
    log.info("%s: written", out)
    return 0


if __name__ == "__main__":
    run_main(main)
