"""The text of a failure and the summary table."""

from __future__ import annotations

from dataclasses import replace
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


def lines(summary: Summary, *, width: int | None = None) -> list[str]:
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
        "2 own tests: 1 passed, 1 failed",
    ]


def test_what_does_not_fit_one_line_a_gate_takes_two() -> None:
    wide = "accuracy[scenes/retrieval-image_retrieval_recall@5]"
    brief = "96.20 -> 95.90 %, drop 0.30 [-0.41, 1.05] within 3.00 pp"
    verdict = Verdict(gate="accuracy", status=Status.PASS, headline="long " * 40, brief=brief)
    summary = summarize(Row(suite="clip", gate=wide, verdict=verdict))

    assert lines(summary, width=80)[:3] == ["clip", f"  PASS  {wide}", f"        {brief}"]
    assert lines(summary, width=120)[:2] == ["clip", f"  PASS  {wide}  {brief}"]
    assert lines(summary)[:2] == ["clip", f"  PASS  {wide}  {brief}"]


def test_the_longest_name_does_not_push_what_all_others_say_to_the_right() -> None:
    said = "vision cosine 0.9987, SQNR 25.8 dB; text cosine 0.9992"
    rows = [row("fidelity", Status.PASS, headline=said), row("trace", Status.PASS, headline=said)]
    summary = summarize(*rows, row("accuracy[digits/classification-acc1]", Status.PASS))

    assert lines(summary, width=80)[1:5] == [
        f"  PASS  fidelity  {said}",
        f"  PASS  trace     {said}",
        "  PASS  accuracy[digits/classification-acc1]",
        "                  text",
    ]


def test_a_number_stays_on_the_line_of_its_unit() -> None:
    summary = summarize(row("calibration", Status.PASS, headline="clipping " * 6 + "0.001 %"))

    assert lines(summary, width=80)[2] == f"{' ' * 21}0.001 %"


def test_what_every_suite_notes_is_said_once_behind_them() -> None:
    both = [
        Row(suite=name, gate="trace", verdict=row("trace", Status.PASS).verdict, notes=notes)
        for name, notes in (("a", ("on a CPU", "old")), ("b", ("on a CPU",)))
    ]
    suites = tuple(SuiteGates(suite=r.suite, file=r.suite, gates=("trace",)) for r in both)

    assert lines(Summary(results=Results(suites=suites, rows=tuple(both))))[:6] == [
        "a",
        "  PASS  trace  text",
        "  note: old",
        "b",
        "  PASS  trace  text",
        "note: on a CPU",
    ]


def test_a_headline_without_brief_form_ends_after_two_lines_of_whole_words() -> None:
    summary = summarize(row("coverage", Status.FAIL, headline="coverage: " + "words " * 90))

    for width, words in ((80, 9), (120, 16)):
        assert lines(summary, width=width)[1:4] == [
            f"  FAIL  coverage  {' '.join(['words'] * (words + 1))}",
            f"                  {' '.join(['words'] * words)} ...",
            "clip: do not ship: coverage",
        ]


def test_why_nothing_was_measured_is_said_whole() -> None:
    reason = "engine: " + "no such word " * 20
    summary = summarize(
        row("coverage", Status.PASS), row("engine", Status.NOT_MEASURED, headline=reason)
    )

    said = " ".join(line.strip() for line in lines(summary, width=80)[2:-2])

    assert said.count("no such word") == 20


def test_the_place_of_a_limit_stands_in_the_failure_and_not_in_the_table() -> None:
    found = row("coverage", Status.FAIL, headline="coverage: 2 off (suites/clip.quantgate.yaml:7)")
    placed = replace(found.verdict, where="suites/clip.quantgate.yaml:6")

    assert lines(summarize(replace(found, verdict=placed)))[1] == "  FAIL  coverage  2 off"


def test_what_follows_stands_with_its_cause() -> None:
    rows = [row(gate, Status.FAIL) for gate in ("coverage", "export", "parity", "trace[sm89]")]
    rows[1:] = [replace(each, verdict=replace(each.verdict, follows="coverage"))
                for each in rows[1:]]  # fmt: skip

    assert lines(summarize(*rows)) == [
        "clip",
        "  FAIL  coverage  text",
        "                  export, parity, trace[sm89] follow from it",
        "clip: do not ship: coverage; 3 gates follow from that",
        "4 gates: 4 failed (3 of them by another's cause)",
    ]


def test_a_failure_that_follows_names_its_cause_and_says_no_sentence_twice() -> None:
    cause = Verdict(
        gate="coverage",
        status=Status.FAIL,
        headline="coverage: q is off",
        evidence=("layer 1",),
        cause="the recipe",
        next_step="use another",
        code="coverage.attention-missing",
        where="suites/clip.quantgate.yaml:6",
    )
    found = Verdict(
        gate="trace",
        status=Status.FAIL,
        headline="trace: 4 of 8 lost",
        evidence=("a table",),
        code="trace.lost-at-model",
        where="suites/clip.quantgate.yaml:9",
        follows="coverage",
    )

    others = {"coverage": cause, "trace": found}
    assert render_failure(found, others=others).splitlines() == [
        "FAIL trace: follows from coverage [trace.lost-at-model]",
        "    4 of 8 lost",
        "  likely cause: coverage: q is off [coverage.attention-missing]",
        "  next step: mend coverage, at suites/clip.quantgate.yaml:6",
        "suites/clip.quantgate.yaml:9: FAIL [trace.lost-at-model]",
    ]
    same = replace(found, headline="trace: q is off")
    assert render_failure(same, others={"coverage": cause, "trace": same}).count("q is off") == 1
    parity = replace(found, gate="parity", headline="parity: 4 of 8 lost")
    said = render_failure(found, others={"coverage": cause, "parity": parity, "trace": found})
    assert "4 of 8" not in said


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
