"""Verdicts as terminal text: one failure, one summary table. Pure: strings in, strings out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.run.conclusion import (
    DESELECTED,
    NAMED,
    NOT_REACHED,
    Conclusion,
    Results,
    Row,
    SuiteConclusion,
    conclude,
)
from pytest_quantgate.text.printable import printable
from pytest_quantgate.text.words import count, listed

#: Failures stay readable in a CI log: no more evidence lines than this.
EVIDENCE_LINES = 12

#: A table says no more than this of one gate: the whole stands in the failure.
BRIEF_LENGTH = 70


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What there is to say at the end of a run: its results, what they conclude to, and notes.

    `lost_report` says that a report which was asked for could not be written, `failed` that the run
    fails by what is said here, whatever pytest says.
    """

    results: Results
    orphans: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    obtained: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    lost_report: bool = False
    failed: bool = False

    @cached_property
    def conclusion(self) -> Conclusion:
        return conclude(self.results)

    @property
    def has_news(self) -> bool:
        """Whether a terminal should show it: a run of other tests that pass is left alone."""
        results = self.results
        own_red = any(not test.verdict.passed for test in results.own_tests)
        told = any(reason not in (DESELECTED, NOT_REACHED) for *_, reason in self.list_not_run())
        notes = (self.orphans, self.written, self.obtained, self.warnings)
        return bool(results.rows or self.failed or own_red or told or any(notes))

    def count(self, status: Status) -> int:
        return sum(row.verdict.status is status for row in self.results.rows)

    def list_not_run(self) -> Iterator[tuple[SuiteConclusion, str, str]]:
        """Yield (suite, gate, why) of every gate that was collected and has no verdict."""
        for suite in self.conclusion.suites:
            for gate, reason in suite.not_run.items():
                yield suite, gate, reason


def render_failure(verdict: Verdict) -> str:
    """Return the text of a red gate: what and numbers, evidence, likely cause, next step."""
    code = f" [{verdict.code}]" if verdict.code else ""
    lines = [f"{verdict.status.value} {verdict.headline}{code}"]
    shown = verdict.evidence[:EVIDENCE_LINES]
    lines += [f"    {line}" for line in shown]
    if len(verdict.evidence) > len(shown):
        lines.append(f"    ... and {len(verdict.evidence) - len(shown)} more lines of evidence")
    if verdict.cause:
        lines.append(f"  likely cause: {verdict.cause}")
    if verdict.next_step:
        lines.append(f"  next step: {verdict.next_step}")
    return "\n".join(printable(line) for line in lines)


def render_summary(summary: Summary, *, width: int) -> Iterator[tuple[str, Status | None]]:
    """Yield the lines of the summary with the status that colours each (None: plain)."""
    for line, status in _summary_lines(summary, width=width):
        yield printable(line), status


def _summary_lines(summary: Summary, *, width: int) -> Iterator[tuple[str, Status | None]]:
    results, conclusion = summary.results, summary.conclusion
    for suite in conclusion.suites:
        rows = [row for row in results.rows if row.suite == suite.suite]
        yield from _render_table(rows, label=suite.label, width=width)
        yield from _list_not_run(suite, headed=bool(rows))
        for note in dict.fromkeys(note for row in rows for note in row.notes):
            yield f"  note: {note}", None
    red = [
        Row(suite="own tests", gate=test.test, verdict=test.verdict)
        for test in results.own_tests
        if not test.verdict.passed
    ]
    yield from _render_table(red, label="own tests", width=width)
    for text in results.errors:
        yield f"error: {text}", None
    for text in summary.warnings:
        yield f"warning: {text}", None
    for text in summary.written:
        yield text, None
    for text in summary.obtained:
        yield text, None
    for text in summary.orphans:
        yield f"orphaned baseline: {text}", None
    if summary.orphans:
        yield "  no suite names these; delete them with --quantgate-baselines=prune", None
    for suite in conclusion.suites:
        yield f"{suite.label}: {suite.sentence}", suite.status
    if conclusion.says_more and (conclusion.suites or summary.failed):
        sentence = conclusion.sentence
        yield f"run: {sentence[:1].lower()}{sentence[1:]}", conclusion.status
    if results.rows:
        yield _count("gate", [row.verdict.status for row in results.rows]), None
    if red:
        yield _count("own test", [test.verdict.status for test in results.own_tests]), None


def _list_not_run(suite: SuiteConclusion, *, headed: bool) -> Iterator[tuple[str, Status | None]]:
    reasons: dict[str, list[str]] = {}
    for gate, reason in suite.not_run.items():
        reasons.setdefault(reason, []).append(gate)
    if not headed and len(reasons) < 2:
        return  # the sentence on the suite says it
    if not headed:
        yield suite.label, None
    for reason, gates in reasons.items():
        yield f"  did not run ({reason}): {listed(gates, most=NAMED)}", None


def _count(noun: str, statuses: Sequence[Status]) -> str:
    words = {
        Status.PASS: "passed",
        Status.FAIL: "failed",
        Status.INCONCLUSIVE: "inconclusive",
        Status.INCOMPARABLE: "incomparable",
        Status.NOT_MEASURED: "not measured",
    }
    parts = [f"{statuses.count(s)} {word}" for s, word in words.items() if s in statuses]
    return f"{count(len(statuses), noun)}: {', '.join(parts)}"


def _render_table(
    rows: Sequence[Row], *, label: str, width: int
) -> Iterator[tuple[str, Status | None]]:
    """Yield one line a gate where all of them fit the width, else two: the name, the result."""
    headlines = {row.verdict.headline for row in rows}
    unmeasured = all(row.verdict.status is Status.NOT_MEASURED for row in rows)
    if not rows or (unmeasured and len(headlines) == 1):
        return  # the sentence on the suite says it once for all
    yield label, None
    label_width = max(len(_label(row)) for row in rows)
    gate_width = max(len(row.gate) for row in rows)
    texts = [_brief(row) for row in rows]
    one_line = 2 + label_width + 2 + gate_width + 2 + max(len(text) for text in texts) <= width
    for row, text in zip(rows, texts, strict=True):
        label, status = f"  {_label(row):<{label_width}}", row.verdict.status
        if one_line:
            yield f"{label}  {row.gate:<{gate_width}}  {text}", status
        else:
            yield f"{label}  {row.gate}", status
            yield f"{' ' * len(label)}  {text}", None


def _label(row: Row) -> str:
    return row.verdict.status.value.replace("_", " ")


def _brief(row: Row) -> str:
    """Return the result in a phrase; the gate's name stands beside it already."""
    if row.verdict.brief:
        return row.verdict.brief
    text = row.verdict.headline.removeprefix(f"{row.verdict.gate}: ")
    return text if len(text) <= BRIEF_LENGTH else text[: BRIEF_LENGTH - 3].rstrip() + "..."
