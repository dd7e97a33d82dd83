"""Latency gates in pytest: when timing means nothing, and pytest-benchmark's tables and storage."""

from __future__ import annotations

import pytest

from pytest_quantgate.case import Case
from pytest_quantgate.judging import Judged
from pytest_quantgate.measure.latency import ReplayClock, list_extra_info
from pytest_quantgate.verdict import Status, Verdict


def judge_timed(case: Case, *, key: str, request: pytest.FixtureRequest) -> Judged:
    """Return the verdict of a latency gate; its times go into pytest-benchmark's results too."""
    obstacle = find_obstacle(request.config)
    if obstacle:
        verdict = Verdict(
            gate="latency", status=Status.NOT_MEASURED, headline=f"latency: {obstacle}"
        )
        return Judged(verdict=verdict)
    judged = case.judge(kind="latency", key=key)
    if key in case.latency_runs and request.config.pluginmanager.hasplugin("benchmark"):
        run = case.latency_runs[key]
        clock = ReplayClock(run.quantized.times_ms)
        request.node.add_marker(
            pytest.mark.benchmark(timer=clock, group=f"{case.suite.name}: latency")
        )
        benchmark = request.getfixturevalue("benchmark")
        benchmark.pedantic(clock.step, rounds=len(run.quantized.times_ms), iterations=1)
        benchmark.extra_info.update(list_extra_info(run, run.quantized))
        benchmark.extra_info["fp16_median_ms"] = run.fp16.median_ms
        benchmark.extra_info["status"] = judged.verdict.status.value
    return judged


def find_obstacle(config: pytest.Config) -> str:
    """Return why nothing can be timed in this run; empty where it can."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        return f"{workers} workers share this machine: run it without -n to time anything"
    if config.getoption("benchmark_disable", False):
        return "--benchmark-disable: nothing is timed in this run"
    return ""
