"""A store that cannot be written, or is another user's, and what others work in."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantgate.errors import BaselineError, CacheError
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.cache import Cache, find_damage
from tests.integration.fault_actions import make_record

KEY = "ab" * 32


def test_what_a_running_build_works_in_is_not_swept(tmp_path: Path) -> None:
    """Another process builds; a nested build, as measuring starts it, sweeps meanwhile."""
    cache = Cache(root=tmp_path)
    other = f"""\
import sys, time
from pathlib import Path
from pytest_quantgate.store.cache import Cache

def build(folder):
    (folder / "a").write_text("a")
    print("building", flush=True)
    sys.stdin.readline()

Cache(root=Path({str(tmp_path)!r})).get_or_build(kind="variant", key="{KEY}", build=build)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"

    def outer(folder: Path) -> None:
        (folder / "b").write_text("b")
        cache.get_or_build(kind="variant", key="cd" * 32, build=lambda f: (f / "c").write_text("c"))  # type: ignore[arg-type]
        assert (folder / "b").exists()

    cache.get_or_build(kind="outcomes", key="ef" * 32, build=outer)
    process.communicate("go on\n", timeout=30)

    assert process.returncode == 0
    assert cache.load(kind="variant", key=KEY) is not None
    assert cache.load(kind="outcomes", key="ef" * 32) is not None


def test_old_folders_without_a_name_go_by_their_age(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)
    young, old = (tmp_path / "v1" / "variant" / "ab" / f".{n}-x" for n in ("young", "old"))
    for folder in (young, old):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"w")
    os.utime(old, (time.time() - 25 * 3600,) * 2)

    cache.get_or_build(kind="variant", key=KEY, build=lambda f: None)

    assert young.exists()
    assert not old.exists()


# -- a place that cannot be written ----------------------------------------------------------------


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a function of a module fail with an errno."""

    def install(module: str, code: int) -> None:
        def fail(*_arguments: object, **_options: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(module, fail)

    return install


@pytest.mark.parametrize("step", ["tempfile.mkdtemp", "os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "free space there or choose another folder with"),
        (errno.EROFS, "Read-only file system; it is read-only or another user's: choose a folder"),
        (errno.EACCES, "Permission denied; it is read-only or another user's: choose a folder"),
    ],
)
def test_a_cache_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, fails: Callable[..., None], step: str, code: int, words: str
) -> None:
    cache = Cache(root=tmp_path)
    fails(step, code)

    with pytest.raises(CacheError, match="cannot write the cache under") as caught:
        cache.get_or_build(kind="variant", key=KEY, build=lambda f: (f / "a").write_text("a"))  # type: ignore[arg-type]

    assert words in str(caught.value)
    assert "--quantgate-cache-dir=DIR" in str(caught.value)
    assert list(tmp_path.glob("v1/variant/*/*")) == []


def test_a_cache_of_another_user_is_refused_and_left_alone(
    request: pytest.FixtureRequest,
) -> None:
    """Whoever writes it decides what ships, whole or damaged."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as two users")
    # pytest's own folders are closed to others.
    root = Path(tempfile.mkdtemp())
    request.addfinalizer(lambda: shutil.rmtree(root))
    cache = Cache(root=root)
    entry = cache.get_or_build(kind="variant", key=KEY, build=lambda f: (f / "a").write_text("a"))  # type: ignore[arg-type]
    for path in (root, *root.rglob("*")):
        path.chmod(0o755)
    code = f"""\
import os
from pathlib import Path
from filelock import FileLock
from pytest_quantgate.store.cache import Cache
from pytest_quantgate.errors import CacheError
os.setgid(65534); os.setuid(65534)
cache = Cache(root=Path({str(root)!r}))
build = lambda folder: (folder / "a").write_text("b")
for key in ("{KEY}", "{"ef" * 32}"):
    for act in (cache.load, lambda **names: cache.get_or_build(**names, build=build)):
        try:
            act(kind="variant", key=key)
        except CacheError as error:
            print(error)
assert cache.read(kind="variant", key="{KEY}", name="a") is None
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == 4 * [
        f"the cache folder {root} belongs to user 0, not to user 65534 who runs this: choose a "
        f"folder of your own with --quantgate-cache-dir=DIR"
    ]
    assert find_damage(entry) is None


def test_a_baseline_folder_that_cannot_be_written_keeps_what_it_has(
    tmp_path: Path, fails: Callable[..., None]
) -> None:
    store = Store(tmp_path)
    path = store.write(make_record("old"))
    before = path.read_bytes()
    fails("tempfile.mkstemp", errno.EROFS)

    with pytest.raises(BaselineError, match="Read-only file system; what was there is unchanged"):
        store.write(make_record("new"))

    assert path.read_bytes() == before
