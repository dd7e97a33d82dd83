"""`quantgate migrate`: give a suite the baselines that version 0.1, or another name, left it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate.store.baseline_mode import refuse_ci
from pytest_quantgate.text.wrapping import say

EXAMPLES = """\
examples:
  quantgate migrate suites/                                       # what version 0.1 left
  quantgate migrate team_a/clip.quantgate.yaml                    # it is this suite's, not team_b's
  quantgate migrate models/clip.quantgate.yaml --from suites/clip # the suite was moved

Run it in the root of the project, as pytest. Results, reasons and days stay what they are. What
version 0.1 did not record (dtype, attention, device, recipe content) stays unknown, and a run says
so, until --quantgate-baselines=update records it.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "migrate",
        help="move the baselines of version 0.1, or of a suite that was moved",
        epilog=EXAMPLES,
    )
    parser.add_argument("suites", nargs="+", type=Path, metavar="SUITE", help="file or folder")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="NAME",
        help="what the suite was called: its path below the root, without .quantgate.yaml",
    )
    parser.add_argument("--baselines", type=Path, default=Path("baselines"), metavar="DIR")
    parser.add_argument("--allow-ci-write", action="store_true", help="although CI is set")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.commands.validate import find_suites
    from pytest_quantgate.errors import SuiteError
    from pytest_quantgate.store.baselines import Store
    from pytest_quantgate.store.migration import move_records, plan_moves
    from pytest_quantgate.suite.load import load_suite

    if not parsed.allow_ci_write:
        refuse_ci("quantgate migrate", environ=environ, flag="--allow-ci-write")
    root = Path.cwd()
    suites = [load_suite(path, relative_to=root) for path in find_suites(parsed.suites)]
    if parsed.source and len(suites) != 1:
        raise SuiteError(f"--from {parsed.source} names one suite, and {len(suites)} are to get it")
    store = Store(parsed.baselines, project=root)
    # Whoever names one file says whose it is; a folder does not.
    named = [suites[0].name] if len(suites) == 1 and parsed.suites[0].is_file() else []
    moves = plan_moves(store, suites, named=named, source=parsed.source or "")
    for old, new in move_records(store, moves):
        say(f"baseline moved: {old} -> {new}")
    if not moves:
        say(f"nothing to move below {parsed.baselines}")
    return 0
