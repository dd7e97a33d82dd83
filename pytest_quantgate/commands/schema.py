"""`quantgate schema`: the JSON Schema of suites and releases, for editors, and of reports."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "schema", help="print the JSON Schema of suites, releases or reports"
    )
    parser.add_argument("of", nargs="?", choices=("suite", "report", "release"), default="suite")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    if parsed.of == "report":
        from pytest_quantgate.report.json_report import json_schema as make_schema
    elif parsed.of == "release":
        from pytest_quantgate.release.spec import json_schema as make_schema
    else:
        from pytest_quantgate.suite.schema import json_schema as make_schema
    print(json.dumps(make_schema(), indent=2, ensure_ascii=False))
    return 0
