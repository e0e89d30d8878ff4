"""Start a program on several devices; what scripts/run_train.sh calls."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.devices.launcher import main  # noqa: E402
from src.utils import run_main  # noqa: E402

if __name__ == "__main__":
    run_main(main)
