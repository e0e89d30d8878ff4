"""Fixtures: real small images, and programs run as a user runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

from src.data.sources import prepare_digits

ROOT = Path(__file__).resolve().parents[1]
# MindSpore sets the level of the runtime's own log for child processes.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "GLOG_v"} | {
    "PYTHON": sys.executable
}


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


@pytest.fixture(params=(ms.GRAPH_MODE, ms.PYNATIVE_MODE), ids=("graph", "pynative"))
def mode(request):
    """Runs a test in both modes of MindSpore."""
    before = ms.get_context("mode")
    ms.set_context(mode=request.param)
    yield request.param
    ms.set_context(mode=before)


@pytest.fixture
def run_program(tmp_path):
    """Runs a root script in an empty folder; returns the finished process with its output as text."""

    def run(
        script: str, *flags: object, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, flags)],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=timeout,
            env={**os.environ, **environment},
            check=False,
        )

    return run
