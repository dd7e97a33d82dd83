"""Which gates there are, and how one of another package comes in."""

from __future__ import annotations

import importlib.metadata
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest

from pytest_quantgate.errors import QuantGateError, SuiteError
from pytest_quantgate.suite.gates import (
    BUILTIN,
    GROUP,
    IMPLICIT,
    GateKind,
    GateSection,
    find_kind,
    list_kinds,
    list_names,
    parse_kinds,
)
from pytest_quantgate.suite.keys import percent_key
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.where import Where
from tests.suite_texts import VALID as COMPLETE


@dataclass(frozen=True, kw_only=True)
class SharpnessGate(GateSection):
    """A gate that this package does not know."""

    kind = "sharpness"

    max_loss: Fraction = field(metadata=percent_key(help="of the edges"))


KIND = GateKind(section=SharpnessGate, help="how sharp", judge=lambda _run, gate: gate)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return the module of a package that has the gate, as if it were installed."""
    module = ModuleType("sharp")
    module.KIND = KIND  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sharp", module)
    point = importlib.metadata.EntryPoint(name="sharpness", value="sharp:KIND", group=GROUP)
    real = importlib.metadata.entry_points

    def entry_points(**asked: str) -> importlib.metadata.EntryPoints:
        found = real(**asked)
        if asked.get("group") == GROUP and asked.get("name", point.name) == point.name:
            found = importlib.metadata.EntryPoints((*found, point))  # type: ignore[assignment]
        return found  # type: ignore[return-value]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return module


def test_every_gate_of_this_package_has_a_module_of_its_name() -> None:
    kinds = list_kinds()

    assert tuple(kind.name for kind in kinds) == BUILTIN
    for kind in kinds:
        assert kind.section.__module__ == f"pytest_quantgate.gates.{kind.name}"
        assert kind.help


def test_a_folder_of_gates_holds_no_gate_that_is_not_named() -> None:
    import pytest_quantgate.gates as gates

    folder = Path(gates.__file__ or "").parent
    found = {
        path.stem
        for path in folder.glob("*.py")
        if "\nKIND = GateKind(" in path.read_text(encoding="utf-8")
    }

    assert found == set(BUILTIN)


@pytest.mark.usefixtures("installed")
def test_a_gate_of_another_package_is_read_with_its_limits(tmp_path: Path) -> None:
    path = tmp_path / "clip.quantgate.yaml"
    path.write_text(f"{COMPLETE}  sharpness: {{max_loss: 3%}}\n", encoding="utf-8")

    suite = load_suite(path, relative_to=tmp_path)

    assert suite.gates.get(SharpnessGate, key="").max_loss == Fraction(3, 100)
    assert [gate.kind for gate in suite.gates][-1] == "sharpness"
    assert list_names() == (*BUILTIN, "sharpness")
    assert parse_kinds("sharpness,coverage", option="-o") == ("sharpness", "coverage")


@pytest.mark.usefixtures("installed")
def test_a_gate_of_another_package_is_held_to_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "clip.quantgate.yaml"
    path.write_text(f"{COMPLETE}  sharpness: {{max_los: 3%}}\n", encoding="utf-8")

    with pytest.raises(SuiteError, match=r"sharpness\.max_los: unknown key; did you mean max_loss"):
        load_suite(path, relative_to=tmp_path)


def test_a_gate_that_cannot_be_imported_is_said(installed: ModuleType) -> None:
    del installed.KIND

    with pytest.raises(QuantGateError, match=r"the gate sharpness \(sharp:KIND\) cannot be"):
        find_kind("sharpness")


def test_what_is_no_gate_is_refused(installed: ModuleType) -> None:
    installed.KIND = object()  # type: ignore[attr-defined]

    with pytest.raises(QuantGateError, match="sharp:KIND is not a GateKind with the name"):
        find_kind("sharpness")


@pytest.mark.parametrize("name", IMPLICIT)
def test_a_gate_that_every_suite_has_cannot_be_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "clip.quantgate.yaml"
    path.write_text(f"{COMPLETE}  {name}: {{}}\n", encoding="utf-8")

    with pytest.raises(SuiteError, match=f"{name}: unknown key"):
        load_suite(path, relative_to=tmp_path)


def test_every_suite_has_what_no_limit_is_needed_for(tmp_path: Path) -> None:
    path = tmp_path / "clip.quantgate.yaml"
    path.write_text(COMPLETE, encoding="utf-8")

    suite = load_suite(path, relative_to=tmp_path)

    assert next(iter(suite.gates)).name == "sanity"


def test_a_kind_that_is_none_is_refused_with_those_there_are() -> None:
    assert parse_kinds("engine, tests  engine", option="-x") == ("engine", "tests")
    with pytest.raises(
        QuantGateError, match=r"^-x: 'engin' is not a kind of gate\. Valid kinds: s"
    ):
        parse_kinds("engin", option="-x")


def test_a_gate_that_a_suite_has_not_is_no_gate(tmp_path: Path) -> None:
    path = tmp_path / "demo.quantgate.yaml"
    path.write_text(COMPLETE, encoding="utf-8")
    gates = load_suite(path).gates

    found = gates.find(kind="accuracy", key="photos/classification-acc1")
    assert gates.get(type(found), key=found.key) is found
    with pytest.raises(KeyError, match=r"accuracy\[other\]"):
        gates.find(kind="accuracy", key="other")
    with pytest.raises(KeyError, match=r"accuracy\[other\]"):
        gates.get(type(found), key="other")


@pytest.mark.parametrize("kind", list_kinds(), ids=lambda kind: kind.name)
def test_a_section_can_be_kept_with_the_evidence(kind: GateKind[GateSection]) -> None:
    """The codec of evidence reads a section by the types of its fields."""
    assert typing.get_type_hints(kind.section)["where"] is Where
