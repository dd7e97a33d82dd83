"""`quantgate validate`: check suite files without running anything."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import QuantGateError, SuiteError
from pytest_quantgate.report.printable import printable

if TYPE_CHECKING:
    from pytest_quantgate.suite import Suite

EXAMPLES = """\
examples:
  quantgate validate suites/                        # every *.quantgate.yaml below
  quantgate validate suites/clip.quantgate.yaml

Beyond the format, names are checked: recipes, data sets, patterns, variables. A note is no error.
The status is 0 where every suite is valid, else 1.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "validate",
        help="check suite files without running anything",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="+", type=Path, metavar="SUITE", help="file or folder")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.suite_checks import check_suite
    from pytest_quantgate.suite_file import load_suite

    invalid = 0
    for argument in parsed.suites:
        try:
            paths = find_suites([argument])
        except QuantGateError as error:
            print(printable(str(error)), file=sys.stderr)
            invalid += 1
            continue
        for path in paths:
            try:
                suite = load_suite(path, relative_to=Path.cwd())
                found = check_suite(suite, environ=environ)
            except QuantGateError as error:
                print(printable(str(error)), file=sys.stderr)
                invalid += 1
                continue
            for problem in found.errors:
                print(printable(problem), file=sys.stderr)
            if found.errors:
                invalid += 1
            else:
                print(printable(f"{path}: valid ({suite.label})"))
            for note in (*found.notes, *_note_old_baselines(suite)):
                print(printable(f"  note: {note}"))
    return 1 if invalid else 0


def _note_old_baselines(suite: Suite) -> Iterator[str]:
    """Yield what version 0.1 left in `baselines/` for a suite, and the command that moves it."""
    from pytest_quantgate.baselines import Store
    from pytest_quantgate.store.owners import is_below_root, list_baselines, suite_file

    store = Store(Path("baselines"), project=Path.cwd())
    for kind, key in list_baselines(suite) if is_below_root(suite.name) else ():
        old = store.find_old(suite.name, key, kind=kind)
        if old is not None:
            file = suite_file(suite.name)
            yield f"{old.path} is as version 0.1 wrote it: quantgate migrate {file}"


def find_suites(arguments: Iterable[Path]) -> list[Path]:
    """Return the suite files that are named, and all below the folders that are; sorted there.

    Raises SuiteError for a folder without any.
    """
    from pytest_quantgate.suite_file import SUFFIX

    found: list[Path] = []
    for path in arguments:
        if not path.is_dir():
            found.append(path)
            continue
        below = sorted(path.rglob(f"*{SUFFIX}"))
        if not below:
            raise SuiteError(f"{path.as_posix()}: no *{SUFFIX} below this folder")
        found += below
    return list(dict.fromkeys(found))
