"""predict.py gives the answers of evaluation, from checkpoints and exported models alike."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.checkpoint.format import Meta, read_checkpoint, write_checkpoint
from src.checkpoint.restore import cell_weights
from src.data.sources import ImageFolder
from src.dataset import Loader
from src.deployment.export import export
from src.deployment.predict import ImageFiles, _printed, find_images, imagenet_names
from src.errors import UserError
from tests.conftest import TINY
from tests.deployment.test_export import PREPROCESSING, random_network

KINDS = {"onnx": {"file_format": "ONNX"}, "v1": {"batch_size": 3}}


@pytest.fixture(scope="module")
def run_folder(few_digits, tmp_path_factory) -> Path:
    """The folder of a run, whose best checkpoint is an untrained network for digits."""
    folder = tmp_path_factory.mktemp("run") / "ckpt_0"
    folder.mkdir()
    data = {"dataset_name": "folder", "data_path": str(few_digits), "val_data_path": None}
    meta = Meta(TINY, PREPROCESSING, tuple("0123456789"), config=data)
    weights = cell_weights(random_network(TINY))
    for file, scale in (("spnas-1_1.ckpt", 1), ("best.ckpt", 2)):
        # Another classifier shows which checkpoint was taken.
        scaled = {name: scale * w if "classifier" in name else w for name, w in weights.items()}
        write_checkpoint(folder / file, scaled, meta)
    return folder


@pytest.fixture(scope="module")
def models(run_folder, tmp_path_factory) -> dict[str, Path]:
    """The best checkpoint, exported."""
    checkpoint = read_checkpoint(run_folder / "best.ckpt")
    folder = tmp_path_factory.mktemp("models")
    return {
        kind: export(checkpoint, file_name=str(folder / kind), **options)
        for kind, options in KINDS.items()
    }


def answers(process) -> list[dict]:
    return [json.loads(line) for line in process.stdout.splitlines()]


def probabilities(process) -> np.ndarray:
    """Of all classes in their order, (N, classes)."""
    rows = [{each["index"]: each["probability"] for each in row["top"]} for row in answers(process)]
    return np.array([[row[index] for index in sorted(row)] for row in rows])


def test_answers_are_those_of_evaluation_and_of_every_exported_model(
    run_folder, models, few_digits, call_program
):
    images = few_digits / "val"
    run = call_program("predict.py", run_folder.parent, images, "--json", "--top", 99)
    assert run.returncode == 0, run.stderr
    source, got = ImageFolder(images), probabilities(run)
    assert [row["image"] for row in answers(run)] == [source.name(i) for i in range(50)]
    np.testing.assert_allclose(got.sum(1), 1)
    # The same pixels, bit for bit.
    loaders = [
        Loader(each, PREPROCESSING, batch_size=50, training=False)
        for each in (source, ImageFiles(find_images([str(images)])))
    ]
    ((expected, _),), ((pixels, _),) = (list(loader.epoch()) for loader in loaders)
    assert np.array_equal(pixels, expected)
    # The same accuracies and loss.
    evaluation = call_program("eval.py", "--checkpoint_path", run_folder)
    assert evaluation.returncode == 0, evaluation.stderr
    (row,) = json.loads((run_folder / "eval.json").read_text())["results"]
    own = got[np.arange(50), source.labels]
    places = (got > own[:, None]).sum(1)
    assert row["top1"] == pytest.approx(100 * (places < 1).mean())
    assert row["top5"] == pytest.approx(100 * (places < 5).mean())
    assert row["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-5)
    for kind, model in models.items():
        exported = call_program("predict.py", model, images, "--json", "--top", 10)
        assert exported.returncode == 0, exported.stderr
        np.testing.assert_allclose(probabilities(exported), got, atol=1e-4, err_msg=kind)


def test_table_and_picture_name_classes_of_imagenet_in_english(
    models, few_digits, tmp_path, call_program
):
    model = shutil.copy(models["onnx"], tmp_path / "onnx.onnx")
    data = json.loads(models["onnx"].with_suffix(".json").read_text())
    data["classes"] = ["n01440764", "n01484850", *(f"$class_{index}" for index in range(8))]
    (tmp_path / "onnx.json").write_text(json.dumps(data))
    pattern = f"{few_digits}/val/[34]/*"  # as quoted in a shell
    run = call_program("predict.py", model, pattern, "--top", 10, "--picture", "out/sheet.png")
    assert run.returncode == 0, run.stderr
    header, *lines = run.stdout.splitlines()
    assert len(lines) == 10 * 10 and len({len(line) for line in (header, *lines)}) == 1
    assert header.split() == ["image", "class", "probability"]
    assert sum("n01484850 great white shark  " in line for line in lines) == 10
    assert [line.split()[0] for line in lines[::10]] == find_images([pattern])
    percents = np.array([float(line.split()[-2]) for line in lines]).reshape(10, 10)
    assert (np.diff(percents) <= 0).all() and np.allclose(percents.sum(1), 100, atol=0.1)
    with Image.open(tmp_path / "out/sheet.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10
    (first, *_) = answers(call_program("predict.py", model, pattern, "--json", "--top", 10))
    named = {each["class"]: each.get("name") for each in first["top"]}
    assert named["n01440764"] == "tench" and named["$class_0"] is None
    assert len(imagenet_names()) == 1000


def test_damaged_images_are_named_and_the_others_classified(
    models, few_digits, tmp_path, run_program, call_program
):
    folder = tmp_path / "photos"
    shutil.copytree(few_digits / "val/7", folder / "inner")
    whole = find_images([str(folder)])
    damaged = folder / "inner/00.jpg"
    damaged.write_bytes(Path(whole[0]).read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    run = run_program("predict.py", models["onnx"], folder, "--json", "--picture", "sheet.png")
    assert run.returncode == 1
    assert [row["image"] for row in answers(run)] == whole
    assert all(len(row["top"]) == 5 for row in answers(run))
    named, written = run.stderr.splitlines()
    assert str(damaged) in named and "sheet.png: written" in written
    run = call_program("predict.py", models["onnx"], damaged)
    assert (run.returncode, run.stdout) == (1, "") and len(run.stderr.splitlines()) == 1


def test_a_reader_that_ends_early_is_no_mistake(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert [_printed("first"), _printed("second")] == [False, True]


def test_find_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.JPG", "a.png", "x/y/c.bmp", "x/n.txt", ".hidden/d.jpg", "odd[1].jpeg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert find_images(["x", "b.JPG", "x/y/c.bmp"]) == ["x/y/c.bmp", "b.JPG"]
    assert find_images(["*"]) == ["a.png", "b.JPG", "odd[1].jpeg", "x/y/c.bmp"]
    assert find_images(["odd[1].jpeg", "x/n.txt"]) == ["odd[1].jpeg", "x/n.txt"]
    Path("empty").mkdir()
    for word, reason in (("empty", "empty: holds no image"), ("*.gif", "no such image")):
        with pytest.raises(UserError, match=reason):
            find_images(["a.png", word])


def test_mistakes_are_told_in_one_line(models, run_folder, few_digits, tmp_path, call_program):
    def mistake(*words) -> str:
        run = call_program("predict.py", *words)
        assert (run.returncode, run.stdout) == (2, "")
        (line,) = run.stderr.splitlines()
        return line

    image, model = few_digits / "val/3", models["onnx"]
    assert "IMAGE" in mistake(model)
    assert "no such image" in mistake(model, "nowhere.jpg")
    assert "no such model" in mistake("nowhere.onnx", image)
    assert "no such checkpoint" in mistake("nowhere.ckpt", image)
    assert "holds no checkpoint" in mistake(few_digits, image)
    assert "top is 0" in mistake(model, image, "--top", 0)
    assert "ends in .png" in mistake(model, image, "--picture", "sheet.doc")
    (tmp_path / "model.air").touch()
    assert "Ascend only" in mistake("model.air", image)
    lonely = shutil.copy(model, tmp_path / "lonely.onnx")
    assert "lonely.json: missing" in mistake(lonely, image)
    shutil.copy(model.with_suffix(".json"), tmp_path / "lonely.json")
    assert "describes onnx.onnx" in mistake(lonely, image)
    lonely.rename(tmp_path / "onnx.onnx")
    (tmp_path / "lonely.json").rename(tmp_path / "onnx.json")
    with open(tmp_path / "onnx.onnx", "ab") as file:
        file.write(b"more")
    assert "checksum differs" in mistake(tmp_path / "onnx.onnx", image)
    (tmp_path / "bad.ckpt").write_bytes(b"damaged")
    assert "bad.ckpt" in mistake("bad.ckpt", image)
