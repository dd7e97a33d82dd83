"""The state of one run, kept in `config.stash`: the case in use, what was gathered, the end.

With xdist every worker judges; what its tests found travels in their reports, and the controller
alone concludes, writes and prints.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.plugin.items import GATE
from pytest_quantgate.plugin.options import CACHE_INPUT
from pytest_quantgate.plugin.results import (
    REPORT_ATTRIBUTE,
    Gathered,
    first_line,
    make_printable,
    settle,
)
from pytest_quantgate.report.files import list_files, set_manifests_aside
from pytest_quantgate.run.progress import Progress, silent
from pytest_quantgate.store.settings import Settings
from pytest_quantgate.suite.names import OWN_TESTS, SUFFIX
from pytest_quantgate.text.wrapping import terminal_width
from pytest_quantgate.threads import let_threads_sleep, share_cores

# The rest is imported where it is needed: pytest runs that judge nothing should not pay for it.
if TYPE_CHECKING:
    from pytest_quantgate.report.terminal import Summary
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.run.workers import Workers
    from pytest_quantgate.store.surroundings import Surroundings
    from pytest_quantgate.suite.specs import Suite

SESSION = pytest.StashKey["RunSession"]()

#: A plugin that annotates failed tests by itself: its entry point, and what it registers.
ANNOTATING = ("pytest_github_actions_annotate_failures", "annotate_errors")

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
    """One pytest session. On an xdist worker it judges; on the controller it also concludes.

    `summary` is there from the end of the run on. `set_aside` are where manifests of earlier runs
    were. It is a plugin itself, for the hooks that need its state.
    """

    settings: Settings
    progress: Progress
    is_worker: bool
    gathered: Gathered = field(default_factory=Gathered)
    warnings: list[str] = field(default_factory=list)
    summary: Summary | None = None
    set_aside: tuple[Path, ...] = ()
    _case: Case | None = None
    _surroundings: Surroundings | None = None
    _workers: Workers | None = None
    _rerun: set[str] = field(default_factory=set)

    def case_for(self, suite: Suite) -> Case:
        """Return the case of a suite; the one used last is kept, so models are built once.

        Only one is held in memory: two ViT-L/14 pairs would not fit a small CI machine. Raises
        CacheError where a cache would be read in CI that a pull request can have written.
        """
        from pytest_quantgate.run.case import Case
        from pytest_quantgate.store.baselines import Store
        from pytest_quantgate.store.cache import Cache
        from pytest_quantgate.store.looks import Ledger
        from pytest_quantgate.store.private import refuse_checkout
        from pytest_quantgate.store.surroundings import Surroundings

        self._surroundings = self._surroundings or Surroundings()
        let_threads_sleep(os.environ)
        if self._case is None or self._case.suite.path != suite.path:
            if self.settings.ci and self.settings.cache == "on":
                refuse_checkout(self.settings.cache_dir)
            self._case = Case(
                suite=suite,
                settings=self.settings,
                store=Store(self.settings.baselines_dir, project=self.settings.root),
                cache=Cache(root=self.settings.cache_dir, warn=self.warnings.append),
                progress=self.progress,
                environ=self.settings.read_environment(os.environ),
                surroundings=self._surroundings,
                ledger=Ledger(self.settings.cache_dir / "looks"),
                workers=self._find_workers(),
            )
        return self._case

    def _find_workers(self) -> Workers | None:
        """Return who embeds samples; damage that a selftest plants is in this process alone."""
        from pytest_quantgate.run.workers import start_workers

        if self._workers is None and not self.settings.selftest:
            self._workers = start_workers(self.settings.workers)
        return self._workers

    def pytest_unconfigure(self) -> None:
        """End the workers, whatever ended the run."""
        if self._workers is not None:
            self._workers.close()

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Put the manifests of earlier runs aside: none may pass for this run's."""
        if not (self.is_worker or session.config.option.collectonly):
            try:
                self.set_aside = set_manifests_aside(list_files(self.settings.reports))
            except QuantGateError as error:
                raise pytest.UsageError(str(error)) from error

    # -- what pytest tells ----------------------------------------------------------------

    @pytest.hookimpl(optionalhook=True)  # xdist's
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where the controller will read what it measured."""
        node.workerinput[CACHE_INPUT] = str(self.settings.cache_dir)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which gates were not deselected; with xdist it is the workers that collect."""
        gates = (item.stash[GATE] for item in session.items if GATE in item.stash)
        self.gathered.select((gate.suite.name, gate.name) for gate in gates)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker of xdist collected; one that crashed leaves nothing."""
        told = getattr(node, "workeroutput", {}).get(REPORT_ATTRIBUTE)
        if told:
            self.gathered.suites.update(told["suites"])
            self.gathered.select(told["selected"])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a suite that cannot be read: a report without it would look complete."""
        if report.failed and report.nodeid.endswith(SUFFIX):
            error = first_line(report)
            named = error.startswith(report.nodeid)
            self.gathered.fail(error if named else f"{report.nodeid}: {error}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(
        self, report: pytest.TestReport
    ) -> Generator[None, object, object]:
        """Gather what a report carries and settle its outcome, before anyone else counts it."""
        heard = self.gathered.take(report)
        if heard is not None:
            plain = getattr(report, REPORT_ATTRIBUTE, None) or {}
            kind = plain.get("gate", "").partition("[")[0] or OWN_TESTS
            suite = plain.get("suite") or {}
            allowed = suite.get("allow_unmeasured", ())
            settle(
                report,
                heard,
                may_be_missing=self.settings.may_be_missing(kind, suite=allowed),
                others=self.gathered.list_verdicts(suite.get("suite", "")),
            )
            make_printable(report)
            self._join_attempts(report)
        result = yield
        if report.failed and f"{SUFFIX}::" in report.nodeid:
            # What pytest titles the failure with; before, it would take it for a dotted name.
            report.location = (*report.location[:2], report.nodeid)
        return result

    def _join_attempts(self, report: pytest.TestReport) -> None:
        """Hide the end of an attempt that is run again: JUnit would start another case with it."""
        outcome: str = report.outcome
        if outcome == "rerun" and report.when in ("setup", "call", "teardown"):
            self._rerun.add(report.nodeid)
        if report.when == "teardown" and report.nodeid in self._rerun and not self.is_worker:
            self._rerun.remove(report.nodeid)
            report.when = "setup"

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note why the run ends early: Ctrl-C, `pytest.exit`, an error in collection."""
        self.gathered.stopped = str(excinfo.value).strip() or excinfo.typename

    def pytest_internalerror(self, excrepr: object) -> None:
        lines = str(excrepr).strip().splitlines()
        self.gathered.fail(f"pytest itself: {lines[-1] if lines else 'internal error'}")

    # -- the end --------------------------------------------------------------------------

    def finish(self, session: pytest.Session) -> None:
        """Conclude and write, once, after the last test; the exit status says the same."""
        if session.config.option.collectonly:
            return
        if self.is_worker:
            getattr(session.config, "workeroutput")[REPORT_ATTRIBUTE] = {  # noqa: B009 (xdist's)
                "suites": self.gathered.suites,
                "selected": sorted(self.gathered.selected or ()),
            }
            return
        if not self._has_to_conclude():
            return
        from pytest_quantgate.plugin.closing import close_run, list_unjudged

        self.summary = close_run(
            self.gathered,
            settings=self.settings,
            warnings=self.warnings,
            set_aside=self.set_aside,
        )
        if self.summary.failed:
            for report in list_unjudged(self.summary):
                session.config.hook.pytest_runtest_logreport(report=report)
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _has_to_conclude(self) -> bool:
        """Return whether this run is about a suite; most runs of a project's tests are not."""
        heard, settings = self.gathered, self.settings
        return bool(
            heard.suites
            or heard.tests
            or heard.errors
            or self.warnings
            or settings.reports
            or settings.must_judge
            or settings.selftest
            or os.path.lexists(settings.baselines_dir)  # its records may be orphans
        )

    def print_summary(self, reporter: pytest.TerminalReporter) -> None:
        if self.summary is None or not self.summary.has_news:
            return
        from pytest_quantgate.report.terminal import render_summary

        if self.settings.selftest:
            from pytest_quantgate.selftest.terminal import render_selftest as render_summary
        reporter.write_sep("=", "quantgate")
        for line, status in render_summary(self.summary, width=terminal_width()):
            markup = {COLOURS[status]: True} if status else {}
            reporter.write_line(line, **markup)
        if not any(map(reporter.config.pluginmanager.hasplugin, ANNOTATING)):
            self._annotate(reporter)

    def _annotate(self, reporter: pytest.TerminalReporter) -> None:
        """Write the commands that put red gates on the lines of a pull request, in such a job."""
        from pytest_quantgate.report.annotations import render_annotations

        assert self.summary is not None
        for line in render_annotations(self.summary, root=self.settings.root, environ=os.environ):
            reporter.write_line(line)


def start_session(config: pytest.Config, *, settings: Settings) -> RunSession:
    """Return the state of this run, with progress shown where this process has a terminal."""
    is_worker = hasattr(config, "workerinput")
    if is_worker:
        workers = getattr(config, "workerinput")["workercount"]  # noqa: B009 (set by xdist)
        share_cores(int(workers), environ=os.environ)
    has_terminal = not is_worker and config.pluginmanager.hasplugin("terminalreporter")
    return RunSession(
        settings=settings,
        progress=terminal_progress(config) if has_terminal else silent(),
        is_worker=is_worker,
    )


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
