"""Export a checkpoint as a model for inference: MindIR, ONNX or, on Ascend, AIR.

    python export.py --ckpt_file runs/digits/ckpt_0/best.ckpt --file_name runs/digits/spnas

takes about 15 seconds on 2 CPU cores and writes ``spnas.mindir`` and its description
``spnas.json``, after the model has been loaded again and compared with the network on real images.
With ``--file_format ONNX --int8 --calibration FOLDER`` it also quantises the model to int8,
measures accuracy and time in the runtimes that are installed here, and keeps it if it is worth it.
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

    if config.int8:
        from src.latency.int8 import check_before, export_int8

        check_before(config)
    setup_device(config.device_target, config.device_id)
    checkpoint = read_checkpoint(config.ckpt_file)
    path = export(
        checkpoint,
        file_name=config.file_name,
        file_format=config.file_format,
        batch_size=config.batch_size,
        mindir_version=config.mindir_version,
        fold=not config.no_fold,
        device_target=config.device_target,
    )
    log.info("%s: exported; %s describes it", path, path.with_suffix(".json"))
    if config.int8:
        path = export_int8(path, checkpoint, config)
        log.info("%s: exported; %s describes it", path, path.with_suffix(".json"))
    return 0


if __name__ == "__main__":
    run_main(main)
