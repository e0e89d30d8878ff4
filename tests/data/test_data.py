"""Sources and pipeline: every image once, damaged files named, all forms of CIFAR-10 alike."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from src.data.class_balance import balanced_order, describe_imbalance
from src.data.decoding import ImageError, decode_image
from src.data.preprocessing import CIFAR10_MEAN, CIFAR10_STD, Augmentation, Preprocessing
from src.data.sources import ImageFolder, cifar10, hold_out, open_sources, prepare_digits
from src.dataset import Loader
from src.errors import Fault, UserError

SIZE_32 = Preprocessing(32, 32, 32, CIFAR10_MEAN, CIFAR10_STD)


def loader(source, **options) -> Loader:
    return Loader(source, SIZE_32, **{"batch_size": 16, "training": False, **options})


def jpeg(array: np.ndarray, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def damaged(few_digits, tmp_path):
    """A copy of the small digits with files of many kinds among them, and names of the bad ones."""
    folder = tmp_path / "damaged"
    shutil.copytree(few_digits, folder)
    whole = jpeg(np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8))
    scan = whole.index(b"\xff\xda")
    bad = {
        "cut_header.jpg": whole[: scan - 30],
        "cut_before_scan.jpg": whole[:scan],
        "empty.jpg": b"",
        "cut_data.jpg": whole[: scan + 400],
        "text.jpg": b"not an image",
        "gif.png": b"GIF89a" + bytes(50),
    }
    good = {
        "grey.jpg": jpeg(np.full((40, 40), 9, np.uint8), "L"),
        "cmyk.jpg": jpeg(np.zeros((40, 40, 3), np.uint8), "CMYK"),
        "a.png": jpeg(np.zeros((40, 40, 3), np.uint8), "RGB", "PNG"),
        "a.bmp": jpeg(np.zeros((40, 40, 3), np.uint8), "RGB", "BMP"),
    }
    for name, data in {**bad, **good}.items():
        for split in ("train", "val"):
            (folder / split / "3" / name).write_bytes(data)
    return folder, set(bad)


def test_digits_are_all_there(digits):
    counts = {split: len(ImageFolder(digits / split)) for split in ("train", "val")}
    assert counts == {"train": 1437, "val": 360}
    with Image.open(next((digits / "train" / "0").iterdir())) as image:
        assert image.size == (32, 32) and image.mode == "RGB" and image.format == "JPEG"
    prepare_digits(digits)  # a second call changes nothing
    assert sum(len(files) for _, _, files in os.walk(digits)) == 1797


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_evaluation_sees_every_image_once_in_order(few_digits, batch_size):
    source = ImageFolder(few_digits / "val")
    batches = list(loader(source, batch_size=batch_size).epoch())
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels, source.labels)
    assert all(images.shape[1:] == (3, 32, 32) for images, _ in batches)


def test_pixels_are_resized_cropped_and_normalised(few_digits):
    source = ImageFolder(few_digits / "val")
    images, _ = next(loader(source).epoch())
    with Image.open(source.name(0)) as image:
        pixels = np.asarray(image, np.float64).transpose(2, 0, 1)
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (CIFAR10_MEAN, CIFAR10_STD))
    np.testing.assert_allclose(images[0], (pixels - mean) / std, atol=0.05)


def test_shards_cover_the_training_images_without_overlap(few_digits):
    source = ImageFolder(few_digits / "train")
    parts = [
        loader(source, training=True, batch_size=10, rank=rank, device_num=2) for rank in range(2)
    ]
    indices = np.concatenate([part._indices(epoch=3) for part in parts])
    assert sorted(indices) == list(range(len(source)))
    whole = loader(source, training=True, batch_size=20)._indices(epoch=3)
    # A step of two ranks sees the images of a step of one rank with twice the batch.
    for step in range(6):
        together = np.concatenate([part._indices(3)[step * 10 :][:10] for part in parts])
        assert sorted(together) == sorted(whole[step * 20 :][:20])
    assert not np.array_equal(whole, loader(source, training=True, batch_size=20)._indices(epoch=4))


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop_scale=0.3, flip=True, color_jitter=(0.4, 0.4, 0.4, 0.1), cutout=8),
        Augmentation(crop_padding=4, auto_augment="cifar10"),
    ],
)
def test_epochs_repeat_exactly_and_resume_in_the_middle(few_digits, augmentation):
    source = ImageFolder(few_digits / "train")

    def epoch(number: int, skip: int = 0, **options) -> list[np.ndarray]:
        options = {"augmentation": augmentation, **options}
        fresh = loader(source, training=True, seed=5, **options)
        return [images for images, _ in fresh.epoch(number, skip)]

    first, resumed = epoch(2), epoch(2, skip=3)
    assert len(first) == len(source) // 16
    np.testing.assert_array_equal(first, epoch(2, num_parallel_workers=1))
    np.testing.assert_array_equal(first[3:], resumed)
    plain = epoch(2, augmentation=replace(augmentation, auto_augment=None, cutout=0))
    for changed, whole in zip(first, plain, strict=True):
        if augmentation.cutout:  # nothing but a square of zeros in every image
            cut = (changed != whole).any(1)
            assert cut.any((1, 2)).all() and cut.sum((1, 2)).max() <= 8 * 8
            assert (np.moveaxis(changed, 1, -1)[cut] == 0).all()
        else:
            assert not np.array_equal(changed, whole)
    seen, seen_later = ({image.tobytes() for image in np.concatenate(e)} for e in (first, epoch(3)))
    assert len(seen & seen_later) < 6
    # Two ranks together see what one sees.
    parts = [epoch(2, batch_size=8, rank=rank, device_num=2) for rank in range(2)]
    for rank, part in enumerate(parts):
        np.testing.assert_array_equal(part, [images[rank::2] for images in first])


def test_max_images_is_a_fixed_choice(few_digits):
    source = ImageFolder(few_digits / "train")
    chosen = [loader(source, training=True, max_images=40) for _ in range(2)]
    assert len(chosen[0]) == 40
    assert set(chosen[0]._indices(0)) | set(chosen[0]._indices(1)) <= set(chosen[1]._pool)


@pytest.mark.parametrize("share, held", [(0.25, 3), (0.01, 1), (0.9, 11)])
def test_the_same_share_of_every_class_is_held_out(few_digits, share, held):
    source = ImageFolder(few_digits / "train")
    parts = hold_out(source, share, seed=3)
    for part, count in zip(parts, (12 - held, held), strict=True):
        assert np.bincount(part.labels).tolist() == [count] * 10
        assert (part.path, part.classes) == (source.path, source.classes)
    names = [[part.name(index) for index in range(len(part))] for part in parts]
    whole = [source.name(index) for index in range(len(source))]
    assert sorted(sum(names, [])) == sorted(whole)
    # Of an image name, label and pixels are the same as in the whole.
    for part, own in zip(parts, names, strict=True):
        places = [whole.index(name) for name in own]
        np.testing.assert_array_equal(part.labels, source.labels[places])
        for index in (0, len(part) - 1):
            np.testing.assert_array_equal(part.read(index), source.read(places[index]))

    def held_names(seed):
        _, part = hold_out(source, share, seed)
        return [part.name(index) for index in range(len(part))]

    assert held_names(3) == names[1] != held_names(4)


def test_a_class_of_which_none_would_be_left_is_named(few_digits, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(few_digits / "train", folder)
    for file in sorted((folder / "7").iterdir())[1:]:
        file.unlink()
    source = ImageFolder(folder)
    with pytest.raises(UserError, match=r"class 7 has 1 image\(s\).* --holdout 0 holds out none"):
        hold_out(source, 0.1, seed=0)


def test_damaged_files_are_named_and_the_rest_is_evaluated(damaged, caplog):
    folder, bad = damaged
    part = loader(ImageFolder(folder / "val"))
    with caplog.at_level(logging.WARNING):
        seen = sum(len(labels) for _, labels in part.epoch())
    assert seen == len(part.source) - len(bad)
    assert {os.path.basename(part.source.name(index)) for index in part.bad_images} == bad
    assert all(any(name in message for message in caplog.messages) for name in bad)


def test_damaged_files_are_replaced_in_training_and_named_once(damaged, caplog):
    folder, bad = damaged
    part = loader(
        ImageFolder(folder / "train"),
        training=True,
        batch_size=13,
        augmentation=Augmentation(crop_scale=0.5),
    )
    assert part.batches_per_epoch == 10
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            assert [len(labels) for _, labels in part.epoch(epoch)] == [13] * 10
    named = [message for message in caplog.messages if any(name in message for name in bad)]
    assert len(named) == len(bad) == len(part.bad_images)


def test_full_batches_of_an_evaluation_where_it_replaces_damaged_files(damaged):
    folder, bad = damaged
    part = loader(ImageFolder(folder / "val"), batch_size=20, replace_damaged=True)
    assert [len(labels) for _, labels in part.epoch()] == [20] * 3
    assert {os.path.basename(part.source.name(index)) for index in part.bad_images} == bad


def test_replacements_come_from_the_chosen_images(damaged):
    folder, bad = damaged
    part = loader(ImageFolder(folder / "train"), training=True, batch_size=10, max_images=100)
    broken = next(index for index in part._pool if os.path.basename(part.source.name(index)) in bad)
    pixels = {
        part.source.read(index).tobytes()
        for index in part._pool
        if index not in part.bad_images and os.path.basename(part.source.name(index)) not in bad
    }
    assert part._rows.read(broken)[0].tobytes() in pixels


def test_nothing_but_damaged_files_is_a_fault(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"no image")
    with pytest.raises(
        Fault, match="2 images in a row cannot be used, the last one .*x.jpg: neither JPEG"
    ):
        next(loader(ImageFolder(tmp_path), training=True, batch_size=2).epoch())
    part = loader(ImageFolder(tmp_path))
    with pytest.raises(Fault, match="no image could be"):
        from src.training.evaluation import evaluate

        evaluate(lambda images: images, part)


# In a process of its own, which a decoder that trusts its input would end. Mutations are drawn by
# NumPy: thousands are needed, and hypothesis takes fifteen times as long for the same number.
FUZZ = """
import sys, numpy as np
from src.data.decoding import ImageError, decode_image
whole, random, decoded = open(sys.argv[1], "rb").read(), np.random.default_rng(0), 0
for trial in range(int(sys.argv[2])):
    data = bytearray(whole)
    for _ in range(random.integers(0, 4)):  # most within the headers
        data[random.integers(0, min(len(data), 700))] = random.integers(0, 256)
    if trial % 2:
        data = data[:random.integers(0, len(data))]
    try:
        assert decode_image(bytes(data)).shape[2] == 3
        decoded += 1
    except ImageError:
        pass
print("decoded", decoded)
"""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "CMYK"])
def test_no_mutated_image_ends_the_process(tmp_path, kind):
    path = tmp_path / "whole"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
    path.write_bytes(jpeg(pixels, "CMYK") if kind == "CMYK" else jpeg(pixels, "RGB", kind))
    run = subprocess.run(
        [sys.executable, "-c", FUZZ, path, "4000"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-500:]
    assert int(run.stdout.split()[-1]) > 100


def test_decoded_pixels_are_those_of_pillow():
    pixels = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).resize(
            (80, 60)
        )
    )
    for mode, kind, tolerance in (
        ("RGB", "JPEG", 1),
        ("L", "JPEG", 1),
        ("RGB", "PNG", 0),
        ("RGB", "BMP", 0),
    ):
        data = jpeg(pixels, mode, kind)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
        assert np.abs(decode_image(data) - expected).max() <= tolerance


def test_grey_of_sixteen_bits_is_decoded_as_opencv_does():
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 255
    data = cv2.imencode(".png", grey)[1]
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert expected.min() == 0 and expected.max() == 255
    np.testing.assert_array_equal(decode_image(data.tobytes()), expected)


def test_every_truncation_is_refused():
    whole = jpeg(np.zeros((20, 20, 3), np.uint8))
    for end in range(len(whole) - 2):
        with pytest.raises(ImageError):
            decode_image(whole[:end])
    with pytest.raises(ImageError, match="million"):
        decode_image(whole.replace(b"\x08\x00\x14\x00\x14", b"\x08\x40\x00\x40\x00"))


def test_stray_bytes_pass_in_front_of_the_end_only():
    """As in some files of ImageNet; elsewhere a decoder cannot tell what else is lost."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    whole = jpeg(pixels)
    expected = decode_image(whole)
    stray = whole[:-2] + b"\x11\x22" + whole[-2:]
    np.testing.assert_array_equal(decode_image(stray), expected)
    scan = whole.index(b"\xff\xda")
    for damaged in (whole, stray):
        for end in range(scan + 20, len(whole) - 2):
            with pytest.raises(ImageError):
                decode_image(damaged[:scan] + b"\x11\x22" + damaged[scan:end])


def test_foreign_files_are_named_and_skipped(few_digits, tmp_path, caplog):
    folder = tmp_path / "val"
    shutil.copytree(few_digits / "val", folder)
    (folder / "0" / "Thumbs.db").write_bytes(b"x")
    (folder / ".hidden").mkdir()
    with caplog.at_level(logging.WARNING):
        source = open_sources("folder", str(folder.parent), splits=("val",))["val"]
    assert len(source) == 50 and len(source.classes) == 10
    assert "Thumbs.db" in caplog.text


def test_start_up_checks_name_the_folder(few_digits, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_sources("folder", str(tmp_path / "nowhere"))
    folder = tmp_path / "data"
    shutil.copytree(few_digits, folder)
    (folder / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="empty: class folder without images"):
        open_sources("folder", str(folder))
    (folder / "train" / "empty").rmdir()
    shutil.rmtree(folder / "val" / "7")
    with pytest.raises(UserError, match="only in one of them: 7"):
        open_sources("folder", str(folder))
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", folder / "train/0"):
        with pytest.raises(UserError, match=f"{wrong}: exists but holds no digits"):
            prepare_digits(wrong)
    source = ImageFolder(few_digits / "train")
    with pytest.raises(UserError, match="batch_size 500"):
        loader(source, training=True, batch_size=500)


@pytest.mark.parametrize("layout", ["root", "train folder", "val elsewhere"])
def test_where_validation_images_are_found(few_digits, layout):
    paths = {
        "root": (few_digits, None),
        "train folder": (few_digits / "train", None),
        "val elsewhere": (few_digits / "train", str(few_digits / "val")),
    }[layout]
    sources = open_sources("folder", str(paths[0]), paths[1])
    assert (len(sources["train"]), len(sources["val"])) == (120, 50)


@pytest.fixture(scope="module")
def cifar(digits, tmp_path_factory):
    """Both published forms of CIFAR-10, folder and archive, filled with 60 real digits."""
    root = tmp_path_factory.mktemp("cifar")
    py, binary = root / "py" / "cifar-10-batches-py", root / "bin" / "cifar-10-batches-bin"
    py.mkdir(parents=True)
    binary.mkdir(parents=True)
    files = sorted((digits / "train").rglob("*.jpg"))[::23][:60]
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    labels = np.array([int(file.parent.name) for file in files], np.uint8)
    rows = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        part = slice(i * 10, i * 10 + 10)
        (py / name).write_bytes(
            pickle.dumps({b"labels": labels[part].tolist(), b"data": rows[part]}, protocol=2)
        )
        (binary / f"{name}.bin").write_bytes(
            np.concatenate([labels[part, None], rows[part]], 1).tobytes()
        )
    for folder in (py, binary):
        with tarfile.open(root / f"{folder.name}.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)
    return root, images, labels


@pytest.mark.parametrize(
    "place",
    [
        "py/cifar-10-batches-py",
        "py",
        "bin/cifar-10-batches-bin",
        "bin",
        "cifar-10-batches-py.tar.gz",
        "cifar-10-batches-bin.tar.gz",
    ],
)
def test_all_forms_of_cifar10_hold_the_same_images(cifar, place):
    root, images, labels = cifar
    train, val = cifar10(root / place, "train"), cifar10(root / place, "val")
    np.testing.assert_array_equal(train.images, images[:50])
    np.testing.assert_array_equal(val.images, images[50:])
    np.testing.assert_array_equal(np.concatenate([train.labels, val.labels]), labels)


def test_wrong_cifar10_is_refused_by_name(cifar, tmp_path):
    root, _, _ = cifar
    for place, reason in (
        (tmp_path, "neither directly nor one folder below"),
        (tmp_path / "no", "no such file"),
    ):
        with pytest.raises(UserError, match=reason):
            cifar10(place, "train")
    folder = tmp_path / "cifar-10-batches-py"
    shutil.copytree(root / "py" / "cifar-10-batches-py", folder)
    (folder / "data_batch_3").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(UserError, match="data_batch_3"):
        cifar10(tmp_path, "train")
    (folder / "data_batch_3").unlink()
    with pytest.raises(UserError, match="data_batch_3: missing"):
        cifar10(tmp_path, "train")
    archive = (root / "cifar-10-batches-py.tar.gz").read_bytes()
    broken = tmp_path / "x.tar.gz"
    for data in (archive[:500], archive[:5000] + bytes(500) + archive[5500:]):
        broken.write_bytes(data)
        with pytest.raises(UserError, match="x.tar.gz"):
            cifar10(broken, "train")


@pytest.mark.parametrize(
    "batch, reason",
    [
        ({b"labels": [0]}, "it lacks 'labels' or 'data'"),
        ({b"labels": 3, b"data": np.zeros((1, 3072), np.uint8)}, "no list of whole numbers"),
        ({b"labels": ["a"], b"data": np.zeros((1, 3072), np.uint8)}, "no list of whole numbers"),
        (np.zeros(2), "it lacks 'labels' or 'data'"),
        ({b"labels": [[1], [1, 2]], b"data": np.zeros((2, 3072), np.uint8)}, "it lacks"),
        ({b"labels": [10], b"data": np.zeros((1, 3072), np.uint8)}, "labels from 10 to 10"),
        (
            {b"labels": [1, 2], b"data": np.zeros((1, 3072), np.uint8)},
            r"pixels of shape \(1, 3072\)",
        ),
    ],
)
def test_damaged_cifar10_batches_are_refused_by_name(tmp_path, batch, reason):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(UserError, match=f"test_batch: .*{reason}"):
        cifar10(tmp_path, "val")


def test_preprocessing_is_read_as_it_was_written():
    assert Preprocessing.from_dict(json.loads(json.dumps(SIZE_32.to_dict()))) == SIZE_32
    for change, reason in (
        ({"heigt": 3}, "unknown key 'heigt', did you mean 'height'"),
        ({"resize": 32.5}, "resize is 32.5"),
        ({"mean": [1.0, 2.0]}, "key 'mean.2' is missing"),
    ):
        with pytest.raises(UserError, match=f"a.ckpt: .*{reason}"):
            Preprocessing.from_dict({**SIZE_32.to_dict(), **change}, "a.ckpt")
    with pytest.raises(UserError, match="key 'std' is missing"):
        Preprocessing.from_dict({k: v for k, v in SIZE_32.to_dict().items() if k != "std"})


# Classes of different sizes.


def test_imbalance_is_described():
    line = describe_imbalance(("cat", "dog", "eel"), (8, 30, 4), (1, 6, 3))
    assert line == (
        "classes are uneven: 30 training images of dog, 4 of eel; always answering dog has a top-1 "
        "of 60.0 % on the validation images"
    )
    assert "50.0 % on the training images" in describe_imbalance(("a", "b", "c"), (3, 10, 7))
    assert describe_imbalance(("a", "b"), (14, 10), (9, 1)) == ""


def test_balanced_order_has_each_class_equally_often():
    labels = np.repeat([0, 1, 2], [40, 10, 3])
    pool = np.arange(1, 53)  # without the first image
    order = balanced_order(labels, pool, np.random.default_rng(0))
    images = order % 53
    assert len(order) == 52 and 0 not in images
    assert sorted(np.bincount(labels[images])) == [17, 17, 18]
    for label, (least, most) in enumerate(((0, 1), (1, 2), (5, 6))):
        counts = np.bincount(images, minlength=53)[(labels == label) & (np.arange(53) > 0)]
        assert least <= counts.min() and counts.max() <= most
    # Each appearance of an image has its own number.
    assert len(set(order.tolist())) == len(order)


def test_a_balanced_loader_repeats_images_in_other_augmentations(few_digits, tmp_path):
    folder = tmp_path / "few"
    shutil.copytree(few_digits / "train", folder)
    for file in sorted((folder / "3").iterdir())[2:]:
        file.unlink()
    source, flips = ImageFolder(folder), Augmentation(crop_padding=3)
    batches = loader(source, training=True, batch_size=100, augmentation=flips, balanced=True)
    ((images, labels),) = batches.epoch()
    assert np.bincount(labels).min() >= 8 and np.bincount(labels).max() <= 11
    assert list(batches.class_counts) == [12, 12, 12, 2, *6 * [12]]
    # Two images in ten appearances: more than two sights of them.
    assert len(np.unique(images[labels == 3].reshape(sum(labels == 3), -1), axis=0)) > 2
    ((_, plain),) = loader(source, training=True, batch_size=110, augmentation=flips).epoch()
    assert np.bincount(plain)[3] == 2
