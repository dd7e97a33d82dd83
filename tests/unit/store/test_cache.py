"""The cache: what is read is whole, what is damaged is built again, what fails leaves nothing."""

from __future__ import annotations

import errno
import json
import re
import threading
from pathlib import Path

import pytest

from pytest_quantgate.errors import CacheError
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
