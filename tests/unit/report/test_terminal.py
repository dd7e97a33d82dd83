"""The text of a failure and the summary table."""

from __future__ import annotations

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
    summary = Summary(rows=(row("coverage", Status.PASS, of=2), row("roundtrip", Status.PASS, of=2)))

    assert summary.conclude("clip") == ("may ship: 2 gates passed", Status.PASS)
    assert lines(summary) == [
        "clip",
        "  PASS  coverage   text",
        "  PASS  roundtrip  text",
        "clip: may ship: 2 gates passed",
        "2 gates: 2 passed",
    ]


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
    assert whole.conclude("clip") == ("not measured", Status.NOT_MEASURED)
    assert lines(part)[-1] == "2 gates: 1 passed, 1 not measured"


def test_long_headlines_wrap_under_themselves() -> None:
    summary = Summary(rows=(row("coverage", Status.PASS, headline="coverage: " + "word " * 30),))

    for line in lines(summary)[1:4]:
        assert len(line) <= 80
    assert lines(summary)[2].startswith(" " * len("  PASS  coverage  ") + "word")


def test_orphans_name_the_command_that_deletes_them() -> None:
    text = lines(Summary(rows=(), orphans=("baselines/old/x.json",)))

    assert text == [
        "orphaned baseline: baselines/old/x.json",
        "  no suite names these; delete them with --quantgate-baselines=prune",
    ]
