"""One codec: every dataclass of this room to JSON-ready values and back, read with suspicion."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from enum import Enum
from fractions import Fraction
from functools import cache
from typing import Any, Literal, TypeVar

from pytest_quantgate.errors import StoredValueError

Value = TypeVar("Value")

#: How floats are written that JSON has no numbers for.
_NONFINITE = ("nan", "inf", "-inf")


def to_json(value: Any) -> Any:
    """Return `value` (a dataclass of this room) as JSON-ready dicts, lists and scalars.

    Non-finite floats become the strings `nan`, `inf`, `-inf`, so that the file is strict JSON;
    a day becomes its ISO text, a fraction `1/2`, a member of an enum its value.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def from_json(kind: type[Value], data: Any) -> Value:
    """Return the dataclass `kind` read back from `to_json`'s form.

    Raises StoredValueError, a ValueError that names the place, where a field is missing, unknown
    or of the wrong shape.
    """
    try:
        return typing.cast(Value, _read(kind, data))
    except StoredValueError as error:
        name = getattr(kind, "__name__", str(kind))
        raise StoredValueError(f"{name}{error.place}: {error}") from error


def shorten(value: Any) -> str:
    """Return a value for a message: ten thousand digits help nobody."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _read(kind: Any, data: Any) -> Any:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is Literal:
        if data not in arguments:
            raise StoredValueError(f"{shorten(data)} is none of {arguments}")
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        if float in kinds and data in _NONFINITE:
            return float(data)
        # Of several scalars the one of the value's own type: 1 is no float where an int may stand.
        return _read(next((k for k in kinds if k is type(data)), kinds[0]), data)
    if origin is Mapping:
        if not isinstance(data, dict):
            raise StoredValueError(f"expected a mapping, found {type(data).__name__}")
        return {name: _read_part(arguments[1], data[name], f".{name}") for name in data}
    if origin is tuple:
        if not isinstance(data, list):
            raise StoredValueError(f"expected a list, found {type(data).__name__}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = (arguments[0],) * len(data)
        if len(data) != len(arguments):
            raise StoredValueError(f"expected {len(arguments)} items, found {len(data)}")
        return tuple(_read(a, item) for a, item in zip(arguments, data, strict=True))
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), data)
    if kind is float and (type(data) in (int, float) or data in _NONFINITE):
        try:
            return float(data)
        except OverflowError as error:
            raise StoredValueError(
                f"expected float, found an integer out of range: {error}"
            ) from error
    if kind is Any or (kind in (int, bool, str) and type(data) is kind):
        return data
    if isinstance(kind, type) and issubclass(kind, Enum):
        if data not in [member.value for member in kind]:
            raise StoredValueError(f"{shorten(data)} is no {kind.__name__}")
        return kind(data)
    if kind is date and isinstance(data, str):
        with suppress(ValueError):
            return date.fromisoformat(data)
    if kind is Fraction and isinstance(data, str):
        with suppress(ValueError, ZeroDivisionError):
            return Fraction(data)
    raise StoredValueError(f"expected {getattr(kind, '__name__', kind)}, found {shorten(data)}")


def _read_part(kind: Any, data: Any, place: str) -> Any:
    try:
        return _read(kind, data)
    except StoredValueError as error:
        error.place = place + error.place
        raise


def _read_dataclass(kind: type, data: Any) -> Any:
    if not isinstance(data, dict):
        raise StoredValueError(f"expected a mapping, found {type(data).__name__}")
    hints, fields = _describe_class(kind)
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise StoredValueError(f"unknown fields {shorten(unknown)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _read_part(hints[name], data[name], f".{name}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise StoredValueError(f"field {name!r} is missing")
    return kind(**values)


@cache  # a report holds thousands of values of a few classes, and evaluating their types is slow
def _describe_class(kind: type) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """Return the types and the fields of a dataclass by their names."""
    return typing.get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
