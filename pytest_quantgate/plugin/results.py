"""What the tests of a run left in their reports -> frozen `Results`.

A test notes in its item what it found (`Tried`). Its reports carry that as plain data, from an
xdist worker too, and the process that writes gathers it (`Gathered`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.plugin.items import GATE, FailureText, describe_gates
from pytest_quantgate.plugin.own_tests import listening
from pytest_quantgate.suite.names import SUFFIX

# The rest is imported where it is needed: pytest runs that judge nothing should not pay for it.
if TYPE_CHECKING:
    from pytest_quantgate.gates.run import Judged
    from pytest_quantgate.report.evidence import Evidence
    from pytest_quantgate.run.conclusion import Results, Row, SuiteGates

#: The attribute of a test report that carries what a test found (plain data: xdist sends JSON).
REPORT_ATTRIBUTE = "quantgate"

#: Fixtures whose use makes a hand-written test one that counts.
FIXTURES = {"quantgate_case", "quantgate_fp16", "quantgate_quantized", "quantgate_baseline"}


@dataclass
class Tried:
    """What one test found in this process, over all its attempts.

    `attempts` are the verdicts so far. Of the attempt that runs now, `judged` is a gate's own
    verdict, `heard` what assertions and fixtures said (None: one that gave no verdict), and
    `carried` goes to the end of the run.
    """

    attempts: list[Verdict] = field(default_factory=list)
    judged: Verdict | None = None
    heard: list[Verdict | None] = field(default_factory=list)
    carried: list[dict[str, Any]] = field(default_factory=list)
    _answered: bool = False

    def begin(self) -> None:
        self.judged, self._answered = None, False
        self.heard, self.carried = [], []

    def hear(self, verdict: Verdict | None) -> None:
        self.heard.append(verdict)

    def answer(self, verdict: Verdict) -> None:
        """Set the verdict of the attempt that runs now; a later phase of it has the last word."""
        if self._answered:
            self.attempts.pop()
        self.attempts.append(verdict)
        self._answered = True


TRIED = pytest.StashKey[Tried]()


@contextmanager
def watch(item: pytest.Item) -> Iterator[None]:
    """Note what assertions say while a test runs, in all of its attempts."""
    tried = item.stash.setdefault(TRIED, Tried())
    with listening(tried.hear):
        yield


def begin_attempt(item: pytest.Item) -> None:
    item.stash.setdefault(TRIED, Tried()).begin()


def note_phase(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Let the report of a phase of a gate, or of a test that uses this package, carry what it is.

    What pytest made of it for a mark (`xfail`) does not count: the exception does.
    """
    tried = item.stash.setdefault(TRIED, Tried())
    gate = item.stash.get(GATE, None)
    if gate is None and not (tried.heard or FIXTURES & set(getattr(item, "fixturenames", ()))):
        return
    error = call.excinfo.value if call.excinfo else None
    not_run = ""
    if gate is not None:
        left_out = isinstance(error, (pytest.skip.Exception, pytest.xfail.Exception))
        if report.when == "call" and tried.judged and not (tried.judged.passed and error):
            tried.answer(tried.judged)
        elif left_out:
            word = "skipped" if isinstance(error, pytest.skip.Exception) else "xfail"
            not_run = f"{word}: {' '.join(str(error).removeprefix('[NOTRUN] ').split())}"
        elif error:
            tried.answer(_fail(gate.kind, report, where=gate.place))
    elif isinstance(error, pytest.skip.Exception):
        unmeasured = [v for v in tried.heard if v and v.status is Status.NOT_MEASURED]
        if unmeasured:
            tried.answer(unmeasured[-1])
    elif error or report.failed:
        tried.answer(_explain(tried, error) or _fail("test", report))
    elif report.when == "call":
        tried.answer(Verdict(gate="test", status=Status.PASS, headline="test: passed"))
    plain = {
        "item": hex(id(item)),
        "suite": describe_gates(gate.suite, file=_file_of(item)) if gate else None,
        "gate": gate.name if gate else "",
        "where": gate.place if gate else "",
        "attempts": to_json(tried.attempts),
        "not_run": not_run,
        "carried": tried.carried if report.when == "call" else [],
    }
    setattr(report, REPORT_ATTRIBUTE, plain)


def _file_of(item: pytest.Item) -> str:
    return item.parent.nodeid if item.parent else item.nodeid.partition("::")[0]


def _explain(tried: Tried, error: BaseException | None) -> Verdict | None:
    """Return the red verdict that an assertion or a fixture failed the test with, if one did."""
    from pytest_quantgate.report.terminal import render_failure

    for verdict in reversed(tried.heard):
        if verdict and not verdict.passed and str(error) == render_failure(verdict):
            return verdict
    return None


def _fail(gate: str, report: pytest.TestReport, *, where: str = "") -> Verdict:
    what = "its teardown failed" if report.when == "teardown" else "ended without a verdict"
    if gate == "test":
        what = "xfail" if hasattr(report, "wasxfail") else "failed"
    return Verdict(
        gate=gate,
        status=Status.FAIL,
        headline=f"{gate}: {what}: {first_line(report)}",
        code=f"{gate}.{'failed' if gate == 'test' else 'no-verdict'}",
        where=where,
    )


def first_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return what a report failed with, in a line."""
    crash = getattr(report.longrepr, "reprcrash", None)  # none where a message is all
    text = str(crash.message if crash else report.longrepr or "").strip()
    return text.partition("\n")[0] or "no message"


@dataclass
class Heard:
    """What the reports of one test said, by the item and the process that they came from."""

    attempts: dict[str, list[Verdict]] = field(default_factory=dict)
    carried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    not_run: str = ""

    @property
    def answers(self) -> tuple[Verdict, ...]:
        return tuple(verdict for attempts in self.attempts.values() for verdict in attempts)

    @property
    def agrees(self) -> bool:
        """Whether no two attempts gave different answers."""
        return len({verdict.status for verdict in self.answers}) <= 1

    def list_carried(self) -> Iterator[dict[str, Any]]:
        for carried in self.carried.values():
            yield from carried


@dataclass
class Gathered:
    """What this process was told of the run; on an xdist worker that is its own part.

    `suites` are those that were collected, by name; `tests` are, by node id, the gates and the
    hand-written tests that count. `selected` are the (suite, gate) that were not deselected, None
    where nobody has said. `errors` ended without a verdict and are no gates.
    """

    suites: dict[str, dict[str, Any]] = field(default_factory=dict)
    tests: dict[str, Heard] = field(default_factory=dict)
    selected: set[tuple[str, str]] | None = None
    errors: list[str] = field(default_factory=list)
    stopped: str = ""

    def select(self, gates: Iterable[Sequence[str]]) -> None:
        """Take the (suite, gate) that are going to run, here or on a worker."""
        self.selected = (self.selected or set()) | {(suite, gate) for suite, gate in gates}

    def fail(self, error: str) -> None:
        if error not in self.errors:  # every worker collects
            self.errors.append(error)

    def take(self, report: pytest.TestReport) -> Heard | None:
        """Return all that is known of the test of a report; None for a test that does not count."""
        plain = getattr(report, REPORT_ATTRIBUTE, None)
        source = getattr(report, "worker_id", "")
        if plain is not None:
            heard = self.tests.setdefault(report.nodeid, Heard())
            source = f"{source} {plain['item']}"
            if plain["suite"]:
                self.suites[plain["suite"]["suite"]] = plain["suite"]
            heard.not_run = plain["not_run"] or heard.not_run
            heard.attempts[source] = [from_json(Verdict, data) for data in plain["attempts"]]
            heard.carried[source] = plain["carried"] or heard.carried.get(source, [])
        elif f"{SUFFIX}::" in report.nodeid and not report.passed:
            # A worker that crashed tells nothing more: xdist reports it for the gate.
            heard = self.tests.setdefault(report.nodeid, Heard())
            kind = report.nodeid.partition("::")[2].partition("[")[0]
            heard.attempts[f"{source} crash"] = [_fail(kind, report)]
        return self.tests.get(report.nodeid)

    def list_verdicts(self, suite: str) -> dict[str, Verdict]:
        """Return what the gates of a suite said so far, in their order, and what follows from what.

        A suite that nobody told of has none.
        """
        from pytest_quantgate.run.conclusion import join_attempts
        from pytest_quantgate.run.consequences import fold

        told = self.suites.get(suite, {"file": "", "gates": ()})
        tests = dict(self.tests)
        heard = {gate: _pop(tests, f"{told['file']}::{gate}").answers for gate in told["gates"]}
        return fold({gate: join_attempts(found) for gate, found in heard.items() if found})

    def read_results(
        self, *, allow_unmeasured: tuple[str, ...] = (), orphans: tuple[str, ...] = ()
    ) -> Results:
        """Return what the run left, in the order of its suites, whoever judged what."""
        from pytest_quantgate.run.conclusion import OwnTest, Results, Row, SuiteGates, join_attempts

        suites = tuple(from_json(SuiteGates, self.suites[name]) for name in sorted(self.suites))
        tests = dict(self.tests)
        rows: list[Row] = []
        not_run: dict[tuple[str, str], str] = {}
        for suite in suites:
            verdicts = self.list_verdicts(suite.suite)
            for gate in suite.gates:
                heard = _pop(tests, f"{suite.file}::{gate}")
                if gate in verdicts:
                    rows.append(
                        Row(
                            suite=suite.suite,
                            gate=gate,
                            verdict=verdicts[gate],
                            attempts=heard.answers,
                            notes=tuple(n for c in heard.list_carried() for n in c["notes"]),
                        )
                    )
                elif heard.not_run:
                    not_run[suite.suite, gate] = heard.not_run
                elif self.selected is not None and (suite.suite, gate) not in self.selected:
                    not_run[suite.suite, gate] = "deselected"
        told = {node: heard.answers for node, heard in sorted(tests.items()) if heard.answers}
        return Results(
            suites=suites,
            rows=tuple(rows),
            not_run=not_run,
            own_tests=tuple(
                OwnTest(test=node, verdict=join_attempts(answers), attempts=answers)
                for node, answers in told.items()
                if f"{SUFFIX}::" not in node
            ),
            # A gate of a suite that no worker lived to tell of.
            errors=(
                *self.errors,
                *(f"{n}: {a[-1].headline}" for n, a in told.items() if f"{SUFFIX}::" in n),
            ),
            stopped=self.stopped,
            orphans=orphans,
            allow_unmeasured=allow_unmeasured,
        )


def _pop(tests: dict[str, Heard], node: str) -> Heard:
    """Take what was heard of a gate; `--dist loadgroup` of xdist ends node ids with `@GROUP`."""
    grouped = (name for name in tests if name.rpartition("@")[0] == node)
    return tests.pop(node if node in tests else next(grouped, ""), Heard())


def settle(
    report: pytest.TestReport,
    heard: Heard,
    *,
    may_be_missing: bool,
    others: Mapping[str, Verdict] = {},
) -> None:
    """Make pytest's outcome of a gate, or of a test that counts, what its verdict says.

    `others` are the verdicts of its suite so far: what follows from another is told in short.

    So the exit status, JUnit, `--last-failed` and other plugins follow the verdict and no mark: an
    `xfail` does not excuse it, an attempt that failed is not forgotten, and a gate that may not be
    missing is not skipped.
    """
    from pytest_quantgate.report.terminal import render_failure
    from pytest_quantgate.run.conclusion import join_attempts

    plain = getattr(report, REPORT_ATTRIBUTE, {})
    is_gate = f"{SUFFIX}::" in report.nodeid
    marked = hasattr(report, "wasxfail")
    if marked:
        del report.wasxfail
        report.sections.append(("quantgate", "An xfail mark does not change what a gate says."))
    outcome: str = report.outcome  # pytest-rerunfailures has one more
    if outcome == "rerun":
        return
    verdict = join_attempts(heard.answers) if heard.answers else None
    if verdict is not None and is_gate:
        verdict = others.get(plain.get("gate", ""), verdict)
    if heard.not_run and verdict is None:
        verdict = leave_out(plain["gate"], reason=heard.not_run, where=plain["where"])
    if verdict is not None:
        _set_properties(report, verdict, attempts=len(heard.answers))
    if verdict is None or not (report.when == "call" or plain.get("not_run")):
        # A mark that made a skip of the error of a fixture.
        report.outcome = "failed" if marked and report.skipped else report.outcome
    elif verdict.passed:
        if is_gate:
            report.outcome, report.longrepr = "passed", None  # xfail(strict=True) of a green gate
    elif verdict.status is Status.NOT_MEASURED and may_be_missing:
        report.outcome = "skipped"
        told = report.longrepr if isinstance(report.longrepr, tuple) else None
        if is_gate or told is None:
            file, line, _ = report.location
            reason = told[2] if told else f"Skipped: {verdict.headline}"
            report.longrepr = (file, (line or 0) + 1, reason)
    else:
        hidden = marked and bool(heard.answers) and heard.agrees  # what failed is there already
        if verdict.follows:
            report.longrepr = render_failure(verdict, others=others)
        elif not (hidden or (report.failed and heard.agrees)):
            report.longrepr = render_failure(verdict)
        report.outcome = "failed"


def make_printable(report: pytest.TestReport) -> None:
    """Show what a gate's report says as lines of visible text: a library's error may hold any name.

    Only where it holds anything else, so that pytest's own colours and summaries stay.
    """
    from pytest_quantgate.text.printable import printable_lines

    if f"{SUFFIX}::" not in report.nodeid:
        return
    report.sections = [(name, printable_lines(text)) for name, text in report.sections]
    said = report.longrepr
    if isinstance(said, tuple):
        report.longrepr = (*said[:2], printable_lines(said[2]))
    elif said is not None:
        shown = printable_lines(str(said))
        if isinstance(said, str) or shown != str(said):
            report.longrepr = FailureText(shown)


def leave_out(gate: str, *, reason: str, where: str = "") -> Verdict:
    """Return what a gate is that was collected and not judged."""
    return Verdict(
        gate=gate,
        status=Status.NOT_MEASURED,
        headline=f"{gate}: did not run: {reason}",
        next_step=allow_step(gate),
        where=where,
    )


def report_unjudged(gate: str, *, suite: SuiteGates, reason: str) -> Iterator[pytest.TestReport]:
    """Yield the reports of a failed test for a gate that pytest has not run."""
    from pytest_quantgate.report.terminal import render_failure

    where = suite.place(gate)
    verdict = leave_out(gate, reason=reason, where=where)
    plain: dict[str, Any] = {"item": "", "suite": None, "gate": gate, "attempts": [], "carried": []}
    plain["where"] = where
    failed = pytest.TestReport(
        nodeid=f"{suite.file}::{gate}",
        location=(suite.file, max(0, suite.lines.get(gate, 1) - 1), gate),
        keywords={},
        outcome="failed",
        longrepr=render_failure(verdict),
        when="call",
    )
    setattr(failed, REPORT_ATTRIBUTE, {**plain, "not_run": reason})
    yield failed
    ended = pytest.TestReport(
        nodeid=failed.nodeid,
        location=failed.location,
        keywords={},
        outcome="passed",
        longrepr=None,
        when="teardown",
        user_properties=list(_properties(verdict, attempts=0)),
    )
    setattr(ended, REPORT_ATTRIBUTE, {**plain, "not_run": ""})
    yield ended


def allow_step(gate: str) -> str:
    """Return how a gate may stay unmeasured, for the next step of one that may not."""
    kind = gate.partition("[")[0]
    return f"let it be measured, or allow it to be missing: --quantgate-allow-unmeasured={kind}"


def _set_properties(report: pytest.TestReport, verdict: Verdict, *, attempts: int) -> None:
    """Put the verdict into the properties that JUnit keeps, in place of an earlier attempt's."""
    kept = [(n, value) for n, value in report.user_properties if not n.startswith("quantgate.")]
    report.user_properties = [*kept, *_properties(verdict, attempts=attempts)]


def _properties(verdict: Verdict, *, attempts: int) -> Iterator[tuple[str, object]]:
    told = {
        "status": verdict.status.value,
        "code": verdict.code,
        "where": verdict.where,
        "follows": verdict.follows,
        "attempts": attempts if attempts > 1 else "",
    }
    for name, value in told.items():
        if value:
            yield f"quantgate.{name}", value
    for name, figure in verdict.figures.items():
        yield f"quantgate.{name}", figure


def carry(
    judged: Judged, *, warnings: list[str], evidence: Evidence | None = None
) -> dict[str, Any]:
    """Return, as plain data, what goes with a verdict to the end of the run."""
    from pytest_quantgate.store.records import record_to_json

    plain: dict[str, Any] = json.loads(
        json.dumps(
            {
                "notes": list(judged.notes),
                "warnings": list(warnings),
                "proposal": judged.proposal,
                "record": record_to_json(judged.record) if judged.record else None,
                "evidence": evidence.to_json() if evidence else None,
            }
        )
    )
    return plain
