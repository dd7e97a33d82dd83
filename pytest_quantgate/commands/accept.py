"""`quantgate accept`: make obtained results the baselines."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantgate.store.baseline_mode import refuse_ci
from pytest_quantgate.store.baselines import Store, accept_obtained, read_any_record
from pytest_quantgate.store.records import AnyRecord
from pytest_quantgate.text.wrapping import say


def add(commands: Any) -> None:
    parser = commands.add_parser("accept", help="make obtained results the baselines")
    parser.add_argument(
        "obtained", type=Path, metavar="OBTAINED", help="folder of obtained results"
    )
    parser.add_argument("--reason", required=True, help="kept in the baseline, read in its review")
    add_conditions(parser)


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """Add where baselines are kept, and when one is written all the same."""
    parser.add_argument("--baselines", type=Path, default=Path("baselines"), metavar="DIR")
    parser.add_argument(
        "--new-data",
        action="store_true",
        help="although the evaluation data changed: the first accepted variant starts anew",
    )
    parser.add_argument("--allow-ci-write", action="store_true", help="although CI is set")


def open_store(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> Store:
    """Return the baselines that a command writes; raises BaselineError in CI."""
    if not parsed.allow_ci_write:
        refuse_ci(f"quantgate {parsed.command}", environ=environ, flag="--allow-ci-write")
    return Store(parsed.baselines, project=Path.cwd())


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    store = open_store(parsed, environ=environ)
    suites: dict[str, list[AnyRecord]] = {}
    for path in accept_obtained(
        parsed.obtained, store=store, reason=parsed.reason, new_data=parsed.new_data
    ):
        say(f"baseline written: {path}")
        record = read_any_record(path, root=store.root)
        assert record is not None
        suites.setdefault(record.suite, []).append(record)
    for suite, records in suites.items():
        keep_history(suite, records, store=store, environ=environ)
    return 0


def keep_history(
    suite: str, records: Sequence[AnyRecord], *, store: Store, environ: Mapping[str, str]
) -> None:
    """Add what was accepted of a suite to its history, and say so."""
    from pytest_quantgate.report.history import record_run

    for path in record_run(store, suite, records=records, root=Path.cwd(), environ=environ):
        say(f"history written: {path}")
