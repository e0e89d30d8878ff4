"""MindSpore itself as a runtime, with the networks that ``eval.py`` evaluates."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from src.errors import UserError
from src.latency.model import Model
from src.latency.runtimes import WARM_UP, Runtime
from src.utils import setup_device

if TYPE_CHECKING:  # importing MindSpore takes seconds
    from mindspore import Tensor, nn


class MindSporeMeter:
    """The runtime of training and evaluation; members as in ``src.latency.meters.Meter``.

    What is prepared stays in memory.
    """

    def __init__(self, runtime: Runtime, version: str) -> None:
        from src import kernels

        setup_device(runtime.device, runtime.device_id)
        _limit_threads(runtime.threads)
        self.version = version
        self._kernels = kernels.available()
        self._prepared: dict[str, tuple[nn.Cell, Tensor]] = {}
        self._random = np.random.default_rng(0)  # for the inputs, whose values do not matter

    def prepare(self, model: Model) -> None:
        """Compile a model."""
        from mindspore import Tensor

        if model.name in self._prepared:
            return
        # Operators and folding as eval.py chooses them.
        cell = model.cell(kernels=self._kernels, folded=self._kernels)
        image = Tensor(self._random.standard_normal(model.shape).astype(np.float32))
        try:
            for _ in range(WARM_UP):
                cell(image).asnumpy()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{model.name}: cannot be measured: {reason}") from None
        self._prepared[model.name] = (cell, image)

    def measure(
        self, models: Sequence[Model], repeats: int, seed: int
    ) -> Generator[list[tuple[int, float]], None, None]:
        """Yield the samples of one round after the other."""
        random = np.random.default_rng(seed)
        while True:
            samples = []
            for index in random.permutation(len(models)):
                cell, image = self._prepared[models[index].name]
                cell(image).asnumpy()  # brings its weights back into the caches
                for _ in range(repeats):
                    start = time.perf_counter()
                    cell(image).asnumpy()
                    samples.append((int(index), (time.perf_counter() - start) * 1e3))
            yield samples


@functools.cache
def _limit_threads(threads: int) -> None:
    """Set the threads of operators, of MindSpore and of this project; once per process."""
    from mindspore.device_context.cpu import op_tuning

    op_tuning.threads_num(threads)
    os.environ["SPNAS_KERNEL_THREADS"] = str(threads)  # read at the first operator, kernels/pool.h
