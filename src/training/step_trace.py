"""A trace of some steps of a training, by MindSpore's profiler."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
from mindspore import profiler
from mindspore.profiler import ProfilerActivity

from src.devices.ranks import Ranks

log = logging.getLogger(__name__)

_ACTIVITIES = {
    "CPU": [ProfilerActivity.CPU],
    "Ascend": [ProfilerActivity.CPU, ProfilerActivity.NPU],
}


class StepTrace:
    """Traces rank 0 from the first to the last of some steps.

    Args:
        steps: their numbers; none for no trace.
        folder: where the profiler makes a folder of its files.
        device_target: what the steps are computed on.
    """

    def __init__(self, steps: range, folder: Path, device_target: str, ranks: Ranks) -> None:
        self._steps, self._folder, self._ranks = steps, folder, ranks
        self._activities = _ACTIVITIES[device_target]
        self._profile: profiler.profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A step, which every rank takes."""
        if number not in self._steps:
            yield
            return
        if number == self._steps[0] and self._ranks.rank == 0:
            self._profile = profiler.profile(
                self._activities,
                on_trace_ready=profiler.tensorboard_trace_handler(str(self._folder)),
            )
        yield
        if number == self._steps[-1]:
            ms.runtime.synchronize()  # devices lag behind
            self._ranks.run_on_rank_0(self._write)

    def _write(self) -> None:
        if self._profile is None:  # a resumed run, which did not take the first of the steps
            return
        self._profile.stop()
        self._profile = None
        # The profiler logs its errors and raises none.
        written = sorted(self._folder.rglob("trace_view.json"))
        if not written:
            log.warning("%s: the profiler has written no trace", self._folder)
            return
        log.info(
            "trace of steps %d to %d: %s; https://ui.perfetto.dev, chrome://tracing or MindStudio "
            "Insight shows it",
            self._steps[0],
            self._steps[-1],
            written[-1],
        )
