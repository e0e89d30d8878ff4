"""SIGTERM and SIGINT end a run between two steps, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType


class StopSignal:
    """Notes SIGTERM and SIGINT, so that the loop can end between two steps.

    A second signal ends the process at once.

    Attributes:
        received: what this process got.
        agreed: what all ranks know that any of them got; all end at the same step.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.agreed: signal.Signals | None = None
        self.listen()

    def listen(self) -> None:
        """Install the handlers, again after each start of a data pipeline, which replaces them."""
        if self.received is None:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def agree(self, received: Sequence[int | None]) -> None:
        """Take note of what all ranks got."""
        self.agreed = next((signal.Signals(number) for number in received if number), None)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)
