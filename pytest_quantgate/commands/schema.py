"""`quantgate schema`: the JSON Schema of suite files, for editors, and of reports."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser("schema", help="print the JSON Schema of suite files or reports")
    parser.add_argument("of", nargs="?", choices=("suite", "report"), default="suite")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    if parsed.of == "report":
        from pytest_quantgate.report.json_report import json_schema as make_schema
    else:
        from pytest_quantgate.suite.schema import json_schema as make_schema
    print(json.dumps(make_schema(), indent=2, ensure_ascii=False))
    return 0
