"""The same network in PyTorch, from timm: the reference of the benchmarks."""

from __future__ import annotations

import torch

_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
    "int pooled_width, int sampling_ratio, bool aligned) -> Tensor",
)
_LIBRARIES: list[torch.library.Library] = []  # an operator lives as long as its library object


def _import_timm():
    """Import timm, also where torchvision's compiled operators do not match PyTorch.

    No classifier uses these operators, so names without an implementation are enough.
    """
    try:
        import timm
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for operator in _MISSING_OPERATORS:
            library.define(operator)
        _LIBRARIES.append(library)
        import timm
    return timm


def spnasnet_100(num_classes: int = 1000, *, lowered_strides: bool = False) -> torch.nn.Module:
    """The paper's network by timm, with random weights, in evaluation mode.

    Args:
        num_classes: outputs of the classifier.
        lowered_strides: stride 1 in stem and first stage, as in the architecture
            ``spnas_pixel1_32``.
    """
    network = _import_timm().create_model("spnasnet_100", num_classes=num_classes).eval()
    if lowered_strides:
        for conv in (network.conv_stem, network.blocks[1][0].conv_dw):
            conv.stride = (1, 1)
    return network


def fold(network: torch.nn.Module) -> torch.nn.Module:
    """Fold batch normalisation into the convolutions before it; returns the network."""
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d))
    ]
    # In this network every convolution is followed by its batch normalisation.
    for (conv_name, conv), (norm_name, norm) in zip(layers[::2], layers[1::2], strict=True):
        network.set_submodule(conv_name, torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm))
        network.set_submodule(norm_name, norm.act)  # timm's normalisation includes the activation
    return network
