"""A folder of few, uneven images through the programs: what is chosen, told and recorded."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from src.report.folders import find
from src.report.page import create_page
from src.report.runs import build_runs
from tests.conftest import run_in_this_process


@pytest.fixture(scope="module")
def trained(few_digits, tiny_arch, tmp_path_factory):
    """A training on the first three digits, 12, 12 and 5 of each, and what it printed."""
    folder = tmp_path_factory.mktemp("own")
    for digit, count in (("0", 12), ("1", 12), ("2", 5)):
        (folder / "images" / digit).mkdir(parents=True)
        for file in sorted((few_digits / "train" / digit).iterdir())[:count]:
            shutil.copy(file, folder / "images" / digit)
    flags = ("--dataset_name", "folder", "--data_path", "images", "--checkpoint_path", "run")
    own = ("--arch", tiny_arch, "--epoch_size", 2, "--batch_size", 10)
    run = run_in_this_process("train.py", *flags, *own, cwd=folder)
    assert run.returncode == 0, run.stderr
    return folder, run.stdout


def test_a_run_names_and_records_its_classes(trained):
    folder, printed = trained
    # Of each class a fifth is kept apart, at least one.
    assert (
        "classes are uneven: 10 training images of 0, 4 of 2; always answering 0 has a top-1 of "
        "40.0 % on the validation images; --balance_classes trains on as many of each, eval.py "
        "--per_class shows each class\n"
    ) in printed
    assert json.loads((folder / "run/ckpt_0/classes.json").read_text()) == {
        "classes": ["0", "1", "2"],
        "train": [10, 10, 4],
        "val": [2, 2, 1],
    }


def test_what_was_chosen_is_in_the_configuration(trained):
    config = yaml.safe_load((trained[0] / "run/ckpt_0/config.yaml").read_text())
    chosen = {"image_height": 32, "crop_padding": 4, "crop_scale": None, "holdout": 0.2}
    given = {"epoch_size": 2, "batch_size": 10, "lr_init": 0.1 * 10 / 64}
    assert {**config, **chosen, **given} == config


def test_images_that_were_kept_apart_are_evaluated_and_shown(trained):
    folder, _ = trained
    run = run_in_this_process(
        "eval.py", "--checkpoint_path", "run/ckpt_0", "--per_class", cwd=folder
    )
    assert run.returncode == 0, run.stderr
    (row,) = json.loads((folder / "run/ckpt_0/eval.json").read_text())["results"]
    assert [of_class["images"] for of_class in row["per_class"]] == [2, 2, 1]
    found = find([str(folder / "run")])
    page = create_page(build_runs(found), found)
    assert '<th scope="row">2</th><td>4</td><td>1</td><td>1</td>' in page
    # Without an evaluation the counts are there.
    (folder / "run/ckpt_0/eval.json").unlink()
    found = find([str(folder / "run")])
    page = create_page(build_runs(found), found)
    assert '<th scope="row">0</th><td>10</td><td>2</td><td>-</td><td>-</td><td>-</td>' in page
    assert 'data-chart="classes-0"' not in page
