"""The text of a failure and the summary table."""

from __future__ import annotations

from typing import Any

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.report.terminal import Summary, render_failure, render_summary
from pytest_quantgate.run.conclusion import OwnTest, Results, Row, SuiteGates


def row(gate: str, status: Status, *, headline: str = "") -> Row:
    verdict = Verdict(gate=gate, status=status, headline=headline or f"{gate}: text")
    return Row(suite="clip", gate=gate, verdict=verdict)


def summarize(*rows: Row, left: tuple[str, ...] = (), **changes: Any) -> Summary:
    """Return the summary of one suite with gates that did not run; `changes` are of the results."""
    gates = (*(row.gate for row in rows), *left)
    suite = SuiteGates(suite="clip", file="suites/clip.quantgate.yaml", gates=gates)
    return Summary(results=Results(suites=(suite,), rows=rows, **changes))


def lines(summary: Summary, *, width: int = 80) -> list[str]:
    return [text for text, _ in render_summary(summary, width=width)]


def test_failure_says_what_evidence_cause_and_next_step() -> None:
    verdict = Verdict(
        gate="coverage",
        status=Status.FAIL,
        headline="coverage: 1 of 2 linear quantized",
        evidence=("fc1 is not quantized",),
        cause="pattern '*fc1*'",
        next_step="remove it",
    )

    assert render_failure(verdict) == (
        "FAIL coverage: 1 of 2 linear quantized\n"
        "    fc1 is not quantized\n"
        "  likely cause: pattern '*fc1*'\n"
        "  next step: remove it"
    )


def test_failure_stays_readable_with_much_evidence() -> None:
    verdict = Verdict(
        gate="coverage",
        status=Status.FAIL,
        headline="coverage: bad",
        evidence=tuple(f"layer {n}" for n in range(100)),
    )

    text = render_failure(verdict).splitlines()

    assert len(text) == 14
    assert text[-1] == "    ... and 88 more lines of evidence"


def test_green_suite_may_ship() -> None:
    summary = summarize(row("coverage", Status.PASS), row("roundtrip", Status.PASS))

    assert lines(summary) == [
        "clip",
        "  PASS  coverage   text",
        "  PASS  roundtrip  text",
        "clip: may ship: 2 gates passed",
        "2 gates: 2 passed",
    ]


def test_gates_that_did_not_run_are_named_with_their_reason() -> None:
    left = ("fidelity", "roundtrip", "export", "parity", "trace")
    summary = summarize(
        row("coverage", Status.PASS),
        left=left,
        not_run={("clip", gate): "deselected" for gate in left[1:]} | {("clip", left[0]): "wip"},
    )

    assert lines(summary) == [
        "clip",
        "  PASS  coverage  text",
        "  did not run (wip): fidelity",
        "  did not run (deselected): roundtrip, export, parity and 1 more",
        "clip: not decided: 1 passed, 5 gates did not run",
        "1 gate: 1 passed",
    ]


def test_a_red_test_of_the_project_is_in_the_table_and_in_the_conclusion() -> None:
    verdict = Verdict(gate="test", status=Status.FAIL, headline="test: failed: assert 1 == 2")
    passed = Verdict(gate="test", status=Status.PASS, headline="test: passed")
    summary = summarize(
        row("coverage", Status.PASS),
        own_tests=(
            OwnTest(test="test_a.py::test_x", verdict=verdict),
            OwnTest(test="test_a.py::test_y", verdict=passed),
        ),
    )

    assert lines(summary) == [
        "clip",
        "  PASS  coverage  text",
        "own tests",
        "  FAIL  test_a.py::test_x  failed: assert 1 == 2",
        "clip: may ship: 1 gate passed",
        "run: do not ship: own test test_a.py::test_x",
        "1 gate: 1 passed",
        "2 own tests: 1 passed, 1 failed",
    ]


def test_what_does_not_fit_one_line_a_gate_takes_two() -> None:
    wide = "accuracy[scenes/retrieval-image_retrieval_recall@5]"
    brief = "96.20 -> 95.90 %, drop 0.30 [-0.41, 1.05] within 3.00 pp"
    verdict = Verdict(gate="accuracy", status=Status.PASS, headline="long " * 40, brief=brief)
    summary = summarize(Row(suite="clip", gate=wide, verdict=verdict))

    assert lines(summary)[:3] == ["clip", f"  PASS  {wide}", f"        {brief}"]
    assert lines(summary, width=120)[:2] == ["clip", f"  PASS  {wide}  {brief}"]


def test_a_headline_without_brief_form_is_cut() -> None:
    summary = summarize(row("coverage", Status.FAIL, headline="coverage: " + "word " * 30))

    assert lines(summary)[2] == "        " + ("word " * 30)[:67].rstrip() + "..."


def test_one_reason_for_a_whole_suite_is_said_once() -> None:
    reason = "clip.quantgate.yaml:2: environment variable CLIP is not set: export CLIP=PATH"
    gates = ("coverage", "roundtrip")
    summary = summarize(*(row(gate, Status.NOT_MEASURED, headline=reason) for gate in gates))

    assert lines(summary) == [f"clip: not measured: {reason}", "2 gates: 2 not measured"]


def test_orphans_name_the_command_that_deletes_them() -> None:
    text = lines(Summary(results=Results(), orphans=("baselines/old/x.json",)))

    assert text == [
        "orphaned baseline: baselines/old/x.json",
        "  no suite names these; delete them with --quantgate-baselines=prune",
    ]


def test_a_run_of_other_tests_that_pass_is_left_alone() -> None:
    passed = Verdict(gate="test", status=Status.PASS, headline="test: passed")
    left = summarize(left=("coverage",), not_run={("clip", "coverage"): "deselected"})

    assert not Summary(results=Results()).has_news
    assert not left.has_news
    assert not Summary(results=Results(own_tests=(OwnTest(test="x", verdict=passed),))).has_news
    assert summarize(row("coverage", Status.PASS)).has_news
