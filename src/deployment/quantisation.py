"""From an ONNX model of float32 to one of int8, by the tools of ONNX and ONNX Runtime."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from src.deployment.logits import check_difference, full_batches
from src.deployment.onnx_session import open_onnx
from src.errors import UserError

OPSET = 13  # the first whose quantisation knows weights with a scale per channel
TOLERANCE = 1e-4  # of logits after the conversion to it, relative to the largest


def check_tools() -> None:
    """Raise UserError where the packages of the extra ``int8`` are not installed."""
    try:
        import onnx  # noqa: F401  # only whether it is there
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"int8 needs packages that are not installed ({error}); bash scripts/setup_env.sh int8"
        ) from None


def quantise(model: Path, images: np.ndarray, out: Path) -> None:
    """Write a model whose convolutions and products compute in int8.

    Weights have a scale per output channel, and 7 bits; activations one per tensor, by their least
    and largest value on the given images (static quantisation).

    Args:
        model: an ONNX model of float32.
        images: (N, 3, H, W).
        out: the file to write.

    Raises:
        Fault: the conversion to a newer opset changes the logits.
    """
    import onnx
    from onnx import version_converter
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    original = onnx.load(model)
    name, shape = original.graph.input[0].name, open_onnx(model)[1]
    batches = full_batches(images, shape[0]).reshape(-1, *shape)

    class Reader(quantization.CalibrationDataReader):
        """The images, one batch after the other."""

        _batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next inputs; None after the last."""
            batch = next(self._batches, None)
            return None if batch is None else {name: batch}

    with tempfile.TemporaryDirectory() as folder, _no_warnings():
        newer, prepared = Path(folder) / "newer.onnx", Path(folder) / "prepared.onnx"
        onnx.save(version_converter.convert_version(original, OPSET), str(newer))
        _check_conversion(model, newer, batches[0])
        quant_pre_process(str(newer), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(out),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            # x86 processors without VNNI add two products in 16 bits, which with weights of 8 bits
            # saturates: 3 to 5 points of top-1 were lost there, by exact sums 0.3.
            reduce_range=True,
            # Others keep all activations of all images in memory.
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )


@contextmanager
def _no_warnings() -> Iterator[None]:
    """The tools warn, by the root logger, of what is no problem of the model."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _check_conversion(before: Path, after: Path, batch: np.ndarray) -> None:
    expected, got = (open_onnx(file)[0](batch) for file in (before, after))
    what, advice = f"{before}: the conversion to opset {OPSET}", "no model of int8 was written"
    check_difference(got, expected, TOLERANCE, what, advice)
