"""Verdicts as terminal text: one failure, one summary table. Pure: strings in, strings out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile

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
from pytest_quantgate.run.consequences import list_followers
from pytest_quantgate.text.printable import printable
from pytest_quantgate.text.words import count, listed
from pytest_quantgate.text.wrapping import fold, wrap

#: Failures stay readable in a CI log: no more evidence lines than this.
EVIDENCE_LINES = 12

#: What a gate may say of itself in a table: a phrase that fits on a line of 80 columns.
BRIEF_LENGTH = 70

#: A table says no more than this many lines of a red gate: the whole stands in its failure.
BRIEF_LINES = 2

#: What is told without a terminal, which has no width: a table of these columns is read well.
LOG_WIDTH = 120

#: What gates say has at least this many columns beside their names, or stands below.
MIN_COLUMN = 48


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


def render_failure(verdict: Verdict, *, others: Mapping[str, Verdict] = {}) -> str:
    """Return the text of a red gate: what and numbers, evidence, likely cause, next step.

    `others` are the verdicts of its suite by their gates. Of one that follows from another of them
    the text is short: that one is to be read and mended.
    """
    code = f" [{verdict.code}]" if verdict.code else ""
    if verdict.follows in others:
        verdict = _refer(verdict, others=others)
    lines = [f"{verdict.status.value} {verdict.headline}{code}"]
    shown = verdict.evidence[:EVIDENCE_LINES]
    lines += [f"    {line}" for line in shown]
    if len(verdict.evidence) > len(shown):
        lines.append(f"    ... and {len(verdict.evidence) - len(shown)} more lines of evidence")
    if verdict.cause:
        lines.append(f"  likely cause: {verdict.cause}")
    if verdict.next_step:
        lines.append(f"  next step: {verdict.next_step}")
    if verdict.where:
        # As a traceback ends, so that editors and terminals open the line.
        lines.append(f"{verdict.where}: {verdict.status.value}{code}")
    return "\n".join(printable(line) for line in lines)


def _refer(verdict: Verdict, *, others: Mapping[str, Verdict]) -> Verdict:
    """Return a verdict as it is told beside the one that it follows from.

    What another gate of the suite has said already is not said again.
    """
    cause, own = others[verdict.follows], _say(verdict)
    earlier = takewhile(lambda other: other is not verdict, others.values())
    code = f" [{cause.code}]" if cause.code else ""
    return replace(
        verdict,
        headline=f"{verdict.gate}: follows from {verdict.follows}",
        evidence=() if own in map(_say, earlier) else (own,),
        cause=f"{verdict.follows}: {_say(cause)}{code}",
        next_step=f"mend {verdict.follows}{f', at {cause.where}' if cause.where else ''}",
    )


def render_summary(summary: Summary, *, width: int | None) -> Iterator[tuple[str, Status | None]]:
    """Yield the lines of the summary with the status that colours each (None: plain).

    `width` are the columns of the terminal, None in a log.
    """
    for line, status in _summary_lines(summary, width=width or LOG_WIDTH):
        for part in wrap(printable(line), width=width):
            yield part, status


def _summary_lines(summary: Summary, *, width: int) -> Iterator[tuple[str, Status | None]]:
    results, conclusion = summary.results, summary.conclusion
    told = {suite.suite: _list_notes(results, suite.suite) for suite in conclusion.suites}
    shared = [] if len(told) < 2 else sorted(set.intersection(*map(set, told.values())))
    for suite in conclusion.suites:
        rows = [row for row in results.rows if row.suite == suite.suite]
        yield from _render_table(rows, label=suite.label, width=width)
        yield from _list_not_run(suite, headed=bool(rows))
        for note in told[suite.suite]:
            if note not in shared:
                yield f"  note: {note}", None
    for note in shared:
        yield f"note: {note}", None
    red = [
        Row(suite="own tests", gate=test.test, verdict=test.verdict)
        for test in results.own_tests
        if not test.verdict.passed
    ]
    yield from _render_table(red, label="own tests", width=width)
    for text in results.errors:
        yield f"error: {text}", None
    for text in results.incomparable:
        yield f"not comparable: {text}", None
    for text in results.unanswered:
        yield f"not answered: {text}", None
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
        tier = " (advisory: decides nothing)" if suite.advisory else ""
        yield f"{suite.label}: {suite.sentence}{tier}", suite.status
    if conclusion.says_more and (conclusion.suites or summary.failed):
        sentence = conclusion.sentence
        yield f"run: {sentence[:1].lower()}{sentence[1:]}", conclusion.status
    if not all(row.verdict.passed for row in results.rows):  # the sentence has counted those
        follow = sum(bool(row.verdict.follows) for row in results.rows)
        tail = f" ({follow} of them by another's cause)" if follow else ""
        yield _count("gate", [row.verdict.status for row in results.rows]) + tail, None
    if red:
        yield _count("own test", [test.verdict.status for test in results.own_tests]), None


def _list_notes(results: Results, suite: str) -> list[str]:
    return list(dict.fromkeys(n for row in results.rows if row.suite == suite for n in row.notes))


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
    """Yield the gates with what they say beside them, or below where there is little room."""
    headlines = {row.verdict.headline for row in rows}
    unmeasured = all(row.verdict.status is Status.NOT_MEASURED for row in rows)
    if not rows or (unmeasured and len(headlines) == 1):
        return  # the sentence on the suite says it once for all
    yield label, None
    verdicts = {row.gate: row.verdict for row in rows}
    rows = [row for row in rows if row.verdict.follows not in verdicts]
    label_width = max(len(_label(row)) for row in rows)
    heads = [f"  {_label(row):<{label_width}}  {row.gate}" for row in rows]
    texts = [_brief(row) for row in rows]
    start = _choose_column(heads, texts, width=width, below=label_width + 4)
    for row, head, text in zip(rows, heads, texts, strict=True):
        status = row.verdict.status
        # Why nothing was measured stands nowhere else.
        most = None if status is Status.NOT_MEASURED else BRIEF_LINES
        said = _wrap(text, width - start, most=most) or [""]
        if len(head) + 2 <= start:
            yield f"{head:<{start}}{said[0]}", status
            said = said[1:]
        else:
            yield head, status
        followers = list_followers(verdicts, cause=row.gate)
        if followers:
            number = "follows" if len(followers) == 1 else "follow"
            text = f"{', '.join(followers)} {number} from it"
            said += _wrap(text, width - start)
        for line in said:
            yield f"{' ' * start}{line}", None


def _choose_column(heads: Sequence[str], texts: Sequence[str], *, width: int, below: int) -> int:
    """Return where what the gates say begins: the column that makes the fewest lines.

    A gate whose name reaches further says it on lines of its own; all of them do at `below`.
    """

    def count_lines(start: int) -> int:
        room = width - start
        own = sum(len(head) + 2 > start for head in heads)
        return own + sum(1 if len(text) <= room else len(_wrap(text, room)) for text in texts)

    needed = min(MIN_COLUMN, max(map(len, texts)))
    beside = {len(head) + 2 for head in heads if width - len(head) - 2 >= needed}
    return min({below, *beside}, key=lambda start: (count_lines(start), -start))


def _wrap(text: str, width: int, *, most: int | None = None) -> list[str]:
    return fold(text, width, max_lines=most, placeholder=" ...", break_long_words=True)


def _label(row: Row) -> str:
    return row.verdict.status.value.replace("_", " ")


def _brief(row: Row) -> str:
    """Return the result in a phrase; the gate's name stands beside it already."""
    return _say(row.verdict, text=row.verdict.brief)


def _say(verdict: Verdict, *, text: str = "") -> str:
    """Return what a verdict says without its gate's name in front, and its own place behind."""
    text = text or verdict.headline.removeprefix(f"{verdict.gate}: ")
    file = verdict.where.rpartition(":")[0]
    return re.sub(rf" \({re.escape(file)}:\d+\)$", "", text) if file else text
