"""Reads `*.quantgate.yaml` into a Suite: a closed schema, and errors with file, line and mend."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.suite.keys import read_section
from pytest_quantgate.suite.names import name_suite
from pytest_quantgate.suite.nodes import Place, compose, read_text
from pytest_quantgate.suite.specs import Suite

#: What a CI runner takes for a command: at the start of a line, or anywhere in it.
_COMMAND = re.compile(r"(^|/)\s*::|##[A-Za-z]*\[")


def load_suite(path: Path, *, relative_to: Path | None = None) -> Suite:
    """Return the suite in a file.

    `relative_to` is the root: it shortens the file's name in messages, and the suite is named by
    its path below it. Raises SuiteError, whose message starts with `file:line:`, for anything that
    is not a valid suite.
    """
    shown = path
    if relative_to is not None and path.is_absolute() and path.is_relative_to(relative_to):
        shown = path.relative_to(relative_to)
    name = shown.as_posix()
    called = name_suite(path, relative_to=relative_to)
    _check_name(called, file=name)
    text = read_text(path, name=name)
    return read_section(
        Suite,
        Place(file=name, key=""),
        compose(text, name=name),
        path=path,
        name=called,
        digest=hashlib.sha256(text.encode("utf-8")).hexdigest(),
    )


def _check_name(name: str, *, file: str) -> None:
    """Raise SuiteError for a name that cannot be shown as it is: it stands in every result."""
    if not name.isprintable() or _COMMAND.search(name):
        raise SuiteError(
            f"{file}:1: the name of a suite, and of the folders down to it, holds visible "
            f"characters alone and no command of a CI log (::name::, ##[name]): rename it"
        )
