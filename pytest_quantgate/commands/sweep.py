"""`quantgate sweep`: one suite with several recipes, side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.commands.case import add_places, open_case, show_progress
from pytest_quantgate.errors import SuiteError

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.suite.specs import Suite

#: The layout of `--json`, raised when a field changes its meaning.
FORMAT = 1

EXAMPLES = """\
example:
  quantgate sweep suites/clip.quantgate.yaml --recipes fp8,fp8-attention,int8-smoothquant

A recipe is a name of this package, a preset of ModelOpt (INT8_DEFAULT_CFG), one of its recipe ids
or a YAML file. The gates of the suite judge each; those against a baseline and those that take
times judge none. Status 0 where a recipe may ship, else 1.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "sweep",
        help="judge one suite with several recipes, side by side",
        description="Judge one suite with several recipes: what each loses, how large it is, and "
        "the smallest that may ship.",
        epilog=EXAMPLES,
    )
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument(
        "--recipes", required=True, type=_names, metavar="A,B,...", help="recipes, comma-separated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write size against drop here too")
    parser.add_argument(
        "--workers", type=_workers, default="1", metavar="N", help="as --quantgate-workers"
    )
    add_places(parser)


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.commands.suite_checks import check_suite
    from pytest_quantgate.evidence.codec import to_json
    from pytest_quantgate.report.files import replace_file
    from pytest_quantgate.report.svg import draw_alone
    from pytest_quantgate.report.sweep import draw_sweep, render_sweep
    from pytest_quantgate.run.sweep import sweep, vary_recipe
    from pytest_quantgate.run.workers import OfRecipe, start_workers
    from pytest_quantgate.suite.load import load_suite
    from pytest_quantgate.text.wrapping import say

    suite = load_suite(parsed.suite, relative_to=Path.cwd())
    suites = vary_recipe(suite, recipes=parsed.recipes)
    for one in suites:
        errors = check_suite(one, environ=environ).errors
        if errors:
            raise SuiteError(errors[0])
    workers = start_workers(parsed.workers)

    def open_one(suite: Suite) -> Case:
        shared = OfRecipe(workers, recipe=str(suite.variant.recipe)) if workers else None
        return open_case(parsed, environ=environ, suite=suite, workers=shared)

    try:
        found = sweep(suites, open_case=open_one)
    finally:
        if workers is not None:
            workers.close()
    show_progress().finish()
    for line in render_sweep(found):
        say(line)
    if parsed.json is not None:
        result = {"format": FORMAT, "sweep": to_json(found)}
        text = json.dumps(result, indent=1) + "\n"
        replace_file(parsed.json, text, kind="sweep-json", option="--json")
    if parsed.svg is not None:
        replace_file(parsed.svg, draw_alone(draw_sweep(found)), kind="sweep-svg", option="--svg")
    return 0 if found.choice is not None else 1


def _workers(text: str) -> str:
    from pytest_quantgate.run.workers import read_workers

    try:
        return read_workers(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _names(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    if not names:
        raise argparse.ArgumentTypeError("names no recipe")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} names a recipe twice")
    return names
