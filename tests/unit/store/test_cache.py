"""The cache: what is read is whole, what is damaged is built again, what fails leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pytest_quantgate.errors import CacheError, MissingPackage, WriteError
from pytest_quantgate.store.cache import MANIFEST, Cache, find_damage, seal
from pytest_quantgate.store.settings import default_cache_root

KEY = "ab" + "0" * 62


def write_one(folder: Path) -> None:
    (folder / "value.txt").write_text("one", encoding="utf-8")


def test_builds_once_and_reads_after(tmp_path: Path) -> None:
    calls = []
    cache = Cache(root=tmp_path)

    def build(folder: Path) -> None:
        calls.append(folder)
        write_one(folder)

    first = cache.get_or_build(kind="variant", key=KEY, build=build)
    second = cache.get_or_build(kind="variant", key=KEY, build=build)

    assert first == second == tmp_path / "v1" / "variant" / "ab" / KEY
    assert len(calls) == 1
    assert (first / "value.txt").read_text(encoding="utf-8") == "one"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "value.txt").write_text("two"), "the SHA-256 of value.txt differs"),
        (lambda f: (f / "value.txt").unlink(), "value.txt is missing"),
        (lambda f: (f / "more.txt").write_text(""), "more.txt is not in the manifest"),
        (lambda f: (f / MANIFEST).unlink(), "manifest.json is missing or unreadable"),
        (lambda f: (f / MANIFEST).write_text("{"), "manifest.json is missing or unreadable"),
        (lambda f: (f / MANIFEST).write_text("[]"), "manifest.json is not a mapping"),
    ],
)
def test_damaged_entry_is_reported_and_built_again(tmp_path: Path, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    warnings: list[str] = []
    cache = Cache(root=tmp_path, warn=warnings.append)
    folder = cache.get_or_build(kind="variant", key=KEY, build=write_one)
    damage(folder)

    again = cache.get_or_build(kind="variant", key=KEY, build=write_one)

    assert again == folder
    assert find_damage(again) is None
    assert len(warnings) == 1
    assert words in warnings[0]
    assert "building it again" in warnings[0]


def test_symbolic_link_in_an_entry_is_damage(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("one", encoding="utf-8")
    cache = Cache(root=tmp_path / "cache")
    folder = cache.get_or_build(kind="variant", key=KEY, build=write_one)
    (folder / "value.txt").unlink()
    (folder / "value.txt").symlink_to(outside)

    assert find_damage(folder) == "value.txt is a symbolic link"


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)

    def fail(folder: Path) -> None:
        write_one(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get_or_build(kind="variant", key=KEY, build=fail)

    assert cache.load(kind="variant", key=KEY) is None
    assert list((tmp_path / "v1" / "variant").rglob("value.txt")) == []


def test_half_written_folder_of_a_killed_run_is_never_read(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)
    half = tmp_path / "v1" / "variant" / "ab" / f".{KEY[:8]}-killed"
    half.mkdir(parents=True)
    write_one(half)

    assert cache.load(kind="variant", key=KEY) is None


def test_no_space_names_the_folder_and_the_option(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)

    def fail(_folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError) as caught:
        cache.get_or_build(kind="variant", key=KEY, build=fail)

    text = re.sub(r"\d+\.\d MB", "N MB", str(caught.value))
    assert text == (
        f"cannot write the cache under {tmp_path}: No space left on device (free without it: "
        f"N MB of N MB); free space there or choose another folder with --quantgate-cache-dir=DIR"
    )


def test_an_error_of_the_build_that_is_none_of_the_disk_is_not_called_one(tmp_path: Path) -> None:
    def fail(_folder: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "photos/1.png")

    with pytest.raises(FileNotFoundError):
        Cache(root=tmp_path).get_or_build(kind="variant", key=KEY, build=fail)


def test_root_that_is_a_file_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("", encoding="utf-8")

    with pytest.raises(CacheError, match="choose another folder"):
        Cache(root=root).get_or_build(kind="variant", key=KEY, build=write_one)


def test_many_threads_build_once(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)
    calls = []

    def build(folder: Path) -> None:
        calls.append(1)
        write_one(folder)

    threads = [
        threading.Thread(
            target=cache.get_or_build, kwargs={"kind": "variant", "key": KEY, "build": build}
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert len(calls) == 1


def test_measurement_is_kept_as_strict_json(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)
    value = {"b": [1, 2.5], "a": "ä"}

    assert cache.get_or_measure(kind="fidelity", key=KEY, measure=lambda: value) == value
    assert cache.get_or_measure(kind="fidelity", key=KEY, measure=lambda: 1 / 0) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        cache.get_or_measure(kind="other", key=KEY, measure=lambda: float("nan"))


def test_seal_covers_files_in_folders(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    write_one(tmp_path / "checkpoint")
    seal(tmp_path)

    assert list(json.loads((tmp_path / MANIFEST).read_text())) == ["checkpoint/value.txt"]
    assert find_damage(tmp_path) is None


def test_default_root_follows_xdg(tmp_path: Path) -> None:
    assert default_cache_root({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "pytest-quantgate"
    assert default_cache_root({}) == Path.home() / ".cache" / "pytest-quantgate"
    assert default_cache_root({"XDG_CACHE_HOME": "relative"}) == default_cache_root({})


def test_a_digest_is_told_of_what_is_sealed_alone(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path / "cache")
    assert cache.digests(kind="variant", key=KEY) == {}
    folder = cache.get_or_build(kind="variant", key=KEY, build=write_one)

    assert cache.digests(kind="variant", key=KEY) == {
        "value.txt": hashlib.sha256(b"one").hexdigest()
    }
    (folder / MANIFEST).write_text('{"value.txt": 1}')
    assert cache.digests(kind="variant", key=KEY) == {}


def test_what_is_no_regular_file_or_cannot_be_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(root=tmp_path)
    folder = cache.get_or_build(kind="variant", key=KEY, build=write_one)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", refuse)
        assert find_damage(folder) == "value.txt cannot be read: Input/output error"
    (folder / "value.txt").unlink()
    os.mkfifo(folder / "value.txt")
    assert find_damage(folder) == "value.txt is no regular file"


def test_without_the_package_of_locks_the_installation_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)

    with pytest.raises(MissingPackage, match="filelock"):
        Cache(root=tmp_path).get_or_build(kind="variant", key=KEY, build=write_one)


def test_a_damaged_entry_that_cannot_be_moved_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(root=tmp_path)
    folder = cache.get_or_build(kind="variant", key=KEY, build=write_one)
    (folder / "value.txt").write_text("two")
    make = tempfile.mkdtemp

    def refuse(prefix: str, **options: Any) -> str:
        if prefix.startswith(".damaged-"):
            raise OSError(errno.EROFS, "Read-only file system")
        return make(prefix=prefix, **options)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(CacheError, match=r"\(entry variant/ab0000000000: the SHA-256 of value"):
        cache.get_or_build(kind="variant", key=KEY, build=write_one)

    def gone(prefix: str, **options: Any) -> str:
        if prefix.startswith(".damaged-"):
            shutil.rmtree(folder)  # as another process does
        return make(prefix=prefix, **options)

    monkeypatch.setattr(tempfile, "mkdtemp", gone)
    assert find_damage(cache.get_or_build(kind="variant", key=KEY, build=write_one)) is None


def test_an_entry_can_be_built_of_another_of_which_one_was_killed(tmp_path: Path) -> None:
    """What this process holds further up is not swept."""
    cache = Cache(root=tmp_path)
    seen = []

    def outer(folder: Path) -> None:
        (folder / "a").write_text("a")
        cache.get_or_build(kind="outcomes", key=KEY, build=write_one)
        seen.append((folder / "a").exists())

    cache.get_or_build(kind="variant", key=KEY, build=outer)

    assert seen == [True]


def test_what_an_entry_is_made_of_says_itself_that_it_cannot_be_written(tmp_path: Path) -> None:
    said = WriteError("the temporary folder is full")

    def build(_folder: Path) -> None:
        raise said

    with pytest.raises(WriteError) as caught:
        Cache(root=tmp_path).get_or_build(kind="variant", key=KEY, build=build)
    assert caught.value is said


def test_a_file_in_the_place_of_an_entry_is_damage(tmp_path: Path) -> None:
    (tmp_path / "entry").touch()

    assert find_damage(tmp_path / "entry") == "it is no folder"


def test_a_lock_that_cannot_be_taken_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_lock: FileLock) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)

    with pytest.raises(CacheError, match="No locks available; free space there or choose another"):
        Cache(root=tmp_path).get_or_build(kind="variant", key=KEY, build=write_one)


def test_a_folder_that_goes_while_leftovers_are_looked_for_is_passed_over(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)
    cache.get_or_build(kind="variant", key=KEY, build=write_one)
    (tmp_path / "v1" / "variant" / "zz").touch()  # nothing that can be opened as a folder

    found = cache.get_or_build(kind="variant", key="cd" * 32, build=write_one)

    assert find_damage(found) is None
