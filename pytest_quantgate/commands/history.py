"""`quantgate history`: what a suite measured over its runs, and what drifts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import ReportError
from pytest_quantgate.store.baseline_mode import refuse_ci
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.text.wrapping import say

#: The layout of `--json`, raised when a field changes its meaning.
FORMAT = 1

EXAMPLES = """\
examples:
  quantgate history suites/clip.quantgate.yaml
  quantgate history suites/clip.quantgate.yaml --add report.json

A run that writes baselines adds itself, as does quantgate accept. Status 1 where a figure drifts.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "history",
        help="what a suite measured over its runs, and what drifts",
        description="Show the figures of a suite over its runs, and those that get worse by more "
        "than chance, however small each step is.",
        epilog=EXAMPLES,
    )
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument("--baselines", type=Path, default=Path("baselines"), metavar="DIR")
    parser.add_argument(
        "--add", type=Path, metavar="REPORT", help="a JSON report of the suite to add to it first"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    parser.add_argument("--allow-ci-write", action="store_true", help="add although CI is set")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.evidence.codec import to_json
    from pytest_quantgate.report.files import replace_file
    from pytest_quantgate.report.history import render_history, trace_figures
    from pytest_quantgate.store.history import read_history
    from pytest_quantgate.suite.load import load_suite

    suite = load_suite(parsed.suite, relative_to=Path.cwd()).name
    store = Store(parsed.baselines, project=Path.cwd())
    if parsed.add is not None:
        if not parsed.allow_ci_write:
            refuse_ci("quantgate history --add", environ=environ, flag="--allow-ci-write")
        for path in _add_report(parsed.add, suite=suite, store=store):
            say(f"history written: {path}")
    entries = read_history(store, suite)
    facts = trace_figures(entries)
    for line in render_history(suite, entries):
        say(line)
    if parsed.json is not None:
        figures = [to_json(each) for each in facts]
        result = {"format": FORMAT, "runs": len(entries), "suite": suite, "figures": figures}
        text = json.dumps(result, indent=1) + "\n"
        replace_file(parsed.json, text, kind="history-json", option="--json")
    return 1 if any(each.drift for each in facts) else 0


def _add_report(path: Path, *, suite: str, store: Store) -> tuple[Path, ...]:
    """Add what a report says of a suite; raises ReportError for one that must not be added."""
    from pytest_quantgate import bounds
    from pytest_quantgate.report.history import entry_of
    from pytest_quantgate.report.json_report import read_sealed_report
    from pytest_quantgate.store.history import append_entry
    from pytest_quantgate.untrusted import read_regular

    report = read_sealed_report(read_regular(path, max_bytes=bounds.JSON_BYTES), name=str(path))
    found = next((each for each in report.suites if each.suite == suite), None)
    if found is None:
        known = ", ".join(each.suite for each in report.suites) or "none"
        raise ReportError(f"{path}: says nothing of {suite} (it has: {known})")
    if found.conclusion.status != "PASS":
        raise ReportError(
            f"{path}: {found.conclusion.sentence}: a history is of what may ship; fix it, or run "
            f"the whole suite"
        )
    return append_entry(store, suite, entry_of(found, report=report))
