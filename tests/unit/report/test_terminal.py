"""The text of a failure and the summary table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_quantgate.report.terminal import Row, Summary, render_failure, render_summary
from pytest_quantgate.verdict import Status, Verdict


def row(gate: str, status: Status, *, suite: str = "clip", of: int = 1, headline: str = "") -> Row:
    verdict = Verdict(gate=gate, status=status, headline=headline or f"{gate}: text")
    return Row(suite=suite, gate=gate, gates_in_suite=of, verdict=verdict)


def lines(summary: Summary) -> list[str]:
    return [text for text, _ in render_summary(summary, width=80)]


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
    summary = Summary(
        rows=(row("coverage", Status.PASS, of=2), row("roundtrip", Status.PASS, of=2))
    )

    assert summary.conclude("clip") == ("may ship: 2 gates passed", Status.PASS)
    assert lines(summary) == [
        "clip",
        "  PASS  coverage   text",
        "  PASS  roundtrip  text",
        "clip: may ship: 2 gates passed",
        "2 gates: 2 passed",
    ]


def test_waivers_stand_in_the_sentence_with_the_first_day_on_which_one_ends() -> None:
    def coverage(suite: str, number: int, until: str) -> Row:
        found = row("coverage", Status.PASS, suite=suite)
        figures = {"waivers": number, "waived_until": until}
        return replace(found, verdict=replace(found.verdict, figures=figures))

    waived = coverage("clip", 2, "2027-03-01")
    several = Summary(rows=(waived, coverage("clip", 1, "2027-02-01")))

    assert Summary(rows=(waived,)).conclude("clip") == (
        "may ship: 1 gate passed, 2 waivers until 2027-03-01",
        Status.PASS,
    )
    assert several.conclude("clip")[0] == "may ship: 2 gates passed, 3 waivers until 2027-02-01"


def test_a_gate_that_did_not_run_is_not_a_release() -> None:
    summary = Summary(rows=(row("coverage", Status.PASS, of=3),))

    assert summary.conclude("clip") == (
        "not decided: 1 passed, 2 gates did not run",
        Status.NOT_MEASURED,
    )


def test_red_names_the_gates() -> None:
    summary = Summary(
        rows=(
            row("coverage", Status.FAIL, of=3),
            row("fidelity", Status.PASS, of=3),
            row("accuracy[a]", Status.INCONCLUSIVE, of=3),
        )
    )

    assert summary.conclude("clip") == ("do not ship: coverage, accuracy[a]", Status.FAIL)


def test_inconclusive_alone_is_not_decided() -> None:
    summary = Summary(rows=(row("accuracy[a]", Status.INCONCLUSIVE),))

    assert summary.conclude("clip") == ("not decided: accuracy[a]", Status.INCONCLUSIVE)


def test_not_measured_is_counted_and_never_green() -> None:
    part = Summary(rows=(row("coverage", Status.PASS, of=2), row("x", Status.NOT_MEASURED, of=2)))
    whole = Summary(rows=(row("x", Status.NOT_MEASURED),))

    assert part.conclude("clip") == ("not decided: x not measured", Status.NOT_MEASURED)
    assert whole.conclude("clip") == ("not measured: x: text", Status.NOT_MEASURED)
    assert lines(part)[-1] == "2 gates: 1 passed, 1 not measured"


def test_what_does_not_fit_one_line_a_gate_takes_two() -> None:
    wide = "accuracy[scenes/retrieval-image_retrieval_recall@5]"
    brief = "96.20 -> 95.90 %, drop 0.30 [-0.41, 1.05] within 3.00 pp"
    verdict = Verdict(gate="accuracy", status=Status.PASS, headline="long " * 40, brief=brief)
    rows = (Row(suite="clip", gate=wide, gates_in_suite=1, verdict=verdict),)

    assert lines(Summary(rows=rows))[:3] == ["clip", f"  PASS  {wide}", f"        {brief}"]
    one_line = [text for text, _ in render_summary(Summary(rows=rows), width=120)]
    assert one_line[:2] == ["clip", f"  PASS  {wide}  {brief}"]


def test_a_headline_without_brief_form_is_cut() -> None:
    summary = Summary(rows=(row("coverage", Status.FAIL, headline="coverage: " + "word " * 30),))

    assert lines(summary)[2] == "        " + ("word " * 30)[:67].rstrip() + "..."


def test_one_reason_for_a_whole_suite_is_said_once() -> None:
    reason = "clip.quantgate.yaml:2: environment variable CLIP is not set: export CLIP=PATH"
    gates = ("coverage", "roundtrip")
    summary = Summary(
        rows=tuple(row(gate, Status.NOT_MEASURED, of=2, headline=reason) for gate in gates)
    )

    assert lines(summary) == [f"clip: not measured: {reason}", "2 gates: 2 not measured"]


def test_orphans_name_the_command_that_deletes_them() -> None:
    text = lines(Summary(rows=(), orphans=("baselines/old/x.json",)))

    assert text == [
        "orphaned baseline: baselines/old/x.json",
        "  no suite names these; delete them with --quantgate-baselines=prune",
    ]


@pytest.mark.parametrize(
    ("suites", "labels"),
    [
        (["suites/clip"], ["clip"]),
        (["suites/clip", "suites/clip_int8"], ["clip", "clip_int8"]),
        (["team_a/clip", "team_b/clip"], ["team_a/clip", "team_b/clip"]),
        (["a/x/clip", "b/x/clip", "c/vit"], ["a/x/clip", "b/x/clip", "vit"]),
        (["clip", "suites/clip"], ["clip", "suites/clip"]),
        (["suites/my_clip", "clip"], ["my_clip", "clip"]),
    ],
)
def test_suite_is_called_by_as_little_of_its_path_as_tells_it_apart(
    suites: list[str], labels: list[str]
) -> None:
    rows = tuple(replace(row("coverage", Status.PASS), suite=suite) for suite in suites)
    summary = Summary(rows=rows)

    assert [summary.label(suite) for suite in suites] == labels
    assert [text for text in lines(summary) if text in labels] == labels
    assert [text.partition(":")[0] for text in lines(summary) if "may ship" in text] == labels
