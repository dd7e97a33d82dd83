"""Verdicts as terminal text: one failure, one summary table. Pure: strings in, strings out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_quantgate.verdict import Status, Verdict

#: Failures stay readable in a CI log: no more evidence lines than this.
EVIDENCE_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Row:
    """One gate of the summary: where it stands in the run and what was decided."""

    suite: str
    gate: str
    gates_in_suite: int
    verdict: Verdict
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
                return "not measured", Status.NOT_MEASURED
            return f"not decided: {_join(unmeasured)} not measured", Status.NOT_MEASURED
        if left_out:
            return (
                f"not decided: {len(rows)} passed, {_plural(left_out, 'gate')} did not run",
                Status.NOT_MEASURED,
            )
        return f"may ship: {_plural(len(rows), 'gate')} passed", Status.PASS


def render_failure(verdict: Verdict) -> str:
    """Return the text of a red gate: what and numbers, evidence, likely cause, next step."""
    lines = [f"{verdict.status.value} {verdict.headline}"]
    shown = verdict.evidence[:EVIDENCE_LINES]
    lines += [f"    {line}" for line in shown]
    if len(verdict.evidence) > len(shown):
        lines.append(f"    ... and {len(verdict.evidence) - len(shown)} more lines of evidence")
    if verdict.cause:
        lines.append(f"  likely cause: {verdict.cause}")
    if verdict.next_step:
        lines.append(f"  next step: {verdict.next_step}")
    return "\n".join(lines)


def render_summary(summary: Summary, *, width: int) -> Iterator[tuple[str, Status | None]]:
    """Yield the lines of the summary with the status that colours each (None: plain)."""
    labels = {row.verdict.status.value.replace("_", " ") for row in summary.rows}
    label_width = max((len(label) for label in labels), default=0)
    gate_width = min(44, max((len(row.gate) for row in summary.rows), default=0))
    for suite in summary.suites:
        yield suite, None
        for row in summary.rows:
            if row.suite != suite:
                continue
            label = row.verdict.status.value.replace("_", " ")
            head = f"  {label:<{label_width}}  {row.gate:<{gate_width}}  "
            room = max(30, width - len(head))
            text = _without_gate(row)
            wrapped = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
            yield head + wrapped[0], row.verdict.status
            for line in wrapped[1:]:
                yield " " * len(head) + line, None
        for note in dict.fromkeys(n for row in summary.rows if row.suite == suite for n in row.notes):
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
        yield f"{suite}: {sentence}", status
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


def _without_gate(row: Row) -> str:
    """Return the headline without the gate's name, which stands in its own column already."""
    kind = row.gate.partition("[")[0]
    return row.verdict.headline.removeprefix(f"{kind}: ")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _join(names: Sequence[str] | Iterable[str], *, most: int = 3) -> str:
    names = list(names)
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
