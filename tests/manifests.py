"""Manifests of files that a test makes up, without a run that judged them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate.release.manifest_file import Manifest, read_manifest


def make_statement(files: Mapping[str, bytes], *, suite: str = "clip") -> dict[str, Any]:
    """Return the statement of a run that judged these contents by `<artifact>/<file>`."""
    artifacts: dict[str, list[str]] = {}
    for name in sorted(files):
        artifact, _, file = name.partition("/")
        artifacts.setdefault(artifact, []).append(file)
    sentence = "May ship: 2 gates passed"
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "urn:pytest-quantgate:verdict:v1",
        "subject": [
            {"name": f"{suite}/{name}", "digest": {"sha256": hashlib.sha256(data).hexdigest()}}
            for name, data in sorted(files.items())
        ],
        "predicate": {
            "conclusion": {"status": "PASS", "sentence": sentence},
            "created": "2026-11-30T12:00:00Z",
            "version": "0.1.0",
            "suites": [{"name": suite, "artifacts": artifacts}],
        },
    }


def write_manifest(path: Path, files: Mapping[str, bytes]) -> Manifest:
    """Write the manifest of these contents, and return it read back."""
    path.write_text(json.dumps(make_statement(files)))
    return read_manifest(path)


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
