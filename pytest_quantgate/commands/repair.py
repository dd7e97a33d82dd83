"""`quantgate repair`: the smallest mixed-precision recipe that meets the limits of a suite."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate.commands.case import add_places, open_case
from pytest_quantgate.commands.sensitivity import read_samples

#: The layout of `--json`, raised when a field changes its meaning.
FORMAT = 1


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "repair", help="search the smallest mixed-precision recipe that meets all limits"
    )
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument(
        "--samples",
        type=read_samples,
        default=256,
        metavar="N",
        help="images to rank the layers on (default 256)",
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the recipe here, as ModelOpt YAML"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    add_places(parser)


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    import yaml

    from pytest_quantgate.evidence.codec import to_json
    from pytest_quantgate.report.files import replace_file
    from pytest_quantgate.report.sensitivity import render_repair
    from pytest_quantgate.run.repair import repair
    from pytest_quantgate.text.printable import printable
    from pytest_quantgate.text.wrapping import say

    case = open_case(parsed, environ=environ)
    found = repair(case, samples=parsed.samples)
    case.progress.finish()
    for line in render_repair(found, suite=case.suite.label):
        say(line)
    if found.recipe:
        document = {"metadata": {"recipe_type": "ptq"}, "quantize": found.recipe}
        text = yaml.safe_dump(document, sort_keys=False, width=100)
        if parsed.write is None:
            print(printable(text), end="")
        else:
            head = f"# Made by `quantgate repair` from {case.suite.label}.\n"
            replace_file(parsed.write, head + text, kind="recipe", option="--write")
            say(f"written to {parsed.write}: set quantize.recipe to it, and let the gates judge it")
    if parsed.json is not None:
        result = {"format": FORMAT, "suite": case.suite.label, "repair": to_json(found)}
        text = json.dumps(result, indent=1) + "\n"
        replace_file(parsed.json, text, kind="sensitivity-json", option="--json")
    return 0 if found.holds or found.found.outcome == "none needed" else 1
