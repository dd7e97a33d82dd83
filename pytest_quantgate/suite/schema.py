"""The JSON Schema of suite files, out of the same fields that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_quantgate.suite.gates import IMPLICIT, list_kinds, list_names
from pytest_quantgate.suite.keys import Key, is_required, keys_of
from pytest_quantgate.suite.specs import VARIANTS, Suite


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `*.quantgate.yaml`, for editors and other tools."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-quantgate suite",
        **section_schema(Suite),
        "anyOf": [{"required": [name]} for name in (*VARIANTS, "artifacts")],
        "not": {"required": list(VARIANTS)},
    }


def section_schema(section: type) -> dict[str, Any]:
    """Return the schema of a section's class, made from its keys."""
    keys = keys_of(section)
    required = [name for name, (field, _) in keys.items() if is_required(field)]
    schema: dict[str, Any] = {
        "type": "object" if required else ["object", "null"],
        "properties": {name: _key(key) for name, (_, key) in keys.items()},
        "additionalProperties": False,
    }
    if required:
        schema["required"] = required
    return schema


def _key(key: Key) -> dict[str, Any]:
    return {"description": key.help, **_value(key.schema)}


def _value(schema: Mapping[str, Any]) -> dict[str, Any]:
    if "section" in schema:
        return section_schema(schema["section"])
    if "mapping" in schema:
        each = section_schema(schema["mapping"])
        if "names" not in schema:
            return {"type": "object", "additionalProperties": each}
        named = {name: {"description": help, **each} for name, help in schema["names"].items()}
        return {"type": "object", "properties": named, "additionalProperties": False}
    if "sections" in schema:
        one = section_schema(schema["sections"])
        many = {"type": "array", "items": one, "minItems": 1}
        return {"anyOf": [one, many]} if schema["single"] else many
    if "gates" in schema:
        return _gates()
    if "kinds" in schema:
        return {"enum": list(list_names())}
    return {
        name: [_value(one) for one in value]
        if name == "anyOf"
        else _value(value)
        if name == "items"
        else value
        for name, value in schema.items()
    }


def _gates() -> dict[str, Any]:
    kinds = [kind for kind in list_kinds() if kind.name not in IMPLICIT]
    return {
        "type": ["object", "null"],
        "properties": {kind.name: _key(kind.declared) for kind in kinds},
        "additionalProperties": False,
    }
