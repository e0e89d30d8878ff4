"""Runtimes: by name, their installed versions, and the samples that the C++ program takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from mindspore import Tensor

from src.arch.blocks import Block
from src.arch.space import load_space
from src.config import ProfileConfig, SearchConfig
from src.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from src.deployment.export import write_model
from src.errors import Fault, UserError
from src.latency import cpp_program, runtimes
from src.latency.model import Model
from src.latency.runtimes import LIBRARIES, WARM_UP, Runtime, environment, installed_version
from src.latency.turns import TurnProcess, run_to_end
from src.search.budget import open_table
from tests.conftest import ENVIRONMENT, ROOT, TINY


def test_the_configuration_offers_the_runtimes_that_there_are():
    fields = ProfileConfig.model_fields
    offered = get_args(fields["runtime"].annotation)
    assert set(offered) <= set(LIBRARIES)
    for key in ("device", "precision"):
        known = {value for name in offered for value in getattr(LIBRARIES[name], f"{key}s")}
        assert set(get_args(fields[key].annotation)) == known


@pytest.mark.parametrize(
    "runtime, message",
    [
        (Runtime("lite", "bfloat16"), "precision is bfloat16; with --runtime lite it should be"),
        (Runtime("openvino", device="Ascend310"), "device is Ascend310; with --runtime openvino"),
        (Runtime("onnxruntime", threads=4096), "threads is 4096; this machine has"),
    ],
)
def test_what_a_runtime_cannot_do_is_named(runtime, message):
    with pytest.raises(UserError, match=message):
        runtime.check()


def test_what_is_missing_comes_with_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "build_program", lambda: None)
    monkeypatch.setattr(cpp_program, "VERSIONS_FILE", tmp_path / "runtime_versions")
    with pytest.raises(UserError, match="profile does not start; .*profile --version says why"):
        Runtime("lite").find()
    (tmp_path / "runtime_versions").write_text("MindSpore Lite 2.0.0\n")
    assert Runtime("lite").find() == "MindSpore Lite 2.0.0"
    advice = r"openvino: not installed \(bash scripts/setup_env.sh runtimes\)"
    with pytest.raises(UserError, match=advice):
        Runtime("openvino").find()


def test_cpp_programs_and_python_warm_up_alike():
    source = (ROOT / "ascend310_infer/src/model.cc").read_text(encoding="utf-8")
    assert re.findall(r"kWarmUp = (\d+);", source) == [str(WARM_UP)]


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

    file = tmp_path / "runtime_versions"
    monkeypatch.setattr(cpp_program, "VERSIONS_FILE", file)
    assert installed_version("MindSpore Lite 1.9.0") is None  # not built
    file.write_text("MindSpore Lite 2.0.0\nOpenVINO 2026.4.1\n")
    assert installed_version("MindSpore Lite 1.9.0") == "MindSpore Lite 2.0.0"
    assert installed_version("OpenVINO 2025.1.0") == "OpenVINO 2026.4.1"
    assert installed_version("MindSpore 1.9.0") == f"MindSpore {ms.__version__}"
    assert installed_version("TensorFlow Lite") is None


def test_a_search_tells_another_runtime_without_a_process(
    no_processes, tmp_path, monkeypatch, caplog
):
    space = load_space("imagenet")
    shipped = json.loads((ROOT / "src/arch/latency_tables/pixel1.json").read_text())
    table = tmp_path / "old.json"
    table.write_text(json.dumps(shipped | {"runtime": "MindSpore Lite 1.9.0"}))
    file = tmp_path / "runtime_versions"
    monkeypatch.setattr(cpp_program, "VERSIONS_FILE", file)
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
    ).stdout.splitlines()
    assert said[0] == installed_version("MindSpore Lite") == "MindSpore Lite 2.0.0"
    assert said[1:] == [installed_version("OpenVINO")] * (len(said) - 1)


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


@pytest.fixture(scope="module")
def classifier_files(tmp_path_factory):
    """A small network as a model file of each format, inputs (3, 3, 32, 32), its logits."""
    folder = tmp_path_factory.mktemp("classifier")
    model = Model("tiny", TINY, (1, 3, 32, 32), num_classes=10)
    cell = model.cell(folded=True)
    files = {"MINDIR": folder / "tiny.mindir", "ONNX": folder / "tiny.onnx"}
    for kind, file in files.items():
        write_model(cell, model.shape, file, kind, 1)
    inputs = np.random.default_rng(0).standard_normal((3, *model.shape[1:])).astype(np.float32)
    return files, inputs, cell(Tensor(inputs)).asnumpy()


@pytest.mark.parametrize("name", [name for name in LIBRARIES if LIBRARIES[name].file_format])
def test_every_runtime_answers_as_the_network_and_takes_samples(
    name, classifier_files, tmp_path, request
):
    runtime = Runtime(name)
    if runtime.library.in_cpp:
        request.getfixturevalue("application")
    if runtime.library.installed() is None:
        pytest.skip(f"{name} is not installed")
    files, inputs, expected = classifier_files
    file = files[runtime.library.file_format]
    inputs.tofile(tmp_path / "inputs")
    flags = ("--inputs", tmp_path / "inputs", "--outputs", tmp_path / "outputs")
    run_to_end(name, runtime.command([file], *flags), environment())
    got = np.fromfile(tmp_path / "outputs", np.float32).reshape(3, -1)
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    process = TurnProcess(name, runtime.command([file, file], "--repeats", 2), environment())
    try:
        assert process.read() == ["ready"]
        for number in range(2):
            lines = [json.loads(line) for line in process.take_turn(4)]
            assert sorted(line["model"] for line in lines) == [0, 0, 1, 1]
            assert all(line["round"] == number and line["ms"] > 0 for line in lines)
    finally:
        process.kill()


def test_what_a_process_says_last_is_the_error(classifier_files, tmp_path, monkeypatch):
    (tmp_path / "damaged.onnx").write_bytes(b"damaged")
    command = Runtime("onnxruntime").command([tmp_path / "damaged.onnx"])
    process = TurnProcess("worker", command, environment(), keep_errors=True)
    with pytest.raises(Fault, match="damaged.onnx"):
        process.read()
    process.kill()
    # The worker is found where the current folder has a package of its name.
    (tmp_path / "src").mkdir()
    (tmp_path / "src/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="unknown flag '--none'"):
        run_to_end("worker", [*command, "--none"], environment())
    with pytest.raises(Fault, match=r"worker: ended with exit code -6 \(free\(\): invalid\)"):
        run_to_end("worker", ["sh", "-c", "echo 'free(): invalid' >&2; kill -6 $$"], environment())
