"""Flags, YAML file and preset make a configuration.

Flags win over the YAML file of ``--config``, the file over the preset of the data set, the preset
over the defaults in ``src.config``. Unknown keys and values of the wrong type are errors. Imports
no framework.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from src.config import PRESETS, SEARCH_PRESETS, RunConfig, SearchConfig
from src.errors import UserError, nearest

Config = TypeVar("Config", bound=BaseModel)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path}: holds {type(values).__name__}, should hold keys and values")
    return values or {}


def build_config(kind: type[Config], values: dict[str, Any], origin: str) -> Config:
    """Check values against the keys of ``kind``; ``origin`` names their file in errors."""
    keys = kind.model_fields
    for key in values:
        if key not in keys:
            raise UserError(f"{origin}: unknown key '{key}'{nearest(str(key), keys)}")
    try:
        return kind(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        key, value = problem["loc"][0], values.get(problem["loc"][0])
        raise UserError(
            f"{origin}: {key} is {value!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
        ) from None


class Parser(argparse.ArgumentParser):
    """An ``argparse`` parser whose errors are UserErrors."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{self.prog}: {message}")


def parse_config(kind: type[Config], argv: Sequence[str] | None, description: str) -> Config:
    """Read flags, YAML file and preset into a checked, frozen configuration."""
    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same keys")
    for key, spec in kind.model_fields.items():
        # A bare flag switches a boolean on; values are read as YAML, so both sources follow one
        # grammar.
        bare = {"nargs": "?", "const": "true"} if spec.annotation is bool else {}
        parser.add_argument(
            f"--{key}",
            metavar=key.upper(),
            default=argparse.SUPPRESS,
            help=f"{spec.description} (default: {spec.default})".replace("%", "%%"),
            **bare,
        )
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].split("=")[0]
        raise UserError(
            f"{parser.prog}: unknown flag '{word}'"
            f"{nearest(word, [f'--{key}' for key in (*kind.model_fields, 'config')])}"
        )
    given = vars(namespace)
    path = given.pop("config")
    from_file = _read_yaml(path) if path else {}
    if from_file:
        build_config(kind, from_file, path)  # so that an error names the file
    flags: dict[str, Any] = {}
    for key, text in given.items():
        try:
            flags[key] = (
                text
                if kind.model_fields[key].annotation in (str, Optional[str])
                else yaml.safe_load(text)
            )
        except yaml.YAMLError:
            flags[key] = text
    values = {**from_file, **flags}
    preset: dict[str, Any] = {}
    if issubclass(kind, RunConfig):
        presets = SEARCH_PRESETS if issubclass(kind, SearchConfig) else PRESETS
        preset = dict(presets.get(values.get("dataset_name", "imagenet"), {}))
        if "latency_table" in values:
            preset.pop("cost", None)  # a table is given to be used
    return build_config(kind, {**preset, **values}, parser.prog)
