"""Results of runs that a test makes up: what a JSON report holds, without a run behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quantgate.evidence.codec import to_json
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.release.join import Result
from pytest_quantgate.report.collect_evidence import describe_results
from pytest_quantgate.report.json_report import render_json
from pytest_quantgate.report.model import Environment, JudgedFile, Report
from pytest_quantgate.run.conclusion import DESELECTED, Results, Row, SuiteGates, conclude

GATES = ("sanity", "coverage", "accuracy[a]", "latency[b]")
CPU = Environment(
    python="3.12.1",
    system="Linux x86_64",
    processor="a processor",
    cores=2,
    packages={"torch": "2.10"},
    commit="c0ffee",
)
GPU = replace(CPU, processor="another", gpus=("NVIDIA H200",))


def make_results(
    verdicts: Mapping[tuple[str, str], Status],
    *,
    suites: tuple[str, ...] = ("clip",),
    gates: tuple[str, ...] = GATES,
    digest: str = "5" * 64,
    **more: Any,
) -> Results:
    """Return what a run left that judged these gates by (suite, gate), and no others."""
    collected = tuple(
        SuiteGates(suite=name, file=f"{name}.quantgate.yaml", gates=gates, digest=digest)
        for name in suites
    )
    rows = tuple(
        Row(suite=suite, gate=gate, verdict=make_verdict(gate, status))
        for (suite, gate), status in verdicts.items()
    )
    not_run = {
        (name, gate): DESELECTED
        for name in suites
        for gate in gates
        if (name, gate) not in verdicts
    }
    return Results(suites=collected, rows=rows, **{"not_run": not_run, **more})


def make_verdict(gate: str, status: Status) -> Verdict:
    kind = gate.partition("[")[0]
    return Verdict(gate=kind, status=status, headline=f"{gate} is {status.value}")


def make_result(
    name: str,
    results: Results,
    *,
    created: str = "2026-11-30T12:00:00Z",
    environment: Environment = CPU,
    device: str = "cpu",
    files: tuple[JudgedFile, ...] = (),
    **changes: Any,
) -> Result:
    """Return the result of a run; `files` are those of each of its suites, beside the suite's."""
    report = describe_results(
        results, conclusion=conclude(results), created=created, environment=environment
    )
    suites = tuple(
        replace(suite, device=device, files=(*suite.files, *files)) for suite in report.suites
    )
    report = replace(
        report, **{"suites": suites, "orphans_count": bool(results.orphans),
                   "orphans": results.orphans, **changes}
    )  # fmt: skip
    return Result(name=name, sha256=digest(report), report=report)


def digest(report: Report) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(to_json(report), sort_keys=True).encode()).hexdigest()


def write_result(path: Path, result: Result) -> Path:
    path.write_text(render_json(result.report))
    return path
