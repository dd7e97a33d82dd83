"""`quantgate schema`: the JSON Schema of suite files, for editors."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any


def add(commands: Any) -> None:
    commands.add_parser("schema", help="print the JSON Schema of suite files")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0
