"""The end of a run: one report, rendered into every place that was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantgate.cache import Cache
from pytest_quantgate.errors import ReportError
from pytest_quantgate.report.collect_evidence import collect_report
from pytest_quantgate.report.files import append_to, replace_file
from pytest_quantgate.report.html import render_html
from pytest_quantgate.report.json_report import render_json
from pytest_quantgate.report.markdown import render_markdown

if TYPE_CHECKING:
    from pytest_quantgate.session import RunSession

RENDERERS = {"html": render_html, "markdown": render_markdown, "json": render_json}


def write_reports(session: RunSession) -> bool:
    """Write what the settings ask for; return False, with a warning, where one cannot be written.

    A file that was asked for is written where no gate ran, too: yesterday's would pass for today's.
    A step summary is not: other test runs of a job are none of its business.
    """
    targets, summary = session.settings.reports, session.summary()
    ran = bool(summary.rows or session.errors)
    if not (ran or targets.files()):
        return True
    report = collect_report(
        summary,
        evidence=session.evidence,
        errors=session.errors,
        cache=Cache(root=session.settings.cache_dir),
        root=session.settings.root,
        environ=os.environ,
    )
    ok = True
    for path, kind, option in targets.files():
        try:
            replace_file(path, RENDERERS[kind](report), kind=kind, option=option)
        except ReportError as error:
            session.warnings.append(str(error))
            ok = False
        else:
            session.written.append(f"report written: {_shorten(path, session.settings.root)}")
    if targets.step_summary and ran:
        try:
            append_to(targets.step_summary, render_markdown(report))
        except ReportError as error:
            session.warnings.append(str(error))
            ok = False
    return ok


def _shorten(path: Path, root: Path) -> str:
    return os.path.relpath(path, root) if path.is_relative_to(root) else str(path)
