"""The result of a selftest as terminal text. Pure: strings in, strings out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.terminal import Summary
from pytest_quantgate.run.conclusion import Row

LABELS = {
    Status.PASS: "PROVEN",
    Status.FAIL: "NOT PROVEN",
    Status.INCONCLUSIVE: "RED ALREADY",
    Status.INCOMPARABLE: "RED ALREADY",
    Status.NOT_MEASURED: "NOT MEASURED",
}


def render_selftest(summary: Summary, *, width: int) -> Iterator[tuple[str, Status | None]]:
    """Yield the lines of a selftest with the status that colours each (None: plain).

    Each gate, and below it every sabotage with what the gate said to it.
    """
    rows = {
        suite.label: [row for row in summary.results.rows if row.suite == suite.suite]
        for suite in summary.conclusion.suites
    }
    proven = {label: found for label, found in rows.items() if found}
    for label, found in proven.items():
        yield f"{label}: selftest", None
        for row in found:
            yield from _render_gate(row, width=width)
    for text in summary.warnings:
        yield f"warning: {text}", None
    for label, found in proven.items():
        yield _conclude(label, found)


def _render_gate(row: Row, *, width: int) -> Iterator[tuple[str, Status | None]]:
    verdict = row.verdict
    text = verdict.brief or verdict.headline.removeprefix("selftest: ")
    yield _cut(f"  {LABELS[verdict.status]:<12}  {row.gate}: {text}", width), verdict.status
    for line in verdict.evidence:
        yield _cut(f"      {line}", width), None


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


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."
