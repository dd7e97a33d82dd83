"""`quantgate validate`: check suite files without running anything."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import QuantGateError


def add(commands: Any) -> None:
    parser = commands.add_parser("validate", help="check suite files without running anything")
    parser.add_argument("suites", nargs="+", type=Path, metavar="SUITE")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.suite_file import load_suite

    invalid = 0
    for path in parsed.suites:
        try:
            suite = load_suite(path)
        except QuantGateError as error:
            print(error, file=sys.stderr)
            invalid += 1
        else:
            print(f"{path}: valid ({suite.name})")
    return 1 if invalid else 0
