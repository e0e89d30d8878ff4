"""Search spaces, cost tables and indicators: plain values, without a framework."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from src.arch.architecture import load_architecture
from src.arch.cost import network_cost
from src.arch.cost_table import SHIPPED, CostTableError, arithmetic_table, load_table, space_of
from src.arch.sampling import UniformInCost, sample_decisions
from src.arch.space import SHIPPED as SPACES
from src.arch.space import SKIP, SearchSpace, SpaceError, load_space
from src.latency.statistics import judge
from src.search.indicators import (
    FREE,
    TOLERANCE,
    match_target,
    missing_indicators,
    to_decisions,
    to_indicators,
)

PIXEL1 = [
    *["K3E3"] * 3,
    SKIP,
    "K5E6",
    *["K3E3"] * 3,
    "K5E6",
    *["K3E3"] * 3,
    "K5E6",
    *["K5E3"] * 3,
    *["K5E6"] * 4,
]


def write(path, data, **changes):
    path.write_text(json.dumps({**data, **changes}))
    return path


@pytest.mark.parametrize(
    "name, sizes",
    [
        # By stage: choices of the first layer times the sequences of choices of up to three others.
        ("imagenet", (4 * (1 + 4 + 4**2 + 4**3)) ** 5),
        ("imagenet_32", (4 * (1 + 4 + 4**2 + 4**3)) ** 5),
        ("imagenet_k7", (6 * (1 + 6 + 6**2 + 6**3)) ** 5),
        ("nas_bench_macro", (2 * 3) * (2 * 7) * (2 * 7)),  # 1,176 networks, as published
        ("one_shot_32", 4**20),
    ],
)
def test_shipped_spaces(name, sizes):
    space = load_space(name)
    assert space.size() == sizes
    assert SearchSpace.from_dict(space.to_dict()) == space
    assert space.to_dict() == json.loads((SPACES / f"{name}.json").read_text())


def test_pairs_are_chosen_together():
    space = load_space("nas_bench_macro")
    assert [layer.names for layer in space.searched.values()] == [
        ("K3E3", "K5E6", SKIP) if skippable else ("K3E3", "K5E6")
        for skippable in (False, True, False, True, True, False, True, True)
    ]
    assert space.largest() == load_architecture("nas_bench_macro_largest")
    table = arithmetic_table(space, "macs", 10)
    # Su et al., arXiv 2103.11922: 22222222, 11111111 and 10100100.
    for digits, macs in (
        ("22222222", 105.660928),
        ("11111111", 53.246464),
        ("10100100", 20.683264),
    ):
        assert table.total([(SKIP, "K3E3", "K5E6")[int(digit)] for digit in digits]) == macs
    with pytest.raises(SpaceError, match="'K3E6' is none of K3E3, K5E6"):
        space.check(["K3E6", *["K3E3"] * 7])
    for decisions in itertools.product(*(layer.names for layer in space.searched.values())):
        indicators = to_indicators(space, decisions)
        assert to_decisions(space, indicators) == list(decisions)


def test_decisions_say_which_parts_of_the_largest_blocks_are_active():
    space = load_space("nas_bench_macro")
    decisions = ["K5E6", SKIP, "K3E3", "K5E6", SKIP, "K3E3", SKIP, "K5E6"]
    assert space.active_parts(decisions)[:3] == [(5, 192, 1), (3, 192, 0), (3, 192, 1)]
    assert load_space("imagenet_32").active_parts(["K3E3"] * 20)[0] == (3, 32, 1)  # a fixed block


def test_decisions_of_one_network_have_one_name():
    space = load_space("nas_bench_macro")
    first = ["K3E3", SKIP, "K3E3", SKIP, "K5E6", "K3E3", SKIP, SKIP]
    assert space.stages == (
        range(1),
        range(1, 2),
        range(2, 3),
        range(3, 5),
        range(5, 6),
        range(6, 8),
    )
    canonical = ["K3E3", SKIP, "K3E3", "K5E6", SKIP, "K3E3", SKIP, SKIP]
    assert list(space.canonical(first)) == canonical
    arch = space.derive(first, "any")
    assert arch == space.derive(canonical, "any")
    assert arch.provenance["decisions"] == space.decisions_of(arch) == canonical
    names = [layer.names for layer in space.searched.values()]
    distinct = {space.canonical(decisions) for decisions in itertools.product(*names)}
    assert len(distinct) == len({space.derive(d, "any").blocks for d in distinct}) == space.size()


def test_a_block_may_be_that_of_a_later_layer():
    own = {"in_channels": 24, "out_channels": 24, "stride": 1, "skippable": True}
    own |= {"kernel_sizes": [3, 5], "expansions": [3, 6]}
    first, last = "r1_k3_s11_e1_i16_o24", "r1_k3_s11_e6_i24_o24"
    data = {**load_space("imagenet_32").to_dict(), "name": "own", "stem_channels": 16}
    space = SearchSpace.from_dict({**data, "layers": [first, own, last]})
    for decisions in (["SKIP"], ["K3E6"], ["K5E3"]):
        assert space.decisions_of(space.derive(decisions, "any")) == decisions
    arch = space.derive(["K5E3"], "any")
    with pytest.raises(SpaceError, match="the number of blocks differ"):
        space.decisions_of(replace(arch, blocks=(*arch.blocks, arch.blocks[-1])))


def test_published_network_derives_from_its_decisions():
    space = load_space("imagenet")
    assert space.derive(PIXEL1, "any").blocks == load_architecture("spnas_pixel1").blocks
    assert space.decisions_of(load_architecture("spnas_pixel1")) == PIXEL1
    assert space.largest().blocks == load_architecture("spnas_largest").blocks
    small = load_space("imagenet_32")
    assert small.decisions_of(load_architecture("spnas_pixel1_32")) == PIXEL1
    assert small.largest().blocks == load_architecture("spnas_largest_32").blocks
    assert small.decisions_of(load_architecture("spnas_smallest_32")) == space.decisions_of(
        load_architecture("spnas_smallest")
    )
    with pytest.raises(SpaceError, match="not of space .imagenet.: block"):
        space.decisions_of(load_architecture("spnas_pixel1_32"))


def test_every_choice_of_every_layer_derives_its_block():
    space = load_space("imagenet_k7")
    largest = [layer.largest for layer in space.searched.values()]
    for index, (name, layer) in enumerate(space.searched.items()):
        for choice in layer.names:
            decisions = [*largest[:index], choice, *largest[index + 1 :]]
            blocks = space.derive(decisions, "any").blocks
            if choice == SKIP:
                assert len(blocks) == 21
                continue
            block = blocks[int(name[len("layer") :])]
            assert (
                choice == f"K{block.kernel_size}E{block.expansion:g}"
                and block.out_channels == layer.out_channels
            )
            # Decisions, indicators and back.
            assert to_decisions(space, to_indicators(space, decisions)) == decisions


def test_all_indicator_triples_map_to_their_choices():
    space = load_space("imagenet")
    names = {(0, 0): "K3E3", (0, 1): "K3E6", (1, 0): "K5E3", (1, 1): "K5E6"}
    for kernel, expansion, presence in itertools.product((0, 1), repeat=3):
        values = np.tile(np.array([kernel, expansion, presence], np.float32), (20, 1))
        values[missing_indicators(space) != FREE] = (
            1  # the first layers of a stage are always there
        )
        for layer, choice in zip(space.searched.values(), to_decisions(space, values), strict=True):
            assert choice == (
                SKIP if layer.skippable and not presence else names[kernel, expansion]
            )


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"kernel_sizes": [5, 3]}, "not nested"),
        ({"expansions": [6, 3]}, "not nested"),
        ({"kernel_sizes": [4]}, "kernel sizes"),
        ({"expansions": [3.1, 6]}, "whole number"),
        ({"skippable": 1}, "skippable is 1: input should be a valid boolean"),
        ({"stride": 2, "skippable": True}, "cannot be skipped"),
        ({"kernel": 3}, "unknown key 'layers.2.kernel', did you mean 'kernel_sizes'"),
        ({"expansions": ["a"]}, "expansions.0 is 'a': input should be a valid number"),
        ({"blocks": ["K3"]}, "unknown key 'layers.2.kernel_sizes'"),
        ({"pairs": [[3, 3]]}, "unknown key 'layers.2.kernel_sizes'"),
    ],
)
def test_wrong_spaces_are_refused_by_name(tmp_path, change, reason):
    data = load_space("imagenet").to_dict()
    data["layers"][2] = {**data["layers"][2], **change}
    with pytest.raises(SpaceError, match=reason) as error:
        load_space(write(tmp_path / "space.json", data))
    assert "space.json: " in str(error.value) and "layers.2" in str(error.value)


@pytest.mark.parametrize(
    "pairs, reason",
    [
        ([[5, 3], [3, 6]], "kernel sizes .* not nested"),
        ([[3, 6], [5, 6]], "expansions .* not nested"),
        ([[3, 3], [4, 6]], "kernel sizes"),
        ([], "kernel sizes"),
        ([[3, 3, 1]], "pairs.0"),
        ([["a", 3]], "pairs.0.0 is 'a'"),
    ],
)
def test_wrong_pairs_are_refused_by_name(tmp_path, pairs, reason):
    data = load_space("nas_bench_macro").to_dict()
    data["layers"][2]["pairs"] = pairs
    with pytest.raises(SpaceError, match=reason) as error:
        load_space(write(tmp_path / "space.json", data))
    assert "space.json: " in str(error.value) and "layers.2" in str(error.value)


@pytest.mark.parametrize(
    "layer, reason",
    [
        (5, "layers.3 is 5: neither a block string nor the choices of a searched layer"),
        ("r1_k9", "layers.3: block 'r1_k9': token 's' is missing"),
        ({"stride": 1}, "key 'layers.3.in_channels' is missing"),
        ("r1_k3_s11_e3_i8_o8", "block 3 'r1_k3_s11_e3_i8_o8' takes 8 channels"),
    ],
)
def test_layers_that_are_none_are_refused_by_place(layer, reason):
    data = load_space("imagenet").to_dict()
    data["layers"][3] = layer
    with pytest.raises(SpaceError, match=f"mine.json: .*{reason}"):
        SearchSpace.from_dict(data, "mine.json")


def test_numbers_of_spaces_are_written_as_they_were_read():
    data = load_space("imagenet").to_dict()
    data["layers"][2]["expansions"] = [3, 4.5, 6.0]
    again = SearchSpace.from_dict(data).to_dict()
    assert json.dumps(again) == json.dumps(data)


def test_layers_are_typed_by_the_kind_of_supernet():
    nested, one_shot = load_space("imagenet"), load_space("one_shot_32")
    assert nested.superkernels == nested.searched
    assert list(one_shot.block_layers) == list(one_shot.searched.values())
    with pytest.raises(SpaceError, match="is that of a one-shot supernet"):
        print(one_shot.superkernels)
    with pytest.raises(SpaceError, match="is none of a one-shot supernet"):
        print(nested.block_layers)


@pytest.mark.parametrize("name", ["imagenet", "one_shot_32"])
def test_searched_layers_come_with_the_size_of_their_input(name):
    space = load_space(name)
    inputs = list(space.searched_inputs((96, 160)))
    assert [(layer, choices) for layer, choices, _ in inputs] == list(space.searched.items())
    height, width = (-(-side // space.stem_stride) for side in (96, 160))
    sizes = {}
    for index, layer in enumerate(space.layers):
        sizes[f"layer{index}"] = height, width
        height, width = -(-height // layer.stride), -(-width // layer.stride)
    assert all(size == sizes[name] for name, _, size in inputs)


def test_decisions_that_drop_a_stage_are_refused():
    space = load_space("imagenet")
    with pytest.raises(SpaceError, match="layer5 .* its stage would be lost"):
        space.derive([*PIXEL1[:4], SKIP, *PIXEL1[5:]], "any")
    with pytest.raises(SpaceError, match="19 decisions"):
        space.derive(PIXEL1[1:], "any")
    with pytest.raises(SpaceError, match="'K7E6' is none of K3E3"):
        space.derive(["K7E6", *PIXEL1[1:]], "any")


def test_pixel1_table_gives_the_known_latencies():
    space = load_space("imagenet")
    table = load_table("pixel1", space)
    assert table.total(PIXEL1) == pytest.approx(80.44, abs=0.005)
    assert table.range() == pytest.approx((30.63, 131.46), abs=0.005)
    for name, latency in (("spnas_largest", 131.46), ("spnas_smallest", 30.63)):
        assert table.total(space.decisions_of(load_architecture(name))) == pytest.approx(
            latency, abs=0.005
        )


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.json")), ids=lambda file: file.stem)
def test_shipped_tables_are_whole_and_say_how_good_they_are(file):
    space = load_space(space_of(file))
    table = load_table(file.stem, space)
    assert table.name == file.stem and table.provenance["source"]
    assert 0 < table.range()[0] < table.total([layer.largest for layer in space.searched.values()])
    if table.provenance["source"] != "scripts/profile_latency.py":
        return
    verdict = table.provenance["verification"]
    assert (
        verdict["passed"]
        and verdict["networks"] >= 20
        and verdict["rmse"] <= 0.05
        and verdict["kendall_tau"] >= 0.9
    )
    assert {"date", "versions", "threads", "image_size", "num_classes", "noise"} <= set(
        table.provenance
    )
    fitted = {entry["decisions"] for entry in table.provenance["networks"].values()}
    judged = [e for e in verdict["measured"].values() if e["decisions"] not in fitted]
    found = judge(
        [entry["predicted_ms"] for entry in judged],
        [entry["median_ms"] for entry in judged],
        verdict.get("machine_factor", 1.0),
    )
    assert found.networks == verdict["networks"] and found.rmse == pytest.approx(
        verdict["rmse"], abs=1e-3
    )
    for entry in verdict["measured"].values():
        assert table.total(entry["decisions"].split()) == pytest.approx(
            entry["predicted_ms"], abs=1e-3
        )


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("name", ["imagenet", "imagenet_k7", "imagenet_32"])
def test_arithmetic_tables_equal_the_cost_of_whole_networks(name, cost):
    space, random = load_space(name), np.random.default_rng(0)
    table = arithmetic_table(space, cost, 10)
    for _ in range(20):
        decisions = [random.choice(layer.names) for layer in space.searched.values()]
        whole = getattr(network_cost(space.derive(decisions, "any"), 10), cost)
        assert table.total(decisions) * 1e6 == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda t: t["layers"].pop("layer3"), "layer 'layer3' is missing"),
        (lambda t: t["layers"]["layer3"].pop("SKIP"), "layer3 has entries"),
        (
            lambda t: t["layers"]["layer3"].update(K3E3=-1),
            "layer3.K3E3 is -1: input should be greater than or equal to 0",
        ),
        (lambda t: t["layers"]["layer3"].update(K3E3=None), "layer3.K3E3 is None"),
        (
            lambda t: t["layers"]["layer3"].update(K3E3=float("inf")),
            "layer3.K3E3 is inf: input should be a finite number",
        ),
        (lambda t: t["layers"].update(layer3=7), "layers.layer3 is 7"),
        (lambda t: t.pop("provenance"), "key 'provenance' is missing"),
        (lambda t: t["layers"].update(layer99={}), "'layer99' is not a searched layer"),
        (lambda t: t.update(unit="s"), "unit is 's', should be 'ms'"),
        (lambda t: t.update(space="imagenet_k7"), "made for space 'imagenet_k7'"),
        (lambda t: t.update(constant=-3), "constant is -3"),
        (lambda t: t.update(format="x"), "not of the expected kind"),
    ],
)
def test_wrong_tables_are_refused_by_name(tmp_path, change, reason):
    space = load_space("imagenet")
    data = json.loads(json.dumps(load_table("pixel1", space).to_dict()))
    change(data)
    with pytest.raises(CostTableError, match=reason) as error:
        load_table(write(tmp_path / "table.json", data), space)
    assert "table.json" in str(error.value)


def test_unreachable_targets_name_the_range():
    with pytest.raises(CostTableError, match=r"target of 200 ms: .* cost 30.63 to 131.5 ms"):
        load_table("pixel1", load_space("imagenet")).check_target(200)


@pytest.mark.parametrize("target", [40, 80, 125])
def test_random_networks_have_the_latency_and_differ(target):
    space = load_space("imagenet")
    table = load_table("pixel1", space)
    drawn = sample_decisions(space, table, target, 50)
    assert len({space.derive(decisions, "any").blocks for decisions in drawn}) == 50
    assert all(abs(table.total(decisions) / target - 1) <= 0.02 for decisions in drawn)
    assert (
        drawn
        == sample_decisions(space, table, target, 50)
        != sample_decisions(space, table, target, 50, seed=1)
    )
    entries = {layer: dict.fromkeys(costs, 2.0) for layer, costs in table.layers.items()}
    flat = replace(table, layers=entries)
    assert len(sample_decisions(space, flat, flat.range()[0], 50)) == 50


@pytest.mark.parametrize("name, most", [("nas_bench_macro", 0.05), ("imagenet_32", 0.04)])
def test_networks_are_drawn_uniformly_in_their_cost(name, most):
    """By the distance of Kolmogorov and Smirnov; drawn by their decisions, costs pile up."""
    space = load_space(name)
    table = arithmetic_table(space, "macs", 10)
    low, high = table.range()

    def draws(seed, count=1000, bounds=()):
        random, networks = np.random.default_rng(seed), UniformInCost(space, table, *bounds)
        return [networks.draw(random) for _ in range(count)]

    def places(networks):
        return [(table.total(decisions) - low) / (high - low) for decisions in networks]

    def distance(networks):
        return kstest(places(networks), "uniform").statistic

    drawn, random = draws(0), np.random.default_rng(0)
    names = [layer.names for layer in space.searched.values()]
    assert distance(drawn) < most
    assert distance([[random.choice(own) for own in names] for _ in range(1000)]) > 0.2
    assert all(decisions == space.canonical(decisions) for decisions in drawn)
    assert len(set(drawn)) > 400
    assert drawn[:50] == draws(0, 50) != draws(1, 50)
    # Between two costs, of which the nearest among some networks is taken.
    for first, last in ((0, 0.3), (0.3, 0.35), (0.6, 0.6), (0.9, 1)):
        bounds = (low + first * (high - low), low + last * (high - low))
        found = places(draws(2, 200, bounds))
        assert first - 0.05 < min(found) and max(found) < last + 0.05
        assert np.ptp(found) > 0.8 * (last - first)


def test_settling_reaches_the_target_and_changes_the_least_certain_first():
    space, random = load_space("imagenet"), np.random.default_rng(0)
    table = load_table("pixel1", space)
    for target in (31, 50, 80, 110, 131):
        for _ in range(20):
            found = to_indicators(
                space, [random.choice(layer.names) for layer in space.searched.values()]
            )
            matched = match_target(space, table, found, random.uniform(-1, 1, found.shape), target)
            decisions = space.canonical(to_decisions(space, matched))
            assert abs(table.total(decisions) / target - 1) <= TOLERANCE
            assert (
                match_target(space, table, matched, np.ones(found.shape), target).tolist()
                == matched.tolist()
            )
    largest = to_indicators(space, [layer.largest for layer in space.searched.values()])
    margins = np.ones(largest.shape)
    margins[3, 0] = 0.1  # kernel size of layer4: 2.74 ms
    matched = match_target(space, table, largest, margins, 128.5)
    assert to_decisions(space, matched)[3] == "K3E6" and (matched != largest).sum() == 1
