"""Make the latency table of a search space on your own device.

    python scripts/profile_latency.py --space imagenet --device CPU --threads 1 --out tables/mycpu.json

exports every different block of the space and some whole networks, measures them with the C++
runtime of ``ascend310_infer``, about four minutes on 2 CPU cores, and writes a table for
``search.py --latency_table``. Interrupted, the same command continues. ``--verify 20`` measures 20
random networks, and the shipped ones, against it. ``--device Ascend310 --device_id 0`` measures on
that hardware, ``--runtime mindspore`` the runtime of training.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.cli import parse_config  # noqa: E402
from src.config import ProfileConfig  # noqa: E402
from src.utils import run_main  # noqa: E402


def main(argv=None):
    config = parse_config(ProfileConfig, argv, __doc__)
    from src.latency.profile import profile

    return profile(config)


if __name__ == "__main__":
    run_main(main)
