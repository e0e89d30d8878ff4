"""Fixtures: real small images, and programs run as a user runs them."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mindspore as ms
import pytest

from src.arch.architecture import Architecture
from src.arch.blocks import Block
from src.data.sources import prepare_digits
from src.utils import GC_THRESHOLD, exit_code_of

ROOT = Path(__file__).resolve().parents[1]
# MindSpore sets the level of the runtime's own log for child processes.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "GLOG_v"} | {
    "PYTHON": sys.executable
}


# A network for tests in which it does not matter what is trained: the smaller it is, the sooner it
# is compiled.
TINY = Architecture(
    name="tiny",
    image_size=32,
    stem_channels=8,
    stem_stride=2,
    head_channels=32,
    blocks=(Block(3, 1, 1, 8, 8, skip=False), Block(5, 2, 3, 8, 16), Block(3, 1, 3, 16, 16)),
)
# Files that take longest, first, so that none of them is left for one of two processes at the end.
LONGEST = (
    "devices/test_distributed.py",
    "test_documents.py",
    "deployment/test_export.py",
    "search/test_search.py",
    "search/test_elastic.py",
    "training/test_training.py",
    "search/test_one_shot.py",
    "kernels/test_kernels.py",
    "latency/test_profile.py",
    "search/test_superkernel.py",
    "search/test_serving.py",
    "kernels/test_networks.py",
)


def pytest_configure(config):
    """Let pytest-xdist keep the order of files; by itself it takes those of most tests first."""
    if config.pluginmanager.hasplugin("xdist"):
        config.option.loadscopereorder = False
    gc.set_threshold(GC_THRESHOLD)  # as programs have it, which compile faster so


def pytest_collection_modifyitems(items):
    """Order the files by ``LONGEST``."""
    places = {str(ROOT / "tests" / name): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


@pytest.fixture(scope="session")
def tiny_arch(tmp_path_factory) -> Path:
    """The file of ``TINY``."""
    file = tmp_path_factory.mktemp("arch") / "tiny.json"
    file.write_text(json.dumps(TINY.to_dict()))
    return file


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The embedded digits as image folders."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare_digits(folder)
    return folder


@pytest.fixture(scope="session")
def few_digits(digits, tmp_path_factory) -> Path:
    """The first 12 training and 5 validation images of each digit."""
    folder = tmp_path_factory.mktemp("data") / "few_digits"
    for split, count in (("train", 12), ("val", 5)):
        for images in sorted((digits / split).iterdir()):
            (folder / split / images.name).mkdir(parents=True)
            for file in sorted(images.iterdir())[:count]:
                shutil.copy(file, folder / split / images.name)
    return folder


@pytest.fixture(scope="session")
def application():
    """The C++ application, built as a user builds it."""
    missing = subprocess.run(
        ["bash", str(ROOT / "ascend310_infer/build.sh"), "--missing"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if missing:
        pytest.skip(f"the C++ application needs {missing}")
    build = subprocess.run(
        ["bash", str(ROOT / "ascend310_infer/build.sh")],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert build.returncode == 0, build.stderr
    assert "warning" not in (ROOT / "ascend310_infer/out/build.log").read_text()
    return ROOT / "ascend310_infer/out/main"


@pytest.fixture
def with_openvino(application):
    """For tests of this runtime: skips where the application was built without it."""
    if "OpenVINO" not in (application.parent / "runtime_versions").read_text():
        pytest.skip("the wheel openvino is not installed")


@pytest.fixture
def classify(application, tmp_path):
    """Runs the application in an empty folder; returns the process and its answers by file."""

    def run(model, images, *flags):
        process = subprocess.run(
            [
                str(application),
                "--mindir_path",
                str(model),
                "--dataset_path",
                str(images),
                "--device",
                "CPU",
                "--threads",
                "2",
                *flags,
            ],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        answers = tmp_path / "result_Files/top5.jsonl"
        lines = answers.read_text().splitlines() if answers.exists() else []
        return process, {line["file"]: line for line in map(json.loads, lines)}

    return run


@contextlib.contextmanager
def mode_of(mode: int) -> Iterator[None]:
    """In one of MindSpore's modes: GRAPH compiles for seconds, PYNATIVE does not."""
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        yield
    finally:
        ms.set_context(mode=before)


@pytest.fixture(autouse=True)
def own_mode():
    """Each test starts in MindSpore's default mode, whatever ran before it in this process."""
    with mode_of(ms.PYNATIVE_MODE):
        yield


@pytest.fixture(params=(ms.GRAPH_MODE, ms.PYNATIVE_MODE), ids=("graph", "pynative"))
def mode(request):
    """Runs a test in both modes of MindSpore."""
    with mode_of(request.param):
        yield request.param


@pytest.fixture
def graph_mode():
    """As all programs run."""
    with mode_of(ms.GRAPH_MODE):
        yield


Program = Callable[..., subprocess.CompletedProcess]


def run_in_own_process(
    script: str, *flags: object, cwd: Path, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess:
    """Run a program as a user does; returns the finished process with its output as text."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, flags)],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=timeout,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture
def run_program(tmp_path) -> Program:
    """Runs a program in a process of its own, in an empty folder."""
    return functools.partial(run_in_own_process, cwd=tmp_path)


def assert_nothing_deprecated(run: subprocess.CompletedProcess) -> None:
    """Of a program that ran with GLOG_v=2, with which MindSpore warns of what it will drop."""
    lines = (run.stdout + run.stderr).splitlines()
    assert [line for line in lines if "deprecated" in line.lower()] == []


@contextlib.contextmanager
def _restored_process() -> Iterator[None]:
    """Give back what a program changes in its process: log, signal handlers, MindSpore's mode."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root.handlers.clear()  # so that the program's basicConfig takes effect
    try:
        with mode_of(ms.get_context("mode")):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)


def run_in_this_process(script: str, *flags: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a program in this process; see the fixture ``call_program``."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    out, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        _restored_process(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [script, *map(str, flags)])
        # A folder of compiled graphs belongs to one program: MindSpore finds a graph in it by the
        # number of graphs that the process has compiled before.
        patch.setattr("src.training.compile_cache.CompileCache.__enter__", lambda self: self)
        code = exit_code_of(module.main)
    return subprocess.CompletedProcess([script, *flags], code, out.getvalue(), errors.getvalue())


@pytest.fixture
def call_program(tmp_path) -> Program:
    """As ``run_program``, but in this process, which saves the seconds of importing MindSpore.

    For programs that end with a mistake or compile little: graphs are compiled without a cache.
    What needs a process of its own (signals, several ranks, the cache, the environment) takes
    ``run_program``, as does one test at least of each program.
    """
    return functools.partial(run_in_this_process, cwd=tmp_path)
