"""Reads the manifest of a run that passed; signatures are checked by whoever made them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import ArtifactError, ReportError
from pytest_quantgate.report import PREDICATE_TYPE
from pytest_quantgate.report.json_report import read_sealed_report
from pytest_quantgate.report.manifest import STATEMENT_TYPE
from pytest_quantgate.untrusted import parse_json, read_regular

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A file that was judged: its SHA-256 (hex), and which artifact of which suite it is a part of.

    `name` is unique in its manifest, `file` is the file's name in the artifact.
    """

    name: str
    artifact: str
    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was judged, and in a manifest may ship: the sentence of the verdict, when, by which
    release."""

    path: str
    sentence: str
    created: str
    version: str
    subjects: tuple[Subject, ...]


def read_manifest(path: Path) -> Manifest:
    """Return a manifest; raises ArtifactError for what is none, is damaged, or did not pass."""
    try:
        data = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: this is no JSON: {str(error)[:200]}") from error
    if not isinstance(data, dict) or data.get("_type") != STATEMENT_TYPE:
        raise ArtifactError(
            f"{path}: this is no in-toto statement (_type {STATEMENT_TYPE}): name the file of "
            f"--quantgate-manifest"
        )
    if data.get("predicateType") != PREDICATE_TYPE:
        raise ArtifactError(
            f"{path}: a statement of {str(data.get('predicateType'))[:80]!r}, here "
            f"{PREDICATE_TYPE} is known"
        )
    try:
        return _read(data, path=path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path}: damaged manifest: {what}") from error


def read_judged(path: Path) -> Manifest:
    """Return the files that a result (a JSON report) is of, whatever its verdict.

    Raises ReportError for what is no report, was edited after it was written, or is of an older
    release, which does not name its files.
    """
    try:
        content = read_regular(path, max_bytes=bounds.JSON_BYTES)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror or error}") from error
    report = read_sealed_report(content, name=str(path))
    return Manifest(
        path=str(path),
        sentence=report.conclusion.sentence,
        created=report.created,
        version=report.product_version,
        subjects=tuple(
            Subject(
                name=f"{suite.name}/{file.artifact}/{file.name}",
                artifact=f"{suite.name}/{file.artifact}",
                file=file.name,
                sha256=file.sha256,
            )
            for suite in report.suites
            for file in suite.files
        ),
    )


def _read(data: Mapping[str, Any], *, path: Path) -> Manifest:
    predicate = data["predicate"]
    status = predicate["conclusion"]["status"]
    if status != "PASS":
        raise ValueError(f"its verdict is {str(status)[:40]}, and only PASS may ship")
    digests = {}
    for subject in data["subject"]:
        name, digest = subject["name"], subject["digest"]["sha256"]
        if not isinstance(name, str) or name in digests:
            raise ValueError(f"subject {str(name)[:80]!r} is no name, or stands twice")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError(f"subject {name[:80]!r} has no SHA-256")
        digests[name] = digest
    subjects = []
    for suite in predicate["suites"]:
        for artifact, files in suite["artifacts"].items():
            for file in files:
                name = f"{suite['name']}/{artifact}/{file}"
                subjects.append(
                    Subject(
                        name=name,
                        artifact=f"{suite['name']}/{artifact}",
                        file=file,
                        sha256=digests.pop(name),
                    )
                )
    for name in digests:
        raise ValueError(f"subject {name[:80]!r} is part of no artifact")
    if not subjects:
        raise ValueError("it has no subjects")
    return Manifest(
        path=str(path),
        sentence=str(predicate["conclusion"]["sentence"]),
        created=str(predicate["created"]),
        version=str(predicate["version"]),
        subjects=tuple(subjects),
    )
