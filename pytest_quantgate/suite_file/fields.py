"""The kinds of keys that a suite has: how a value is read, and what an editor is told of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import yaml

from pytest_quantgate.errors import NotMeasured, SuiteError
from pytest_quantgate.quantities import (
    QuantityError,
    parse_bytes,
    parse_cosine,
    parse_decibels,
    parse_milliseconds,
    parse_percent,
    parse_points,
    parse_ratio,
)
from pytest_quantgate.suite import Where, expand_environment
from pytest_quantgate.suite_file.nodes import (
    Place,
    describe,
    is_null,
    is_number,
    read_pairs,
    read_scalar,
)

Read = Callable[[Place, yaml.Node], Any]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One key: how its value is read, and what an editor is told of it (JSON Schema)."""

    read: Read
    schema: Mapping[str, Any]
    help: str
    required: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A mapping with known keys; `check(values, place, node)` sees what concerns several keys."""

    fields: Mapping[str, Field]
    build: Callable[..., Any]
    help: str = ""
    check: Callable[[Mapping[str, Any], Place, yaml.Node], None] = field(
        default=lambda _values, _place, _node: None
    )


def read_section(section: Section, place: Place, node: yaml.Node) -> Any:
    """Return what a section's mapping says, built by its class; null is an empty mapping."""
    pairs = read_pairs(place, node)
    values: dict[str, Any] = {}
    for key, (key_node, value_node) in pairs.items():
        known = section.fields.get(key)
        if known is None:
            raise place.child(key).error(key_node, unknown_key(key, known=section.fields))
        values[key] = known.read(place.child(key), value_node)
    for key, known in section.fields.items():
        if known.required and key not in values:
            raise place.child(key).error(node, "is missing")
    section.check(values, place, node)
    where = Where(
        file=place.file,
        line=node.start_mark.line + 1,
        keys={key: nodes[0].start_mark.line + 1 for key, nodes in pairs.items()},
    )
    return section.build(where=where, **values)


def unknown_key(key: str, *, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
    return f"unknown key{hint}"


def text_field(
    *, help: str, required: bool = False, environment: bool = False, lines: bool = False
) -> Field:
    """A text; `${NAME}` is allowed in it only where `environment` is set.

    Without `lines` it is one line of visible characters: it may become part of a test's name.
    """

    def read(place: Place, node: yaml.Node) -> str:
        if is_number(node):
            raise place.error(node, f"expected a text, found {node.value[:40]}: put it in quotes")
        value = read_scalar(place, node)
        if not isinstance(value, str):
            raise place.error(node, f"expected a text, found {value!r}: put it in quotes")
        if not value.strip():
            raise place.error(node, "is empty")
        if not lines and not value.isprintable():
            odd = next(char for char in value if not char.isprintable())
            raise place.error(
                node, f"{value!r} holds U+{ord(odd):04X}: write it in one line of plain characters"
            )
        if environment:
            _check_environment(place, node, value)
        elif "${" in value:
            raise place.error(node, "${NAME} is expanded only in paths: model.id, root, recipe")
        return value

    schema = {"type": "string", "minLength": 1}
    return Field(read=read, schema=schema, help=help, required=required)


def _check_environment(place: Place, node: yaml.Node, value: str) -> None:
    try:
        expand_environment(value, where="", environ={})
    except SuiteError as error:
        raise place.error(node, str(error).removeprefix(": ")) from None
    except NotMeasured:
        return  # whether the variable is set is asked when the gate runs


def choice_field(*choices: str, help: str, required: bool = False) -> Field:
    def read(place: Place, node: yaml.Node) -> str:
        value = str(read_scalar(place, node))
        if value not in choices:
            close = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise place.error(node, f"{value!r} is none of {', '.join(choices)}{hint}")
        return value

    return Field(read=read, schema={"enum": list(choices)}, help=help, required=required)


def count_field(*, help: str, required: bool = False, least: int = 1) -> Field:
    def read(place: Place, node: yaml.Node) -> int:
        value = read_scalar(place, node)
        if isinstance(value, bool) or not isinstance(value, int):
            raise place.error(node, f"expected a whole number, found {value!r}")
        if not least <= value <= 10**9:
            raise place.error(node, f"{value} is out of range: {least} to 1000000000")
        return value

    schema = {"type": "integer", "minimum": least, "maximum": 10**9}
    return Field(read=read, schema=schema, help=help, required=required)


def flag_field(*, help: str) -> Field:
    def read(place: Place, node: yaml.Node) -> bool:
        value = read_scalar(place, node)
        if not isinstance(value, bool):
            raise place.error(node, f"expected true or false, found {value!r}")
        return value

    return Field(read=read, schema={"type": "boolean"}, help=help)


def quantity_field(
    parse: Callable[[object], Any], *, schema: Mapping[str, Any], help: str, required: bool = False
) -> Field:
    def read(place: Place, node: yaml.Node) -> Any:
        try:
            return parse(read_scalar(place, node))
        except QuantityError as error:
            raise place.error(node, str(error)) from None

    return Field(read=read, schema=schema, help=help, required=required)


_NUMBER_TEXT = r"\d{1,9}(\.\d{1,9})?"


def points_field(*, help: str, required: bool = False) -> Field:
    schema = {"type": "string", "pattern": rf"^\+?{_NUMBER_TEXT} ?pp$"}
    return quantity_field(parse_points, schema=schema, help=help, required=required)


def percent_field(*, help: str, parse: Callable[[object], Any] = parse_percent) -> Field:
    schema = {"type": "string", "pattern": rf"^\+?{_NUMBER_TEXT} ?%$"}
    return quantity_field(parse, schema=schema, help=help)


def cosine_field(*, help: str) -> Field:
    schema = {"type": "number", "minimum": -1, "maximum": 1}
    return quantity_field(parse_cosine, schema=schema, help=help)


def decibel_field(*, help: str) -> Field:
    schema = {"type": "string", "pattern": rf"^[+-]?{_NUMBER_TEXT} ?[dD][bB]$"}
    return quantity_field(parse_decibels, schema=schema, help=help)


def ratio_field(*, help: str, required: bool = False) -> Field:
    schema = {"type": "string", "pattern": rf"^\+?{_NUMBER_TEXT} ?[xX]$"}
    return quantity_field(parse_ratio, schema=schema, help=help, required=required)


def bytes_field(*, help: str) -> Field:
    schema = {"type": "string", "pattern": rf"^\+?{_NUMBER_TEXT} ?([KMG]i?B)$"}
    return quantity_field(parse_bytes, schema=schema, help=help)


def milliseconds_field(*, help: str) -> Field:
    schema = {"type": "string", "pattern": rf"^\+?{_NUMBER_TEXT} ?(us|ms|s)$"}
    return quantity_field(parse_milliseconds, schema=schema, help=help)


def list_field(item: Field, *, help: str, single: bool = False, required: bool = False) -> Field:
    """A list of values; with `single` one value alone is a list of one."""

    def read(place: Place, node: yaml.Node) -> tuple[Any, ...]:
        if isinstance(node, yaml.SequenceNode):
            return tuple(item.read(place.item(i), child) for i, child in enumerate(node.value))
        if single and isinstance(node, yaml.ScalarNode) and not is_null(node):
            return (item.read(place, node),)
        raise place.error(node, f"expected a list [a, b], found {describe(node)}")

    many = {"type": "array", "items": dict(item.schema)}
    schema = {"anyOf": [dict(item.schema), many]} if single else many
    return Field(read=read, schema=schema, help=help, required=required)


def date_field(*, help: str, required: bool = False) -> Field:
    def read(place: Place, node: yaml.Node) -> date:
        text = node.value if isinstance(node, yaml.ScalarNode) else describe(node)
        try:
            return date.fromisoformat(text)
        except ValueError:
            raise place.error(node, f"{text!r} is no day: write it as 2027-03-01") from None

    schema = {"type": "string", "format": "date"}
    return Field(read=read, schema=schema, help=help, required=required)


def section_field(section: Section, *, help: str, required: bool = False) -> Field:
    return Field(
        read=lambda place, node: read_section(section, place, node),
        schema={"section": section},
        help=help,
        required=required,
    )


def sections_field(section: Section, *, help: str, single: bool = True) -> Field:
    """A list of mappings; with `single` one mapping alone is a list of one."""

    def read(place: Place, node: yaml.Node) -> tuple[Any, ...]:
        if isinstance(node, yaml.SequenceNode):
            if not node.value:
                raise place.error(node, "is empty: leave it out or name at least one")
            return tuple(
                # No index: the line says which one, and the words stay those of the docs.
                read_section(section, place, child)
                for child in node.value
            )
        if single and isinstance(node, yaml.MappingNode):
            return (read_section(section, place, node),)
        raise place.error(node, f"expected a list of mappings, found {describe(node)}")

    return Field(read=read, schema={"sections": section, "single": single}, help=help)


def _read_plain(place: Place, node: yaml.Node) -> Any:
    """Return any plain data: an inline `quant_cfg` is in ModelOpt's format and checked by it."""
    if isinstance(node, yaml.MappingNode):
        pairs = read_pairs(place, node)
        return {key: _read_plain(place.child(key), value) for key, (_, value) in pairs.items()}
    if isinstance(node, yaml.SequenceNode):
        return [_read_plain(place.item(i), child) for i, child in enumerate(node.value)]
    return None if is_null(node) else read_scalar(place, node)


def recipe_field() -> Field:
    def read(place: Place, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return text_field(help="", environment=True).read(place, node)
        found = _read_plain(place, node)
        if not found:
            raise place.error(node, "is empty: a recipe that quantizes nothing")
        return tuple(found) if isinstance(found, list) else found

    return Field(
        read=read,
        schema={"type": ["string", "object", "array"], "minLength": 1},
        help="fp8, fp8-attention, int8, int8-smoothquant, a ModelOpt preset or recipe id, a YAML "
        "path, or an inline quant_cfg",
        required=True,
    )
