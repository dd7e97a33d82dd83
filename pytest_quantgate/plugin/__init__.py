"""Hooks of the plugin, a few lines each; the work is in the neighbouring modules."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_quantgate.plugin.items import keep_together
from pytest_quantgate.plugin.options import add_options, refuse_odd_arguments, resolve_settings
from pytest_quantgate.plugin.results import begin_attempt, note_phase, watch
from pytest_quantgate.suite.names import SUFFIX, is_release

# The rest is imported where it is needed: most runs that load this hold no suite.
if TYPE_CHECKING:
    from pytest_quantgate.plugin.collect import ReleaseFile, SuiteFile
    from pytest_quantgate.plugin.session import RunSession

pytest_plugins = ["pytest_quantgate.plugin.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


@pytest.hookimpl(trylast=True)  # the terminal reporter must be there
def pytest_configure(config: pytest.Config) -> None:
    from pytest_quantgate.plugin.session import SESSION, start_session

    config.addinivalue_line(
        "markers",
        "quantgate(gate, suite): a gate of a suite file (set by the plugin), or, on your own "
        "test, the suite file that its quantgate fixtures use",
    )
    refuse_odd_arguments(config.invocation_params.args)
    session = start_session(config, settings=resolve_settings(config))
    config.stash[SESSION] = session
    config.pluginmanager.register(session, "quantgate-session")  # its report hook needs its state


def pytest_report_header(config: pytest.Config) -> str | None:
    from pytest_quantgate.plugin.header import describe_settings

    return describe_settings(_session(config).settings)


def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> SuiteFile | ReleaseFile | None:
    if not file_path.name.endswith(SUFFIX):
        return None
    from pytest_quantgate.plugin.collect import ReleaseFile, SuiteFile

    if is_release(file_path):
        return ReleaseFile.from_parent(parent, path=file_path)
    return SuiteFile.at(file_path, parent=parent)


@pytest.hookimpl(trylast=True)  # after those that shuffle
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = keep_together(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with watch(item):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # a mark that skips comes later
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    begin_attempt(item)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around what makes of a failure an xfail
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    note_phase(item, call, report := (yield))
    return report


@pytest.hookimpl(tryfirst=True)  # JUnit writes its file in this hook
def pytest_sessionfinish(session: pytest.Session) -> None:
    _session(session.config).finish(session)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    _session(config).print_summary(terminalreporter)


def _session(config: pytest.Config) -> RunSession:
    from pytest_quantgate.plugin.session import SESSION

    return config.stash[SESSION]
