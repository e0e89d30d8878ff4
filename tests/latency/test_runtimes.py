"""Runtimes: by name, their installed versions, and the samples that the C++ program takes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args

import pytest

from src.arch.blocks import Block
from src.arch.space import load_space
from src.config import ProfileConfig, SearchConfig
from src.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from src.deployment.export import write_model
from src.latency import lite_runtime
from src.latency.model import Model
from src.latency.runtimes import RUNTIMES, installed_version
from src.search.budget import open_table
from tests.conftest import ENVIRONMENT, ROOT


def test_the_configuration_offers_the_runtimes_that_there_are():
    offered = get_args(ProfileConfig.model_fields["runtime"].annotation)
    assert offered == tuple(RUNTIMES)
    devices = {device for runtime in RUNTIMES.values() for device in runtime.devices}
    assert set(get_args(ProfileConfig.model_fields["device"].annotation)) == devices


@pytest.fixture
def no_processes(monkeypatch):
    """Starting a process fails."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"a process was started: {args}")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr("os.system", refuse)
    monkeypatch.setattr("os.posix_spawn", refuse)
    monkeypatch.setattr("os.fork", refuse)


def test_installed_versions_are_read_without_a_process(no_processes, tmp_path, monkeypatch):
    import mindspore as ms

    file = tmp_path / "runtime_version"
    monkeypatch.setattr(lite_runtime, "VERSION_FILE", file)
    assert installed_version("MindSpore Lite 1.9.0") is None  # not built
    file.write_text("MindSpore Lite 2.0.0\n")
    assert installed_version("MindSpore Lite 1.9.0") == "MindSpore Lite 2.0.0"
    assert installed_version("MindSpore 1.9.0") == f"MindSpore {ms.__version__}"
    assert installed_version("TensorFlow Lite") is None


def test_a_search_tells_another_runtime_without_a_process(
    no_processes, tmp_path, monkeypatch, caplog
):
    space = load_space("imagenet")
    shipped = json.loads((ROOT / "src/arch/latency_tables/pixel1.json").read_text())
    table = tmp_path / "old.json"
    table.write_text(json.dumps(shipped | {"runtime": "MindSpore Lite 1.9.0"}))
    file = tmp_path / "runtime_version"
    monkeypatch.setattr(lite_runtime, "VERSION_FILE", file)
    config = SearchConfig(latency_table=str(table))
    images = Preprocessing(224, 224, 256, IMAGENET_MEAN, IMAGENET_STD)
    file.write_text("MindSpore Lite 1.9.0\n")
    open_table(config, space, images, None)
    assert "installed" not in caplog.text
    file.write_text("MindSpore Lite 2.0.0\n")
    open_table(config, space, images, None)
    assert "was made with MindSpore Lite 1.9.0, installed is MindSpore Lite 2.0.0" in caplog.text


def test_the_cost_of_a_search_imports_no_framework():
    code = "import sys, src.search.budget; sys.exit('mindspore' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_build_tells_the_version_of_the_program(application):
    said = subprocess.run(
        [str(application.parent / "profile"), "--version"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    ).stdout.strip()
    assert said == installed_version("MindSpore Lite") == "MindSpore Lite 2.0.0"


def test_the_program_takes_the_samples_it_is_asked_for(application, tmp_path):
    files = []
    for name, kernel_size in (("small", 3), ("large", 7)):
        model = Model(name, Block(kernel_size, 1, 6, 8, 8), (1, 8, 12, 12))
        files.append(str(tmp_path / f"{name}.mindir"))
        write_model(model.cell(folded=True), model.shape, tmp_path / f"{name}.mindir", "MINDIR", 1)
    command = [
        str(application.parent / "profile"),
        "--device",
        "CPU",
        "--rounds",
        "5",
        "--repeats",
        "3",
    ]
    done = subprocess.run(
        [*command, *files], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["round"] for line in lines] == sorted([*range(5)] * 6) and all(
        line["ms"] > 0 for line in lines
    )
    for index in range(2):
        assert sum(line["model"] == index for line in lines) == 15
    missing = subprocess.run(
        [*command, "no.mindir"], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert missing.returncode == 2 and missing.stdout == ""
    assert (
        missing.stderr
        == "profile: error: no.mindir: the runtime cannot load it; GLOG_v=2 shows its reason\n"
    )
