"""Export a checkpoint as a model for inference: MindIR, ONNX or, on Ascend, AIR.

    python export.py --ckpt_file runs/digits/ckpt_0/best.ckpt --file_name runs/digits/spnas

takes about 15 seconds on 2 CPU cores and writes ``spnas.mindir`` and its description
``spnas.json``, after the model has been loaded again and compared with the network on real images.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from src.cli import parse_config
from src.config import ExportConfig
from src.utils import run_main, setup_device

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    config = parse_config(ExportConfig, argv, __doc__)
    # Importing MindSpore takes seconds, so mistakes in the flags are told before.
    from src.checkpoint.format import read_checkpoint
    from src.deployment.export import export

    setup_device(config.device_target, config.device_id)
    path = export(
        read_checkpoint(config.ckpt_file),
        file_name=config.file_name,
        file_format=config.file_format,
        batch_size=config.batch_size,
        mindir_version=config.mindir_version,
        fold=not config.no_fold,
        device_target=config.device_target,
    )
    log.info("%s: exported; %s describes it", path, path.with_suffix(".json"))
    return 0


if __name__ == "__main__":
    run_main(main)
