"""The kinds of keys that a suite has, and how they are declared: once, on a dataclass's fields.

A section of a suite is a frozen dataclass; a field with one of these as its `metadata` is a key:

    max_drop: Fraction = field(metadata=points(help="loss against FP16"))

A key without a default must be given. What the loader, the JSON Schema and the docs say of a key
is read from there.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from datetime import date
from typing import Any, TypeVar

import yaml

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.formats.recipes import RECIPES, read_auto
from pytest_quantgate.suite.nodes import (
    Place,
    describe,
    is_null,
    is_number,
    read_pairs,
    read_scalar,
)
from pytest_quantgate.suite.quantities import (
    QuantityError,
    parse_bytes,
    parse_cosine,
    parse_decibels,
    parse_milliseconds,
    parse_percent,
    parse_points,
    parse_ratio,
)
from pytest_quantgate.suite.where import Where, list_references

Read = Callable[[Place, yaml.Node], Any]
Built = TypeVar("Built")


class BadKey(SuiteError):
    """What is wrong with a key of a section, seen together with its others; '' is the section."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(what)
        self.key = key


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Where a limit begins to decide something: `under` or `over` a value, and why no further.

    At that value, and beyond, it is kept by what has lost everything.
    """

    why: str
    under: str | float = ""
    over: str | float = ""

    def is_left(self, value: Any, *, parse: Callable[[object], Any]) -> bool:
        """Return whether a limit decides nothing; `parse` reads the edge as it read the limit."""
        if self.under != "":
            return bool(value >= parse(self.under))
        return bool(value <= parse(self.over))


@dataclass(frozen=True, kw_only=True)
class Key:
    """How a key's value is read, and what an editor is told of it (JSON Schema).

    `name` is the key in the file where that is not the field's. `spread` says that a list of
    values stands for a section with each. `parse` is how a quantity is read of its text alone
    (raises QuantityError), `reach` where such a limit begins to decide.
    """

    read: Read
    schema: Mapping[str, Any]
    help: str
    name: str = ""
    spread: bool = False
    parse: Callable[[object], Any] | None = None
    reach: Reach | None = None


#: A key as the `metadata` of a field.
Declared = Mapping[str, Key]


def declare(read: Read, *, schema: Mapping[str, Any], help: str, name: str = "") -> Declared:
    return {"key": Key(read=read, schema=schema, help=help, name=name)}


def named(name: str, key: Declared) -> Declared:
    """Return a key that is called otherwise in the file than the field, which has the unit."""
    return {"key": replace(key["key"], name=name)}


def spread(key: Declared) -> Declared:
    """Return a key of one value or a list: each value of it is a section of its own."""
    listed = list_key(key, help=key["key"].help, single=True)
    return {"key": replace(listed["key"], spread=True)}


def keys_of(section: type) -> dict[str, tuple[dataclasses.Field[Any], Key]]:
    """Return the keys of a section's class in their order, by their name in the file."""
    found = {}
    for field in dataclasses.fields(section):
        key: Key | None = field.metadata.get("key")
        if key is not None:
            found[key.name or field.name] = (field, key)
    return found


def is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is MISSING


def read_values(section: type, place: Place, node: yaml.Node) -> dict[str, Any]:
    """Return what a mapping says by the names of the fields, and `where`; null is an empty one."""
    pairs, known = read_pairs(place, node), keys_of(section)
    values: dict[str, Any] = {}
    for name, (key_node, value_node) in pairs.items():
        if name not in known:
            raise place.child(name).error(key_node, unknown_key(name, known=known))
        field, key = known[name]
        values[field.name] = key.read(place.child(name), value_node)
    for name, (field, _) in known.items():
        if is_required(field) and name not in pairs:
            raise place.child(name).error(node, "is missing")
    values["where"] = Where(
        file=place.file,
        line=node.start_mark.line + 1,
        keys={name: nodes[0].start_mark.line + 1 for name, nodes in pairs.items()},
    )
    return values


def read_sections(
    section: type[Built], place: Place, node: yaml.Node, **more: Any
) -> tuple[Built, ...]:
    """Return what a mapping says, as its class; several where a list of a key stands for them.

    `more` are values that the file does not say.
    """
    values = {**read_values(section, place, node), **more}
    several = [
        field.name
        for field, key in keys_of(section).values()
        if key.spread and field.name in values
    ]
    rows = [values]
    for name in several:
        rows = [{**row, name: one} for row in rows for one in row[name]]
        if not rows:
            raise place.error_at(node, name, "is empty: name at least one value")
    found = tuple(section(**row) for row in rows)
    for built in found:
        try:
            check = getattr(built, "check", None)
            if check is not None:
                check()
        except BadKey as bad:
            if not bad.key:
                raise place.error(node, str(bad)) from None
            raise place.error_at(node, bad.key, str(bad)) from None
    return found


def read_section(section: type[Built], place: Place, node: yaml.Node, **more: Any) -> Built:
    """Return what a mapping says, as its class."""
    (found,) = read_sections(section, place, node, **more)
    return found


def unknown_key(key: str, *, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
    return f"unknown key{hint}"


def text_key(*, help: str, environment: bool = False, lines: bool = False) -> Declared:
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
            try:
                list_references(value, where="")
            except SuiteError as error:
                raise place.error(node, str(error).removeprefix(": ")) from None
        elif "${" in value:
            raise place.error(node, "${NAME} is expanded only in paths: model.id, root, recipe")
        return value

    schema = {"type": "string", "minLength": 1}
    return declare(read, schema=schema, help=help)


def choice_key(*choices: str, help: str) -> Declared:
    def read(place: Place, node: yaml.Node) -> str:
        value = str(read_scalar(place, node))
        if value not in choices:
            close = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise place.error(node, f"{value!r} is none of {', '.join(choices)}{hint}")
        return value

    return declare(read, schema={"enum": list(choices)}, help=help)


def count_key(*, help: str, least: int = 1) -> Declared:
    def read(place: Place, node: yaml.Node) -> int:
        value = read_scalar(place, node)
        if isinstance(value, bool) or not isinstance(value, int):
            raise place.error(node, f"expected a whole number, found {value!r}")
        if not least <= value <= 10**9:
            raise place.error(node, f"{value} is out of range: {least} to 1000000000")
        return value

    schema = {"type": "integer", "minimum": least, "maximum": 10**9}
    return declare(read, schema=schema, help=help)


def counts_key(*choices: str, help: str) -> Declared:
    """A mapping of some of the choices to whole numbers from 1 up."""
    one = count_key(help="")["key"]

    def read(place: Place, node: yaml.Node) -> dict[str, int]:
        if not isinstance(node, yaml.MappingNode):
            first = f"{{{choices[0]}: 48}}"
            raise place.error(node, f"expected a mapping {first}, found {describe(node)}")
        pairs = read_pairs(place, node)
        for name, (key, _) in pairs.items():
            if name not in choices:
                raise place.child(name).error(key, unknown_key(name, known=choices))
        if not pairs:
            raise place.error(node, f"is empty: name one of {', '.join(choices)}")
        return {name: one.read(place.child(name), value) for name, (_, value) in pairs.items()}

    schema = {
        "type": "object",
        "properties": {
            choice: {**one.schema, "description": f"how many in {choice}"} for choice in choices
        },
        "additionalProperties": False,
        "minProperties": 1,
    }
    return declare(read, schema=schema, help=help)


def flag_key(*, help: str) -> Declared:
    def read(place: Place, node: yaml.Node) -> bool:
        value = read_scalar(place, node)
        if not isinstance(value, bool):
            raise place.error(node, f"expected true or false, found {value!r}")
        return value

    return declare(read, schema={"type": "boolean"}, help=help)


def quantity_key(
    parse: Callable[[object], Any],
    *,
    schema: Mapping[str, Any],
    help: str,
    reach: Reach | None = None,
) -> Declared:
    def parse_within(value: object) -> Any:
        found = parse(value)
        if reach is not None and reach.is_left(found, parse=parse):
            side = f"under {reach.under}" if reach.under != "" else f"over {reach.over}"
            raise QuantityError(f"{value} decides nothing: {reach.why}; set it {side}")
        return found

    def read(place: Place, node: yaml.Node) -> Any:
        try:
            return parse_within(read_scalar(place, node))
        except QuantityError as error:
            raise place.error(node, str(error)) from None

    return {"key": Key(read=read, schema=schema, help=help, parse=parse_within, reach=reach)}


_NUMBER_TEXT = r"\d{1,9}(\.\d{1,9})?"


def points_key(*, help: str, reach: Reach | None = None) -> Declared:
    schema = {"type": "string", "pattern": rf"^\+?{_NUMBER_TEXT} ?pp$"}
    return quantity_key(parse_points, schema=schema, help=help, reach=reach)


def percent_key(
    *, help: str, parse: Callable[[object], Any] = parse_percent, reach: Reach | None = None
) -> Declared:
    schema = {"type": "string", "pattern": rf"^\+?{_NUMBER_TEXT} ?%$"}
    return quantity_key(parse, schema=schema, help=help, reach=reach)


def cosine_key(*, help: str, reach: Reach | None = None) -> Declared:
    least = {"minimum": -1} if reach is None else {"exclusiveMinimum": reach.over}
    schema = {"type": "number", **least, "maximum": 1}
    return quantity_key(parse_cosine, schema=schema, help=help, reach=reach)


def decibels_key(*, help: str, reach: Reach | None = None) -> Declared:
    schema = {"type": "string", "pattern": rf"^[+-]?{_NUMBER_TEXT} ?[dD][bB]$"}
    return quantity_key(parse_decibels, schema=schema, help=help, reach=reach)


def ratio_key(*, help: str) -> Declared:
    schema = {"type": "string", "pattern": rf"^\+?{_NUMBER_TEXT} ?[xX]$"}
    return quantity_key(parse_ratio, schema=schema, help=help)


def bytes_key(*, help: str) -> Declared:
    schema = {"type": "string", "pattern": rf"^\+?{_NUMBER_TEXT} ?([KMG]i?B)$"}
    return quantity_key(parse_bytes, schema=schema, help=help)


def milliseconds_key(*, help: str) -> Declared:
    schema = {"type": "string", "pattern": rf"^\+?{_NUMBER_TEXT} ?(us|ms|s)$"}
    return quantity_key(parse_milliseconds, schema=schema, help=help)


def list_key(item: Declared, *, help: str, single: bool = False) -> Declared:
    """A list of values; with `single` one value alone is a list of one."""
    one = item["key"]

    def read(place: Place, node: yaml.Node) -> tuple[Any, ...]:
        if isinstance(node, yaml.SequenceNode):
            return tuple(one.read(place.item(i), child) for i, child in enumerate(node.value))
        if single and isinstance(node, yaml.ScalarNode) and not is_null(node):
            return (one.read(place, node),)
        raise place.error(node, f"expected a list [a, b], found {describe(node)}")

    many = {"type": "array", "items": dict(one.schema)}
    schema = {"anyOf": [dict(one.schema), many]} if single else many
    return declare(read, schema=schema, help=help)


def date_key(*, help: str) -> Declared:
    def read(place: Place, node: yaml.Node) -> date:
        text = node.value if isinstance(node, yaml.ScalarNode) else describe(node)
        try:
            return date.fromisoformat(text)
        except ValueError:
            raise place.error(node, f"{text!r} is no day: write it as 2027-03-01") from None

    schema = {"type": "string", "format": "date"}
    return declare(read, schema=schema, help=help)


def section_key(section: type[Any], *, help: str) -> Declared:
    return declare(
        lambda place, node: read_section(section, place, node),
        schema={"section": section},
        help=help,
    )


def sections_key(section: type[Any], *, help: str, single: bool = True) -> Declared:
    """A list of mappings; with `single` one mapping alone is a list of one."""

    def read(place: Place, node: yaml.Node) -> tuple[Any, ...]:
        if isinstance(node, yaml.SequenceNode):
            if not node.value:
                raise place.error(node, "is empty: leave it out or name at least one")
            # No index: the line says which one, and the words stay those of the docs.
            return tuple(
                built for child in node.value for built in read_sections(section, place, child)
            )
        if single and isinstance(node, yaml.MappingNode):
            return read_sections(section, place, node)
        raise place.error(node, f"expected a list of mappings, found {describe(node)}")

    return declare(read, schema={"sections": section, "single": single}, help=help)


def _read_plain(place: Place, node: yaml.Node) -> Any:
    """Return any plain data: an inline `quant_cfg` is in ModelOpt's format and checked by it."""
    if isinstance(node, yaml.MappingNode):
        pairs = read_pairs(place, node)
        return {key: _read_plain(place.child(key), value) for key, (_, value) in pairs.items()}
    if isinstance(node, yaml.SequenceNode):
        return [_read_plain(place.item(i), child) for i, child in enumerate(node.value)]
    return None if is_null(node) else read_scalar(place, node)


def recipe_key() -> Declared:
    path = text_key(help="", environment=True)

    def read(place: Place, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return path["key"].read(place, node)
        found = _read_plain(place, node)
        if not found:
            raise place.error(node, "is empty: a recipe that quantizes nothing")
        try:
            read_auto(found)
        except ValueError as error:
            raise place.error(node, f"cannot be searched: {error}") from None
        return tuple(found) if isinstance(found, list) else found

    return declare(
        read,
        schema={"type": ["string", "object", "array"], "minLength": 1},
        help=f"{', '.join(RECIPES)}, a ModelOpt preset or recipe id, a YAML path, an inline "
        f"quant_cfg, or auto: {{bits: 6, formats: [...]}}, which chooses for each layer",
    )
