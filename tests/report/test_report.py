"""The page of runs: what it holds, and what it says of folders that do not make one."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

import search
from scripts import served_networks
from scripts.report import main
from src.arch.cost import network_cost
from src.arch.cost_table import arithmetic_table, write_table
from src.config import ServeConfig
from src.errors import UserError
from src.files import write_json, write_jsonl
from src.report import page
from src.report.charts import thin
from src.report.folders import find
from src.report.runs import build_runs
from tests.conftest import ROOT
from tests.report.conftest import (
    DIGITS,
    FACTOR,
    FOUND,
    LARGEST,
    PATHS,
    SMALLEST,
    SPACE,
    STEPS,
    latency_table,
    write_one_shot,
    write_search,
    write_served,
    write_training,
)


def read_data(text: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(found)


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "deep/report.html"
    assert main([str(runs), "--out", str(out)]) == 0
    return out.read_text(encoding="utf-8")


def test_the_page_is_one_file_that_loads_nothing(written):
    own = re.sub(r"<script>.*?</script>", "", written, flags=re.S)
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import|https?:(?!//vega)", own)
    assert "$schema" in own and "vegaEmbed" in written


def test_networks_have_their_costs_measurements_and_command(written):
    data, table = read_data(written), latency_table()
    networks = {row["name"]: row for row in data["networks"]}
    served = networks["served_1.5"]
    assert len(data["networks"]) == 2 + 3 + 3 + 4
    assert networks["evaluated 2"]["params"] == served["params"]
    expected = network_cost(SPACE.derive(FOUND, "found"), 10).params / 1e6
    assert served["params"] == pytest.approx(expected, abs=1e-5)
    groups = {row["run"].split("/", 1)[1]: row["group"] for row in data["networks"]}
    assert groups["sweep/target_25"] == groups["sweep/target_50"] != groups["quick/served"]
    assert served["predicted_ms"] == pytest.approx(table.total(FOUND), abs=1e-4)
    assert served["measured_ms"] == pytest.approx(1.02 * FACTOR * table.total(FOUND), abs=1e-3)
    assert (served["top1"], served["predicted"], served["tested"]) == (90.0, 89.5, 91.25)
    assert served["answered"] == 75.0
    assert re.fullmatch(
        r"python export.py --ckpt_file \S+/target_1.5/inherited.ckpt "
        r"--file_name \S+/target_1.5/spnas",
        served["command"],
    )
    # By layer it is the same sum.
    for row, cost in ((served, table.total(FOUND)), (networks["evaluated 1"], None)):
        layers = data["layers"][row["layers"]]
        choices = zip(layers["options"], row["choices"].split(), strict=True)
        own = layers["rest"] + sum(options[choice]["cost"] for options, choice in choices)
        assert layers["unit"] == "ms" and own == pytest.approx(cost or table.total(SMALLEST))
    assert networks["searched"]["cost"] == pytest.approx(
        arithmetic_table(SPACE, "macs", 10).total(SMALLEST), abs=1e-4
    )
    assert "command" not in networks["searched"]  # its weights are not there


def test_the_history_holds_the_decisions_of_each_step(written):
    spec = read_data(written)["charts"]["history-1"]  # after that of the one-shot search
    rows = spec["datasets"]["intervals"]
    for step, decisions in ((1, LARGEST), (10, LARGEST), (11, FOUND), (STEPS, SMALLEST)):
        shown = {row["layer"]: row["choice"] for row in rows if row["from"] <= step < row["until"]}
        assert [shown[layer] for layer in sorted(shown)] == list(decisions)
    (slider,) = [param for param in spec["params"] if param["name"] == "step"]
    assert (slider["value"], slider["bind"]["max"], slider["bind"]["step"]) == (STEPS, STEPS, 1)


def test_tables_stand_beside_the_charts(written):
    charts = read_data(written)["charts"]
    written = re.sub(r"<script.*?</script>", "", written, flags=re.S)
    for text in ("within the limits", "served_3.0", "most often taken for", "cat", "every network"):
        assert text in written, text
    assert {"networks-0", "networks-1", "layers-ms", "curves", "history-0"} < set(charts)
    assert {"table-0", "predictions", "classes-0", "runtimes-0"} < set(charts)
    assert all(spec["description"] for spec in charts.values())
    validation = r'<th scope="row">[^<]+</th><td>\d</td><td>\d\.\d{4}</td><td>\d+\.\d\d</td>'
    assert re.search(validation, written), "no validations"
    changes = re.findall(r'<th scope="row">\d</th><td>(K3E3|K5E6|SKIP)</td><td>\d+</td>', written)
    assert len(changes) > len(LARGEST) and '<th scope="row">3</th><td>1</td>' in written
    figures = re.findall(r'<figure data-chart="([^"]+)"', written)
    assert sorted(figures) == sorted(charts)


def test_a_one_shot_search_shows_its_paths(written):
    data = read_data(written)
    rows = data["charts"]["history-0"]["datasets"]["paths"]
    assert [(row["number"], row["generation"]) for row in rows] == [(1, 0), (2, 0), (3, 1)]
    assert [row["best"] for row in rows] == [60, 70, 70]
    (chosen,) = (row for row in data["networks"] if row["name"] == "best_path")
    second = [layer.names[1] for layer in PATHS.block_layers]
    cost = arithmetic_table(PATHS, "params", 10).total(second)
    assert chosen["cost"] == chosen["params"] == pytest.approx(cost, abs=1e-5)
    assert chosen["choices"] == " ".join(second) and "M parameters" in written


def test_runtimes_are_shown_with_the_advice(written):
    rows = read_data(written)["charts"]["runtimes-0"]["datasets"]["runtimes"]
    assert [(row["runtime"], row["median_ms"], row["p90_ms"]) for row in rows] == [
        ("Runtime A 1.0", 2.0, 2.2),
        ("Runtime B 2.0", 1.0, 1.1),
    ]
    for text in ("take with 1 thread Runtime B 2.0", "not installed", "100.00", "2.0"):
        assert text in written, text


def test_the_chart_of_predictions_agrees_with_the_verdict(written):
    record = latency_table().provenance["verification"]
    rows = read_data(written)["charts"]["predictions"]["datasets"]["networks"]
    errors = [row["error"] for row in rows if row["kind"] == "not fitted"]
    assert errors == pytest.approx([record["mean_error"]] * 2, abs=1e-3)
    assert f"predictions times {FACTOR:.3f}" in written


@pytest.mark.parametrize(
    ("length", "most", "first", "count"), [(1, 5, 0, 1), (5, 5, 0, 5), (11, 5, 1, 4)]
)
def test_thinned_steps_are_even_and_end_with_the_last(length, most, first, count):
    kept = thin(length, most)
    assert (kept[0], kept[-1], len(kept)) == (first, length - 1, count)


def test_text_of_runs_cannot_leave_its_place(tmp_path):
    write_training(tmp_path / "<b>run", name="</script><script>alert(1)")
    found = find([str(tmp_path / "<b>run")])
    text = page.create_page(build_runs(found), found)
    assert "<b>" not in text and "<script>alert" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize(
    "name, state",
    [("cifar10", ""), ("imagenet_mini", ""), ("one_shot", "10 of 600 epochs so far: stopped")],
)
def test_committed_results_make_a_page(name, state):
    found = find([str(ROOT / "docs/results" / name)])
    (run,) = build_runs(found)
    assert run.state.split(",")[0] == state
    assert "curves" in read_data(page.create_page([run], found))["charts"]


@pytest.mark.parametrize("cost, measured", [("ms", 5), ("macs", 0)])
def test_the_committed_fronts_make_a_page(cost, measured):
    front = ROOT / "docs/results/train_once" / f"front_{cost}"
    (run,) = build_runs(find([str(front)]))
    assert len(run.networks) == (5 if cost == "ms" else 10)
    assert all(network.layers and network.tested for network in run.networks)
    assert sum(network.measured_ms is not None for network in run.networks) == measured
    assert sum(network.predicted_ms is not None for network in run.networks) == measured


def test_accuracies_and_shipped_tables_make_a_page(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = [str(ROOT / "docs/results/train_once/labels.jsonl"), "epyc_1thread_32"]
    with pytest.raises(UserError, match="latency table of space 'imagenet_32', the runs are of"):
        build_runs(find(names))
    every = find(
        [str(ROOT / f"docs/results/train_once/{name}.jsonl") for name in ("main", "seed1")]
    )
    assert len(page.create_page(build_runs(every), every).encode()) < page.LARGEST
    (run,) = build_runs(find(names[:1]))
    assert len(run.networks) == 100 and all(network.layers for network in run.networks)
    assert main(["pixel1", "epyc_1thread"]) == 0
    assert (tmp_path / "report.html").is_file()


def test_networks_are_counted_for_the_images_of_their_run(tmp_path):
    arch = SPACE.derive(FOUND, "own")
    config = {"dataset_name": "folder", "data_path": "images", "num_classes": None}
    run = write_training(tmp_path / "own", **config, image_height=64, image_width=64)
    write_json(run / "ckpt_0/arch.json", arch.to_dict())
    write_json(run / "ckpt_0/classes.json", {"classes": ["a", "b"], "train": [5, 5], "val": None})
    (found,) = build_runs(find([str(run)]))
    (network,) = found.networks
    cost = network_cost(arch, 2, (64, 64))
    assert (network.params, network.macs) == (cost.params / 1e6, cost.macs / 1e6)
    assert network.top1 == 80 and str(found.images) == "folder images (2 classes)"
    # By layer it is the same sum.
    own = zip(network.layers.options, network.choices, strict=True)
    by_layer = sum(options[choice]["cost"] for options, choice in own)
    assert network.layers.rest + by_layer == pytest.approx(network.macs)


def test_a_training_is_known_by_its_best_checkpoint_a_search_by_its_last(tmp_path):
    training = write_training(tmp_path / "training")
    write_json(training / "ckpt_0/arch.json", SPACE.derive(FOUND, "own").to_dict())
    runs = [training, write_search(tmp_path / "search")]
    for run in runs:
        lines = [{"progress": 1, "top1": 85.0}, {"progress": 3, "top1": 75.0}]
        metrics = [{"kind": "val", "loss": float("nan"), **line} for line in lines]
        write_jsonl(run / "ckpt_0/metrics.jsonl", metrics)
    found = find([str(run) for run in runs])
    best, last = build_runs(found)
    assert (best.networks[0].top1, last.networks[0].top1) == (85, 75)
    # A loss that is not a number is no point of a curve.
    data = read_data(page.create_page([best, last], found))
    curves = data["charts"]["curves"]["datasets"]["curves"]
    assert len(curves) == 4 and all("top1" in row and "loss" not in row for row in curves)


def test_only_the_table_that_a_run_names_predicts_its_milliseconds(tmp_path):
    served = write_served(tmp_path / "quick") / "served"
    table = replace(latency_table(), name="other")
    file = tmp_path / "other.json"
    # The order of a file is not that of the space.
    layers = dict(reversed(table.layers.items()))
    write_table(file, replace(table, layers=layers))
    for name in ("quick/table.json", "other.json"):
        (run,) = build_runs(find([str(served), str(tmp_path / name)]))
        own = name == "quick/table.json"
        assert [network.predicted_ms is not None for network in run.networks] == [own] * len(
            run.networks
        )
        assert run.layers.unit == ("ms" if own else "million multiply-adds")
    # A run that says what its table held has the table of these costs, whatever its name.
    settings = json.loads((served / "serve.json").read_text())
    write_json(served / "serve.json", {**settings, "costs": table.digest()})
    changed = tmp_path / "changed/table.json"
    changed.parent.mkdir()
    write_table(changed, replace(latency_table(), constant=9.0))
    for name, own in ((file, True), (changed, False)):
        (run,) = build_runs(find([str(served), str(name)]))
        assert all((network.predicted_ms is not None) == own for network in run.networks)
    search = write_search(tmp_path / "search")
    (run,) = build_runs(find([str(search), str(file)]))
    assert run.networks[0].predicted_ms == pytest.approx(table.total(SMALLEST))
    macs = arithmetic_table(SPACE, "macs", 10)
    write_table(tmp_path / "macs.json", macs)
    found = find([str(search), str(tmp_path / "macs.json")])
    (run,) = build_runs(found)
    assert run.networks[0].predicted_ms is None
    assert "million multiply-adds by layer and choice" in page.create_page([run], found)
    write_table(file, replace(table, layers={"layer0": table.layers["layer0"]}))
    with pytest.raises(UserError, match="other.json: layer 'layer1' is missing"):
        find([str(search), str(file)])
    write_table(file, replace(table, space="own", layers={"conv1": {"K3E3": 1.0}}))
    with pytest.raises(UserError, match="other.json: its layers should be layer1, layer2"):
        find([str(file)])


def test_a_table_in_the_folder_of_the_run_is_not_given_twice(capsys):
    folder = ROOT / "docs/results/train_once/front_ms"
    assert served_networks.main([str(folder), str(folder / "table.json")]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 5 and not any(" - " in row for row in rows)


def test_runs_have_different_names_and_are_shown_once(tmp_path, monkeypatch):
    for name in ("x/s", "s", "test", "test/val"):
        write_training(tmp_path / name)
    (tmp_path / "again").symlink_to("s")
    monkeypatch.chdir(tmp_path)
    here = tmp_path.name
    assert find(["x/s", "s"]).labels == ["s", f"{here}/s"]
    # Images of a run may be in its folder, but a run may be named so too.
    assert find(["s", "."]).labels == ["s", f"{here}/test", f"{here}/x/s"]
    for names in (["x", "x/s"], ["s", "s/ckpt_0"], ["s", "again"]):
        with pytest.raises(UserError, match=f"{names[1]}: is given twice"):
            find(names)


def test_runs_that_are_not_finished_say_so(tmp_path, caplog):
    write_training(tmp_path / "training", epochs=2)
    served = write_served(tmp_path / "quick") / "served"
    (served / "front.json").unlink()
    (served / "serve.json").write_text('{"cost": "macs", "evaluations": 10}')
    found = write_search(tmp_path / "search")
    (found / "arch.json").unlink()
    with open(found / "history.jsonl", "a") as file:
        file.write('{"epoch": 0, "st')
    assert main([str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    for message in (
        "training: 2 of 3 epochs so far",
        "served: 3 of 10 networks evaluated so far",
        "search: no arch.json yet",
    ):
        assert message in caplog.text


def test_a_search_without_its_page_has_succeeded_all_the_same(runs, tmp_path, caplog):
    config = ServeConfig(checkpoint_path=str(tmp_path))
    assert search.show(config, depth=0) == 0
    assert "no page: " in caplog.text and not (tmp_path / "report.html").exists()
    served = write_served(tmp_path / "quick") / "served"
    write_search(served / "other", dataset_name="cifar10")  # lies there by chance
    assert search.show(ServeConfig(checkpoint_path=str(served)), depth=0) == 0
    names = [row["run"] for row in read_data((served / "report.html").read_text())["networks"]]
    assert set(names) == {"served"}


def test_mistakes_are_told_in_one_line(runs, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    started = write_training(tmp_path / "started", epochs=0)
    other = write_training(tmp_path / "other", dataset_name="cifar10")
    served = write_served(tmp_path / "cifar10") / "served"
    cifar10 = {**DIGITS, "dataset_name": "cifar10"}
    write_json(served / "serve.json", {"cost": "latency", "images": cifar10})
    header = {"format": "spnas-subnets", "version": 1, "space": SPACE.name, "images": cifar10}
    line = {"decisions": FOUND, "macs": 50.0, "top1": 90.0}
    write_jsonl(tmp_path / "subnets.jsonl", [header, line])
    write_jsonl(tmp_path / "of_any.name", [header, line])
    newer = tmp_path / "newer/subnets.jsonl"
    newer.parent.mkdir()
    write_jsonl(newer, [{**header, "version": 9}, line])
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary/subnets.jsonl").write_bytes(bytes(range(256)))
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers/subnets.jsonl").write_text("42\n")
    classes = {**DIGITS, "num_classes": 7}
    fewer = write_one_shot(tmp_path / "fewer")
    write_json(fewer / "search.json", {"cost": "params", "images": classes})
    null = write_search(tmp_path / "null")
    write_json(null / "ckpt_0/eval.json", None)
    odd = write_search(tmp_path / "odd")
    (odd / "history.jsonl").write_text('{"epoch": 0, "step": 1, "cost": "high"}\n')
    mine, out = str(runs / "search"), str(tmp_path / "report.html")
    for names, message in (
        ([], "RUN"),
        ([tmp_path / "none"], "no such folder or file"),
        ([tmp_path / "empty"], "holds no run, none of metrics.jsonl"),
        ([started], "a run that has no result yet; try again"),
        ([mine, mine], "search: is given twice"),
        ([mine, other], "is of digits, .*other of cifar10: accuracies of different images"),
        ([mine, served], "is of digits, .*served of cifar10 .10 classes."),
        ([runs / "quick/served", fewer], "digits .10 classes., .*fewer of digits .7 classes."),
        ([mine, tmp_path / "subnets.jsonl"], "subnets.jsonl of cifar10 .10 classes."),
        ([mine, tmp_path / "of_any.name"], "of_any.name of cifar10 .10 classes."),
        ([newer], "subnets.jsonl: version 9, this program reads 1"),
        ([tmp_path / "binary"], "subnets.jsonl: not readable as lines of JSON"),
        ([tmp_path / "numbers"], "subnets.jsonl: should hold a JSON object on each line"),
        ([null], "null/ckpt_0/eval.json: holds NoneType, should hold keys and values"),
        ([mine, "pixel1"], "pixel1.json: a latency table of space 'imagenet', the runs are of"),
        ([odd], "odd/history.jsonl: .*cross_entropy"),
        ([ROOT / "README.md"], "should be the folder of a run, a latency table"),
    ):
        with pytest.raises(UserError, match=message) as error:
            main([*map(str, names), "--out", out])
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="out is 'page.pdf', should be a file that ends in .html"):
        main([mine, "--out", "page.pdf"])
    monkeypatch.setattr(page, "LARGEST", 1000)
    with pytest.raises(UserError, match="1 runs and 0 tables make a page of .* MB, at most"):
        main([mine, "--out", out])
    assert not (tmp_path / "report.html").exists()
