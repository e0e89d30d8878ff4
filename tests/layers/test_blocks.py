"""Blocks of the network with weights that are not their own."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src.arch.blocks import decode_block
from src.arch.cost import conv_out
from src.kernels import available
from src.layers.mbconv import MBConv
from tests.conftest import mode_of
from tests.kernels.reference import assert_near, gradients, normal, parameters

OPERATORS = pytest.mark.skipif(not available(), reason="no CPU operators here")
TO_FIRST = (0, 3, 1, 2)
OWN = {"kernel": "block.depthwise.conv.weight", "projection": "block.project.conv.weight"}


class OwnWeights(nn.Cell):
    """A block with its own weights; images have channels first whether it is fused or not."""

    def __init__(self, block: str, fused: bool) -> None:
        super().__init__()
        self.block = MBConv(decode_block(block), fused=fused)
        self.transpose, self.fused = ops.Transpose(), fused

    def run(self, x: Tensor, *weights: Tensor) -> Tensor:
        if self.fused:
            return self.transpose(self.block(self.transpose(x, (0, 2, 3, 1)), *weights), TO_FIRST)
        return self.block(x, *weights)

    def construct(self, x: Tensor) -> Tensor:
        return self.run(x)


class GivenWeights(OwnWeights):
    """The same with a given kernel and projection."""

    def __init__(self, block: str, fused: bool) -> None:
        super().__init__(block, fused)
        self.kernel = Parameter(self.block.depthwise.conv.weight.clone(), name="kernel")
        self.projection = Parameter(self.block.project.conv.weight.clone(), name="projection")

    def construct(self, x: Tensor) -> Tensor:
        return self.run(x, self.kernel, self.projection)


@pytest.mark.parametrize(
    "block, training, fused",
    [
        ("r1_k5_s11_e3_i8_o8", True, False),
        ("r1_k5_s11_e3_i8_o8", False, False),
        ("r1_k5_s22_e3_i8_o12_se0.25", True, False),
        pytest.param("r1_k5_s11_e3_i8_o8", True, True, marks=OPERATORS),
        pytest.param("r1_k3_s11_e1_i8_o4", True, True, marks=OPERATORS),
    ],
)
def test_block_with_other_weights_equals_one_that_has_them(mode, block, training, fused):
    expected, actual = (
        OwnWeights(block, fused).set_train(training),
        GivenWeights(block, fused).set_train(training),
    )
    own = dict(expected.parameters_and_names())
    for i, (name, parameter) in enumerate(actual.parameters_and_names()):
        value = 0.3 * normal(i, *parameter.shape) + (0.5 if parameter.ndim == 1 else 0)
        value = Tensor(np.abs(value) if "variance" in name else value)
        parameter.set_data(value)
        if name not in OWN.values():  # of the block itself, whose place is taken
            own[OWN.get(name, name)].set_data(value)
    out, stride = decode_block(block).out_channels, decode_block(block).stride
    x, factor = normal(1, 2, 8, 10, 9), normal(2, 2, out, conv_out(10, stride), conv_out(9, stride))
    given = gradients(actual, x, factor)
    with mode_of(ms.PYNATIVE_MODE):  # which spares its compilation
        results = gradients(expected, x, factor)
    for name in OWN.values():
        assert not given.pop(name).any()
    assert {OWN.get(name, name) for name in given} == results.keys()
    for name, value in given.items():
        assert_near(value, results[OWN.get(name, name)])
    for name in OWN:
        assert given[name].any()
    moved = parameters(actual)
    for name, value in parameters(expected).items():
        if "moving" in name:
            assert_near(moved[name], value)
