"""Convolutions of MindSpore itself on CPU: their time, and which kernels oneDNN computes them with.

    python benchmarks/mindspore_convolutions.py
    ONEDNN_VERBOSE=1 python benchmarks/mindspore_convolutions.py | grep -E ",exec,|ms$"

takes seconds with MindSpore 2.8 and minutes with 2.10. It needs MindSpore alone, of any version; up
to 2.8 the second command's variable is DNNL_VERBOSE. What comes out is in
docs/mindspore_versions.md.
"""

import time

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

ROUNDS = 5
LAYERS = {
    "3x3, stride 2, 3 to 32 channels": (3, lambda: nn.Conv2d(3, 32, 3, 2)),
    "1x1, 96 to 24 channels": (96, lambda: nn.Conv2d(96, 24, 1)),
    "3x3 depthwise, 96 channels": (96, lambda: nn.Conv2d(96, 96, 3, group=96)),
    "3x3, 32 to 32 channels": (32, lambda: nn.Conv2d(32, 32, 3)),
}


class Sum(nn.Cell):
    """The sum of a layer's results, a loss for its gradients."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def construct(self, x):
        """From (N, C, H, W) to ()."""
        return self.layer(x).sum()


def shortest_ms(work, *inputs) -> float:
    """The least time of a computation after its first one, which compiles it."""
    times = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        work(*inputs)
        ms.runtime.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return min(times[1:])


def main() -> None:
    """Print a line per layer."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    print(f"MindSpore {ms.__version__}, 8 images of 56x56, least of {ROUNDS}")
    for name, (channels, create) in LAYERS.items():
        layer, images = create(), Tensor(np.ones((8, channels, 56, 56), np.float32))
        gradient = ms.grad(Sum(layer), 0, layer.trainable_params())
        forward, both = shortest_ms(layer, images), shortest_ms(gradient, images)
        print(f"{name:32} forward {forward:8.1f} ms   with gradients {both:8.1f} ms", flush=True)


if __name__ == "__main__":
    main()
