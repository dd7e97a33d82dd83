"""Files of git revisions, read through git itself: neither the work tree nor the index is touched.

`A..B` is A against B, `A...B` the commit that both come from against B, as `git diff` has it; an
empty side is HEAD.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pytest_quantgate import bounds
from pytest_quantgate.comparison.changes import DiffError
from pytest_quantgate.own_process import TooMuchOutput, run_git
from pytest_quantgate.store.disk import CODES

_RANGE = re.compile(r"(?P<before>.*?)(?P<dots>\.\.\.?)(?P<after>.*)")

_SHALLOW_HINT = (
    ": this is a shallow clone: git fetch --unshallow (in GitHub Actions: actions/checkout with "
    "fetch-depth: 0)"
)


@dataclass(frozen=True, kw_only=True)
class Range:
    """Two revisions as they were written, and the commits that are compared."""

    before: str
    after: str
    before_commit: str
    after_commit: str


def split_range(text: str) -> tuple[str, str, str] | None:
    """Return (before, dots, after) of `A..B` or `A...B`, None for a text that is neither."""
    found = _RANGE.fullmatch(text)
    if found is None or "/.." in text or text.startswith("../") or text in ("..", "..."):
        return None
    return found["before"] or "HEAD", found["dots"], found["after"] or "HEAD"


def resolve_range(text: str, *, folder: Path) -> Range:
    """Return the two commits of a range.

    Raises DiffError, with the mend, outside a repository, without git, for a revision that is not
    known here, and where two revisions have no common ancestor (as in a shallow clone).
    """
    parts = split_range(text)
    if parts is None:
        raise DiffError(f"{text!r} is no range of revisions: write A..B or A...B")
    before, dots, after = parts
    _git(["rev-parse", "--git-dir"], folder=folder)
    commits = [_resolve(name, folder=folder) for name in (before, after)]
    label = before
    if dots == "...":
        found = _call(["merge-base", *commits], folder=folder)
        if found.returncode != 0:
            raise DiffError(
                f"{before} and {after} have no common ancestor here{_SHALLOW_HINT}"
                if _is_shallow(folder)
                else f"{before} and {after} have no common ancestor: compare them directly with "
                f"{before}..{after}"
            )
        commits[0] = found.stdout.decode().strip()
        label = f"{before} at {commits[0][:10]}, where {after} left it"
    return Range(before=label, after=after, before_commit=commits[0], after_commit=commits[1])


def extract(commit: str, *, paths: Sequence[str], folder: Path, into: Path) -> list[str]:
    """Write the regular files below `paths` of a commit into a folder and return their names.

    `paths` are relative to `folder`; names are relative to the top of the repository. Paths that a
    commit does not have give no files. Links and submodules are left out.
    """
    listing = _git(
        ["ls-tree", "-r", "-z", "--long", "--full-name", commit, "--", *paths], folder=folder
    )
    wanted: list[tuple[str, str]] = []
    total = 0
    for entry in listing.split(b"\0"):
        if not entry:
            continue
        facts, _, raw = entry.partition(b"\t")
        mode, kind, object_id, size = facts.split()
        name = os.fsdecode(raw)
        if kind != b"blob" or mode not in (b"100644", b"100755"):
            continue
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise DiffError(f"{commit[:10]}: the path {name!r} leads out of the repository")
        if not size.isdigit():
            raise _refuse_missing(name, commit=commit)
        if int(size) > bounds.GIT_FILE_BYTES:
            raise DiffError(f"{commit[:10]}:{name}: {int(size)} bytes are no baseline and no suite")
        wanted.append((name, object_id.decode()))
        total += int(size)
        if len(wanted) > bounds.GIT_FILES or total > bounds.GIT_BYTES:
            raise DiffError(
                f"{commit[:10]}: {', '.join(paths)}: more than {bounds.GIT_FILES} files or "
                f"{bounds.GIT_BYTES >> 20} MiB are no baselines and no suites"
            )
    if not wanted:
        return []
    blobs = _git(
        ["cat-file", "--batch"],
        folder=folder,
        stdin="".join(f"{object_id}\n" for _, object_id in wanted).encode(),
        max_bytes=total + 200 * len(wanted),  # each has a line of its own before it
    )
    position = 0
    for path, wanted_id in wanted:
        end = blobs.index(b"\n", position)
        header = blobs[position:end].split()
        if len(header) != 3 or header[0].decode() != wanted_id:
            raise _refuse_missing(path, commit=commit)
        length = int(header[2])
        target = into / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(blobs[end + 1 : end + 1 + length])
        except OSError as error:
            if error.errno in CODES:  # a full disk, or a closed one
                raise
            raise DiffError(
                f"{commit[:10]}:{path[:100]}: cannot be unpacked: {error.strerror}"
            ) from error
        position = end + 1 + length + 1
    return [name for name, _ in wanted]


def _refuse_missing(name: str, *, commit: str) -> DiffError:
    """Return the error of a file that a partial clone lacks: nothing is fetched from here."""
    return DiffError(f"{commit[:10]}:{name} is not in this clone: clone the repository whole")


def prefix(folder: Path) -> str:
    """Return the path of a folder from the top of its repository, empty or ending with `/`."""
    return os.fsdecode(_git(["rev-parse", "--show-prefix"], folder=folder).rstrip(b"\n"))


def _resolve(name: str, *, folder: Path) -> str:
    if name.startswith("-"):
        raise DiffError(f"{name!r} is no revision")
    found = _call(["rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"], folder=folder)
    if found.returncode != 0:
        hint = _SHALLOW_HINT if _is_shallow(folder) else ""
        remote = f" or git fetch origin {name}" if "/" not in name and "~" not in name else ""
        raise DiffError(
            f"{name!r} is no commit that this repository knows{hint or f': git fetch{remote}'}"
        )
    return found.stdout.decode().strip()


def _is_shallow(folder: Path) -> bool:
    return _git(["rev-parse", "--is-shallow-repository"], folder=folder).strip() == b"true"


def _git(
    arguments: Sequence[str],
    *,
    folder: Path,
    stdin: bytes | None = None,
    max_bytes: int = bounds.GIT_LISTING_BYTES,
) -> bytes:
    found = _call(arguments, folder=folder, stdin=stdin, max_bytes=max_bytes)
    if found.returncode != 0:
        lines = found.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[0].removeprefix("fatal: ") if lines else f"status {found.returncode}"
        if "not a git repository" in reason:
            raise DiffError(f"{folder.resolve()} is in no git repository: revisions need one")
        raise DiffError(f"git {arguments[0]}: {reason}")
    return found.stdout


def _call(
    arguments: Sequence[str],
    *,
    folder: Path,
    stdin: bytes | None = None,
    max_bytes: int = bounds.GIT_LISTING_BYTES,
) -> subprocess.CompletedProcess[bytes]:
    try:
        return run_git(arguments, cwd=folder, stdin=stdin or b"", max_bytes=max_bytes)
    except TooMuchOutput as error:
        raise DiffError(
            f"git {arguments[0]}: more than {max_bytes >> 20} MiB of names: these folders hold no "
            f"baselines and no suites"
        ) from error
    except FileNotFoundError as error:
        raise DiffError("git is not installed: revisions are read through it") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DiffError(f"git {arguments[0]}: {error}") from error
