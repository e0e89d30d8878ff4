"""What the training loop is given to train."""

from __future__ import annotations

from typing import Any, Protocol

from mindspore import Tensor, nn

from src.dataset import Loader
from src.training.evaluation import Result


class Task(Protocol):
    """What is trained: a single network, a superkernel search, a one-shot or an elastic supernet.

    A task is created when everything has been checked, with the ``src.training.run.Run`` that it
    belongs to, under the compile cache and after the seed has been set.

    Attributes:
        step: the compiled training step, whose parameters are the whole state of the training.
    """

    step: nn.Cell

    @property
    def network(self) -> nn.Cell | None:
        """For validation, None without.

        A cell of its own: one that changes its mode would be compiled in turn for both, and this
        one can hold the weight average.
        """

    def train_batch(
        self, images: Tensor, labels: Tensor, epoch: int, batch: int
    ) -> tuple[Tensor, ...]:
        """Train on a batch.

        What the step takes besides images and labels follows from the number of the batch only.

        Args:
            images: (N, 3, H, W).
            labels: (N,) of int32.
            epoch: from 0.
            batch: of the epoch, from 1.

        Returns:
            Loss, number of correct predictions and whatever ``observe`` reads.
        """

    def observe(self, outputs: list[tuple[Tensor, ...]], epoch: int, batch: int) -> dict[str, Any]:
        """Further values of the steps since the last line, for ``metrics.jsonl`` and the terminal.

        Args:
            outputs: of the batches up to and including ``batch``.
        """

    def evaluate(self, loader: Loader) -> Result:
        """Validate ``network``, whose weights are the current ones."""

    def finish(self) -> None:
        """Work at the end of the last epoch."""
