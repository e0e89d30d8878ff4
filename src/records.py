"""Reading of the project's JSON files: format, version, keys and types checked, errors in one line."""
from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any, Mapping

from src.errors import UserError, nearest

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


def check_keys(data: Mapping[str, Any], known: Mapping[str, type], origin: str, error: type[UserError],
               optional: Mapping[str, type] = _NONE) -> None:
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
        fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool) == isinstance(value, bool)
        if not fits:
            raise error(f"{origin}: '{key}' is {value!r}, should be of type {kind.__name__}")


def check_record(data: Any, form: str, version: int, known: Mapping[str, type], origin: str,
                 error: type[UserError], optional: Mapping[str, type] = _NONE) -> dict[str, Any]:
    """Values of ``known``, and of ``optional`` where they are there, from a record that says its format and version."""
    if not isinstance(data, Mapping) or data.get("format") != form:
        raise error(f"{origin}: not of the expected kind (no \"format\": \"{form}\")")
    if data.get("version") != version:
        raise error(f"{origin}: version {data.get('version')!r}, this program reads {version}")
    check_keys(data, {"format": str, "version": int, **known}, origin, error, optional)
    return {key: data[key] for key in (*known, *optional) if key in data}
