"""The cache is one user's alone: no link is followed, nobody else writes, nothing outside goes."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.commands.machine import check_cache
from pytest_quantgate.errors import CacheError
from pytest_quantgate.store import private
from pytest_quantgate.store.cache import Cache
from pytest_quantgate.store.looks import Ledger
from pytest_quantgate.store.private import delete, open_private, refuse_checkout
from pytest_quantgate.store.records import Look

KEY = "ab" + "0" * 62
LOOK = Look(samples=1, data_digest="1" * 64, day="2026-11-30")


def write_one(folder: Path) -> None:
    (folder / "value.json").write_text('{"one": 1}', encoding="utf-8")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(root=tmp_path / "cache")
    made.get_or_build(kind="variant", key=KEY, build=write_one)
    Ledger(made.root / "looks").add("question", LOOK)
    return made


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is laid out as if a sweep should clean it, an entry and a look in it."""
    folder = tmp_path / "outside"
    for name in (f".building-{KEY}-x", f".damaged-{KEY}-x", ".old-x"):
        (folder / "xx" / name).mkdir(parents=True)
        (folder / "xx" / name / "mine.txt").write_text("mine")
        os.utime(folder / "xx" / name, (0, 0))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def use(cache: Cache) -> None:
    """Do all that a run does with a cache: read, build, sweep, remember."""
    cache.load(kind="variant", key=KEY)
    cache.get_or_build(kind="variant", key="cd" + KEY[2:], build=write_one)
    ledger = Ledger(cache.root / "looks")
    ledger.read("question")
    ledger.add("question", LOOK)


def test_a_cache_is_closed_to_others_from_the_start(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        cache = Cache(root=tmp_path / "a" / "cache")
        use(cache)
        use(cache)
    finally:
        os.umask(before)

    folders = [cache.root, *(path for path in cache.root.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def replace_by_link(path: Path, target: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "place", ["", "v1", "v1/x", "v1/variant", "v1/variant/ab", "v1/locks", "looks"]
)
def test_a_link_in_the_cache_is_refused_and_nothing_behind_it_is_touched(
    cache: Cache, outside: Path, place: str
) -> None:
    before = contents(outside)
    path = cache.root / place if place else cache.root
    replace_by_link(path, outside)

    with pytest.raises(CacheError) as caught:
        use(cache)

    assert str(caught.value) == (
        f"the cache folder {path} is a link, which is not followed: name the folder itself with "
        f"--quantgate-cache-dir=DIR, or rm {path}"
    )
    assert contents(outside) == before
    assert cache.read(kind="variant", key=KEY, name="value.json") is None or "ab" not in place


def test_a_link_among_the_looks_of_a_question_is_refused(cache: Cache, outside: Path) -> None:
    (folder,) = (cache.root / "looks").iterdir()
    replace_by_link(folder, outside)

    for act in (
        lambda ledger: ledger.read("question"),
        lambda ledger: ledger.add("question", LOOK),
    ):
        with pytest.raises(CacheError, match="is a link"):
            act(Ledger(cache.root / "looks"))  # type: ignore[no-untyped-call]
    assert not list(outside.glob("*.json"))


def test_a_link_in_the_place_of_what_a_killed_run_left_goes_alone(
    cache: Cache, outside: Path
) -> None:
    before = contents(outside)
    folder = cache.root / "v1" / "variant" / "ab"
    names = [f".building-{KEY}-x", f".damaged-{KEY}-y", f".building-{'cd' * 32}-z"]
    for name in names:
        (folder / name).symlink_to(outside)
    (folder / f".building-{KEY}-deep").mkdir()
    (folder / f".building-{KEY}-deep" / "link").symlink_to(outside)

    use(cache)

    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert contents(outside) == before


def test_a_link_in_the_place_of_a_lock_empties_no_file(cache: Cache, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    key = "cd" + KEY[2:]
    path = cache.root / "v1" / "locks" / f"variant-{key}.lock"
    path.symlink_to(victim)

    cache.get_or_build(kind="variant", key=key, build=write_one)

    assert victim.read_text() == "mine"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777, 0o2775])
@pytest.mark.parametrize("place", ["", "v1", "v1/variant/ab"])
def test_a_cache_that_others_may_write_is_refused(cache: Cache, mode: int, place: str) -> None:
    path = cache.root / place if place else cache.root
    path.chmod(mode)

    with pytest.raises(CacheError) as caught:
        use(cache)

    assert str(caught.value) == (
        f"the cache folder {path} may be written by others (mode {mode:04o}), who could decide "
        f"what ships: chmod -R go-w {cache.root}, or rm -r it where you do not know all of them"
    )
    if not place:
        assert check_cache(cache.root).state == "BROKEN"
    path.chmod(mode & ~0o022)
    use(cache)
    assert check_cache(cache.root).state != "BROKEN"


def test_a_cache_of_another_user_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private.os, "geteuid", lambda: cache.root.stat().st_uid + 1)  # type: ignore[attr-defined]

    with pytest.raises(CacheError, match=r"belongs to user \d+, not to user \d+ who runs this"):
        use(cache)


def test_what_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path / "gone" / "cache")

    assert cache.load(kind="variant", key=KEY) is None
    assert Ledger(cache.root / "looks").read("question") == ()
    assert check_cache(cache.root).state != "BROKEN"
    assert not cache.root.parent.exists()


def test_delete_follows_no_link(tmp_path: Path, outside: Path) -> None:
    before = contents(outside)
    inner = tmp_path / "home" / "folder"
    inner.mkdir(parents=True)
    (inner / "link").symlink_to(outside)
    (tmp_path / "home" / "link").symlink_to(outside)
    with open_private(tmp_path / "home") as folder:
        for name in ("folder", "link", "gone"):
            delete(name, folder=folder)

    assert not list((tmp_path / "home").iterdir())
    assert contents(outside) == before


@pytest.mark.parametrize(
    ("plant", "inside"),
    [
        (lambda root: (root / ".git").mkdir(), True),
        (lambda root: (root / ".git").write_text("gitdir: elsewhere"), True),
        (lambda root: None, False),
    ],
)
def test_a_cache_in_a_checkout_is_found(
    tmp_path: Path, plant: Callable[[Path], Any], inside: bool
) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    plant(checkout)
    (tmp_path / "linked").symlink_to(checkout)
    for place in (checkout, checkout / "a" / "cache", tmp_path / "linked" / "cache"):
        if inside:
            with pytest.raises(CacheError, match=r"lies in the checkout .*checkout, where a pull"):
                refuse_checkout(place)
        else:
            refuse_checkout(place)
    refuse_checkout(tmp_path / "cache")
