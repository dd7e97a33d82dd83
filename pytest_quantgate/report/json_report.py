"""A `Report` as JSON text and back, and the JSON Schema of that text."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pytest_quantgate.errors import ReportError
from pytest_quantgate.evidence.audit import TOWERS
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.report import FORMAT, READABLE, VERSION
from pytest_quantgate.report.model import Report
from pytest_quantgate.untrusted import parse_json

#: Floats that JSON cannot hold, as strings.
NON_FINITE = ("nan", "inf", "-inf")


def render_json(report: Report) -> str:
    """Return the report as strict JSON in ASCII, with its seal."""
    plain = to_json(report)
    return json.dumps({**plain, "seal": _seal(plain)}, indent=1, allow_nan=False) + "\n"


def _seal(plain: Mapping[str, Any]) -> str:
    return digest_of({name: value for name, value in plain.items() if name != "seal"})


def read_sealed_report(text: str | bytes, *, name: str) -> Report:
    """Return the report in a JSON text that is as this release wrote it.

    Raises ReportError as `read_report`, for one of an older version, which has no seal, and for one
    whose seal is of other content.
    """
    report = read_report(text, name=name)
    plain = parse_json(text)
    if plain["version"] != VERSION:
        raise ReportError(
            f"{name}: a report of version {plain['version']} does not say which files it is of: "
            f"run again with this release"
        )
    if plain.get("seal") != _seal(plain):
        raise ReportError(f"{name}: this report was edited after it was written: run again")
    return report


def read_report(text: str | bytes, *, name: str) -> Report:
    """Return the report in a JSON text; raises ReportError, which starts with `name`.

    Refused are what is no report, a version that is not known, and any field that is missing,
    unknown or of another type.
    """
    try:
        data = parse_json(text)
    except ValueError as error:
        raise ReportError(f"{name}: this is no JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ReportError(f"{name}: this is no report: its `format` is not {FORMAT!r}")
    if data.get("version") not in READABLE:
        raise ReportError(
            f"{name}: a report of version {data.get('version')!r}, here versions "
            f"{_listed(READABLE)} are known: write it again with this release "
            f"(--quantgate-json={name})"
        )
    try:
        found = from_json(Report, data if data["version"] >= 3 else _join_towers(data))
    except ValueError as error:
        raise ReportError(f"{name}: damaged report: {error}") from error
    return dataclasses.replace(found, seal="")


def _listed(versions: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, versions[:-1]))} and {versions[-1]}"


def _join_towers(data: Any) -> Any:
    """Return what version 1 and 2 wrote with the pairs of a vision and a text field as mappings."""
    if isinstance(data, list):
        return [_join_towers(item) for item in data]
    if not isinstance(data, dict):
        return data
    found = {name: _join_towers(value) for name, value in data.items()}
    for old, new in (("batches", "tower_batches"), ("equal", "equal")):
        pair = {tower: found.pop(f"{tower}_{old}", None) for tower in TOWERS}
        known = {tower: value for tower, value in pair.items() if value is not None}
        if known:
            found[new] = known
    return found


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a report, made from the classes themselves."""
    definitions: dict[str, Any] = {}
    root = _schema_of(Report, definitions)
    definitions["Report"]["properties"]["format"] = {"const": FORMAT}
    definitions["Report"]["properties"]["version"] = {"const": VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{FORMAT}, version {VERSION}",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _define(kind, definitions)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema_of(argument, definitions) for argument in arguments]}
    if origin is tuple:
        return _schema_of_tuple(arguments, definitions)
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    if kind is float:
        return {"anyOf": [{"type": "number"}, {"enum": list(NON_FINITE)}]}
    names = {str: "string", int: "integer", bool: "boolean", type(None): "null"}
    return {"type": names[kind]}


def _schema_of_tuple(arguments: tuple[Any, ...], definitions: dict[str, Any]) -> dict[str, Any]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    return {
        "type": "array",
        "prefixItems": [_schema_of(argument, definitions) for argument in arguments],
        "minItems": len(arguments),
        "maxItems": len(arguments),
    }


def _define(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    reference = {"$ref": f"#/$defs/{kind.__name__}"}
    if kind.__name__ in definitions:
        return reference
    definitions[kind.__name__] = {}  # taken, so that a class may hold itself
    hints = typing.get_type_hints(kind)
    definitions[kind.__name__] = {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split()),
        "properties": {name: _schema_of(hint, definitions) for name, hint in hints.items()},
        "required": list(hints),
        "additionalProperties": False,
    }
    return reference
