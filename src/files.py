"""The project's files: JSON and JSON lines, read with one-line errors, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from src.errors import Fault, UserError, nearest

_NONE: Mapping[str, type] = MappingProxyType({})


def read_json(path: Path, error: type[UserError]) -> Any:
    """Contents of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise error(f"{path}: not readable as JSON ({reason})") from None


def find_file(name_or_file: str | Path, folder: Path, what: str, error: type[UserError]) -> Path:
    """The file of that name, or the shipped one: ``name.json`` in ``folder``."""
    names = sorted(path.stem for path in folder.glob("*.json"))
    if str(name_or_file) in names:
        return folder / f"{name_or_file}.json"
    path = Path(name_or_file)
    if not path.is_file():
        raise error(f"{what} '{name_or_file}' is neither a file nor one of {', '.join(names)}")
    return path


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


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise Fault(f"{path}: cannot be written ({error.strerror})") from None


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


def cut_jsonl(path: Path, progress: tuple[int, int] | None) -> None:
    """Keep the lines up to (epoch, step) ``progress``, as later steps are taken again; none where it is None."""
    kept = (
        []
        if progress is None
        else [line for line in read_jsonl(path) if (line["epoch"], line["step"]) <= progress]
    )
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Lines of a JSON-lines file; a last line that a crash cut short is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
