"""The project's files: read with errors in one line, written whole or not at all.

Validation is pydantic's, for files as for flags (``src.cli``). Imports no framework.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from src.errors import Fault, UserError, nearest

T = TypeVar("T")


# Writing.


@contextlib.contextmanager
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


def has_checkpoints(folder: Path) -> bool:
    """Whether checkpoints lie in a folder; what a crash left half-written is hidden, and none."""
    return any(folder.glob("[!.]*.ckpt"))


def cut_jsonl(path: Path, progress: tuple[int, int] | None) -> None:
    """Keep the lines up to ``progress``, as later steps are taken again.

    Args:
        path: a JSON-lines file whose lines have ``epoch`` and ``step``.
        progress: epoch and step of the last line to keep; None keeps none.
    """
    kept = []
    if progress is not None:
        kept = [line for line in read_jsonl(path) if (line["epoch"], line["step"]) <= progress]
    write_jsonl(path, kept)


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


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path, error: type[UserError] = UserError) -> Any:
    """Contents of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise error(f"{path}: not readable as JSON ({reason})") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Keys and values of a YAML file."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path}: holds {type(values).__name__}, should hold keys and values")
    return values or {}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Lines of a JSON-lines file; a last line that a crash cut short is left out.

    Raises:
        UserError: the file holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as lines of JSON ({error})") from None
    lines = []
    *before, last = text.splitlines() or [""]
    for number, line in enumerate(before, start=1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise UserError(f"{path}: line {number} is no JSON") from None
    with contextlib.suppress(ValueError):
        lines.append(json.loads(last))
    if not all(isinstance(line, dict) for line in lines):
        raise UserError(f"{path}: should hold a JSON object on each line")
    return lines


# Validation.

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument")


def _place(problem: ErrorDetails, data: Any) -> str:
    """Keys that lead to a problem, with dots between them.

    Pydantic also names the member of a union that it tried; that is no key of ``data`` and left
    out, unless ``data`` is None.
    """
    if data is None:
        return ".".join(map(str, problem["loc"]))
    keys = []
    for part in problem["loc"]:
        if isinstance(data, Mapping):
            found = part in data
        else:
            found = isinstance(data, (list, tuple)) and part in range(len(data))
        if found:
            data = data[part]
            keys.append(part)
    if problem["type"] in _MISSING:  # the last key is the missing one, so it was not found
        keys.append(problem["loc"][-1])
    return ".".join(map(str, keys))


def first_problem(error: ValidationError, known: Collection[str] = (), data: Any = None) -> str:
    """The problem that pydantic found first, in one line.

    Args:
        error: what pydantic raised.
        known: the keys that there are, of which the one nearest to an unknown key is named.
        data: what pydantic was given, if its keys may hold unions.
    """
    problems = error.errors()
    # A misspelt key is also a missing one; its name says more.
    problem = next((each for each in problems if each["type"] in _UNKNOWN), problems[0])
    place = _place(problem, data)
    if problem["type"] in _UNKNOWN:
        return f"unknown key '{place}'{nearest(str(problem['loc'][-1]), known)}"
    if problem["type"] in _MISSING:
        return f"key '{place}' is missing"
    reason = problem.get("ctx", {}).get("error")
    if isinstance(reason, UserError):  # says itself which value is wrong
        return f"{place}: {reason}" if place else str(reason)
    message = str(reason) if reason else problem["msg"]
    value = f"{place} is {problem['input']!r}" if place else repr(problem["input"])
    return f"{value}: {message[0].lower()}{message[1:]}"


# Making one takes longer than using it.
_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def check_header(data: Any, form: str, version: int, origin: str, error: type[UserError]) -> Any:
    """Check the format and the version that a record states; returns the record without them."""
    if not isinstance(data, Mapping) or data.get("format") != form:
        raise error(f'{origin}: not of the expected kind (no "format": "{form}")')
    if data.get("version") != version:
        raise error(f"{origin}: version {data.get('version')!r}, this program reads {version}")
    return {key: value for key, value in data.items() if key not in ("format", "version")}


def parse_record(
    kind: type[T],
    data: Any,
    origin: str,
    error: type[UserError] = UserError,
    optional: Collection[str] | None = None,
) -> T:
    """A value from what a JSON file holds, by pydantic's strict rules for JSON.

    Args:
        kind: a pydantic model or a dataclass, which says ``__pydantic_config__ =
            ConfigDict(extra="forbid")``; with ``optional`` a dataclass.
        data: contents of the file.
        origin: names the file in errors.
        error: kind of the error that is raised.
        optional: keys that a file may leave out; where omitted, all that have a default.

    Raises:
        UserError: of the kind ``error``, also for a UserError that ``kind`` itself raises. Where
            that is a ValueError too, the message names the place in the file.
    """
    try:
        # As text, since strict rules take a list for a tuple only there.
        value = _adapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as problem:
        raise error(f"{origin}: {first_problem(problem, field_names(kind), data)}") from None
    except UserError as problem:
        raise error(f"{origin}: {problem}") from None
    # A file states what it is made of: a default of the program must not change its meaning.
    if optional is not None:
        for spec in fields(value):
            if spec.name not in data and spec.name not in optional:
                raise error(f"{origin}: key '{spec.name}' is missing")
    return value


def dump_record(value: Any, optional: Collection[str] = ()) -> dict[str, Any]:
    """Inverse of ``parse_record``: what a JSON file holds of a dataclass, fields in their order.

    Args:
        value: the dataclass.
        optional: keys that are left out where they have their default.
    """
    data = _adapter(type(value)).dump_python(value, mode="json", by_alias=True)
    for spec in fields(value):
        if spec.name in optional and getattr(value, spec.name) == spec.default:
            del data[spec.name]
    return data


def field_names(kind: Any) -> list[str]:
    """Keys of a record of ``kind`` and of the records within it, as files name them."""
    schema = _adapter(kind).json_schema()
    records = [schema, *schema.get("$defs", {}).values()]
    return [name for record in records for name in record.get("properties", {})]


def different_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Settings that have changed between a run and its continuation.

    Args:
        before: settings of the run.
        now: settings of the continuation.
        free: keys whose change alters no result.

    Returns:
        Value before and now, by key, in the order of ``before`` and then of ``now``.
    """
    keys = [key for key in {**before, **now} if key not in free]
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}
