"""The supernet equals the network that its decisions describe, and its formulas plain NumPy."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.arch.architecture import load_architecture
from src.arch.cost_table import CostTable, arithmetic_table, load_table
from src.arch.space import SearchSpace, load_space
from src.checkpoint.restore import load_weights
from src.kernels import available, supports_bfloat16
from src.search.indicators import indicator_costs, missing_indicators, to_decisions, to_indicators
from src.search.superkernel import NOT_DRAWN, Supernet, inherit
from src.search.superkernel_step import SearchStep
from src.spnasnet import SPNASNet
from tests.conftest import mode_of

LAYERS = [
    "r1_k3_s11_e1_i8_o8_noskip",
    {
        "stride": 1,
        "in_channels": 8,
        "out_channels": 8,
        "kernel_sizes": [3, 5],
        "expansions": [3, 6],
        "skippable": True,
    },
    {
        "stride": 2,
        "in_channels": 8,
        "out_channels": 12,
        "kernel_sizes": [3, 5, 7],
        "expansions": [2, 4, 6],
        "skippable": False,
    },
    {
        "stride": 1,
        "in_channels": 12,
        "out_channels": 12,
        "kernel_sizes": [3, 5, 7],
        "expansions": [2, 4, 6],
        "skippable": True,
    },
    {
        "stride": 1,
        "in_channels": 12,
        "out_channels": 12,
        "kernel_sizes": [3],
        "expansions": [3, 4],
        "skippable": True,
    },
    {
        "stride": 1,
        "in_channels": 12,
        "out_channels": 12,
        "pairs": [[3, 2], [5, 3], [7, 6]],
        "skippable": True,
    },
    {
        "stride": 1,
        "in_channels": 12,
        "out_channels": 12,
        "pairs": [[3, 3], [5, 6]],
        "skippable": False,
    },
]


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    """A small space with layers of all kinds."""
    return SearchSpace.from_dict(
        {
            "format": "spnas-space",
            "version": 1,
            "name": "mixed",
            "image_size": 12,
            "stem_channels": 8,
            "stem_stride": 1,
            "layers": LAYERS,
            "head_channels": 16,
            "bn_epsilon": 1e-5,
            "provenance": {},
        }
    )


@pytest.fixture(scope="module")
def table(space) -> CostTable:
    return arithmetic_table(space, "macs", 4)


def randomise(network, space, random, decisions=None) -> None:
    """Random weights, statistics and thresholds; thresholds that make some decisions, if given."""
    for parameter in network.get_parameters():
        if parameter.name.startswith("decisions."):
            continue
        values = (
            random.uniform(0.5, 1.5, parameter.shape)
            if "variance" in parameter.name
            else random.normal(0, 0.5, parameter.shape)
        )
        parameter.set_data(Tensor(values.astype(np.float32)))
    shape = network.decisions.thresholds.shape
    if decisions is None:
        thresholds = random.uniform(0, 12, shape)
    else:
        thresholds = np.where(to_indicators(space, decisions) > 0, -1e3, 1e3)
    network.decisions.thresholds.set_data(Tensor(thresholds.astype(np.float32)))


def weights_of(network) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}


def derived_network(network, space, decisions, classes=4) -> SPNASNet:
    arch = space.derive(decisions, "derived")
    derived = SPNASNet(arch, classes).set_train(False)
    weights = inherit(weights_of(network), space, decisions)
    load_weights(derived, weights, "supernet")
    assert set(weights) == {parameter.name for parameter in derived.get_parameters()}
    return derived


def test_supernet_equals_the_derived_network(space, table, mode):
    """Random decisions and the extreme ones; without masks behind BN and ReLU, beta would leak.

    With the operators in GRAPH mode, without in PYNATIVE mode.
    """
    kernels, random = mode == ms.GRAPH_MODE and available(), np.random.default_rng(1)
    network = Supernet(space, table, 4, kernels=kernels).set_train(False)
    images = Tensor(random.standard_normal((2, 3, 12, 12)).astype(np.float32))
    fixed = [
        [layer.names[0] for layer in space.searched.values()],
        [layer.largest for layer in space.searched.values()],
        [layer.names[-1] for layer in space.searched.values()],
        None,
        None,
    ]
    for wanted in fixed:
        randomise(network, space, random, wanted)
        _, cost, indicators, _ = network(images, None, network.no_draws)
        decisions = to_decisions(space, indicators.asnumpy())
        assert wanted is None or decisions == wanted
        assert float(cost.asnumpy()) == pytest.approx(table.total(decisions), rel=1e-6)
        with mode_of(ms.PYNATIVE_MODE):
            expected = derived_network(network, space, decisions)(images).asnumpy()
        difference = np.abs(network(images).asnumpy() - expected).max()
        assert difference <= 1e-5 * np.abs(expected).max(), decisions


@pytest.mark.parametrize("key", ("kernel_sizes", "expansions"))
def test_all_layers_may_have_one_kernel_size_or_expansion(space, key, graph_mode):
    first, *searched = LAYERS[:4]
    layers = [first, *({**layer, key: layer[key][:1]} for layer in searched)]
    own = SearchSpace.from_dict({**space.to_dict(), "layers": layers})
    table, random = arithmetic_table(own, "macs", 4), np.random.default_rng(1)
    network = Supernet(own, table, 4).set_train(False)
    images = Tensor(random.standard_normal((1, 3, 12, 12)).astype(np.float32))
    for wanted in (list(own.largest_choices), list(own.smallest_choices)):
        randomise(network, own, random, wanted)
        _, cost, indicators, _ = network(images, None, network.no_draws)
        assert to_decisions(own, indicators.asnumpy()) == wanted
        assert float(cost.asnumpy()) == pytest.approx(table.total(wanted), rel=1e-6)

    def cost_of(draws: Tensor) -> Tensor:
        return network.decisions(draws)[1]

    gradient = ops.grad(cost_of, None, (network.decisions.thresholds,))
    (thresholds,) = ms.jit(gradient)(network.no_draws)
    assert np.isfinite(thresholds.asnumpy()).all() and thresholds.asnumpy().any()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain(space, table, weights, thresholds, hard=None):
    """The formulas of the paper in float64: indicators, distances, masks and cost.

    Args:
        space: what is searched.
        table: the cost of each choice.
        weights: name of a searched layer: its superkernel (C, k, k).
        thresholds: one for each indicator.
        hard: None for indicators of 0 and 1; otherwise (indicators, norms - thresholds, thresholds)
            at a point where sigmoids of the norms and lines of the thresholds go through the
            indicators, which makes the straight-through gradient an ordinary one.
    """
    indicators, distances, masks, total = [], [], [], table.constant
    for row, (name, layer) in enumerate(space.searched.items()):
        w = weights[name].astype(np.float64)
        columns = np.flatnonzero(missing_indicators(space)[row] < 0)
        own: list[float] = []

        def decide(norm, row=row, columns=columns, own=own):
            place = (row, columns[len(own)])
            x = norm - thresholds[place]
            own.append(
                float(x > 0)
                if hard is None
                else hard[0][place]
                + sigmoid(norm - hard[2][place])
                - sigmoid(hard[1][place])
                - (thresholds[place] - hard[2][place])
            )
            distances.append((place, x))
            return own[-1]

        side = layer.kernel_sizes[-1]
        ring = np.maximum.outer(*[np.abs(np.arange(side) - side // 2)] * 2)
        bounds = [round(layer.in_channels * ratio) for ratio in (0, *layer.expansions)]
        if layer.paired:
            inside = [
                (ring <= size // 2) * (np.arange(len(w)) < bound)[:, None, None]
                for size, bound in zip(layer.kernel_sizes, bounds[1:], strict=True)
            ]
            pairs = [1.0]
            for smaller, larger in pairwise(inside):
                pairs.append(pairs[-1] * decide(np.linalg.norm(w[larger & ~smaller])))
            kernel_mask, channel_mask = np.zeros((side, side)), np.zeros(len(w))
            for size, before, size_before, bound, present in zip(
                layer.kernel_sizes,
                bounds,
                (-1, *layer.kernel_sizes),
                bounds[1:],
                pairs,
                strict=False,
            ):
                kernel_mask += present * ((ring <= size // 2) & (ring > size_before // 2))
                channel_mask[before:bound] += present
            kernel = w * kernel_mask
            cost = sum(
                (present - following) * price
                for present, following, price in zip(
                    pairs, (*pairs[1:], 0.0), table.layers[name].values(), strict=False
                )
            )
        else:
            kernel, present = w * (ring <= layer.kernel_sizes[0] // 2), 1.0
            kernel_mask = (ring <= layer.kernel_sizes[0] // 2).astype(np.float64)
            sizes = [1.0]
            for smaller, size in pairwise(layer.kernel_sizes):
                outer = (ring > smaller // 2) & (ring <= size // 2)
                present = present * decide(np.linalg.norm(w * outer))
                sizes.append(present)
                kernel, kernel_mask = kernel + present * w * outer, kernel_mask + present * outer
            parts = [kernel[first:last] for first, last in pairwise(bounds)]
            channel_mask, present, ratios = np.zeros(bounds[-1]), 1.0, [1.0]
            channel_mask[: bounds[1]] = 1
            for index, part in enumerate(parts[1:], start=1):
                present = present * decide(np.linalg.norm(part))
                ratios.append(present)
                channel_mask[bounds[index] : bounds[index + 1]] = present
            cost = 0.0
            for i, size in enumerate(layer.kernel_sizes):
                for j, ratio in enumerate(layer.expansions):
                    chosen = (sizes[i] - (sizes + [0])[i + 1]) * (ratios[j] - (ratios + [0])[j + 1])
                    cost += chosen * table.layers[name][f"K{size}E{ratio}"]
        presence = decide(np.linalg.norm(kernel[: bounds[1]])) if layer.skippable else 1.0
        total += presence * cost + (1 - presence) * table.skip_cost(name)
        masks.append((kernel_mask, channel_mask, presence))
        indicators += [((row, column), value) for column, value in zip(columns, own, strict=True)]
    return dict(indicators), dict(distances), masks, total


def test_decisions_cost_and_gradients_equal_numpy(space, table, graph_mode):
    random = np.random.default_rng(3)
    network = Supernet(space, table, 4)
    randomise(network, space, random)
    cell, names = network.decisions, list(space.searched)
    # Small weights and thresholds near the norms: far away the sigmoid has no gradient to compare.
    for weight in cell.weights:
        weight.set_data(Tensor(random.normal(0, 0.15, weight.shape).astype(np.float32)))
    cell.thresholds.set_data(
        Tensor(random.uniform(0.2, 2.5, cell.thresholds.shape).astype(np.float32))
    )
    # Drawn are the indicators themselves: then masks too have a gradient, at what they are.
    own = cell(network.no_draws)[2]
    factors = [
        (random.standard_normal((s, s)), random.standard_normal(c), random.standard_normal())
        for s, c in ((w.shape[-1], w.shape[0]) for w in cell.weights)
    ]
    constants = [[Tensor(np.asarray(f, np.float32)) for f in factor] for factor in factors]

    def objective(draws):
        masks, cost, indicators, norms = cell(draws)
        total = cost * 10
        pairs = zip(masks, constants)  # noqa: B905  (the graph compiler knows no strict)
        for (kernel, channel, presence), (a, b, c) in pairs:
            total = (
                total
                + (kernel.reshape(a.shape) * a).sum()
                + (channel.reshape((-1,)) * b).sum()
                + (presence * c).sum()
            )
        return total, cost, indicators, norms

    parameters = ms.ParameterTuple([cell.thresholds, *cell.weights])
    (_, cost, indicators, norms), gradients = ops.value_and_grad(
        objective, None, parameters, has_aux=True
    )(own)
    weights = dict(zip(names, (w.asnumpy()[:, 0] for w in cell.weights), strict=True))  # (C, k, k)
    thresholds = cell.thresholds.asnumpy().astype(np.float64)
    hard, distances, _, total = plain(space, table, weights, thresholds)
    assert float(cost.asnumpy()) == pytest.approx(total, rel=1e-5)
    for place, value in hard.items():
        assert indicators.asnumpy()[place] == value
        assert norms.asnumpy()[place] - thresholds[place] == pytest.approx(
            distances[place], abs=1e-5
        )

    base = thresholds.copy()

    def surrogate(weights, thresholds):
        _, _, masks, cost = plain(space, table, weights, thresholds, (hard, distances, base))
        return 10 * cost + sum(
            (kernel * a).sum() + (channel * b).sum() + presence * c
            for (kernel, channel, presence), (a, b, c) in zip(masks, factors, strict=True)
        )

    step = 1e-5
    for place in hard:
        ahead, behind = thresholds.copy(), thresholds.copy()
        ahead[place] += step
        behind[place] -= step
        numeric = (surrogate(weights, ahead) - surrogate(weights, behind)) / (2 * step)
        assert gradients[0].asnumpy()[place] == pytest.approx(numeric, rel=2e-3, abs=2e-4), place
    for name, gradient in zip(names, gradients[1:], strict=True):
        for _ in range(5):
            place = tuple(random.integers(0, size) for size in weights[name].shape)
            values = []
            for sign in (1, -1):
                changed = {**weights, name: weights[name].astype(np.float64)}
                changed[name][place] += sign * step
                values.append(surrogate(changed, thresholds))
            assert gradient.asnumpy()[:, 0][place] == pytest.approx(
                (values[0] - values[1]) / (2 * step), rel=2e-3, abs=2e-4
            )


class Cost(nn.Cell):
    """The cost alone."""

    def __init__(self, decisions):
        super().__init__()
        self.decisions = decisions

    def construct(self, draws):
        return self.decisions(draws)[1]


def test_a_threshold_has_the_gradient_of_its_indicator_wherever_it_is():
    space = load_space("imagenet_32")
    table = arithmetic_table(space, "macs", 10)
    network = Supernet(space, table, 10)
    cell = network.decisions
    (gradient,) = ops.grad(Cost(cell), None, ms.ParameterTuple([cell.thresholds]))(network.no_draws)
    # At the start everything is on, norms far above their thresholds: raising a threshold lowers
    # the cost by what the choice costs. A kernel's size also changes the norms of parts a little.
    costs = indicator_costs(space, table)
    first = table.layers["layer1"]
    assert costs[0].tolist() == pytest.approx(
        [first["K5E6"] - first["K3E6"], first["K5E6"] - first["K5E3"], 0]
    )
    assert gradient.asnumpy() == pytest.approx(-costs, rel=1e-2)


@pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
def test_the_penalty_is_half_a_huber_function_of_the_distance_to_the_budget(ramp):
    near, budget = SearchStep.NEAR, 100 * 0.6**ramp
    step = SimpleNamespace(target=60.0, start=np.log(100), fall=np.log(0.6), NEAR=near)

    def penalty(cost):
        return SearchStep.penalty(step, cost, Tensor(ramp, ms.float32))

    for distance in (-0.5, -0.01, 0.01, 0.04, 0.06, 0.5):  # of logarithms
        cost = Tensor(budget * np.exp(distance), ms.float32)
        above = max(distance, 0.0)
        expected = above**2 / (2 * near) if above < near else above - near / 2
        assert float(penalty(cost)) == pytest.approx(expected, rel=1e-3, abs=1e-6)
        slope = float(ops.grad(penalty)(cost)) * float(cost)  # by the logarithm of the cost
        assert slope == pytest.approx(min(above / near, 1), rel=1e-3, abs=1e-6)
    # Without a target the cost counts in full, and its share rises.
    step.target = None
    assert float(penalty(Tensor(100.0, ms.float32))) == pytest.approx(ramp * np.log(100), rel=1e-5)


@pytest.mark.parametrize("kernels", [False, True])
def test_what_is_masked_keeps_the_gradient_that_can_bring_it_back(space, table, kernels):
    """By the cross-entropy alone, against differences of a supernet.

    What is drawn is moved a little off 0 and 1. With the operators in GRAPH mode, without in
    PYNATIVE mode.
    """
    random = np.random.default_rng(1)
    network = Supernet(space, table, 4, kernels=kernels and available()).set_train()
    randomise(network, space, random)
    decisions, shape = network.decisions, network.decisions.thresholds.shape
    off = to_indicators(space, [layer.names[0] for layer in space.searched.values()])
    off[:, -1] = 1
    images = Tensor(random.standard_normal((8, 3, 12, 12)).astype(np.float32))
    weights = Tensor(random.standard_normal((8, 4)).astype(np.float32))

    def objective(draws):
        return (network(images, None, draws)[0] * weights).sum()

    decisions.fixed.set_data(Tensor(np.ones(shape, np.float32)))  # so that the draws alone mask
    with mode_of(ms.GRAPH_MODE if kernels else ms.PYNATIVE_MODE):
        gradient = ops.grad(objective)(Tensor(off)).asnumpy()
    places = [place for place in np.ndindex(shape) if missing_indicators(space)[place] < 0]
    places = [place for place in places if off[place] == 0]
    assert len(places) >= 5
    step = 4e-4  # small enough for few ReLUs to switch
    before = float(objective(Tensor(off)).asnumpy())
    for place in places:
        moved = off.copy()
        moved[place] += step
        after = float(objective(Tensor(moved)).asnumpy())
        assert gradient[place] == pytest.approx((after - before) / step, rel=0.1, abs=0.02), place
    assert sum(gradient[place] != 0 for place in places) >= 7  # all but the second of nested ones


@pytest.mark.skipif(not supports_bfloat16(), reason="the processor does not multiply bfloat16")
def test_bfloat16_leaves_the_gradients_of_decisions_about_the_same(space, table):
    random, networks = np.random.default_rng(1), []
    for bfloat16 in (False, True):
        networks.append(Supernet(space, table, 4, kernels=True, bfloat16=bfloat16).set_train())
    assert networks[1].blocks[0].bfloat16
    randomise(networks[0], space, random)
    load_weights(networks[1], weights_of(networks[0]), "supernet")
    images = Tensor(random.standard_normal((32, 3, 12, 12)).astype(np.float32))
    weights = Tensor(random.standard_normal((32, 4)).astype(np.float32))
    draws = Tensor(random.random(networks[0].decisions.thresholds.shape).astype(np.float32))
    with mode_of(ms.PYNATIVE_MODE):
        exact, half = (
            ops.grad(lambda d, n=network: (n(images, None, d)[0] * weights).sum())(draws).asnumpy()
            for network in networks
        )
    # Where ReLUs switch by rounding, gradients of so few images are others, by 0.11 to 0.23.
    assert 0 < np.linalg.norm(half - exact) < 0.4 * np.linalg.norm(exact)


def test_only_draws_give_the_cross_entropys_gradient_and_on_average_all_of_it(space, table):
    random, share = np.random.default_rng(4), 0.25
    network = Supernet(space, table, 4, drawn_share=share)
    # Thresholds far below the norms: indicators do not also count through later norms.
    randomise(network, space, random, [layer.largest for layer in space.searched.values()])
    cell = network.decisions
    shape, free = cell.thresholds.shape, missing_indicators(space) < 0
    factors = [Tensor(random.standard_normal(w.shape[0]).astype(np.float32)) for w in cell.weights]

    def objective(draws):
        masks = cell(draws)[0]
        pairs = zip(masks, factors, strict=True)
        return sum((c.reshape((-1,)) * f).sum() + (p * f[0]).sum() for (_, c, p), f in pairs)

    draws = np.where(free & (random.random(shape) < 0.5), random.random(shape), NOT_DRAWN)
    draws = Tensor(draws.astype(np.float32))
    (of_thresholds,) = ops.grad(objective, None, ms.ParameterTuple([cell.thresholds]))(draws)
    at_draws = ops.grad(objective)(draws).asnumpy()
    # A threshold moves its indicator the other way; what was not drawn gets nothing.
    assert (at_draws != 0).any() and (at_draws[draws.asnumpy() < 0] == 0).all()
    assert of_thresholds.asnumpy() == pytest.approx(-at_draws / share, rel=1e-5, abs=1e-6)


def test_decisions_are_made_in_float32(space, table, graph_mode):
    """Mixed precision changes logits a little; neither cost, decisions nor types of parameters."""
    images = Tensor(np.random.default_rng(2).standard_normal((2, 3, 12, 12)).astype(np.float32))

    def results(level=None):
        network = Supernet(space, table, 4).set_train(False)
        randomise(network, space, np.random.default_rng(3))
        mixed = network
        if level:
            mixed = ms.amp.auto_mixed_precision(network, level)
            network.decisions.to_float(ms.float32)
        logits, *others = mixed(images, None, network.no_draws)
        assert all(each.dtype == ms.float32 for each in others)
        assert all(each.dtype == ms.float32 for each in network.decisions.get_parameters())
        return logits.astype(ms.float32).asnumpy(), [each.asnumpy() for each in others]

    exact, expected = results()
    for level in ("O2", "O3"):
        logits, others = results(level)
        for value, other in zip(expected, others, strict=True):
            np.testing.assert_array_equal(value, other)
        assert 0 < np.abs(exact - logits).max() < 0.05 * np.abs(exact).max()


def test_the_published_network_comes_out_of_the_supernet():
    space = load_space("imagenet_32")
    table, random = arithmetic_table(space, "macs", 10), np.random.default_rng(0)
    published = load_architecture("spnas_pixel1_32")
    decisions = space.decisions_of(published)
    network = Supernet(space, table, 10).set_train(False)
    network.decisions.fixed.set_data(Tensor(to_indicators(space, decisions)))
    images = Tensor(random.standard_normal((1, 3, 32, 32)).astype(np.float32))
    derived = derived_network(network, space, decisions, classes=10)
    assert len(derived.blocks) == len(published.blocks) == 21
    difference = np.abs(network(images).asnumpy() - derived(images).asnumpy()).max()
    assert difference <= 1e-5 * np.abs(derived(images).asnumpy()).max()


def test_pixel1_model_is_exact_at_every_choice():
    space = load_space("imagenet")
    table = load_table("pixel1", space)
    cell = Supernet(space, table, 10).decisions
    layers = space.searched.values()
    # Costs add up over the layers: so many networks have every choice of each of them.
    for number in range(max(len(layer.names) for layer in layers)):
        decisions = [layer.names[number % len(layer.names)] for layer in layers]
        cost = cell.cost(Tensor(to_indicators(space, decisions))).asnumpy()
        assert float(cost) == pytest.approx(table.total(decisions), rel=1e-6)
