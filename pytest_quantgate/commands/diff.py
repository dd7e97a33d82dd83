"""`quantgate diff`: say in words what changed between two checkpoints, baselines, suites, reports.

Exit status as diff has it: 0 the same, 1 different, 2 trouble.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.store.disk import temporary_folder

if TYPE_CHECKING:
    from pytest_quantgate.comparison.changes import Comparison

SAME, DIFFERENT, TROUBLE = 0, 1, 2

EXAMPLES = """\
examples:
  quantgate diff checkpoints/v1 checkpoints/v2       # two quantized checkpoints
  quantgate diff old/report.json new/report.json     # two JSON reports
  quantgate diff a.json b.json --match fp8=nvfp4     # two recipes of one model
  quantgate diff main...HEAD --markdown -            # what a branch does to baselines/ and suites/

A and B are both checkpoints (as the cache, ModelOpt or its unified export keeps them), exported
ONNX files, baselines, suites or JSON reports; files or folders. One argument A..B or A...B names
git revisions, and A alone compares that revision with the work tree. The status is 0 where nothing
differs, 1 where something does, 2 where it cannot be told.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "diff",
        help="say what changed between two checkpoints, baselines, suites or reports",
        description="Say in words what changed between two checkpoints, baselines, suites or "
        "JSON reports, or between two git revisions of baselines and suites.",
        epilog=EXAMPLES,
    )
    parser.add_argument("before", metavar="A", help="what was, or a range of revisions")
    parser.add_argument("after", metavar="B", nargs="?", help="what is")
    parser.add_argument(
        "--baselines", default="baselines", metavar="DIR", help="with revisions: default baselines"
    )
    parser.add_argument(
        "--suites", default="suites", metavar="DIR", help="with revisions: default suites"
    )
    parser.add_argument(
        "--match",
        metavar="OLD=NEW",
        action="append",
        default=[],
        type=_pair,
        help="with reports: compare the suite OLD of A with the suite NEW of B, and no others "
        "(may be repeated)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every change whole")
    parser.add_argument("--markdown", metavar="FILE", help="write Markdown (-: print it)")
    parser.add_argument("--html", metavar="FILE", help="write one HTML page")
    parser.add_argument("--all", action="store_true", help="show every row, not the largest 20")


def _pair(text: str) -> tuple[str, str]:
    old, sign, new = text.partition("=")
    if not (old and sign and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW, the names of two suites")
    return old, new


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.text.wrapping import say

    try:
        comparison = compare(parsed)
        _write(comparison, parsed)
    except QuantGateError as error:
        say(f"quantgate: {error}", error=True)
        return TROUBLE
    return DIFFERENT if comparison.is_different else SAME


def compare(parsed: argparse.Namespace) -> Comparison:
    """Return the comparison that the arguments ask for; raises QuantGateError."""
    from pytest_quantgate.comparison.changes import DiffError
    from pytest_quantgate.comparison.worker import compare_paths, compare_trees

    if parsed.after is not None:
        return compare_paths(parsed.before, parsed.after, match=parsed.match)
    if parsed.match:
        raise DiffError("--match pairs the suites of two JSON reports: name both, A and B")
    with temporary_folder() as folder:
        return compare_trees(
            parsed.before, baselines=parsed.baselines, suites=parsed.suites, room=folder
        )


def _write(comparison: Comparison, parsed: argparse.Namespace) -> None:
    from pytest_quantgate.comparison.render import (
        render_html,
        render_json,
        render_markdown,
        render_text,
    )
    from pytest_quantgate.report.files import replace_file
    from pytest_quantgate.text.wrapping import say

    if parsed.markdown not in (None, "-"):
        path = _check_output(parsed.markdown, parsed=parsed)
        replace_file(path, render_markdown(comparison), kind="diff-markdown", option="--markdown")
    if parsed.html not in (None, "-"):
        path = _check_output(parsed.html, parsed=parsed)
        replace_file(path, render_html(comparison), kind="diff-html", option="--html")
    if parsed.json:
        sys.stdout.write(render_json(comparison))
    elif parsed.markdown == "-":
        sys.stdout.write(render_markdown(comparison))
    elif parsed.html == "-":
        sys.stdout.write(render_html(comparison))
    else:
        text = render_text(comparison, **({"most_rows": None} if parsed.all else {}))
        for line in text.splitlines():
            say(line)


def _check_output(name: str, *, parsed: argparse.Namespace) -> Path:
    """Return where a rendered comparison goes; raises DiffError for what is compared itself."""
    from pytest_quantgate.comparison.changes import DiffError

    path = Path(name)
    for compared in (parsed.before, parsed.after):
        source = Path(compared) if compared is not None else None
        if source is not None and source.exists():
            here, there = path.resolve(), source.resolve()
            if here == there or here.is_relative_to(there):
                raise DiffError(f"{path} is part of what is compared: write it elsewhere")
    return path
