"""Block strings, architecture files and their cost: what is written is read, and nothing else."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.arch.architecture import Architecture, load_architecture, shipped_architectures
from src.arch.blocks import (
    ArchitectureError,
    Block,
    ShuffleBlock,
    XceptionBlock,
    decode_block,
    encode_block,
)
from src.arch.cost import block_cost, layer_costs, network_cost
from src.spnasnet import SPNASNet

MBCONV_BLOCKS = st.builds(
    Block,
    kernel_size=st.sampled_from((3, 5, 7)),
    stride=st.sampled_from((1, 2)),
    expansion=st.sampled_from((1, 1.5, 2, 3, 4, 6)),
    in_channels=st.integers(1, 40).map(lambda eighth: 8 * eighth),
    out_channels=st.integers(1, 320),
    se_ratio=st.sampled_from((0.0, 0.25)),
    skip=st.booleans(),
)
SHUFFLE_BLOCKS = st.builds(
    lambda kind, stride, half, new: kind(stride, 2 * half, 2 * (half + new)),
    st.sampled_from(
        (*(partial(ShuffleBlock, size) for size in (3, 5, 7)), partial(XceptionBlock, 3))
    ),
    st.sampled_from((1, 2)),
    st.integers(1, 320),
    st.integers(1, 320),
)
CODEC = settings(max_examples=500, derandomize=True, deadline=None, database=None)


@CODEC
@given(MBCONV_BLOCKS | SHUFFLE_BLOCKS)
def test_codec_is_an_identity_on_random_blocks(block):
    assert decode_block(encode_block(block)) == block


@pytest.mark.parametrize("expansion, text", [(8 / 3, "e2.6666666666666665"), (1.5, "e1.5")])
def test_expansions_are_written_with_all_their_digits(expansion, text):
    block = Block(3, 1, expansion, 24, 24)
    assert f"_{text}_" in encode_block(block) and decode_block(encode_block(block)) == block


@settings(CODEC, max_examples=200)
@given(
    block=MBCONV_BLOCKS | SHUFFLE_BLOCKS,
    place=st.integers(0, 40),
    end=st.integers(0, 3),
    text=st.text("rksieonpa_.0123456789", max_size=3),
)
def test_a_changed_string_is_refused_or_that_of_another_block(block, place, end, text):
    whole = encode_block(block)
    changed = whole[:place] + text + whole[place + end :]
    try:
        assert encode_block(decode_block(changed)) == changed
    except ArchitectureError as error:
        assert f"block '{changed}'" in str(error) and "expected the form" in str(error)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("r1_k5_s22_e6_i16", "'o' is missing"),
        ("r1_k5_s22_e6_i16_o24_k3", "'k' is repeated"),
        ("r1_k5_s22_e6_i16_o24_x1", "unknown token 'x1'"),
        ("r1_k5_s22_e6_i16_o24_noskip1", "unknown token 'noskip1'"),
        ("r2_k5_s22_e6_i16_o24", "repeats are written out"),
        ("r1_k4_s22_e6_i16_o24", "kernel size 4"),
        ("r1_k5_s21_e6_i16_o24", "stride 's21'"),
        ("r1_k5_s33_e6_i16_o24", "stride 3"),
        ("r1_k5_s22_e0.3_i16_o24", "expansion 0.3"),
        ("r1_k5_s22_e1.3_i16_o24", "expansion 1.3"),
        ("k5_r1_s22_e6_i16_o24", "out of order"),
        ("r1_k05_s22_e6_i16_o24", "shortest form"),
        ("r1_k5_s22_e6_i16_o24_se2", "squeeze-and-excitation ratio 2"),
        ("", "unknown token ''"),
    ],
)
def test_malformed_block_strings_are_refused(text, reason):
    with pytest.raises(ArchitectureError, match=reason):
        decode_block(text)


@pytest.mark.parametrize(
    "name, classes, cost",
    [
        ("spnas_pixel1", 1000, (4_421_616, 333_467_072)),
        ("nas_bench_macro_largest", 10, (2_932_586, 105_660_928)),
    ],
)
def test_golden_counts_of_published_networks(name, classes, cost):
    assert network_cost(load_architecture(name), classes) == cost


@pytest.mark.parametrize("name", shipped_architectures())
def test_arithmetic_equals_the_built_network(name):
    """Parameters against the cells' own, multiply-adds against a walk over weights and strides."""
    arch = load_architecture(name)
    network = SPNASNet(arch, 10)
    built = sum(parameter.size for parameter in network.trainable_params())
    size, macs, block = arch.image_size, 0, ""
    for name, cell in network.cells_and_names():
        if type(cell).__name__ == "Conv2d":
            if name.split(".")[:2] != block:
                block, entry = name.split(".")[:2], size
            if ".projection.0." in name:  # beside the branch
                size = entry
            size = -(-size // cell.stride[0])
            macs += cell.weight.size * size * size
    macs += network.classifier.weight.size
    assert network_cost(arch, 10) == (built, macs)


def test_squeeze_and_excitation_is_counted_and_built():
    block = Block(3, 1, 6, 16, 16, se_ratio=0.25)
    arch = Architecture("se", 32, (Block(3, 1, 1, 32, 16), block))
    network = SPNASNet(arch, 10)
    assert network_cost(arch, 10).params == sum(
        parameter.size for parameter in network.trainable_params()
    )
    extra = 2 * 96 * 4  # two 1x1 convolutions between 96 and 4 channels
    plain = block_cost(Block(3, 1, 6, 16, 16), 16, 16)
    assert block_cost(block, 16, 16) == (plain.params + extra + 96 + 4, plain.macs + extra)


def test_layers_carry_the_networks_names():
    arch = load_architecture("spnas_pixel1")
    names = {parameter.name for parameter in SPNASNet(arch, 10).get_parameters()}
    for layer, _ in layer_costs(arch):
        assert any(name.startswith(layer + ".") for name in names)


def test_published_blocks_are_those_of_the_paper():
    blocks = load_architecture("spnas_pixel1").blocks
    assert [(b.kernel_size, b.expansion) for b in blocks] == (
        [(3, 1)]
        + [(3, 3)] * 3
        + ([(5, 6)] + [(3, 3)] * 3) * 2
        + [(5, 6)]
        + [(5, 3)] * 3
        + [(5, 6)] * 4
        + [(3, 6)]
    )
    assert [i for i, b in enumerate(blocks) if b.stride == 2] == [1, 4, 8, 16]
    assert load_architecture("spnas_pixel1_32").total_stride == 8


def test_file_round_trip(tmp_path):
    arch = load_architecture("spnas_pixel1")
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(arch.to_dict()))
    assert load_architecture(path) == arch


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"format": "other"}, "not of the expected kind"),
        ({"version": 9}, "version 9"),
        ({"blocs": []}, "unknown key 'blocs', did you mean 'blocks'"),
        ({"head_channels": None}, "head_channels is None: input should be a valid integer"),
        ({"activation": "gelu"}, "activation is 'gelu': input should be 'relu' or 'relu6'"),
        ({"classifier_bias": 1}, "classifier_bias is 1: input should be a valid boolean"),
        ({"blocks": ["r1_k3_s11_e1_i32_o16", "r1"]}, "blocks.1: block 'r1': token 'k' is missing"),
        ({"blocks": []}, "has no blocks"),
        (
            {"blocks": ["r1_k3_s11_e1_i32_o16", "r1_k3_s11_e3_i24_o24"]},
            "takes 24 channels, the layer before it gives 16",
        ),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, change, reason):
    path = tmp_path / "arch.json"
    path.write_text(json.dumps({**load_architecture("spnas_pixel1").to_dict(), **change}))
    with pytest.raises(ArchitectureError, match=reason) as error:
        load_architecture(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("key", ["stem_channels", "bn_epsilon", "blocks", "provenance"])
def test_files_state_what_has_a_default(tmp_path, key):
    data = load_architecture("spnas_pixel1").to_dict()
    assert not {"activation", "classifier_bias"} & set(data)  # at their defaults
    del data[key]
    with pytest.raises(ArchitectureError, match=f"a.json: key '{key}' is missing"):
        Architecture.from_dict(data, "a.json")


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ArchitectureError, match="spnas_pixel1"):
        load_architecture("spnas_pixel2")
