"""How searches and supernets are judged by the published table; here by synthetic tables."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.nas_bench_macro import (
    CONTROLS,
    STAGES,
    Entry,
    Table,
    Truth,
    canonical,
    cost,
    decisions,
    equivalents,
    figure,
    groups_of_cost,
    main,
    name_of,
    predict,
    rank_correlation,
    read_result,
    read_table,
    seed_noise,
    within,
)
from src.arch.architecture import Architecture, load_architecture
from src.arch.space import SKIP, load_space
from src.errors import EXIT_USER, UserError
from src.files import write_json

# Networks of 59.70, 60.48, 59.45 and 59.26 million multiply-adds, of ascending parameters.
BAND = {"22211100": 92.5, "22220100": 92.0, "22111200": 91.5, "20222100": 92.2}


def network(name: str) -> Architecture:
    return load_space("nas_bench_macro").derive(decisions(name), name)


def line(name: str, top1: object) -> str:
    """As scripts/evaluate_subnets.py writes it."""
    return json.dumps({"decisions": decisions(name), "top1": top1, "loss": 1}) + "\n"


def entry(name: str, accuracy: float, spread: float = 0.1) -> Entry:
    trainings = (accuracy - spread, accuracy, accuracy + spread)
    return Entry(trainings, accuracy, round(spread * math.sqrt(2 / 3), 3), *cost(name))


def table_of(accuracies: Mapping[str, float]) -> Table:
    return Table({name: entry(name, accuracy) for name, accuracy in accuracies.items()})


def record(name: str, accuracy: float, **changes: object) -> dict[str, object]:
    """An entry as the published file writes it."""
    return {**vars(entry(name, accuracy)), **changes}


def write_table(path: Path, accuracies: Mapping[str, float]) -> Path:
    write_json(path, {name: record(name, value) for name, value in accuracies.items()})
    return path


def linear(name: str) -> float:
    """An accuracy in percent that is linear in the features of the prediction."""
    name = canonical(name)
    fives = sum((index + 1) * name[stage].count("2") for index, stage in enumerate(STAGES))
    return 90 + 0.3 * fives - 0.2 * name.count("0") + cost(name).macs / 1e8


def part_of_a_linear_truth() -> dict[str, float]:
    """All names of a quarter of the distinct networks."""
    keys = random.Random(0).sample(list(equivalents()), 294)
    return {name: linear(name) for key in keys for name in equivalents()[key]}


ALL = [name for names in equivalents().values() for name in names]


# The space.


def test_as_many_networks_as_published():
    assert len(ALL) == len(set(ALL)) == 1944
    assert len(equivalents()) == 1176
    assert [len(within(ALL, band * 1e6)) for band in (50, 60, 70, 80)] == [43, 177, 98, 106]


def test_canonical_names_have_the_skips_last_within_each_stage():
    assert canonical("22102201") == "22120210"
    assert canonical("10100100") == "10100100"
    assert equivalents()["10120210"] == ("10102201", "10102210", "10120201", "10120210")
    assert all(canonical(name) == key for key, names in equivalents().items() for name in names)


def test_names_are_those_of_the_published_file():
    assert decisions("10212100") == [
        *("K3E3", SKIP, "K5E6", "K3E3", "K5E6"),
        *("K3E3", SKIP, SKIP),
    ]
    assert all(name_of(decisions(name)) == name for name in ALL)


def test_other_architectures_are_refused(tmp_path: Path):
    arch = tmp_path / "arch.json"
    write_json(arch, load_architecture("spnas_pixel1_32").to_dict())
    with pytest.raises(UserError, match=f"^{arch}: .* is not of space 'nas_bench_macro'"):
        read_result(arch)


# The table.


def test_a_name_that_the_table_lacks_is_looked_up_by_its_equivalents():
    one, other, first = "10102201", "10120201", "10120210"  # the last is canonical
    both = table_of({one: 91.0, other: 92.0})
    assert both.truth(one) == Truth(91.0)
    assert both.truth(first) == both.truth("10102210") == Truth(91.5)
    three = table_of({one: 91.0, other: 92.0, first: 90.0})
    assert three.truth(first) == three.truth("10102210") == Truth(90.0)
    assert three.truth(one) == Truth(91.0)  # trained on its own
    assert math.isnan(both.truth("11111111").top1) and not both.truth("11111111").predicted
    assert list(both.known([first, "11111111"])) == [first]


def test_predicted_accuracies_are_only_for_what_the_table_lacks():
    table = replace(table_of({"10102201": 91.0}), predicted={"10120210": 80.0, "22222222": 93.0})
    assert table.truth("10120210") == Truth(91.0)
    assert table.truth("22222222") == Truth(93.0, predicted=True)


def test_improvement_is_relative_to_the_mean_of_the_band():
    table = table_of({**BAND, "11111111": 50.0, "22222222": 99.0})  # the last two cost otherwise
    assert len(table.band(60e6)) == 4
    mean = (92.5 + 92.0 + 91.5 + 92.2) / 4
    assert table.improvement("22211100") == pytest.approx(100 * (92.5 - mean) / mean)
    assert math.isnan(table.improvement("11211200"))


def test_the_five_with_fewest_parameters_are_distinct_networks():
    fewest = ["22211100", "22220100", "22111200", "22120200", "12211200"]
    # Another name of the second, and a network with more parameters than the five.
    more = {"22202100": 10.0, "21122100": 20.0}
    accuracies = dict(zip(fewest, (92.5, 92.0, 91.5, 91.0, 90.5), strict=True))
    assert table_of({**accuracies, **more}).fewest_parameters(60e6) == Truth(91.5)
    assert table_of({"22202100": 10.0, "22111200": 20.0}).fewest_parameters(60e6) == Truth(15.0)
    assert math.isnan(table_of(accuracies).fewest_parameters(100e6).top1)


def test_of_equally_many_parameters_the_lesser_name_counts_first():
    assert cost("21212210") == cost("21221210")
    names = ["22122100", "21222200", "22211210", "12122110", "21212210"]
    accuracies = {**dict.fromkeys(names, 92.0), "21221210": 50.0}
    assert table_of(accuracies).fewest_parameters(70e6) == Truth(92.0)


def test_seed_noise_is_the_root_mean_square_of_standard_deviations():
    # Three values at equal distances deviate by that distance.
    assert seed_noise([entry("11111111", 90, 0.1)]) == pytest.approx(0.1)
    entries = [entry("11111111", 90, 0.1), entry("22222222", 92, 0.7)]
    assert seed_noise(entries) == pytest.approx(math.sqrt((0.1**2 + 0.7**2) / 2))
    assert math.isnan(seed_noise([]))


def test_networks_of_other_spaces_are_ignored(tmp_path: Path):
    path = tmp_path / "table.json"
    write_json(path, {"00000000": {}, "12012222": {}, "11111111": record("11111111", 91.93)})
    assert read_table(path) == table_of({"11111111": 91.93})


@pytest.mark.parametrize(
    "data, problem",
    [
        ([], "not an object"),
        ({}, "no network without a 0"),
        ({"1111111": {}}, "'1111111' is not eight digits"),
        ({"11111113": {}}, "'11111113' is not eight digits"),
        ({"11111111": 91.0}, "'11111111'.*91.0"),
        ({"11111111": record("11111111", 91, mean_acc="91")}, "'11111111': mean_acc is '91'"),
        ({"11111111": record("11111111", 91, mean_acc=math.nan)}, "'11111111': mean_acc is nan"),
        ({"11111111": record("11111111", 910)}, "'11111111': test_acc.0 is 909.9"),
        ({"11111111": record("11111111", 91, test_acc=[91, 91])}, "'11111111': .*test_acc.2"),
        ({"11111111": record("11111111", 91, macs=1)}, "'11111111': unknown key 'macs'"),
        (
            {"11111111": record("11111111", 91, flops=53246465)},
            "'11111111': params 1588874, flops 53246465; counted are 1588874 and 53246464",
        ),
        (
            {"11111111": record("11111111", 91, params=1)},
            "'11111111': params 1, flops 53246464; counted are 1588874 and 53246464",
        ),
    ],
)
def test_malformed_tables_are_refused(tmp_path: Path, data: object, problem: str):
    path = tmp_path / "table.json"
    write_json(path, data)
    with pytest.raises(UserError, match=f"^{path}: .*{problem}") as error:
        read_table(path)
    assert "\n" not in str(error.value)


# Results.


def test_a_result_is_an_architecture_or_accuracies_by_its_content(tmp_path: Path):
    arch, lines = tmp_path / "a.jsonl", tmp_path / "b.json"
    write_json(arch, network("10102100").to_dict())
    assert read_result(arch) == "10120100"
    header = '{"format": "spnas-subnets"}\n'
    lines.write_text(header + line("11111111", 60.5) + line("22222222", 70))
    assert read_result(lines) == {"11111111": 60.5, "22222222": 70.0}
    lines.write_text(line("11111111", 60.5))
    assert read_result(lines) == {"11111111": 60.5}


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "no accuracies"),
        ('{"format": "x"}', "no accuracies"),
        ("top1\n", "line 1: 'top1' is no JSON object"),
        ("[1]\n", r"line 1: '\[1\]' is no JSON object"),
        (line("11111111", 60) + '{"decisions": ["K', "line 2: .* is no JSON object"),
        ('{"decisions": []}', "line 1: key 'top1' is missing"),
        (line("11111111", "60"), "line 1: top1 is '60'"),
        (line("11111111", math.nan), "line 1: top1 is nan"),
        ('{"decisions": 1, "top1": 60}', "line 1: decisions is 1"),
        (line("01111111", 60), "line 1: layer0 of space 'nas_bench_macro' cannot be skipped"),
        (line("1111111", 60), "line 1: 7 decisions"),
        (2 * line("11111111", 60), "line 2: network '11111111' is repeated"),
        ('{"format": "spnas-architecture", "version": 7}', "version 7"),
    ],
)
def test_malformed_results_are_refused(tmp_path: Path, text: str, problem: str):
    path = tmp_path / "result"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{path}: {problem}") as error:
        read_result(path)
    assert "\n" not in str(error.value)


def test_a_missing_result_is_the_users_mistake(tmp_path: Path):
    with pytest.raises(UserError, match="none.json: not readable"):
        read_result(tmp_path / "none.json")


# Figures.


def tau(truths: list[float], scores: list[float]) -> float:
    by_name = {str(index): Truth(truth) for index, truth in enumerate(truths)}
    return rank_correlation(by_name, lambda name: scores[int(name)])


def test_rank_correlation_is_kendalls():
    assert tau([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx((5 - 1) / 6)
    assert tau([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # tau-b: of three pairs one is tied in the scores.
    assert tau([1, 2, 3], [1, 1, 2]) == pytest.approx(2 / math.sqrt(3 * 2))
    assert all(map(math.isnan, (tau([], []), tau([1], [1]), tau([1, 2], [5, 5]))))


def test_controls_count():
    assert [score("11111111") for score in CONTROLS.values()] == [
        53_246_464,
        -1_588_874,
        53_246_464 - 15_888_740,
    ]


def test_groups_fit_into_one_band():
    names = ["11111111", "20221100", "11211200", "22222222", "11211200"]
    macs = [cost(name).macs / 1e6 for name in names]
    assert macs == pytest.approx([53.25, 51.96, 50.64, 105.66, 50.64], abs=0.01)
    # 51.96 / 50.64 = 1.026 and 53.25 / 50.64 = 1.052, of at most 1.02 / 0.98 = 1.041.
    assert groups_of_cost(names) == [
        ["11211200", "11211200", "20221100"],
        ["11111111"],
        ["22222222"],
    ]


def test_figures_mark_what_is_predicted_or_undefined():
    assert [figure(1.234), figure(1.26, 1, True), figure(math.nan, 2, True)] == [
        "1.23",
        "~1.3",
        "-",
    ]


# Prediction.


def test_ridge_regression_predicts_a_linear_truth():
    part = part_of_a_linear_truth()
    predicted, errors = predict(table_of(part).entries)
    assert predicted.keys() == equivalents().keys()
    assert max(abs(value - linear(name)) for name, value in predicted.items()) < 0.01
    assert errors.keys() == part.keys()
    assert max(map(abs, errors.values())) < 0.01


def test_errors_are_of_predictions_without_any_name_of_the_network():
    part = part_of_a_linear_truth()
    names = equivalents()["10120210"]
    assert len(names) == 4
    part.update(dict.fromkeys(names, linear(names[0]) - 5))  # an outlier under all its names
    _, errors = predict(table_of(part).entries)
    # Had one of the four been fitted, it would have drawn the prediction to itself.
    assert all(errors[name] == pytest.approx(5, abs=0.2) for name in names)


def test_prediction_needs_enough_networks():
    with pytest.raises(UserError, match="needs 20 distinct networks, the table has 1"):
        predict(table_of({"10102201": 91.0, "10120210": 92.0}).entries)


# The program.


def cells(output: str, start: str) -> list[str]:
    """Cells of the first row that starts so, without its first."""
    row = next(line for line in output.splitlines() if line.startswith(start))
    return row.removeprefix(start).split()


def test_the_table_alone_shows_what_counting_reaches(tmp_path: Path, capsys):
    table = write_table(tmp_path / "table.json", {**BAND, "11111111": 91.0})
    assert main(["--table", str(table)]) == 0
    output = capsys.readouterr().out
    assert cells(output, "networks") == ["5", "0", "4", "0", "0"]
    # Of six pairs two are in the wrong order: the last network with the second and with the third.
    assert cells(output, "tau: fewest parameters") == ["-", "-", "0.333", "-", "-"]
    assert "60 M 92.05" in output and "50 M -" in output


def test_found_networks_are_compared_with_their_band(tmp_path: Path, capsys):
    table = write_table(tmp_path / "table.json", BAND)
    files = []
    for name in ("22211100", "22111200", "22222222"):
        files.append(tmp_path / f"{name}.json")
        write_json(files[-1], network(name).to_dict())
    # One that the table lacks twice: that makes no mean.
    assert main(["--table", str(table), *map(str, files), str(files[2])]) == 0
    output = capsys.readouterr().out
    assert cells(output, str(files[0])) == (
        # 22211100 is best of four; mean 92.05, RI 100 * 0.45 / 92.05.
        "22211100 59.70 0.87 92.50 0.10 0.49 87.5 4 92.05 0.42 92.41 92.50 0.10 92.05".split()
    )
    assert cells(output, str(files[2]))[3:7] == ["not", "in", "the", "table"]
    # Of 92.5 and 91.5; RI is 0.489 and -0.597.
    assert "mean of 2 at 59.6 M: top-1 92.00 (sd 0.71), RI -0.05 % (sd 0.77)" in output
    assert output.count("mean of") == 1


def test_a_supernet_is_ranked_beside_counting(tmp_path: Path, capsys):
    table = write_table(tmp_path / "table.json", {**BAND, "11111111": 91.0})
    supernet = tmp_path / "supernet.jsonl"
    ranks = {"22211100": 60, "22220100": 50, "22111200": 40, "20222100": 45, "22222222": 99}
    supernet.write_text("".join(line(name, top1) for name, top1 in ranks.items()))
    assert main(["--table", str(table), str(supernet)]) == 0
    output = capsys.readouterr().out
    output = output[output.index(str(supernet)) :]
    assert cells(output, "networks") == ["5", "0", "5", "0", "0"]  # one has two names
    assert cells(output, "distinct") == ["4", "0", "4", "0", "0"]
    assert cells(output, "tau: supernet") == ["0.556", "-", "0.556", "-", "-"]  # (7 - 2) / 9
    assert cells(output, "tau: fewest parameters") == ["-", "-", "0.333", "-", "-"]
    assert "not in the table: 1, the first is 22222222" in output


def test_what_a_supernet_would_serve_is_judged_as_found(tmp_path: Path, capsys):
    table = write_table(tmp_path / "table.json", BAND)
    supernet = tmp_path / "supernet.jsonl"
    ranks = {"22211100": 60, "22220100": 70, "22111200": 40, "20222100": 45}
    supernet.write_text("".join(line(name, top1) for name, top1 in ranks.items()))
    assert main(["--table", str(table), "--within", "60", str(supernet)]) == 0
    output = capsys.readouterr().out
    found = output[output.index("\nfound") :]
    name, macs, _, top1 = cells(found, str(supernet))[:4]
    assert (name, macs, top1) == ("22211100", "59.70", "92.50")
    assert main(["--table", str(table), "--within", "20", str(supernet)]) == EXIT_USER
    error = f"{supernet}: has no network within --within 20 M multiply-adds"
    assert error in capsys.readouterr().err


def test_predicted_figures_are_marked(tmp_path: Path, capsys):
    part = {name: linear(name) for name in equivalents() if name[0] == "1"}
    table = write_table(tmp_path / "table.json", part)
    found, supernet = tmp_path / "arch.json", tmp_path / "supernet.jsonl"
    write_json(found, network("22211100").to_dict())
    supernet.write_text(
        "".join(line(name, cost(name).macs / 2e6) for name in ("11111111", "22111200", "12211200"))
    )
    flags = ["--table", str(table), "--predict", "--plot", str(tmp_path / "plot.png")]
    assert main([*flags, str(found), str(supernet)]) == 0
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    output = capsys.readouterr().out
    assert f"over all ({len(part)} networks): mean 0.00" in output
    assert cells(output, str(found))[3].startswith("~9")
    assert cells(output, "tau: multiply-adds")[0][0] != "~"  # of the table alone
    output = output[output.index(str(supernet)) :]
    assert cells(output, "tau: supernet")[0].startswith("~")


def test_a_users_mistake_is_one_line(tmp_path: Path, capsys):
    table = tmp_path / "table.json"
    write_json(table, {"11111111": record("11111111", 91, flops=1)})
    assert main(["--table", str(table)]) == EXIT_USER
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert f"{table}: network '11111111': params 1588874, flops 1;" in captured.err
