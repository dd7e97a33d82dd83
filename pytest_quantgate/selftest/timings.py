"""Sabotages of times: a variant that is slower than its limits, and a server that mixes answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from pytest_quantgate.evidence.load import Served, Timing
from pytest_quantgate.gates.latency import LatencyGate
from pytest_quantgate.selftest.sabotage import Sabotage, exchange

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case


def list_timing_sabotages() -> tuple[Sabotage, ...]:
    return (*_latency(), *_load())


def _latency() -> tuple[Sabotage, ...]:
    def slower(case: Case, key: str) -> Case:
        gate = case.suite.gates.get(LatencyGate, key=key)
        run = case.latency_runs[f"latency[{key}]"]  # measured when the good variant was judged
        limits_ms = [run.fp16.median_ms]
        if gate.max_ratio is not None:
            limits_ms.append(float(gate.max_ratio) * run.fp16.median_ms)
        if gate.max_latency_ms is not None:
            limits_ms.append(gate.max_latency_ms)
        factor = 4 * max(limits_ms) / run.fp16.median_ms
        slow = replace(run.quantized, times_ms=tuple(time * factor for time in run.fp16.times_ms))
        return exchange(case, latency=lambda _gate: replace(run, quantized=slow))

    def without_rounds(case: Case, key: str) -> Case:
        run = case.latency_runs[f"latency[{key}]"]
        fewer = replace(run.quantized, times_ms=run.quantized.times_ms[:-1])
        return exchange(case, latency=lambda _gate: replace(run, quantized=fewer))

    of = partial(Sabotage, gate="latency")
    return (
        of(name="slower than allowed", cause="over max_", spoil=slower),
        of(name="a round that is missing", cause="rounds are not paired", spoil=without_rounds),
    )


def _load() -> tuple[Sabotage, ...]:
    def exchange_load(case: Case, key: str, spoil: Callable[[Served], Served]) -> Case:
        run = case.load_runs[f"load[{key}]"]  # measured when the good variant was judged
        spoiled = tuple(spoil(served) for served in run.quantized)
        times = tuple(served.p99_ms for served in spoiled)
        timed = replace(run.timed, quantized=replace(run.timed.quantized, times_ms=times))
        found = replace(run, timed=timed, quantized=spoiled)
        return exchange(case, load=lambda _gate: found)

    def slow(served: Served) -> Served:
        times: dict[str, Any] = {
            f"{name}_ms": served.time_ms(name) * 1e3
            for name in get_args(Timing)
            if math.isfinite(served.time_ms(name))
        }
        return replace(served, late=served.queries, **times)

    def swapped(served: Served) -> Served:
        first, second, *others = served.answers
        wrong = replace(
            first,
            nearest=second.input,
            distance=0.9,
            batch=(first.input, second.input),
        )
        return replace(served, answers=(wrong, second, *others))

    of = partial(Sabotage, gate="load")
    return (
        of(
            name="a tail that is longer than allowed",
            cause=r"over (p\d\d_ratio|offline_ratio|max_)",
            spoil=lambda case, key: exchange_load(case, key, slow),
        ),
        of(
            name="two requests of a batch get each other's answers",
            cause=r"the embedding of input \d+, in the batch of inputs",
            spoil=lambda case, key: exchange_load(case, key, swapped),
        ),
    )
