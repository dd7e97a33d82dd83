"""The result of a selftest as terminal text. Pure: strings in, strings out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.terminal import Summary
from pytest_quantgate.run.conclusion import Row
from pytest_quantgate.text.printable import printable
from pytest_quantgate.text.wrapping import wrap

LABELS = {
    Status.PASS: "PROVEN",
    Status.FAIL: "NOT PROVEN",
    Status.INCONCLUSIVE: "RED ALREADY",
    Status.INCOMPARABLE: "RED ALREADY",
    Status.NOT_MEASURED: "NOT MEASURED",
}


def render_selftest(summary: Summary, *, width: int | None) -> Iterator[tuple[str, Status | None]]:
    """Yield the lines of a selftest with the status that colours each (None: plain).

    Each gate, and below it every sabotage with what the gate said to it. `width` are the columns of
    the terminal, None in a log.
    """
    for line, status in _list_lines(summary):
        for part in wrap(printable(line), width=width, hang=4):
            yield part, status


def _list_lines(summary: Summary) -> Iterator[tuple[str, Status | None]]:
    rows = {
        suite.label: [row for row in summary.results.rows if row.suite == suite.suite]
        for suite in summary.conclusion.suites
    }
    proven = {label: found for label, found in rows.items() if found}
    for label, found in proven.items():
        yield f"{label}: selftest", None
        for row in found:
            yield from _render_gate(row)
    for text in summary.warnings:
        yield f"warning: {text}", None
    for label, found in proven.items():
        yield _conclude(label, found)


def _render_gate(row: Row) -> Iterator[tuple[str, Status | None]]:
    verdict = row.verdict
    text = verdict.brief or verdict.headline.removeprefix("selftest: ")
    yield f"  {LABELS[verdict.status]:<12}  {row.gate}: {text}", verdict.status
    for line in verdict.evidence:
        yield f"      {line}", None


def _conclude(suite: str, rows: Sequence[Row]) -> tuple[str, Status]:
    proven = sum(row.verdict.passed for row in rows)
    planted = sum(int(row.verdict.figures.get("sabotages", 0)) for row in rows)
    caught = sum(int(row.verdict.figures.get("sabotages_named", 0)) for row in rows)
    words = (
        f"{suite}: {proven} of {len(rows)} gates proven: red for the right reason on {caught} of "
        f"{planted} sabotages"
    )
    worst = max((row.verdict.status for row in rows), key=lambda status: status.severity)
    return words, worst
