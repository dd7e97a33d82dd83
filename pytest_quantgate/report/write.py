"""The end of a run: one report, rendered into every place that was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantgate.errors import BaselineError, ReportError
from pytest_quantgate.report.collect_evidence import collect_report
from pytest_quantgate.report.evidence import Evidence
from pytest_quantgate.report.files import (
    PREVIOUS,
    File,
    append_to,
    list_files,
    replace_file,
)
from pytest_quantgate.report.history import add_history
from pytest_quantgate.report.html import render_html
from pytest_quantgate.report.json_report import render_json
from pytest_quantgate.report.junit import render_junit
from pytest_quantgate.report.manifest import may_have_manifest, render_manifest
from pytest_quantgate.report.markdown import render_markdown
from pytest_quantgate.report.model import Report
from pytest_quantgate.report.terminal import Summary
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.cache import Cache

if TYPE_CHECKING:
    from pytest_quantgate.store.settings import Settings

RENDERERS = {
    "html": render_html,
    "markdown": render_markdown,
    "json": render_json,
    "manifest": render_manifest,
    "junit": render_junit,
}


def write_reports(
    summary: Summary,
    *,
    evidence: Mapping[str, Evidence],
    settings: Settings,
    set_aside: Sequence[Path] = (),
) -> Summary:
    """Write what the settings ask for; return the summary with what was written, and what was not.

    A file that was asked for is written where no gate ran, too: yesterday's would pass for today's.
    A step summary is not: other test runs of a job are none of its business. A manifest is written
    where the run passes alone; those of earlier runs were `set_aside` when it started.
    """
    targets, results = settings.reports, summary.results
    ran = bool(results.rows or results.errors or results.own_tests)
    if not (ran or list_files(targets)):
        return summary
    report = collect_report(
        summary,
        evidence=evidence,
        cache=Cache(root=settings.cache_dir),
        root=settings.root,
        environ=os.environ,
    )
    untold: list[str] = []
    try:
        store = Store(settings.baselines_dir, project=settings.root)
        report = add_history(report, store=store)
    except BaselineError as error:
        untold.append(str(error))
    drifts = [facts.drift for suite in report.suites for facts in suite.history if facts.drift]
    written, lost = write_files(
        report, files=list_files(targets), set_aside=set_aside, root=settings.root
    )
    if targets.model_card and ran:
        more, gone = write_card(targets.model_card, report, root=settings.root)
        written, lost = [*written, *more], [*lost, *gone]
    if targets.step_summary and ran:
        try:
            append_to(targets.step_summary, render_markdown(report))
        except ReportError as error:
            lost.append(str(error))
    return replace(
        summary,
        written=(*summary.written, *written),
        warnings=(
            *summary.warnings,
            *(f"{drift} [history.drift]" for drift in drifts),
            *untold,
            *lost,
        ),
        lost_report=bool(lost),
    )


def write_files(
    report: Report, *, files: Iterable[File], set_aside: Sequence[Path], root: Path
) -> tuple[list[str], list[str]]:
    """Write a report into files; return a line for each that was written, and for each lost one.

    `set_aside` are where manifests of earlier runs were; `root` shortens what is shown.
    """
    written, lost = list[str](), list[str]()
    for path, kind, option in files:
        if kind == "manifest" and not may_have_manifest(report):
            if path in set_aside or option.endswith("manifest"):
                written.append(_say_no_manifest(path, root=root, aside=path in set_aside))
            continue
        try:
            replace_file(path, RENDERERS[kind](report), kind=kind, option=option)
            if path in set_aside:  # it would have been replaced
                path.with_name(path.name + PREVIOUS).unlink(missing_ok=True)
        except ReportError as error:
            lost.append(str(error))
        else:
            written.append(f"report written: {_shorten(path, root)}")
    return written, lost


def write_card(
    path: Path, report: Report, *, root: Path, option: str = "--quantgate-model-card"
) -> tuple[list[str], list[str]]:
    """Write the verdict of a report into a model card; return lines as `write_files`."""
    from pytest_quantgate.report.model_card import update_card

    try:
        update_card(path, report, option=option)
    except ReportError as error:
        return [], [str(error)]
    return [f"verdict written into {_shorten(path, root)}"], []


def _say_no_manifest(path: Path, *, root: Path, aside: bool) -> str:
    shown = _shorten(path, root)
    moved = f"; that of an earlier run is now {shown}{PREVIOUS}" if aside else ""
    return f"no manifest written to {shown}: nothing was found fit to ship{moved}"


def _shorten(path: Path, root: Path) -> str:
    return os.path.relpath(path, root) if path.is_relative_to(root) else str(path)
