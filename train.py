"""Train a network.

    python train.py --dataset_name digits --checkpoint_path runs/digits

trains the published network on the embedded digits; about two minutes on 2 CPU cores, top-1 about
99 %.
"""

from src.cli import parse_config
from src.config import TrainConfig
from src.utils import run_main


def main(argv=None):
    config = parse_config(TrainConfig, argv, __doc__)
    from src.training.loop import (
        Trainer,  # after the flags are checked, as importing MindSpore takes seconds
    )

    return Trainer(config).run()


if __name__ == "__main__":
    run_main(main)
