"""Verdicts as terminal text: one failure, one summary table. Pure: strings in, strings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_quantgate.gates.words import waivers_words
from pytest_quantgate.report.printable import printable
from pytest_quantgate.verdict import Status, Verdict

#: Failures stay readable in a CI log: no more evidence lines than this.
EVIDENCE_LINES = 12

#: A table says no more than this of one gate: the whole stands in the failure.
BRIEF_LENGTH = 70


@dataclass(frozen=True, kw_only=True)
class Row:
    """One gate of the summary and what was decided; `position` is its place in the suite."""

    suite: str
    gate: str
    gates_in_suite: int
    verdict: Verdict
    position: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A session's gates and what else the reader must know; derives its counts."""

    rows: tuple[Row, ...]
    orphans: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    obtained: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def count(self, status: Status) -> int:
        return sum(row.verdict.status is status for row in self.rows)

    @property
    def suites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.suite for row in self.rows))

    def label(self, suite: str) -> str:
        """Return as much of a suite's path as tells it from the others of this run."""
        parts = suite.split("/")
        others = [f"/{other}" for other in self.suites if other != suite]
        for start in range(len(parts) - 1, 0, -1):
            end = "/".join(parts[start:])
            if not any(other.endswith(f"/{end}") for other in others):
                return end
        return suite

    def conclude(self, suite: str) -> tuple[str, Status]:
        """Return the sentence on one suite and the status that it carries.

        `may ship` needs every gate of the suite: one that was not measured or not selected in
        this run makes the sentence say so.
        """
        rows = [row for row in self.rows if row.suite == suite]
        red = [r.gate for r in rows if r.verdict.status.severity > Status.NOT_MEASURED.severity]
        unmeasured = [r.gate for r in rows if r.verdict.status is Status.NOT_MEASURED]
        left_out = max(row.gates_in_suite for row in rows) - len({row.gate for row in rows})
        if red:
            failed = any(r.verdict.status is Status.FAIL for r in rows)
            word = "do not ship" if failed else "not decided"
            return f"{word}: {_join(red)}", Status.FAIL if failed else Status.INCONCLUSIVE
        if unmeasured:
            if len(unmeasured) == len(rows):
                reasons = {row.verdict.headline for row in rows}
                reason = f": {reasons.pop()}" if len(reasons) == 1 else ""
                return f"not measured{reason}", Status.NOT_MEASURED
            return f"not decided: {_join(unmeasured)} not measured", Status.NOT_MEASURED
        if left_out:
            return (
                f"not decided: {len(rows)} passed, {_plural(left_out, 'gate')} did not run",
                Status.NOT_MEASURED,
            )
        waivers = waivers_words(row.verdict.figures for row in rows)
        passed = f"may ship: {_plural(len(rows), 'gate')} passed"
        return ", ".join(filter(None, (passed, waivers))), Status.PASS


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
    for suite in summary.suites:
        rows = [row for row in summary.rows if row.suite == suite]
        yield from _render_table(rows, label=summary.label(suite), width=width)
        for note in dict.fromkeys(
            n for row in summary.rows if row.suite == suite for n in row.notes
        ):
            yield f"  note: {note}", None
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
    for suite in summary.suites:
        sentence, status = summary.conclude(suite)
        yield f"{summary.label(suite)}: {sentence}", status
    if summary.rows:
        yield _counts(summary), None


def _counts(summary: Summary) -> str:
    words = {
        Status.PASS: "passed",
        Status.FAIL: "failed",
        Status.INCONCLUSIVE: "inconclusive",
        Status.INCOMPARABLE: "incomparable",
        Status.NOT_MEASURED: "not measured",
    }
    parts = [f"{summary.count(s)} {word}" for s, word in words.items() if summary.count(s)]
    return f"{_plural(len(summary.rows), 'gate')}: {', '.join(parts)}"


def _render_table(
    rows: Sequence[Row], *, label: str, width: int
) -> Iterator[tuple[str, Status | None]]:
    """Yield one line a gate where all of them fit the width, else two: the name, the result."""
    headlines = {row.verdict.headline for row in rows}
    unmeasured = all(row.verdict.status is Status.NOT_MEASURED for row in rows)
    if unmeasured and len(headlines) == 1:
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
    text = row.verdict.headline.removeprefix(f"{row.gate.partition('[')[0]}: ")
    return text if len(text) <= BRIEF_LENGTH else text[: BRIEF_LENGTH - 3].rstrip() + "..."


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _join(names: Sequence[str] | Iterable[str], *, most: int = 3) -> str:
    names = list(names)
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
