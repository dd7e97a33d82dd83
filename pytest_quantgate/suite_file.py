"""Reads `*.quantgate.yaml` into a Suite: a closed schema, and errors with file, line and mend.

The schema is the table at the end of this file, one `Field` a key; `schema.py` turns the same
table into a JSON Schema for editors.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

import yaml

from pytest_quantgate.errors import NotMeasured, SuiteError
from pytest_quantgate.quantities import (
    QuantityError,
    parse_bytes,
    parse_confidence,
    parse_cosine,
    parse_decibels,
    parse_milliseconds,
    parse_percent,
    parse_points,
    parse_ratio,
)
from pytest_quantgate.suite import (
    AccuracyGate,
    CalibrationGate,
    CalibrationSpec,
    CoverageGate,
    DatasetSpec,
    EngineGate,
    ExportGate,
    FidelityGate,
    Gates,
    LatencyGate,
    LatencyRuntime,
    MemoryGate,
    ModelSpec,
    ParityGate,
    QuantizeSpec,
    RegressionGate,
    RoundtripGate,
    Suite,
    TraceGate,
    Waiver,
    Where,
    expand_environment,
)
from pytest_quantgate.untrusted import read_regular

SUFFIX = ".quantgate.yaml"
VERSION = 1
#: A hundred times what a long suite has, and read in a few seconds.
MAX_BYTES = 256 << 10
MAX_DEPTH = 20
MAX_MESSAGE = 600

Read = Callable[["Place", yaml.Node], Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a suite file a value stands: `file:line: dotted.key`."""

    file: str
    key: str

    def child(self, key: str) -> Place:
        return Place(file=self.file, key=f"{self.key}.{key}" if self.key else key)

    def item(self, index: int) -> Place:
        return Place(file=self.file, key=f"{self.key}[{index}]")

    def error(self, node: yaml.Node, what: str) -> SuiteError:
        line = node.start_mark.line + 1
        key = f"{_cut(self.key, most=120)}: " if self.key else ""
        return SuiteError(f"{self.file}:{line}: {key}{_cut(what, most=MAX_MESSAGE)}")

    def error_at(self, node: yaml.Node, key: str, what: str) -> SuiteError:
        """Return the error of a key of the mapping `node`: its own line, or where it is missing."""
        keys = (pair[0] for pair in node.value if pair[0].value == key)
        return self.child(key).error(next(keys, node), what)


def _cut(text: str, *, most: int) -> str:
    """Return the text, or both of its ends: what mends it stands at the end."""
    return text if len(text) <= most else f"{text[: most // 2]} [...] {text[-most // 2 :]}"


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


def load_suite(path: Path, *, relative_to: Path | None = None) -> Suite:
    """Return the suite in a file.

    `relative_to` shortens the file's name in messages. Raises SuiteError, whose message starts
    with `file:line:`, for anything that is not a valid suite.
    """
    shown = path
    if relative_to is not None and path.is_absolute() and path.is_relative_to(relative_to):
        shown = path.relative_to(relative_to)
    name = shown.as_posix()
    root = compose(read_text(path, name=name), name=name)
    values = read_section(SUITE, Place(file=name, key=""), root)
    return Suite(path=path, name=path.name.removesuffix(SUFFIX), **values)


def read_text(path: Path, *, name: str) -> str:
    """Return the text of a suite file; raises SuiteError where it cannot be one."""
    try:
        data = read_regular(path, max_bytes=MAX_BYTES)
    except OSError as error:
        raise SuiteError(f"{name}:1: cannot read the suite: {error.strerror or error}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SuiteError(
            f"{name}:{line}: not UTF-8 (byte {error.start}): save it as UTF-8"
        ) from error


def compose(text: str, *, name: str) -> yaml.Node:
    """Return the YAML nodes of a text, with their lines and nothing constructed.

    Raises SuiteError for what is no YAML, more than one document, anchors or aliases (a suite
    needs none, and a few nested ones can fill the memory), tags, and deep nesting.
    """
    try:
        loader = yaml.SafeLoader(text)
        events: list[yaml.Event] = []
        depth = documents = 0
        while loader.check_event():
            event = loader.get_event()  # type: ignore[no-untyped-call]
            events.append(event)
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise SuiteError(
                    f"{name}:{line}: anchors and aliases are not part of a suite: "
                    f"write the value out"
                )
            if getattr(event, "tag", None):
                raise SuiteError(f"{name}:{line}: tags (!...) are not part of a suite")
            if isinstance(event, yaml.ScalarEvent):
                # An escape such as "\0" or "\ud800" makes what no path and no report can hold.
                odd = yaml.reader.Reader.NON_PRINTABLE.search(event.value)
                if odd:
                    raise SuiteError(f"{name}:{line}: {_not_allowed(ord(odd.group()))}")
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise SuiteError(f"{name}:{line}: a second document starts: a suite is one")
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                depth += 1
                if depth > MAX_DEPTH:
                    raise SuiteError(f"{name}:{line}: nested deeper than {MAX_DEPTH} levels")
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                depth -= 1
        node = Replay(events).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise SuiteError(f"{name}:{line}: {_not_allowed(error.character)}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = error.problem or "not YAML"
        raise SuiteError(f"{name}:{line}: not YAML: {problem}") from error
    except (ValueError, OverflowError) as error:
        # PyYAML converts the numbers of "\UFFFFFFFF" and of %YAML directives without a check.
        line = loader.line + 1
        raise SuiteError(f"{name}:{line}: not YAML: a number is out of range") from error
    if node is None:
        raise SuiteError(f"{name}:1: the suite is empty: it needs quantgate, model, gates, ...")
    return node


class Replay(yaml.composer.Composer, yaml.resolver.Resolver):
    """Composes nodes from events that were read and checked already."""

    def __init__(self, events: Sequence[yaml.Event]) -> None:
        yaml.composer.Composer.__init__(self)
        yaml.resolver.Resolver.__init__(self)
        self.events = events
        self.position = 0

    def check_event(self, *kinds: type[yaml.Event]) -> bool:
        return isinstance(self.events[self.position], kinds)

    def peek_event(self) -> yaml.Event:
        return self.events[self.position]

    def get_event(self) -> yaml.Event:
        self.position += 1
        return self.events[self.position - 1]


def _not_allowed(character: int) -> str:
    return f"the character U+{character:04X} is not allowed in a suite"


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


def read_pairs(place: Place, node: yaml.Node) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Return the keys and values of a mapping node; a key that stands twice is an error."""
    if _is_null(node):
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise place.error(node, f"expected a mapping (key: value), found {describe(node)}")
    pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise place.error(key_node, "a key must be a plain word")
        key = key_node.value
        if key in pairs:
            first = pairs[key][0].start_mark.line + 1
            raise place.child(key).error(key_node, f"stands twice, first on line {first}")
        pairs[key] = (key_node, value_node)
    return pairs


def unknown_key(key: str, *, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
    return f"unknown key{hint}"


def describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"{node.value[:40]!r}" if node.value else "nothing"


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _scalar(place: Place, node: yaml.Node) -> Any:
    """Return a scalar as YAML types it, but never more than str, int, float or bool."""
    if not isinstance(node, yaml.ScalarNode):
        raise place.error(node, f"expected a single value, found {describe(node)}")
    kind = node.tag.rpartition(":")[2]
    text = node.value
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind == "int" and re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if kind == "float" and re.fullmatch(r"[+-]?\d{0,18}(\.\d{0,18})?([eE][+-]?\d{1,2})?", text):
        return float(text)
    if kind in ("int", "float"):
        raise place.error(node, f"{text[:40]!r} is no number that makes sense here")
    if kind == "null":
        raise place.error(node, "has no value")
    return text


# -- readers of single values -------------------------------------------------------------


def text_field(
    *, help: str, required: bool = False, environment: bool = False, lines: bool = False
) -> Field:
    """A text; `${NAME}` is allowed in it only where `environment` is set.

    Without `lines` it is one line of visible characters: it may become part of a test's name.
    """

    def read(place: Place, node: yaml.Node) -> str:
        value = _scalar(place, node)
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
        value = str(_scalar(place, node))
        if value not in choices:
            close = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise place.error(node, f"{value!r} is none of {', '.join(choices)}{hint}")
        return value

    return Field(read=read, schema={"enum": list(choices)}, help=help, required=required)


def count_field(*, help: str, required: bool = False, least: int = 1) -> Field:
    def read(place: Place, node: yaml.Node) -> int:
        value = _scalar(place, node)
        if isinstance(value, bool) or not isinstance(value, int):
            raise place.error(node, f"expected a whole number, found {value!r}")
        if not least <= value <= 10**9:
            raise place.error(node, f"{value} is out of range: {least} to 1000000000")
        return value

    schema = {"type": "integer", "minimum": least, "maximum": 10**9}
    return Field(read=read, schema=schema, help=help, required=required)


def quantity_field(
    parse: Callable[[object], Any], *, schema: Mapping[str, Any], help: str, required: bool = False
) -> Field:
    def read(place: Place, node: yaml.Node) -> Any:
        try:
            return parse(_scalar(place, node))
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
        if single and isinstance(node, yaml.ScalarNode) and not _is_null(node):
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
    return None if _is_null(node) else _scalar(place, node)


def _recipe_field() -> Field:
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


# -- checks over several keys -------------------------------------------------------------


def _check_model(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    if values["source"] == "reference":
        for key in ("id", "revision"):
            if key in values:
                raise place.error_at(node, key, "the reference model ships with the package")
        return
    name = values.get("id")
    if name is None:
        raise place.child("id").error(node, "is missing: a hub id or a local directory")
    is_local = name.startswith(("/", ".", "~", "$"))
    if is_local and "revision" in values:
        raise place.error_at(node, "revision", "a local directory has no revision")
    if not is_local and "revision" not in values:
        raise place.child("revision").error(
            node,
            "is missing: pin the commit of the hub id, so that the model cannot change under the "
            "gate (a local directory starts with / ./ ~/ or ${NAME})",
        )


def _check_fidelity(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    limits = ("min_cosine", "min_worst_cosine", "min_sqnr", "min_worst_sqnr")
    if not any(limit in values for limit in limits):
        raise place.error(node, f"sets no limit: give at least one of {', '.join(limits)}")
    if "data" in values:
        _check_data(values, place, node)


CLASSIFICATION = ("acc1", "acc5", "mean_per_class_recall")
RETRIEVAL = re.compile(r"(image|text)_retrieval_recall@[1-9]\d{0,5}")


def _check_task(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    task, metric = values["task"], values["metric"]
    dataset, _, kind = task.rpartition("/")
    if not dataset or kind not in ("classification", "retrieval"):
        raise place.error_at(
            node,
            "task",
            f"{task!r} is no task: write <data set>/classification or <data set>/retrieval",
        )
    if kind == "classification" and metric not in CLASSIFICATION:
        close = difflib.get_close_matches(metric, CLASSIFICATION, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise place.error_at(
            node,
            "metric",
            f"{metric!r} is no metric of classification: {', '.join(CLASSIFICATION)}{hint}",
        )
    if kind == "retrieval" and not RETRIEVAL.fullmatch(metric):
        raise place.error_at(
            node,
            "metric",
            f"{metric!r} is no metric of retrieval: image_retrieval_recall@K, "
            f"text_retrieval_recall@K",
        )
    if kind == "retrieval" and "max_class_drop" in values:
        raise place.error_at(node, "max_class_drop", "retrieval has no classes")


def _check_gates(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    if not values:
        raise place.child("gates").error(
            node, f"has no gates: name at least one of {', '.join(GATES.fields)}"
        )
    for kind in ("accuracy", "regression", "engine", "memory", "trace", "latency"):
        seen: set[str] = set()
        for gate in values.get(kind, ()):
            if gate.key in seen:
                is_task = kind in ("accuracy", "regression")
                name = f"{gate.task} {gate.metric}" if is_task else gate.key
                raise SuiteError(f"{gate.where}: {kind}: {name} stands twice")
            seen.add(gate.key)


def _check_data(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    dataset, _, split = values["data"].rpartition("/")
    if not dataset or not split:
        raise place.error_at(
            node,
            "data",
            f"{values['data']!r} is no data: write <data set>/<split>, such as scenes/train",
        )


def _check_engine(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    _check_limits(values, place, node, words="attention, min_fp8_gemms or a max_...")


def _check_memory(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    _check_limits(values, place, node, words="a max_...")


def _check_towers(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    towers = values.get("towers", ("vision",))
    if not towers:
        raise place.error_at(node, "towers", "is empty: name vision, text or both")
    if len(set(towers)) < len(towers):
        raise place.error_at(node, "towers", "names a tower twice, which would count it twice")


def _check_limits(values: Mapping[str, Any], place: Place, node: yaml.Node, *, words: str) -> None:
    _check_towers(values, place, node)
    limits = values.keys() - {"target", "library", "towers", "batch"}
    if not limits:
        raise place.error(node, f"sets no limit, so it decides nothing: set {words}")


def _check_trace(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    _check_towers(values, place, node)
    if "target" not in values:
        for name in ("library", "batch", "allow"):
            if name in values:
                raise place.error_at(
                    node, name, "is about an engine: set target as well, such as target: sm89"
                )


def _check_latency(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    if "max_ratio" not in values and "max_latency" not in values:
        raise place.error(node, "sets no limit, so it decides nothing: set max_ratio, max_latency")
    if not values.get("batch", (1,)):
        raise place.error_at(node, "batch", "is empty: name at least one batch size, such as [1]")
    runtime = values.get("runtime", "onnxruntime")
    if "threads" in values and runtime not in ("onnxruntime", "torch"):
        raise place.error_at(node, "threads", f"{runtime} runs on the GPU: leave it out")


def _check_parity(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    if values.get("max_sqnr_change", 0.0) < 0:
        raise place.error_at(node, "max_sqnr_change", "is negative: no change is less than 0dB")


def _check_suite(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    if values["quantgate"] != VERSION:
        raise place.error_at(
            node,
            "quantgate",
            f"version {values['quantgate']} is not supported: this release reads {VERSION}",
        )


# -- the schema ---------------------------------------------------------------------------


def _keep(**values: Any) -> dict[str, Any]:
    del values["where"]
    return values


def _build_suite(**values: Any) -> dict[str, Any]:
    kept = _keep(**values)
    kept["version"] = kept.pop("quantgate")
    return kept


def _build_parity(**values: Any) -> ParityGate:
    if "max_sqnr_change" in values:
        values["max_sqnr_change_db"] = values.pop("max_sqnr_change")
    return ParityGate(**values)


def _build_engine(**values: Any) -> EngineGate:
    return EngineGate(**_in_bytes(values))


def _build_memory(**values: Any) -> MemoryGate:
    return MemoryGate(**_in_bytes(values))


def _in_bytes(values: dict[str, Any]) -> dict[str, Any]:
    for name in ("max_plan", "max_weights", "max_activation"):
        if name in values:
            values[f"{name}_bytes"] = values.pop(name)
    return values


def _build_latency(**values: Any) -> tuple[LatencyGate, ...]:
    """Return a gate for each batch size."""
    if "max_latency" in values:
        values["max_latency_ms"] = values.pop("max_latency")
    return tuple(LatencyGate(batch=batch, **values) for batch in values.pop("batch", (1,)))


def _build_fidelity(**values: Any) -> FidelityGate:
    for name in ("min_sqnr", "min_worst_sqnr"):
        if name in values:
            values[f"{name}_db"] = values.pop(name)
    return FidelityGate(**values)


MODEL = Section(
    build=ModelSpec,
    check=_check_model,
    fields={
        "source": choice_field(
            "reference", "transformers", help="where the FP16 model comes from", required=True
        ),
        "id": text_field(help="hub id or local directory; ${NAME} is expanded", environment=True),
        "revision": text_field(help="commit of the hub id"),
        "dtype": choice_field(
            "float16", "bfloat16", "float32", help="what the weights are rounded to"
        ),
        "attn_implementation": choice_field("sdpa", "eager", help="as in transformers"),
    },
)
DATASET = Section(
    build=DatasetSpec,
    fields={
        "dataset": text_field(help="clip-benchmark name, or wds/NAME for a folder", required=True),
        "root": text_field(help="the folder it is in; ${NAME} is expanded", environment=True),
        "language": text_field(help="of class names and templates"),
    },
)
CALIBRATION = Section(
    build=CalibrationSpec,
    check=_check_data,
    fields={
        "data": text_field(help="<data set>/<split>", required=True),
        "samples": count_field(help="pairs that calibrate", required=True),
        "batch_size": count_field(help="pairs in a batch", required=True),
        "held_out_samples": count_field(help="pairs after those, on which clipping is counted"),
    },
)
QUANTIZE = Section(
    build=QuantizeSpec,
    fields={
        "recipe": _recipe_field(),
        "exclude": list_field(
            text_field(help="pattern"), help="patterns as in mtq.disable_quantizer", single=True
        ),
    },
)
WAIVER = Section(
    build=Waiver,
    fields={
        "modules": list_field(
            text_field(help="pattern"), help="module patterns", single=True, required=True
        ),
        "reason": text_field(help="why they may stay unquantized", required=True, lines=True),
        "until": date_field(help="the last day on which this holds", required=True),
    },
)
COVERAGE = Section(
    build=CoverageGate,
    fields={
        "attention": list_field(
            choice_field("q", "k", "v", "softmax", "output", help="slot"),
            help="what must be quantized around attention in every block",
        ),
        "towers": list_field(choice_field("vision", "text", help="tower"), help="default: both"),
        "waive": sections_field(WAIVER, help="what may stay unquantized", single=False),
    },
)
CALIBRATION_GATE = Section(
    build=CalibrationGate,
    fields={
        "max_clipped": percent_field(help="share of held-out values above amax, per quantizer")
    },
)
FIDELITY = Section(
    build=_build_fidelity,
    check=_check_fidelity,
    fields={
        "data": text_field(help="<data set>/<split>; default: the first task's"),
        "samples": count_field(help="default: 512"),
        "min_cosine": cosine_field(help="mean cosine to FP16"),
        "min_worst_cosine": cosine_field(help="cosine of the worst sample"),
        "min_sqnr": decibel_field(help="mean SQNR"),
        "min_worst_sqnr": decibel_field(help="SQNR of the worst sample"),
    },
)
_TASK = {
    "task": text_field(help="<data set>/classification or /retrieval", required=True),
    "metric": text_field(help="acc1, acc5, image_retrieval_recall@5, ...", required=True),
    "confidence": percent_field(help="one-sided; default 95%", parse=parse_confidence),
    "samples": count_field(help="the first so many; default: all"),
}
ACCURACY = Section(
    build=AccuracyGate,
    check=_check_task,
    fields={
        **_TASK,
        "max_drop": points_field(help="loss against FP16", required=True),
        "floor": percent_field(help="least absolute value"),
        "max_flips": percent_field(help="share of answers that differ from FP16's"),
        "max_class_drop": points_field(help="loss of the worst class"),
        "stage": choice_field(
            "torch", "onnx", "engine", help="which model is judged; default: torch"
        ),
    },
)
REGRESSION = Section(
    build=RegressionGate,
    check=_check_task,
    fields={
        **_TASK,
        "max_fp16_drop": points_field(help="FP16 against the stored FP16", required=True),
        "max_drop": points_field(help="against the variant accepted last", required=True),
        "max_drop_since_first": points_field(help="against the first accepted", required=True),
    },
)
ROUNDTRIP = Section(build=RoundtripGate, fields={})
EXPORT = Section(
    build=ExportGate,
    fields={
        "allow": list_field(
            choice_field("softmax", help="what"),
            help="what the graph may hold although PyTorch does not simulate it",
        ),
        "max_size_ratio": ratio_field(help="both files against FP16's"),
    },
)
PARITY = Section(
    build=_build_parity,
    check=_check_parity,
    fields={
        "samples": count_field(help="held-out pairs; default: 64"),
        "max_error": percent_field(help="relative error that counts as none; default: 0.1%"),
        "max_sqnr_change": decibel_field(help="of SQNR against FP16; default: 1dB"),
    },
)
_ENGINE = {
    "target": text_field(help="compute capability, such as sm89", required=True),
    "library": choice_field("tensorrt-rtx", "tensorrt", help="default: tensorrt-rtx"),
    "towers": list_field(choice_field("vision", "text", help="tower"), help="default: both"),
    "batch": count_field(help="images or texts in a batch; default: 1"),
}
_SIZES = {
    "max_plan_ratio": ratio_field(help="plan against FP16's"),
    "max_weights_ratio": ratio_field(help="weights memory against FP16's"),
    "max_activation_ratio": ratio_field(help="activation memory against FP16's"),
    "max_plan": bytes_field(help="plan of one tower"),
    "max_weights": bytes_field(help="weights memory of one tower"),
    "max_activation": bytes_field(help="activation memory of one tower"),
}
ENGINE = Section(
    build=_build_engine,
    check=_check_engine,
    fields={
        **_ENGINE,
        "min_fp8_gemms": count_field(help="linear layers in FP8, all towers together"),
        "attention": choice_field("fused-fp8", "fused", help="in every block of every tower"),
        **_SIZES,
    },
)
MEMORY = Section(build=_build_memory, check=_check_memory, fields={**_ENGINE, **_SIZES})
TRACE = Section(
    build=TraceGate,
    check=_check_trace,
    fields={
        **_ENGINE,
        "target": text_field(help="compute capability, such as sm89; without: ends at ONNX"),
        "allow": list_field(
            text_field(help="pattern"), help="quantizers that may run wider in the engine"
        ),
    },
)
LATENCY = Section(
    build=_build_latency,
    check=_check_latency,
    fields={
        "tower": choice_field("vision", "text", help="tower", required=True),
        "max_ratio": ratio_field(help="time against FP16's"),
        "max_latency": milliseconds_field(
            help="time of one batch, on the machine of the baseline alone"
        ),
        "batch": list_field(
            count_field(help="images or texts in a batch"),
            help="images or texts in a batch, or several sizes; default: 1",
            single=True,
        ),
        "runtime": choice_field(*get_args(LatencyRuntime), help="default: onnxruntime"),
        "threads": count_field(help="of a runtime on the CPU; default: 1"),
        "rounds": count_field(help="timed rounds; default: 30"),
        "confidence": percent_field(help="one-sided; default 95%", parse=parse_confidence),
    },
)


def _latency_field() -> Field:
    sections = sections_field(LATENCY, help="time against FP16, interleaved")

    def read(place: Place, node: yaml.Node) -> tuple[LatencyGate, ...]:
        return tuple(itertools.chain.from_iterable(sections.read(place, node)))

    return replace(sections, read=read)


GATES = Section(
    build=lambda **values: Gates(**_keep(**values)),
    check=_check_gates,
    fields={
        "coverage": section_field(COVERAGE, help="what is quantized, and really runs"),
        "calibration": section_field(CALIBRATION_GATE, help="ranges, calls, clipping, overlap"),
        "fidelity": section_field(FIDELITY, help="embeddings against FP16"),
        "accuracy": sections_field(ACCURACY, help="loss on tasks, paired with FP16"),
        "regression": sections_field(REGRESSION, help="drift against the stored baseline"),
        "roundtrip": section_field(ROUNDTRIP, help="save and restore, bit for bit"),
        "export": section_field(EXPORT, help="the ONNX files hold what was audited"),
        "parity": section_field(PARITY, help="the ONNX files compute what PyTorch does"),
        "engine": sections_field(ENGINE, help="TensorRT engines: precision, fusion, sizes"),
        "memory": sections_field(MEMORY, help="sizes of the engines against FP16's"),
        "trace": sections_field(TRACE, help="every quantizer, from the recipe to the engine"),
        "latency": _latency_field(),
    },
)


def _datasets_field() -> Field:
    def read(place: Place, node: yaml.Node) -> dict[str, DatasetSpec]:
        return {
            name: read_section(DATASET, place.child(name), value)
            for name, (_, value) in read_pairs(place, node).items()
        }

    return Field(read=read, schema={"mapping": DATASET}, help="data sets by a name of your own")


SUITE = Section(
    build=_build_suite,
    check=_check_suite,
    fields={
        "quantgate": Field(
            read=count_field(help="").read,
            schema={"const": VERSION},
            help="version of this format",
            required=True,
        ),
        "model": section_field(MODEL, help="the FP16 model", required=True),
        "datasets": _datasets_field(),
        "calibration": section_field(CALIBRATION, help="what calibrates", required=True),
        "quantize": section_field(QUANTIZE, help="how it is quantized", required=True),
        "family": choice_field(
            "holm", "none", help="control of false FAILs over all limits; default: holm"
        ),
        "gates": Field(
            read=lambda place, node: read_section(GATES, Place(file=place.file, key=""), node),
            schema={"section": GATES},
            help="what decides",
            required=True,
        ),
    },
)
