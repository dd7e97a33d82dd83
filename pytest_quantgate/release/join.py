"""The JSON reports of several runs -> what they conclude to together.

Joined are shards, machines and days of one release: the same suites, judged on the same model, data
and files. What they do not have in common is said. Nothing is measured here, and
nothing is judged that a gate has not judged: what two results say of one gate is put side by side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pytest_quantgate import __version__, bounds
from pytest_quantgate.errors import ReportError
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.release.spec import Machine, Release
from pytest_quantgate.report.collect_evidence import describe_results
from pytest_quantgate.report.files import JSON_NAME
from pytest_quantgate.report.json_report import read_sealed_report
from pytest_quantgate.report.model import (
    Environment,
    GateResult,
    JoinedResult,
    JudgedFile,
    Report,
    StatusName,
    SuiteReport,
)
from pytest_quantgate.run.conclusion import (
    DESELECTED,
    NOT_REACHED,
    OwnTest,
    Results,
    Row,
    SuiteGates,
    conclude,
    join_answers,
)
from pytest_quantgate.text.words import count, listed
from pytest_quantgate.untrusted import read_regular

#: So much of a digest tells two apart for a reader.
SHOWN = 12

#: A sentence names no more suites or files than this.
NAMED = 3

#: Why a gate has no verdict where no result has one, from the least that it says to the most.
_VAGUE = (NOT_REACHED, DESELECTED)

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One result: what it is called, the SHA-256 of its file, and the report in it."""

    name: str
    sha256: str
    report: Report


def read_result(path: Path) -> Result:
    """Return the result in a JSON report, or in the folder of one; raises ReportError."""
    file = path / JSON_NAME if path.is_dir() else path
    try:
        content = read_regular(file, max_bytes=bounds.JSON_BYTES)
    except OSError as error:
        raise ReportError(f"{file}: cannot be read: {error.strerror or error}") from error
    report = read_sealed_report(content, name=str(file))
    if report.results:
        raise ReportError(
            f"{file}: this was joined from {count(len(report.results), 'result')} already: name "
            f"those themselves"
        )
    for gate in (gate for suite in report.suites for gate in suite.gates):
        if not gate.kind or gate.name != (f"{gate.kind}[{gate.key}]" if gate.key else gate.kind):
            raise ReportError(
                f"{file}: damaged report: a gate of kind {gate.kind[:40]!r} is called "
                f"{gate.name[:40]!r}: run again"
            )
    if not all(test.test for test in report.own_tests):
        raise ReportError(f"{file}: damaged report: an own test has no name: run again")
    result = Result(name=str(file), sha256=hashlib.sha256(content).hexdigest(), report=report)
    said = report.conclusion.status
    _, alone = join_results([result])
    if _is_red(said) and not _is_red(alone.conclusion.status):
        raise ReportError(f"{file}: its verdict is {said}, and nothing in it says why: run again")
    return result


def _is_red(status: StatusName) -> bool:
    return Status(status).severity > Status.NOT_MEASURED.severity


def sort_results(results: Iterable[Result]) -> tuple[Result, ...]:
    """Return each result once, by when it was made: the order they are given in says nothing."""
    unlike = {result.sha256: result for result in sorted(results, key=lambda r: r.name)[::-1]}
    return tuple(sorted(unlike.values(), key=lambda r: (r.report.created, r.sha256)))


def join_results(
    results: Sequence[Result],
    *,
    release: Release | None = None,
    errors: Sequence[str] = (),
    digests: Mapping[str, str] | None = None,
) -> tuple[Results, Report]:
    """Return what several results left together, and the report of it.

    `errors` are those of results that could not be read. `digests` gives the SHA-256 of suites as
    they are here, by name: results of another suite of that name are of yesterday's.
    """
    results = sort_results(results)
    described = tuple(_describe(result) for result in results)
    names = sorted({suite.suite for result in results for suite in result.report.suites})
    parts = {
        name: [(r, found) for r in results for found in r.report.suites if found.suite == name]
        for name in names
    }
    suites = tuple(_join_gates(found, release=release) for found in parts.values())
    rows = tuple(
        row for suite in suites for row in _unfold(tuple(_join_rows(suite, parts[suite.suite])))
    )
    judged = {(row.suite, row.gate) for row in rows}
    joined = Results(
        suites=suites,
        rows=rows,
        not_run={
            (suite.suite, gate): _join_reasons(gate, parts[suite.suite])
            for suite in suites
            for gate in suite.gates
            if (suite.suite, gate) not in judged
        },
        own_tests=tuple(_join_own_tests(results)),
        errors=(
            *errors,
            *(f"{r.name}: {error}" for r in results for error in r.report.errors),
        ),
        stopped="; ".join(f"{r.report.stopped} in {r.name}" for r in results if r.report.stopped),
        orphans=_unlike(o for r in results if r.report.orphans_count for o in r.report.orphans),
        allow_unmeasured=release.allow_unmeasured if release else (),
        incomparable=tuple(_list_differences(results, parts=parts, digests=digests or {})),
        unanswered=tuple(_list_unanswered(release, suites, described) if release else ()),
    )
    return joined, _join_reports(joined, results=results, described=described, parts=parts)


def _describe(result: Result) -> JoinedResult:
    report = result.report
    return JoinedResult(
        name=result.name,
        sha256=result.sha256,
        created=report.created,
        conclusion=report.conclusion,
        environment=report.environment,
        devices={suite.suite: suite.device for suite in report.suites},
        answered={
            suite.suite: tuple(g.name for g in suite.gates if g.status != "NOT_MEASURED")
            for suite in report.suites
        },
    )


# -- verdicts --------------------------------------------------------------------------------------

Parts = Sequence[tuple[Result, SuiteReport]]


def _join_gates(parts: Parts, *, release: Release | None) -> SuiteGates:
    """Return a suite with every gate that a result knows of it, on the release's terms."""
    _, first = parts[0]
    found = release.find(first.suite) if release else None
    return SuiteGates(
        suite=first.suite,
        file=first.file,
        gates=_unlike(
            gate
            for _, suite in parts
            for gate in (*suite.all_gates, *(found.name for found in suite.gates), *suite.not_run)
        ),
        allow_unmeasured=(
            first.allow_unmeasured if release is None else found.allow_unmeasured if found else ()
        ),
        digest=first.digest,
        advisory=release is not None and (found is None or found.tier == "advisory"),
    )


def _join_rows(suite: SuiteGates, parts: Parts) -> Iterator[Row]:
    for gate in suite.gates:
        answers = [
            (result.name, found) for result, part in parts for found in part.gates
            if found.name == gate
        ]  # fmt: skip
        if not answers:
            continue
        verdict = join_answers([(name, _read_verdict(found)) for name, found in answers])
        said = [(n, f) for n, f in answers if f.status != "NOT_MEASURED"] or answers
        several = len({found.status for _, found in said}) > 1
        yield Row(
            suite=suite.suite,
            gate=gate,
            verdict=verdict,
            attempts=tuple(_read_verdict(found) for _, found in said) if several else (),
            answered_by=tuple(name for name, _ in said),
        )


def _read_verdict(found: GateResult) -> Verdict:
    return Verdict(
        gate=found.kind,
        status=Status(found.status),
        headline=found.headline,
        brief=found.brief,
        evidence=found.evidence,
        cause=found.cause,
        next_step=found.next_step,
        figures=found.figures,
        code=found.code,
        where=found.where,
        follows=found.follows,
    )


def _unfold(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows of a suite; what follows from a gate that is not red here stands alone."""
    causes = {
        row.gate
        for row in rows
        if not (row.verdict.passed or row.verdict.follows)
        and row.verdict.status is not Status.NOT_MEASURED
    }
    for row in rows:
        lone = row.verdict.follows not in causes
        yield replace(row, verdict=replace(row.verdict, follows="")) if lone else row


def _join_reasons(gate: str, parts: Parts) -> str:
    """Return why no result has a verdict of a gate: the reason that says most."""
    reasons = [(suite.not_run_because.get(gate, NOT_REACHED), r.name) for r, suite in parts]
    telling = [(reason, name) for reason, name in reasons if reason not in _VAGUE]
    if telling:
        return f"{telling[0][0]} in {telling[0][1]}"
    return max((reason for reason, _ in reasons), key=_VAGUE.index)


def _join_own_tests(results: Sequence[Result]) -> Iterator[OwnTest]:
    answers: dict[str, list[tuple[str, Verdict]]] = {}
    for result in results:
        for test in result.report.own_tests:
            verdict = Verdict(
                gate="test", status=Status(test.status), headline=test.headline, code=test.code
            )
            answers.setdefault(test.test, []).append((result.name, verdict))
    for name, told in sorted(answers.items()):
        yield OwnTest(test=name, verdict=join_answers(told))


# -- what must be the same -------------------------------------------------------------------------


def _list_differences(
    results: Sequence[Result],
    *,
    parts: Mapping[str, Parts],
    digests: Mapping[str, str],
) -> Iterator[str]:
    """Yield what results do not have in common, in words; each names the results."""
    releases = [(result.name, result.report.product_version) for result in results]
    yield from _tell("the release of pytest-quantgate", releases, short=False)
    for name, found in parts.items():
        told = [(result.name, suite.digest) for result, suite in found]
        if name in digests:
            told.append(("this folder", digests[name]))
        yield from _tell(f"{found[0][1].file}: the suite itself", told)
        for what, values in _list_inputs(found):
            yield from _tell(f"{name}: {what}", values)


def _list_inputs(parts: Parts) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield what a suite was judged on, and the digest that each result has of it."""
    given: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for artifact in dict.fromkeys(f.artifact for _, s in parts for f in s.files if not f.built):
        if artifact == "suite":
            continue
        holders = [
            (r.name, {f.name: f.sha256 for f in s.files if f.artifact == artifact})
            for r, s in parts
        ]
        for holder, files in holders:
            # A result that never read the artifact says nothing of it; baselines are read one by
            # one, of all others a result has every file.
            names = files if artifact == "baselines" else {n for _, f in holders for n in f}
            for name in names if files else ():
                given.setdefault((artifact, name), []).append((holder, files.get(name, "none")))
    yield from ((f"{artifact} {name}", values) for (artifact, name), values in given.items())
    facts = {
        "recipe": [(r.name, s.recipe.digest) for r, s in parts if s.recipe],
        "calibration data or settings": [
            (r.name, s.calibration.digest) for r, s in parts if s.calibration
        ],
    }
    yield from facts.items()
    data: dict[str, list[tuple[str, str]]] = {}
    for result, suite in parts:
        for task in suite.tasks:
            what = f"data of {task.task} {task.metric}, {count(task.samples, 'sample')}"
            data.setdefault(what, []).append((result.name, task.data_digest))
    yield from data.items()


def _tell(what: str, values: Sequence[tuple[str, str]], *, short: bool = True) -> Iterator[str]:
    """Yield a sentence where not all have one value."""
    holders: dict[str, list[str]] = {}
    for name, value in values:
        holders.setdefault(value, []).append(name)
    if len(holders) > 1:
        told = ", ".join(
            f"{value[:SHOWN] if short else value} in {listed(_unlike(names), most=NAMED)}"
            for value, names in holders.items()
        )
        yield f"{what} differs: {told}"


# -- what must be there ----------------------------------------------------------------------------


def _list_unanswered(
    release: Release, suites: Sequence[SuiteGates], results: Sequence[JoinedResult]
) -> Iterator[str]:
    known = {suite.suite: suite for suite in suites}
    blocking = [suite for suite in release.suites if suite.tier == "blocking"]
    for suite in blocking:
        if suite.name not in known:
            yield f"{suite.where.of('suite')}: no result is of {suite.suite}"
    for machine in release.machines:
        for suite in blocking:
            if suite.name in known:
                yield from _list_silent(machine, known[suite.name], results)


def _list_silent(
    machine: Machine, suite: SuiteGates, results: Sequence[JoinedResult]
) -> Iterator[str]:
    """Yield what a machine was to answer of a suite, and did not."""
    there = [result for result in results if machine.fits(result, suite=suite.suite)]
    answered = {gate for result in there for gate in result.answered.get(suite.suite, ())}
    who = f"{machine.where}: machine {machine.name}"
    if not answered:
        yield f"{who} has answered no gate of {suite.file}"
        return
    wanted = [gate for gate in suite.gates if gate.partition("[")[0] in machine.gates]
    missing = [gate for gate in wanted if gate not in answered]
    if missing:
        yield f"{who} has not answered {listed(missing, most=NAMED)} of {suite.file}"


# -- the report ------------------------------------------------------------------------------------


def _join_reports(
    joined: Results,
    *,
    results: Sequence[Result],
    described: Sequence[JoinedResult],
    parts: Mapping[str, Parts],
) -> Report:
    conclusion = conclude(joined)
    report = describe_results(
        joined,
        conclusion=conclusion,
        created=max((result.report.created for result in results), default=""),
        environment=_join_environments([result.report.environment for result in results]),
    )
    ordered = (parts[suite.suite] for suite in conclusion.suites)
    return replace(
        report,
        product_version=__version__,
        suites=tuple(
            _fill(suite, found) for suite, found in zip(report.suites, ordered, strict=True)
        ),
        warnings=_unlike(f"{r.name}: {text}" for r in results for text in r.report.warnings),
        orphans=_unlike(orphan for r in results for orphan in r.report.orphans),
        orphans_count=bool(joined.orphans),
        results=tuple(described),
    )


def _fill(report: SuiteReport, parts: Parts) -> SuiteReport:
    """Return a suite's part of the report with the evidence of all results, the first's where two
    have the same."""
    suites = [suite for _, suite in parts]
    audits = [suite.audit for suite in suites if suite.audit]
    files, apart = _join_files(parts)
    notes = _unlike(note for suite in suites for note in suite.notes)
    if apart:
        notes += (
            f"each result is of its own {listed(apart, most=NAMED)}, so that no manifest names "
            f"them: hand over one checkpoint to all (quantized:) to judge the same bytes",
        )
    return replace(
        report,
        notes=notes,
        device=", ".join(_unlike(suite.device for suite in suites if suite.device)),
        versions={
            name: value for suite in reversed(suites) for name, value in suite.versions.items()
        },
        model=_first(suite.model for suite in suites),
        recipe=_first(suite.recipe for suite in suites),
        calibration=_first(suite.calibration for suite in suites),
        audit=max(audits, key=lambda a: sum(1 + len(s.engines) for s in a.stages), default=None),
        fidelity=_first(suite.fidelity for suite in suites),
        tasks=_unlike_by(lambda t: (t.task, t.metric, t.stage), (s.tasks for s in suites)),
        roundtrip=_first(suite.roundtrip for suite in suites),
        onnx=_unlike_by(lambda o: (o.variant, o.tower, o.precision), (s.onnx for s in suites)),
        parity=_first(suite.parity for suite in suites),
        engines=_unlike_by(
            lambda e: (e.variant, e.tower, e.target, e.batch, e.library),
            (s.engines for s in suites),
        ),
        latency=_unlike_by(lambda run: run.gate, (s.latency for s in suites)),
        files=files,
    )


def _join_files(parts: Parts) -> tuple[tuple[JudgedFile, ...], tuple[str, ...]]:
    """Return the files that all results agree on that have them, and the artifacts of the others.

    An artifact of which one file differs is left out whole: no result has judged such a mixture.
    With a checkpoint goes what was built of it, which one result alone has judged.
    """
    digests: dict[tuple[str, str], set[str]] = {}
    for _, suite in parts:
        for file in suite.files:
            digests.setdefault((file.artifact, file.name), set()).add(file.sha256)
    files = _unlike(file for _, suite in parts for file in suite.files)
    built = _unlike(file.artifact for file in files if file.built)
    apart = {artifact for (artifact, _), found in digests.items() if len(found) > 1}
    if "checkpoint" in apart:
        apart.update(built)
    kept = sorted(
        (file for file in files if file.artifact not in apart),
        key=lambda file: (file.artifact, file.name),
    )
    return tuple(kept), tuple(artifact for artifact in built if artifact in apart)


def _join_environments(found: Sequence[Environment]) -> Environment:
    """Return what the results say of their machines, each different value once."""
    packages: dict[str, list[str]] = {}
    for environment in found:
        for name, version in environment.packages.items():
            packages.setdefault(name, []).append(version)
    return Environment(
        python=", ".join(_unlike(each.python for each in found)),
        system=", ".join(_unlike(each.system for each in found)),
        processor=", ".join(_unlike(each.processor for each in found)),
        cores=max((each.cores for each in found), default=0),
        packages={name: ", ".join(_unlike(versions)) for name, versions in packages.items()},
        commit=", ".join(_unlike(each.commit for each in found if each.commit)),
        gpus=_unlike(gpu for each in found for gpu in each.gpus),
    )


def _unlike(values: Iterable[Value]) -> tuple[Value, ...]:
    """Return each value once, in order."""
    return tuple(dict.fromkeys(values))


def _first(values: Iterable[Value | None]) -> Value | None:
    return next((value for value in values if value is not None), None)


def _unlike_by(
    key: Callable[[Value], object], groups: Iterable[Iterable[Value]]
) -> tuple[Value, ...]:
    """Return of all groups the first value of each key."""
    found: dict[object, Value] = {}
    for group in groups:
        for value in group:
            found.setdefault(key(value), value)
    return tuple(found.values())
