"""A `Report` that passes -> its manifest: what was judged, as an in-toto Statement v1. Pure.

The subjects are the judged files with their SHA-256; the predicate says what was decided of them.
Who signs it, and how, is nobody's business here: it is a file like another.

Format: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from __future__ import annotations

import json
from typing import Any

from pytest_quantgate.evidence.codec import to_json
from pytest_quantgate.report import PREDICATE_TYPE
from pytest_quantgate.report.model import Report, SuiteReport

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def may_have_manifest(report: Report) -> bool:
    """Return whether a report is of files that may ship."""
    return report.conclusion.status == "PASS" and any(suite.files for suite in report.suites)


def render_manifest(report: Report) -> str:
    """Return the statement as strict JSON in ASCII; raises ValueError for a report without one."""
    if not may_have_manifest(report):
        raise ValueError(f"no manifest of what is {report.conclusion.status}")
    statement = {
        "_type": STATEMENT_TYPE,
        "predicateType": PREDICATE_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": digest}}
            for name, digest in list_subjects(report).items()
        ],
        "predicate": {
            "conclusion": to_json(report.conclusion),
            "created": report.created,
            "version": report.product_version,
            "suites": [_describe_suite(suite) for suite in report.suites],
            "environment": to_json(report.environment),
        },
    }
    return json.dumps(statement, indent=1, allow_nan=False) + "\n"


def list_subjects(report: Report) -> dict[str, str]:
    """Return the SHA-256 of every judged file by `<suite>/<artifact>/<name>`."""
    return {
        f"{suite.name}/{file.artifact}/{file.name}": file.sha256
        for suite in report.suites
        for file in suite.files
    }


def _describe_suite(suite: SuiteReport) -> dict[str, Any]:
    artifacts: dict[str, list[str]] = {}
    for file in suite.files:
        artifacts.setdefault(file.artifact, []).append(file.name)
    return {
        "name": suite.name,
        "file": suite.file,
        "conclusion": to_json(suite.conclusion),
        "gates": {gate.name: gate.status for gate in suite.gates},
        "allowed_unmeasured": list(suite.allowed_unmeasured),
        "device": suite.device,
        "model": suite.model.description if suite.model else "",
        "recipe": suite.recipe.name if suite.recipe else "",
        "artifacts": artifacts,
    }
