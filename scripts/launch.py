"""Start a program on several devices, one process each; what scripts/run_train.sh calls.

    python scripts/launch.py --device_num 8 imagenet --data_path /path/to/imagenet

trains in the background; ``--help`` lists the flags, docs/distributed.md explains the job.
"""

from src.devices.launcher import main
from src.utils import run_main

if __name__ == "__main__":
    run_main(main)
