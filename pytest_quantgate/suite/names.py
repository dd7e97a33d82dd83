"""What files of suites are called: pytest asks it of every file that it sees."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIX = ".quantgate.yaml"

#: A file of this name, or that ends with it after a dot, is no suite: it names those of a release.
RELEASE = "release.quantgate.yaml"

#: What stands for hand-written tests where kinds of gates are named.
OWN_TESTS = "tests"


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
