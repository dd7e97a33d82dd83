"""Times of engines that were handed over, and what the latency gate makes of them."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.latency import GivenTimes
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.given_times import judge_given_times
from pytest_quantgate.gates.latency import LatencyGate
from pytest_quantgate.suite.where import Where

LIMIT = Fraction(8, 10)
GATE = LatencyGate(
    where=Where(file="s.yaml", line=9),
    tower="vision",
    runtime="tensorrt",
    batch=4,
    max_ratio=LIMIT,
)


def times(median_ms: float, *, spread: float = 0.01, count: int = 500, seed: int = 0) -> GivenTimes:
    draw = random.Random(seed)
    compute = tuple(median_ms * draw.lognormvariate(0, spread) for _ in range(count))
    return GivenTimes(
        name=f"{median_ms}.json",
        compute_ms=compute,
        latency_ms=tuple(ms + 0.1 for ms in compute),
        device="NVIDIA L4",
        clocks="compute 2.04 GHz",
        settings=(("CUDA Graph", "Disabled"),),
        batch=4,
        layers=(("fc1", 0.6),),
    )


FP16 = times(2.0, seed=1)


def judge(quantized: GivenTimes, fp16: GivenTimes | None = FP16, **changes: Any) -> Verdict:
    gate = replace(GATE, **changes)
    return judge_given_times(
        quantized,
        fp16,
        gate=gate,
        max_ratio=gate.max_ratio or LIMIT,
        min_ratio=gate.min_ratio or Fraction(1, 8),
    )


def test_a_faster_engine_passes_with_its_percentiles() -> None:
    verdict = judge(times(1.0))

    assert verdict.status is Status.PASS, verdict
    assert "NVIDIA L4: ratio 0.50" in verdict.headline
    assert verdict.figures["latency_ratio"] == pytest.approx(0.5, rel=0.01)
    lines = " | ".join(verdict.evidence)
    assert "quantized on the GPU: p50 1.00" in lines
    assert "p99 1.02" in lines
    assert "quantized: slowest layers: fc1 60.0%" in lines
    assert "process to process is not in the limits" in lines


def test_percentiles_are_those_of_the_samples() -> None:
    hundred = replace(FP16, compute_ms=tuple(float(ms) for ms in range(1, 101)))

    lines = " | ".join(judge(hundred, hundred, max_ratio=Fraction(2)).evidence)

    assert "p50 50.000 ms, p90 90.000 ms, p95 95.000 ms, p99 99.000 ms of 100 runs" in lines


@pytest.mark.parametrize(
    ("quantized", "status", "code"),
    [
        (times(1.9), Status.FAIL, "latency.ratio"),
        (times(1.6, spread=0.3, seed=4), Status.INCONCLUSIVE, "latency.ratio-open"),
        (times(0.1), Status.INCOMPARABLE, "latency.implausible"),
        (times(1.0, count=49), Status.INCONCLUSIVE, "latency.too-few-rounds"),
        (replace(times(1.0), device="NVIDIA A10"), Status.INCOMPARABLE, "latency.other-device"),
        (replace(times(1.0), clocks=""), Status.INCOMPARABLE, "latency.other-device"),
        (replace(times(1.0), batch=1), Status.INCOMPARABLE, "latency.other-batch"),
        (replace(times(1.0), batch=0), Status.NOT_MEASURED, ""),
        (
            replace(times(1.0), settings=(("CUDA Graph", "Enabled"),)),
            Status.INCOMPARABLE,
            "latency.other-settings",
        ),
    ],
)
def test_what_is_not_comparable_is_said(quantized: GivenTimes, status: Status, code: str) -> None:
    verdict = judge(quantized)

    assert (verdict.status, verdict.code) == (status, code), verdict


def test_times_without_fp16_decide_no_ratio() -> None:
    verdict = judge(times(1.0), None)

    assert verdict.status is Status.NOT_MEASURED
    assert verdict.next_step == "give them: artifacts.fp16.engine_report.vision.times"


@given(
    ratio=st.floats(0.3, 3.0),
    spread=st.floats(0.0, 0.2),
    seed=st.integers(0, 99),
)
def test_a_verdict_never_contradicts_the_ratio(ratio: float, spread: float, seed: int) -> None:
    verdict = judge(times(2.0 * ratio, spread=spread, count=60, seed=seed), times(2.0, count=60))

    low, found, high = (
        float(verdict.figures[name])
        for name in ("latency_ratio_low", "latency_ratio", "latency_ratio_high")
    )
    assert low <= found <= high
    assert (verdict.status is Status.PASS) == (high <= LIMIT)
    assert (verdict.status is Status.FAIL) == (low > LIMIT)


def test_the_slowest_layers_are_named_where_a_profile_was_given() -> None:
    named = judge(times(1.0)).evidence
    bare = judge(replace(times(1.0), layers=())).evidence

    assert "quantized: slowest layers: fc1 60.0%" in named
    assert not any(line.startswith("quantized: slowest") for line in bare)
