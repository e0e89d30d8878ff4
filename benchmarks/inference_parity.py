r"""The C++ application against Python on the same files: top-1, accuracies, logits.

    python benchmarks/inference_parity.py CKPT MODEL.mindir FOLDER_OF_CLASS_FOLDERS
    python benchmarks/inference_parity.py CKPT MODEL.onnx FOLDER_OF_CLASS_FOLDERS \
        --runtime openvino --precision bfloat16

Python evaluates the checkpoint as eval.py does, with the unfolded network of stock operators.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.contenders import run
from src.errors import UserError
from src.latency.cpp_program import APPLICATION, build_program
from src.latency.runtimes import LIBRARIES, Runtime


def compare(checkpoint_file: str, model: str, folder: str, runtime: Runtime) -> None:
    """Print how the two agree; raises UserError for files that do not fit."""
    from mindspore import Tensor

    from src.checkpoint.format import read_checkpoint
    from src.checkpoint.restore import build_network
    from src.data.sources import ImageFolder
    from src.dataset import Loader
    from src.utils import setup_device

    build_program()
    setup_device("CPU", 0)
    checkpoint, source = read_checkpoint(checkpoint_file), ImageFolder(folder)
    if list(source.classes) != list(checkpoint.meta.classes):
        raise UserError(f"{folder}: its classes are not those of {checkpoint_file}")
    network = build_network(checkpoint)
    loader = Loader(source, checkpoint.meta.preprocessing, batch_size=20, training=False)
    python = np.concatenate([network(Tensor(images)).asnumpy() for images, _ in loader.epoch()])
    names = [Path(source.name(index)).relative_to(source.path) for index in range(len(source))]
    cpp = logits_of_application(model, source.path, names, runtime)
    same = int((cpp.argmax(1) == python.argmax(1)).sum())
    accuracies = [
        100 * float((logits.argmax(1) == source.labels).mean()) for logits in (python, cpp)
    ]
    difference = float((np.abs(cpp - python).max(1) / np.abs(python).max(1)).max())
    print(
        f"{len(source)} images: same top-1 on {same}; top-1 {accuracies[0]:.2f} % in Python, "
        f"{accuracies[1]:.2f} % in C++; logits differ by at most {difference:.1e} of an image's "
        "largest"
    )


def logits_of_application(
    model: str, folder: Path, names: list[Path], runtime: Runtime
) -> np.ndarray:
    """Logits (N, classes) of the files of a folder."""
    command: list[str | Path] = [APPLICATION, "--model_path", Path(model).resolve()]
    command += ["--dataset_path", folder.resolve(), *runtime.flags]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        results = Path(scratch) / "result_Files"
        return np.stack([np.fromfile(results / f"{name}_0.bin", np.float32) for name in names])


def main(argv: list[str] | None = None) -> int:
    """Compare and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("model", help=".mindir, or .onnx for OpenVINO")
    parser.add_argument("images", help="folder of class folders")
    names = [name for name, library in LIBRARIES.items() if library.in_cpp]
    parser.add_argument("--runtime", choices=names, default="lite")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args(argv)
    runtime = Runtime(args.runtime, args.precision)
    return run(lambda: compare(args.checkpoint, args.model, args.images, runtime))


if __name__ == "__main__":
    sys.exit(main())
