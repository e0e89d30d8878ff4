"""Train a single-path one-shot supernet (Guo et al., arXiv 1904.00420), one random path per step.

    python scripts/run_spnas.py --data_path data/cifar10 --batch_size 96 --num_steps 0

trains 600 epochs of CIFAR-10; the losses of the first three are about 2.26, 2.07 and 1.95. The
run's folder is ``<save_path>/<exp_name>/ckpt_0``; the same command again continues a run that ended
early. ``search.py --method one_shot`` chooses a path of the supernet, ``train.py --arch`` trains
its network. DEVICE_TARGET=Ascend trains on that device, ``bash scripts/run_train.sh --device_num 8
--program scripts/run_spnas.py cifar10 --data_path ...`` on several.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from src.cli import build_config, parse_config
from src.config import FILE_NAME, PRESETS, OneShotConfig, ProgramConfig
from src.files import has_checkpoints
from src.result_files import RUN
from src.utils import run_main


class Flags(ProgramConfig):
    """The flags of the PyTorch program that its users know."""

    exp_name: str = Field(
        "spos_c10_train_supernet",
        description="name of the run and of its folder",
        pattern=FILE_NAME,
    )
    layers: int = Field(20, description="layers of the supernet, 1 to 20")
    num_choices: int = Field(4, description="blocks that each layer chooses from, 1 to 4")
    batch_size: int = Field(64, description="images per step on each device", ge=1)
    epochs: int = Field(600, description="epochs to train", ge=1)
    num_steps: int = Field(100, description="steps per epoch at most; 0 for the whole epoch", ge=0)
    lr: float = Field(0.025, description="first learning rate, which falls along a cosine", gt=0)
    momentum: float = Field(0.9, description="momentum", ge=0, lt=1)
    weight_decay: float = Field(3e-4, description="L2 factor; also --weight-decay", ge=0)
    print_freq: int = Field(
        100, description="steps between printed lines; train.log has all steps", ge=0
    )
    val_interval: int = Field(5, description="epochs between validation and saving", ge=1)
    save_path: str = Field("./checkpoints/", description="folder of the runs")
    seed: int = Field(0, description="seed of weights, paths, order and augmentation", ge=0)
    data_path: str = Field(
        "data/teco-data/", description="the data set: folder or, for CIFAR-10, archive"
    )
    classes: int = Field(10, description="classes of the data set", ge=2)
    dataset: Literal["cifar10", "imagenet"] = Field("cifar10", description="data set")
    cutout: bool = Field(False, description="zero a square of every training image")
    cutout_length: int = Field(16, description="side of that square, pixels", ge=0)
    auto_aug: bool = Field(False, description="AutoAugment with the data set's policy")
    resize: bool = Field(False, description="train at 224x224; ImageNet always does")
    holdout: float = Field(
        0.0,
        description="share of the training images that are kept apart: search.py then chooses "
        "paths by them instead of the validation images",
        ge=0,
        lt=1,
    )


def parse_arguments(argv: Sequence[str] | None) -> Flags:
    """The flags of a command line."""
    return parse_config(Flags, argv, __doc__)


def configure(flags: Flags) -> OneShotConfig:
    """The configuration of a run, from its flags."""
    folder = Path(flags.save_path) / flags.exp_name
    preset = PRESETS[flags.dataset]
    values = {
        "device_target": os.environ.get("DEVICE_TARGET", "CPU"),
        "name": flags.exp_name,
        "dataset_name": flags.dataset,
        "data_path": flags.data_path,
        "num_classes": flags.classes,
        "holdout": flags.holdout,
        "mean": preset["mean"],
        "std": preset["std"],
        "flip": True,
        **_sizes(flags),
        "auto_augment": flags.dataset if flags.auto_aug else None,
        "cutout": flags.cutout_length if flags.cutout else 0,
        "layers": flags.layers,
        "num_choices": flags.num_choices,
        "batch_size": flags.batch_size,
        "epoch_size": flags.epochs,
        "epoch_steps": flags.num_steps,
        "lr_init": flags.lr,
        "momentum": flags.momentum,
        "weight_decay": flags.weight_decay,
        "label_smooth_factor": 0.0,
        "seed": flags.seed,
        "log_steps": 1,  # scripts/loss.py compares every step
        "print_steps": flags.print_freq,
        "val_interval_epochs": flags.val_interval,
        "save_checkpoint_epochs": flags.val_interval,
        "checkpoint_path": str(folder),
        # The same command again continues the run.
        "resume": has_checkpoints(folder / RUN),
    }
    return build_config(OneShotConfig, values)


def _sizes(flags: Flags) -> dict[str, Any]:
    """Keys that follow from the size of the images: 224x224 or 32x32."""
    if flags.resize or flags.dataset == "imagenet":
        return {
            "image_height": 224,
            "image_width": 224,
            "resize": 256 if flags.dataset == "imagenet" else 224,
            "crop_scale": 0.08,
            "space": "one_shot_224",
        }
    # The preset of CIFAR-10: a crop out of the image with 4 pixels of zeros around it.
    return {"image_height": 32, "image_width": 32, "resize": 32, "crop_padding": 4}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or continue a training; returns the exit code."""
    config = configure(parse_arguments(argv))
    # Importing MindSpore takes seconds, so mistakes in the flags are told before.
    from src.search.one_shot_training import train_supernet

    return train_supernet(config)


if __name__ == "__main__":
    run_main(main)
