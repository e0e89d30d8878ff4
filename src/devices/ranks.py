"""The processes of a job, one a device, and what they tell each other besides gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from typing import Any

import numpy as np

from src.errors import Fault

MEETING_SECONDS = (
    1.0  # between two meetings while rank 0 works; collective operations wait 30 s at least
)


class Ranks:
    """The processes of a job, or the only one.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave, by rank: anything that JSON holds, numbers to the last bit."""
        if self.size == 1:
            return [value]
        data = json.dumps(value).encode()
        lengths = self._all_gather(np.array([len(data)], np.int32))[:, 0]
        # As int32, which both CPU and Ascend can gather.
        words = np.frombuffer(data.ljust(-(-int(lengths.max()) // 4) * 4), np.int32)
        return [
            json.loads(row.tobytes()[:length])
            for row, length in zip(self._all_gather(words), lengths)
        ]

    def _all_gather(self, array: np.ndarray) -> np.ndarray:
        """(n,) -> (ranks, n)."""
        from mindspore import Tensor, ops

        return ops.AllGather()(Tensor(array)).asnumpy().reshape(self.size, -1)

    def broadcast(self, array: np.ndarray) -> np.ndarray:
        """Rank 0's array of float32 on all ranks."""
        if self.size == 1:
            return array
        from mindspore import Tensor, ops

        return ops.Broadcast(0)((Tensor(array),))[0].asnumpy()

    def run_on_rank_0(self, work: Callable[[], Any]) -> None:
        """Let rank 0 do something while the others wait for its end, however long it takes.

        They meet every second meanwhile, as an operation between ranks fails where one lets the
        others wait.

        Raises:
            Fault: on the other ranks, where rank 0 failed.
        """
        if self.size == 1:
            work()
        elif self.rank == 0:
            with ThreadPoolExecutor(1) as pool:
                future = pool.submit(work)
                done = False
                while not done:
                    done, failure = self._progress(future)
                    self.gather([done, failure])
            future.result()
        else:
            done, failure = False, None
            while not done:
                done, failure = self.gather(None)[0]
            if failure:
                raise Fault(f"rank 0 failed: {failure}")

    @staticmethod
    def _progress(future: Future) -> tuple[bool, str | None]:
        try:
            error = future.exception(MEETING_SECONDS)
        except NotDone:
            return False, None
        return True, str(error) if error else None
