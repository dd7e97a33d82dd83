"""`*.quantgate.yaml` -> `pytest.File` -> one `pytest.Function` a gate, with public API only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.plugin.items import CLOCK, GATE, GateItem, GateTest, describe_gates
from pytest_quantgate.plugin.replay import ReplayClock
from pytest_quantgate.suite.gates import kind_of

if TYPE_CHECKING:
    pass


class SuiteFile(pytest.File):
    """One suite; collecting it reads YAML and nothing else."""

    @classmethod
    def at(cls, path: Path, *, parent: pytest.Collector) -> SuiteFile:
        """Return the node of a suite file; pytest prints its name and its id as they are."""
        from pytest_quantgate.text.printable import printable

        file: SuiteFile = cls.from_parent(parent, path=path)
        shown = printable(file.nodeid)
        if shown == file.nodeid:
            return file
        return cls.from_parent(parent, path=path, name=printable(path.name), nodeid=shown)

    def collect(self) -> Iterator[pytest.Function]:
        from pytest_quantgate.plugin.session import SESSION
        from pytest_quantgate.suite.load import load_suite
        from pytest_quantgate.text.printable import printable

        try:
            suite = load_suite(self.path, relative_to=self.config.rootpath)
            session = self.config.stash[SESSION]
            suite.check_variables(environ=session.settings.read_environment(os.environ))
        except QuantGateError as error:
            raise self.CollectError(printable(str(error))) from None
        gathered = session.gathered
        gathered.suites[suite.name] = describe_gates(suite, file=self.nodeid)
        for gate in suite.gates:
            yield self._make_test(GateItem(suite=suite, gate=gate))

    def _make_test(self, item: GateItem) -> pytest.Function:
        # pytest-benchmark selects and skips tests by their fixtures, so a timed gate asks for its
        # fixture in the signature; without that plugin it is timed all the same.
        has_benchmark = self.config.getoption("benchmark_skip", None) is not None
        timed = has_benchmark and kind_of(item.gate).timed
        function: GateTest = GateTest.from_parent(
            self, name=item.name, callobj=run_timed_gate if timed else run_gate
        )
        function.stash[GATE] = item
        function.add_marker(pytest.mark.quantgate(gate=item.kind, suite=item.suite.name))
        if timed:
            clock = ReplayClock()
            function.stash[CLOCK] = clock
            group = f"{item.suite.name}: {item.kind}"
            function.add_marker(pytest.mark.benchmark(timer=clock, group=group))
        return function


class ReleaseFile(pytest.File):
    """A file that names the suites of a release: it is checked, and has no tests."""

    def collect(self) -> Iterator[pytest.Function]:
        from pytest_quantgate.release.spec import load_release
        from pytest_quantgate.text.printable import printable

        try:
            load_release(self.path)
        except QuantGateError as error:
            raise self.CollectError(printable(str(error))) from None
        yield from ()


def run_gate(request: pytest.FixtureRequest) -> None:
    """Judge the gate of this test: pass, fail with its report, or skip as not measured."""
    _run(request, benchmark=None)


def run_timed_gate(request: pytest.FixtureRequest, benchmark: Any) -> None:
    """As `run_gate`; the times go into pytest-benchmark's results too."""
    _run(request, benchmark=benchmark)


def _run(request: pytest.FixtureRequest, *, benchmark: Any) -> None:
    # Imported here so that collecting stays cheap.
    from pytest_quantgate.plugin.results import TRIED, allow_step, carry
    from pytest_quantgate.plugin.session import SESSION
    from pytest_quantgate.report.terminal import render_failure
    from pytest_quantgate.text.printable import printable

    item = request.node.stash[GATE]
    gate, suite = item.gate, item.suite
    session = request.config.stash[SESSION]
    case = session.case_for(suite)
    if session.settings.selftest:
        from pytest_quantgate.plugin.timing import find_obstacle, not_timed, record_nothing
        from pytest_quantgate.selftest.proof import prove_gate

        obstacle = find_obstacle(request.config) if kind_of(gate).timed else ""
        if obstacle:
            judged = not_timed(gate.kind, obstacle)
        else:
            judged = prove_gate(case, kind=gate.kind, key=gate.key)
        if benchmark is not None:
            record_nothing(benchmark)
    elif kind_of(gate).timed:
        from pytest_quantgate.plugin.timing import judge_timed

        judged = judge_timed(
            case, kind=gate.kind, key=gate.key, node=request.node, benchmark=benchmark
        )
    else:
        judged = case.judge(kind=gate.kind, key=gate.key)
    verdict = replace(judged.verdict, where=item.place)
    may_be_missing = session.settings.may_be_missing(gate.kind, suite=suite.allow_unmeasured)
    if verdict.status is Status.NOT_MEASURED and not may_be_missing and not verdict.next_step:
        verdict = replace(verdict, next_step=allow_step(gate.kind))
    if verdict.code and not verdict.next_step:  # an error: its sentence says what to mend
        verdict = replace(verdict, next_step=f'mend that, then: pytest "{request.node.nodeid}"')
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
