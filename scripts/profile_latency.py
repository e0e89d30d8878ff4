r"""Make the latency table of a search space on your own device.

    python scripts/profile_latency.py --space imagenet --device CPU --threads 1 \
        --out tables/mycpu.json

exports every different block of the space and some whole networks, measures them with the C++
runtime of ``ascend310_infer``, about four minutes on 2 CPU cores, and writes a table for
``search.py --latency_table``. Interrupted, the same command continues. ``--verify 20`` measures 20
random networks, and the shipped ones, and compares them with the table. ``--device Ascend310
--device_id 0`` measures on that hardware, ``--runtime openvino --precision bfloat16`` another
runtime of the deployment, ``--runtime mindspore`` that of training. ``--rescale TABLE --out TABLE``
adapts a table to the machine's speed of now, in seconds, under the conditions that the table says.
"""

from __future__ import annotations

from collections.abc import Sequence

from src.cli import parse_config
from src.config import ProfileConfig
from src.utils import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    config = parse_config(ProfileConfig, argv, __doc__)
    # After the flags are checked, as importing MindSpore takes seconds.
    from src.latency.profile import profile

    return profile(config)


if __name__ == "__main__":
    run_main(main)
