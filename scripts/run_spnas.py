"""Train a single-path one-shot supernet (Guo et al., arXiv 1904.00420), one random path a step.

    python scripts/run_spnas.py --data_path data/cifar10 --batch_size 96 --epochs 3 --num_steps 0

trains three epochs of CIFAR-10; their training losses are about 2.25, 2.08 and 1.92. The run's
folder is ``<save_path>/<exp_name>/ckpt_0``; the same command again continues a run that ended
early. ``search.py --method one_shot`` chooses a path of the supernet, ``train.py --arch`` trains
its network. DEVICE_TARGET=Ascend trains on that device, ``bash scripts/run_train.sh --device_num 8
--program scripts/run_spnas.py cifar10 --data_path ...`` on several.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.cli import build_config  # noqa: E402
from src.config import PRESETS, OneShotConfig  # noqa: E402
from src.errors import UserError
from src.utils import run_main


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{self.prog}: {message}")


def parse_arguments(argv):
    parser = _Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--exp_name", default="spos_c10_train_supernet", help="name of the run and of its folder"
    )
    parser.add_argument("--layers", type=int, default=20, help="layers of the supernet, 1 to 20")
    parser.add_argument(
        "--num_choices", type=int, default=4, help="blocks that each layer chooses from, 1 to 4"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images a step on each device")
    parser.add_argument("--epochs", type=int, default=600, help="epochs to train")
    parser.add_argument(
        "--num_steps",
        type=int,
        default=100,
        help="steps of an epoch at most; 0 for the whole epoch",
    )
    parser.add_argument(
        "--lr", type=float, default=0.025, help="first learning rate, which falls along a cosine"
    )
    parser.add_argument("--momentum", type=float, default=0.9, help="momentum")
    parser.add_argument("--weight-decay", type=float, default=3e-4, help="L2 factor")
    parser.add_argument(
        "--print_freq", type=int, default=100, help="steps between printed lines; train.log has all"
    )
    parser.add_argument(
        "--val_interval", type=int, default=5, help="validate and save every so many epochs"
    )
    parser.add_argument("--save_path", default="./checkpoints/", help="folder of the runs")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights, paths, order and augmentation"
    )
    parser.add_argument(
        "--data_path",
        default="data/teco-data/",
        help="the data set: folder or, for CIFAR-10, archive",
    )
    parser.add_argument("--classes", type=int, default=10, help="classes of the data set")
    parser.add_argument(
        "--dataset", choices=("cifar10", "imagenet"), default="cifar10", help="data set"
    )
    parser.add_argument(
        "--cutout", action="store_true", help="zero a square of every training image"
    )
    parser.add_argument("--cutout_length", type=int, default=16, help="side of that square, pixels")
    parser.add_argument(
        "--auto_aug", action="store_true", help="AutoAugment with the data set's policy"
    )
    parser.add_argument(
        "--resize", action="store_true", help="train at 224x224; ImageNet always does"
    )
    return parser.parse_args(argv)


def configure(args):
    """The configuration of a run, from its flags."""
    folder = Path(args.save_path) / args.exp_name
    large = args.resize or args.dataset == "imagenet"
    preset = PRESETS[args.dataset]
    size = (
        {
            "image_height": 224,
            "image_width": 224,
            "space": "one_shot_224",
            "crop_scale": 0.08,
            "resize": 256 if args.dataset == "imagenet" else 224,
        }
        if large
        else {"image_height": 32, "image_width": 32, "resize": 32, "crop_padding": 4}
    )
    return build_config(
        OneShotConfig,
        {
            "device_target": os.environ.get("DEVICE_TARGET", "CPU"),
            "name": args.exp_name,
            "dataset_name": args.dataset,
            "data_path": args.data_path,
            "num_classes": args.classes,
            "mean": preset["mean"],
            "std": preset["std"],
            "flip": True,
            **size,
            "auto_augment": args.dataset if args.auto_aug else None,
            "cutout": args.cutout_length if args.cutout else 0,
            "layers": args.layers,
            "num_choices": args.num_choices,
            "batch_size": args.batch_size,
            "epoch_size": args.epochs,
            "epoch_steps": args.num_steps,
            "lr_init": args.lr,
            "momentum": args.momentum,
            "weight_decay": args.weight_decay,
            "label_smooth_factor": 0.0,
            "seed": args.seed,
            "log_steps": 1,
            "print_steps": args.print_freq,
            "val_interval_epochs": args.val_interval,
            "save_checkpoint_epochs": args.val_interval,
            "checkpoint_path": str(folder),
            "resume": any(folder.glob("ckpt_0/*.ckpt")),
        },
        "run_spnas.py",
    )


def main(argv=None):
    config = configure(parse_arguments(argv))
    # Importing MindSpore takes seconds, so mistakes in the flags are told before.
    from src.search.one_shot_training import train_supernet

    return train_supernet(config)


if __name__ == "__main__":
    run_main(main)
