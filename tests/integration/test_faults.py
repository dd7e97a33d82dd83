"""Killed, out of space, read-only, two at once: what was accepted stays, what is half is not read.

The long version, 200 kills at random moments, is `benchmarks/faults.py`.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.cache import Cache, find_damage
from tests.integration.fault_actions import build, make_record

REPOSITORY = Path(__file__).parents[2]
KEY = "ab" * 32

# Runs one action in forked processes, the n-th of which dies at the n-th step that touches a file
# (before and after each call): no `finally` runs, no buffer is flushed. Prints the steps.
DIE_AT_EVERY_STEP = """\
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import filelock  # an import opens files too, and is no step of ours
from tests.integration.fault_actions import ACTIONS

filelock.FileLock

prepare, act = ACTIONS[{action!r}]
root = Path({root!r})
STEPS = (
    "open", "write", "flush", "close", "__exit__", "fsync", "replace", "rename", "mkdir", "chmod",
    "unlink", "rmdir",
)


def run(folder, last):
    count = 0

    def watch(_frame, event, called):
        nonlocal count
        if event in ("c_call", "c_return") and getattr(called, "__name__", "") in STEPS:
            count += 1
            if count == last:
                os._exit(9)

    sys.setprofile(watch)
    act(folder)
    os._exit(0)


last, died = 0, True
while died:
    last += 1
    folder = root / str(last)
    folder.mkdir()
    prepare(folder)
    child = os.fork()
    if not child:
        try:
            run(folder, last)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    died = status == 9
print(last - 1)
"""


def die_at_every_step(action: str, *, root: Path) -> list[Path]:
    """Return the folders that the killed processes left behind, one a step."""
    code = DIE_AT_EVERY_STEP.format(tests=str(Path(__file__).parent), action=action, root=str(root))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    return [root / str(number) for number in range(1, steps + 1)]


@pytest.mark.parametrize("action", ["update", "accept"])
def test_a_baseline_is_the_old_or_the_new_one_at_every_step(tmp_path: Path, action: str) -> None:
    folders = die_at_every_step(action, root=tmp_path)

    assert len(folders) > 5
    seen = []
    for folder in folders:
        store = Store(folder / "baselines")
        record = store.read("demo", "scenes/classification-acc1")
        assert record is not None
        seen.append(record.reason)
        assert record.reason in ("old", "new")
        assert len(store.list_files()) == 1  # a temporary file is no baseline
    assert {"old", "new"} <= set(seen)
    assert seen == sorted(seen, reverse=True)  # once new, never old again


def test_leftovers_of_a_killed_write_go_when_they_are_old(tmp_path: Path) -> None:
    left = [
        path for folder in die_at_every_step("update", root=tmp_path)
        for path in folder.rglob(".writing-*")
    ]  # fmt: skip
    assert left
    store = Store(left[0].parents[1])

    store.write(make_record("newer"))
    assert left[0].exists()  # it could be of a run that still writes
    os.utime(left[0], (time.time() - 4000,) * 2)
    store.write(make_record("newest"))

    assert [path.name for path in left[0].parent.iterdir()] == [
        store.path("demo", "scenes/classification-acc1").name
    ]


@pytest.mark.parametrize("action", ["build", "repair"])
def test_a_cache_entry_is_whole_or_absent_at_every_step(tmp_path: Path, action: str) -> None:
    folders = die_at_every_step(action, root=tmp_path)

    assert len(folders) > 10
    states, warnings = set(), list[str]()
    for folder in folders:
        cache = Cache(root=folder / "cache", warn=warnings.append)
        found = cache.load(kind="variant", key=KEY)
        states.add("absent" if found is None else "whole")
        if found is not None:
            assert (found / "checkpoint" / "weights").read_bytes() == b"w" * 100_000
        again = cache.get_or_build(kind="variant", key=KEY, build=build)
        assert find_damage(again) is None
        cache.get_or_build(kind="variant", key="cd" * 32, build=build)
        assert list(folder.glob("cache/v1/*/*/.*-*")) == []
    assert states == {"absent", "whole"}
    # A killed build leaves no damaged entry in its place; one that was there may still be.
    assert action == "repair" or warnings == []


# -- kills at random moments -----------------------------------------------------------------------


@pytest.mark.parametrize("part", ["baseline files", "cache entries"])
def test_kills_at_random_moments_lose_nothing(part: str) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/faults.py", "--trials", "4", "--only", part],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    name, *figures = done.stdout.splitlines()[1].rsplit(maxsplit=7)
    assert name.strip() == part
    assert figures[:2] == ["4", "4"]  # trials, killed
    assert figures[3:] == ["0", "0", "0", "0"]


# -- a disk that fills while a run builds ---------------------------------------------------------

#: Limits the size of files, as a full disk does at some byte.
WITH_LIMIT = """\
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
"""
LEAVE_OUT = ("  roundtrip: {}\n", "  fidelity: {data: scenes/test, samples: 32, min_cosine: 0.5}\n")


def check_one_message(status: int, text: str, *, cache: Path) -> None:
    """One gate says it with what to do, the others refer to it; nothing half-written is left."""
    assert status == pytest.ExitCode.TESTS_FAILED, text
    assert "Traceback" not in text
    assert "Error:" not in text
    failures = [line for line in text.splitlines() if line.startswith("FAIL cannot write")]
    assert len(failures) == 1, text
    assert f"cannot write the cache under {cache}: " in failures[0]
    assert "coverage.unwritable" in failures[0]
    assert text.count("nothing could be written: the coverage gate says where") >= 2
    assert list(cache.glob("v1/*/*/.*")) == []
    assert list(cache.rglob(".saving-*")) == []


def test_a_file_that_becomes_too_large_is_one_message(
    pytester: pytest.Pytester,
    write_suite: Callable[..., Path],
    run_forked: Callable[..., pytest.RunResult],
    tmp_path: Path,
) -> None:
    pytest.importorskip("resource", reason="the limit on file sizes is of POSIX")
    write_suite(replace=dict.fromkeys(LEAVE_OUT, ""))
    pytester.makeconftest(WITH_LIMIT)
    cache = tmp_path / "cache"

    result = run_forked("suites", "-p", "no:randomly", f"--quantgate-cache-dir={cache}")

    text = result.stdout.str() + result.stderr.str()
    check_one_message(int(result.ret), text, cache=cache)
    assert "File too large (files may have 100000 bytes here); raise the limit: ulimit -f" in text


def test_a_full_disk_is_one_message_and_the_run_goes_through_once_there_is_room(
    pytester: pytest.Pytester,
    write_suite: Callable[..., Path],
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        write_suite(replace=dict.fromkeys(LEAVE_OUT, ""))
        arguments = ("suites", "-p", "no:randomly", f"--quantgate-cache-dir={disk / 'cache'}")
        report = disk / "report"
        (disk / "full").write_bytes(b"x" * 60_000)

        result = pytester.runpytest_inprocess(*arguments, f"--quantgate-report={report}")

        text = result.stdout.str() + result.stderr.str()
        check_one_message(int(result.ret), text, cache=disk / "cache")
        assert "No space left on device (free without it: 0.1 MB of 0.2 MB)" in text
        assert not list(report.glob("*.writing*"))

        remount = ["mount", "-o", "remount,size=100m", str(disk)]
        subprocess.run(remount, check=True)
        result = pytester.runpytest_inprocess(*arguments, "--quantgate-baselines=create")
        assert result.ret == pytest.ExitCode.OK
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        result = pytester.runpytest_inprocess(*arguments)  # all of it is there to be read
        assert result.ret == pytest.ExitCode.OK
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# -- two runs at once ------------------------------------------------------------------------------

COUNT_BUILDS = """\
import os
from pathlib import Path
from pytest_quantgate.store.cache import Cache

LOG = Path(__file__).with_name("builds.log")
build_one = Cache._build


def counted(self, *, kind, key, build):
    with LOG.open("a") as log:
        log.write(f"{kind} {key}\\n")
    return build_one(self, kind=kind, key=key, build=build)


Cache._build = counted
"""


def test_two_runs_at_once_build_everything_once(
    pytester: pytest.Pytester, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    """One with two workers, one without, on one empty cache and one folder of baselines."""
    leave_out = ("  roundtrip: {}\n", "  calibration: {max_clipped: 20%}\n")  # they take only time
    write_suite(replace=dict.fromkeys(leave_out, ""))
    pytester.makeconftest(COUNT_BUILDS)
    command = [
        sys.executable, "-m", "pytest", "suites", "-p", "no:randomly", "--color=no",
        f"--quantgate-cache-dir={tmp_path / 'cache'}", "--quantgate-baselines=create",
    ]  # fmt: skip
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}

    runs = [
        subprocess.Popen(
            [*command, *more],
            cwd=pytester.path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # Sanity and four gates, so that several workers ask for the variant at once.
        for more in ([], ["-n", "2"])
    ]
    outputs = [run.communicate(timeout=400)[0] for run in runs]

    for run, output in zip(runs, outputs, strict=True):
        assert run.returncode == 0, output
        assert "5 passed" in output
        assert "damaged" not in output
    assert "2 workers [5 items]" in outputs[1]
    builds = (pytester.path / "builds.log").read_text().splitlines()
    assert len(builds) == len(set(builds)), builds
    assert sum(line.startswith("variant ") for line in builds) == 1
    assert len(list((pytester.path / "baselines" / "suites" / "tiny").glob("*.json"))) == 1
    assert Store(pytester.path / "baselines").read("suites/tiny", "scenes/classification-acc1")
    assert list((tmp_path / "cache").glob("v1/*/*/.*-*")) == []


def test_a_suite_name_that_can_be_no_folder_has_a_place_all_the_same(
    pytester: pytest.Pytester,
    write_suite: Callable[..., Path],
    run_gates: Callable[..., pytest.RunResult],
) -> None:
    write_suite(name="my süite")

    created = run_gates("-k", "regression", "--quantgate-baselines=create")
    checked = run_gates("-k", "regression")

    created.stdout.fnmatch_lines(["baseline written: baselines/suites/my-s-ite-*/regression-*"])
    checked.assert_outcomes(passed=1)
    checked.stdout.no_fnmatch_line("*orphan*")
    (stored,) = (pytester.path / "baselines").rglob("*.json")
    assert stored.parent.name.isascii()


def test_an_orphan_that_cannot_be_deleted_fails_the_run(
    pytester: pytest.Pytester,
    write_suite: Callable[..., Path],
    run_gates: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_suite()
    orphan = Store(pytester.path / "baselines").write(make_record("old"))  # of no suite here
    kept = pytester.path / "baselines" / "package.json"  # not of ours, wherever it lies
    kept.write_text("{}")
    unlink = Path.unlink

    def refuse(path: Path, **options: bool) -> None:
        if path == orphan:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        unlink(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        result = run_gates("-k", "coverage", "--quantgate-baselines=prune")
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"cannot delete {orphan}: Read-only file system" in text
    assert "INTERNALERROR" not in text

    assert run_gates("-k", "coverage", "--quantgate-baselines=prune").ret == pytest.ExitCode.OK
    assert not orphan.exists()
    assert kept.exists()
