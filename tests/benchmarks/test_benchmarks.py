"""What benchmarks compute from their measurements, and that contenders wait without computing."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import contenders, serve, subnet_step
from benchmarks.step_bounds import step_work, total_work
from benchmarks.step_profile import Call, report, split_steps, step_passes
from benchmarks.subnet_step import sandwich_cost, small_choices
from src.arch.cost import network_cost
from src.arch.cost_table import arithmetic_table
from src.arch.space import load_space
from src.errors import EXIT_USER, UserError
from src.files import write_json
from src.kernels import available
from tests.conftest import TINY

# A worker that spins whenever it runs. Its piece of work takes the given milliseconds.
SPINNING = """
import threading, time
from benchmarks.contenders import work

def spin():
    while True:
        pass

def step():
    time.sleep({milliseconds} / 1000)
    return 0.0

threading.Thread(target=spin, daemon=True).start()
work(lambda: step)
"""


def spinning(milliseconds: int) -> list[str]:
    return [sys.executable, "-c", SPINNING.format(milliseconds=milliseconds)]


def cpu_ticks(process: int) -> int:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])  # of user and system; proc(5) counts from 3 here


def test_a_contender_computes_only_in_its_turn():
    contender = contenders.Contender("spinning", spinning(1))
    try:
        contender.read()
        contender.step()
        before = cpu_ticks(contender.process.pid)
        time.sleep(0.3)
        assert cpu_ticks(contender.process.pid) == before
        contender.step()
        assert contender.finish() > 0 and len(contender.seconds) == 2
    finally:
        contender.kill()


def test_ratios_are_those_to_the_faster_setting(capsys, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # which is for no contender but its own
    names = {"mine": "mine", "torch": "slow setting", "torch_passive": "fast setting"}
    seconds = {"mine": [0.04, 0.02], "slow setting": [0.3, 0.3], "fast setting": [0.1, 0.2]}
    assert contenders.environment_of("torch_passive") == {"OMP_WAIT_POLICY": "passive"}

    def step(contender):
        contender.take_turn()
        contender.seconds.append(seconds[contender.name][len(contender.seconds)])

    monkeypatch.setattr(contenders.Contender, "step", step)
    commands = {key: spinning(1) for key in names}
    bases = {"PyTorch": contenders.PYTORCH, "other": ["other"]}
    peaks = contenders.compare(commands, names, bases, rounds=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("/ PyTorch: to 'fast setting'")
    assert "/ PyTorch" in lines[1] and "/ other" not in lines[1]
    assert lines[2].endswith("0.25 (0.20)")  # of 0.4 and 0.1; 0.02 by 0.1
    assert set(peaks) == set(names)


def test_how_a_contender_failed_is_one_line(capsys):
    command = {"torch": [sys.executable, "-c", "raise SystemExit(3)"]}
    names = {"torch": "PyTorch"}
    assert contenders.run(lambda: contenders.compare(command, names, {}, 1)) == 1
    assert capsys.readouterr().err.endswith("PyTorch: ended with exit code 3\n")


def test_ratios_of_medians_and_of_least_times():
    assert contenders.ratio([1.0, 2.0, 6.0], [2.0, 8.0, 4.0]) == "0.50 (0.50)"
    assert contenders.ratio([3.0, 2.0, 2.0], [2.0, 8.0, 4.0]) == "0.50 (1.00)"


def test_work_of_a_step_is_that_of_the_counted_network():
    layers = step_work(TINY, 4, 32)
    costs = network_cost(TINY, 10)
    # The stem has no gradient of its input.
    assert total_work(layers).macs == 4 * 3 * costs.macs - layers[0].forward.macs
    assert [layer.layer for layer in layers] == [
        "stem", "blocks.0", "blocks.1", "blocks.2", "head", "classifier"
    ]  # fmt: skip
    block = layers[2]  # 5x5, stride 2, expansion 3, 8 -> 16 channels, 16x16 -> 8x8
    x, y, z = 4 * 8 * 256, 4 * 16 * 64, 4 * 24 * 64
    assert (block.inputs, block.outputs) == ((4, 16, 16, 8), (4, 8, 8, 16))
    assert block.forward.floats == x + z + 2 * y
    assert block.backward.floats == 2 * x + 3 * z + 2 * y


def recorded(seconds: float = 0.001, steps: int = 3) -> list[Call]:
    """What operators of one call per layer would record: the forward pass takes half as long."""
    passes = step_passes(step_work(TINY, 4, 32))
    step = [
        Call(
            ("Forward", "Backward")[item.name.endswith("backward")],
            seconds * (1 + item.name.endswith("backward")),
            item.shapes[index % 2],
        )
        for index, item in enumerate(passes)
    ]
    return step * steps


def test_a_profile_adds_up(capsys):
    layers = step_work(TINY, 4, 32)
    report(layers, recorded(), [0.020, 0.030], rates=(1e9, 1e12))
    out = capsys.readouterr().out
    rows = {
        tuple(words[: -9 if len(words) > 5 else -3]): words
        for words in map(str.split, out.splitlines())
        if words
    }
    assert rows["Forward",][1:4] == ["5", "5.00", "20.0%"]
    assert rows["Backward",][1:4] == ["5", "10.00", "40.0%"]
    assert rows["all", "operators"][2:5] == ["10", "15.00", "60.0%"]
    assert rows["the", "rest"][2:] == ["0", "10.00", "40.0%"]
    macs = layers[2].forward.macs / 1e6  # milliseconds at 1e9 per second
    *_, bound, times = rows["blocks.1", "forward"]
    assert float(bound) == pytest.approx(macs, abs=0.01)
    assert float(times) == pytest.approx(1 / macs, rel=0.01)


def test_calls_that_do_not_fit_are_refused():
    passes = step_passes(step_work(TINY, 4, 32))
    calls = recorded()
    assert [len(step) for step in split_steps(calls, passes, 3)] == [10] * 3
    with pytest.raises(UserError, match="recorded 0 calls in 3 steps, should be 10 per step"):
        split_steps([], passes, 3)
    wrong = [calls[0], calls[1]._replace(shape=(1, 2)), *calls[2:]]
    with pytest.raises(UserError, match=r"Forward recorded shape \(1, 2\).* of blocks.0 forward"):
        split_steps(wrong, passes, 3)


def test_a_sandwich_is_the_ends_and_two_networks_uniform_in_cost():
    space = load_space("nas_bench_macro")
    assert small_choices(space) == ("K3E3",) * 8
    low, high = arithmetic_table(space, "macs", 10).range()
    # The mean of two uniform costs is that of the ends.
    assert sandwich_cost(space, 32) == pytest.approx(2 * (low + high) / high, abs=0.06)


@pytest.fixture
def tiny_space(tmp_path) -> Path:
    """The file of a space of two layers."""
    space = {
        "format": "spnas-space",
        "version": 1,
        "name": "tiny",
        "image_size": 16,
        "stem_channels": 8,
        "stem_stride": 2,
        "layers": [
            {
                "stride": stride,
                "in_channels": 8,
                "out_channels": 8,
                "kernel_sizes": [3, 5],
                "expansions": [3, 6],
                "skippable": stride == 1,
            }
            for stride in (2, 1)
        ],
        "head_channels": 32,
        "bn_epsilon": 1e-5,
        "provenance": {},
    }
    write_json(tmp_path / "tiny.json", space)
    return tmp_path / "tiny.json"


@pytest.mark.parametrize("worker", subnet_step.WORKERS)
def test_every_contender_trains(worker, tiny_space):
    if not available():
        pytest.skip("the CPU operators cannot be had here")
    step = subnet_step.create(worker, str(tiny_space), 4, 16)
    results = [step() for _ in range(3)]
    assert np.isfinite(results).all() and len(set(results)) == 3


def test_a_space_without_subnets_is_refused(capsys):
    assert subnet_step.main(["--space", "one_shot_32"]) == EXIT_USER
    assert "benchmarks/one_shot_step.py measures it" in capsys.readouterr().err


def test_networks_of_a_supernet_are_evaluated_on_all_images(tiny_space, capsys):
    batches = serve.NoiseBatches(5, batch_size=2, image_size=16)
    assert [(images.shape, len(labels)) for images, labels in batches.epoch()] == [
        ((2, 3, 16, 16), 2), ((2, 3, 16, 16), 2), ((1, 3, 16, 16), 1)
    ]  # fmt: skip
    evaluated = itertools.islice(serve.evaluations(load_space(tiny_space), 4, 5), 6)
    _, results = zip(*evaluated, strict=True)
    assert {result.images for result in results} == {5}
    assert len({result.loss for result in results}) > 2  # of different networks

    flags = "--calibration_images", "4", "--val_images", "5", "--networks", "2"
    assert serve.main(["--space", str(tiny_space), *flags]) == 0
    title, columns, first, others = capsys.readouterr().out.splitlines()
    assert title.endswith("16x16, seconds of a network: statistics of 4 images, accuracy on 5")
    assert columns.split() == ["median", "least", "most"]
    assert first.startswith("first, compiles") and others.startswith("2 others")
    assert all(float(second) >= 0 for second in others.split()[2:])
