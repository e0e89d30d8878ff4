"""The runtimes in which latencies are measured, by name.

A further runtime is one class with the members of ``Runtime``, in a file of its own, an entry in
``RUNTIMES`` and its name among those of ``src.config.ProfileConfig.runtime``.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Protocol

from src.config import ProfileConfig
from src.errors import UserError
from src.latency.lite_runtime import LiteRuntime
from src.latency.mindspore_runtime import MindSporeRuntime
from src.latency.model import Model


class Runtime(Protocol):
    """What measures models: it prepares each of them once, then measures them interleaved.

    Attributes:
        name: with which the version of the runtime begins in a latency table.
        devices: on which it measures.
        version: name and version, as in a latency table.
    """

    name: ClassVar[str]
    devices: ClassVar[tuple[str, ...]]
    version: str

    def __init__(self, config: ProfileConfig, folder: Path) -> None:
        """Open the runtime; ``folder`` keeps what is prepared until a measurement is finished."""

    @staticmethod
    def installed() -> str | None:
        """The version installed here; None where that cannot be told. Starts nothing."""

    def prepare(self, model: Model) -> None:
        """Make a model ready to be measured, once.

        Raises:
            UserError: the runtime cannot compute it.
        """

    def measure(
        self, models: Sequence[Model], repeats: int, seed: int
    ) -> Generator[list[tuple[int, float]], None, None]:
        """Measure prepared models, in each round in another random order, until it is closed.

        A model's turn in a round is one inference that is not counted, which brings its weights
        back into the caches, and then ``repeats`` samples.

        Yields:
            The samples of each round in the order in which they were taken: the model's index in
            ``models``, and milliseconds.
        """
        ...


RUNTIMES: Mapping[str, type[Runtime]] = MappingProxyType(
    {"lite": LiteRuntime, "mindspore": MindSporeRuntime}
)


def open_runtime(config: ProfileConfig, folder: Path) -> Runtime:
    """The runtime that the configuration asks for.

    Raises:
        UserError: it does not measure on the device that the configuration asks for, or the device
            is not there.
    """
    runtime = RUNTIMES[config.runtime]
    if config.device not in runtime.devices:
        raise UserError(
            f"device is {config.device}; with --runtime {config.runtime} it should be "
            f"{' or '.join(runtime.devices)}"
        )
    return runtime(config, folder)


def installed_version(version: str) -> str | None:
    """The installed version of the runtime that made a table.

    Args:
        version: name and version of the runtime, as in a latency table.

    Returns:
        Name and version, None where the runtime is unknown or its version cannot be told.
    """
    known = [runtime for runtime in RUNTIMES.values() if version.startswith(runtime.name)]
    if not known:
        return None
    # The name of MindSpore Lite begins with that of MindSpore.
    return max(known, key=lambda runtime: len(runtime.name)).installed()
