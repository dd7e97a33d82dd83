"""A content-addressed store on disk for what is costly to build: variants and measurements.

An entry is a folder of files and a `manifest.json` with the SHA-256 of each. It is built in a
temporary folder, flushed and renamed into place, so a killed run leaves nothing that is ever
read. Every read checks the digests; a damaged entry is set aside and built again. Whoever builds
an entry or sets one aside holds its lock, which ends with its process: what lies about and is
locked by nobody is of a killed run, and the next build deletes it. No link in the cache is
followed, and its folders are this user's alone (`store/private.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pytest_quantgate import bounds
from pytest_quantgate.errors import CacheError, MissingPackage, StoredValueError, WriteError
from pytest_quantgate.store.disk import describe_write_error, find_write_error, mend_write_error
from pytest_quantgate.store.private import delete, open_private
from pytest_quantgate.untrusted import hash_file, parse_json, read_regular

#: Part of every path: raise it when the layout of an entry changes.
LAYOUT = "v1"

LOCKS = "locks"
MANIFEST = "manifest.json"
VALUE = "value.json"


#: Temporary folders without the name of an entry are of an older release: deleted at this age.
LEFTOVER_SECONDS = 24 * 3600
_TEMPORARY = re.compile(r"\.(?:building|damaged)-([A-Za-z0-9]+)-.*")

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The store under `root`; `warn` is told, in one line, of every damaged entry."""

    root: Path
    warn: Callable[[str], None] = field(default=lambda _message: None)

    def path(self, *, kind: str, key: str) -> Path:
        return self.root / LAYOUT / kind / key[:2] / key

    def load(self, *, kind: str, key: str) -> Path | None:
        """Return the folder of an entry whose files are whole, or None; changes nothing.

        Raises CacheError where the cache is not this user's alone.
        """
        folder = self.path(kind=kind, key=key)
        try:
            with self._open(kind, key[:2]):
                pass
        except OSError:  # nothing was kept so far, or who writes it says why
            return None
        whole = os.path.lexists(folder) and find_damage(folder) is None
        return folder if whole else None

    def read(self, *, kind: str, key: str, name: str = VALUE) -> Any:
        """Return the JSON of one file of an entry, or None where it is not there or damaged.

        Builds, moves and reports nothing, and checks this one file alone: a report reads a few
        kilobytes beside checkpoints of gigabytes.
        """
        folder = self.path(kind=kind, key=key)
        try:
            with self._open(kind, key[:2]):
                pass
            expected = parse_json(read_regular(folder / MANIFEST, max_bytes=bounds.CACHED_BYTES))[
                name
            ]
            data = read_regular(folder / name, max_bytes=bounds.CACHED_BYTES)
            return parse_json(data) if hashlib.sha256(data).hexdigest() == expected else None
        except (OSError, ValueError, KeyError, TypeError, CacheError):
            return None

    def digests(self, *, kind: str, key: str) -> Mapping[str, str]:
        """Return the SHA-256 (hex) of each file of an entry by its name; none without the entry.

        They are those under which the entry was sealed, and which every load of it has checked.
        """
        path = self.path(kind=kind, key=key) / MANIFEST
        try:
            with self._open(kind, key[:2]):
                pass
            found = parse_json(read_regular(path, max_bytes=bounds.CACHED_BYTES))
        except (OSError, ValueError, CacheError):
            return {}
        plain = isinstance(found, dict) and all(isinstance(each, str) for each in found.values())
        return found if plain else {}

    def _open(self, *parts: str, make: bool = False) -> AbstractContextManager[int]:
        return open_private(self.root, LAYOUT, *parts, make=make)

    def get_or_build(self, *, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        """Return the folder of an entry, built by `build(folder)` if it is not there.

        A damaged entry (a file missing, changed or added, or an unreadable manifest) is reported
        through `warn`, moved away and built again. Processes that want the same entry wait for
        the one that builds it. Raises CacheError where the cache cannot be written; whatever
        `build` raises passes through, and nothing of its half-done work stays.
        """
        found = self.load(kind=kind, key=key)
        if found is not None:
            return found
        with self._lock(kind=kind, key=key):
            folder = self.path(kind=kind, key=key)
            if os.path.lexists(folder):
                damage = find_damage(folder)
                if damage is None:  # another process has built it meanwhile
                    return folder
                self._set_aside(kind=kind, key=key, damage=damage)
            self._sweep(held=(kind, key))
            return self._build(kind=kind, key=key, build=build)

    def get_and_read(
        self,
        *,
        kind: str,
        key: str,
        build: Callable[[Path], None],
        read: Callable[[Path], Value],
    ) -> Value:
        """Return what `read(folder)` makes of an entry, which is built if it is not there.

        An entry that is whole by its manifest and that `read` does not take all the same
        (ValueError, OSError) is damaged like others: set aside, built and read again.
        """
        folder = self.get_or_build(kind=kind, key=key, build=build)
        try:
            return read(folder)
        except (ValueError, OSError) as error:
            damage = f"it cannot be read: {' '.join(str(error).split())[:200]}"
        with self._lock(kind=kind, key=key):
            self._set_aside(kind=kind, key=key, damage=damage)
        return read(self.get_or_build(kind=kind, key=key, build=build))

    def get_or_measure(
        self,
        *,
        kind: str,
        key: str,
        measure: Callable[[], Any],
        read: Callable[[Any], Any] = lambda value: value,
    ) -> Any:
        """Return a JSON value from the cache, or measure, keep and return it.

        `read` turns it into what is returned; a stored value that it refuses with ValueError is
        measured again.
        """

        def build(folder: Path) -> None:
            text = json.dumps(measure(), allow_nan=False, sort_keys=True, separators=(",", ":"))
            (folder / VALUE).write_text(text, encoding="utf-8")

        return self.get_and_read(
            kind=kind, key=key, build=build, read=lambda folder: read(read_json(folder / VALUE))
        )

    def _build(self, *, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        folder = self.path(kind=kind, key=key)
        try:
            with self._open(kind, key[:2], make=True):
                pass
            temporary = Path(tempfile.mkdtemp(prefix=f".building-{key}-", dir=folder.parent))
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._fill(temporary, build=build)
            self._seal(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _fill(self, folder: Path, *, build: Callable[[Path], None]) -> None:
        """Build an entry; what a library says of a file that it cannot write is a CacheError."""
        try:
            build(folder)
        except WriteError:
            raise  # of an entry that this one is made of, or of a temporary folder
        except Exception as error:
            found = find_write_error(error, folder=self.root)
            if found is None:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise self._unwritable(found) from error

    def _seal(self, temporary: Path, folder: Path) -> None:
        try:
            seal(temporary)
            temporary.replace(folder)
            _flush_folder(folder.parent)
        except OSError as error:
            raise self._unwritable(error) from error

    def _set_aside(self, *, kind: str, key: str, damage: str) -> None:
        """Take a damaged entry out of its place; its lock is held."""
        folder = self.path(kind=kind, key=key)
        try:
            aside = Path(tempfile.mkdtemp(prefix=f".damaged-{key}-", dir=folder.parent))
            folder.replace(aside / folder.name)
        except FileNotFoundError:
            return  # another process has set it aside already
        except OSError as error:
            raise self._unwritable(error, damage=f"entry {kind}/{key[:12]}: {damage}") from error
        self.warn(f"cache entry {kind}/{key[:12]} is damaged ({damage}): building it again")
        shutil.rmtree(aside, ignore_errors=True)

    def _sweep(self, *, held: tuple[str, str]) -> None:
        """Delete what killed runs left: temporary folders of entries that nobody has locked."""
        for folder in sorted((self.root / LAYOUT).glob("*/*")):
            kind = folder.parent.name
            if kind == LOCKS:
                continue
            try:
                with self._open(kind, folder.name) as opened:
                    for name in sorted(os.listdir(opened)):  # noqa: PTH208 (of what is open)
                        if name.startswith(".") and "-" in name:
                            self._sweep_one(name, folder=opened, kind=kind, held=held)
            except OSError:
                continue  # gone meanwhile

    def _sweep_one(self, name: str, *, folder: int, kind: str, held: tuple[str, str]) -> None:
        named = _TEMPORARY.fullmatch(name)
        if named is None:
            age = time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
            if age > LEFTOVER_SECONDS:
                delete(name, folder=folder)
        elif (kind, named[1]) == held:
            delete(name, folder=folder)
        else:
            lock = self._open_lock(kind=kind, key=named[1])
            try:
                lock.acquire(blocking=False)
            except (OSError, RuntimeError):
                return  # somebody works in it, perhaps this process further up
            try:
                delete(name, folder=folder)
            finally:
                lock.release()

    @contextmanager
    def _lock(self, *, kind: str, key: str) -> Iterator[None]:
        lock = self._open_lock(kind=kind, key=key)
        try:
            lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _open_lock(self, *, kind: str, key: str) -> Any:
        try:
            from filelock import FileLock
        except ImportError as error:
            raise MissingPackage("filelock", extra="clip", purpose="the variant cache") from error
        name = f"{kind}-{key}.lock"
        try:
            with self._open(LOCKS, make=True) as folder, suppress(FileNotFoundError):
                if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=folder)  # its target would be emptied
        except OSError as error:
            raise self._unwritable(error) from error
        return FileLock(self.root / LAYOUT / LOCKS / name)

    def _unwritable(self, error: OSError, *, damage: str = "") -> CacheError:
        reason = describe_write_error(error, folder=self.root)
        mend = mend_write_error(error, option="--quantgate-cache-dir=DIR")
        found = f" ({damage})" if damage else ""
        return CacheError(f"cannot write the cache under {self.root}{found}: {reason}; {mend}")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file of the cache; raises StoredValueError."""
    try:
        return parse_json(read_regular(path, max_bytes=bounds.CACHED_BYTES))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise StoredValueError(
            f"{path}: cannot be read ({reason}): delete {path.parent} and run again"
        ) from error


def seal(folder: Path) -> None:
    """Write the manifest of `folder` and flush every file to disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {}
    for path in files:
        with path.open("rb") as stream:
            manifest[path.relative_to(folder).as_posix()] = hashlib.file_digest(
                stream, "sha256"
            ).hexdigest()
            os.fsync(stream.fileno())
    with (folder / MANIFEST).open("w", encoding="utf-8") as out:
        json.dump(manifest, out, indent=1, sort_keys=True)
        out.flush()
        os.fsync(out.fileno())


def find_damage(folder: Path) -> str | None:
    """Return in a few words what is wrong with a sealed folder, or None if it is whole."""
    if folder.is_symlink() or not folder.is_dir():
        return "it is no folder"
    try:
        manifest = read_json(folder / MANIFEST)
    except StoredValueError:
        return f"{MANIFEST} is missing or unreadable"
    if not isinstance(manifest, dict):
        return f"{MANIFEST} is not a mapping"
    # Whatever is no folder counts: a pipe or a link that the manifest does not name is damage too.
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    } - {MANIFEST}
    for name in sorted(set(manifest) ^ present):
        return f"{name} is {'missing' if name in manifest else 'not in the manifest'}"
    for name, expected in sorted(manifest.items()):
        path = folder / name
        if path.is_symlink():
            return f"{name} is a symbolic link"
        if not path.is_file():
            return f"{name} is no regular file"
        try:
            found = hash_file(path)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        if found != expected:
            return f"the SHA-256 of {name} differs from the manifest"
    return None


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")), encoding="utf-8")
