"""Measures models in runtimes that are Python packages, and computes their answers.

The flags, and what is printed, are those of ``ascend310_infer/out/profile``, which does the same in
C++. It is started by ``src.latency.runtimes.Runtime.command``, in a process of its own, and imports
no framework.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import IO

import numpy as np

from src.cli import Parser
from src.deployment.logits import Predict
from src.deployment.onnx_session import open_onnx
from src.errors import UserError
from src.files import whole
from src.latency.runtimes import WARM_UP
from src.latency.turns import READY, take_turns
from src.utils import exit_code_of


def open_ncnn(file: Path, threads: int) -> tuple[Predict, list[int]]:
    """The same as ``open_onnx`` by ncnn, whose converter of ONNX is pnnx."""
    import ncnn

    # The package itself imports PyTorch, which its converter does not need.
    converter = Path(str(distribution("pnnx").locate_file("pnnx/pnnx")))
    shape = open_onnx(file)[1]
    if shape[0] != 1:
        raise UserError(f"{file}: of batch size {shape[0]}, ncnn computes 1")
    network = ncnn.Net()
    network.opt.num_threads = threads
    network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    network.opt.use_fp16_packed = network.opt.use_bf16_storage = False
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.onnx"  # pnnx writes beside the model
        copy.write_bytes(file.read_bytes())
        command = [str(converter), str(copy), "fp16=0", f"inputshape={json.dumps(shape)}"]
        subprocess.run(command, cwd=folder, capture_output=True, check=False)
        loaded = [
            load(str(copy.with_suffix(suffix))) if copy.with_suffix(suffix).is_file() else 1
            for load, suffix in (
                (network.load_param, ".ncnn.param"),
                (network.load_model, ".ncnn.bin"),
            )
        ]
    if any(loaded):
        raise UserError(f"{file}: cannot be converted for ncnn")

    def predict(batch: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat(batch[0]))
        return np.array(extractor.extract("out0")[1])[None]

    return predict, shape


def open_mnn(file: Path, threads: int) -> tuple[Predict, list[int]]:
    """The same as ``open_onnx`` by MNN."""
    # Of the wheel MNN. Its public form, MNN.tools.mnnconvert, installs a package and reports to a
    # server when it is imported.
    import _tools
    import MNN
    from MNN import expr

    shape = open_onnx(file)[1]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.mnn"
        words = ["-f", "ONNX", "--modelFile", str(file), "--MNNModel", str(model)]
        _tools.mnnconvert(["mnnconvert", *words])
        if not model.is_file():
            raise UserError(f"{file}: cannot be converted for MNN")
        settings = {"backend": "CPU", "precision": "high", "numThread": threads}
        manager = MNN.nn.create_runtime_manager((settings,))
        module = MNN.nn.load_module_from_file(str(model), [], [], runtime_manager=manager)

    def predict(batch: np.ndarray) -> np.ndarray:
        image = expr.const(batch, list(batch.shape), expr.NCHW)
        answer = module.forward(expr.convert(image, expr.NC4HW4))
        return np.array(expr.convert(answer, expr.NCHW).read())

    return predict, shape


OPENERS: dict[str, Callable[[Path, int], tuple[Predict, list[int]]]] = {
    "onnxruntime": open_onnx,
    "ncnn": open_ncnn,
    "mnn": open_mnn,
}


def measure(
    models: Sequence[tuple[Predict, list[int]]], repeats: int, seed: int, answers: IO[str]
) -> None:
    """Measure the models once for each line of standard input."""
    random = np.random.default_rng(seed)
    inputs = [random.standard_normal(shape).astype(np.float32) for _, shape in models]
    for (predict, _), batch in zip(models, inputs, strict=True):
        for _ in range(WARM_UP):
            predict(batch)
    print(READY, file=answers)
    for number, _ in enumerate(iter(sys.stdin.readline, "")):
        lines = []
        for index in random.permutation(len(models)).tolist():
            (predict, _), batch = models[index], inputs[index]
            predict(batch)  # brings its weights back into the caches
            for _ in range(repeats):
                start = time.perf_counter()
                predict(batch)
                milliseconds = (time.perf_counter() - start) * 1e3
                lines.append({"model": index, "round": number, "ms": milliseconds})
        answers.write("".join(json.dumps(line) + "\n" for line in lines))


def answer(model: tuple[Predict, list[int]], inputs: Path, outputs: Path) -> None:
    """Write a model's answers to the inputs of a file: float32, one after the other."""
    predict, shape = model
    batches = np.fromfile(inputs, np.float32).reshape(-1, *shape)
    with whole(outputs) as scratch:
        np.concatenate([predict(batch) for batch in batches]).astype(np.float32).tofile(scratch)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Those of ``profile`` in C++ that Python packages have a use for."""
    parser = Parser(__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--runtime", choices=OPENERS, required=True)
    parser.add_argument("--precision", choices=["float32"], default="float32")
    parser.add_argument("--device", choices=["CPU"], default="CPU")
    parser.add_argument("--device_id", type=int)  # of Ascend
    parser.add_argument("--runtime_threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--outputs", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or answer; returns the exit code."""
    answers = take_turns()
    args = parse_arguments(argv)
    models = [OPENERS[args.runtime](file, args.runtime_threads) for file in args.models]
    if args.inputs:
        answer(models[0], args.inputs, args.outputs)
    else:
        measure(models, args.repeats, args.seed, answers)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
