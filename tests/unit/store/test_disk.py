"""A disk that is full, read-only or limited: one error that says so, and no half of a file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_quantgate.commands import init
from pytest_quantgate.errors import (
    CacheError,
    ModelError,
    QuantGateError,
    SuiteError,
    WriteError,
)
from pytest_quantgate.report.files import append_to, replace_file
from pytest_quantgate.store.baselines import write_atomically
from pytest_quantgate.store.disk import (
    describe_write_error,
    find_write_error,
    mend_write_error,
    probe,
    refuse_links,
    temporary_folder,
    write_whole,
)

resource = pytest.importorskip("resource", reason="the limit on file sizes is of POSIX")

#: Writes with each library more than a limit on file sizes lets through, and prints what it raised
#: and what we make of it.
LIBRARIES = """\
import resource, sys
from pathlib import Path

import numpy, onnx, torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file

from pytest_quantgate.errors import WriteError
from pytest_quantgate.store.disk import temporary_folder

values = torch.zeros(100_000)
graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(values.numpy(), "w")])
model = helper.make_model(graph)
ACTIONS = {
    "torch": lambda to: torch.save({"a": values}, to),
    "safetensors": lambda to: save_file({"a": values}, to),
    "numpy": lambda to: numpy.save(to.with_suffix(".npy"), values.numpy()),
    "onnx": lambda to: onnx.save(model, to),
    "python": lambda to: to.write_bytes(bytes(400_000)),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name, act in ACTIONS.items():
    try:
        with temporary_folder() as folder:
            act(folder / "file")
    except WriteError as error:
        print(name, type(error.__cause__).__name__, error)
    assert not folder.exists()
"""


@pytest.mark.slow
def test_every_library_says_it_in_its_own_way_and_we_in_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )

    assert done.returncode == 0, done.stderr
    said = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert [name for name, *_ in said] == ["torch", "safetensors", "numpy", "onnx", "python"]
    assert {kind for _, kind, _ in said} >= {"RuntimeError", "SafetensorError", "OSError"}
    assert {words for *_, words in said} == {
        f"cannot write temporary files under {tmp_path}: File too large (files may have 100000 "
        f"bytes here); raise the limit: ulimit -f unlimited"
    }
    assert list(tmp_path.iterdir()) == []


def raised(error: Exception, *, cause: Exception | None = None) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FULL, errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (OSError(errno.EROFS, "Read-only file system", "FOLDER/a"), errno.EROFS),
        (ValueError("serializing: I/O error: No space left (os error 28)"), errno.ENOSPC),
        (ModelError("cannot be restored: File too large (os error 27)"), errno.EFBIG),
        (raised(ModelError("cannot write the checkpoint"), cause=FULL), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected"), errno.ENOSPC),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), errno.ENOSPC),
        (OSError("600000 requested and 24968 written"), errno.ENOSPC),
        (OSError(errno.EACCES, "Permission denied", "/elsewhere/a"), None),
        (OSError(errno.ENOENT, "No such file or directory"), None),
        (ValueError("I/O error: Permission denied (os error 13)"), None),
        (ValueError("a mistake of ours"), None),
        (ModelError("the weights hold NaN"), None),
    ],
)
def test_a_write_error_is_told_from_others(
    tmp_path: Path, error: Exception, code: int | None
) -> None:
    if isinstance(error, OSError) and error.filename == "FOLDER/a":
        error.filename = str(tmp_path / "a")
    found = find_write_error(error, folder=tmp_path)

    assert (found.errno if found is not None else None) == code


def test_an_error_without_a_reason_is_asked_of_the_folder(tmp_path: Path) -> None:
    """Such as half a profile of ONNX Runtime, which is no JSON."""
    gone = tmp_path / "gone"

    assert probe(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    found = find_write_error(ValueError("Expecting ',' delimiter"), folder=gone)
    assert found is not None
    assert found.errno == errno.ENOENT


def test_numbers_tell_what_there_is_room_for(tmp_path: Path) -> None:
    full = describe_write_error(FULL, folder=tmp_path / "not" / "there")

    assert full.startswith("No space left on device (free without it: ")
    assert full.endswith(" MB)")
    assert describe_write_error(OSError(errno.EROFS, "Read-only file system"), folder=tmp_path) == (
        "Read-only file system"
    )


def fail(error: Exception) -> Callable[..., None]:
    def raise_it(*_arguments: object, **_options: object) -> None:
        raise error

    return raise_it


def test_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    monkeypatch.setattr(tempfile, "gettempdir", fail(tried))

    with pytest.raises(
        WriteError, match=r"in \['/tmp'\]: free space in one of them, or set TMPDIR=DIR"
    ):
        temporary_folder().__enter__()


def test_no_room_for_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", fail(FULL))

    with pytest.raises(WriteError, match=r"cannot write temporary files under .*No space left"):
        temporary_folder().__enter__()


@pytest.mark.parametrize("error", [CacheError("the cache"), ValueError("a mistake of ours")])
def test_what_is_no_fault_of_the_folder_passes_through_a_temporary_one(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, temporary_folder() as folder:
        raise error

    assert caught.value is error
    assert not folder.exists()


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.chmod", "pathlib.Path.replace"])
def test_a_file_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "folder" / "file"
    write_whole(path, b"old")
    with monkeypatch.context() as patched:
        patched.setattr(step, fail(FULL))
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, b"new", durable=True)

    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
    write_whole(path, b"new", durable=True)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Let no file grow over so many bytes: a disk that is full at some byte of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "report": lambda path, text: replace_file(path, text, kind="markdown", option="--x"),
    "baseline": lambda path, text: write_atomically(path, text, root=path.parent),
    "step summary": append_to,
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_half_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    old = "<!-- pytest-quantgate report -->"
    path.write_text(old, encoding="utf-8")

    with limited(1000), pytest.raises(QuantGateError) as caught:
        WRITERS[name](path, "x" * 5000)

    assert path.read_text(encoding="utf-8") == old
    assert list(tmp_path.iterdir()) == [path]
    assert f"{path}: File too large (files may have 1000 bytes here)" in str(caught.value)
    WRITERS[name](path, "new")
    assert path.read_text(encoding="utf-8").endswith("new")


def test_no_half_of_a_new_suite_is_left(tmp_path: Path) -> None:
    path = tmp_path / "suites" / "new.quantgate.yaml"

    with limited(1000), pytest.raises(SuiteError, match="File too large"):
        init._write(path, "x" * 5000)

    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "size", "words"),
    [
        (errno.EROFS, resource.RLIM_INFINITY, "it is read-only or another user's: choose a folder"),
        (errno.EFBIG, 1000, "raise the limit: ulimit -f unlimited"),
        (errno.EFBIG, resource.RLIM_INFINITY, "free space there or choose another folder with -o"),
    ],
)
def test_what_to_do_is_said_of_each(
    code: int, size: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (size, size))

    assert mend_write_error(OSError(code, "x"), option="-o").startswith(words)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert "ulimit" not in mend_write_error(OSError(code, "x"), option="-o")


def test_a_temporary_folder_that_fills_is_named() -> None:
    with pytest.raises(WriteError, match="No space left"), temporary_folder() as folder:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "a"))


def test_the_home_of_a_user_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links there are the user's own; in a checkout a pull request may have put them."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)

    refuse_links(tmp_path / "link" / "x")
    (tmp_path / ".git").mkdir()
    with pytest.raises(OSError, match="it is a link, and nothing is written through one"):
        refuse_links(tmp_path / "link" / "x")
