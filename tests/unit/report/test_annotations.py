"""Commands to the runner of GitHub Actions: one a cause, on the line of its suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.report.annotations import MOST, render_annotations
from pytest_quantgate.report.terminal import Summary
from pytest_quantgate.run.conclusion import Results, Row, SuiteGates

ROOT = Path("/checkout")
JOB = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": "/checkout"}
FILE = "suites/clip.quantgate.yaml"


def red(gate: str, *, line: int = 6, status: Status = Status.FAIL, follows: str = "") -> Row:
    verdict = Verdict(
        gate=gate,
        status=status,
        headline=f"{gate}: 50 % of q is off",
        next_step="mend it",
        where=f"{FILE}:{line}",
        follows=follows,
    )
    return Row(suite="clip", gate=gate, verdict=verdict)


def annotate(*rows: Row, failed: bool = True, root: Path = ROOT, **environ: str) -> list[str]:
    suite = SuiteGates(suite="clip", file=FILE, gates=tuple(row.gate for row in rows))
    summary = Summary(results=Results(suites=(suite,), rows=rows), failed=failed)
    return list(render_annotations(summary, root=root, environ={**JOB, **environ}))


def test_a_red_gate_stands_on_its_line() -> None:
    assert annotate(red("coverage")) == [
        f"::error file={FILE},line=6,title=FAIL coverage::FAIL coverage: 50 %25 of q is off%0A"
        f"  next step: mend it%0A{FILE}:6: FAIL"
    ]


def test_one_cause_is_one_annotation() -> None:
    rows = (red("coverage"), red("export", line=8, follows="coverage"),
            red("trace", line=9, follows="coverage"))  # fmt: skip

    (line,) = annotate(*rows)

    assert line.endswith("%0Aexport, trace: follow from it")


def test_the_path_is_below_the_checkout() -> None:
    (line,) = annotate(red("coverage"), root=ROOT / "models")

    assert line.startswith(f"::error file=models/{FILE},line=6,")


def test_names_cannot_end_a_property() -> None:
    (line,) = annotate(red("accuracy[a,b::c]"))

    assert "title=FAIL accuracy[a%2Cb%3A%3Ac]::" in line
    assert "\n" not in line


def test_nothing_is_written_elsewhere() -> None:
    assert annotate(red("coverage"), GITHUB_ACTIONS="") == []
    assert annotate(Row(suite="clip", gate="coverage", verdict=Verdict(
        gate="coverage", status=Status.PASS, headline="coverage: fine"))) == []  # fmt: skip


@pytest.mark.parametrize(("failed", "number"), [(True, 1), (False, 0)])
def test_what_was_not_measured_counts_where_it_fails_the_run(failed: bool, number: int) -> None:
    assert len(annotate(red("engine", status=Status.NOT_MEASURED), failed=failed)) == number


def test_a_runner_shows_ten_and_the_last_counts_the_others() -> None:
    lines = annotate(*(red(f"accuracy[{n}]", line=n) for n in range(1, 15)))

    assert len(lines) == MOST
    assert lines[-1] == "::error title=quantgate::5 more red gates: see the log"
