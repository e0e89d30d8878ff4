"""The cache of compiled graphs: its key follows all sources, and results follow every value."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from src.kernels import build
from src.training.compile_cache import CompileCache, cache_key
from tests.conftest import ROOT
from tests.test_imports import LEVEL_OF

VALUES = {"batch_size": 2}


@pytest.fixture
def copied(tmp_path):
    """A copy of src, and the key that the module of the cache in it makes of that copy."""
    folder = tmp_path / "src"
    shutil.copytree(ROOT / "src", folder, ignore=shutil.ignore_patterns("__pycache__"))
    spec = importlib.util.spec_from_file_location(
        "copied_compile_cache", folder / "training/compile_cache.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return folder, lambda **more: module.cache_key({**VALUES, **more})


def test_the_key_follows_a_change_in_any_room(copied):
    folder, key = copied
    before = key()
    rooms = [path for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"]
    assert set(LEVEL_OF) <= {path.stem for path in rooms}
    changed = {}
    for room in rooms:
        files = [room] if room.is_file() else sorted(room.rglob("*.py"))
        text = files[-1].read_bytes()
        files[-1].write_bytes(text + b"\n# changed\n")
        changed[room.stem] = key()
        files[-1].write_bytes(text)
        assert changed[room.stem] != before, room
    assert len(set(changed.values())) == len(rooms)
    assert key() == before


def test_the_key_follows_operators_and_values(copied):
    folder, key = copied
    keys = {key(), key(batch_size=3), key(steps=1)}
    for suffix in (".h", ".cpp"):
        file = next((folder / "kernels").glob(f"*{suffix}"))
        file.write_bytes(file.read_bytes() + b"\n")
        keys.add(key())
    assert len(keys) == 5


def test_graphs_are_cached_within_the_context_alone(tmp_path, monkeypatch):
    """A run that follows in the same process may have other graphs of the same number."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = []
    for _ in range(2):
        with CompileCache(VALUES):
            assert os.environ["MS_COMPILER_CACHE_ENABLE"] == "1"
            folders.append(Path(os.environ["MS_COMPILER_CACHE_PATH"]))
            (folders[-1] / "graph").touch()
        assert not {"MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"} & os.environ.keys()
    filled, published = folders
    assert not filled.exists() and (published / "graph").is_file()
    with CompileCache(VALUES, enabled=False):
        assert "MS_COMPILER_CACHE_ENABLE" not in os.environ


def test_graphs_that_are_missing_are_added_in_a_copy(tmp_path, monkeypatch):
    """Two runs that follow one that was stopped early must not write into the same folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = []
    for name in ("training", "validation", ""):
        with CompileCache(VALUES) as graphs:
            folders.append(Path(os.environ["MS_COMPILER_CACHE_PATH"]))
            if name:
                (folders[-1] / name).touch()
            if name == "training":
                graphs.stopped_early()
    (published,) = (tmp_path / "spnas/graphs").iterdir()
    assert len(set(folders)) == 3 and folders[-1] == published
    assert sorted(file.name for file in published.iterdir()) == ["training", "validation"]


def test_a_copy_that_fails_takes_no_place(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with CompileCache(VALUES) as graphs:
        (Path(os.environ["MS_COMPILER_CACHE_PATH"]) / "training").touch()
        graphs.stopped_early()
    (published,) = (tmp_path / "spnas/graphs").iterdir()
    before = sorted(published.iterdir())

    def copytree(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(shutil, "copytree", copytree)
    with CompileCache(VALUES):
        assert "MS_COMPILER_CACHE_ENABLE" not in os.environ
    assert "graphs are not cached: the disk is full" in caplog.text
    assert [*published.parent.iterdir()] == [published] and sorted(published.iterdir()) == before


def test_the_key_follows_the_compiled_operators_where_graphs_use_them(monkeypatch):
    """As with one home folder for processors of two kinds."""
    keys = []
    for path in ("a/libspnas_kernels.so", "b/libspnas_kernels.so"):
        monkeypatch.setattr(build, "library", lambda path=path: path)
        keys.append([cache_key({"kernels": kernels}) for kernels in (True, False)])
    (with_a, without_a), (with_b, without_b) = keys
    assert with_a != with_b and without_a == without_b


def test_what_other_runs_delete_ends_no_run(tmp_path, monkeypatch):
    """A folder is deleted when it was not used for a month, even if its run goes on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = tmp_path / "spnas/graphs"
    with CompileCache(VALUES):
        (live,) = root.iterdir()
        os.utime(live, (0, 0))
        with CompileCache({}):
            (Path(os.environ["MS_COMPILER_CACHE_PATH"]) / "graph").touch()
        assert not live.exists()
    (published,) = root.iterdir()
    assert (published / "graph").is_file()
