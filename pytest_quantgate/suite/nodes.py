"""YAML as nodes with their lines: nothing is constructed, and what can harm is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pytest_quantgate import bounds
from pytest_quantgate.errors import SuiteError
from pytest_quantgate.untrusted import read_regular

MAX_DEPTH = 20
MAX_MESSAGE = 600


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


def read_text(path: Path, *, name: str) -> str:
    """Return the text of a suite file; raises SuiteError where it cannot be one."""
    try:
        data = read_regular(path, max_bytes=bounds.SUITE_BYTES)
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


def read_pairs(place: Place, node: yaml.Node) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Return the keys and values of a mapping node; a key that stands twice is an error."""
    if is_null(node):
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


def describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"{node.value[:40]!r}" if node.value else "nothing"


def is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def is_number(node: yaml.Node) -> bool:
    """Return whether YAML takes a value for a number: `120`, but also a commit without letters."""
    return isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] in ("int", "float")


def read_scalar(place: Place, node: yaml.Node) -> Any:
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
