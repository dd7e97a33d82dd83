"""The state of one run, kept in `config.stash`: cases, verdicts, what to write at the end.

With xdist every worker judges; its verdicts and proposed baselines travel in the test reports,
and the controller alone writes and prints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantgate.baseline_mode import BaselineMode
from pytest_quantgate.collect import SUFFIX
from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.options import CACHE_INPUT, Settings
from pytest_quantgate.progress import Progress, silent
from pytest_quantgate.verdict import Status, Verdict

# The rest is imported where it is needed: pytest runs that judge nothing should not pay for it.
if TYPE_CHECKING:
    from pytest_quantgate.baselines import Store
    from pytest_quantgate.case import Case
    from pytest_quantgate.judging import Judged
    from pytest_quantgate.report.evidence import Evidence
    from pytest_quantgate.report.terminal import Row, Summary
    from pytest_quantgate.store.records import AnyRecord
    from pytest_quantgate.store.surroundings import Surroundings
    from pytest_quantgate.suite import Suite

SESSION = pytest.StashKey["RunSession"]()

#: The attribute of a test report that carries a verdict (plain data: xdist sends it as JSON).
REPORT_ATTRIBUTE = "quantgate"

COLOURS = {
    Status.PASS: "green",
    Status.FAIL: "red",
    Status.INCONCLUSIVE: "yellow",
    Status.INCOMPARABLE: "yellow",
    Status.NOT_MEASURED: "yellow",
}


# eq=False keeps it hashable: pytest keeps plugins in sets.
@dataclass(kw_only=True, eq=False)
class RunSession:
    """One pytest session. On an xdist worker it judges; on the controller it also writes."""

    settings: Settings
    progress: Progress
    is_worker: bool
    rows: list[Row] = field(default_factory=list)
    proposals: list[tuple[str, AnyRecord]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    obtained: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    _case: Case | None = None
    _surroundings: Surroundings | None = None

    def case_for(self, suite: Suite) -> Case:
        """Return the case of a suite; the one used last is kept, so models are built once.

        Only one is held in memory: two ViT-L/14 pairs would not fit a small CI machine.
        """
        from pytest_quantgate.baselines import Store
        from pytest_quantgate.cache import Cache
        from pytest_quantgate.case import Case
        from pytest_quantgate.store.surroundings import Surroundings

        self._surroundings = self._surroundings or Surroundings()
        if self._case is None or self._case.suite.path != suite.path:
            self._case = Case(
                suite=suite,
                settings=self.settings,
                store=Store(self.settings.baselines_dir, project=self.settings.root),
                cache=Cache(root=self.settings.cache_dir, warn=self.warnings.append),
                progress=self.progress,
                environ=os.environ,
                surroundings=self._surroundings,
            )
        return self._case

    @pytest.hookimpl(optionalhook=True)  # xdist's
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where the controller will read what it measured."""
        node.workerinput[CACHE_INPUT] = str(self.settings.cache_dir)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the verdict out of a report (on the controller, or in a plain run)."""
        if self.is_worker:
            return
        carried = getattr(report, REPORT_ATTRIBUTE, ())
        for verdict in carried:
            self._take(verdict)
        if report.failed and not carried and f"{SUFFIX}::" in report.nodeid:
            self._note_error(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a suite that cannot be read: a report without it would look complete."""
        if not self.is_worker and report.failed and report.nodeid.endswith(SUFFIX):
            self._note_error(report)

    def _note_error(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)  # none where a message is all
        text = str(crash.message if crash else report.longreprtext).strip()
        error = f"{report.nodeid}: {text.partition(chr(10))[0] or 'no message'}"
        if error not in self.errors:  # every worker collects
            self.errors.append(error)

    def _take(self, carried: Mapping[str, Any]) -> None:
        from pytest_quantgate.report.terminal import Row
        from pytest_quantgate.store.records import record_from_json

        if carried["gate"]:
            self.rows.append(
                Row(
                    suite=carried["suite"],
                    gate=carried["gate"],
                    position=carried["position"],
                    gates_in_suite=carried["gates_in_suite"],
                    verdict=verdict_from_json(carried["verdict"]),
                    notes=tuple(carried["notes"]),
                )
            )
        if carried["evidence"] is not None:
            from pytest_quantgate.report.evidence import read_evidence

            found = read_evidence(carried["evidence"])
            known = self.evidence.get(found.suite)
            self.evidence[found.suite] = known.joined(found) if known else found
        self.warnings.extend(w for w in carried["warnings"] if w not in self.warnings)
        if carried["record"] is not None:
            record = record_from_json(carried["record"])
            self.proposals.append((carried["proposal"], record))

    def finish(self) -> bool:
        """Write what the run decided to write; return False if something could not be written.

        Called once, on the controller, after the last test.
        """
        from pytest_quantgate.baselines import Store

        ok = True
        store = Store(self.settings.baselines_dir, project=self.settings.root)
        for kind, record in self.proposals:
            try:
                if kind == "baseline":
                    old = store.find_old(record.suite, record.key, kind=record.kind)
                    path = store.write(record)
                    self.written.append(f"baseline written: {self._shorten(path)} ({record.key})")
                    if old is not None and old.path != path:
                        self.written.append(
                            f"baseline deleted: {self._shorten(old.path)} (version 0.1 kept it)"
                        )
                else:
                    self.obtained.append(self._propose(record))
            except QuantGateError as error:
                self.warnings.append(str(error))
                ok = False
        return self._finish_orphans(store) and ok

    def _propose(self, record: AnyRecord) -> str:
        """Write what could become a baseline, or say why it is not proposed as one."""
        from pytest_quantgate.baselines import discard_obtained, write_obtained
        from pytest_quantgate.store.acceptance import complete_verdicts, why_unfit

        folder = self.settings.obtained_dir
        rows = [(row.gate, row.verdict) for row in self.rows if row.suite == record.suite]
        record = complete_verdicts(record, rows=rows)
        reason = why_unfit(record)
        if reason:
            discard_obtained(folder, record)
            return f"no baseline for {record.suite} {record.key}: {reason}"
        path = write_obtained(folder, record)
        return (
            f"obtained: {self._shorten(path)}; to accept it: quantgate accept "
            f"{self._shorten(folder)} --reason='why'"
        )

    def write_reports(self) -> bool:
        """Write the reports that this run was asked for; return False where one cannot be."""
        if not self.settings.reports:
            return True
        from pytest_quantgate.report.write import write_reports

        return write_reports(self)

    def _finish_orphans(self, store: Store) -> bool:
        try:
            if self.settings.baselines is BaselineMode.PRUNE:
                for orphan in store.prune():
                    self.written.append(
                        f"baseline deleted: {self._shorten(orphan.path)} ({orphan.reason})"
                    )
                return True
            orphans = store.orphans()
        except QuantGateError as error:
            self.warnings.append(str(error))
            return False
        self.orphans = [f"{self._shorten(orphan.path)} ({orphan.reason})" for orphan in orphans]
        return not (self.orphans and self.settings.strict)

    def summary(self) -> Summary:
        from pytest_quantgate.report.terminal import Summary

        # In the suite's own order, whatever order (or worker) the tests ran in.
        rows = sorted(self.rows, key=lambda row: (row.suite, row.position))
        return Summary(
            rows=tuple(rows),
            orphans=tuple(self.orphans),
            written=tuple(self.written),
            obtained=tuple(dict.fromkeys(self.obtained)),
            warnings=tuple(dict.fromkeys(self.warnings)),
        )

    def print_summary(self, reporter: pytest.TerminalReporter) -> None:
        if not (self.rows or self.orphans or self.written or self.obtained or self.warnings):
            return
        from pytest_quantgate.report.terminal import render_summary

        summary = self.summary()
        if self.settings.selftest:
            from pytest_quantgate.selftest.terminal import render_selftest as render_summary
        reporter.write_sep("=", "quantgate")
        width = reporter.config.get_terminal_writer().fullwidth
        for line, status in render_summary(summary, width=max(80, width)):
            markup = {COLOURS[status]: True} if status else {}
            reporter.write_line(line, **markup)

    def _shorten(self, path: os.PathLike[str]) -> str:
        return os.path.relpath(path, self.settings.root)


def start_session(config: pytest.Config, *, settings: Settings) -> RunSession:
    """Return the state of this run, with progress shown where this process has a terminal."""
    is_worker = hasattr(config, "workerinput")
    if is_worker:
        workers = getattr(config, "workerinput")["workercount"]  # noqa: B009 (set by xdist)
        share_cores(int(workers), environ=os.environ)
    return RunSession(
        settings=settings,
        progress=silent() if is_worker else terminal_progress(config),
        is_worker=is_worker,
    )


def share_cores(workers: int, *, environ: MutableMapping[str, str]) -> None:
    """Give this xdist worker its share of the cores, where the user did not say otherwise.

    PyTorch takes all of them for each process, and threads that wait for one another on cores that
    are taken make a forward many times slower. It reads the variable when it is imported.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // workers)))


def terminal_progress(config: pytest.Config) -> Progress:
    """Return progress that writes past pytest's capturing, as `capsys.disabled()` does."""
    writer = config.get_terminal_writer()

    def write(text: str) -> None:
        capture = config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            if mode == "live":
                # pytest places its [100%] by what its writer wrote on the line of its dots: what
                # is drawn below and erased does not belong to that line.
                writer.flush()
                print(text, end="", flush=True)
            else:
                writer.write(text, flush=True)

    # Markup that nobody asked for means a terminal; asked for, it says nothing (CI logs).
    asked = config.getoption("color") != "auto" or {"FORCE_COLOR", "PY_COLORS"} & set(os.environ)
    live = writer.hasmarkup and not asked
    quiet = config.getoption("verbose") < 0
    mode = "live" if live else "silent" if quiet else "log"
    return Progress(mode=mode, write=write, width=writer.fullwidth)


def carry(
    *,
    suite: str,
    gate: str = "",
    position: int = 0,
    gates_in_suite: int = 0,
    judged: Judged,
    warnings: list[str],
    evidence: Evidence | None = None,
) -> dict[str, Any]:
    """Return the plain data that a test report carries from a worker to the controller.

    `gate` is empty for a hand-written test, which is no row of the summary.
    """
    from pytest_quantgate.store.records import record_to_json

    verdict = judged.verdict
    plain: dict[str, Any] = json.loads(
        json.dumps(
            {
                "suite": suite,
                "gate": gate,
                "position": position,
                "gates_in_suite": gates_in_suite,
                "verdict": {
                    "gate": verdict.gate,
                    "status": verdict.status.value,
                    "headline": verdict.headline,
                    "brief": verdict.brief,
                    "evidence": list(verdict.evidence),
                    "cause": verdict.cause,
                    "next_step": verdict.next_step,
                    "figures": dict(verdict.figures),
                    "code": verdict.code,
                },
                "notes": list(judged.notes),
                "warnings": list(warnings),
                "proposal": judged.proposal,
                "record": record_to_json(judged.record) if judged.record else None,
                "evidence": evidence.to_json() if evidence else None,
            }
        )
    )
    return plain


def verdict_from_json(data: Mapping[str, Any]) -> Verdict:
    return Verdict(
        gate=data["gate"],
        status=Status(data["status"]),
        headline=data["headline"],
        brief=data["brief"],
        evidence=tuple(data["evidence"]),
        cause=data["cause"],
        next_step=data["next_step"],
        figures=data["figures"],
        code=data["code"],
    )
