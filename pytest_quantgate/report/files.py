"""Where reports go: checked before a run starts, written whole at its end, nobody else's file.

A report replaces an earlier report of this product and nothing else: each kind begins with words
that no other file has.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pytest_quantgate.errors import ReportError
from pytest_quantgate.report import FORMAT, PREDICATE_TYPE
from pytest_quantgate.store.disk import describe_write_error, refuse_links, write_whole
from pytest_quantgate.store.settings import Targets

Kind = Literal[
    "html",
    "markdown",
    "json",
    "manifest",
    "junit",
    "check-json",
    "check-markdown",
    "diff-html",
    "diff-markdown",
    "sensitivity-json",
    "sensitivity-svg",
    "recipe",
    "sweep-json",
    "sweep-svg",
    "history-json",
]

#: What each kind of file has in its first `HEAD_BYTES`.
MARKS: Mapping[Kind, str] = {
    "html": '<meta name="generator" content="pytest-quantgate',
    "markdown": "<!-- pytest-quantgate report",
    "json": f'"format": "{FORMAT}"',
    "manifest": f'"predicateType": "{PREDICATE_TYPE}"',
    "junit": '<testsuites name="pytest-quantgate"',
    "check-json": '{\n  "schema": 1,\n  "check": ',
    "check-markdown": "### Quantized files: ",
    "diff-html": "<title>Model change</title>",
    "diff-markdown": "### Model change: ",
    "sensitivity-json": '{\n "format": 1,\n "suite": ',
    "recipe": "# Made by `quantgate repair` from ",
    "sensitivity-svg": 'aria-label="Noise that each group of quantizers adds alone"',
    "sweep-json": '{\n "format": 1,\n "sweep": ',
    "sweep-svg": 'aria-label="Drop of each recipe over its size"',
    "history-json": '{\n "format": 1,\n "runs": ',
}
HEAD_BYTES = 1024

HTML_NAME = "index.html"
JSON_NAME = "report.json"
MARKDOWN_NAME = "report.md"
JUNIT_NAME = "junit.xml"
MANIFEST_NAME = "manifest.json"

#: What is put behind the name of a manifest of an earlier run that this run does not confirm.
PREVIOUS = ".previous"


#: A file that is written whole: its path, what it is, and the option that asks for it.
File = tuple[Path, Kind, str]


def list_files(targets: Targets) -> tuple[File, ...]:
    """Return every file of a run that is written whole."""
    found: list[File] = []
    if targets.directory:
        found.append((targets.directory / HTML_NAME, "html", "--quantgate-report"))
        found.append((targets.directory / JSON_NAME, "json", "--quantgate-report"))
        found.append((targets.directory / MANIFEST_NAME, "manifest", "--quantgate-report"))
    if targets.markdown:
        found.append((targets.markdown, "markdown", "--quantgate-markdown"))
    if targets.json:
        found.append((targets.json, "json", "--quantgate-json"))
    if targets.manifest:
        found.append((targets.manifest, "manifest", "--quantgate-manifest"))
    return tuple(found)


def check_targets(targets: Targets, *, root: Path | None = None) -> None:
    """Raise ReportError where a report could not be written, before the run takes its time.

    `root` is that of the run: inside it, nothing is written through a link.
    """
    if targets.directory and os.path.lexists(targets.directory) and not targets.directory.is_dir():
        raise ReportError(
            f"--quantgate-report={targets.directory}: this is a file: name a folder, which will "
            f"hold {HTML_NAME} and {JSON_NAME}"
        )
    files = list_files(targets)
    for path, kind, option in files:
        _refuse_links(path, option=option, root=root)
        check_file(path, kind=kind, option=option)
        for other, other_kind, other_option in files:
            if path == other and kind != other_kind:
                raise ReportError(f"{path}: {option} and {other_option} name the same file")


def _refuse_links(path: Path, *, option: str, root: Path | None) -> None:
    try:
        refuse_links(path, root=root)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise ReportError(f"{option}: {path} cannot be written: {error.strerror}") from error
        raise ReportError(
            f"{option}: {path} cannot be written: {error.filename} is a link inside the checkout, "
            f"through which nothing is written: name another place"
        ) from error


def check_file(path: Path, *, kind: Kind, option: str) -> None:
    """Raise ReportError where `path` is no file of ours to replace, or cannot be written."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # what it needs is looked at below
    except OSError as error:
        raise ReportError(f"{option}: {path} cannot be written: {error.strerror}") from error
    if os.path.lexists(path):
        if path.is_dir():
            raise ReportError(f"{option}: {path} is a folder: name a file")
        if path.is_symlink() or not path.is_file():
            raise ReportError(f"{option}: {path} is no regular file: name another one")
        if not is_ours(path, kind=kind):
            raise ReportError(
                f"{option}: {path} was not written by pytest-quantgate and is left as it is: "
                f"choose another place, or move it away"
            )
    parent = path.parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise ReportError(f"{option}: {path} cannot be written: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ReportError(f"{option}: {path} cannot be written: no right to write in {parent}")


def is_ours(path: Path, *, kind: Kind) -> bool:
    """Return whether a file is empty or begins like a report of this kind."""
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return False
    return not head or MARKS[kind].encode() in head


def replace_file(path: Path, text: str, *, kind: Kind, option: str) -> None:
    """Write a report as a whole; raises ReportError and leaves what was there."""
    _refuse_links(path, option=option, root=None)
    check_file(path, kind=kind, option=option)
    try:
        write_whole(path, encode(text))
    except OSError as error:
        reason = describe_write_error(error, folder=path.parent)
        raise ReportError(f"{option}: cannot write {path}: {reason}") from error


def set_manifests_aside(files: Iterable[File]) -> tuple[Path, ...]:
    """Rename the manifests of earlier runs (`.previous`) and return where they were.

    Done before a run judges: whatever ends it, nobody takes yesterday's manifest for its own. What
    this product did not write is left, and `check_file` has refused it. Raises ReportError.
    """
    moved = []
    for path, kind, option in files:
        if kind != "manifest" or not os.path.lexists(path):
            continue
        aside = path.with_name(path.name + PREVIOUS)
        check_file(aside, kind=kind, option=option)
        try:
            path.replace(aside)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ReportError(f"{option}: cannot rename {path} to {aside}: {reason}") from error
        moved.append(path)
    return tuple(moved)


def append_to(path: Path, text: str) -> None:
    """Append to the step summary of a CI job, all or nothing; raises ReportError."""
    try:
        with path.open("ab", buffering=0) as out:
            before = out.tell()
            data = memoryview(b"\n" + encode(text))
            try:
                while data:
                    data = data[out.write(data) :]
            except OSError:
                out.truncate(before)
                raise
    except OSError as error:
        reason = describe_write_error(error, folder=path.parent)
        raise ReportError(f"cannot write the step summary {path}: {reason}") from error


def encode(text: str) -> bytes:
    """Return UTF-8; a file name that is none shows as the escapes of its bytes."""
    return text.encode("utf-8", "backslashreplace")


def find_step_summary(environ: Mapping[str, str]) -> Path | None:
    """Return the step summary of the CI job that this runs in."""
    name = environ.get("GITHUB_STEP_SUMMARY", "")
    return Path(name) if name else None
