"""`quantgate conclude`: the one verdict on a release, out of the results of many runs.

Exit status is the verdict's: 0 it may ship, 1 it may not, or a result cannot be read, 2 wrong use.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import QuantGateError, ReportError

if TYPE_CHECKING:
    from pytest_quantgate.release.join import Result
    from pytest_quantgate.release.spec import Release
    from pytest_quantgate.report.files import File
    from pytest_quantgate.report.model import Report
    from pytest_quantgate.report.terminal import Summary

SHIP, HOLD, TROUBLE = 0, 1, 2

#: Columns of a table where there is no terminal: a log has no width.
WIDE = 200

EXAMPLES = """\
examples:
  quantgate conclude cpu/report.json gpu/report.json
  quantgate conclude results/* --release release.quantgate.yaml --report out/

RESULT is a JSON report (--quantgate-json), or a folder with report.json (--quantgate-report), of a
shard, a machine or a day. They must be of the same suites, model, data and files. Every gate of
every suite needs an answer from one of them; where two differ, the verdict is FAIL. The release
file names the suites, what decides and what may be missing, and the machines that must have
answered; `quantgate schema release` is its schema. DIR gets index.html, report.json, report.md,
junit.xml, and manifest.json where it may ship. The status is 0 where it may ship, else 1; 2 for
wrong use.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "conclude",
        help="join the results of many runs into the one verdict on a release",
        description="Join the results of many jobs, shards, machines and days into one verdict.",
        epilog=EXAMPLES,
    )
    parser.add_argument("results", metavar="RESULT", nargs="+", type=Path, help="file or folder")
    parser.add_argument(
        "--release", metavar="FILE", type=Path, help="release.quantgate.yaml: what it needs"
    )
    parser.add_argument("--report", metavar="DIR", type=Path, help="write the joined report there")
    parser.add_argument(
        "--model-card", metavar="FILE", type=Path, help="write the verdict into README.md"
    )


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.evidence.verdict import Status
    from pytest_quantgate.release.join import join_results, read_result
    from pytest_quantgate.release.spec import load_release
    from pytest_quantgate.report.files import set_manifests_aside
    from pytest_quantgate.report.model_card import check_card
    from pytest_quantgate.report.terminal import Summary
    from pytest_quantgate.report.write import write_card, write_files
    from pytest_quantgate.text.printable import printable

    try:
        release = load_release(parsed.release) if parsed.release else None
        files = _list_files(parsed)
        if parsed.model_card:
            check_card(parsed.model_card, option="--model-card")
        aside = set_manifests_aside(files)
    except QuantGateError as error:
        print(f"quantgate: {printable(str(error))}", file=sys.stderr)
        return TROUBLE
    results: list[Result] = []
    errors: list[str] = []
    for path in parsed.results:
        try:
            results.append(read_result(path))
        except QuantGateError as error:
            errors.append(str(error))
    joined, report = join_results(
        results, release=release, errors=errors, digests=_read_digests(release)
    )
    summary = Summary(results=joined, warnings=report.warnings, failed=True)
    written, lost = write_files(report, files=files, set_aside=aside, root=Path.cwd())
    if parsed.model_card:
        more, gone = write_card(parsed.model_card, report, root=Path.cwd(), option="--model-card")
        written, lost = [*written, *more], [*lost, *gone]
    _print(summary, report=report, written=(*written, *lost))
    may_ship = summary.conclusion.status is Status.PASS and not lost
    return SHIP if may_ship else HOLD


def _list_files(parsed: argparse.Namespace) -> tuple[File, ...]:
    """Return what is written; raises ReportError for a place that will not do."""
    from pytest_quantgate.report.files import (
        HTML_NAME,
        JSON_NAME,
        JUNIT_NAME,
        MANIFEST_NAME,
        MARKDOWN_NAME,
        check_file,
    )

    if parsed.report is None:
        return ()
    kinds: Sequence[tuple[str, Any]] = (
        (HTML_NAME, "html"),
        (JSON_NAME, "json"),
        (MARKDOWN_NAME, "markdown"),
        (JUNIT_NAME, "junit"),
        (MANIFEST_NAME, "manifest"),
    )
    files: tuple[File, ...] = tuple((parsed.report / n, kind, "--report") for n, kind in kinds)
    if parsed.report.exists() and not parsed.report.is_dir():
        raise ReportError(f"--report {parsed.report}: this is a file: name a folder")
    for path, kind, option in files:
        check_file(path, kind=kind, option=option)
    for given in parsed.results:
        source = given / JSON_NAME if given.is_dir() else given
        if source.resolve() == (parsed.report / JSON_NAME).resolve():
            raise ReportError(f"--report {parsed.report}: {source} is a result that is joined")
    return files


def _read_digests(release: Release | None) -> dict[str, str]:
    """Return the SHA-256 of the suites of a release that are below this folder, by name."""
    found = {}
    for suite in release.suites if release else ():
        path = Path(suite.suite)
        if path.is_file():
            found[suite.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _print(summary: Summary, *, report: Report, written: Sequence[str]) -> None:
    from pytest_quantgate.report.facts import describe_machine
    from pytest_quantgate.report.terminal import render_summary
    from pytest_quantgate.text.printable import printable
    from pytest_quantgate.text.words import count
    from pytest_quantgate.text.wrapping import say, terminal_width

    for result in report.results:
        gates = count(sum(len(gates) for gates in result.answered.values()), "gate")
        when = result.created[:16].replace("T", " ")
        say(f"{result.name}: {gates}, {when}, {describe_machine(result)}")
    for line in written:
        say(line)
    for suite in report.suites:
        for note in suite.notes:
            say(f"note on {suite.name}: {note}")
    for line, _ in render_summary(summary, width=terminal_width() or WIDE):
        print(printable(line))
