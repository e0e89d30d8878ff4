"""Records of JSON files, as ``src.files`` checks them: errors name file, place and value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src.errors import UserError
from src.files import (
    check_header,
    dump_record,
    field_names,
    first_problem,
    parse_record,
    read_jsonl,
)


class PartError(UserError, ValueError):
    """An error of the kind that gets the place in the file from pydantic."""


@dataclass(frozen=True)
class Part:
    """A record within a record."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    size: int
    words: Annotated[tuple[str, ...], Field(alias="names")] = ()

    def __post_init__(self) -> None:
        if self.size > 9:
            raise PartError(f"size {self.size} is above 9")
        if self.size < 0:
            raise UserError(f"size {self.size} is below 0")


@dataclass(frozen=True)
class Whole:
    """A record with what the project's have: parts, a union, keys that may be left out."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    parts: tuple[Part, ...]
    rate: Literal["auto"] | float = "auto"
    flag: bool = field(default=True, kw_only=True)


WHOLE = {"parts": [{"size": 1, "names": ["a"]}, {"size": 2, "names": []}], "rate": 2.5}


def test_what_is_read_is_written():
    whole = parse_record(Whole, WHOLE, "w.json")
    assert whole == Whole((Part(1, ("a",)), Part(2)), 2.5)
    assert dump_record(whole) == {**WHOLE, "flag": True}
    assert dump_record(whole, optional=("flag", "rate")) == WHOLE
    assert list(dump_record(whole)) == ["parts", "rate", "flag"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"part": []}, "unknown key 'part', did you mean 'parts'?"),
        ({"parts": [{"size": 1, "nams": []}]}, "unknown key 'parts.0.nams', did you mean 'names'?"),
        ({"parts": [{"size": 1}, {}]}, "key 'parts.1.size' is missing"),
        ({"parts": [{"size": True}]}, "parts.0.size is True: input should be a valid integer"),
        ({"parts": [{"size": 1.0}]}, "parts.0.size is 1.0: input should be a valid integer"),
        ({"parts": [{"size": 10}]}, "parts.0: size 10 is above 9"),
        ({"parts": [{"size": -1}]}, "size -1 is below 0"),
        ({"rate": "fast"}, "rate is 'fast': input should be 'auto'"),
        ({"flag": 1}, "flag is 1: input should be a valid boolean"),
    ],
)
def test_errors_name_file_place_and_value(change, message):
    with pytest.raises(PartError) as error:
        parse_record(Whole, {**WHOLE, **change}, "w.json", PartError)
    assert str(error.value) == f"w.json: {message}"


def test_keys_with_a_default_are_optional_or_stated():
    data = {"parts": []}
    assert parse_record(Whole, data, "w.json") == Whole(())
    assert parse_record(Whole, data, "w.json", optional=("rate", "flag")) == Whole(())
    with pytest.raises(UserError, match="w.json: key 'rate' is missing"):
        parse_record(Whole, data, "w.json", optional=("flag",))
    with pytest.raises(UserError, match="w.json: 5: input should be an object"):
        parse_record(Whole, 5, "w.json")


def test_lists_and_models_are_records_too():
    class Entry(BaseModel):
        """A pydantic model."""

        name: str

    assert parse_record(list[Entry], [{"name": "a"}], "list.json") == [Entry(name="a")]
    with pytest.raises(UserError, match="list.json: 1.name is 3: "):
        parse_record(list[Entry], [{"name": "a"}, {"name": 3}], "list.json")
    assert field_names(list[Entry]) == ["name"]
    assert field_names(Whole) == ["parts", "rate", "flag", "size", "names"]
    # Without the data that pydantic was given, its own names of places are used.
    with pytest.raises(ValidationError) as error:
        Entry(name=3)
    assert first_problem(error.value) == "name is 3: input should be a valid string"


@pytest.mark.parametrize(
    "data, reason",
    [
        ([], 'not of the expected kind .no "format": "form"'),
        ({"format": "other", "version": 1}, "not of the expected kind"),
        ({"format": "form"}, "version None, this program reads 1"),
        ({"format": "form", "version": 2}, "version 2, this program reads 1"),
    ],
)
def test_headers_say_format_and_version(data, reason):
    with pytest.raises(PartError, match=f"h.json: {reason}"):
        check_header(data, "form", 1, "h.json", PartError)
    assert check_header({"version": 1, "format": "form", "a": 2}, "form", 1, "h", PartError) == {
        "a": 2
    }


def test_of_lines_only_the_last_one_may_be_cut_short(tmp_path):
    """What reads them writes them back: nothing must be left out in silence."""
    file = tmp_path / "lines.jsonl"
    assert read_jsonl(file) == []
    file.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_jsonl(file) == [{"a": 1}, {"a": 2}]
    file.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(UserError, match=r"lines.jsonl: line 2 is no JSON"):
        read_jsonl(file)
