"""Which suite a baseline belongs to: the suite names itself by its path below the root.

Version 0.1 kept baselines under the name of the file alone, so that two suites of one name in two
folders shared theirs. What it wrote is the one suite's that has its name and its gate.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pytest_quantgate.errors import BaselineError, QuantGateError
from pytest_quantgate.store.records import Kind
from pytest_quantgate.suite.gates import kind_of
from pytest_quantgate.suite.specs import Suite

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

#: Folders that hold no suite of a project, beside the hidden ones and virtual environments.
_SKIPPED = {"node_modules", "__pycache__"}


@dataclass(frozen=True, kw_only=True)
class Owned:
    """Whose a baseline file is, by what it says of itself; `is_old` is what version 0.1 wrote."""

    path: Path
    suite: str
    key: str
    kind: Kind
    is_old: bool


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """A baseline that no gate names, and why."""

    path: Path
    reason: str


def is_plain(name: str) -> bool:
    """Return whether a name can be that of a folder or file on every system."""
    return _NAME.fullmatch(name) is not None


def is_below_root(suite: str) -> bool:
    """Return whether a suite's name is a path below the root: else its baselines have no place."""
    parts = suite.split("/")
    return all(parts) and not {".", ".."} & set(parts)


def old_name(suite: str) -> str:
    """Return what version 0.1 called a suite: its file's name alone."""
    return suite.rpartition("/")[2]


def suite_file(suite: str) -> str:
    """Return the path of a suite's file below the root."""
    from pytest_quantgate.suite.names import SUFFIX

    return f"{suite}{SUFFIX}"


def list_baselines(suite: Suite) -> tuple[tuple[Kind, str], ...]:
    """Return the kind and key of each baseline that a suite's gates have."""
    gates = (gate for gate in suite.gates if kind_of(gate).keeps_baseline(gate))
    return tuple((cast("Kind", gate.kind), gate.key) for gate in gates)


def walk_files(root: Path) -> Iterator[Path]:
    """Yield the files of a project in order, but for those of others that live in it."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            each
            for each in folders
            if not each.startswith(".")
            and each not in _SKIPPED
            and not (Path(folder) / each / "pyvenv.cfg").exists()
        )
        yield from (Path(folder) / name for name in sorted(files))


def find_owners(project: Path, *, name: str, kind: Kind, key: str) -> tuple[list[str], list[str]]:
    """Return the suites of one name that have a gate, and those of the name that cannot be read."""
    from pytest_quantgate.suite.load import load_suite

    owners, unknown = list[str](), list[str]()
    for path in walk_files(project):
        if path.name != suite_file(name):
            continue
        try:
            suite = load_suite(path, relative_to=project)
        except QuantGateError:
            unknown.append(path.relative_to(project).as_posix())
            continue
        if (kind, key) in list_baselines(suite):
            owners.append(suite.name)
    return owners, unknown


def check_only_owner(owned: Owned, *, suite: str, project: Path) -> None:
    """Raise BaselineError where what version 0.1 wrote may be of another suite as well."""
    owners, unknown = find_owners(project, name=old_name(suite), kind=owned.kind, key=owned.key)
    others = [suite_file(owner) for owner in owners if owner != suite]
    others += [path for path in unknown if path != suite_file(suite)]
    if others:
        raise BaselineError(
            f"{owned.path}: version 0.1 kept it for every suite called {old_name(suite)}, and "
            f"{' and '.join(sorted([suite_file(suite), *others]))} may each own it: name the one "
            f"that does: quantgate migrate {suite_file(suite)}"
        )


def judge_orphan(owned: Owned, *, project: Path, has_other: Callable[[str], bool]) -> Orphan | None:
    """Return a baseline that no gate names; None for one that is named, or may be.

    Whoever owns it is told by the files below the project, not by what runs: a suite that cannot
    be read may name it. `has_other` says whether a suite has another record for the same gate.
    """
    from pytest_quantgate.suite.load import load_suite

    if owned.is_old and "/" not in owned.suite:  # else somebody has given it its new name
        owners, unknown = find_owners(project, name=owned.suite, kind=owned.kind, key=owned.key)
        if unknown or not all(has_other(owner) for owner in owners):
            return None
        why = "has this gate" if not owners else "needs it: each has another one"
        return Orphan(path=owned.path, reason=f"no suite called {owned.suite} {why}")
    file = project / suite_file(owned.suite)
    if not file.exists():
        return Orphan(path=owned.path, reason=f"there is no {suite_file(owned.suite)}")
    try:
        suite = load_suite(file, relative_to=project)
    except QuantGateError:
        return None
    if (owned.kind, owned.key) in list_baselines(suite):
        return None
    return Orphan(path=owned.path, reason=f"{suite_file(owned.suite)} has no such gate")
