"""The JSON Schema: an editor is told what the reader would say, and never the opposite."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.gates.regression import RegressionGate
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.names import is_release
from pytest_quantgate.suite.schema import json_schema

REPOSITORY = Path(__file__).parents[3]
SHIPPED = sorted(
    path
    for folder in ("suites", "examples")
    for path in (REPOSITORY / folder).rglob("*.quantgate.yaml")
    if not is_release(path)
)

FULL = """\
quantgate: 1
model: {source: transformers, id: laion/x, revision: "123abc", dtype: bfloat16}
datasets: {photos: {dataset: wds/photos, root: "${QUANTGATE_DATA}", language: de}}
calibration: {data: photos/train, samples: 512, batch_size: 64, held_out_samples: 32}
quantize: {recipe: fp8-attention, exclude: ["*patch*", "*head*"]}
gates:
  coverage:
    attention: [q, k, v, output]
    towers: [vision]
    waive: [{modules: "*x*", reason: the kernel comes, until: 2027-03-01}]
  calibration: {max_clipped: 0.2%}
  fidelity: {data: photos/test, samples: 9, min_cosine: 0.99, min_sqnr: 3.5 dB}
  accuracy:
    - {task: photos/classification, metric: acc1, max_drop: 0.5pp, confidence: 99%, floor: +50 %}
  regression:
    task: photos/classification
    metric: acc1
    max_fp16_drop: 0.5pp
    max_drop: 1 pp
    max_drop_since_first: 1pp
  roundtrip:
  latency: {tower: vision, runtime: tensorrt-rtx, batch: [1, 8], max_latency: 2.5 ms}
"""


class EditorLoader(yaml.SafeLoader):
    """YAML as editors hand it to a schema: days are texts."""


EditorLoader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
}


def read(text: str) -> Any:
    return yaml.load(text, Loader=EditorLoader)


def faults(schema: dict[str, Any], value: Any, at: str = "") -> Iterator[str]:
    """Yield what JSON Schema finds wrong, for the keywords that the schema uses and no others."""
    for keyword, wanted in schema.items():
        if keyword in ("$schema", "title", "description", "format", "properties"):
            continue
        if keyword == "type":
            if not any(
                TYPES[name](value) for name in ([wanted] if str is type(wanted) else wanted)
            ):
                yield f"{at}: type {wanted}"
        elif keyword == "const":
            if value != wanted or type(value) is not type(wanted):
                yield f"{at}: const"
        elif keyword == "enum":
            if value not in wanted:
                yield f"{at}: enum"
        elif keyword == "pattern":
            if isinstance(value, str) and not re.search(wanted, value):
                yield f"{at}: pattern"
        elif keyword == "minLength":
            if isinstance(value, str) and len(value) < wanted:
                yield f"{at}: minLength"
        elif keyword == "exclusiveMinimum":
            if isinstance(value, (int, float)) and value <= wanted:
                yield f"{at}: exclusiveMinimum"
        elif keyword in ("minimum", "maximum"):
            outside = TYPES["number"](value) and (
                value < wanted if keyword == "minimum" else value > wanted
            )
            if outside:
                yield f"{at}: {keyword}"
        elif keyword == "anyOf":
            if all(list(faults(one, value)) for one in wanted):
                yield f"{at}: anyOf"
        elif keyword == "not":
            if not list(faults(wanted, value)):
                yield f"{at}: not"
        elif keyword == "minItems":
            if isinstance(value, list) and len(value) < wanted:
                yield f"{at}: minItems"
        elif keyword == "items":
            for index, item in enumerate(value if isinstance(value, list) else ()):
                yield from faults(wanted, item, f"{at}[{index}]")
        elif keyword == "required":
            missing = set(wanted) - set(value) if isinstance(value, dict) else ()
            for name in missing:
                yield f"{at}.{name}: required"
        elif keyword == "additionalProperties":
            known = schema.get("properties", {})
            for name, item in value.items() if isinstance(value, dict) else ():
                if name in known:
                    yield from faults(known[name], item, f"{at}.{name}")
                elif wanted is False:
                    yield f"{at}.{name}: unknown"
                else:
                    yield from faults(wanted, item, f"{at}.{name}")
        else:
            raise AssertionError(f"{at}: the schema uses {keyword!r}, which this test cannot check")


def mappings(schema: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every part of the schema that describes a mapping, with its place."""
    if "additionalProperties" in schema:
        yield at, schema
    parts = [(f".{name}", part) for name, part in schema.get("properties", {}).items()]
    parts += [("|", part) for part in schema.get("anyOf", ())]
    parts += [("[]", schema["items"])] if "items" in schema else []
    if isinstance(schema.get("additionalProperties"), dict):
        parts.append((".*", schema["additionalProperties"]))
    for name, part in parts:
        yield from mappings(part, at + name)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_shipped_suite_is_accepted(path: Path) -> None:
    assert list(faults(json_schema(), read(path.read_text(encoding="utf-8")))) == []


def test_suite_with_every_gate_is_accepted_by_schema_and_reader(tmp_path: Path) -> None:
    path = tmp_path / "full.quantgate.yaml"
    path.write_text(FULL, encoding="utf-8")

    assert load_suite(path).gates.all(RegressionGate)
    assert list(faults(json_schema(), read(FULL))) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("quantgate: 1\n", "", ".quantgate: required"),
        ("quantgate: 1\n", "quantgate: 2\n", ".quantgate: const"),
        ("quantgate: 1\n", "quantgate: true\n", ".quantgate: const"),
        ("quantgate: 1\n", "quantgate: 1\ngate: 1\n", ".gate: unknown"),
        ("dtype:", "dtipe:", ".model.dtipe: unknown"),
        ("bfloat16", "float61", ".model.dtype: enum"),
        ('"123abc"', "123", ".model.revision: type string"),
        ("language:", "langauge:", ".datasets.photos.langauge: unknown"),
        ("dataset: wds/photos, ", "", ".datasets.photos.dataset: required"),
        ("samples: 512", "samples: 0", ".calibration.samples: minimum"),
        ("samples: 512", "samples: 1000000001", ".calibration.samples: maximum"),
        ("samples: 512", "samples: 5.5", ".calibration.samples: type integer"),
        ("recipe: fp8-attention", 'recipe: ""', ".quantize.recipe: minLength"),
        ("recipe: fp8-attention", "recipe: 8", ".quantize.recipe: type "),
        ('["*patch*", "*head*"]', "[1]", ".quantize.exclude: anyOf"),
        ("attention: [q,", "attention: [p,", ".gates.coverage.attention[0]: enum"),
        ("until:", "til:", ".gates.coverage.waive[0].til: unknown"),
        ("0.2%", "0.2", ".gates.calibration.max_clipped: type string"),
        ("0.2%", "0.2pp", ".gates.calibration.max_clipped: pattern"),
        ("min_cosine: 0.99", "min_cosine: 99", ".gates.fidelity.min_cosine: maximum"),
        ("min_cosine: 0.99", "min_cosine: 0", ".gates.fidelity.min_cosine: exclusiveMinimum"),
        ("3.5 dB", "3.5", ".gates.fidelity.min_sqnr: type string"),
        ("3.5 dB", "3.5 db/s", ".gates.fidelity.min_sqnr: pattern"),
        ("max_drop: 0.5pp", "max_dorp: 0.5pp", ".gates.accuracy: anyOf"),
        ("max_drop: 0.5pp", "max_drop: 0.5%", ".gates.accuracy: anyOf"),
        ("max_drop: 1 pp", "max_drop: ٥pp", ".gates.regression: anyOf"),
        ("max_fp16_drop: 0.5pp", "max_fp16_drop: -0.5pp", ".gates.regression: anyOf"),
        ("  roundtrip:\n", "  roundtrip: {bits: 1}\n", ".gates.roundtrip.bits: unknown"),
    ],
)
def test_schema_and_reader_refuse_the_same(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert FULL.count(old) == 1
    text = FULL.replace(old, new)
    path = tmp_path / "full.quantgate.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(SuiteError):
        load_suite(path)
    if "٥" not in text:  # \d is ASCII in JSON Schema (ECMA 262), but not in this test's `re`
        assert any(found.startswith(fault) for found in faults(json_schema(), read(text)))


@pytest.mark.parametrize("quantized", ["checkpoint: ./out", "checkpoint: ./out, expect: int8"])
def test_a_variant_is_built_or_handed_over(tmp_path: Path, quantized: str) -> None:
    line = next(line for line in FULL.splitlines(keepends=True) if line.startswith("quantize:"))
    given = f"quantized: {{{quantized}}}\n"
    path = tmp_path / "full.quantgate.yaml"

    path.write_text(FULL.replace(line, given), encoding="utf-8")
    suite = load_suite(path)

    assert (suite.quantize, suite.variant) == (None, suite.quantized)
    assert list(faults(json_schema(), read(path.read_text("utf-8")))) == []
    for both_or_none, fault in ((line + given, ": not"), ("", ": anyOf")):
        path.write_text(FULL.replace(line, both_or_none), encoding="utf-8")
        with pytest.raises(SuiteError, match="write one of quantize"):
            load_suite(path)
        assert list(faults(json_schema(), read(path.read_text("utf-8")))) == [fault]
    alone = FULL.replace(line, "artifacts: {onnx: {vision: ./v.onnx}}\n")
    assert list(faults(json_schema(), read(alone))) == []


@pytest.mark.parametrize(
    ("artifacts", "is_good"),
    [
        ("{onnx: {vision: v.onnx, text: t.onnx}, prefix: clip}", True),
        ("{fp16: {onnx: {text: t.onnx}}}", True),
        ("{engine_report: {vision: {layers: l.json, engine: e.plan, sums: s, log: g}}}", True),
        ("{onnx: {image: v.onnx}}", False),
        ("{engine_report: {vision: {layers: l.json}}}", False),
        ("{engine_report: {vision: {layers: l.json, engine: e.plan, sha: s}}}", False),
        ("{fp16: {prefix: clip}}", False),
    ],
)
def test_schema_and_reader_agree_on_files_that_are_handed_over(
    tmp_path: Path, artifacts: str, is_good: bool
) -> None:
    path = tmp_path / "given.quantgate.yaml"
    path.write_text(f"{FULL}artifacts: {artifacts}\n", encoding="utf-8")

    assert (list(faults(json_schema(), read(path.read_text("utf-8")))) == []) is is_good
    if is_good:
        assert load_suite(path).artifacts is not None
    else:
        with pytest.raises(SuiteError, match=r":\d+: artifacts"):
            load_suite(path)


def test_every_mapping_is_closed_but_names_of_data_sets() -> None:
    found = dict(mappings(json_schema()))

    assert [at for at, part in found.items() if part["additionalProperties"] is not False] == [
        ".datasets"
    ]
    assert {"", ".model", ".datasets.*", ".quantize", ".gates", ".gates.accuracy|"} <= set(found)
    assert len(found) >= 14


def test_every_key_is_explained() -> None:
    for at, part in mappings(json_schema()):
        for name, known in part.get("properties", {}).items():
            assert known["description"], f"{at}.{name}"


def test_unknown_key_is_refused_in_every_mapping_of_a_suite() -> None:
    whole = read(FULL)

    def places(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            yield value
        for part in value.values() if isinstance(value, dict) else value:
            if isinstance(part, (dict, list)):
                yield from places(part)

    count = len(list(places(whole)))
    assert count == 14
    accepted = 0
    for index in range(count):
        changed = copy.deepcopy(whole)
        list(places(changed))[index]["no_such_key"] = "x"
        accepted += not list(faults(json_schema(), changed))

    assert accepted == 0


def test_waivers_must_be_a_list_and_tasks_need_not() -> None:
    gates = json_schema()["properties"]["gates"]["properties"]

    assert gates["coverage"]["properties"]["waive"]["type"] == "array"
    one, many = gates["accuracy"]["anyOf"]
    assert one["type"] == "object"
    assert many == {"type": "array", "items": one, "minItems": 1}


def test_mapping_without_required_keys_may_be_left_empty() -> None:
    schema = json_schema()
    gates = schema["properties"]["gates"]["properties"]

    assert gates["roundtrip"]["type"] == ["object", "null"]
    assert "required" not in gates["roundtrip"]
    assert schema["properties"]["model"]["type"] == "object"
    assert schema["properties"]["model"]["required"] == ["source"]


def test_schema_is_plain_json_and_the_same_each_time() -> None:
    text = json.dumps(json_schema(), allow_nan=False)

    assert json.loads(text) == json_schema()
    assert json.dumps(json_schema(), allow_nan=False) == text


def test_full_validator_agrees_where_it_is_installed() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())

    jsonschema.Draft202012Validator.check_schema(json_schema())
    for path in SHIPPED:
        assert list(validator.iter_errors(read(path.read_text(encoding="utf-8")))) == []
    assert not validator.is_valid(read(FULL.replace("dtype:", "dtipe:")))
