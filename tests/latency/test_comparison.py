"""Runtimes side by side, and the verdict on int8, on a small network and real images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.checkpoint.format import Meta, read_checkpoint, write_checkpoint
from src.checkpoint.restore import cell_weights
from src.cli import parse_config
from src.config import ExportConfig
from src.data.preprocessing import Preprocessing
from src.data.sources import ImageFolder
from src.deployment.classifier import load_classifier
from src.deployment.export import export
from src.deployment.quantisation import quantise
from src.errors import Fault, UserError
from src.latency import comparison, cpp_program, int8
from src.latency.comparison import Candidate, Outcome
from src.latency.runtimes import Runtime
from src.latency.statistics import summarise
from src.spnasnet import SPNASNet
from tests.conftest import TINY

PREPROCESSING = Preprocessing(32, 32, 32, (127.5,) * 3, (64.0,) * 3)


def outcome(name: str, precision: str, milliseconds: float, **found: float) -> Outcome:
    candidate = Candidate(Runtime(name), Path("any.onnx"), int8=precision == "int8")
    if precision == "bfloat16":
        candidate = replace(candidate, runtime=Runtime(name, precision))
    facts = {"file_bytes": 10**6, "difference": 1e-6, "agreement": 100.0, "top1": None, **found}
    return Outcome(candidate, summarise(np.full(20, milliseconds)), **facts)


FLOATS = [
    outcome("lite", "float32", 8.0, top1=93.0),
    outcome("openvino", "float32", 7.0, top1=93.0),
    outcome("openvino", "bfloat16", 5.0, difference=0.05, agreement=99.5, top1=92.9),
]


def test_the_verdict_is_that_of_the_fastest_on_either_side():
    quantised = [
        outcome("onnxruntime", "int8", 6.0, difference=0.3, agreement=99, top1=93.0),
        outcome("openvino", "int8", 4.0, difference=0.3, agreement=98, top1=92.6),
    ]
    verdict = int8.judge_int8([*FLOATS, *quantised], 93.0, max_drop=0.5, min_gain=1.2)
    assert verdict.passed and verdict.gain == 1.25 and verdict.drop == pytest.approx(0.4)
    assert (verdict.fastest, verdict.fastest_int8) == ("OpenVINO, bfloat16", "OpenVINO, int8")
    assert not replace(verdict, min_gain=1.3).passed and not replace(verdict, max_drop=0.3).passed
    assert "0.40 points of top-1 lost (at most 0.5), 1.25 times as fast" in str(verdict)
    # Without labels, what changes its class counts as lost.
    verdict = int8.judge_int8([*FLOATS, *quantised], None, 0.5, 1.2)
    assert verdict.drop == 2
    assert str(verdict).startswith("2.00 % of the images in another class (at most 0.5), ")
    with pytest.raises(Fault, match="no runtime here could compute the model of int8"):
        int8.judge_int8(FLOATS, None, 0.5, 1.2)


def test_what_is_recommended_agrees_with_the_network():
    advice = comparison.advice(FLOATS)
    assert advice == (
        "take with 1 thread OpenVINO, bfloat16, 5.00 ms, 0.62 of the time of MindSpore Lite, "
        "float32"
    )
    rounded = replace(FLOATS[2], agreement=90.0)
    assert comparison.ranked([*FLOATS[:2], rounded]) == [FLOATS[1], FLOATS[0]]
    wrong = replace(FLOATS[0], difference=0.02)
    with pytest.raises(Fault, match=r"MindSpore Lite, float32: its logits differ .* 2.0e-02"):
        comparison.check_answers([wrong])
    comparison.check_answers(FLOATS)
    for difference in (np.nan, np.inf):
        broken = outcome("openvino", "int8", 4.0, difference=difference)
        with pytest.raises(Fault, match="OpenVINO, int8: its logits are no numbers"):
            comparison.check_answers([broken])


@pytest.fixture(scope="module")
def tiny(few_digits, tmp_path_factory):
    """A checkpoint of random weights, and its ONNX model."""
    folder = tmp_path_factory.mktemp("tiny")
    network = SPNASNet(TINY, 10).set_train(False)
    data = {"dataset_name": "imagenet", "data_path": str(few_digits), "val_data_path": None}
    meta = Meta(TINY, PREPROCESSING, tuple("0123456789"), config=data)
    write_checkpoint(folder / "tiny.ckpt", cell_weights(network), meta)
    checkpoint = read_checkpoint(folder / "tiny.ckpt")
    return checkpoint, export(checkpoint, file_name=str(folder / "tiny"), file_format="ONNX")


def test_candidates_compute_the_same_images_and_take_turns(tiny, few_digits, tmp_path):
    pytest.importorskip("onnx")
    _, model = tiny
    classifier = load_classifier(str(model))
    source = ImageFolder(few_digits / "val")
    images = comparison.read_images(source, classifier, True, 20)
    assert images.pixels.shape == (20, 3, 32, 32) and images.labels is not None
    quantise(model, images.pixels, tmp_path / "int8.onnx")
    onnx = pytest.importorskip("onnx")
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    # 7 bits: two products of them fit into 16 bits, which some processors sum them in.
    assert len(weights) > 10 and {abs(values.astype(int)).max() for values in weights} == {64}
    runtime = Runtime("onnxruntime")
    candidates = [
        Candidate(runtime, model),
        Candidate(runtime, tmp_path / "int8.onnx", int8=True),
        Candidate(runtime, tmp_path / "missing.onnx"),
    ]
    (plain, quantised), left_out = comparison.compare(candidates, images, 1, 6)
    assert plain.difference < 1e-5 and plain.agreement == 100 and plain.latency.samples == 12
    assert plain.top1 == images.top1(images.logits)
    # Rounded to 8 bits, so neither equal nor another network.
    assert 1e-4 < quantised.difference < 0.5 and quantised.right
    assert "missing.onnx" in left_out["ONNX Runtime, float32, 1 thread"]
    lines = comparison.table([plain, quantised]).splitlines()
    assert lines[0].split()[0] == "runtime" and len(lines) == 3
    other = replace(images, logits=images.logits[::-1].copy())
    with pytest.raises(Fault, match="ONNX Runtime, float32: its logits differ"):
        comparison.check_answers(comparison.compare(candidates[:1], other, 1, 1)[0])


def test_images_without_labels_say_why(few_digits, caplog):
    caplog.set_level("INFO")
    folder, classes = few_digits / "val", tuple("0123456789")
    assert comparison.open_images(str(folder), classes)[1]
    assert not comparison.open_images(str(folder), classes[1:])[1] and not caplog.messages
    source, labelled = comparison.open_images(str(folder / "7"), classes)
    assert not labelled and source.path == folder / "7" and len(source) == 5
    assert "7: holds no class folders" in caplog.text and "without labels" in caplog.text


@pytest.fixture
def only_python(monkeypatch, tmp_path_factory):
    """As where the C++ program cannot be built; an earlier one is there, but is not measured."""

    def build():
        raise UserError("packages are missing")

    monkeypatch.setattr(comparison, "build_program", build)
    file = tmp_path_factory.mktemp("out") / "runtime_versions"
    file.write_text("MindSpore Lite 2.0.0\nOpenVINO 2026.4.1\n")
    monkeypatch.setattr(cpp_program, "VERSIONS_FILE", file)


def test_int8_is_kept_only_if_it_is_worth_it(
    only_python, tiny, few_digits, call_program, tmp_path, monkeypatch
):
    pytest.importorskip("onnx")
    monkeypatch.setattr(int8, "ROUNDS", 3)
    checkpoint, model = tiny
    # The MindIR, which nothing reads here.
    monkeypatch.setattr(int8, "export", lambda *_, **__: model)
    found = []

    def compare_once(*arguments):
        """Both verdicts are on the same figures."""
        if not found:
            found.append(comparison.compare(*arguments))
        return found[0]

    monkeypatch.setattr(int8, "compare", compare_once)
    flags = ["--ckpt_file", checkpoint.path, "--file_format", "ONNX", "--file_name", "net"]
    flags += ["--int8", "--calibration", few_digits / "val", "--images", 10, "--min_gain", 1000]
    (tmp_path / "empty").mkdir()
    for wrong, message in (
        (["--calibration", tmp_path / "empty"], "empty: holds no image"),
        (["--threads", 4096], "threads is 4096"),
    ):
        done = call_program("export.py", *flags, *wrong)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
    earlier = [tmp_path / "net_int8.onnx", tmp_path / "net_int8.json"]
    for file in earlier:
        file.write_text('{"model": {"file": "net_int8.onnx"}}')
    done = call_program("export.py", *flags)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "int8 is not worth it: " in done.stderr and "(at least 1000)" in done.stderr
    assert (tmp_path / "net.onnx").is_file() and not list(tmp_path.glob("*int8*"))
    words = [*map(str, flags), "--min_gain", "0.001", "--max_drop", "100"]
    words += ["--file_name", str(tmp_path / "net")]
    config = parse_config(ExportConfig, words, "")
    kept = int8.export_int8(tmp_path / "net.onnx", checkpoint, config)
    record = json.loads(kept.with_suffix(".json").read_text())
    assert record["model"]["precision"] == "int8" and record["int8"]["gain"] > 0
    assert (record["checked"]["data"], record["checked"]["images"]) == ("imagenet", 50)
    assert load_classifier(str(kept)).classes == tuple("0123456789")
    done = call_program("scripts/compare_runtimes.py", kept, "--images", few_digits / "val")
    assert done.returncode == 2 and "net_int8.onnx: a model of int8; give that" in done.stderr
    # A description of another model is not taken over.
    kept.rename(tmp_path / "net_int8.mindir")
    record["model"]["file"] = "net_int8.mindir"
    kept.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"describes net_int8.mindir, and net_int8.onnx would"):
        int8.check_before(config)
    assert json.loads(kept.with_suffix(".json").read_text()) == record


def test_a_comparison_from_the_command_line(
    only_python, tiny, few_digits, call_program, tmp_path, monkeypatch
):
    export(tiny[0], file_name=str(tmp_path / "net"), file_format="ONNX", batch_size=3)
    flags = ["./net.onnx", "--images", few_digits / "val", "--rounds", 3, "--threads", "1,1"]
    done = call_program("scripts/compare_runtimes.py", *flags, "--out", "found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["format"], found["version"], found["batch_size"]) == ("spnas-runtimes", 1, 3)
    assert found["image_count"] == 50 and found["advice"].startswith("take with 1 thread ")
    names = [line["runtime"] for line in found["runtimes"]]
    assert sum(name.startswith("ONNX Runtime 1.") for name in names) == 1
    assert found["left_out"]["OpenVINO"] == "packages are missing"
    assert "MindSpore Lite: left out: packages are missing" in done.stdout
    (tmp_path / "empty").mkdir()
    for more, message in (
        (["--images", tmp_path / "empty"], "empty: holds no image"),
        (["--threads", 4096], "threads is 4096; this machine has"),
        (["--threads", "two"], "threads should be whole numbers"),
        (["--precisions", "float8"], "precisions has 'float8'"),
    ):
        done = call_program("scripts/compare_runtimes.py", *flags, *more)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    flags = ["some.mindir", "--images", few_digits / "val", "--precisions", "float32,int8"]
    done = call_program("scripts/compare_runtimes.py", *flags)
    assert done.returncode == 2 and "some.mindir: int8 is made from a checkpoint" in done.stderr
    monkeypatch.setitem(comparison.LIMITS, "float32", -1.0)  # every answer is another one
    flags = ["./net.onnx", "--images", few_digits / "val", "--rounds", 1]
    done = call_program("scripts/compare_runtimes.py", *flags)
    assert done.returncode == 1 and "its logits differ" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_checkpoint_is_compared_in_all_runtimes(
    application, tiny, few_digits, call_program, tmp_path
):
    pytest.importorskip("onnx")
    flags = [tiny[0].path, "--images", few_digits / "val", "--max_images", 16, "--rounds", 2]
    flags += ["--precisions", "float32,int8", "--out", "found.json"]
    done = call_program("scripts/compare_runtimes.py", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    measured = {
        (line["runtime"].rsplit(" ", 1)[0], line["precision"]) for line in found["runtimes"]
    }
    assert measured >= {("MindSpore Lite", "float32"), ("ONNX Runtime", "int8")}
    for title in ("OpenVINO", "ncnn", "MNN"):  # measured, or named with what brings it
        reason = found["left_out"].get(title, "")
        assert (title, "float32") in measured or "scripts/setup_env.sh" in reason
    for line in found["runtimes"]:
        assert line["median_ms"] > 0 and line["file_bytes"] > 0
        assert line["largest_difference"] < (0.5 if line["precision"] == "int8" else 1e-3)
