"""Do timm's weights give timm's logits here?

    PYTHONPATH=. PYTHON benchmarks/timm_parity.py --write weights.safetensors logits.npz
    python benchmarks/timm_parity.py --check weights.safetensors logits.npz

PYTHON is an interpreter that has torch, timm, safetensors and pydantic: two steps, as PyTorch and
MindSpore may be installed in two environments. Weights are random, those of batch normalisation
too, so that every parameter counts. Each step takes seconds. Logits differ by 1e-5 of the largest
one, which is as far as the results of each of the two, in float32, are from those in float64; above
1e-4 the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

TOLERANCE = 1e-4
MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
    "int pooled_width, int sampling_ratio, bool aligned) -> Tensor",
)
LIBRARIES = []  # an operator lives as long as its library object


def import_timm():
    """Import timm, also where torchvision's compiled operators do not match PyTorch.

    No classifier uses these operators, so names without an implementation are enough.
    """
    import torch

    try:
        import timm
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for operator in MISSING_OPERATORS:
            library.define(operator)
        LIBRARIES.append(library)
        import timm
    return timm


def write(weights_file: str, logits_file: str) -> None:
    """Write weights of timm's network, and images with the logits that it gives for them."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = import_timm().create_model("spnasnet_100")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            module.momentum = 1.0  # moving statistics are those of the last batch
    # Smooth images and noise: with nothing but noise, global averaging would make all logits alike;
    # without noise, the values of a channel would hardly vary.
    images = torch.nn.functional.interpolate(
        torch.randn(12, 3, 8, 8), size=(224, 224), mode="bilinear"
    )
    images = images + 0.5 * torch.randn_like(images)
    with torch.inference_mode():
        model.train()(images[4:])
        images = images[:4].contiguous()
        logits = model.eval()(images)
    save_file(model.state_dict(), weights_file)
    np.savez(logits_file, images=images.numpy(), logits=logits.numpy())


def check(weights_file: str, logits_file: str) -> None:
    """Load the weights here and print how far the logits are from timm's.

    Raises:
        Fault: further than ``TOLERANCE``.
    """
    from mindspore import Tensor

    from src.arch.architecture import load_architecture
    from src.checkpoint.pretrained import load_pretrained
    from src.deployment.logits import largest_difference
    from src.errors import Fault
    from src.spnasnet import SPNASNet

    expected = np.load(logits_file)
    network = SPNASNet(load_architecture("spnas_pixel1"), num_classes=expected["logits"].shape[1])
    network.set_train(False)
    print(load_pretrained(network, weights_file).summary())
    logits = network(Tensor(expected["images"])).asnumpy()
    error = largest_difference(logits, expected["logits"])
    print(f"largest difference {error:.1e} of the largest logit, {TOLERANCE:g} allowed")
    if error > TOLERANCE:
        raise Fault("the logits are not those of timm")


def main(argv: list[str] | None = None) -> int:
    """Take one of the two steps; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    step = parser.add_mutually_exclusive_group(required=True)
    for flag in ("--write", "--check"):
        step.add_argument(flag, nargs=2, metavar=("WEIGHTS", "LOGITS"))
    args = parser.parse_args(argv)
    if args.write:
        write(*args.write)
        return 0
    from benchmarks.contenders import run  # not where --write runs, with timm alone

    return run(lambda: check(*args.check))


if __name__ == "__main__":
    sys.exit(main())
