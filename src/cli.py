"""The command line of every program: flags, YAML file and preset make a configuration.

Flags win over the YAML file of ``--config``, the file over the preset of the data set, the preset
over the defaults in ``src.config``. Unknown keys and values of the wrong type are errors of one
line, which names the nearest word. Imports no framework.

``Parser`` is argparse with these errors. It is not replaced by a library: pydantic-settings 2.16
takes either ``--resume`` or ``--resume false`` but not both, jsonargparse 4.53 takes ``--resume
true`` only; neither names the nearest flag, and the preset, which depends on another key, would
still be written here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import ValidationError

from src.config import ProgramConfig
from src.errors import UserError, nearest
from src.files import first_problem, read_yaml

ConfigT = TypeVar("ConfigT", bound=ProgramConfig)


class Parser(argparse.ArgumentParser):
    """The parser of every program: no abbreviated flags, and a mistake is a UserError.

    Args:
        description: the program's docstring.
        options: further arguments of ``argparse.ArgumentParser``.
    """

    def __init__(self, description: str | None = None, **options: Any) -> None:
        settings = {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "allow_abbrev": False,
            **options,
        }
        super().__init__(description=description, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print together with the usage."""
        raise UserError(message)

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse; of words that no flag takes the first is named, with the flag that it resembles.

        Raises:
            UserError: a flag is unknown, is missing, or has a value of the wrong type.
        """
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            # A value without a flag is often the second word of a list: --mean 1 2 3.
            what = "unknown flag" if word.startswith("-") else "unexpected value"
            # argparse has no public list of its flags.
            flags = [flag for action in self._actions for flag in action.option_strings]
            self.error(f"{what} '{word}'{nearest(word, flags)}")
        return known


def picture_file(text: str) -> Path:
    """The type of a flag of ``Parser`` that names a picture to write."""
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"'{text}' should be a file that ends in .png or .svg")
    return path


def build_config(kind: type[ConfigT], values: Mapping[str, Any], origin: str = "") -> ConfigT:
    """Check values against the keys of ``kind``.

    Args:
        kind: the configuration class.
        values: of some keys; the others keep their defaults.
        origin: names the file of the values in errors; empty for flags.

    Raises:
        UserError: a key is unknown, or its value is wrong.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        place = f"{origin}: " if origin else ""
        raise UserError(f"{place}{first_problem(error, kind.model_fields)}") from None


def parse_config(kind: type[ConfigT], argv: Sequence[str] | None, description: str) -> ConfigT:
    """Read flags, YAML file and preset into a checked, frozen configuration.

    Args:
        kind: the configuration class.
        argv: the words after the program's name; None for those of this process.
        description: the program's docstring, for ``--help``.

    Raises:
        UserError: a flag or key is unknown, or its value is wrong.
    """
    # Only what was given: a default would win over the file and over the preset.
    given = vars(_create_parser(kind, description).parse_args(_underscored(argv)))
    path = given.pop("config")
    flags = {key: _value(kind, key, text) for key, text in given.items()}
    from_file = read_yaml(path) if path else {}
    # What a flag replaces is not checked: the flag may be of another method than the file.
    rest = {key: value for key, value in from_file.items() if key not in flags}
    values = {**rest, **flags}
    try:
        checked = build_config(kind, values)
    except UserError as error:
        if path:
            _check_file(kind, rest, path, str(error))
        raise
    # The preset depends on what is given, such as the data set, so it comes last and counts least.
    preset = kind.preset({key: getattr(checked, key) for key in values})
    return build_config(kind, {**preset, **values})


def _check_file(
    kind: type[ProgramConfig], values: Mapping[str, Any], path: str, mistake: str
) -> None:
    """Raise UserError that names the file if the mistake is its own, whatever the flags are."""
    try:
        build_config(kind, values)
    except UserError as error:
        if str(error) == mistake:
            raise UserError(f"{path}: {mistake}") from None


def find_kind(
    kinds: Mapping[str, type[ConfigT]], key: str, argv: Sequence[str] | None
) -> type[ConfigT]:
    """The configuration class that the value of ``key`` chooses, for ``parse_config``.

    The flag wins over the YAML file; where neither has the key, the first class is taken.

    Args:
        kinds: the classes, by value of the key.
        key: one that all of the classes have.
        argv: the words after the program's name; None for those of this process.

    Raises:
        UserError: the value is none of ``kinds``.
    """
    value, place = find_value(key, argv)
    if value is None:
        value = next(iter(kinds))
    if value not in kinds:
        raise UserError(
            f"{place}{key} is '{value}', should be {' or '.join(kinds)}{nearest(value, kinds)}"
        )
    return kinds[value]


def find_value(key: str, argv: Sequence[str] | None) -> tuple[str | None, str]:
    """A first look at one key, where it decides which others there are.

    Args:
        key: its name.
        argv: the words after the program's name; None for those of this process.

    Returns:
        Its value by the flag, else by the YAML file, else None; and what names that file in errors,
        empty for a flag.
    """
    parser = Parser(add_help=False)
    for flag in ("config", key):
        parser.add_argument(f"--{flag}")
    given = vars(parser.parse_known_args(_underscored(argv))[0])
    if given[key] is not None:
        return given[key], ""
    from_file = read_yaml(given["config"]) if given["config"] else {}
    value = from_file.get(key)
    return (None, "") if value is None else (str(value), f"{given['config']}: ")


def _create_parser(kind: type[ProgramConfig], description: str) -> Parser:
    """A parser with one flag per key; only flags that are given appear in what it returns."""
    parser = Parser(description)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same keys")
    for key, spec in kind.model_fields.items():
        # A bare flag switches a boolean on; with a value it is a flag like all others.
        bare: dict[str, Any] = {"nargs": "?", "const": "true"} if spec.annotation is bool else {}
        # Values stay text here: pydantic checks them, in flags and files alike. argparse formats
        # help texts with %, so a percent sign is doubled.
        parser.add_argument(
            f"--{key}",
            metavar=key.upper(),
            default=argparse.SUPPRESS,
            help=f"{spec.description} (default: {spec.default})".replace("%", "%%"),
            **bare,
        )
    return parser


def _underscored(argv: Sequence[str] | None) -> list[str]:
    """The words of a command line, with flags such as ``--weight-decay`` spelled like their key."""
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            flag = f"--{flag[2:].replace('-', '_')}"
        words.append(f"{flag}{equals}{value}")
    return words


def _value(kind: type[ProgramConfig], key: str, text: str) -> Any:
    """The value of a flag, read as YAML, so that flags and files follow one grammar."""
    # A folder called 2012 or null is text.
    if kind.model_fields[key].annotation in (str, str | None):
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter for a date that no calendar has
        return text  # which pydantic refuses, with the key in the message
