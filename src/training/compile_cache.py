"""MindSpore's compile cache, keyed so that it cannot go stale.

MindSpore reuses a cached graph when the sources are the same, even though values that went into the
graph (weight decay, smoothing, shapes) have changed. So each combination of everything that shapes
a graph has a cache folder of its own. A folder is used for reading only once a run has filled it to
the end. Within a folder MindSpore knows a graph by its place in the order of compilation: a program
compiles in the same order in every run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from src.kernels import build

log = logging.getLogger(__name__)

SOURCES = Path(__file__).resolve().parents[1]  # src, with all its rooms
_FILLING = ".filling-"
_PARTIAL = ".partial"  # within a folder that lacks graphs; a run adds them in a copy
# MindSpore looks at both when it compiles a graph. The folder is that of the first graph of a
# process, whatever is set later.
_SWITCH, _FOLDER = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"


def _remove_old(root: Path) -> None:
    """Delete what has not been used for a month, with what killed runs left half-filled.

    Nothing in a folder tells a killed run from one that has compiled all its graphs and trains on.
    """
    for folder in root.iterdir():
        if folder.stat().st_mtime < time.time() - 30 * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def cache_key(values: dict[str, Any]) -> str:
    """Digest of the given values, MindSpore's version and all of this project's sources.

    Sources count since MindSpore's own check sees a changed file only where it compiled that file
    itself: an edited C++ operator or a changed default would go unnoticed. Where the values say
    that there are ``kernels``, the path of the compiled operators counts too: graphs contain it,
    and each kind of processor has another one.
    """
    import mindspore as ms

    library = build.library() if values.get("kernels") else None
    described = json.dumps([values, ms.__version__, library], sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode())
    for file in sorted(SOURCES.rglob("*")):
        if file.suffix in (".py", ".h", ".cpp"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


class CompileCache:
    """Context in which graphs are compiled: reads the cache of these values, or fills a new one.

    Args:
        values: everything besides sources and versions that shapes the graphs.
    """

    def __init__(self, values: dict[str, Any], enabled: bool = True) -> None:
        self._final = build.cache_root() / "graphs" / cache_key(values) if enabled else None
        self._scratch: Path | None = None

    def __enter__(self) -> CompileCache:
        if self._final is None:
            return self
        try:
            path = self._open(self._final)
        except OSError as error:
            log.warning("graphs are not cached: %s", error)
            self._drop()
            return self
        os.environ.update({_SWITCH: "1", _FOLDER: str(path)})
        return self

    def _open(self, final: Path) -> Path:
        """The folder of these values, or a new one to fill."""
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = (final / _PARTIAL).exists()
        if final.is_dir():
            log.info("compiled graphs from %s", final)
            os.utime(final)
            if not partial:
                return final
        self._scratch = Path(tempfile.mkdtemp(prefix=_FILLING, dir=final.parent))
        if partial:
            shutil.copytree(final, self._scratch, dirs_exist_ok=True)
            (self._scratch / _PARTIAL).unlink()
        return self._scratch

    def stopped_early(self) -> None:
        """Say of a folder that this run has begun to fill that some of its graphs are missing."""
        if self._scratch:
            (self._scratch / _PARTIAL).touch()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Publish a cache that was filled; one that an error left half-filled is dropped."""
        if self._final is None:
            return
        for name in (_SWITCH, _FOLDER):
            os.environ.pop(name, None)
        if self._scratch is None:
            return
        # Another run may have published the same meanwhile, or deleted what is looked at here.
        with contextlib.suppress(OSError):
            if kind is None and any(self._scratch.iterdir()):
                if (self._final / _PARTIAL).exists():
                    shutil.rmtree(self._final)
                os.rename(self._scratch, self._final)
        self._drop()
        with contextlib.suppress(OSError):
            _remove_old(self._final.parent)

    def _drop(self) -> None:
        """Remove what is left of a folder that was to be filled."""
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
