"""Networks for timm: their weights under its names, and the Python that makes the network there.

timm's ``EfficientNet`` makes a network of strings such as ``ir_r1_k5_s2_e6_c24``, in stages.
Weights of the published network, ``spnas_pixel1``, are those of timm's own ``spnasnet_100``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from src.arch.architecture import Architecture
from src.arch.blocks import Block
from src.checkpoint.format import Checkpoint
from src.checkpoint.pretrained import to_timm_names
from src.checkpoint.restore import build_network, cell_weights
from src.data.preprocessing import Preprocessing
from src.errors import UserError
from src.files import make_folder, whole

SUFFIX = ".safetensors"
CHANNEL_STEP = 8  # timm rounds channels to multiples of it
STEM_STRIDE = 2  # of every EfficientNet in timm, until it is changed


def write_timm(checkpoint: Checkpoint, path: Path) -> str:
    """Write the weights of a checkpoint's network under timm's names.

    The file also holds, as texts, the architecture, the preprocessing, the classes, and what this
    function returns.

    Args:
        path: the file, which ends in ``.safetensors``.

    Returns:
        Python that makes the network in timm and loads the file.

    Raises:
        UserError: the checkpoint is none of a network, or timm has no such network.
    """
    if path.suffix != SUFFIX:
        raise UserError(f"out is '{path}', should be a file that ends in {SUFFIX}")
    meta = checkpoint.meta
    stages = timm_stages(meta.arch, checkpoint.path)
    weights = cell_weights(build_network(checkpoint))
    blocks = [
        f"blocks.{stage}.{index}"
        for stage, strings in enumerate(stages)
        for index in range(len(strings))
    ]
    names = to_timm_names(weights, blocks)
    program = timm_program(meta.arch, stages, meta.preprocessing, len(meta.classes), path.name)
    texts = {
        "architecture": json.dumps(meta.arch.to_dict()),
        "preprocessing": json.dumps(meta.preprocessing.to_dict()),
        "classes": json.dumps(meta.classes),
        "program": program,
    }
    make_folder(path.parent)
    entries = {names[name]: np.ascontiguousarray(value) for name, value in weights.items()}
    with whole(path) as scratch:
        save_file(entries, scratch, metadata=texts)
    return program


def timm_stages(arch: Architecture, origin: str | Path) -> list[list[str]]:
    """The blocks of a network in timm's grammar, by stage.

    A stage starts where the number of channels changes, and at each stride of 2.

    Args:
        origin: names the checkpoint in errors.

    Raises:
        UserError: timm's EfficientNet cannot be such a network.
    """
    blocks = [block for block in arch.blocks if isinstance(block, Block)]
    problem = _problem(arch, blocks)
    if problem:
        raise UserError(
            f"{origin}: timm's EfficientNet cannot be architecture '{arch.name}': {problem}"
        )
    stages: list[list[str]] = []
    channels = None
    for block in blocks:
        # timm gives every block but the first of a stage a stride of 1.
        if block.stride > 1 or block.out_channels != channels:
            stages.append([])
        stages[-1].append(_timm_string(block))
        channels = block.out_channels
    return stages


def _problem(arch: Architecture, blocks: list[Block]) -> str | None:
    """What timm's EfficientNet lacks for a network with these MBConv blocks; None for nothing."""
    if len(blocks) < len(arch.blocks):
        return "it has blocks other than MBConv"
    if arch.activation != "relu":
        return f"the activation of its stem and head is {arch.activation}, of its blocks relu"
    if not arch.classifier_bias:
        return "its classifier has no bias"
    inner = [channels for block in blocks for channels in (block.mid_channels, block.out_channels)]
    for channels in (arch.stem_channels, *inner):
        if channels % CHANNEL_STEP:
            return f"a layer has {channels} channels; timm rounds to multiples of {CHANNEL_STEP}"
    return None


def _timm_string(block: Block) -> str:
    """A block in timm's grammar, where one without expansion is of another kind."""
    kind, expansion = ("ds", "") if block.expansion == 1 else ("ir", f"_e{block.expansion:g}")
    text = f"{kind}_r1_k{block.kernel_size}_s{block.stride}{expansion}_c{block.out_channels}"
    if block.se_ratio:
        text += f"_se{block.se_ratio:g}"
    return text if block.skip else text + "_noskip"


def timm_program(
    arch: Architecture,
    stages: list[list[str]],
    preprocessing: Preprocessing,
    classes: int,
    file: str,
) -> str:
    """Python that makes a network in timm and loads its weights from ``file``."""
    strings = "\n".join(f"        {json.dumps(stage)}," for stage in stages)
    # timm turns what goes beyond its output stride into dilation; none of this network does.
    output_stride = STEM_STRIDE * math.prod(block.stride for block in arch.blocks)
    mean, std = (
        tuple(round(value / 255, 6) for value in values)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return f"""\
from functools import partial

from safetensors.torch import load_file
from timm.models.efficientnet import EfficientNet, decode_arch_def
from torch.nn import BatchNorm2d

# Images: short side {preprocessing.resize}, centre crop {preprocessing.height}x\
{preprocessing.width}, values 0 to 1, mean {mean}, standard deviation {std}.
model = EfficientNet(
    decode_arch_def([
{strings}
    ]),
    num_classes={classes},
    num_features={arch.head_channels},
    stem_size={arch.stem_channels},
    output_stride={output_stride},
    norm_layer=partial(BatchNorm2d, eps={arch.bn_epsilon!r}),
)
model.conv_stem.stride = ({arch.stem_stride}, {arch.stem_stride})
model.load_state_dict(load_file({file!r}))
model.eval()
"""
