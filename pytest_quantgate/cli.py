"""The `quantgate` command: what needs no model and no data."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_quantgate import __version__
from pytest_quantgate.baseline_mode import refuse_ci
from pytest_quantgate.baselines import Store, accept_obtained
from pytest_quantgate.errors import QuantGateError


def main(arguments: Sequence[str] | None = None, *, environ: Mapping[str, str] = os.environ) -> int:
    """Run the command and return its exit status: 0 done, 1 refused or invalid, 2 wrong usage."""
    parsed = build_parser().parse_args(arguments)
    try:
        if parsed.command == "validate":
            return validate(parsed.suites)
        if parsed.command == "schema":
            return print_schema()
        return accept(parsed, environ=environ)
    except QuantGateError as error:
        print(f"quantgate: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quantgate", description="Suites and baselines of pytest-quantgate."
    )
    parser.add_argument("--version", action="version", version=f"quantgate {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("validate", help="check suite files without running anything")
    check.add_argument("suites", nargs="+", type=Path, metavar="SUITE")
    commands.add_parser("schema", help="print the JSON Schema of suite files")
    take = commands.add_parser("accept", help="make obtained results the baselines")
    take.add_argument("obtained", type=Path, metavar="OBTAINED", help="folder of obtained results")
    take.add_argument("--baselines", type=Path, default=Path("baselines"), metavar="DIR")
    take.add_argument("--reason", required=True, help="kept in the baseline, read in its review")
    take.add_argument("--allow-ci-write", action="store_true", help="although CI is set")
    return parser


def validate(suites: Sequence[Path]) -> int:
    from pytest_quantgate.suite_file import load_suite

    invalid = 0
    for path in suites:
        try:
            suite = load_suite(path)
        except QuantGateError as error:
            print(error, file=sys.stderr)
            invalid += 1
        else:
            print(f"{path}: valid ({suite.name})")
    return 1 if invalid else 0


def print_schema() -> int:
    from pytest_quantgate.schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def accept(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    if not parsed.allow_ci_write:
        refuse_ci("quantgate accept", environ=environ, flag="--allow-ci-write")
    for path in accept_obtained(
        parsed.obtained, store=Store(parsed.baselines), reason=parsed.reason
    ):
        print(f"baseline written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
