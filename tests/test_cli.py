"""Flags, YAML files and presets: which one wins, and what users hear of their mistakes."""

from __future__ import annotations

from typing import get_args

import pytest

from search import find_method
from src.cli import Parser, build_config, parse_config
from src.config import (
    PRESETS,
    SEARCH_PRESETS,
    DatasetName,
    ExportConfig,
    OneShotConfig,
    OneShotSearchConfig,
    SearchConfig,
    TrainConfig,
)
from src.errors import UserError


@pytest.fixture
def yaml_file(tmp_path):
    """Writes a YAML file; returns the flags that name it."""

    def write(text: str) -> list[str]:
        (tmp_path / "c.yaml").write_text(text)
        return ["--config", str(tmp_path / "c.yaml")]

    return write


def train(*argv: str) -> TrainConfig:
    return parse_config(TrainConfig, argv, "")


# What wins.


def test_flags_win_over_the_file_over_the_preset_over_defaults(yaml_file):
    file = yaml_file("dataset_name: digits\nepoch_size: 3\nlr_init: 0.7\n")
    config = train(*file, "--lr_init", "0.9")
    # By flag, by file, by preset, by default.
    assert (config.lr_init, config.epoch_size, config.image_height, config.momentum) == (
        0.9,
        3,
        32,
        0.9,
    )
    assert TrainConfig().image_height == 224


def test_a_flag_chooses_the_preset_too(yaml_file):
    file = yaml_file("dataset_name: digits\n")
    assert train(*file).batch_size == 64
    assert train(*file, "--dataset_name", "imagenet").color_jitter == (0.5, 0.4, 0.3, 0.2)


def test_what_a_flag_replaces_in_the_file_is_not_checked(yaml_file):
    assert train(*yaml_file("epoch_size: many\n"), "--epoch_size", "4").epoch_size == 4


@pytest.mark.parametrize(
    "words, resume",
    [
        ((), False),
        (("--resume",), True),
        (("--resume", "--flip"), True),
        (("--resume", "true"), True),
        (("--resume", "false"), False),
        (("--resume=false",), False),
    ],
)
def test_bare_flags_switch_on(words, resume):
    assert train(*words).resume is resume


def test_values_follow_the_grammar_of_yaml():
    config = train("--mean", "[1, 2, 3]", "--crop_scale", "null", "--weight-decay=3e-4")
    assert (config.mean, config.crop_scale, config.weight_decay) == ((1, 2, 3), None, 3e-4)
    assert train("--data_path", "2012").data_path == "2012"  # text stays text
    assert train("--cpu_kernels", "on").cpu_kernels == "on"  # a boolean of YAML
    assert train("--profile_steps", "20-30").profiled_steps == range(20, 31)
    assert not train().profiled_steps
    assert [train("--loss_scale", text).loss_scale for text in ("dynamic", "128", "1e4")] == [
        "dynamic",
        128.0,
        10000.0,
    ]


def test_a_latency_table_is_given_to_be_used():
    flags = ["--dataset_name", "digits"]
    assert parse_config(SearchConfig, flags, "").cost == "macs"
    table = parse_config(SearchConfig, [*flags, "--latency_table", "pixel1"], "")
    assert table.cost == "latency"


# Which method a search takes.


def test_the_method_is_read_from_flags_and_file_alike(yaml_file):
    file = yaml_file("method: one_shot\nckpt: somewhere\ntop_k: 3\n")
    assert find_method([]) is SearchConfig
    assert find_method(["--method", "one_shot"]) is OneShotSearchConfig
    assert find_method(file) is OneShotSearchConfig
    config = parse_config(find_method(file), file, "")
    assert (config.method, config.ckpt, config.top_k) == ("one_shot", "somewhere", 3)


def test_the_flag_of_the_method_wins_over_the_file(yaml_file):
    argv = [*yaml_file("method: one_shot\ncost: macs\n"), "--method", "superkernel"]
    config = parse_config(find_method(argv), argv, "")
    assert isinstance(config, SearchConfig) and config.cost == "macs"
    argv = [*yaml_file("method: superkernel\ncost: macs\n"), "--method=one_shot"]
    assert isinstance(parse_config(find_method(argv), argv, ""), OneShotSearchConfig)


@pytest.mark.parametrize("source", ["flag", "file"])
def test_an_unknown_method_gets_one_line(source, yaml_file, run_program):
    flags = ["--method", "oneshot"] if source == "flag" else yaml_file("method: oneshot\n")
    run = run_program("search.py", *flags)
    reason = "method is 'oneshot', should be superkernel or one_shot, did you mean 'one_shot'?\n"
    place = "" if source == "flag" else f"{flags[1]}: "
    assert (run.returncode, run.stderr) == (2, f"search.py: error: {place}{reason}")


# Mistakes.


@pytest.mark.parametrize(
    "words, reason",
    [
        (("--lr_int", "3"), "unknown flag '--lr_int', did you mean '--lr_init'?"),
        (("--epoch_siz", "3"), "unknown flag '--epoch_siz', did you mean '--epoch_size'?"),
        (("--mean", "1", "2", "3"), "unexpected value '2'"),
        (("--lr_init",), "argument --lr_init: expected one argument"),
        (("--epoch_size", "2024-13-45"), "epoch_size is '2024-13-45': input should be a valid"),
        (("--lr_init", "-1"), "lr_init is -1: input should be greater than 0"),
        (("--momentum", "high"), "momentum is 'high': input should be a valid number"),
        (("--mean", "[1, x, 3]"), "mean.1 is 'x': input should be a valid number"),
        (("--resume", "perhaps"), "resume is 'perhaps': input should be a valid boolean"),
        (("--loss_scale", "x"), "loss_scale is 'x': should be dynamic or a number"),
        (("--dataset_name", "[a]"), "dataset_name is ['a']: input should be 'imagenet'"),
        (("--config", "none.yaml"), "none.yaml: not readable as YAML"),
    ],
)
def test_mistakes_in_flags_get_one_line(words, reason):
    with pytest.raises(UserError) as error:
        train(*words)
    assert str(error.value).startswith(reason) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("epoch_sise: 3\n", "unknown key 'epoch_sise', did you mean 'epoch_size'?"),
        ("epoch_size: 0\n", "epoch_size is 0: input should be greater than or equal to 1"),
        ("1: 2\n", "1 is 1: keys should be strings"),
        ("- a\n", "holds list, should hold keys and values"),
        ("a: [\n", "not readable as YAML"),
        ("name: 2024-02-30\n", "not readable as YAML"),
        ("optimizer: adam\n", "optimizer is 'adam': input should be 'momentum' or 'rmsprop'"),
    ],
)
def test_mistakes_in_a_file_name_it(text, reason, yaml_file):
    flags = yaml_file(text)
    with pytest.raises(UserError) as error:
        train(*flags)
    assert str(error.value).startswith(f"{flags[1]}: {reason}") and "\n" not in str(error.value)


def test_keys_that_belong_together_may_come_from_file_and_flags(yaml_file):
    def export(text: str, *flags: str) -> ExportConfig:
        return parse_config(ExportConfig, [*yaml_file(text), *flags], "")

    for text, flags in (
        ("int8: true\nfile_format: ONNX\n", ["--calibration", "images"]),
        ("calibration: images\nimages: 9\n", ["--int8", "--file_format", "ONNX"]),
    ):
        config = export(text, *flags)
        assert config.int8 and config.calibration == "images"
    # The file is named if the mistake is its own, and no values are printed.
    path = yaml_file("")[1]
    needs = "int8 is for --file_format ONNX, and needs --calibration FOLDER"
    for text, flags, message in (
        ("int8: true\n", [], f"{path}: {needs}"),
        ("int8: true\n", ["--batch_size", "2"], f"{path}: {needs}"),
        ("batch_size: 2\n", ["--int8"], needs),
        ("threads: 2\n", [], f"{path}: threads is for --int8, which is not given"),
        ("", ["--max_drop", "1"], "max_drop is for --int8, which is not given"),
        ("", ["--calibration", "images"], "calibration is for --int8, which is not given"),
        # The file alone would lack its flag, but that is not what is wrong.
        ("int8: true\nfile_format: ONNX\n", ["--images", "0"], "images is 0: input should be"),
    ):
        with pytest.raises(UserError) as error:
            export(text, *flags)
        assert str(error.value).startswith(message), text


def test_flags_are_not_abbreviated_and_errors_are_no_exits():
    parser = Parser("A program.")
    parser.add_argument("--output")
    parser.add_argument("--count", type=int)
    assert parser.parse_args(["--output", "x"]).output == "x"
    for words, reason in (
        (["--outp", "x"], "unknown flag '--outp', did you mean '--output'?"),
        (["--output=x", "extra"], "unexpected value 'extra'"),
        (["--count", "many"], "argument --count: invalid int value: 'many'"),
    ):
        with pytest.raises(UserError) as error:
            parser.parse_args(words)
        assert str(error.value) == reason


# Declarations.


@pytest.mark.parametrize(
    "kind, keys, message",
    [
        (TrainConfig, {"distill": False}, "distill is for a supernet: --space names its"),
        (TrainConfig, {"space": "imagenet", "bn_momentum": 0.5}, "bn_momentum is for a network"),
        (SearchConfig, {"sweep": "1,2", "target": 3}, "sweep and target are both given"),
        (SearchConfig, {"sweep": "1,2", "random": 3}, "sweep and random are both given"),
        (TrainConfig, {"mean": (0, 0, 256)}, "mean"),
        (TrainConfig, {"std": (0, 1, 1)}, "std"),
    ],
)
def test_what_would_be_ignored_or_fail_late_is_refused(kind, keys, message):
    with pytest.raises(UserError, match=message):
        build_config(kind, keys)


def test_every_data_set_has_presets():
    assert get_args(DatasetName) == tuple(PRESETS) == tuple(SEARCH_PRESETS)


@pytest.mark.parametrize("kind", [TrainConfig, SearchConfig, OneShotConfig])
def test_presets_hold_keys_of_their_program(kind):
    for name in PRESETS:
        preset = kind.preset({"dataset_name": name})
        assert preset
        build_config(kind, {**preset, "dataset_name": name})


@pytest.mark.parametrize("key", ["optimizer", "rmsprop_decay", "rmsprop_epsilon", "drop_rate"])
def test_a_supernet_offers_no_key_that_it_ignores(key):
    assert key in TrainConfig.model_fields and key in SearchConfig.model_fields
    with pytest.raises(UserError, match=f"unknown key '{key}'"):
        build_config(OneShotConfig, {key: 0.5})
