"""What a run collected and judged -> its one conclusion, which every writer says.

Exit status, terminal, reports and JUnit come from `conclude`. It is pure over frozen values, so the
results of several runs can be put together and concluded from as one.

Only PASS may ship. It needs every gate of every suite that was collected, whatever kept one from
being judged: a mark, a selection, a shard, a crash, Ctrl-C. What may be missing is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.suite.names import OWN_TESTS
from pytest_quantgate.text.words import count, listed, waivers_words

#: A sentence names no more gates, suites or tests than this.
NAMED = 3

#: Why a gate has no verdict, where neither a mark nor the gate itself has said so.
DESELECTED, NOT_REACHED = "deselected", "not reached"


@dataclass(frozen=True, kw_only=True)
class SuiteGates:
    """A suite as it was collected: all of its gates in their order, whether they ran or not.

    `file` is shown; `allow_unmeasured` are the kinds of gates that the suite lets be missing;
    `digest` is the SHA-256 of the file. An `advisory` suite is shown and decides nothing.
    `lines` are the lines of the file that the gates stand on, where they are known.
    """

    suite: str
    file: str
    gates: tuple[str, ...]
    allow_unmeasured: tuple[str, ...] = ()
    digest: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
    advisory: bool = False

    def place(self, gate: str) -> str:
        """Return where a gate stands: `suites/clip.quantgate.yaml:12`; empty where unknown."""
        line = self.lines.get(gate, 0)
        return f"{self.file}:{line}" if line else ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One gate that was judged. `attempts` are the verdicts of all tries where it had several.

    `answered_by` names the results that it was taken from, where several were joined.
    """

    suite: str
    gate: str
    verdict: Verdict
    attempts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    answered_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OwnTest:
    """A hand-written test, by its node id, that used an assertion or a fixture of this package."""

    test: str
    verdict: Verdict
    attempts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that a run left.

    `not_run` says by (suite, gate) why a gate has no verdict, where that is known. `errors` are of
    no gate: a suite that cannot be read, a record that cannot be written, a crash of pytest.
    `stopped` is why the run ended early, empty where it did not. `orphans` are baselines of no
    suite that this run does not forgive. Where results were joined, `incomparable` says what they
    do not have in common, `unanswered` what was to be measured and stands in none of them.
    """

    suites: tuple[SuiteGates, ...] = ()
    rows: tuple[Row, ...] = ()
    not_run: Mapping[tuple[str, str], str] = field(default_factory=dict)
    own_tests: tuple[OwnTest, ...] = ()
    errors: tuple[str, ...] = ()
    stopped: str = ""
    orphans: tuple[str, ...] = ()
    allow_unmeasured: tuple[str, ...] = ()
    incomparable: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SuiteConclusion:
    """The verdict on one suite, of which `passed` gates passed; `label` is what it is called.

    `not_run` says why a gate has no verdict, in the suite's order; `allowed` are the gates without
    a measurement that need none.
    """

    suite: str
    label: str
    status: Status
    sentence: str
    passed: int
    not_run: Mapping[str, str]
    allowed: tuple[str, ...]
    advisory: bool = False


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """The verdict on a run; `says_more` is False where it is the verdict on its only suite."""

    status: Status
    sentence: str
    suites: tuple[SuiteConclusion, ...]
    says_more: bool


def label_suites(suites: Sequence[str]) -> dict[str, str]:
    """Return as much of the path of each suite as tells it from the others, by its path."""
    labels = {}
    for suite in suites:
        parts = suite.split("/")
        ends = ["/".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        others = [f"/{other}" for other in suites if other != suite]
        unlike = (e for e in ends if not any(other.endswith(f"/{e}") for other in others))
        labels[suite] = next(unlike, suite)
    return labels


def kind_of(gate: str) -> str:
    """Return the kind of a gate by its name, which is `<kind>` or `<kind>[<key>]`."""
    return gate.partition("[")[0]


def join_attempts(attempts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of a gate or a test that was tried once or several times.

    A rerun does not turn red into green: different answers are FAIL, with all of them.
    """
    last = attempts[-1]
    if len({verdict.status for verdict in attempts}) == 1:
        return last
    words = ", then ".join(verdict.status.value for verdict in attempts)
    return Verdict(
        gate=last.gate,
        status=Status.FAIL,
        headline=f"{last.gate}: {len(attempts)} attempts, different answers: {words}",
        evidence=tuple(
            f"attempt {number}: {verdict.status.value} {verdict.headline}"
            for number, verdict in enumerate(attempts, start=1)
        ),
        cause="what is measured, or the test around it, is not repeatable",
        next_step="find what differs between the attempts: another one decides nothing",
        figures=last.figures,
        code=f"{last.gate}.two-answers",
        where=last.where,
    )


def join_answers(answers: Sequence[tuple[str, Verdict]]) -> Verdict:
    """Return the verdict of a gate or a test that several results have, by the name of each.

    One that could not be measured in a result has no answer there. Different answers are FAIL, with
    all of them: neither machine is believed over the other.
    """
    said = [(name, v) for name, v in answers if v.status is not Status.NOT_MEASURED]
    if not said:
        return answers[0][1]
    worst = max((verdict for _, verdict in said), key=lambda verdict: verdict.status.severity)
    if len({verdict.status for _, verdict in said}) == 1:
        return worst
    words = ", ".join(f"{verdict.status.value} in {name}" for name, verdict in said)
    return Verdict(
        gate=worst.gate,
        status=Status.FAIL,
        headline=f"{worst.gate}: {len(said)} results, different answers: {words}",
        evidence=tuple(f"{name}: {v.status.value} {v.headline}" for name, v in said),
        cause="what is measured is not the same on these machines, or not repeatable",
        next_step="find what differs between the results; to judge a gate on one machine alone, "
        "deselect it on the other",
        figures=worst.figures,
        code=f"{worst.gate}.two-answers",
        where=worst.where,
    )


def conclude(results: Results) -> Conclusion:
    """Return the one conclusion of a run: the worst of its suites, its own tests and its errors."""
    labels = label_suites([suite.suite for suite in results.suites])
    suites = tuple(
        _conclude_suite(suite, label=labels[suite.suite], results=results)
        for suite in results.suites
    )
    parts = tuple(_list_parts(results, suites=suites))
    status = max((part.status for part in parts), key=lambda found: found.severity)
    if status is Status.PASS:
        blocking = [suite for suite in suites if not suite.advisory]
        said = _describe_pass(results, suites=blocking)
        sentence = f"May ship: {said}{_describe_advisory(suites)}"
    else:
        sentence = f"{_word(status).capitalize()}: {_describe_worst(parts, status=status)}"
    return Conclusion(
        status=status,
        sentence=sentence,
        suites=suites,
        says_more=not len(parts) == len(suites) == 1,
    )


def _conclude_suite(suite: SuiteGates, *, label: str, results: Results) -> SuiteConclusion:
    """Return the verdict on one suite: `may ship` needs each of its gates that may not be missing.

    A suite of which nothing passed never ships, whatever may be missing.
    """
    rows = [row for row in results.rows if row.suite == suite.suite]
    judged = {row.gate for row in rows}
    not_run = {
        gate: results.not_run.get((suite.suite, gate), NOT_REACHED)
        for gate in suite.gates
        if gate not in judged
    }
    unmeasured = [row.gate for row in rows if row.verdict.status is Status.NOT_MEASURED]
    kinds = {*results.allow_unmeasured, *suite.allow_unmeasured}
    allowed = tuple(gate for gate in (*unmeasured, *not_run) if kind_of(gate) in kinds)
    status, sentence = _conclude_rows(rows, not_run=not_run, allowed=allowed)
    return SuiteConclusion(
        suite=suite.suite,
        label=label,
        status=status,
        sentence=sentence,
        passed=sum(row.verdict.passed for row in rows),
        not_run=not_run,
        allowed=allowed,
        advisory=suite.advisory,
    )


def _conclude_rows(
    rows: Sequence[Row], *, not_run: Mapping[str, str], allowed: Sequence[str]
) -> tuple[Status, str]:
    red = [row for row in rows if _is_red(row.verdict.status)]
    if red:
        worst = max((row.verdict.status for row in red), key=lambda status: status.severity)
        roots = [row.gate for row in red if not row.verdict.follows]
        follow = len(red) - len(roots)
        tail = f"; {count(follow, 'gate follows', 'gates follow')} from that" if follow else ""
        return worst, f"{_word(worst)}: {_named(roots)}{tail}"
    unmeasured = [row.gate for row in rows if not row.verdict.passed]
    if len(unmeasured) == len(rows):
        return Status.NOT_MEASURED, _describe_nothing(rows, not_run=not_run)
    missing = [gate for gate in unmeasured if gate not in allowed]
    left = sum(gate not in allowed for gate in not_run)
    passed = len(rows) - len(unmeasured)
    if missing or left:
        said = f"{_named(missing)} not measured" if missing else f"{passed} passed"
        also = f", {count(left, 'gate')} did not run" if left else ""
        return Status.NOT_MEASURED, f"not decided: {said}{also}"
    return Status.PASS, f"may ship: {count(passed, 'gate')} passed{_describe_terms(rows, allowed)}"


def _describe_nothing(rows: Sequence[Row], *, not_run: Mapping[str, str]) -> str:
    """Return the sentence on a suite of which no gate was measured."""
    if rows and not not_run:
        reasons = {row.verdict.headline for row in rows}
        return f"not measured{f': {reasons.pop()}' if len(reasons) == 1 else ''}"
    if rows:
        names = _named(row.gate for row in rows)
        return f"not decided: {names} not measured, {count(len(not_run), 'gate')} did not run"
    reasons = set(not_run.values())
    reason = f" ({reasons.pop()})" if len(reasons) == 1 else ""
    return f"not decided: none of {count(len(not_run), 'gate')} ran{reason}"


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What has a say in a run, in words: the suite of that name, or something else."""

    status: Status
    words: str
    suite: str = ""


def _list_parts(results: Results, *, suites: Sequence[SuiteConclusion]) -> Iterator[_Part]:
    blocking = [suite for suite in suites if not suite.advisory]
    for suite in blocking:
        word, _, words = suite.sentence.partition(": ")
        if word == "not measured":  # the reason stands with the suite
            number = sum(row.suite == suite.suite for row in results.rows)
            words = f"none of {count(number, 'gate')} could be measured"
        yield _Part(status=suite.status, words=words, suite=suite.label)
    if results.errors:
        more = f", and {len(results.errors) - 1} more" if len(results.errors) > 1 else ""
        yield _Part(status=Status.FAIL, words=f"{results.errors[0]}{more}")
    elif not (blocking or results.unanswered):
        yield _Part(status=Status.NOT_MEASURED, words="no gate ran")
    yield from _conclude_own_tests(results)
    for status, lines in (
        (Status.INCOMPARABLE, results.incomparable),
        (Status.NOT_MEASURED, results.unanswered),
    ):
        if lines:
            more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
            yield _Part(status=status, words=f"{lines[0]}{more}")
    if results.stopped:
        yield _Part(status=Status.NOT_MEASURED, words=f"stopped early: {results.stopped}")
    if results.orphans:
        words = f"{count(len(results.orphans), 'orphaned baseline')}: {_named(results.orphans)}"
        yield _Part(status=Status.NOT_MEASURED, words=words)


def _conclude_own_tests(results: Results) -> Iterator[_Part]:
    """Yield the verdict on the hand-written tests, where there are any that count."""
    statuses = {test.test: test.verdict.status for test in results.own_tests}
    if OWN_TESTS in results.allow_unmeasured:
        statuses = {name: s for name, s in statuses.items() if s is not Status.NOT_MEASURED}
    if statuses:
        worst = max(statuses.values(), key=lambda status: status.severity)
        names = [name for name, status in statuses.items() if status is worst]
        tail = " not measured" if worst is Status.NOT_MEASURED else ""
        noun = "own test" if len(names) == 1 else "own tests"
        yield _Part(status=worst, words=f"{noun} {_named(names)}{tail}")


def _describe_pass(results: Results, *, suites: Sequence[SuiteConclusion]) -> str:
    several = len(suites) > 1
    allowed = [f"{gate} of {s.label}" if several else gate for s in suites for gate in s.allowed]
    names = {suite.suite for suite in suites}
    gates = count(sum(suite.passed for suite in suites), "gate")
    if several:
        gates = f"{'' if allowed else 'all '}{gates} of {len(suites)} suites"
    own_tests = sum(test.verdict.passed for test in results.own_tests)
    also = f" and {count(own_tests, 'own test')}" if own_tests else ""
    rows = [row for row in results.rows if row.suite in names]
    return f"{gates}{also} passed{_describe_terms(rows, allowed)}"


def _describe_advisory(suites: Iterable[SuiteConclusion]) -> str:
    """Return which suites do not pass and are not asked."""
    red = [s.label for s in suites if s.advisory and s.status is not Status.PASS]
    return f"; advisory and not passed: {_named(red)}" if red else ""


def _describe_worst(parts: Sequence[_Part], *, status: Status) -> str:
    """Return what decides a run that may not ship, and where."""
    worst = [part for part in parts if part.status is status]
    number = sum(bool(part.suite) for part in parts)
    suites = [part for part in worst if part.suite]
    said = [part.words for part in worst if not part.suite]
    if len(suites) > 1:
        said.insert(0, f"{len(suites)} of {number} suites: {_named(p.suite for p in suites)}")
    elif suites:
        (part,) = suites
        place = f", in {part.suite}" if number > 1 else ""
        if number > 1 and all(p is part or p.status is Status.PASS for p in parts):
            place += f" ({number - 1} other of {number} suites may ship)"
        said.insert(0, f"{part.words}{place}")
    return "; ".join(said)


def _describe_terms(rows: Iterable[Row], allowed: Sequence[str]) -> str:
    """Return on what terms a suite may ship: waivers, and what is allowed to be missing."""
    waivers = waivers_words(row.verdict.figures for row in rows)
    waived = f", {waivers}" if waivers else ""
    return f"{waived}; allowed to be missing: {_named(allowed)}" if allowed else waived


def _is_red(status: Status) -> bool:
    return status.severity > Status.NOT_MEASURED.severity


def _word(status: Status) -> str:
    return "do not ship" if status is Status.FAIL else "not decided"


def _named(names: Iterable[str]) -> str:
    return listed(list(names), most=NAMED)
