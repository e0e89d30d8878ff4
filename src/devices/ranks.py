"""The processes of a job, one per device, and what they tell each other besides gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from typing import Any

import numpy as np

from src.errors import Fault

# Between two meetings while rank 0 works. A collective operation fails where a process is late by
# MS_NODE_TIMEOUT, 30 s in MindSpore itself, so this leaves a wide margin and costs nothing.
MEETING_SECONDS = 1.0


class Ranks:
    """The processes of a job, or the only one.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def gather(self, value: Any) -> list[Any]:
        """Tell all ranks what each of them gave; every rank has to call it.

        MindSpore's own collectives of objects are not used: they exist on Ascend only, and they
        read what other processes send with pickle, which runs any code that it contains.

        Args:
            value: anything that JSON can hold; numbers keep their last bit.

        Returns:
            The values by rank.
        """
        if self.size == 1:
            return [value]
        data = json.dumps(value).encode()
        lengths = self._all_gather(np.array([len(data)], np.int32))[:, 0]
        # All ranks send the same number of bytes, as int32, which both CPU and Ascend can gather.
        item = np.dtype(np.int32).itemsize
        padded = data.ljust(-(-int(lengths.max()) // item) * item)
        rows = self._all_gather(np.frombuffer(padded, np.int32))
        return [
            json.loads(row.tobytes()[:length]) for row, length in zip(rows, lengths, strict=True)
        ]

    def _all_gather(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all ranks: (n,) -> (ranks, n)."""
        # Imported here, as that takes seconds and a single process does not need it.
        from mindspore import Tensor, ops

        return ops.AllGather()(Tensor(array)).asnumpy().reshape(self.size, -1)

    def broadcast(self, array: np.ndarray) -> np.ndarray:
        """Rank 0's array of float32, on all ranks.

        Args:
            array: of the same shape on every rank.
        """
        if self.size == 1:
            return array
        from mindspore import Tensor, ops

        return ops.Broadcast(0)((Tensor(array),))[0].asnumpy()

    def run_on_rank_0(self, work: Callable[[], Any]) -> None:
        """Let rank 0 do something while the others wait until it ends, however long that takes.

        Meanwhile all ranks meet every second, because an operation between ranks fails where one
        keeps the others waiting.

        Args:
            work: called by rank 0 only.

        Raises:
            Fault: on the other ranks, where rank 0 failed.
        """
        if self.size == 1:
            work()
        elif self.rank == 0:
            # In a thread, so that this one can go on meeting the others.
            with ThreadPoolExecutor(1) as pool:
                future = pool.submit(work)
                done = False
                while not done:
                    done, failure = self._progress(future)
                    self.gather([done, failure])
            future.result()  # raises on rank 0 what the work raised
        else:
            done, failure = False, None
            while not done:
                done, failure = self.gather(None)[0]
            if failure:
                raise Fault(f"rank 0 failed: {failure}")

    @staticmethod
    def _progress(future: Future) -> tuple[bool, str | None]:
        """Whether the work has ended, and how it failed if it did."""
        try:
            error = future.exception(MEETING_SECONDS)
        except NotDone:
            return False, None
        return True, (str(error) or type(error).__name__) if error else None
