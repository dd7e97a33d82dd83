"""Reads `*.quantgate.yaml` into a Suite: a closed schema, and errors with file, line and mend."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.suite.keys import read_section
from pytest_quantgate.suite.nodes import Place, compose, read_text
from pytest_quantgate.suite.specs import Suite

SUFFIX = ".quantgate.yaml"

#: A file of this name, or that ends with it after a dot, is no suite: it names those of a release.
RELEASE = "release.quantgate.yaml"

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


def is_release(path: Path) -> bool:
    """Return whether a file names the suites of a release (release/spec.py) and is none itself."""
    return path.name == RELEASE or path.name.endswith(f".{RELEASE}")


def list_suites(folder: Path) -> list[Path]:
    """Return the suite files below a folder, sorted."""
    return sorted(path for path in folder.rglob(f"*{SUFFIX}") if not is_release(path))


def name_suite(path: Path, *, relative_to: Path | None) -> str:
    """Return what a suite is called: its path below the root without the ending.

    A relative path is below the root; an absolute one without a root is called by its file alone.
    """
    if path.is_absolute():
        shown = os.path.relpath(path, relative_to) if relative_to is not None else path.name
    else:
        shown = os.path.normpath(path)
    return Path(shown).as_posix().removesuffix(SUFFIX)
