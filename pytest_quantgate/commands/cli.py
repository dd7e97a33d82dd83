"""The `quantgate` command; what it can do is in `commands/`, one file each."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from pytest_quantgate import __version__
from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.text.wrapping import fold, say

COMMANDS = (
    "check",
    "verify",
    "conclude",
    "init",
    "validate",
    "plan",
    "doctor",
    "data",
    "diff",
    "sensitivity",
    "repair",
    "sweep",
    "limits",
    "export",
    "schema",
    "accept",
    "review",
    "history",
    "migrate",
)


def main(arguments: Sequence[str] | None = None, *, environ: Mapping[str, str] = os.environ) -> int:
    """Run the command and return its exit status: 0 done, 1 refused or invalid, 2 wrong usage."""
    parser = build_parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return 2
    parsed = parser.parse_args(arguments)
    try:
        status: int = _command(parsed.command).run(parsed, environ=environ)
    except QuantGateError as error:
        say(f"quantgate: {error}", error=True)
        return 1
    except BrokenPipeError:
        raise  # of whoever reads our output, and no file
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        say(f"quantgate: {place}{error.strerror or error}", error=True)
        return 1
    return status


class _CommandParser(argparse.ArgumentParser):
    """The parser of one command: its sentences fit the terminal, its examples keep their lines."""

    def __init__(self, *, description: str = "", epilog: str = "", **options: Any) -> None:
        super().__init__(
            description=_fit(description),
            epilog=_fit(epilog),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )


def _fit(text: str) -> str:
    """Return paragraphs in the columns that there are; one with indented lines stays as it is."""
    width = shutil.get_terminal_size().columns - 2
    paragraphs = text.rstrip("\n").split("\n\n")
    return "\n\n".join(
        each if "\n " in each else "\n".join(fold(each, width)) for each in paragraphs
    )


def build_parser() -> argparse.ArgumentParser:
    parser = _CommandParser(
        prog="quantgate",
        description="What decides whether a quantized encoder may ship: its files, the suites "
        "that judge it, their baselines and releases.",
        epilog="""\
the first minutes:
  quantgate check out/                           # what is quantized in these files, and how
  quantgate init --model DIR --data DATASET      # write a suite
  pytest suites                                  # judge by it; the gates are tests of pytest
""",
    )
    parser.add_argument("--version", action="version", version=f"quantgate {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_CommandParser
    )
    for name in COMMANDS:
        _command(name).add(commands)
    return parser


def _command(name: str) -> Any:
    return import_module(f"pytest_quantgate.commands.{name}")
