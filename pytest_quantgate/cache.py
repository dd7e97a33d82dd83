"""A content-addressed store on disk for what is costly to build: variants and measurements.

An entry is a folder of files and a `manifest.json` with the SHA-256 of each. It is built in a
temporary folder, flushed and renamed into place, so a killed run leaves nothing that is ever
read. Every read checks the digests; a damaged entry is set aside and built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import CacheError, MissingPackage

#: Part of every path: raise it when the layout of an entry changes.
LAYOUT = "v1"

MANIFEST = "manifest.json"


def digest_files(*, files: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file by its name, read in chunks."""
    digests = {}
    for path in files:
        with path.open("rb") as stream:
            digests[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The store under `root`; `warn` is told, in one line, of every damaged entry."""

    root: Path
    warn: Callable[[str], None] = field(default=lambda _message: None)

    def path(self, *, kind: str, key: str) -> Path:
        return self.root / LAYOUT / kind / key[:2] / key

    def load(self, *, kind: str, key: str) -> Path | None:
        """Return the folder of an entry whose files are whole, or None.

        A damaged entry (a file missing, changed or added, or an unreadable manifest) is reported
        through `warn` and moved away, so that the caller builds it again.
        """
        folder = self.path(kind=kind, key=key)
        if not folder.is_dir():
            return None
        damage = find_damage(folder)
        if damage is None:
            return folder
        self.warn(f"cache entry {kind}/{key[:12]} is damaged ({damage}): building it again")
        self._discard(folder)
        return None

    def get_or_build(self, *, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        """Return the folder of an entry, built by `build(folder)` if it is not there.

        Processes that want the same entry wait for the one that builds it. Raises CacheError
        where the cache cannot be written; whatever `build` raises passes through, and nothing of
        its half-done work stays.
        """
        found = self.load(kind=kind, key=key)
        if found is not None:
            return found
        with self._lock(kind=kind, key=key):
            found = self.load(kind=kind, key=key)  # another process may have built it meanwhile
            if found is not None:
                return found
            return self._build(kind=kind, key=key, build=build)

    def get_or_measure(self, *, kind: str, key: str, measure: Callable[[], Any]) -> Any:
        """Return a JSON value from the cache, or measure, keep and return it."""

        def build(folder: Path) -> None:
            text = json.dumps(measure(), allow_nan=False, sort_keys=True, separators=(",", ":"))
            (folder / "value.json").write_text(text, encoding="utf-8")

        folder = self.get_or_build(kind=kind, key=key, build=build)
        return json.loads((folder / "value.json").read_text(encoding="utf-8"))

    def _build(self, *, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        folder = self.path(kind=kind, key=key)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{key[:8]}-", dir=folder.parent))
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            build(temporary)
            seal(temporary)
            temporary.replace(folder)
            _flush_folder(folder.parent)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _discard(self, folder: Path) -> None:
        try:
            aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
            folder.replace(aside / folder.name)
            shutil.rmtree(aside)
        except FileNotFoundError:
            return  # another process has set it aside already
        except OSError as error:
            raise self._unwritable(error) from error

    def _lock(self, *, kind: str, key: str) -> AbstractContextManager[Any]:
        try:
            from filelock import FileLock
        except ImportError as error:
            raise MissingPackage("filelock", extra="clip", purpose="the variant cache") from error
        folder = self.root / LAYOUT / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return FileLock(folder / f"{kind}-{key}.lock")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CacheError:
        reason = error.strerror or str(error)
        return CacheError(
            f"cannot write the cache under {self.root}: {reason}; "
            f"free space there or choose another folder with --quantgate-cache-dir=DIR"
        )


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
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or unreadable"
    if not isinstance(manifest, dict):
        return f"{MANIFEST} is not a mapping"
    present = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {MANIFEST}
    for name in sorted(set(manifest) ^ present):
        return f"{name} is {'missing' if name in manifest else 'not in the manifest'}"
    for name, expected in sorted(manifest.items()):
        path = folder / name
        if path.is_symlink():
            return f"{name} is a symbolic link"
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                return f"the SHA-256 of {name} differs from the manifest"
    return None


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
