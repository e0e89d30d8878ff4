"""What data-parallel training costs on CPU, and how long a job takes to its first step.

    python benchmarks/data_parallel.py                  # 2 processes of one core each against one
    python benchmarks/data_parallel.py --start_up 8     # the start of 8 processes

The first prints the median step of one process, of two that train apart at the same time, and of
two that average their gradients, all at the same batch size per process. They are taken in turns,
by the same processes, each on a core of its own with one thread. The second prints the seconds from
the start of the launcher to the end of the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import ROOT, median_ratio, natural_classes, noise

TINY = {
    "format": "spnas-architecture",
    "version": 1,
    "name": "tiny",
    "image_size": 32,
    "stem_channels": 8,
    "stem_stride": 2,
    "blocks": ["r1_k3_s11_e1_i8_o8_noskip", "r1_k3_s22_e3_i8_o16"],
    "head_channels": 32,
    "bn_epsilon": 1e-5,
    "provenance": {},
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "SPNAS_KERNEL_THREADS": "1"}


def create_step(arch: str, batch_size: int, device_num: int) -> Callable[[], float]:
    """A function that trains on one batch of noise and returns its loss."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    from src.arch.architecture import load_architecture
    from src.config import TrainConfig
    from src.CrossEntropySmooth import CrossEntropySmooth
    from src.kernels import use_kernels
    from src.spnasnet import SPNASNet
    from src.training.optimizer import create_optimizer
    from src.training.step import TrainStep, Update

    ms.set_seed(1)
    architecture, config = load_architecture(arch), TrainConfig()
    classes = natural_classes(architecture.image_size)
    rates, kernels = np.full(10_000, 1e-3, np.float32), use_kernels("auto")
    network = SPNASNet(architecture, classes, kernels=kernels)
    optimizer = create_optimizer(network, config, rates, kernels=kernels)
    update = Update(network, optimizer, config, mixed_precision=False, device_num=device_num)
    step = TrainStep(network, CrossEntropySmooth(config.label_smooth_factor), update).set_train()
    images, labels = noise(batch_size, architecture.image_size, classes)
    batch = Tensor(images), Tensor(labels.astype(np.int32)), Tensor(np.ones(1, np.float32))
    return lambda: float(step(*batch)[0].asnumpy())


def work(args: argparse.Namespace) -> None:
    """One process of the job; rank 0 writes its seconds."""
    if not args.start_up and "RANK_ID" in os.environ:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ["RANK_ID"]) % len(cores)]})
    from src.utils import setup_device

    ranks = setup_device("CPU", 0)
    together = create_step(args.arch, args.batch_size, ranks.size)
    together()
    found: dict[str, Any] = {"first step": time.time() - args.started}
    if not args.start_up:
        single = create_step(args.arch, args.batch_size, 1)
        seconds: dict[str, list[float]] = {"one": [], "apart": [], "together": []}
        single()
        for _ in range(args.rounds + 1):  # the first round is not counted
            for name in seconds:
                step = together if name == "together" else single
                ranks.gather(None)  # all ranks begin at the same time
                if name != "one" or ranks.rank == 0:
                    start = time.perf_counter()
                    step()
                    seconds[name].append(time.perf_counter() - start)
        found.update({name: values[1:] for name, values in seconds.items()})
    if ranks.rank == 0:
        args.output.write_text(json.dumps(found))


def launch(device_num: int, args: argparse.Namespace) -> dict[str, Any]:
    """What rank 0 of a job of these processes wrote."""
    with tempfile.TemporaryDirectory() as folder:
        output, arch = Path(folder) / "found.json", args.arch
        if args.start_up:
            arch = Path(folder) / "tiny.json"
            arch.write_text(json.dumps(TINY))
        command = ["bash", ROOT / "scripts/run_train.sh", "--device_num", device_num]
        command += ["--program", "benchmarks/data_parallel.py", "digits", "--foreground"]
        command += ["--log_dir", folder, "--output", output, "--arch", arch]
        command += ["--batch_size", args.batch_size, "--rounds", args.rounds]
        command += ["--start_up", args.start_up, "--started", time.time()]
        run = subprocess.run(
            list(map(str, command)),
            text=True,
            capture_output=True,
            check=False,
            env={
                **os.environ,
                "DEVICE_TARGET": "CPU",
                **({} if args.start_up else ONE_THREAD),
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
        )
        if run.returncode:
            sys.exit(run.stdout[-3000:] + run.stderr)
        return json.loads(output.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="spnas_pixel1", help="architecture by name")
    parser.add_argument(
        "--batch_size", type=int, default=32, help="images per step of each process"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--start_up", type=int, default=0, metavar="N", help="time the start of N processes instead"
    )
    for flag, kind in (
        ("--output", Path),
        ("--started", float),
        ("--dataset_name", str),
        ("--device_target", str),
    ):
        parser.add_argument(flag, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds should be at least 1")
    if args.output:
        work(args)
        return 0
    if args.start_up:
        seconds = launch(args.start_up, args)["first step"]
        print(f"{args.start_up} processes: {seconds:.1f} s to the end of the first step")
        return 0
    found = launch(2, args)
    print(f"{args.arch}, batch {args.batch_size} per process")
    for name, text in (
        ("one", "one process"),
        ("apart", "two, apart"),
        ("together", "two, gradients averaged"),
    ):
        ratio = median_ratio(found[name], found["one"])
        print(f"{text:<24}{1000 * statistics.median(found[name]):>7.0f} ms per step{ratio:>8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
