"""Schedules against literal values, the loss and the optimizers against NumPy."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.config import TrainConfig
from src.CrossEntropySmooth import CrossEntropySmooth
from src.kernels import available
from src.lr_scheduler import documented_lr, learning_rates
from src.training.evaluation import cross_entropy, label_ranks, predicted_classes
from src.training.optimizer import create_optimizer
from src.training.run import _rates
from src.training.step import LossScale, TrainStep, Update

RUN = {"base_lr": 1.0, "steps_per_epoch": 2}
needs_operators = pytest.mark.skipif(not available(), reason="no CPU operators here")


@pytest.mark.parametrize(
    "schedule, flags, expected",
    [
        ("constant", {"epoch_size": 2}, [1, 1, 1, 1]),
        ("cosine", {"epoch_size": 2}, [1, 0.8535534, 0.5, 0.1464466]),
        ("cosine", {"epoch_size": 2, "min_lr": 0.2}, [1, 0.8828427, 0.6, 0.3171573]),
        ("cosine", {"epoch_size": 2, "warmup_epochs": 1}, [1 / 3, 2 / 3, 0.5, 0.1464466]),
        (
            "step",
            {"epoch_size": 3, "milestones": (1, 2), "decay_rate": 0.1},
            [1, 1, 0.1, 0.1, 0.01, 0.01],
        ),
        (
            "exponential",
            {"epoch_size": 3, "decay_epochs": 1.5, "decay_rate": 0.5},
            [1, 1, 1, 0.5, 0.5, 0.5],
        ),
        (
            "one_cycle",
            {"epoch_size": 5},
            [0.04, 0.52, 1, 0.9504846, 0.8117456, 0.6112620, 0.3887420, 0.1882583, 0.0495194, 4e-6],
        ),
    ],
)
def test_schedule_values(schedule, flags, expected):
    rates = learning_rates(schedule, **RUN, **flags)
    assert rates.dtype == np.float32
    np.testing.assert_allclose(rates, expected, rtol=2e-6, atol=1e-7)


def test_the_flags_of_a_schedule_reach_it():
    flags = {
        "epoch_size": 3,
        "lr_gamma": 0.5,
        "lr_decay_epochs": 1.5,
        "lr_epochs": (1, 2),
        "eta_min": 0.2,
        "warmup_epochs": 1,
    }
    for schedule, expected in (
        ("exponential", [1 / 3, 2 / 3, 1, 0.5, 0.5, 0.5]),
        ("step", [1 / 3, 2 / 3, 0.5, 0.5, 0.25, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 0.8, 0.6, 0.4, 0.2535898]),
    ):
        rates = _rates(TrainConfig(lr_scheduler=schedule, **flags), 1.0, 2)
        np.testing.assert_allclose(rates, expected, rtol=2e-6, err_msg=schedule)


def test_documented_learning_rates():
    assert [documented_lr(devices) for devices in (1, 8)] == pytest.approx([0.26, 1.5])


@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_loss_and_gradient_equal_numpy(smooth):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 5)) * 3, np.array([0, 4, 2, 2, 1, 3])
    target = np.full((6, 5), smooth / 5)
    target[np.arange(6), labels] += 1 - smooth
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss, gradient = ms.value_and_grad(CrossEntropySmooth(smooth), 0)(
        Tensor(logits, ms.float32), Tensor(labels, ms.int32)
    )
    np.testing.assert_allclose(loss.asnumpy(), -(target * log_p).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        gradient.asnumpy(), (np.exp(log_p) - target) / 6, rtol=1e-4, atol=1e-6
    )
    if not smooth:
        np.testing.assert_allclose(cross_entropy(logits, labels).mean(), loss.asnumpy(), rtol=1e-5)


def test_ranks_break_ties_like_argmax_and_count_nan_as_wrong():
    logits = np.array([[1, 1, 0], [1, 1, 0], [0, 2, 5], [np.nan] * 3], np.float32)
    labels = np.array([0, 1, 0, 1])
    places = label_ranks(logits, labels)
    assert places.tolist() == [0, 1, 2, 3]
    # Only what counts as recognised is taken for its own class.
    assert predicted_classes(logits).tolist() == [0, 0, 2, 0]


class _Linear(nn.Cell):
    """Two parameters, one of which must not decay."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.w = Parameter(Tensor(weight, ms.float32), name="layer.weight")
        self.b = Parameter(Tensor(np.zeros(weight.shape[1]), ms.float32), name="layer.bias")

    def construct(self, x: Tensor) -> Tensor:
        return ms.ops.matmul(x, self.w) + self.b


class _NumpyStep:
    """The same training in float64: softmax regression, gradients treated as configured."""

    def __init__(self, weight: np.ndarray, config: TrainConfig, rates: np.ndarray) -> None:
        self.p = [weight.astype(np.float64), np.zeros(weight.shape[1])]
        self.decay = (config.weight_decay, 0.0)
        self.config, self.rates, self.step = config, rates, 0
        self.moment = [np.zeros_like(p) for p in self.p]
        self.square = [np.ones_like(p) for p in self.p]
        self.sums, self.count = [np.zeros_like(p) for p in self.p], 0
        self.ema = [p.copy() for p in self.p]

    def __call__(self, x: np.ndarray, labels: np.ndarray) -> None:
        c = self.config
        logits = x @ self.p[0] + self.p[1]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(labels)), labels] -= 1
        gradients = [x.T @ p / len(labels), p.mean(0)]
        self.sums = [s + g / c.accumulate_steps for s, g in zip(self.sums, gradients, strict=True)]
        self.count += 1
        if self.count < c.accumulate_steps:
            return
        gradients, self.sums, self.count = self.sums, [np.zeros_like(s) for s in self.sums], 0
        if c.clip_norm:
            norm = np.sqrt(sum((g**2).sum() for g in gradients))
            gradients = [g * min(1, c.clip_norm / norm) for g in gradients]
        rate = self.rates[self.step]
        self.step += 1
        for i, gradient in enumerate(gradients):
            gradient = gradient + self.decay[i] * self.p[i]
            if c.optimizer == "rmsprop":
                self.square[i] += (1 - c.rmsprop_decay) * (gradient**2 - self.square[i])
                self.moment[i] = c.momentum * self.moment[i] + rate * gradient / np.sqrt(
                    self.square[i] + c.rmsprop_epsilon
                )
                self.p[i] = self.p[i] - self.moment[i]
            else:
                self.moment[i] = c.momentum * self.moment[i] + gradient
                self.p[i] = self.p[i] - rate * self.moment[i]
        decay = min(c.ema_decay, (1 + self.step) / (10 + self.step))
        self.ema = [decay * e + (1 - decay) * p for e, p in zip(self.ema, self.p, strict=True)]


@pytest.mark.parametrize(
    "flags",
    [
        {"weight_decay": 0.1},
        {
            "optimizer": "rmsprop",
            "weight_decay": 0.1,
            "rmsprop_decay": 0.8,
            "momentum": 0.6,
            "rmsprop_epsilon": 0.01,
        },
        {"clip_norm": 0.05},
        {"clip_norm": 0.05, "mixed": True, "loss_scale": 128.0},
        {"accumulate_steps": 2, "clip_norm": 0.05, "ema_decay": 0.6},
        {"ema_decay": 0.3, "mixed": True},
        {"accumulate_steps": 3, "mixed": True, "loss_scale": 128.0},
        pytest.param({"weight_decay": 0.1, "kernels": True}, marks=needs_operators),
    ],
    ids=str,
)
def test_training_step_equals_numpy(flags):
    compare_with_numpy(flags)


@needs_operators
def test_step_of_the_operator_equals_numpy(graph_mode):
    """Compiled, since what reads weights that an operator changes has to come after it."""
    compare_with_numpy(
        {"accumulate_steps": 2, "clip_norm": 0.05, "ema_decay": 0.6, "kernels": True}
    )


def compare_with_numpy(flags) -> None:
    mixed, kernels = flags.get("mixed", False), flags.get("kernels", False)
    keys = {key: value for key, value in flags.items() if key not in ("mixed", "kernels")}
    config = TrainConfig(**keys)
    random = np.random.default_rng(0)
    weight, rates = (
        random.normal(size=(4, 3)).astype(np.float32),
        np.linspace(0.5, 0.1, 8).astype(np.float32),
    )
    network = _Linear(weight)
    optimizer = create_optimizer(network, config, rates, kernels=kernels)
    update = Update(network, optimizer, config, mixed_precision=mixed)
    step = TrainStep(network, CrossEntropySmooth(), update)
    reference = _NumpyStep(weight, config, rates)
    for _ in range(6):
        x, labels = (
            random.normal(size=(5, 4)).astype(np.float32),
            random.integers(0, 3, 5).astype(np.int32),
        )
        step(Tensor(x), Tensor(labels), Tensor(np.ones(1, np.float32)))
        reference(x, labels)
    close = {"rtol": 1e-4, "atol": 1e-5 if config.optimizer == "rmsprop" else 1e-6}
    np.testing.assert_allclose(network.w.asnumpy(), reference.p[0], **close)
    np.testing.assert_allclose(network.b.asnumpy(), reference.p[1], **close)
    if config.ema_decay:
        np.testing.assert_allclose(
            step.update.average[0].asnumpy(), reference.ema[0], rtol=1e-4, atol=1e-6
        )


class _UpdateOfUsed(nn.Cell):
    """The update of a step in which a part of the parameters of ``_Linear`` counts."""

    def __init__(self, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.update = update

    def construct(self, w: Tensor, b: Tensor, used_w: Tensor, used_b: Tensor) -> Tensor:
        return self.update((w, b), (used_w, used_b))


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=needs_operators)])
@pytest.mark.parametrize("name", ["momentum", "rmsprop"])
def test_what_is_not_used_is_left_alone(name, kernels, graph_mode):
    """Weights and state keep every bit there; elsewhere they follow the formulas."""
    config = TrainConfig(optimizer=name, weight_decay=0.1, clip_norm=2)
    random = np.random.default_rng(0)
    network = _Linear(random.normal(size=(4, 3)).astype(np.float32))
    optimizer = create_optimizer(network, config, np.full(3, 0.1, np.float32), kernels=kernels)
    step = _UpdateOfUsed(Update(network, optimizer, config, mixed_precision=False))
    prefixes = ("", "moments.") if name == "momentum" else ("", "mean_square.", "moment.")
    for _ in range(3):
        before = {p.name: p.asnumpy().copy() for p in optimizer.get_parameters()}
        gradients = [random.normal(size=shape).astype(np.float32) for shape in ((4, 3), (3,))]
        used = [random.integers(0, 2, shape).astype(np.float32) for shape in ((4, 1), (3,))]
        step(*map(Tensor, (*gradients, *used)))
        after = {p.name: p.asnumpy() for p in optimizer.get_parameters()}
        norm = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients))
        assert norm > config.clip_norm
        for part, gradient, own in zip(("weight", "bias"), gradients, used, strict=True):
            names = [f"{prefix}layer.{part}" for prefix in prefixes]
            weight, *state = (before[each].astype(np.float64) for each in names)
            gradient = gradient * config.clip_norm / norm + 0.1 * weight * (part == "weight")
            if name == "momentum":
                moment = 0.9 * state[0] + gradient
                expected = [weight - 0.1 * moment, moment]
            else:
                square = 0.9 * state[0] + 0.1 * gradient**2
                moment = 0.9 * state[1] + 0.1 * gradient / np.sqrt(square + config.rmsprop_epsilon)
                expected = [weight - moment, square, moment]
            counts = np.broadcast_to(own > 0, weight.shape)
            for each, value in zip(names, expected, strict=True):
                np.testing.assert_allclose(after[each][counts], value[counts], rtol=1e-4, atol=1e-5)
                np.testing.assert_array_equal(after[each][~counts], before[each][~counts])


def test_overflow_leaves_weights_alone_and_halves_the_scale():
    config = TrainConfig(loss_scale="dynamic")
    network = _Linear(np.ones((2, 2), np.float32))
    step = TrainStep(
        network,
        CrossEntropySmooth(),
        Update(
            network,
            create_optimizer(network, config, np.ones(4, np.float32)),
            config,
            mixed_precision=True,
        ),
    )
    labels, keep = Tensor(np.array([0, 1], np.int32)), Tensor(np.ones(1, np.float32))
    huge = np.array([[3e38, 1], [1, 3e38]], np.float32)
    step(Tensor(huge), labels, keep)
    assert (network.w.asnumpy() == 1).all()
    assert float(step.update.loss_scale.scale.asnumpy()) == LossScale.INITIAL / 2
    step(Tensor(np.eye(2, dtype=np.float32)), labels, keep)
    assert not (network.w.asnumpy() == 1).all()
    assert float(step.update.loss_scale.scale.asnumpy()) == LossScale.INITIAL / 2


def test_scale_grows_after_enough_finite_steps_and_never_falls_below_one(monkeypatch):
    monkeypatch.setattr(LossScale, "WINDOW", 2)
    scale = LossScale("dynamic")
    for finite, expected, good in ((1, 1, 1), (1, 2, 0), (1, 2, 1), (0, 1, 0), (1, 1, 1)):
        scale(Tensor(bool(finite)))
        assert float(scale.scale.asnumpy()) == expected * LossScale.INITIAL
        assert int(scale.good_steps.asnumpy()) == good
    for _ in range(40):
        scale(Tensor(False))
    assert float(scale.scale.asnumpy()) == 1
