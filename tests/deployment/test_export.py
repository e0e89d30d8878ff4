"""Export and C++ inference give the logits of the network in Python, in every format."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from PIL import Image

from scripts import postprocess
from src.arch.architecture import Architecture
from src.arch.blocks import Block, ShuffleBlock, XceptionBlock
from src.checkpoint.format import Meta, read_checkpoint, write_checkpoint
from src.checkpoint.restore import build_network, cell_weights
from src.data.preprocessing import Preprocessing
from src.data.sources import ImageFolder
from src.dataset import Loader
from src.deployment.export import export
from src.deployment.mindir import read_mindir, to_version_1
from src.errors import Fault, UserError
from src.spnasnet import SPNASNet
from src.training.evaluation import label_ranks
from tests.conftest import ENVIRONMENT, ROOT

ARCH = Architecture(
    name="small",
    image_size=32,
    stem_channels=8,
    stem_stride=1,
    head_channels=24,
    blocks=(
        Block(3, 1, 1, 8, 8, skip=False),
        Block(5, 2, 3, 8, 12),
        Block(3, 1, 6, 12, 12, se_ratio=0.25),
    ),
)
SHUFFLES = Architecture(
    name="shuffles",
    image_size=32,
    stem_channels=8,
    stem_stride=1,
    head_channels=24,
    activation="relu6",
    classifier_bias=False,
    blocks=(
        ShuffleBlock(3, 2, 8, 20),
        ShuffleBlock(7, 1, 20, 20),
        XceptionBlock(3, 2, 20, 28),
        XceptionBlock(3, 1, 28, 28),
    ),
)
PREPROCESSING = Preprocessing(28, 24, 30, (120.0, 127.5, 110.0), (60.0, 64.0, 70.0))
KINDS = {
    "v1": {},
    "v1_unfolded": {"fold": False, "batch_size": 3},
    "v3": {"mindir_version": 3},
    "onnx": {"file_format": "ONNX"},
    "onnx_unfolded": {"file_format": "ONNX", "fold": False},
}


def random_network(arch: Architecture) -> SPNASNet:
    """A network in evaluation mode, of random weights and statistics."""
    network, random = SPNASNet(arch, 10), np.random.default_rng(0)
    for parameter in network.get_parameters():
        if ".bn." in parameter.name:
            values = random.uniform(0.5, 1.5, parameter.shape) - parameter.name.endswith(
                ("mean", "beta")
            )
        elif parameter.name.endswith("bias"):
            values = random.uniform(-0.1, 0.1, parameter.shape)
        else:
            values = random.standard_normal(parameter.shape) * np.sqrt(
                2 / np.prod(parameter.shape[1:])
            )
        parameter.set_data(Tensor(values.astype(np.float32)))
    return network.set_train(False)


def meta_of(arch: Architecture, **config: str) -> Meta:
    return Meta(arch, PREPROCESSING, tuple("0123456789"), config=config)


@pytest.fixture(scope="session")
def checkpoint(few_digits, tmp_path_factory):
    """A small network with squeeze-and-excitation, random but for a classifier fitted to digits."""
    network = random_network(ARCH)
    train = Loader(ImageFolder(few_digits / "train"), PREPROCESSING, batch_size=120, training=False)
    ((images, labels),) = train.epoch()
    features = network.head(network.blocks(network.stem(Tensor(images)))).asnumpy()
    fitted, *_ = np.linalg.lstsq(np.c_[features, np.ones(120)], 10 * np.eye(10)[labels], rcond=0.01)
    network.classifier.weight.set_data(Tensor(fitted[:-1].T.astype(np.float32)))
    network.classifier.bias.set_data(Tensor(fitted[-1].astype(np.float32)))
    path = tmp_path_factory.mktemp("checkpoint") / "small.ckpt"
    meta = meta_of(ARCH, dataset_name="digits", data_path=str(few_digits))
    write_checkpoint(path, cell_weights(network), meta)
    return read_checkpoint(path)


@pytest.fixture(scope="session")
def models(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = {
        kind: export(checkpoint, file_name=str(folder / kind), **options)
        for kind, options in KINDS.items()
    }
    assert not list(folder.glob(".*"))
    return paths


def python_logits(checkpoint, folder) -> dict[str, np.ndarray]:
    """Logits by file name, through the evaluation pipeline and the unfolded network."""
    return logits_by(build_network(checkpoint), checkpoint, folder)


def logits_by(network, checkpoint, folder) -> dict[str, np.ndarray]:
    """Logits of the images in a folder by file name, from images (N, 3, H, W) by a network."""
    source = ImageFolder(folder)
    loader = Loader(source, checkpoint.meta.preprocessing, batch_size=len(source), training=False)
    ((images, _),) = loader.epoch()
    logits = network(Tensor(images)).asnumpy()
    return {os.path.relpath(source.name(index), folder): row for index, row in enumerate(logits)}


@pytest.fixture(scope="session")
def expected(checkpoint, few_digits) -> dict[str, np.ndarray]:
    """Python's logits of the validation images, by file name."""
    return python_logits(checkpoint, few_digits / "val")


def logits_of(folder: Path, file: str) -> np.ndarray:
    return np.fromfile(folder / "result_Files" / f"{file}_0.bin", np.float32)


def assert_close(got, expected, tolerance=1e-4):
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_description_says_what_the_model_is(models, checkpoint, kind):
    path, options = models[kind], KINDS[kind]
    text = json.loads(path.with_suffix(".json").read_text())
    assert text["model"]["file"] == path.name
    assert text["model"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert text["model"]["folded"] is options.get("fold", True)
    assert text["input"]["shape"] == [options.get("batch_size", 1), 3, 28, 24]
    assert Preprocessing(
        **{key: text["preprocessing"][key] for key in PREPROCESSING.to_dict()}
    ).to_dict() == {
        **PREPROCESSING.to_dict(),
        "mean": [120.0, 127.5, 110.0],
        "std": [60.0, 64.0, 70.0],
    }
    assert Architecture.from_dict(text["architecture"]) == checkpoint.meta.arch
    assert text["classes"] == list(checkpoint.meta.classes)
    assert text["checked"]["runtime"].startswith(
        "ONNX Runtime" if path.suffix == ".onnx" else "MindSpore"
    )
    assert text["checked"]["images"] >= 16
    assert text["checked"]["largest_difference"] < 1e-5
    if path.suffix == ".mindir":
        model = read_mindir(path.read_bytes())
        assert (
            model.mind_ir_version
            == text["model"]["mindir_version"]
            == options.get("mindir_version", 1)
        )
        assert (
            any("BatchNorm" in node.op_type for node in model.graph.node)
            is not text["model"]["folded"]
        )


def test_all_formats_agree(models, checkpoint, few_digits):
    import onnxruntime

    loader = Loader(
        ImageFolder(few_digits / "val"),
        checkpoint.meta.preprocessing,
        batch_size=50,
        training=False,
    )
    ((images, _),) = loader.epoch()
    images = images[::8][:6]
    expected = build_network(checkpoint)(Tensor(images)).asnumpy()
    assert len(set(expected.argmax(1))) > 1
    for kind, path in models.items():
        if path.suffix == ".onnx":
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

            def predict(batch, session=session):
                return session.run(None, {"x": batch})[0]
        else:
            graph = nn.GraphCell(ms.load(str(path)))

            def predict(batch, graph=graph):
                return graph(Tensor(batch)).asnumpy()

        size = KINDS[kind].get("batch_size", 1)
        assert_close(
            np.concatenate([predict(images[i : i + size]) for i in range(0, 6, size)]),
            expected,
            1e-5,
        )


def test_a_mismatch_leaves_no_file(checkpoint, tmp_path, monkeypatch):
    def wrong(data):
        model = read_mindir(to_version_1(data))
        weight = next(p for p in model.graph.parameter if p.name.endswith("classifier.weight"))
        values = np.frombuffer(weight.raw_data, np.float32) * np.float32(1.01)
        weight.raw_data = values.tobytes()
        return model.SerializeToString()

    monkeypatch.setattr("src.deployment.export.to_version_1", wrong)
    with pytest.raises(Fault, match="changes the logits by"):
        export(checkpoint, file_name=str(tmp_path / "net"))
    assert not list(tmp_path.iterdir())


def test_one_description_is_not_taken_from_another_model(checkpoint, models):
    with pytest.raises(UserError, match="describes v1.mindir"):
        export(checkpoint, file_name=str(models["v1"].with_suffix("")), file_format="ONNX")


def test_a_file_that_is_no_description_stays(checkpoint, tmp_path):
    (tmp_path / "net.json").write_text('{"format": "spnas-architecture"}')
    for name in ("net", "net.mindir"):
        with pytest.raises(UserError, match="net.json: is no description of a model"):
            export(checkpoint, file_name=str(tmp_path / name))
    assert [file.name for file in tmp_path.iterdir()] == ["net.json"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--file_format", "AIR"], "file_format AIR: is written on an Ascend device only"),
        (["--file_format", "ONYX"], "file_format is 'ONYX'"),
        (["--mindir_version", "2"], "mindir_version is 2"),
        (
            ["--mindir_version", "3", "--file_format", "ONNX"],
            "mindir_version is for MINDIR, file_format is ONNX",
        ),
        (["--file_name", "."], "file_name is '.', should end in a name"),
        (["--ckpt_file", "missing.ckpt"], "missing.ckpt: no such checkpoint"),
    ],
)
def test_mistakes_are_named(call_program, checkpoint, tmp_path, flags, message):
    process = call_program(
        "export.py", "--ckpt_file", checkpoint.path, "--file_name", "net", *flags
    )
    assert process.returncode == 2
    assert process.stderr.startswith("export.py: error: ") and message in process.stderr
    assert not list(tmp_path.glob("net*"))


class Shuffled(nn.Cell):
    """The primitives of ShuffleNet blocks, and others that the conversion knows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, has_bias=True)
        self.bn = nn.BatchNorm2d(16)
        self.average, self.largest = nn.AvgPool2d(4, 2), nn.MaxPool2d(3, 2, pad_mode="same")
        self.wide = nn.AvgPool2d(3, 1, pad_mode="same")
        self.hswish = nn.HSwish()
        self.classifier = nn.Dense(16, 10)

    def construct(self, x):
        x = ops.relu6(self.bn(self.stem(x)))
        n, c, h, w = x.shape
        x = ops.reshape(
            ops.transpose(ops.reshape(x, (n, 2, c // 2, h, w)), (0, 2, 1, 3, 4)), (n, c, h, w)
        )
        left, right = ops.chunk(x, 2, 1)
        x = ops.concat((self.hswish(left) - right, right), 1)
        x = ops.concat((ops.relu(x[:, 8:]), x[:, :8] / 2), 1)
        x = self.average(self.largest(self.wide(x)))
        gate = ops.sigmoid(ops.mean(x, (2, 3), True))
        return self.classifier(ops.softmax(ops.mean(x * gate, (2, 3)), 1))


@pytest.mark.parametrize(
    "options", [{}, {"fold": False, "batch_size": 3}], ids=("folded", "unfolded")
)
def test_networks_of_shuffle_blocks_give_pythons_logits(classify, few_digits, tmp_path, options):
    path = tmp_path / "shuffles.ckpt"
    write_checkpoint(path, cell_weights(random_network(SHUFFLES)), meta_of(SHUFFLES))
    model = export(read_checkpoint(path), file_name=str(tmp_path / "model" / "shuffles"), **options)
    process, answers = classify(model, few_digits / "val")
    assert process.returncode == 0, process.stderr
    expected = python_logits(read_checkpoint(path), few_digits / "val")
    assert list(answers) == list(expected)
    for file, logits in expected.items():
        assert_close(logits_of(tmp_path, file), logits)


def test_conversion_knows_the_primitives_of_other_networks(classify, models, few_digits, tmp_path):
    network = Shuffled().set_train(False)
    file = tmp_path / "shuffled.mindir"
    ms.export(
        network,
        Tensor(np.zeros((1, 3, 28, 24), np.float32)),
        file_name=str(file),
        file_format="MINDIR",
    )
    data = to_version_1(file.read_bytes())
    file.chmod(0o644)
    file.write_bytes(data)
    text = json.loads(models["v1"].with_suffix(".json").read_text())
    text["model"] |= {"file": file.name, "sha256": hashlib.sha256(data).hexdigest()}
    file.with_suffix(".json").write_text(json.dumps(text))
    process, answers = classify(file, few_digits / "val")
    assert process.returncode == 0, process.stderr
    loader = Loader(ImageFolder(few_digits / "val"), PREPROCESSING, batch_size=1, training=False)
    for (image, _), name in zip(loader.epoch(), answers, strict=True):
        assert_close(logits_of(tmp_path, name), network(Tensor(image)).asnumpy()[0])


def test_conversion_names_a_primitive_that_it_does_not_know(tmp_path):
    class Unknown(nn.Cell):
        def construct(self, x):
            return ops.silu(x)

    ms.export(
        Unknown(),
        Tensor(np.zeros((1, 3), np.float32)),
        file_name=str(tmp_path / "net"),
        file_format="MINDIR",
    )
    with pytest.raises(UserError, match="the primitive 'SiLU' .* is not known"):
        to_version_1((tmp_path / "net.mindir").read_bytes())
    with pytest.raises(UserError, match="not a MindIR file"):
        to_version_1(b"\xff" * 40)


def test_unit_tests_of_the_application(application):
    assert (application.parent / "unit_tests").exists(), "GoogleTest (libgtest-dev) is missing"
    run = subprocess.run(
        [str(application.parent / "unit_tests"), "--gtest_brief=1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


OPENVINO = ["--runtime", "openvino"]
BFLOAT16 = [*OPENVINO, "--precision", "bfloat16"]


@pytest.mark.parametrize(
    "kind, flags",
    [
        ("v1", []),
        ("v1", ["--runtime_threads", "2"]),
        ("v1_unfolded", []),
        ("v1", ["--batch_size", "4"]),
        ("onnx", OPENVINO),
        ("onnx_unfolded", [*OPENVINO, "--runtime_threads", "2", "--batch_size", "4"]),
    ],
)
def test_application_gives_pythons_logits(
    classify, models, expected, few_digits, tmp_path, kind, flags, request
):
    if "openvino" in flags:
        request.getfixturevalue("with_openvino")
    process, answers = classify(models[kind], few_digits / "val", *flags)
    assert process.returncode == 0, process.stderr
    assert list(answers) == list(expected) and len(answers) == 50
    for file, logits in expected.items():
        assert_close(logits_of(tmp_path, file), logits)
        assert [c["index"] for c in answers[file]["top5"]] == np.argsort(-logits, kind="stable")[
            :5
        ].tolist()
        probabilities = np.exp(logits - logits.max())
        assert answers[file]["top5"][0]["probability"] == pytest.approx(
            1 / probabilities.sum(), rel=1e-3
        )
    batch = int(flags[-1]) if "--batch_size" in flags else KINDS[kind].get("batch_size", 1)
    times = (tmp_path / "time_Result/test_perform_static.txt").read_text()
    assert re.match(
        rf"NN inference cost average time: \d+\.\d+ ms of infer_count {-(-50 // batch)}\n", times
    )
    assert all(word in times for word in ("p50", "p90", "p99", "warm-up"))


def test_bfloat16_rounds_logits_and_keeps_answers(
    with_openvino, classify, models, expected, few_digits, tmp_path
):
    process, _ = classify(models["onnx"], few_digits / "val", *BFLOAT16)
    if "this processor does not compute in" in process.stderr:
        pytest.skip("the processor has no bfloat16")
    got = {file: logits_of(tmp_path, file) for file in expected}
    for file, logits in expected.items():
        assert_close(got[file], logits, 0.2)  # random weights; 0.07 was seen
    agreeing = sum(got[file].argmax() == expected[file].argmax() for file in expected)
    assert agreeing >= 0.9 * len(expected)
    # Float32 would be some thousand times closer: bfloat16 is what computed.
    assert max(np.abs(got[file] - expected[file]).max() for file in expected) > 1e-3


def test_script_gives_the_accuracy_of_evaluation(
    application, models, expected, few_digits, tmp_path, capsys
):
    def run(*arguments, **environment):
        return subprocess.run(
            ["bash", str(ROOT / "scripts/run_infer_310.sh"), *map(str, arguments)],
            cwd=tmp_path,
            env={**ENVIRONMENT, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    process = run(
        models["v1"], few_digits / "val", 0, DEVICE_TARGET="CPU", BATCH_SIZE="2", THREADS="1"
    )
    assert process.returncode == 0, process.stderr
    ranks = label_ranks(
        np.stack(list(expected.values())), np.array([int(file[0]) for file in expected])
    )
    top1, top5 = (ranks < 1).mean(), (ranks < 5).mean()
    line = f"Total data: 50, top1 accuracy: {top1:.5f}, top5 accuracy: {top5:.5f}.\n"
    assert (tmp_path / "acc.log").read_text() == line
    assert line in process.stdout and "images/s" in process.stdout

    flat = few_digits / "val" / "3"  # no class folders, so no accuracy
    process = run(models["v1"], flat, DEVICE_TARGET="CPU")
    assert process.returncode == 2 and "expected one folder of images per class" in process.stderr
    assert not (tmp_path / "acc.log").exists()
    answers, model = tmp_path / "result_Files/top5.jsonl", models["v1"].with_suffix(".json")
    for files, named in (((model, answers), model), ((answers, answers), answers)):
        assert postprocess.main([str(file) for file in files]) == 2
        assert f"{named}: should hold" in capsys.readouterr().err
    assert len(postprocess.read_answers('{"file": "0/a\u2028b.jpg", "error": "empty"}\n')) == 1
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, reason in (
        ([models["v1"]], "usage"),
        ([tmp_path / "no.mindir", flat], "no such model"),
        ([models["v1"], tmp_path / "no"], "no such folder"),
        ([models["v1"], flat, 0], "device Ascend310 0: not there"),
    ):
        process = run(*arguments)
        assert process.returncode == 2 and reason in process.stderr
    assert len((tmp_path / "result_Files/top5.jsonl").read_text().splitlines()) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # and nothing of a failure


def test_every_image_is_answered_or_named(classify, models, checkpoint, few_digits, tmp_path):
    folder, pixels = (
        tmp_path / "images",
        Image.open(next((few_digits / "val/7").iterdir())).resize((90, 61)),
    )
    good, bad = folder / "good", folder / "bad"
    good.mkdir(parents=True)
    bad.mkdir()
    pixels.convert("L").save(good / "gray.jpg")
    pixels.convert("CMYK").save(good / "cmyk.jpg", quality=95)
    pixels.save(good / "progressive.jpg", progressive=True)
    pixels.resize((9, 5)).save(good / "tiny.png")
    pixels.save(good / "picture.bmp")
    turned = pixels.getexif()
    turned[0x0112] = 6  # the orientation is ignored, as in evaluation
    pixels.save(good / "turned.jpg", exif=turned)
    (bad / "empty.jpg").touch()
    (bad / "text.jpg").write_text("no image")
    (bad / "notes.txt").write_text("no image")
    (bad / "cut.jpg").write_bytes((good / "progressive.jpg").read_bytes()[:-200])
    header = (good / "tiny.png").read_bytes()
    (bad / "giant.png").write_bytes(header[:16] + (60000).to_bytes(4, "big") * 2 + header[24:])
    (bad / "loop.jpg").symlink_to("loop.jpg")
    process, answers = classify(models["v1"], folder)
    assert process.returncode == 1
    assert "6 of 12 files not answered" in process.stderr
    reasons = {
        "empty.jpg": "empty",
        "text.jpg": "neither JPEG",
        "notes.txt": "neither JPEG",
        "cut.jpg": "Premature end",
        "giant.png": "60000x60000 pixels",
        "loop.jpg": "cannot be read",
    }
    for name, reason in reasons.items():
        assert reason in answers[f"bad/{name}"]["error"]
        assert f"bad/{name}: {answers[f'bad/{name}']['error']}" in process.stderr
    shutil.rmtree(bad)
    for file, logits in python_logits(checkpoint, folder).items():
        assert_close(logits_of(tmp_path, file), logits)


def test_models_that_cannot_be_used_are_named(classify, models, few_digits, tmp_path):
    def mistake(model, *flags):
        process, answers = classify(model, few_digits / "val", *flags)
        assert process.returncode == 2 and not answers
        assert len(process.stderr.splitlines()) == 1, process.stderr
        return process.stderr

    assert "no such model" in mistake(tmp_path / "missing.mindir")
    assert "MindIR of format version 3, this runtime reads 1" in mistake(models["v3"])
    assert "of format ONNX, --runtime lite reads MINDIR" in mistake(models["onnx"])
    assert "with --runtime lite it should be float32" in mistake(
        models["v1"], "--precision", "bfloat16"
    )
    assert "--threads" in mistake(models["v1"], "--threads", "0")
    assert "--runtime_threads" in mistake(models["v1"], "--runtime_threads", "1024")
    lonely = shutil.copy(models["v1"], tmp_path / "lonely.mindir")
    assert "lonely.json: cannot be read" in mistake(lonely)
    shutil.copy(models["v1"].with_suffix(".json"), tmp_path / "lonely.json")
    data = bytearray(lonely.read_bytes())
    data[len(data) // 2] ^= 1
    lonely.write_bytes(data)
    assert "its checksum differs" in mistake(lonely)
    foreign = json.loads((tmp_path / "lonely.json").read_text())
    foreign["model"]["sha256"] = hashlib.sha256(b"foreign").hexdigest()
    lonely.write_bytes(b"foreign")
    (tmp_path / "lonely.json").write_text(json.dumps(foreign))
    assert "the runtime cannot load it" in mistake(lonely)


def test_models_that_openvino_cannot_use_are_named(
    with_openvino, classify, models, few_digits, tmp_path
):
    def mistake(model, *flags):
        process, answers = classify(model, few_digits / "val", *OPENVINO, *flags)
        assert process.returncode == 2 and not answers
        assert len(process.stderr.splitlines()) == 1, process.stderr
        return process.stderr

    assert "of format MINDIR, --runtime openvino reads ONNX" in mistake(models["v1"])
    foreign = json.loads(models["onnx"].with_suffix(".json").read_text())
    foreign["model"]["sha256"] = hashlib.sha256(b"foreign").hexdigest()
    (tmp_path / "foreign.onnx").write_bytes(b"foreign")
    (tmp_path / "foreign.json").write_text(json.dumps(foreign))
    # OpenVINO's other readers may write lines of their own before.
    process, _ = classify(tmp_path / "foreign.onnx", few_digits / "val", *OPENVINO)
    assert process.returncode == 2
    assert "foreign.onnx: the runtime cannot load it (" in process.stderr.splitlines()[-1]
