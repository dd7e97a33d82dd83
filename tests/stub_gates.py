"""Runs of pytest over suites whose verdicts are given: no model, no torch, all of the plugin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

GATES = ("sanity", "coverage", "calibration", "roundtrip")
SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: fp8}
gates: {coverage: {}, calibration: {}, roundtrip: {}}
"""

#: Stands for the measuring: `verdicts.json` has the statuses of a gate, one for each attempt.
CONFTEST = """\
import json
import os
from pathlib import Path

import pytest

from pytest_quantgate.gates.run import Judged
from pytest_quantgate.plugin.session import SESSION
from pytest_quantgate.evidence.verdict import Status, Verdict

STATUSES = json.loads(Path("verdicts.json").read_text())


class StubCase:
    used = {}
    latency_runs = {}
    load_runs = {}

    def __init__(self, suite):
        self.suite = suite

    def judge(self, *, kind, key=""):
        tried = Path(f"{self.suite.name}-{kind}.tried")
        number = len(tried.read_text()) if tried.exists() else 0
        tried.write_text("x" * (number + 1))
        statuses = STATUSES.get(kind, ["PASS"])
        status = Status[statuses[min(number, len(statuses) - 1)]]
        headline = f"{kind}: {status.value} as given"
        return Judged(verdict=Verdict(gate=kind, status=status, headline=headline))


@pytest.fixture(autouse=True)
def _stub(request):
    request.config.stash[SESSION].case_for = StubCase
"""


def write_project(
    folder: Path,
    *,
    verdicts: Mapping[str, Sequence[str]] = {},
    conftest: str = "",
    suites: Sequence[str] = ("clip",),
) -> None:
    """Write suites, the verdicts of their gates, and what else a project's conftest does."""
    (folder / "suites").mkdir()
    for name in suites:
        (folder / "suites" / f"{name}.quantgate.yaml").write_text(SUITE, encoding="utf-8")
    (folder / "verdicts.json").write_text(json.dumps(verdicts), encoding="utf-8")
    (folder / "conftest.py").write_text(f"{CONFTEST}\n\n{conftest}", encoding="utf-8")


#: Plugins of a run; the others that are installed cost each run time and have no say in it.
PLUGINS = ("pytest_quantgate.plugin", "xdist.plugin", "pytest_rerunfailures")


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run pytest in this process, also where a test of it is interrupted."""
    plugins = [option for name in PLUGINS for option in ("-p", name)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        return pytester.runpytest_inprocess(*plugins, *arguments, no_reraise_ctrlc=True)
