"""Modules import in one direction, and what describes networks or data needs no framework."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Lowest first; a room is a folder or a module of src. It imports from rooms below it, and from
# those beside it as long as they do not import each other.
LEVELS = (
    ("errors", "lr_scheduler", "result_files"),
    ("files", "kernels"),
    ("arch", "data"),
    ("recipe",),
    ("config", "layers", "dataset", "spnasnet", "drawing", "CrossEntropySmooth"),
    ("cli", "devices"),
    ("utils",),
    ("checkpoint",),
    ("training", "deployment"),
    ("latency",),
    ("search",),
    ("report",),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
PACKAGE = "__init__"  # src/__init__.py itself, which imports nothing and is in no room
NO_FRAMEWORK = (
    *("errors", "lr_scheduler", "result_files", "files", "arch", "data", "recipe", "config"),
    *("cli", "drawing", "report"),
)
NO_FRAMEWORK_MODULES = (
    "src.latency.statistics",
    "src.search.choosing",
    "src.search.indicators",
    "src.training.classes",
)
ROOT_SCRIPTS = sorted(ROOT.glob("*.py"))
MAX_SCRIPT_LINES = 60


def room_of(module: str) -> str | None:
    """The room of a dotted name below src; None for src itself and for other packages."""
    words = module.split(".")
    return words[1] if words[0] == "src" and len(words) > 1 else None


def imported_modules(text: str, module: str) -> Iterator[tuple[int, str]]:
    """Line number and full name of everything that a module imports, within functions too."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of src."""
    for file in sorted((ROOT / "src").rglob("*.py")):
        words = file.relative_to(ROOT).with_suffix("").parts
        # A package's own file counts as a module in it (src.arch.__init__): relative imports of
        # both start at the package.
        yield ".".join(words), file


def crossings() -> Iterator[tuple[str, str, str]]:
    """Every import of one room by another: importing room, imported room, file and line."""
    for module, file in modules():
        own = room_of(module)
        for line, name in imported_modules(file.read_text(encoding="utf-8"), module):
            other = room_of(name)
            if other not in (None, own):
                yield own, other, f"{file.relative_to(ROOT)}:{line}"


def find_cycle(arrows: dict[str, set[str]]) -> list[str]:
    """Rooms of a circle of imports, and those that lead into it; empty where there is none."""
    left = {room: set(others) for room, others in arrows.items()}
    while free := [room for room, others in left.items() if not others & left.keys()]:
        for room in free:
            del left[room]
    return sorted(left)


def code_lines(text: str) -> int:
    """Lines that hold code: neither empty, nor comments, nor docstrings."""
    lines: set[int] = set()
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*layout, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_the_readers_of_sources_find_what_they_should():
    text = (
        '"""A docstring\nof two lines."""\nimport src.arch.cost as cost, os  # a comment\n\n'
        "def f():\n    from ..files import whole\n    from . import loop\n    from src import cli\n"
    )
    assert [name for _, name in imported_modules(text, "src.training.step")] == [
        "src.arch.cost",
        "os",
        "src.files.whole",
        "src.training.loop",
        "src.cli",
    ]
    assert [room_of(name) for name in ("src.arch.cost", "src", "os.path")] == ["arch", None, None]
    assert code_lines(text) == 5
    assert find_cycle({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_module_belongs_to_a_room_of_the_list():
    found = {room_of(module) for module, _ in modules()} - {PACKAGE}
    assert found == set(LEVEL_OF), "enter a new room in LEVELS, at the place where it belongs"


def test_rooms_import_only_from_rooms_below_them():
    upward = [
        f"{place}: {own} imports {other}, which lies above it"
        for own, other, place in crossings()
        if own == PACKAGE or LEVEL_OF[other] > LEVEL_OF[own]
    ]
    assert not upward, "\n".join(upward)


def test_no_rooms_import_each_other():
    arrows: dict[str, set[str]] = {room: set() for room in (PACKAGE, *LEVEL_OF)}
    for own, other, _ in crossings():
        arrows[own].add(other)
    assert find_cycle(arrows) == []


def test_src_imports_no_scripts_tests_or_benchmarks():
    outside = {"tests", "scripts", "benchmarks", *(script.stem for script in ROOT_SCRIPTS)}
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for module, file in modules()
        for line, name in imported_modules(file.read_text(encoding="utf-8"), module)
        if name.split(".")[0] in outside
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("script", ROOT_SCRIPTS, ids=lambda script: script.name)
def test_root_scripts_are_thin(script):
    """They parse, call and exit; what they do is in src."""
    text = script.read_text(encoding="utf-8")
    names = [name.split(".")[0] for _, name in imported_modules(text, script.stem)]
    assert code_lines(text) <= MAX_SCRIPT_LINES
    assert not {other.stem for other in ROOT_SCRIPTS} & set(names)


def test_rooms_without_a_framework_load_none():
    """In a process of its own, as this one has loaded MindSpore."""
    names = [module for module, _ in modules() if room_of(module) in NO_FRAMEWORK]
    names = [name.removesuffix(".__init__") for name in (*names, *NO_FRAMEWORK_MODULES)]
    assert len(names) > 12
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'mindspore' not in sys.modules, f'{name} imports MindSpore'\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
