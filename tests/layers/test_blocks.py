"""Blocks of the network with weights that are not their own."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.arch.blocks import decode_block
from src.arch.cost import conv_out
from src.kernels import BatchNormReLU, DepthwiseConv2d, available
from src.layers.mbconv import MBConv
from tests.conftest import mode_of
from tests.kernels.test_kernels import assert_near, gradients, normal, parameters

OWN = {"kernel": "block.depthwise.conv.weight", "projection": "block.project.conv.weight"}


class Branch(nn.Cell):
    """The branch of a block, with its own weights."""

    def __init__(self, block: str, kernels: bool) -> None:
        super().__init__()
        self.block = MBConv(decode_block(block), kernels=kernels)
        assert kernels == isinstance(self.block.project.bn, BatchNormReLU)
        assert kernels == isinstance(self.block.depthwise.conv, DepthwiseConv2d)

    def construct(self, x: Tensor) -> Tensor:
        return self.block.branch(x)


class GivenBranch(Branch):
    """The same with a given kernel and projection."""

    def __init__(self, block: str, kernels: bool) -> None:
        super().__init__(block, kernels)
        self.kernel = Parameter(self.block.depthwise.conv.weight.clone(), name="kernel")
        self.projection = Parameter(self.block.project.conv.weight.clone(), name="projection")

    def construct(self, x: Tensor) -> Tensor:
        return self.block.branch(x, self.kernel, self.projection)


@pytest.mark.parametrize(
    "kernels",
    (
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(not available(), reason="no CPU operators here")
        ),
    ),
    ids=("stock", "operators"),
)
@pytest.mark.parametrize(
    "block, training",
    [
        ("r1_k5_s11_e3_i8_o8", True),
        ("r1_k5_s11_e3_i8_o8", False),
        ("r1_k3_s11_e1_i8_o4", True),
        ("r1_k5_s22_e3_i8_o12_se0.25", True),
    ],
)
def test_branch_with_other_weights_equals_a_block_that_has_them(mode, block, training, kernels):
    expected, actual = (
        Branch(block, kernels).set_train(training),
        GivenBranch(block, kernels).set_train(training),
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
