"""Networks written for timm have their logits there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor
from safetensors import safe_open

from src.arch.architecture import Architecture, load_architecture
from src.arch.blocks import Block
from src.checkpoint.format import Checkpoint, Meta, read_checkpoint, write_checkpoint
from src.checkpoint.pretrained import load_pretrained
from src.checkpoint.restore import build_network, cell_weights
from src.data.preprocessing import Preprocessing
from src.data.sources import ImageFolder
from src.dataset import Loader
from src.deployment.timm_weights import timm_stages, write_timm
from src.errors import UserError
from src.spnasnet import SPNASNet
from tests.conftest import ROOT
from tests.deployment.test_export import PREPROCESSING, SHUFFLES, random_network

# All that blocks can be: without expansion, with and without a residual connection, of other
# kernels and ratios, with squeeze-and-excitation, and of stride 2 at the same number of channels.
MIXED = Architecture(
    name="mixed",
    image_size=32,
    stem_channels=16,
    stem_stride=1,
    head_channels=40,
    bn_epsilon=1e-3,
    blocks=(
        Block(3, 1, 1, 16, 16, se_ratio=0.5),
        Block(5, 2, 1.5, 16, 24),
        Block(7, 1, 3, 24, 24, se_ratio=0.25),
        Block(3, 1, 6, 24, 24, skip=False),
        Block(5, 2, 3, 24, 40),
        Block(3, 2, 3, 40, 40),
    ),
)


@pytest.fixture
def checkpoint(tmp_path):
    """Makes the checkpoint of a network with random weights and statistics."""

    def make(arch: Architecture) -> Checkpoint:
        path = tmp_path / f"{arch.name}.ckpt"
        meta = Meta(arch, PREPROCESSING, tuple("0123456789"))
        write_checkpoint(path, cell_weights(random_network(arch)), meta)
        return read_checkpoint(path)

    return make


@pytest.fixture(scope="session")
def images(few_digits) -> np.ndarray:
    loader = Loader(ImageFolder(few_digits / "val"), PREPROCESSING, batch_size=8, training=False)
    return next(iter(loader.epoch()))[0]


def test_the_published_network_in_timms_grammar():
    """As timm's own spnasnet_100 is written, but for repeats."""
    stages = timm_stages(load_architecture("spnas_pixel1"), "file")
    assert [len(stage) for stage in stages] == [1, 3, 4, 4, 4, 4, 1]
    assert stages[1] == ["ir_r1_k3_s2_e3_c24", "ir_r1_k3_s1_e3_c24", "ir_r1_k3_s1_e3_c24"]
    assert stages[0] + stages[-1] == ["ds_r1_k3_s1_c16_noskip", "ir_r1_k3_s1_e6_c320_noskip"]


def test_a_file_holds_the_network_and_says_what_it_is(checkpoint, images, tmp_path):
    saved = checkpoint(MIXED)
    program = write_timm(saved, tmp_path / "new" / "mixed.safetensors")
    network = SPNASNet(MIXED, 10)
    report = load_pretrained(network, tmp_path / "new" / "mixed.safetensors")
    assert report.source == "timm" and not report.fresh and not report.unused
    logits = network.set_train(False)(Tensor(images)).asnumpy()
    np.testing.assert_array_equal(logits, build_network(saved)(Tensor(images)).asnumpy())
    with safe_open(tmp_path / "new" / "mixed.safetensors", "numpy") as file:
        texts = file.metadata()
    assert Architecture.from_dict(json.loads(texts["architecture"])) == MIXED
    assert Preprocessing.from_dict(json.loads(texts["preprocessing"])) == PREPROCESSING
    assert json.loads(texts["classes"]) == list("0123456789")
    assert texts["program"] == program and "mixed.safetensors" in program


@pytest.mark.parametrize(
    "arch, problem",
    [
        (SHUFFLES, "has blocks other than MBConv"),
        (replace(MIXED, activation="relu6"), "stem and head is relu6"),
        (replace(MIXED, classifier_bias=False), "no bias"),
        (replace(MIXED, blocks=(Block(3, 1, 1.25, 16, 16),)), "20 channels"),
    ],
)
def test_what_timm_cannot_be_is_refused(arch, problem):
    with pytest.raises(UserError, match=f"^file: .* '{arch.name}': .*{problem}"):
        timm_stages(arch, "file")


def test_mistakes_are_told_in_a_line(call_program, checkpoint, tmp_path):
    saved = checkpoint(MIXED)
    run = call_program("scripts/to_timm.py", saved.path, "--out", "mixed.pth")
    assert run.returncode == 2 and "should be a file that ends in .safetensors" in run.stderr
    run = call_program("scripts/to_timm.py", "none.ckpt", "--out", "mixed.safetensors")
    assert run.returncode == 2 and "none.ckpt: no such checkpoint" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    run = call_program("scripts/to_timm.py", saved.path, "--out", "mixed.safetensors")
    assert run.returncode == 0 and "model.load_state_dict" in run.stdout
    assert (tmp_path / "mixed.safetensors").is_file()


def timm_python() -> str:
    """An interpreter that has timm: the one of TIMM_PYTHON, or this one."""
    if not os.environ.get("TIMM_PYTHON") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed; TIMM_PYTHON names an interpreter that has it")
    return os.environ.get("TIMM_PYTHON") or sys.executable


def logits_in_timm(program: str, folder, images: np.ndarray) -> np.ndarray:
    np.save(folder / "images.npy", images)
    program = (
        "from benchmarks.timm_parity import import_timm\n"
        f"timm = import_timm()\n{program}"
        "import numpy, torch\n"
        "images = torch.from_numpy(numpy.load('images.npy'))\n"
        "numpy.save('logits.npy', model(images).detach().numpy())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([timm_python(), "-c", program], cwd=folder, check=True, env=environment)
    return np.load(folder / "logits.npy")


@pytest.mark.parametrize("name", ["mixed", "spnas_pixel1_32", "spnas_pixel1"])
def test_logits_in_timm(checkpoint, images, tmp_path, name):
    timm_python()
    saved = checkpoint(MIXED if name == "mixed" else load_architecture(name))
    program = write_timm(saved, tmp_path / "weights.safetensors")
    if name == "spnas_pixel1":
        program += (
            "model = timm.create_model('spnasnet_100', num_classes=10, "
            "checkpoint_path='weights.safetensors').eval()\n"
        )
    here = build_network(saved)(Tensor(images)).asnumpy()
    there = logits_in_timm(program, tmp_path, images)
    assert np.ptp(here, axis=0).max() > 0.01 * np.abs(here).max()
    assert np.abs(there - here).max() <= 1e-5 * np.abs(here).max()
