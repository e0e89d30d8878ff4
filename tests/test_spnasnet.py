"""Folded batch normalisation changes no logits; weights start as they should."""

from __future__ import annotations

import math
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.arch.architecture import load_architecture
from src.checkpoint.format import Meta, read_checkpoint, write_checkpoint
from src.checkpoint.restore import build_network, cell_weights
from src.data.preprocessing import Preprocessing
from src.kernels import available
from src.spnasnet import SPNASNet


@pytest.mark.parametrize("name, size", [("spnas_pixel1", 64), ("spnas_smallest", 32)])
def test_folded_network_gives_the_same_logits(tmp_path, name, size):
    arch, random = replace(load_architecture(name), bn_epsilon=1e-2), np.random.default_rng(0)
    ms.set_seed(0)
    network = SPNASNet(arch, 10)
    for parameter in network.get_parameters():
        if ".bn." in parameter.name:  # far from their initial values; deviations stay positive
            values = random.uniform(0.5, 1.5, parameter.shape)
            parameter.set_data(
                Tensor((values - parameter.name.endswith("mean")).astype(np.float32))
            )
    meta = Meta(arch, Preprocessing(size, size, size, (0, 0, 0), (1, 1, 1)), tuple("0123456789"))
    write_checkpoint(tmp_path / "net.ckpt", cell_weights(network), meta)
    checkpoint = read_checkpoint(tmp_path / "net.ckpt")
    images = Tensor(random.standard_normal((2, 3, size, size)).astype(np.float32))
    expected = build_network(checkpoint)(images).asnumpy()
    for kernels in {False, available()}:
        folded = build_network(checkpoint, folded=True, kernels=kernels)
        got = folded(images).asnumpy()
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
        assert (got.argsort(1) == expected.argsort(1)).all()
        assert not any(".bn." in parameter.name for parameter in folded.get_parameters())


@pytest.mark.parametrize("name", ["spnas_pixel1", "one_shot_cifar10"])
def test_convolutions_start_with_their_deviation(name):
    """He et al., arXiv 1502.01852; in one-shot networks 1 by the input channels per group."""
    network = SPNASNet(load_architecture(name), 10)
    for cell_name, cell in network.cells_and_names():
        weight = getattr(cell, "weight", None)
        if weight is None or weight.ndim != 4:
            continue
        outputs, inputs, side, _ = weight.shape
        sigma = math.sqrt(2 * cell.group / (side * side * outputs))
        if name == "one_shot_cifar10":
            sigma = 1 / inputs
        got = weight.asnumpy().std()
        assert got == pytest.approx(sigma, rel=6 / math.sqrt(weight.size)), cell_name
