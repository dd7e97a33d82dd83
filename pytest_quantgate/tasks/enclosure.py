"""Files of a data set stay inside its folder, whichever way a loader comes to their names.

A link, or a name with `../` in an annotation, would bring a file of the machine into a report.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import DataError

#: What Python and its libraries read by themselves, also while a data set is read.
_CODE = (".py", ".pyc", ".so")
_MACHINE = ("/dev/null", "/dev/urandom", "/proc/cpuinfo", "/proc/meminfo")

_GROUND = ContextVar[str]("ground")


def check_inside(path: Path, *, root: Path) -> Path:
    """Return `path`; raises DataError where it, by its links, is not below `root`."""
    _check(os.fspath(path), ground=find_ground(root))
    return path


def find_ground(root: Path) -> str:
    """Return the folder, without links, in which all files of a data set lie.

    That of a download of the hub is the folder of its repository: a snapshot there links to files
    beside it.
    """
    whole = Path(os.path.realpath(root))
    is_hub = whole.parent.name == "snapshots" and whole.parents[1].name.startswith("datasets--")
    return os.fspath(whole.parents[1] if is_hub else whole)


@contextmanager
def enclosed(root: Path) -> Iterator[None]:
    """Refuse, with a DataError, files outside `root` that are opened within the block.

    For loaders of others: by Python's own audit event, so that it does not matter how they open a
    file. Code, and what an installation holds, is read as always.
    """
    _listen()
    token = _GROUND.set(find_ground(root))
    try:
        yield
    finally:
        _GROUND.reset(token)


@functools.cache
def _listen() -> None:
    sys.addaudithook(_hear)  # for good: Python can take none away


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not (ground := _GROUND.get("")):
        return
    path = arguments[0]
    if isinstance(path, (str, bytes)):
        name = os.fsdecode(path)
        if not name.endswith(_CODE) and name not in _MACHINE:
            _check(name, ground=ground, others=_list_installed())


@functools.cache
def _list_installed() -> tuple[str, ...]:
    """Return where packages are installed."""
    places = [sys.prefix, sys.base_prefix, sys.exec_prefix]
    places += [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return tuple({os.path.realpath(place) for place in places})


def _check(name: str, *, ground: str, others: tuple[str, ...] = ()) -> None:
    try:
        found = os.path.realpath(name)
    except ValueError as error:  # a null byte
        raise DataError(f"{name!r} is no path: {error}") from error
    for place in (ground, *others):
        if found == place or found.startswith(place.rstrip(os.sep) + os.sep):
            return
    raise DataError(
        f"{name} leads out of its data set ({found} is not below {ground}): put the file itself "
        f"there, or set root to the folder that holds both"
    )
