"""The project's files: read with errors in one line, written whole or not at all.

Validation is pydantic's, for files as for flags (``src.cli``). Imports no framework.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from src.errors import Fault, UserError, nearest

T = TypeVar("T")


# Writing.


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file in one step: yields a scratch path beside it, which then takes its name.

    Where the block raises, the file stays as it was and the scratch file is removed.

    Raises:
        Fault: the file cannot be written.
    """
    # The suffix stays: MindSpore appends its own to a name that lacks it.
    scratch = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        raise Fault(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, indented by two."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_jsonl(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of one JSON object per line."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def append_jsonl(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append lines to a JSON-lines file; a crash leaves at most the last one incomplete."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def cut_jsonl(path: Path, progress: tuple[int, int] | None) -> None:
    """Keep the lines up to ``progress``, as later steps are taken again.

    Args:
        progress: epoch and step of the last line to keep; None keeps none.
    """
    lines = [] if progress is None else read_jsonl(path)
    write_jsonl(path, [line for line in lines if (line["epoch"], line["step"]) <= progress])


def make_folder(path: Path) -> Path:
    """Create a folder and check that it can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be created or written ({error.strerror}); give another folder"
        ) from None
    return path


# Reading.


def find_file(name_or_file: str | Path, folder: Path, what: str, error: type[UserError]) -> Path:
    """The file of that name, or the shipped one: ``name.json`` in ``folder``."""
    names = sorted(path.stem for path in folder.glob("*.json"))
    if str(name_or_file) in names:
        return folder / f"{name_or_file}.json"
    path = Path(name_or_file)
    if not path.is_file():
        raise error(f"{what} '{name_or_file}' is neither a file nor one of {', '.join(names)}")
    return path


def read_json(path: Path, error: type[UserError] = UserError) -> Any:
    """Contents of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise error(f"{path}: not readable as JSON ({reason})") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Lines of a JSON-lines file; a last line that a crash cut short is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


# Validation.


def first_problem(error: ValidationError, known: Collection[str] = ()) -> str:
    """What pydantic found first, in one line.

    Args:
        known: the keys that there are, among which the nearest to an unknown one is named.
    """
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key '{key}'{nearest(str(problem['loc'][-1]), known)}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"key '{key}' is missing"
    message = f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
    what = f"{key} is {problem['input']!r}" if key else repr(problem["input"])
    return f"{what}: {message}"


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def check_header(data: Any, form: str, version: int, origin: str, error: type[UserError]) -> Any:
    """Check the format and the version that a record states; returns the record without them."""
    if not isinstance(data, Mapping) or data.get("format") != form:
        raise error(f'{origin}: not of the expected kind (no "format": "{form}")')
    if data.get("version") != version:
        raise error(f"{origin}: version {data.get('version')!r}, this program reads {version}")
    return {key: value for key, value in data.items() if key not in ("format", "version")}


def parse_record(kind: type[T], data: Any, origin: str, error: type[UserError] = UserError) -> T:
    """A value from what a JSON file holds, by pydantic's strict rules for JSON.

    Args:
        kind: a pydantic model or a dataclass; ``__pydantic_config__`` of a dataclass says
            ``extra="forbid"``.
        origin: names the file in errors.
        error: its kind. UserErrors that ``kind`` itself raises become that too, with the file.
    """
    try:
        # As text, since strict rules take a list for a tuple only there.
        return _adapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as problem:
        raise error(f"{origin}: {first_problem(problem, field_names(kind))}") from None
    except UserError as problem:
        raise error(f"{origin}: {problem}") from None


def field_names(kind: type[Any]) -> list[str]:
    """Names of the fields of a pydantic model or a dataclass."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return list(getattr(kind, "__dataclass_fields__", ()))


def different_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Settings that have changed between a run and its continuation.

    Args:
        free: keys whose change alters no result.

    Returns:
        Value before and now, by key, in the order of ``before`` and then of ``now``.
    """
    keys = [key for key in {**before, **now} if key not in free]
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


# To go: hand-written checks whose callers move to parse_record.

_NONE: Mapping[str, type] = MappingProxyType({})


def check_keys(
    data: Mapping[str, Any],
    known: Mapping[str, type],
    origin: str,
    error: type[UserError],
    optional: Mapping[str, type] = _NONE,
) -> None:
    """Refuse unknown and missing keys and values of the wrong type; keys of ``optional`` may be missing."""
    for key in data:
        if key not in known and key not in optional:
            raise error(f"{origin}: unknown key '{key}'{nearest(str(key), [*known, *optional])}")
    for key, kind in {**known, **optional}.items():
        if key not in data:
            if key in optional:
                continue
            raise error(f"{origin}: key '{key}' is missing")
        value = data[key]
        fits = isinstance(value, (int, float) if kind is float else kind) and (
            kind is bool
        ) == isinstance(value, bool)
        if not fits:
            raise error(f"{origin}: '{key}' is {value!r}, should be of type {kind.__name__}")


def check_record(
    data: Any,
    form: str,
    version: int,
    known: Mapping[str, type],
    origin: str,
    error: type[UserError],
    optional: Mapping[str, type] = _NONE,
) -> dict[str, Any]:
    """Values of ``known``, and of ``optional`` where they are there, from a record that says its format and version."""
    if not isinstance(data, Mapping) or data.get("format") != form:
        raise error(f'{origin}: not of the expected kind (no "format": "{form}")')
    if data.get("version") != version:
        raise error(f"{origin}: version {data.get('version')!r}, this program reads {version}")
    check_keys(data, {"format": str, "version": int, **known}, origin, error, optional)
    return {key: data[key] for key in (*known, *optional) if key in data}
