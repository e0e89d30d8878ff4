"""Training step with and without the project's CPU operators, measured in turn.

    python benchmarks/cpu_kernels.py            # both networks, about 3 minutes
    python benchmarks/cpu_kernels.py --arch spnas_pixel1 --image_size 224 --batch_size 32 --rounds 10

Prints the median of each in milliseconds and the median of the ratios of neighbouring steps.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CASES = (("spnas_pixel1", 224, 32), ("spnas_pixel1_32", 32, 64))


def create_step(arch: str, image_size: int, batch_size: int, kernels: bool):
    """A function that trains on one batch of noise and waits for the loss."""
    import mindspore as ms
    from mindspore import Tensor

    from src.architecture import load_architecture
    from src.config import TrainConfig, digits_cfg
    from src.CrossEntropySmooth import CrossEntropySmooth
    from src.spnasnet import SPNASNet
    from src.train_step import TrainStep, create_optimizer

    config = TrainConfig(**{**digits_cfg, "drop_rate": 0.0})
    ms.set_seed(1)
    network = SPNASNet(load_architecture(arch), 10, kernels=kernels)
    optimizer = create_optimizer(network, config, np.full(1000, 0.05, np.float32))
    step = TrainStep(network, CrossEntropySmooth(0.1), optimizer, config, mixed_precision=False)
    step.set_train()
    rng = np.random.default_rng(0)
    images = Tensor(rng.standard_normal((batch_size, 3, image_size, image_size)).astype(np.float32))
    labels = Tensor(rng.integers(0, 10, batch_size).astype(np.int32))
    keep = Tensor(np.ones(1, np.float32))
    return lambda: step(images, labels, keep)[0].asnumpy()


def measure(arch: str, image_size: int, batch_size: int, rounds: int) -> None:
    steps = {name: create_step(arch, image_size, batch_size, name == "on") for name in ("on", "off")}
    for step in steps.values():
        step(), step()  # compiles; the second call warms caches
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    ratio = np.median(np.array(seconds["on"]) / np.array(seconds["off"]))
    on, off = (1000 * np.median(seconds[name]) for name in ("on", "off"))
    print(f"{arch}, {image_size}x{image_size}, batch {batch_size}: operators on {on:.0f} ms, off {off:.0f} ms, "
          f"ratio {ratio:.2f} ({rounds} rounds)", flush=True)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", help="architecture by name; default: both standard cases")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args(argv)

    import mindspore as ms

    from src.kernels import available

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    if not available():
        print("the CPU operators are not available here", file=sys.stderr)
        return 1
    for case in CASES if args.arch is None else ((args.arch, args.image_size, args.batch_size),):
        measure(*case, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
