"""The C++ application against a Python program with ONNX Runtime and OpenCV, JPEG to answer.

    python export.py --ckpt_file CKPT --file_name runs/model
    python export.py --ckpt_file CKPT --file_name runs/model_onnx --file_format ONNX
    python benchmarks/inference.py runs/model.mindir runs/model_onnx.onnx FOLDER_OF_IMAGES

The application computes in each runtime that it was built with. Measures all in turn and prints
medians over rounds and ratios of medians to the Python program's better one. Latency: one image
after another, all cores on each. Throughput: all cores on many images, in the Python program once
with one thread per core and once with all cores on one image at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from benchmarks.contenders import run
from src.data.sources import ImageFolder
from src.latency.cpp_program import APPLICATION, build_program
from src.latency.runtimes import LIBRARIES, Runtime


class PythonProgram:
    """What one writes with ONNX Runtime and OpenCV; the same preprocessing as the application's."""

    def __init__(self, model: str, threads: int) -> None:
        values = json.loads(Path(model).with_suffix(".json").read_text())["preprocessing"]
        self._size, self._resize = (values["height"], values["width"]), values["resize"]
        self._mean, self._scale = np.float32(values["mean"]), 1 / np.float32(values["std"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )

    def classify(self, file: str) -> int:
        """Index of the most probable class of an image."""
        image = cv2.imdecode(
            np.fromfile(file, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
        height, width = image.shape[:2]
        scale = self._resize / min(height, width)
        image = cv2.resize(
            image, (max(self._resize, int(width * scale)), max(self._resize, int(height * scale)))
        )
        top, left = ((a - b) // 2 for a, b in zip(image.shape[:2], self._size, strict=True))
        crop = image[top : top + self._size[0], left : left + self._size[1], ::-1]
        tensor = ((crop - self._mean) * self._scale).transpose(2, 0, 1)[None]
        return int(self._session.run(None, {"x": np.ascontiguousarray(tensor)})[0].argmax())


def run_application(runtime: Runtime, model: str, images: str, workers: int) -> str:
    """What the application prints of its times."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(APPLICATION), "--model_path", os.path.abspath(model), *runtime.flags]
        command += ["--dataset_path", os.path.abspath(images), "--threads", str(workers)]
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        ).stdout


def application_latency_ms(runtime: Runtime, model: str, images: str) -> float:
    """Median milliseconds from JPEG to answer, one image after another."""
    text = run_application(runtime, model, images, workers=1)
    return number_in(text, r"JPEG to answer: .*p50 ([\d.]+) ms")


def application_throughput(runtime: Runtime, model: str, images: str, workers: int) -> float:
    """Images per second, with so many at work at once."""
    text = run_application(runtime, model, images, workers)
    return number_in(text, r"throughput: ([\d.]+) images/s")


def application_runtimes() -> list[tuple[str, str]]:
    """Names and precisions of what the application was built with."""
    return [
        (name, precision)
        for name, library in LIBRARIES.items()
        if library.in_cpp and library.installed()
        for precision in library.precisions
    ]


def can_compute(title: str, runtime: Runtime, model: str, images: str) -> bool:
    """Whether a runtime computes here; its reason is printed where not, such as its precision."""
    try:
        run_application(runtime, model, images, workers=1)
    except subprocess.CalledProcessError as error:
        print(f"{title}: left out, {error.stderr.strip().splitlines()[-1]}")
        return False
    return True


def number_in(text: str, pattern: str) -> float:
    """The number that the pattern's group matches."""
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"'{pattern}' is not in what the application printed: {text}")
    return float(found[1])


def python_latency_ms(program: PythonProgram, files: list[str]) -> float:
    """Median milliseconds per image, one after the other."""
    times = []
    for file in files:
        start = time.perf_counter()
        program.classify(file)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def python_throughput(program: PythonProgram, files: list[str], threads: int) -> float:
    """Images per second of that many threads."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        answers = list(pool.map(program.classify, files))
        return len(answers) / (time.perf_counter() - start)


def compare(args: argparse.Namespace) -> None:
    """Measure all in turn and print medians and ratios."""
    build_program()
    images = ImageFolder(args.images)  # the class folders that the application goes through
    files = [images.name(index) for index in range(len(images))]
    cv2.setNumThreads(1)  # images are small, and the cores have other images
    whole, single = PythonProgram(args.onnx, args.threads), PythonProgram(args.onnx, 1)
    models = {"MINDIR": args.mindir, "ONNX": args.onnx}
    latency: dict[str, Callable[[], float]] = {}
    throughput: dict[str, Callable[[], float]] = {}
    for name, precision in application_runtimes():
        title = f"C++, {LIBRARIES[name].title}, {precision}"
        paths = models[str(LIBRARIES[name].file_format)], args.images
        whole_machine, one_core = Runtime(name, precision, args.threads), Runtime(name, precision)
        if not can_compute(title, one_core, *paths):
            continue
        latency[title] = partial(application_latency_ms, whole_machine, *paths)
        throughput[title] = partial(application_throughput, one_core, *paths, args.threads)
    contenders: dict[str, dict[str, Callable[[], float]]] = {
        "latency, ms": {**latency, "Python, ONNX Runtime": lambda: python_latency_ms(whole, files)},
        "throughput, images/s": {
            **throughput,
            "Python, ONNX Runtime": lambda: python_throughput(single, files, args.threads),
            "Python, ONNX Runtime, one at a time": lambda: python_throughput(whole, files, 1),
        },
    }
    print(
        f"{len(files)} images, {args.threads} threads, {args.rounds} rounds, ONNX Runtime "
        f"{onnxruntime.__version__}, OpenCV {cv2.__version__}"
    )
    for program in (whole, single):
        python_latency_ms(program, files[:5])  # warm-up
    for measure, runs in contenders.items():
        values: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, turn in runs.items():
                values[name].append(turn())
        medians = {name: statistics.median(found) for name, found in values.items()}
        best = min if measure.startswith("latency") else max
        base = best(value for name, value in medians.items() if name.startswith("Python"))
        for name, found in values.items():
            print(
                f"{measure:21} {name:36} {medians[name]:8.2f}  "
                f"({min(found):.2f}..{max(found):.2f})  {medians[name] / base:.2f} of Python's",
                flush=True,
            )


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mindir")
    parser.add_argument("onnx")
    parser.add_argument("images", help="folder of images or of class folders")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    if min(args.threads, args.rounds) < 1:
        parser.error("--threads and --rounds should be at least 1")
    for file in (args.mindir, args.onnx, Path(args.onnx).with_suffix(".json"), args.images):
        if not Path(file).exists():
            parser.error(f"{file}: no such file or folder")
    return run(lambda: compare(args))


if __name__ == "__main__":
    sys.exit(main())
