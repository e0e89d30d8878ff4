"""ONNX models computed by ONNX Runtime. Imports no framework."""

from __future__ import annotations

from pathlib import Path

from src.deployment.logits import Predict


def open_onnx(file: Path, threads: int = 0) -> tuple[Predict, list[int]]:
    """A function from an input to the output of an ONNX model, and the shape of the input.

    Args:
        file: a model of one input and one output.
        threads: 0 for all cores.

    Raises:
        ImportError: ONNX Runtime, which is of requirements.txt, is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (first,) = session.get_inputs()
    return lambda batch: session.run(None, {first.name: batch})[0], first.shape
