"""Medians, their margins, the correction and the verdict, against NumPy and literal values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from src.latency.statistics import fit_correction, judge, machine_slowness, summarise, summarise_all


def test_summary_is_that_of_numpy_and_of_order_statistics():
    values = np.random.default_rng(0).permutation(np.arange(1.0, 10.0))
    summary = summarise(values)
    # Of 9 values the 2nd to the 8th hold the median with 96 %, the 3rd to the 7th with 82 %.
    assert summary.median_ms == np.median(values) == 5 and summary.margin == pytest.approx(
        (8 - 2) / 2 / 5
    )
    assert summary.spread == pytest.approx((7 - 3) / 5) and summary.outliers == 0
    # With two more at the ends the quartiles are 2.5 and 7.5, and three times their distance 15.
    assert summarise(np.append(values, [22.6, -12.6])).outliers == 2
    assert summarise(np.append(values, [22.4, -12.4])).outliers == 0
    assert summarise(values[:5]).margin == np.inf
    assert summarise(values[:5]).to_dict()["margin"] is None  # JSON has no infinity
    random = np.random.default_rng(1)
    hits = [
        abs(np.median(x) - 1) <= summarise(x).margin * np.median(x) * 1.5
        for x in random.lognormal(0, 0.1, (300, 101))
    ]
    assert np.mean(hits) > 0.9  # the interval is not quite symmetric about the median


def test_bursts_of_a_busy_machine_do_not_move_medians():
    random, true = np.random.default_rng(0), np.linspace(1, 3, 8)
    models = np.concatenate([random.permutation(8) for _ in range(200)])
    busy = np.repeat(
        np.arange(20) % 2 == 0, 80
    )  # half of the time, so that a plain median lies anywhere in between
    samples = true[models] * np.where(busy, 1.5, 1.0) * random.lognormal(0, 0.02, 1600)
    slowness = machine_slowness(models, samples)
    assert np.median(slowness[busy]) / np.median(slowness[~busy]) == pytest.approx(1.5, rel=0.02)
    summaries, noise = summarise_all(models, samples)
    raw = [summarise(samples[models == model]) for model in range(8)]
    assert np.ptp(np.log([summary.median_ms for summary in summaries] / true)) < 0.02
    assert (
        max(summary.margin for summary in summaries)
        < 0.01
        < 0.1
        < min(summary.margin for summary in raw)
    )
    assert noise == pytest.approx(0.4, abs=0.1)


def test_correction_is_the_least_squares_of_numpy_and_never_negative():
    random = np.random.default_rng(0)
    isolated = [list(random.uniform(0.2, 2, count)) for count in (3, 8, 5, 6, 7, 4)]
    weights = [list(random.uniform(0.01, 0.6, len(blocks))) for blocks in isolated]
    exact = [
        2
        + sum(
            1.1 * block + 0.3 * millions - 0.05 for block, millions in zip(blocks, own, strict=True)
        )
        for blocks, own in zip(isolated, weights, strict=True)
    ]
    noisy = np.array(exact) * random.lognormal(0, 0.002, 6)
    columns = np.array(
        [
            (1, sum(blocks), sum(own), len(blocks))
            for blocks, own in zip(isolated, weights, strict=True)
        ]
    )
    expected = np.linalg.lstsq(columns / noisy[:, None], np.ones(6), rcond=None)[0]
    for whole, values in ((exact, (2, 1.1, 0.3, -0.05)), (noisy, expected)):
        found = fit_correction(isolated, weights, whole)
        assert (found.constant_ms, found.slope, found.weight_ms, found.offset_ms) == pytest.approx(
            tuple(values), rel=1e-6
        )
    steep = fit_correction(
        isolated, weights, [max(0.1, 3 * sum(blocks) - 2 * len(blocks)) for blocks in isolated]
    )
    assert steep.constant_ms >= 0
    pairs = zip(itertools.chain(*isolated), itertools.chain(*weights), strict=True)
    assert min(steep.entry(block, own) for block, own in pairs) >= 0


def test_verdict_counts_pairs_and_errors():
    predicted, measured = [1.1, 2.0, 2.9, 4.4], [1.0, 2.0, 3.0, 2.5]
    verdict = judge(predicted, measured)
    pairs = list(itertools.combinations(range(4), 2))
    agree = [np.sign((predicted[a] - predicted[b]) * (measured[a] - measured[b])) for a, b in pairs]
    assert verdict.kendall_tau == round(np.mean(agree), 4)
    errors = np.array(predicted) - measured
    assert verdict.rmse == round(np.sqrt(np.mean(errors**2)) / np.mean(measured), 4)
    assert verdict.mean_error == round(np.mean(errors / measured), 4) and verdict.worst == 0.76
    assert not verdict.passed and judge([1, 2, 3.1], [1, 2, 3]).passed
    # A machine that has become slower is no error of the table.
    slower = judge(predicted, [1.17 * value for value in measured], machine_factor=1.17)
    assert slower.rmse == verdict.rmse and slower.machine_factor == 1.17
    assert not judge([1, 2, 3], [1.2, 2.4, 3.6]).passed
    assert judge([2, 2, 2], [1, 2, 3]).kendall_tau == 0  # no order at all
