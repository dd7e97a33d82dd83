"""What the latency gate says of the times of engines that were handed over.

Part of the latency gate. The two engines were timed apart, each in one process: what differs from
process to process is in no interval here, and a verdict says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.deciding import decide, leave_open, refuse, relation
from pytest_quantgate.statistics.rounds import Levels, compare_levels
from pytest_quantgate.text.words import code_of, count, level

if TYPE_CHECKING:
    from pytest_quantgate.evidence.latency import GivenTimes
    from pytest_quantgate.gates.timed import TimedGate

GATE = "latency"
_open = partial(leave_open, GATE)
_refuse = partial(refuse, GATE)

#: So many queries of each make five parts whose medians mean something.
FEWEST = 50

PERCENTILES = (50, 90, 95, 99)


def judge_given_times(
    quantized: GivenTimes,
    fp16: GivenTimes | None,
    *,
    gate: TimedGate,
    max_ratio: Fraction,
    min_ratio: Fraction,
) -> Verdict:
    """Return whether a handed-over engine is fast enough against FP16's of the same device.

    Other devices, clocks, settings or batches, and a ratio below `min_ratio`, are INCOMPARABLE.
    """
    if fp16 is None:
        return _unmeasured(
            f"there are times of the quantized engine, {quantized.name}, and none of FP16's "
            f"({gate.where.of('max_ratio')})",
            next_step=f"give them: artifacts.fp16.engine_report.{gate.tower}.times",
        )
    other = _find_other(quantized, fp16, gate=gate)
    if other is not None:
        return other
    few = min((quantized, fp16), key=lambda one: len(one.compute_ms))
    if len(few.compute_ms) < FEWEST:
        return _open(
            "too-few-rounds",
            f"{few.name} has {count(len(few.compute_ms), 'run')} after the "
            f"warm-up, it takes {FEWEST} ({gate.where})",
            next_step="time for longer: trtexec --duration=10",
            cause="fewer show nothing of how times differ",
        )
    ratio, interval = compare_levels(
        _levels(quantized), _levels(fp16), confidence=float(gate.confidence)
    )
    if ratio < min_ratio:
        return _refuse(
            "implausible",
            f"quantized takes {ratio:.3f} of FP16's time, below {float(min_ratio):.12g}: not "
            f"the same work ({gate.where})",
            cause="the engines were not given the same batch, or one is a part of its graph",
            next_step="look at the shapes in both logs; if the ratio is right, set min_ratio",
        )
    status = decide(interval, limit=float(max_ratio))
    return Verdict(
        gate=GATE,
        status=status,
        headline=f"latency: {gate.tower}, batch {gate.batch}, {gate.runtime} on "
        f"{quantized.device}: ratio {ratio:.3f} of GPU times, one-sided "
        f"{level(gate.confidence)} limits [{interval.low:.3f}, {interval.high:.3f}], "
        f"{relation(status, name='max_ratio', limit=f'{float(max_ratio):.12g}')} "
        f"({gate.where.of('max_ratio')})",
        brief=f"{ratio:.3f}x FP16 [{interval.low:.3f}, {interval.high:.3f}]",
        evidence=(
            *_describe("quantized", quantized),
            *_describe("FP16", fp16),
            f"clocks: {quantized.clocks or 'not in the log'}; each engine was timed in one "
            f"process: what differs from process to process is not in the limits",
        ),
        cause="layers that fell back to full precision, or Q/DQ that costs more than it saves"
        if status is Status.FAIL
        else "",
        next_step={
            Status.FAIL: "look at the kernels that ran (engine gate)",
            Status.INCONCLUSIVE: "time for longer, with fixed clocks (nvidia-smi -lgc)",
        }.get(status, ""),
        figures={
            "fp16_ms": statistics.median(fp16.compute_ms),
            "quantized_ms": statistics.median(quantized.compute_ms),
            "latency_ratio": ratio,
            "latency_ratio_low": interval.low,
            "latency_ratio_high": interval.high,
            "max_latency_ratio": float(max_ratio),
        },
        code=code_of(GATE, "ratio", status),
    )


def _levels(times: GivenTimes) -> Levels:
    return Levels.of(times.compute_ms, processes=1, pause_rounds=0.0)


def _find_other(quantized: GivenTimes, fp16: GivenTimes, *, gate: TimedGate) -> Verdict | None:
    """Return why the times of two engines are not compared, None where they may be."""
    both = (quantized, fp16)
    if quantized.device != fp16.device or quantized.clocks != fp16.clocks:
        here, there = (f"{one.device} ({one.clocks or 'clocks not said'})" for one in both)
        return _refuse(
            "other-device",
            f"quantized was timed on {here}, FP16 on {there} ({gate.where})",
            cause="the engines ran on two machines, or their clocks were set otherwise",
            next_step="time both on one device, one after the other",
        )
    if quantized.settings != fp16.settings:
        changed = dict(quantized.settings).items() ^ dict(fp16.settings).items()
        name = min(name for name, _ in changed)
        return _refuse(
            "other-settings",
            f"{name} was {dict(quantized.settings).get(name, 'not set')!r} for quantized, "
            f"{dict(fp16.settings).get(name, 'not set')!r} for FP16 ({gate.where})",
            cause="trtexec was called with other options",
            next_step="time both with the same options",
        )
    for one in both:
        if not one.batch:
            return _unmeasured(
                f"the log of {one.name} says no batch size ({gate.where.of('batch')})",
                next_step="call trtexec with --shapes=NAME:1x3x224x224",
            )
        if one.batch != gate.batch:
            return _refuse(
                "other-batch",
                f"{one.name} is of batches of {one.batch}, the gate is about {gate.batch} "
                f"({gate.where.of('batch')})",
                cause="trtexec was given other --shapes",
                next_step=f"set batch: {one.batch}, or time that size",
            )
    return None


def _describe(name: str, times: GivenTimes) -> tuple[str, ...]:
    """Return the percentiles of a list of times, and its slowest layers."""
    rows = [
        f"{name} {what}: "
        + ", ".join(f"p{share} {_percentile(values, share):.3f} ms" for share in PERCENTILES)
        + f" of {count(len(values), 'run')}"
        for what, values in (("on the GPU", times.compute_ms), ("with transfers", times.latency_ms))
    ]
    if times.layers:
        slowest = ", ".join(f"{layer} {share:.1%}" for layer, share in times.layers)
        rows.append(f"{name}: slowest layers: {slowest}")
    return tuple(rows)


def _percentile(values: Sequence[float], share: int) -> float:
    """Return the smallest value that so many percent of all are not above (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * share / 100) - 1)]


def _unmeasured(text: str, *, next_step: str) -> Verdict:
    return Verdict(
        gate=GATE, status=Status.NOT_MEASURED, headline=f"latency: {text}", next_step=next_step
    )
