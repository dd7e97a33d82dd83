"""The end of a run: what was gathered is concluded from and written, and makes the exit status."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantgate.errors import BaselineError, QuantGateError
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.plugin.results import Gathered, report_unjudged
from pytest_quantgate.report.evidence import Evidence, read_evidence
from pytest_quantgate.report.terminal import Summary
from pytest_quantgate.run.conclusion import DESELECTED, NOT_REACHED, Row
from pytest_quantgate.store.acceptance import complete_verdicts, why_unfit
from pytest_quantgate.store.baseline_mode import BaselineMode
from pytest_quantgate.store.baselines import Store, discard_obtained, write_obtained
from pytest_quantgate.store.disk import refuse_links
from pytest_quantgate.store.records import AnyRecord, record_from_json
from pytest_quantgate.store.settings import Settings


def close_run(
    gathered: Gathered,
    *,
    settings: Settings,
    warnings: list[str],
    set_aside: tuple[Path, ...] = (),
) -> Summary:
    """Write what the run decided to write, and return what there is to say of it; called once.

    `set_aside` are where manifests of earlier runs were.
    """
    for heard in gathered.tests.values():
        warnings.extend(text for plain in heard.list_carried() for text in plain["warnings"])
    written, obtained = _write_records(gathered, settings=settings)
    deleted, orphans = _settle_orphans(gathered, settings=settings)
    summary = Summary(
        results=gathered.read_results(
            allow_unmeasured=settings.allow_unmeasured,
            orphans=orphans if settings.strict else (),
        ),
        orphans=orphans,
        written=(*written, *deleted),
        obtained=obtained,
        warnings=tuple(dict.fromkeys(warnings)),
    )
    if settings.reports:
        from pytest_quantgate.report.write import write_reports

        summary = write_reports(
            summary, evidence=_join_evidence(gathered), settings=settings, set_aside=set_aside
        )
    return replace(summary, failed=_has_failed(summary, settings=settings))


def _has_failed(summary: Summary, *, settings: Settings) -> bool:
    """Return whether a run fails, whatever pytest says: for its conclusion, or for a lost report.

    What was not measured fails where the settings demand it. A run that was not started for gates
    (other tests of the project, in the same CI) is not asked for them.
    """
    results, status = summary.results, summary.conclusion.status
    if summary.lost_report or settings.selftest or status is Status.PASS:
        return summary.lost_report
    if status is not Status.NOT_MEASURED:
        return True
    if results.rows or any(reason != DESELECTED for _, _, reason in summary.list_not_run()):
        return settings.demands_all
    return settings.must_judge or (settings.strict and bool(results.suites))


def list_unjudged(summary: Summary) -> Iterator[pytest.TestReport]:
    """Yield failed reports for the gates that pytest has not run and that may not be missing.

    They stand for the gates in JUnit and among the failures, where else nothing is red.
    """
    if summary.conclusion.status is Status.NOT_MEASURED:
        suites = {suite.suite: suite for suite in summary.results.suites}
        for suite, gate, reason in summary.list_not_run():
            if gate not in suite.allowed and reason in (DESELECTED, NOT_REACHED):
                yield from report_unjudged(gate, suite=suites[suite.suite], reason=reason)


def _write_records(
    gathered: Gathered, *, settings: Settings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the records of gates that gave one answer; return the lines on baselines and on what
    was obtained. What cannot be written is an error of the run."""
    store = Store(settings.baselines_dir, project=settings.root)
    rows = gathered.read_results().rows
    written, obtained = list[str](), list[str]()
    accepted: dict[str, list[AnyRecord]] = {}
    for heard in gathered.tests.values():
        for plain in heard.list_carried() if heard.agrees else ():
            if plain["record"] is None:
                continue
            record = record_from_json(plain["record"])
            try:
                if plain["proposal"] == "baseline":
                    written += _write_baseline(record, store=store, settings=settings)
                    accepted.setdefault(record.suite, []).append(record)
                else:
                    obtained.append(_propose(record, rows=rows, settings=settings))
            except QuantGateError as error:
                gathered.fail(str(error))
    for suite, records in accepted.items():
        from pytest_quantgate.report.history import record_run

        gates = [(row.gate, row.verdict.figures) for row in rows if row.suite == suite]
        try:
            paths = record_run(store, suite, gates=gates, records=records, root=settings.root)
        except QuantGateError as error:
            gathered.fail(str(error))
        else:
            written += [f"history written: {_shorten(path, settings=settings)}" for path in paths]
    return tuple(dict.fromkeys(written)), tuple(dict.fromkeys(obtained))


def _write_baseline(record: AnyRecord, *, store: Store, settings: Settings) -> Iterator[str]:
    old = store.find_old(record.suite, record.key, kind=record.kind)
    path = store.write(record)
    yield f"baseline written: {_shorten(path, settings=settings)} ({record.key})"
    if old is not None and old.path != path:
        gone = _shorten(old.path, settings=settings)
        yield f"baseline deleted: {gone} (version 0.1 kept it)"


def _propose(record: AnyRecord, *, rows: Sequence[Row], settings: Settings) -> str:
    """Write what could become a baseline, or say why it is not proposed as one."""
    folder = settings.obtained_dir
    verdicts = [(row.gate, row.verdict) for row in rows if row.suite == record.suite]
    record = complete_verdicts(record, rows=verdicts)
    reason = why_unfit(record)
    _refuse_links(folder, settings=settings)
    if reason:
        discard_obtained(folder, record)
        return f"no baseline for {record.suite} {record.key}: {reason}"
    path = write_obtained(folder, record)
    return (
        f"obtained: {_shorten(path, settings=settings)}; to accept it: quantgate accept "
        f"{_shorten(folder, settings=settings)} --reason='why'"
    )


def _refuse_links(folder: Path, *, settings: Settings) -> None:
    """Raise BaselineError where the folder of what was obtained is a link of the checkout."""
    try:
        refuse_links(folder, root=settings.root)
    except OSError as error:
        raise BaselineError(
            f"cannot write below {folder}: {error.filename}: {error.strerror}"
        ) from error


def _settle_orphans(
    gathered: Gathered, *, settings: Settings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the lines on orphans that were deleted, and on the orphans that are left."""
    store = Store(settings.baselines_dir, project=settings.root)
    is_pruning = settings.baselines is BaselineMode.PRUNE
    try:
        lines = tuple(
            f"{_shorten(orphan.path, settings=settings)} ({orphan.reason})"
            for orphan in (store.prune() if is_pruning else store.orphans())
        )
    except QuantGateError as error:
        gathered.fail(str(error))
        return (), ()
    return (tuple(f"baseline deleted: {line}" for line in lines), ()) if is_pruning else ((), lines)


def _join_evidence(gathered: Gathered) -> dict[str, Evidence]:
    """Return what all processes used, by the name of the suite."""
    joined: dict[str, Evidence] = {}
    for heard in gathered.tests.values():
        for plain in heard.list_carried():
            if plain["evidence"] is not None:
                found = read_evidence(plain["evidence"])
                known = joined.get(found.suite)
                joined[found.suite] = known.joined(found) if known else found
    return joined


def _shorten(path: Path, *, settings: Settings) -> str:
    return os.path.relpath(path, settings.root)
