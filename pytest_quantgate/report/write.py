"""The end of a run: one report, rendered into every place that was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantgate.errors import ReportError
from pytest_quantgate.report.collect_evidence import collect_report
from pytest_quantgate.report.evidence import Evidence
from pytest_quantgate.report.files import append_to, list_files, replace_file
from pytest_quantgate.report.html import render_html
from pytest_quantgate.report.json_report import render_json
from pytest_quantgate.report.markdown import render_markdown
from pytest_quantgate.report.terminal import Summary
from pytest_quantgate.store.cache import Cache

if TYPE_CHECKING:
    from pytest_quantgate.store.settings import Settings

RENDERERS = {"html": render_html, "markdown": render_markdown, "json": render_json}


def write_reports(
    summary: Summary, *, evidence: Mapping[str, Evidence], settings: Settings
) -> Summary:
    """Write what the settings ask for; return the summary with what was written, and what was not.

    A file that was asked for is written where no gate ran, too: yesterday's would pass for today's.
    A step summary is not: other test runs of a job are none of its business.
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
    written, lost = list(summary.written), list[str]()
    for path, kind, option in list_files(targets):
        try:
            replace_file(path, RENDERERS[kind](report), kind=kind, option=option)
        except ReportError as error:
            lost.append(str(error))
        else:
            written.append(f"report written: {_shorten(path, settings.root)}")
    if targets.step_summary and ran:
        try:
            append_to(targets.step_summary, render_markdown(report))
        except ReportError as error:
            lost.append(str(error))
    return replace(
        summary,
        written=tuple(written),
        warnings=(*summary.warnings, *lost),
        lost_report=bool(lost),
    )


def _shorten(path: Path, root: Path) -> str:
    return os.path.relpath(path, root) if path.is_relative_to(root) else str(path)
