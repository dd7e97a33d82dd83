"""`quantgate accept`: make obtained results the baselines."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
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
    parser.add_argument("--baselines", type=Path, default=Path("baselines"), metavar="DIR")
    parser.add_argument("--reason", required=True, help="kept in the baseline, read in its review")
    parser.add_argument(
        "--new-data",
        action="store_true",
        help="although the evaluation data changed: the first accepted variant starts anew",
    )
    parser.add_argument("--allow-ci-write", action="store_true", help="although CI is set")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.report.history import record_run

    if not parsed.allow_ci_write:
        refuse_ci("quantgate accept", environ=environ, flag="--allow-ci-write")
    store = Store(parsed.baselines, project=Path.cwd())
    suites: dict[str, list[AnyRecord]] = {}
    for path in accept_obtained(
        parsed.obtained, store=store, reason=parsed.reason, new_data=parsed.new_data
    ):
        say(f"baseline written: {path}")
        record = read_any_record(path, root=store.root)
        assert record is not None
        suites.setdefault(record.suite, []).append(record)
    for suite, records in suites.items():
        for path in record_run(store, suite, records=records, root=Path.cwd(), environ=environ):
            say(f"history written: {path}")
    return 0
