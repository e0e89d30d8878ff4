"""Run folders as programs leave them, in the files' own formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from src.arch.cost import ArithmeticCost, network_cost
from src.arch.cost_table import CostTable, arithmetic_table, write_table
from src.arch.space import SKIP, load_space
from src.files import write_json, write_jsonl
from src.latency.runtimes import COMPARISON_FORMAT, COMPARISON_VERSION
from src.latency.statistics import judge

DIGITS = {"dataset_name": "digits", "num_classes": 10, "image_size": [32, 32]}
FACTOR = 1.1  # machine's speed at the verification of the table
SPACE = load_space("nas_bench_macro")
LARGEST = list(SPACE.largest_choices)
FOUND = ["K5E6", "K3E3", "K5E6", "K5E6", SKIP, "K3E3", SKIP, SKIP]
SMALLEST = list(SPACE.smallest_choices)
STEPS = 30
PATHS = load_space("one_shot_32")


def latency_table() -> CostTable:
    """Milliseconds, with a verification of two networks."""
    macs = arithmetic_table(SPACE, "macs", 10)
    layers = {
        layer: {choice: round(cost / 40, 5) for choice, cost in entries.items()}
        for layer, entries in macs.layers.items()
    }
    own = {"unit": "ms", "device": "test", "runtime": "test 1.0", "constant": 0.2}
    table = replace(macs, name="table", layers=layers, **own)
    predicted = [table.total(decisions) for decisions in (FOUND, LARGEST)]
    measured = [1.02 * FACTOR * ms for ms in predicted]
    names = zip(("found", "largest"), (FOUND, LARGEST), measured, strict=True)
    record = {
        **judge(predicted, measured, FACTOR).to_dict(),
        "measured": {
            name: {"decisions": " ".join(decisions), "median_ms": round(ms, 5)}
            for name, decisions, ms in names
        },
    }
    return replace(table, provenance={"source": "tests", "verification": record})


def write_training(folder: Path, epochs: int = 3, **config: object) -> Path:
    """Metrics and configuration of a training of three epochs."""
    own = folder / "ckpt_0"
    own.mkdir(parents=True)
    settings = {"dataset_name": "digits", "epoch_size": 3, "seed": 1, **config}
    (own / "config.yaml").write_text(yaml.safe_dump(settings))
    write_json(own / "environment.json", {"mindspore": "2.8.0", "commit": "0000000"})
    lines = []
    for epoch in range(epochs):
        progress = epoch + 1
        shared = {"epoch": progress, "step": 0, "progress": progress, "top1": 60 + 10 * epoch}
        lines.append({"kind": "train", **shared, "loss": 2 / progress})
        lines.append({"kind": "val", **shared, "loss": 1 / progress, "top1_smallest": 50.0})
        lines[-1]["top1_largest"] = 90.0
    write_jsonl(own / "metrics.jsonl", lines)
    return folder


def write_search(folder: Path, **config: object) -> Path:
    """A superkernel search that skips more and more layers."""
    write_training(folder, **config)
    table = arithmetic_table(SPACE, "macs", 10)
    write_json(folder / "ckpt_0/space.json", SPACE.to_dict())
    write_json(folder / "ckpt_0/latency_table.json", table.to_dict())
    history = []
    for step in range(1, STEPS + 1):
        decisions = LARGEST if step <= 10 else FOUND if step <= 20 else SMALLEST
        own = {"epoch": 0, "step": step, "loss": 1.0, "cross_entropy": 2 / step}
        history.append({**own, "cost": table.total(decisions), "decisions": list(decisions)})
    write_jsonl(folder / "history.jsonl", history)
    cost = table.total(SMALLEST)
    facts = {"cost": cost, "unit": table.unit, "table": "macs", "target": 25.0}
    write_json(folder / "arch.json", SPACE.derive(SMALLEST, "searched", facts).to_dict())
    return folder


def write_served(folder: Path) -> Path:
    """A supernet, a latency table, and two networks that were served by it."""
    write_training(folder, space=SPACE.name)
    write_json(folder / "ckpt_0/space.json", SPACE.to_dict())
    table = latency_table()
    write_table(folder / "table.json", table)
    served = folder / "served"
    rows = []
    for limit, decisions in ((1.5, FOUND), (3.0, LARGEST)):
        place = served / f"target_{limit}"
        place.mkdir(parents=True)
        facts = {"limit": limit, "cost": table.total(decisions), "unit": "ms", "top1": 90.0}
        arch = SPACE.derive(decisions, f"served_{limit}", facts)
        write_json(place / "arch.json", arch.to_dict())
        (place / "inherited.ckpt").touch()
        write_json(place / "eval.json", {"results": [{"top1": 91.25}], "bad_images": {}})
        (place / "acc.log").write_text("Total data: 4, top1 accuracy: 0.75000, top5 accuracy: 1.\n")
        cost = network_cost(arch, 10)
        rows.append(
            {
                **{"target": limit, "cost": facts["cost"], "top1": 90.0, "predicted": 89.5},
                **{"error": None, "macs": cost.macs / 1e6, "params": cost.params / 1e6},
                "arch": f"elsewhere/served/target_{limit}/arch.json",
            }
        )
    write_json(served / "front.json", {"unit": "ms", "networks": rows})
    settings = {"cost": "latency", "latency_table": "elsewhere/table.json", "dataset_name": None}
    write_json(served / "serve.json", {**settings, "images": DIGITS})
    header = {"format": "spnas-subnets", "version": 1, "space": SPACE.name}
    macs = arithmetic_table(SPACE, "macs", 10)
    lines = [
        {"decisions": decisions, "macs": macs.total(decisions), "top1": top1, "top5": 99.0}
        for decisions, top1 in ((SMALLEST, 80.0), (FOUND, 90.0), (LARGEST, 90.0))
    ]
    write_jsonl(served / "subnets.jsonl", [header, *lines])
    return folder


def write_one_shot(folder: Path, cost: ArithmeticCost = "params") -> Path:
    """A one-shot search by the number of parameters, in two generations."""
    folder.mkdir(parents=True)
    table = arithmetic_table(PATHS, cost, 10)
    write_json(folder / "space.json", PATHS.to_dict())
    settings = {"method": "one_shot", "cost": cost, "dataset_name": None, "images": DIGITS}
    write_json(folder / "search.json", settings)
    lines = []
    for number, choice in enumerate((0, 1, 2)):
        decisions = [layer.names[choice] for layer in PATHS.block_layers]
        own = {"path": [choice] * len(decisions), "generation": number // 2}
        top1 = (60.0, 70.0, 65.0)[number]
        lines.append({**own, "top1": top1, "cost": table.total(decisions)})
    write_jsonl(folder / "paths.jsonl", lines)
    best = [layer.names[1] for layer in PATHS.block_layers]
    facts = {"cost": table.total(best), "unit": table.unit, "top1": 70.0, "decisions": best}
    write_json(folder / "arch.json", PATHS.derive(best, "best_path", facts).to_dict())
    return folder


def write_runtimes(file: Path) -> Path:
    """What scripts/compare_runtimes.py writes."""
    shared = {"threads": 1, "spread": 0.05, "file_bytes": 2_000_000, "samples": 400}
    shared |= {"largest_difference": 1e-6, "agreement": 100.0, "top1": 90.0}
    outcomes = [
        {"runtime": "Runtime A 1.0", "precision": "float32", "median_ms": 2.0, "p90_ms": 2.2},
        {"runtime": "Runtime B 2.0", "precision": "int8", "median_ms": 1.0, "p90_ms": 1.1},
    ]
    record = {
        **{
            "format": COMPARISON_FORMAT,
            "version": COMPARISON_VERSION,
            "model": "net.onnx",
            "images": "val",
        },
        **{"image_count": 100, "batch_size": 1, "rounds": 200, "device": "test"},
        **{"date": "2026-01-01T00:00:00Z", "network_top1": 90.0},
        "runtimes": [{**shared, **own} for own in outcomes],
        "left_out": {"Runtime C, float32": "not installed"},
        "advice": "take with 1 thread Runtime B 2.0, int8, 1.00 ms",
    }
    write_json(file, record)
    return file


def write_classes(folder: Path) -> None:
    """What eval.py --per_class says of a run of two classes."""
    classes = [
        {"class": "cat", "images": 4, "top1": 75.0, "predicted": {"cat": 3, "dog": 1}},
        {"class": "dog", "images": 5, "top1": 100.0, "predicted": {"dog": 5}},
    ]
    write_json(folder / "ckpt_0/eval.json", {"results": [{"top1": 88.9, "per_class": classes}]})


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A quick start, searches and a comparison of runtimes, in one folder."""
    folder = tmp_path_factory.mktemp("runs")
    write_one_shot(folder / "paths")
    write_runtimes(folder / "runtimes.json")
    write_classes(write_served(folder / "quick"))
    for target in (25, 50):
        write_search(folder / f"sweep/target_{target}")
    return write_search(folder / "search").parent
