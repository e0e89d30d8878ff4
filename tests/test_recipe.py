"""What is chosen for a folder of images: from which facts, what it says, and that flags win."""

from __future__ import annotations

import logging
import shutil

import pytest
import yaml
from PIL import Image

from src.arch.architecture import load_architecture
from src.arch.space import load_space
from src.cli import parse_config
from src.config import SearchConfig, TrainConfig
from src.data.survey import Survey, survey
from src.errors import UserError
from src.recipe import COLOR_JITTER, MANY_IMAGES, SMALL, Facts, choose
from tests.conftest import ROOT


def facts(images: int = 1000, short_side: int = 400, has_val: bool = True, **own) -> Facts:
    return Facts(Survey(images, 5, images // 5, images // 5, short_side, has_val), **own)


def expect(chosen: dict, **values) -> None:
    assert {key: chosen.get(key) for key in values} == values


# The pure function.


@pytest.mark.parametrize(
    ("short_side", "side", "network", "space"),
    [
        (8, 32, "spnas_pixel1_32", "imagenet_32"),
        (40, 32, "spnas_pixel1_32", "imagenet_32"),
        (41, 64, "spnas_pixel1_32", "imagenet_32"),
        (96, 64, "spnas_pixel1_32", "imagenet_32"),
        (97, 128, "spnas_pixel1", "imagenet"),
        (160, 128, "spnas_pixel1", "imagenet"),
        (161, 224, "spnas_pixel1", "imagenet"),
        (4000, 224, "spnas_pixel1", "imagenet"),
    ],
)
def test_the_input_follows_the_images(short_side, side, network, space):
    found = facts(short_side=short_side)
    expect(choose(found, {}, "train"), image_height=side, image_width=side, arch=network)
    expect(choose(found, {}, "search"), image_height=side, space=space)
    # Features are 4x4 at least where they are pooled.
    for arch in (load_architecture(network), load_space(space).largest()):
        assert arch.total_stride == (8 if side <= SMALL else 32) <= side / 4


@pytest.mark.parametrize(
    ("images", "batch", "epochs"),
    [(3, 2, 200), (100, 16, 200), (400, 32, 160), (2000, 128, 128), (20_000, 128, 30)],
)
def test_batches_and_epochs_follow_the_number_of_images(images, batch, epochs):
    chosen = choose(facts(images), {}, "train")
    expect(chosen, batch_size=batch, epoch_size=epochs, lr_scheduler="one_cycle")
    assert chosen["lr_init"] == pytest.approx(0.1 * batch / 64)
    assert chosen["batch_size"] <= images
    assert 15 <= epochs / chosen["val_interval_epochs"] <= 20
    assert choose(facts(images), {"epoch_size": 5}, "train")["val_interval_epochs"] == 1
    assert choose(facts(20_000, 32), {}, "train")["batch_size"] == 64


def test_a_batch_has_no_more_images_than_are_left_to_train_on():
    for images in range(10, 200):  # of 5 classes, two or more of each
        per_class = [images // 5 + (label < images % 5) for label in range(5)]
        left = sum(count - max(round(0.2 * count), 1) for count in per_class)
        assert choose(facts(images, has_val=False), {}, "train")["batch_size"] <= left, images


def test_crops_follow_the_room_that_images_leave():
    shifts = {"crop_scale": None, "color_jitter": None}
    expect(choose(facts(short_side=32), {}, "train"), crop_padding=4, resize=32, **shifts)
    expect(choose(facts(short_side=230), {}, "train"), crop_padding=28, resize=224, **shifts)
    crops = {"crop_scale": 0.35, "color_jitter": COLOR_JITTER}
    expect(choose(facts(), {}, "train"), crop_padding=None, resize=None, **crops)
    # What is given is used: a padding would have no effect on crops of random size.
    expect(choose(facts(), {"crop_padding": 9}, "train"), resize=224, **shifts)


def test_many_large_images_have_the_recipe_of_imagenet():
    chosen = choose(facts(MANY_IMAGES), {}, "train")
    assert chosen == {"image_height": 224, "image_width": 224, "arch": "spnas_pixel1"}
    assert "optimizer" not in choose(facts(MANY_IMAGES), {}, "search")
    # Many small images, or weights to start from, do not.
    assert choose(facts(MANY_IMAGES, 32), {}, "train")["epoch_size"] == 30
    assert choose(facts(MANY_IMAGES), {"pre_trained": "x"}, "train")["epoch_size"] == 10


def test_fine_tuning_is_shorter_and_gentler():
    fresh = choose(facts(1000), {}, "train")
    tuned = choose(facts(1000), {"pre_trained": "x.pth"}, "train")
    assert tuned["lr_init"] < fresh["lr_init"] and tuned["epoch_size"] < fresh["epoch_size"]
    expect(tuned, lr_scheduler="cosine", arch="spnas_pixel1", batch_size=fresh["batch_size"])
    assert choose(facts(100), {"pre_trained": "x"}, "train")["lr_init"] == tuned["lr_init"] == 0.01
    assert tuned["warmup_epochs"] == pytest.approx(0.1 * tuned["epoch_size"])


def test_weights_bring_their_network_and_their_pixels():
    own = {"image_height": 32, "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "arch": "a.json"}
    given = {"pre_trained": "x.ckpt"}
    chosen = choose(facts(weights=own), given, "train")
    expect(chosen, **own, image_width=32, crop_scale=0.35)
    # A supernet has no network of its own.
    assert "arch" not in choose(facts(weights=own), {**given, "space": "imagenet_32"}, "train")


def test_the_choice_follows_what_is_given():
    chosen = choose(facts(), {"batch_size": 8, "image_height": 64}, "train")
    expect(chosen, image_height=64, image_width=64, arch="spnas_pixel1_32", lr_init=0.0125)
    assert choose(facts(network_side=32), {}, "train")["image_height"] == 32
    # Of a given number of images only so many are trained on.
    assert choose(facts(50_000), {"train_images": 100}, "train")["batch_size"] == 16


def test_images_are_kept_apart_where_there_are_none_to_validate():
    assert choose(facts(has_val=False), {}, "train")["holdout"] == 0.2
    for found, given in ((facts(), {}), (facts(has_val=False), {"val_data_path": "elsewhere"})):
        assert "holdout" not in choose(found, given, "train")


# From a folder to a configuration.


def configure(kind, folder, *flags):
    words = ["--dataset_name", "folder", "--data_path", str(folder), *map(str, flags)]
    return parse_config(kind, words, "")


def test_a_folder_is_surveyed(few_digits, tmp_path):
    assert survey(str(few_digits)) == Survey(120, 10, 12, 12, 32, True)
    for name, size in (("a", (50, 300)), ("b", (70, 80))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / "1.png")
    (tmp_path / "a/2.jpg").write_bytes(b"no image")
    assert survey(str(tmp_path)) == Survey(3, 2, 1, 2, 60, False)


def test_the_line_says_what_was_found_and_what_was_not_given(few_digits, caplog):
    caplog.set_level(logging.INFO)
    config = configure(TrainConfig, few_digits, "--batch_size", 8, "--flip", "false")
    assert caplog.messages == [
        f"{few_digits}: 120 images of 10 classes, 12 each, median short side 32 pixels; chosen: "
        "arch spnas_pixel1_32, image_height 32, image_width 32, crop_padding 4, epoch_size 134, "
        "lr_init 0.0125, lr_scheduler one_cycle, val_interval_epochs 7"
    ]
    expect(vars(config), batch_size=8, flip=False, epoch_size=134, resize=32, crop_scale=None)


def test_a_search_chooses_its_space(few_digits):
    config = configure(SearchConfig, few_digits, "--target", 60)
    expect(vars(config), space="imagenet_32", cost="macs", optimizer="momentum", image_height=32)
    table = configure(SearchConfig, few_digits, "--latency_table", "pixel1")
    expect(vars(table), cost="latency", epoch_size=100)


def test_flags_and_file_win_over_the_choice(few_digits, tmp_path):
    (tmp_path / "c.yaml").write_text("epoch_size: 3\nlr_init: 0.5\n")
    flags = ("--config", tmp_path / "c.yaml", "--lr_init", 0.7, "--arch", "spnas_smallest_32")
    config = configure(TrainConfig, few_digits, *flags)
    expect(vars(config), epoch_size=3, lr_init=0.7, arch="spnas_smallest_32", batch_size=16)


def test_the_supernet_of_a_space_has_its_size(few_digits):
    config = configure(TrainConfig, few_digits, "--space", "nas_bench_macro")
    expect(vars(config), arch=None, image_height=32, holdout=0.1, batch_size=16)


def test_a_resumed_run_keeps_its_choice(few_digits, tmp_path):
    flags = ("--checkpoint_path", tmp_path, "--lr_init", 0.7)
    first = configure(TrainConfig, few_digits, *flags)
    (tmp_path / "ckpt_0").mkdir()
    (tmp_path / "ckpt_0/config.yaml").write_text(yaml.safe_dump(first.model_dump(mode="json")))
    # Its folder has changed since.
    shutil.copytree(few_digits / "train", tmp_path / "more")
    for file in list((tmp_path / "more").rglob("*.jpg")):
        for number in range(9):
            shutil.copy(file, file.with_name(f"{file.stem}_{number}.jpg"))
    other = configure(TrainConfig, tmp_path / "more")
    assert other.batch_size != first.batch_size
    resumed = configure(TrainConfig, tmp_path / "more", *flags[:2], "--resume", "--log_steps", 3)
    changed = {"data_path": str(tmp_path / "more"), "resume": True, "log_steps": 3}
    assert resumed == first.model_copy(update=changed)


def test_weights_in_the_folder_of_a_run_say_what_they_need(few_digits, tmp_path):
    own = {"image_height": 24, "image_width": 24, "mean": [1, 2, 3], "std": [4, 5, 6], "flip": True}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(own))
    shutil.copy(ROOT / "src/arch/architectures/spnas_smallest_32.json", tmp_path / "arch.json")
    config = configure(TrainConfig, few_digits, "--pre_trained", tmp_path / "best.ckpt")
    network = str(tmp_path / "arch.json")
    expect(vars(config), image_height=24, image_width=24, mean=(1, 2, 3), arch=network)
    foreign = configure(TrainConfig, few_digits, "--pre_trained", "timm.safetensors")
    expect(vars(foreign), image_height=32, arch="spnas_pixel1_32", lr_scheduler="cosine")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((), "holds no class folders"),
        (("a/1.jpg",), "holds one class folder, 'a'; a classifier needs two or more"),
        (("a/1.jpg", "b/notes.txt"), "b: class folder without images"),
        (("a/1.jpg", "b/1.jpg"), "none of 2 files can be read as an image"),
    ],
)
def test_folders_that_cannot_be_trained_on_get_one_line(tmp_path, files, reason):
    for name in files:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        configure(TrainConfig, tmp_path)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_value_is_named_before_it_is_used(few_digits):
    with pytest.raises(UserError, match="batch_size is 'many'"):
        configure(TrainConfig, few_digits, "--batch_size", "many")
