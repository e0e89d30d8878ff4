"""Folded batch normalisation changes no logits."""

from __future__ import annotations

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
    arch, random = load_architecture(name), np.random.default_rng(0)
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
