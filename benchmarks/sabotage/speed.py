"""Times that say something else than how fast the model is; only the clock is scripted."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from benchmarks.sabotage.bench import Bench, Entry
from pytest_quantgate.evidence.latency import LatencyRun, Machine, RunnerTimes
from pytest_quantgate.gates.latency import LatencyGate
from pytest_quantgate.run.case import Case
from pytest_quantgate.selftest.sabotage import exchange
from pytest_quantgate.store.baselines import next_timed_record
from pytest_quantgate.store.records import LatencyRecord

MACHINE = Machine(system="Linux", processor="a", cores=8, threads=1, device="cpu")
ROUNDS = 30


def times(
    name: str, median_ms: float, *, seed: int, noise: float = 0.01, warm: bool = True
) -> RunnerTimes:
    """Return what a runner takes on a machine with some noise (relative, one sigma)."""
    stream = random.Random(seed)
    return RunnerTimes(
        name=name,
        times_ms=tuple(median_ms * (1 + stream.gauss(0, noise)) for _ in range(ROUNDS)),
        runs=1,
        first_run_ms=3 * median_ms,
        warm_up_batches=8,
        warm=warm,
    )


def measure(*, quantized_ms: float = 60.0, noise: float = 0.01, seed: int = 0) -> LatencyRun:
    return LatencyRun(
        runtime="onnxruntime",
        machine=MACHINE,
        tower="vision",
        batch_size=8,
        fp16=times("fp16", 100.0, seed=3 * seed, noise=noise),
        quantized=times("quantized", quantized_ms, seed=3 * seed + 1, noise=noise),
        fp16_again=times("fp16 again", 100.0, seed=3 * seed + 2, noise=noise),
    )


def judged(run: LatencyRun) -> Callable[[Bench], Case]:
    return lambda bench: exchange(bench.good, latency=lambda _gate, **_: run)


def in_ms(baseline: Machine | None) -> Callable[[Bench], Case]:
    """Return the maker of a case with an absolute limit, and the machine that it is meant for."""

    def make(bench: Bench) -> Case:
        case = bench.load(edits={"max_ratio: 0.9x}": "max_latency: 70ms}"})
        (gate,) = case.suite.gates.all(LatencyGate)
        store = bench.store_of(
            f"machine-{baseline.processor if baseline else 'none'}", bench.record(bench.good)
        )
        if baseline is not None:
            record = next_timed_record(
                None,
                kind=LatencyRecord,
                suite=case.suite.name,
                key=gate.key,
                run=replace(_GOOD, machine=baseline),
                versions=case.versions,
                today=case.today,
                reason="first baseline",
            )
            store.write(record)
        case.store = store
        return exchange(case, latency=lambda _gate, **_: _GOOD)

    return make


def cold_fp16(run: LatencyRun) -> LatencyRun:
    """No warm-up: FP16 compiles its kernels in most of its rounds, quantized is slower in truth."""
    slow = tuple(t * 3 if i < 20 else t for i, t in enumerate(run.fp16.times_ms))
    again = tuple(t * 3 if i < 20 else t for i, t in enumerate(run.fp16_again.times_ms))
    return replace(
        run,
        fp16=replace(run.fp16, times_ms=slow, warm=False, warm_up_batches=0),
        fp16_again=replace(run.fp16_again, times_ms=again, warm=False, warm_up_batches=0),
    )


def entry(name: str, make: Callable[[Bench], Case], cause: str) -> Entry:
    return Entry(
        name=name,
        theme="speed",
        make=make,
        gates=("latency",),
        cause=cause,
        judged=("latency",),
    )


_GOOD = measure()

SPEEDS = (
    entry(
        "quantized slower than FP16",
        judged(measure(quantized_ms=130.0)),
        "(?s)over max_ratio.*fell back to full precision",
    ),
    entry(
        "quantized timed at batch 1, FP16 at batch 8",
        judged(measure(quantized_ms=7.0)),
        "(?s)implausible.*not the same work.*smaller batch",
    ),
    entry(
        "quantized exported with a fixed batch of 4, FP16 timed at batch 8",
        judged(
            replace(
                _GOOD,
                fp16=replace(_GOOD.fp16, samples=8),
                quantized=replace(times("quantized", 30.0, seed=1), samples=4),
            )
        ),
        "(?s)not the same work.*quantized 4.*batch size that is fixed",
    ),
    entry(
        "a timer that does not wait for the device",
        judged(
            replace(
                measure(quantized_ms=0.05),
                runtime="tensorrt-rtx",
                machine=replace(MACHINE, device="NVIDIA L4"),
            )
        ),
        "(?s)implausible.*timer that does not wait",
    ),
    entry("no warm-up: FP16 is timed cold", judged(cold_fp16(measure(quantized_ms=120.0))), "warm"),
    entry(
        "a machine too noisy to tell",
        judged(measure(quantized_ms=88.0, noise=0.25)),
        "(?s)not decided against max_ratio.*noise",
    ),
    entry(
        "an absolute limit on another machine",
        in_ms(replace(MACHINE, processor="b")),
        "(?s)another machine.*processor",
    ),
    entry(
        "an absolute limit without a baseline",
        in_ms(None),
        "there is no baseline",
    ),
    entry(
        "rounds of one variant are missing",
        judged(
            replace(
                _GOOD, quantized=replace(_GOOD.quantized, times_ms=_GOOD.quantized.times_ms[3:])
            )
        ),
        "rounds are not paired",
    ),
    entry(
        "a timer that stands still",
        judged(replace(_GOOD, quantized=replace(_GOOD.quantized, times_ms=(0.0,) * ROUNDS))),
        "timer that is broken",
    ),
    entry(
        "three rounds",
        judged(
            replace(
                _GOOD,
                **{
                    name: replace(getattr(_GOOD, name), times_ms=getattr(_GOOD, name).times_ms[:3])
                    for name in ("fp16", "quantized", "fp16_again")
                },
            )
        ),
        "cannot decide at 95 %",
    ),
)
