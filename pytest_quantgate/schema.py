"""The JSON Schema of suite files, out of the same table that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_quantgate.suite_file.fields import Field, Section
from pytest_quantgate.suite_file.sections import SUITE


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `*.quantgate.yaml`, for editors and other tools."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-quantgate suite",
        **_section(SUITE),
    }


def _section(section: Section) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": ["object", "null"] if not _required(section) else "object",
        "properties": {name: _field(known) for name, known in section.fields.items()},
        "additionalProperties": False,
    }
    if _required(section):
        schema["required"] = _required(section)
    return schema


def _required(section: Section) -> list[str]:
    return [name for name, known in section.fields.items() if known.required]


def _field(known: Field) -> dict[str, Any]:
    return {"description": known.help, **_value(known.schema)}


def _value(schema: Mapping[str, Any]) -> dict[str, Any]:
    if "section" in schema:
        return _section(schema["section"])
    if "mapping" in schema:
        return {"type": "object", "additionalProperties": _section(schema["mapping"])}
    if "sections" in schema:
        one = _section(schema["sections"])
        many = {"type": "array", "items": one, "minItems": 1}
        return {"anyOf": [one, many]} if schema["single"] else many
    return dict(schema)
