"""Fixtures of the tests of the CPU operators."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from src.kernels import build


@pytest.fixture
def library_of(tmp_path, monkeypatch) -> Callable[[int], str]:
    """Gives a library of the operators that computes with a number of threads.

    It is a copy: a library reads the number once, when it is first used, so it has to be used
    before the next one is asked for.
    """

    def copy(threads: int) -> str:
        monkeypatch.setenv("SPNAS_KERNEL_THREADS", str(threads))
        library = build.library()
        assert library
        return str(shutil.copy(library, tmp_path / f"threads_{threads}.so"))

    return copy
