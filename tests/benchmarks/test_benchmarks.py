"""What benchmarks compute from their measurements, and that contenders wait without computing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import contenders
from benchmarks.step_bounds import step_work, total_work
from benchmarks.step_profile import Call, report, split_steps, step_passes
from benchmarks.subnet_step import decisions_of, draw, multiply_adds, smallest
from src.arch.architecture import load_architecture
from src.arch.cost import network_cost
from src.errors import UserError
from tests.conftest import TINY

# A worker that spins whenever it runs. Its piece of work takes the given milliseconds, half as many
# with passive threads.
SPINNING = """
import os, threading, time
from benchmarks.contenders import work

def spin():
    while True:
        pass

def step():
    passive = os.environ.get("OMP_WAIT_POLICY") == "passive"
    time.sleep({milliseconds} / (2000 if passive else 1000))
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
        contender.answer()
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
    commands = {"mine": spinning(30), "torch": spinning(300), "torch_passive": spinning(300)}
    bases = {"PyTorch": contenders.PYTORCH, "other": ["other"]}
    peaks = contenders.compare(commands, names, bases, rounds=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("/ PyTorch: to 'fast setting'")
    assert "/ PyTorch" in lines[1] and "/ other" not in lines[1]
    ratio, least = lines[2].replace("(", "").replace(")", "").split()[-2:]
    assert 0.15 < float(least) < 0.3 and 0.1 < float(ratio) < 0.6
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


def test_subnets_are_those_of_the_published_space():
    arch = load_architecture("nas_bench_macro_largest")
    k3e3, everything = np.ones(8, int), np.full(8, 2)
    costs = [multiply_adds(arch, choices) for choices in (smallest(arch), k3e3, everything)]
    assert costs == [20_683_264, 53_246_464, 105_660_928]  # Su et al., arXiv 2103.11922
    choices = np.array([2, 0, 1, 2, 0, 1, 0, 2])
    rows = decisions_of(arch, choices).tolist()
    assert rows[:3] == [[5, 192, 1], [5, 384, 0], [3, 192, 1]]
    drawn = [draw(arch, np.random.default_rng(seed)) for seed in range(60)]
    assert all((choices >= smallest(arch)).all() for choices in drawn)
    shares = np.array([multiply_adds(arch, choices) for choices in drawn]) / costs[-1]
    # Uniform in cost: uniform choices would leave hardly any below a third and above two thirds.
    assert (shares < 0.4).sum() > 8 and (shares > 0.8).sum() > 8
