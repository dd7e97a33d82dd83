"""Latency gates in pytest: when timing means nothing, and pytest-benchmark's tables and storage."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_quantgate.evidence.latency import LatencyRun
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.run import Judged
from pytest_quantgate.measure.latency import list_extra_info
from pytest_quantgate.plugin.items import CLOCK
from pytest_quantgate.run.case import Case


def judge_timed(case: Case, *, kind: str, key: str, node: pytest.Item, benchmark: Any) -> Judged:
    """Return the verdict of a timed gate; its times go into pytest-benchmark's results too.

    `benchmark` is the fixture of that name, None where the plugin is not there.
    """
    obstacle = find_obstacle(node.config)
    judged = not_timed(kind, obstacle) if obstacle else case.judge(kind=kind, key=key)
    if benchmark is None:
        return judged
    run = case.latency_runs.get(f"{kind}[{key}]")
    if obstacle or run is None:
        record_nothing(benchmark)
    else:
        record_times(benchmark, node=node, run=run, verdict=judged.verdict)
    return judged


def not_timed(kind: str, obstacle: str) -> Judged:
    """Return the verdict of a timed gate in a run in which nothing can be timed."""
    return Judged(
        verdict=Verdict(gate=kind, status=Status.NOT_MEASURED, headline=f"{kind}: {obstacle}")
    )


def record_times(benchmark: Any, *, node: pytest.Item, run: LatencyRun, verdict: Verdict) -> None:
    """Let pytest-benchmark take the rounds of the quantized variant, and all else that is known."""
    clock = node.stash[CLOCK]
    clock.load(run.quantized.times_ms)
    # Not under --benchmark-disable only: pytest-benchmark times nothing with any use of xdist.
    benchmark.pedantic(clock.step, rounds=len(run.quantized.times_ms), iterations=1)
    benchmark.extra_info.update(list_extra_info(run))
    benchmark.extra_info.update(verdict.figures)
    benchmark.extra_info["status"] = verdict.status.value


def record_nothing(benchmark: Any) -> None:
    """Use the fixture without a result: one that is left unused is warned about."""
    benchmark.disabled = True
    benchmark.pedantic(lambda: None)


def find_obstacle(config: pytest.Config) -> str:
    """Return why nothing can be timed in this run; empty where it can."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        return f"{workers} workers share this machine: run it without -n to time anything"
    disabled = config.getoption("benchmark_disable", False)
    if disabled and not config.getoption("benchmark_enable", False):
        return "--benchmark-disable: nothing is timed in this run"
    return ""
