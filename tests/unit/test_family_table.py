"""The table of families and gates: the registry's rows and columns, and how a cell is written."""

from __future__ import annotations

import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.families import KINDS, PAGE, SUITE, render  # noqa: E402
from pytest_quantgate.encoders.families import _OWN  # noqa: E402
from pytest_quantgate.suite.gates import BUILTIN  # noqa: E402

OWN = {family.name: tuple(family.pretrained) for family in _OWN}


def read_page() -> tuple[list[str], dict[str, list[str]], dict[str, str]]:
    """Return the columns, the cells of each row, and the reasons by number."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    head, _, *kinds = [[cell.strip() for cell in row] for row in rows]
    reasons = dict(re.findall(r"^- \*\*(\d+)\*\*: (.+)", text, re.MULTILINE))
    return head[2:], {row[0]: row[2:] for row in kinds}, reasons


def test_every_family_of_the_registry_meets_every_gate() -> None:
    """A new family, or a new gate, is measured: python -m benchmarks.families."""
    columns, rows, _ = read_page()

    assert list(KINDS) == list(rows) == list(OWN)
    assert all(kind.model_type in OWN[name] for name, kind in KINDS.items())
    assert columns == list(BUILTIN)
    assert {gate for gate in BUILTIN if f"\n  {gate}:" in SUITE} == {*BUILTIN} - {"sanity"}


def test_every_cell_was_measured_or_says_why_not() -> None:
    columns, rows, reasons = read_page()
    cited = set()
    for cells in rows.values():
        assert len(cells) == len(columns)
        for cell in cells:
            number = re.fullmatch(r"\*\*(\d+)\*\*", cell)
            assert number or cell == "yes"
            cited |= {number[1]} if number else set()

    assert cited == set(reasons)
    assert not any("no-verdict" in reason for reason in reasons.values())


def test_a_reason_is_written_once() -> None:
    gates = [{"kind": gate, "status": "PASS", "code": "", "headline": ""} for gate in BUILTIN]
    refused = {"status": "NOT_MEASURED", "code": "serves.no-python", "headline": "serves: not set"}
    missing = [gate if gate["kind"] != "serves" else {**gate, **refused} for gate in gates]

    lines = list(render({"vit": missing, "llava": missing[:-1], "text": gates}))

    rows = [line for line in lines if line.startswith("|")][2:]
    assert sum("serves: not set" in line for line in lines) == 1
    assert [row.count("**1**") for row in rows] == [1, 1, 0]
    assert [row.count("**2**") for row in rows] == [0, 1, 0]
    assert any("not run when this page was made" in line for line in lines)
