"""Folders of one user: no link on the way into them, and nobody else may write there.

Who can put files into a cache decides what a run finds there, and a link in it would have a run
delete or write elsewhere.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_quantgate.errors import CacheError

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
#: Whoever else could write: the group, and everybody.
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def open_private(
    root: Path, *parts: str, make: bool = False, option: str = "--quantgate-cache-dir=DIR"
) -> Iterator[int]:
    """Give a descriptor of the folder `root/parts...`, which is closed after the block.

    `option` chooses another one; `make` makes what is not there, for this user alone. Raises
    CacheError, with the command that mends it, where `root` or a folder below it is a link, another
    user's, or may be written by others; other OSErrors pass through, FileNotFoundError among them.
    """
    place = Path(os.path.realpath(root.parent)) / root.name
    if make:
        place.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        place = place.parent
        for name in (root.name, *parts):
            place /= name
            inner = _open_one(name, folder=descriptor, place=place, make=make, option=option)
            os.close(descriptor)
            descriptor = inner
            _check_owner(descriptor, place=place, root=root, option=option)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_one(name: str, *, folder: int, place: Path, make: bool, option: str) -> int:
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=folder)
    try:
        return os.open(name, _OPEN, dir_fd=folder)
    except OSError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise CacheError(
                f"the cache folder {place} is a link, which is not followed: name the folder "
                f"itself with {option}, or rm {shlex.quote(str(place))}"
            ) from None
        raise


def _check_owner(descriptor: int, *, place: Path, root: Path, option: str) -> None:
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid():
        raise CacheError(
            f"the cache folder {place} belongs to user {found.st_uid}, not to user {os.geteuid()} "
            f"who runs this: choose a folder of your own with {option}"
        )
    if found.st_mode & _OTHERS_WRITE:
        raise CacheError(
            f"the cache folder {place} may be written by others (mode "
            f"{stat.S_IMODE(found.st_mode):04o}), who could decide what ships: chmod -R go-w "
            f"{shlex.quote(str(root))}, or rm -r it where you do not know all of them"
        )


def delete(name: str, *, folder: int) -> None:
    """Delete what has a name in an open folder, as far as that can be done; follows no link."""
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        shutil.rmtree(name, ignore_errors=True, dir_fd=folder)


def refuse_checkout(root: Path) -> None:
    """Raise CacheError for a cache in a git checkout: a change could bring one along."""
    place = Path(os.path.realpath(root))
    for each in (place, *place.parents):
        if (each / ".git").exists():
            raise CacheError(
                f"the cache {root} lies in the checkout {each}, where a pull request could bring "
                f"one along that says what ships: --quantgate-cache-dir=DIR outside of it, or "
                f"--quantgate-cache=off"
            )
