"""The door for a gate: what one is (`GateKind`), which there are, and those of a suite (`Gates`).

A gate of this package is a module of `gates/` with a `KIND`, and its name in `BUILTIN`. A gate of
another package is an entry point of the group `pytest_quantgate.gates` that names its `GateKind`.
Modules are imported when a suite names their gate, so that starting pytest is cheap.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, cast

import yaml

from pytest_quantgate.errors import QuantGateError, SuiteError
from pytest_quantgate.suite.keys import BadKey, Key, section_key, sections_key, unknown_key
from pytest_quantgate.suite.names import OWN_TESTS
from pytest_quantgate.suite.nodes import Place, read_pairs
from pytest_quantgate.suite.where import Where

#: The gates of this package in the order they run: what is cheap and tells most first.
BUILTIN = (
    "sanity",
    "coverage",
    "calibration",
    "fidelity",
    "accuracy",
    "regression",
    "roundtrip",
    "serves",
    "export",
    "parity",
    "engine",
    "memory",
    "trace",
    "latency",
    "load",
)
#: No section, no limit: no suite is without it.
IMPLICIT = ("sanity",)

#: The group of entry points of other packages' gates.
GROUP = "pytest_quantgate.gates"


@dataclass(frozen=True, kw_only=True)
class GateSection:
    """One gate of a suite with its limits; `kind` is that of its class.

    A class of several gates in a suite tells them apart by `key`, which is part of a test's name.
    `check`, where a class has it, raises BadKey for keys that do not go together; `check_beside`
    does for what decides nothing without another gate of its kind in the suite.
    """

    kind: ClassVar[str]

    where: Where

    @property
    def key(self) -> str:
        return ""

    @property
    def name(self) -> str:
        """What the gate's test is called: `coverage`, `accuracy[scenes/classification-acc1]`."""
        return f"{self.kind}[{self.key}]" if self.key else self.kind

    @property
    def title(self) -> str:
        """What tells the gate from others of its kind, in a suite's own words."""
        return self.key

    def check_beside(self, others: Sequence[GateSection]) -> None:
        """Raise BadKey where the gate needs another one of its kind beside it."""

    @property
    def runs_code_of(self) -> str:
        """The code that the suite itself names, and that runs with it; empty: none."""
        return ""


Section = TypeVar("Section", bound=GateSection)


@dataclass(frozen=True, kw_only=True)
class GateKind(Generic[Section]):
    """A kind of gate.

    `judge(run, section)` returns a `Judged`; `run` is a `GateRun` (gates/run.py). `help` says in a
    phrase what it decides. A suite may have `several` of it.
    `count_limits` and `strengths(run, section)` say which of its limits may raise a false alarm and
    how strong each alarm is (gates/family.py): those of a whole suite are held down together.
    `keeps_baseline` says whether a gate is judged against a stored result.
    `needs_torch` is whether it looks at the quantized model in PyTorch, which a suite of ONNX files
    alone does not have. `needs` are parts besides a model that it measures nothing without:
    `onnxruntime`, `tensorrt-rtx`. A `timed` one takes pytest-benchmark's
    fixture where that is there. `follows` says which findings of it are explained by which of
    others, as patterns of codes: `{"trace.lost-at-onnx": ("export.quantizers-lost",)}`.
    """

    section: type[Section]
    help: str
    judge: Callable[[Any, Section], Any]
    several: bool = False
    count_limits: Callable[[Section], int] = lambda _section: 0
    strengths: Callable[[Any, Section], Sequence[float]] = lambda _run, _section: ()
    keeps_baseline: Callable[[Section], bool] = lambda _section: False
    timed: bool = False
    needs_torch: Callable[[Section], bool] = lambda _section: False
    needs: tuple[str, ...] = ()
    follows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.section.kind

    @property
    def declared(self) -> Key:
        """The kind as a key of `gates:`."""
        make = sections_key if self.several else section_key
        return make(self.section, help=self.help)["key"]


def find_kind(name: str) -> GateKind[Any] | None:
    """Return a kind of gate by its name, None where there is none.

    Raises QuantGateError where a package that has such a gate cannot be imported.
    """
    if name in BUILTIN:
        return cast("GateKind[Any]", importlib.import_module(f"pytest_quantgate.gates.{name}").KIND)
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        return _load(point)
    return None


def kind_of(section: Section) -> GateKind[Section]:
    """Return the kind of a gate of a suite, which was read with it."""
    kind = find_kind(section.kind)
    assert kind is not None
    return kind


def _load(point: importlib.metadata.EntryPoint) -> GateKind[Any]:
    try:
        found = point.load()
    except Exception as error:
        raise QuantGateError(
            f"the gate {point.name} ({point.value}) cannot be imported: {type(error).__name__}: "
            f"{error}"
        ) from error
    if not isinstance(found, GateKind) or found.name != point.name:
        raise QuantGateError(f"{point.value} is not a GateKind with the name {point.name!r}")
    return found


def list_names() -> tuple[str, ...]:
    """Return the names of all kinds in the order they run, those of other packages last."""
    others = {point.name for point in importlib.metadata.entry_points(group=GROUP)}
    return (*BUILTIN, *sorted(others - set(BUILTIN)))


def list_kinds() -> tuple[GateKind[Any], ...]:
    """Return all kinds of gates in the order they run; raises as `find_kind`."""
    found = (find_kind(name) for name in list_names())
    return tuple(kind for kind in found if kind is not None)


def parse_kinds(text: str, *, option: str) -> tuple[str, ...]:
    """Return the kinds in a list with commas or spaces; raises QuantGateError for another name."""
    names = tuple(name for name in re.split(r"[,\s]+", text) if name)
    known = (*list_names(), OWN_TESTS)
    for name in names:
        if name not in known:
            raise QuantGateError(
                f"{option}: {name!r} is not a kind of gate. Valid kinds: {', '.join(known)}."
            )
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class Gates:
    """The gates of a suite in the order they run."""

    sections: tuple[GateSection, ...] = ()

    def __iter__(self) -> Iterator[GateSection]:
        return iter(self.sections)

    def all(self, section: type[Section]) -> tuple[Section, ...]:
        """Return the gates of one class, in the order of the file."""
        return tuple(found for found in self.sections if isinstance(found, section))

    def one(self, section: type[Section]) -> Section | None:
        """Return the gate of a class that a suite has at most one of."""
        return next(iter(self.all(section)), None)

    def get(self, section: type[Section], *, key: str) -> Section:
        """Return the gate of a class and key; raises KeyError where the suite has none."""
        found = [gate for gate in self.all(section) if gate.key == key]
        if not found:
            raise KeyError(f"{section.kind}[{key}]")
        return found[0]

    def find(self, *, kind: str, key: str = "") -> GateSection:
        """Return a gate by its kind and key; raises KeyError where the suite has none."""
        for section in self.sections:
            if (section.kind, section.key) == (kind, key):
                return section
        raise KeyError(f"{kind}[{key}]")


def list_sections() -> tuple[str, ...]:
    """Return the names of the kinds that a suite can name."""
    return tuple(name for name in list_names() if name not in IMPLICIT)


def read_gates(place: Place, node: yaml.Node) -> Gates:
    """Return the gates of a suite; raises SuiteError for one that is not valid."""
    top = Place(file=place.file, key="")  # a gate is found by its name and line, without `gates.`
    found: dict[str, tuple[GateSection, ...]] = {}
    for name, (key_node, value) in read_pairs(top, node).items():
        kind = None if name in IMPLICIT else find_kind(name)
        if kind is None:
            raise top.child(name).error(key_node, unknown_key(name, known=list_sections()))
        read = kind.declared.read(top.child(name), value)
        found[name] = read if kind.several else (read,)
        refuse_twins(found[name])
        refuse_halves(found[name])
    if not found:
        raise top.child("gates").error(
            node, f"has no gates: name at least one of {', '.join(list_sections())}"
        )
    where = Where(file=place.file, line=node.start_mark.line + 1)
    for name in IMPLICIT:
        kind = find_kind(name)
        assert kind is not None
        found[name] = (kind.section(where=where),)
    names = list_names() if found.keys() - set(BUILTIN) else BUILTIN
    return Gates(sections=tuple(section for name in names for section in found.get(name, ())))


def refuse_twins(sections: Iterable[GateSection]) -> None:
    """Raise SuiteError where two gates of a kind cannot be told apart."""
    seen: set[str] = set()
    for section in sections:
        if section.key in seen:
            raise SuiteError(f"{section.where}: {section.kind}: {section.title} stands twice")
        seen.add(section.key)


def refuse_halves(sections: Sequence[GateSection]) -> None:
    """Raise SuiteError for a gate that decides nothing without another, which is not there."""
    for section in sections:
        try:
            section.check_beside(sections)
        except BadKey as bad:
            raise SuiteError(
                f"{section.where.of(bad.key)}: {section.kind}.{bad.key}: {bad}"
            ) from None
