"""The page of runs: what it holds, and what it says of folders that do not make one."""

from __future__ import annotations

import json
import re

import pytest

import search
from scripts.report import main
from src.arch.cost_table import arithmetic_table
from src.config import ServeConfig
from src.errors import UserError
from src.report import page
from src.report.charts import thin
from src.report.folders import find
from src.report.runs import build_runs
from tests.conftest import ROOT
from tests.report.conftest import (
    FOUND,
    LARGEST,
    SMALLEST,
    SPACE,
    STEPS,
    latency_table,
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


def test_the_page_is_one_small_file_that_loads_nothing(written):
    assert len(written.encode()) < 2_000_000
    own = re.sub(r"<script>.*?</script>", "", written, flags=re.S)
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import|https?:(?!//vega)", own)
    assert "$schema" in own and "vegaEmbed" in written


def test_networks_have_their_costs_measurements_and_command(written):
    data, table = read_data(written), latency_table()
    networks = {row["name"]: row for row in data["networks"]}
    assert len(data["networks"]) == 2 + 3 + 3
    groups = {row["run"].split("/", 1)[1]: row["group"] for row in data["networks"]}
    assert groups["sweep/target_25"] == groups["sweep/target_50"] != groups["quick/served"]
    served = networks["served_1.5"]
    assert served["predicted_ms"] == pytest.approx(table.total(FOUND), abs=1e-4)
    assert served["measured_ms"] == pytest.approx(1.02 * table.total(FOUND), abs=1e-3)
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
    spec = read_data(written)["charts"]["history-0"]
    rows = spec["datasets"]["intervals"]
    for step, decisions in ((1, LARGEST), (10, LARGEST), (11, FOUND), (STEPS, SMALLEST)):
        shown = {row["layer"]: row["choice"] for row in rows if row["from"] <= step < row["until"]}
        assert [shown[layer] for layer in sorted(shown)] == list(decisions)
    (slider,) = [param for param in spec["params"] if param["name"] == "step"]
    assert (slider["value"], slider["bind"]["max"], slider["bind"]["step"]) == (STEPS, STEPS, 1)


def test_tables_stand_beside_the_charts(written):
    for text in ("within the limits", "served_3.0", "most often taken for", "cat", "every network"):
        assert text in written, text
    charts = read_data(written)["charts"]
    assert {"networks-0", "networks-1", "layers-ms", "curves", "history-0"} < set(charts)
    assert {"table-0", "predictions", "classes-0"} < set(charts)
    assert all(spec["description"] for spec in charts.values())
    figures = re.findall(r'<figure data-chart="([^"]+)"', written)
    assert sorted(figures) == sorted(charts)


@pytest.mark.parametrize(
    ("length", "most", "first", "count"), [(1, 5, 0, 1), (5, 5, 0, 5), (11, 5, 1, 4)]
)
def test_thinned_steps_are_even_and_end_with_the_last(length, most, first, count):
    kept = thin(length, most)
    assert (kept[0], kept[-1], len(kept)) == (first, length - 1, count)


def test_text_of_runs_cannot_leave_its_place(tmp_path):
    write_training(tmp_path / "<b>run", name="</script><script>alert(1)")
    found = find([str(tmp_path / "<b>run")])
    text = page.create_page(build_runs(found), {})
    assert "<b>" not in text and "<script>alert" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize("name", ["cifar10", "imagenet_mini", "one_shot"])
def test_committed_results_make_a_page(name):
    (run,) = build_runs(find([str(ROOT / "docs/results" / name)]))
    assert not run.state and "curves" in read_data(page.create_page([run], {}))["charts"]


def test_accuracies_and_shipped_tables_make_a_page(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = [str(ROOT / "docs/results/train_once/labels.jsonl"), "epyc_1thread_32"]
    with pytest.raises(UserError, match="latency table of space 'imagenet_32', the runs are of"):
        build_runs(find(names))
    (run,) = build_runs(find(names[:1]))
    assert len(run.networks) == 100 and all(network.layers for network in run.networks)
    assert main(["pixel1", "epyc_1thread"]) == 0
    assert (tmp_path / "report.html").is_file()


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
        ([mine, "pixel1"], "pixel1.json: a latency table of space 'imagenet', the runs are of"),
        ([odd], "odd/history.jsonl: .*cross_entropy"),
        ([ROOT / "README.md"], "should be the folder of a run, a latency table"),
    ):
        with pytest.raises(UserError, match=message):
            main([*map(str, names), "--out", out])
    with pytest.raises(UserError, match="out is 'page.pdf', should be a file that ends in .html"):
        main([mine, "--out", "page.pdf"])
    monkeypatch.setattr(page, "LARGEST", 1000)
    with pytest.raises(UserError, match="1 runs and 0 tables make a page of .* MB, at most"):
        main([mine, "--out", out])
    assert not (tmp_path / "report.html").exists()
