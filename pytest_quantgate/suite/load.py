"""Reads `*.quantgate.yaml` into a Suite: a closed schema, and errors with file, line and mend."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_quantgate.suite.keys import read_section
from pytest_quantgate.suite.nodes import Place, compose, read_text
from pytest_quantgate.suite.specs import Suite

SUFFIX = ".quantgate.yaml"


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
    root = compose(read_text(path, name=name), name=name)
    called = name_suite(path, relative_to=relative_to)
    return read_section(Suite, Place(file=name, key=""), root, path=path, name=called)


def name_suite(path: Path, *, relative_to: Path | None) -> str:
    """Return what a suite is called: its path below the root without the ending.

    A relative path is below the root; an absolute one without a root is called by its file alone.
    """
    if path.is_absolute():
        shown = os.path.relpath(path, relative_to) if relative_to is not None else path.name
    else:
        shown = os.path.normpath(path)
    return Path(shown).as_posix().removesuffix(SUFFIX)
