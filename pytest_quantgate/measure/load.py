"""FP16 and a quantized variant under the same load, in turn (`rounds.py`), served by `serve.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pytest_quantgate.evidence.latency import LatencyRun, Machine, RunnerTimes
from pytest_quantgate.evidence.load import Load, LoadRun, Served
from pytest_quantgate.measure.latency import read_peak_rss_bytes
from pytest_quantgate.measure.rounds import AGAIN, FP16, QUANTIZED, Start, interleave
from pytest_quantgate.measure.runner import Clock, Runner

#: A search ends at so many times 2 times the rate of the gate.
MOST_DOUBLINGS = 8


def measure_load(
    *,
    runners: Mapping[str, Start],
    processes: int,
    rounds: int,
    load: Load,
    runtime: str,
    machine: Machine,
    tower: str,
    arithmetic_gain: int,
    runtime_version: str = "",
    search: bool = False,
    clock: Clock = time.perf_counter,
    advance: Callable[[int], None] = lambda _count: None,
) -> LoadRun:
    """Return the rounds of `runners["fp16"]`, `["quantized"]`, and of FP16 a second time.

    All three answer the same requests at the same moments of a round; each round draws its own, its
    seed is that of `load` and its number. With `search` the highest rate of either variant is
    looked for at the end. `interleave` says in which order they run, and what is raised
    besides what a server raises.
    """

    def prepare(_name: str, runner: Runner) -> Callable[[int], Served]:
        return lambda number: runner.serve(replace(load, seed=load.seed + number))

    served, pause_rounds = interleave(
        runners,
        processes=processes,
        rounds=rounds,
        prepare=prepare,
        clock=clock,
        seed=load.seed,
        advance=advance,
    )
    return LoadRun(
        load=load,
        timed=LatencyRun(
            runtime=runtime,
            machine=machine,
            tower=tower,
            batch_size=load.batch,
            fp16=_time(FP16, served[FP16]),
            quantized=_time(QUANTIZED, served[QUANTIZED]),
            fp16_again=_time(AGAIN, served[AGAIN]),
            runtime_version=runtime_version,
            arithmetic_gain=arithmetic_gain,
            process_peak_rss_bytes=read_peak_rss_bytes(),
            processes=processes,
            pause_rounds=pause_rounds,
        ),
        fp16=tuple(served[FP16]),
        quantized=tuple(served[QUANTIZED]),
        fp16_again=tuple(served[AGAIN]),
        highest_rates=_search_rates(runners, load=load) if search else {},
    )


def _search_rates(runners: Mapping[str, Start], *, load: Load) -> dict[str, int]:
    found = {}
    for name, start in runners.items():
        with start() as open_it:
            found[name] = find_highest_rate(open_it().serve, load=load)
    return found


def find_highest_rate(serve: Callable[[Load], Served], *, load: Load) -> int:
    """Return the highest rate at which no request is dropped and the p99 is within the bound.

    It is found to a sixteenth, from that of `load` on: doubled or halved until the answer changes,
    then bisected. 0 where no rate keeps the bound; raises ValueError without one.
    """
    bound_ms = load.bound_ms
    if bound_ms is None:
        raise ValueError("a search needs a bound")

    def keeps(rate: int) -> bool:
        served = serve(replace(load, rate=rate, offline=False))
        return served.dropped == 0 and served.p99_ms <= bound_ms

    low, high = 0, load.rate
    for _ in range(MOST_DOUBLINGS):
        if not keeps(high):
            break
        low, high = high, 2 * high
    while low == 0 and high > 1:
        half = high // 2
        low, high = (half, high) if keeps(half) else (0, half)
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def _time(name: str, rounds: Sequence[Served]) -> RunnerTimes:
    return RunnerTimes(
        name=name,
        times_ms=tuple(served.p99_ms for served in rounds),
        runs=rounds[-1].queries,
        first_run_ms=0.0,
        warm_up_batches=0,
        warm=True,
    )
