"""Batch normalisation folded into the convolutions before it, for inference."""
from __future__ import annotations

from typing import Mapping

import numpy as np


def fold_batch_norm(parameters: Mapping[str, np.ndarray], epsilon: float) -> dict[str, np.ndarray]:
    """Parameters of the folded network, ``SPNASNet(..., folded=True)``, from those of the trained one.

    With scale = gamma / sqrt(moving variance + epsilon), each ``conv.weight`` is multiplied by its scale and
    ``conv.bias`` = beta - moving mean * scale. Computed in float64.
    """
    folded = {name: value for name, value in parameters.items() if ".bn." not in name}
    for name in parameters:
        layer, found, _ = name.partition(".bn.gamma")
        if not found:
            continue
        gamma, beta, mean, variance = (parameters[f"{layer}.bn.{part}"].astype(np.float64)
                                       for part in ("gamma", "beta", "moving_mean", "moving_variance"))
        scale = gamma / np.sqrt(variance + epsilon)
        weight = parameters[f"{layer}.conv.weight"]
        folded[f"{layer}.conv.weight"] = (weight * scale[:, None, None, None]).astype(weight.dtype)
        folded[f"{layer}.conv.bias"] = (beta - mean * scale).astype(weight.dtype)
    return folded
