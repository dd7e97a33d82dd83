"""`*.quantgate.yaml` -> `pytest.File` -> one `pytest.Function` a gate, with public API only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.replay import ReplayClock
from pytest_quantgate.verdict import Status

if TYPE_CHECKING:
    from pytest_quantgate.suite import Suite

SUFFIX = ".quantgate.yaml"


@dataclass(frozen=True, kw_only=True)
class GateItem:
    """Which gate of which suite a test is; `key` is `<task>-<metric>` or empty."""

    suite: Suite
    kind: str
    key: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}[{self.key}]" if self.key else self.kind


GATE = pytest.StashKey[GateItem]()
#: What a timed gate's benchmark reads its time from.
CLOCK = pytest.StashKey[ReplayClock]()


def list_gates(suite: Suite) -> Iterator[GateItem]:
    """Yield the gates of a suite in the order they run: what is cheap and tells most first.

    `sanity` has no section: no suite is without it.
    """
    gates = suite.gates
    yield GateItem(suite=suite, kind="sanity")
    if gates.coverage:
        yield GateItem(suite=suite, kind="coverage")
    if gates.calibration:
        yield GateItem(suite=suite, kind="calibration")
    if gates.fidelity:
        yield GateItem(suite=suite, kind="fidelity")
    for accuracy in gates.accuracy:
        yield GateItem(suite=suite, kind="accuracy", key=accuracy.key)
    for regression in gates.regression:
        yield GateItem(suite=suite, kind="regression", key=regression.key)
    if gates.roundtrip:
        yield GateItem(suite=suite, kind="roundtrip")
    if gates.export:
        yield GateItem(suite=suite, kind="export")
    if gates.parity:
        yield GateItem(suite=suite, kind="parity")
    for engine in gates.engine:
        yield GateItem(suite=suite, kind="engine", key=engine.key)
    for memory in gates.memory:
        yield GateItem(suite=suite, kind="memory", key=memory.key)
    for trace in gates.trace:
        yield GateItem(suite=suite, kind="trace", key=trace.key)
    for latency in gates.latency:
        yield GateItem(suite=suite, kind="latency", key=latency.key)


def describe_gates(suite: Suite, *, file: str) -> dict[str, Any]:
    """Return a suite as it was collected: `conclusion.SuiteGates` as plain data."""
    return {
        "suite": suite.name,
        "file": file,
        "gates": [gate.name for gate in list_gates(suite)],
        "allow_unmeasured": list(suite.allow_unmeasured),
    }


class SuiteFile(pytest.File):
    """One suite; collecting it reads YAML and nothing else."""

    def collect(self) -> Iterator[pytest.Function]:
        from pytest_quantgate.report.printable import printable
        from pytest_quantgate.session import SESSION
        from pytest_quantgate.suite_file import load_suite

        try:
            suite = load_suite(self.path, relative_to=self.config.rootpath)
        except QuantGateError as error:
            raise self.CollectError(printable(str(error))) from None
        gathered = self.config.stash[SESSION].gathered
        gathered.suites[suite.name] = describe_gates(suite, file=self.nodeid)
        for gate in list_gates(suite):
            yield self._make_test(gate)

    def _make_test(self, gate: GateItem) -> pytest.Function:
        # pytest-benchmark selects and skips tests by their fixtures, so a timed gate asks for its
        # fixture in the signature; without that plugin it is timed all the same.
        timed = gate.kind == "latency" and self.config.getoption("benchmark_skip", None) is not None
        function = pytest.Function.from_parent(
            self, name=gate.name, callobj=run_timed_gate if timed else run_gate
        )
        function.stash[GATE] = gate
        function.add_marker(pytest.mark.quantgate(gate=gate.kind, suite=gate.suite.name))
        if timed:
            clock = ReplayClock()
            function.stash[CLOCK] = clock
            group = f"{gate.suite.name}: latency"
            function.add_marker(pytest.mark.benchmark(timer=clock, group=group))
        return function


def run_gate(request: pytest.FixtureRequest) -> None:
    """Judge the gate of this test: pass, fail with its report, or skip as not measured."""
    _run(request, benchmark=None)


def run_timed_gate(request: pytest.FixtureRequest, benchmark: Any) -> None:
    """As `run_gate`; the times go into pytest-benchmark's results too."""
    _run(request, benchmark=benchmark)


def _run(request: pytest.FixtureRequest, *, benchmark: Any) -> None:
    # Imported here so that collecting stays cheap.
    from pytest_quantgate.report.printable import printable
    from pytest_quantgate.report.terminal import render_failure
    from pytest_quantgate.results import TRIED, allow_step, carry
    from pytest_quantgate.session import SESSION

    gate = request.node.stash[GATE]
    session = request.config.stash[SESSION]
    case = session.case_for(gate.suite)
    if session.settings.selftest:
        from pytest_quantgate.selftest.proof import prove_item

        judged = prove_item(case, kind=gate.kind, key=gate.key, config=request.config)
        if benchmark is not None:
            from pytest_quantgate.timing import record_nothing

            record_nothing(benchmark)
    elif gate.kind == "latency":
        from pytest_quantgate.timing import judge_timed

        judged = judge_timed(case, key=gate.key, node=request.node, benchmark=benchmark)
    else:
        judged = case.judge(kind=gate.kind, key=gate.key)
    verdict = judged.verdict
    may_be_missing = session.settings.may_be_missing(gate.kind, suite=gate.suite.allow_unmeasured)
    if verdict.status is Status.NOT_MEASURED and not may_be_missing and not verdict.next_step:
        verdict = replace(verdict, next_step=allow_step(gate.kind))
    evidence = None
    if session.settings.reports:
        from pytest_quantgate.report.evidence import describe_case
        from pytest_quantgate.report.previews import keep_previews

        keep_previews(case, images=session.settings.reports.images, warn=session.warnings.append)
        evidence = describe_case(case)
    tried = request.node.stash[TRIED]
    tried.judged = verdict
    tried.carried.append(carry(judged, warnings=session.warnings, evidence=evidence))
    if verdict.status is Status.NOT_MEASURED and may_be_missing:
        pytest.skip(f"not measured: {printable(verdict.headline)}")
    if verdict.passed and verdict.evidence:
        # Shown by -rP, and in JUnit files: the evidence of what is green.
        lines = "\n".join((verdict.headline, *verdict.evidence))
        request.node.add_report_section("call", "quantgate", f"{lines}\n")
    if not verdict.passed:
        pytest.fail(render_failure(verdict), pytrace=False)
