"""Files that are about to be deployed -> whether they are the ones that were judged.

A file is a judged one by its SHA-256, whatever it is called. What is called like a judged one and
is not it, weights that nobody judged, and an artifact of which a part is missing are findings.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Literal

from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.release.manifest_file import Manifest, Subject
from pytest_quantgate.untrusted import hash_file

#: How files end that hold weights, or an engine or graph with weights.
WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz"),
    *(".onnx", ".onnx_data", ".data", ".ort", ".plan", ".engine", ".trt"),
    *(".gguf", ".h5", ".msgpack", ".tflite", ".mlmodel"),
)

#: A file of this size may hold weights, however it is called.
LARGE_BYTES = 16 << 20

#: A folder to deploy has no more files than this.
MOST_FILES = 100_000

#: A folder in which no loader looks.
SKIPPED = ".git"

What = Literal["differs", "missing", "extra", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Match:
    """A file, and the name of the judged one that it is."""

    path: str
    subject: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Why the files are not those that were judged.

    `differs`: `path` is called like the judged `subject` and has another `sha256`. `missing`: the
    artifact of `subject` is there without it. `extra`: weights in `path` that nobody judged.
    `nothing`: no judged file is there at all.
    """

    what: What
    path: str = ""
    subject: str = ""
    sha256: str = ""
    judged: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found: files that were judged, differences, what could not be read and why.

    `others` are files that hold no weights and that nobody judged; `ignored` those that were not
    looked at by the user's word.
    """

    manifest: Manifest
    matches: tuple[Match, ...]
    differences: tuple[Difference, ...]
    unread: tuple[str, ...]
    others: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A file below what was named; `whole` where a folder was named, so that parts are missed."""

    path: Path
    sha256: str
    size: int
    whole: bool


def verify_files(
    paths: Sequence[Path], *, manifest: Manifest, ignored: Sequence[str] = ()
) -> Verification:
    """Return how the files in `paths` (files, folders) compare with those of a manifest.

    `ignored` are patterns of names, or of paths below a folder. Raises ArtifactError for a path
    that is not there, and for a folder of more than `MOST_FILES` files.
    """
    left_out: list[str] = []
    unread: list[str] = []
    found: list[_Found] = []
    for path, name, whole in _walk(paths, manifest=Path(manifest.path)):
        if any(fnmatchcase(each, pattern) for pattern in ignored for each in (name, path.name)):
            left_out.append(str(path))
            continue
        try:
            sha256, size = hash_file(path), path.stat().st_size
        except OSError as error:
            unread.append(f"{path}: cannot be read: {error.strerror or error}")
            continue
        found.append(_Found(path=path, sha256=sha256, size=size, whole=whole))
    matches, differences, others = _compare(found, subjects=manifest.subjects)
    return Verification(
        manifest=manifest,
        matches=tuple(matches),
        differences=tuple(differences),
        unread=tuple(unread),
        others=tuple(others),
        ignored=tuple(left_out),
    )


def _compare(
    found: Iterable[_Found], *, subjects: Sequence[Subject]
) -> tuple[list[Match], list[Difference], list[str]]:
    by_digest: dict[str, list[Subject]] = {}
    by_name: dict[str, list[Subject]] = {}
    for subject in subjects:
        by_digest.setdefault(subject.sha256, []).append(subject)
        by_name.setdefault(PurePath(subject.file).name, []).append(subject)
    matches: list[Match] = []
    differences: list[Difference] = []
    others: list[str] = []
    there, told = set[str](), set[str]()
    for file in found:
        same, called = by_digest.get(file.sha256, []), by_name.get(file.path.name, [])
        if file.whole:
            there |= {subject.name for subject in same}
            told |= {subject.name for subject in called if not same}
        if same:
            names = ", ".join(subject.name for subject in same)
            matches.append(Match(path=str(file.path), subject=names, sha256=file.sha256))
        elif called:
            differences.append(
                Difference(
                    what="differs",
                    path=str(file.path),
                    subject=", ".join(subject.name for subject in called),
                    sha256=file.sha256,
                    judged=", ".join(subject.sha256 for subject in called),
                )
            )
        elif file.path.suffix.lower() in WEIGHTS or file.size >= LARGE_BYTES:
            differences.append(Difference(what="extra", path=str(file.path), sha256=file.sha256))
        else:
            others.append(str(file.path))
    missing = _list_missing(subjects, there=there)
    differences.extend(each for each in missing if each.subject not in told)
    if not matches and not differences:
        differences.append(Difference(what="nothing"))
    return matches, differences, others


def _list_missing(subjects: Sequence[Subject], *, there: set[str]) -> Iterator[Difference]:
    """Yield the files of each artifact of which weights are there: a tokenizer alone is none."""
    begun = {s.artifact for s in subjects if s.name in there and _holds_weights(s)}
    for subject in subjects:
        if subject.artifact in begun and subject.name not in there:
            yield Difference(what="missing", subject=subject.name, judged=subject.sha256)


def _holds_weights(subject: Subject) -> bool:
    return PurePath(subject.file).suffix.lower() in WEIGHTS


def _walk(paths: Sequence[Path], *, manifest: Path) -> Iterator[tuple[Path, str, bool]]:
    """Yield each file once, its name below what was named, and whether that was a folder.

    Links are followed, as loaders do, and no folder is entered twice.
    """
    seen: set[tuple[int, int]] = set()
    count = 0
    for path in paths:
        if not path.exists():
            raise ArtifactError(f"{path}: there is nothing: name the files that will be deployed")
        if not path.is_dir():
            yield path, path.name, False
            continue
        for folder, below, names in os.walk(path, followlinks=True):
            about = Path(folder).stat()
            if (about.st_dev, about.st_ino) in seen:
                below.clear()
                continue
            seen.add((about.st_dev, about.st_ino))
            below[:] = sorted(name for name in below if name != SKIPPED)
            for name in sorted(names):
                file = Path(folder) / name
                if file.exists() and manifest.exists() and file.samefile(manifest):
                    continue
                count += 1
                if count > MOST_FILES:
                    raise ArtifactError(
                        f"{path}: more than {MOST_FILES} files: name the folders that are deployed"
                    )
                yield file, file.relative_to(path).as_posix(), True
