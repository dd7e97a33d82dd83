"""Measuring latency: order, warm-up, runs a round and what is kept. All clocks are fakes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.latency import Footprint, LatencyRun, Machine, RunnerTimes
from pytest_quantgate.measure.latency import (
    list_extra_info,
    measure_latency,
    read_arithmetic_gain,
    read_machine,
    read_peak_rss_bytes,
)
from pytest_quantgate.measure.rounds import AGAIN, FP16, QUANTIZED, Start, share_rounds
from pytest_quantgate.measure.runner import (
    Runner,
    TimeRuns,
    time_callable,
    time_engine,
    time_on_device,
)

MACHINE = Machine(system="Linux x86_64", processor="A", cores=2, threads=1, device="cpu")


class FakeClock:
    """A clock that goes on only when something runs; `log` says what ran, in order."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now_s

    def runner(self, name: str, *times_ms: float) -> TimeRuns:
        """Return a runner whose calls take these times a run, the last one for ever."""
        left = list(times_ms)

        def time_runs(runs: int) -> float:
            time_ms = left.pop(0) if len(left) > 1 else left[0]
            if math.isfinite(time_ms):
                self.now_s += max(0.0, time_ms) * runs / 1e3
            self.log.append(f"{name}*{runs}")
            return time_ms

        return time_runs


def start(time_runs: TimeRuns, **more: Any) -> Start:
    """Return what starts a runner that is there already."""

    @contextmanager
    def started() -> Iterator[Callable[[], Runner]]:
        yield lambda: Runner(time_runs=time_runs, **more)

    return started


def measure(
    clock: FakeClock,
    fp16: TimeRuns,
    quantized: TimeRuns,
    *,
    samples: tuple[int | None, int | None] = (None, None),
    **changes: Any,
) -> LatencyRun:
    arguments: dict[str, Any] = {
        "runners": {
            FP16: start(fp16, samples=samples[0]),
            QUANTIZED: start(quantized, samples=samples[1]),
        },
        "processes": 1,
        "rounds": 12,
        "min_round_ms": 20.0,
        "warm_up_s": 10.0,
        "runtime": "fake",
        "machine": MACHINE,
        "tower": "vision",
        "batch_size": 8,
        "clock": clock,
        **changes,
    }
    return measure_latency(**arguments)


def test_a_run_has_the_same_rounds_of_all_three() -> None:
    clock = FakeClock()
    run = measure(clock, clock.runner("f", 10.0), clock.runner("q", 4.0))
    assert run.rounds == 12
    assert [c.name for c in run.runners] == [FP16, QUANTIZED, AGAIN]
    assert run.fp16.times_ms == run.fp16_again.times_ms == (10.0,) * 12
    assert run.quantized.times_ms == (4.0,) * 12
    assert (run.runtime, run.machine, run.tower, run.batch_size) == ("fake", MACHINE, "vision", 8)


@pytest.mark.parametrize(("decided", "processes"), [(True, 3), (False, 5)])
def test_a_run_is_looked_at_once_and_ends_there_where_it_is_decided(
    decided: bool, processes: int
) -> None:
    clock = FakeClock()
    looks: list[LatencyRun] = []

    def is_decided(run: LatencyRun) -> bool:
        looks.append(run)
        return decided

    run = measure(
        clock,
        clock.runner("f", 10.0),
        clock.runner("q", 4.0),
        processes=5,
        rounds=2,
        is_decided=is_decided,
    )

    (seen,) = looks
    assert (seen.processes, seen.planned, seen.rounds) == (3, 5, 6)
    assert (run.processes, run.planned, run.rounds) == (processes, 5, 2 * processes)
    assert run.fp16.times_ms[:6] == seen.fp16.times_ms


def test_processes_that_are_near_to_each_other_are_all_waited_for() -> None:
    clock = FakeClock()
    run = measure(
        clock,
        clock.runner("f", 10.0),
        clock.runner("q", 4.0),
        processes=5,
        rounds=100,
        is_decided=lambda _run: pytest.fail("nobody is to look"),
    )

    assert 0 < run.pause_rounds < 100
    assert (run.processes, run.planned) == (5, 0)


def test_where_nobody_looks_nothing_is_planned() -> None:
    clock = FakeClock()
    run = measure(clock, clock.runner("f", 10.0), clock.runner("q", 4.0), processes=5)
    assert (run.processes, run.planned) == (5, 0)


def test_what_a_run_gave_and_what_its_arithmetic_can_gain_go_into_the_result() -> None:
    clock = FakeClock()
    run = measure(
        clock,
        clock.runner("f", 10.0),
        clock.runner("q", 4.0),
        samples=(8, 1),
        arithmetic_gain=32,
    )
    assert [c.samples for c in run.runners] == [8, 1, 8]
    assert run.arithmetic_gain == 32
    untold = measure(clock, clock.runner("f", 10.0), clock.runner("q", 4.0))
    assert [c.samples for c in untold.runners] == [None] * 3


def test_a_batch_has_as_many_runs_as_last_the_round_time() -> None:
    clock = FakeClock()
    run = measure(clock, clock.runner("f", 7.0), clock.runner("q", 30.0))
    assert (run.fp16.runs, run.fp16_again.runs, run.quantized.runs) == (3, 3, 1)
    assert Counter(clock.log[-36:]) == {"f*3": 24, "q*1": 12}


def test_runs_are_counted_again_once_it_is_warm() -> None:
    clock = FakeClock()
    cold = [500.0, *[20.0] * 3, *[1.0] * 60]
    run = measure(clock, clock.runner("f", *cold), clock.runner("q", 5.0))
    assert run.fp16.first_run_ms == 500.0
    assert run.fp16.runs == 20
    assert run.fp16.times_ms == (1.0,) * 12
    assert run.fp16.warm


def test_no_round_time_is_one_run_a_round() -> None:
    clock = FakeClock()
    run = measure(clock, clock.runner("f", 0.5), clock.runner("q", 0.25), min_round_ms=0.0)
    assert (run.fp16.runs, run.quantized.runs) == (1, 1)


def test_many_runs_are_found_in_few_steps() -> None:
    clock = FakeClock()
    run = measure(clock, clock.runner("f", 0.01), clock.runner("q", 0.01))
    assert run.fp16.runs == 2000
    assert len(clock.log) < 110


def test_warm_up_goes_on_until_the_median_is_stable() -> None:
    clock = FakeClock()
    falling = [100.0 * 0.9**i + 20 for i in range(200)]
    run = measure(clock, clock.runner("f", *falling), clock.runner("q", 20.0))
    assert run.fp16.warm
    assert run.fp16.warm_up_batches > run.quantized.warm_up_batches == 10
    assert max(run.fp16.times_ms) < 30


def test_warm_up_ends_at_its_time_and_says_so() -> None:
    clock = FakeClock()
    growing = [20.0 * 1.1**i for i in range(40)]
    run = measure(clock, clock.runner("f", *growing), clock.runner("q", 20.0), warm_up_s=0.5)
    assert not run.fp16.warm
    assert run.fp16.warm_up_batches < 20
    assert run.quantized.warm


def test_no_warm_up_time_is_one_batch() -> None:
    clock = FakeClock()
    run = measure(clock, clock.runner("f", 20.0), clock.runner("q", 20.0), warm_up_s=0.0)
    assert (run.fp16.warm_up_batches, run.fp16.warm) == (1, False)


def orders_of(seed: int, rounds: int) -> list[tuple[str, ...]]:
    """Return who ran in which place of each round; equal times tell FP16's two apart by value."""
    values = iter(range(1, 10_000))
    clock = FakeClock()
    first: dict[str, float] = {}

    def runner(name: str) -> TimeRuns:
        steady = clock.runner(name, 20.0)

        def time_runs(runs: int) -> float:
            steady(runs)
            if "measuring" in first:
                return float(next(values))
            return 20.0

        return time_runs

    quantized = runner("q")
    count = 0

    def last_warm_up(runs: int) -> float:
        nonlocal count
        count += 1
        value = quantized(runs)
        if count == 11:  # the first run and ten batches
            first["measuring"] = 1.0
        return value

    run = measure(clock, runner("f"), last_warm_up, rounds=rounds, seed=seed, min_round_ms=1.0)
    return [
        tuple(
            name
            for _, name in sorted((runner.times_ms[index], runner.name) for runner in run.runners)
        )
        for index in range(rounds)
    ]


def test_every_runner_is_in_every_place_equally_often() -> None:
    orders = orders_of(seed=0, rounds=12)
    assert set(Counter(orders).values()) == {2}
    assert len(set(orders)) == 6
    assert len(set(orders[:6])) == 6


def test_the_order_is_that_of_the_seed() -> None:
    assert orders_of(seed=3, rounds=12) == orders_of(seed=3, rounds=12)
    assert len({tuple(orders_of(seed=seed, rounds=12)) for seed in range(4)}) == 4


def test_every_process_starts_all_three_anew_and_the_pause_between_them_is_measured() -> None:
    clock = FakeClock()
    open_now: list[int] = []
    most: list[int] = []

    def counted(time_ms: float) -> Start:
        @contextmanager
        def started() -> Iterator[Callable[[], Runner]]:
            open_now.append(1)
            most.append(len(open_now))
            clock.now_s += 0.5
            yield lambda: Runner(time_runs=clock.runner("x", time_ms))
            open_now.pop()

        return started

    run = measure_latency(
        runners={FP16: counted(20.0), QUANTIZED: counted(10.0)},
        processes=3, rounds=4, min_round_ms=20.0, warm_up_s=10.0, runtime="fake", machine=MACHINE,
        tower="vision", batch_size=8, clock=clock,
    )  # fmt: skip

    assert (run.processes, run.rounds) == (3, 12)
    assert most == [1, 2, 3] * 3
    # 1.5 s to start and 13 calls of 20 ms each to get warm, over rounds of 60 ms.
    assert run.pause_rounds == pytest.approx((1.5 + 0.7) / 0.06, rel=0.1)


@pytest.mark.parametrize(
    ("rounds", "shared"), [(1, (5, 1)), (10, (5, 2)), (30, (5, 6)), (31, (6, 6)), (90, (15, 6))]
)
def test_rounds_are_shared_among_processes(rounds: int, shared: tuple[int, int]) -> None:
    assert share_rounds(rounds) == shared


def test_progress_advances_once_a_round() -> None:
    clock = FakeClock()
    seen: list[int] = []
    measure(clock, clock.runner("f", 20.0), clock.runner("q", 20.0), advance=seen.append)
    assert seen == [1] * 12


def test_times_of_rounds_are_kept_as_they_are() -> None:
    clock = FakeClock()
    quantized = clock.runner("q", *[20.0] * 11, math.nan, 0.0, 20.0)
    run = measure(clock, clock.runner("f", 20.0), quantized, rounds=3)
    assert math.isnan(run.quantized.times_ms[0])
    assert run.quantized.times_ms[1:] == (0.0, 20.0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_a_timer_that_tells_no_time_is_not_measured(wrong: float) -> None:
    clock = FakeClock()
    with pytest.raises(NotMeasured, match=r"timer of quantized gave .* ms for a run"):
        measure(clock, clock.runner("f", 20.0), clock.runner("q", wrong))


def test_a_clock_that_stands_still_is_not_measured() -> None:
    clock = FakeClock()
    with pytest.raises(NotMeasured, match=r"shows no time for 65536 runs"):
        measure(clock, clock.runner("f", 0.0), clock.runner("q", 1.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"runners": {}},
        {"rounds": 0},
        {"batch_size": 0},
        {"min_round_ms": -1.0},
        {"min_round_ms": math.nan},
        {"warm_up_s": math.inf},
    ],
)
def test_a_request_that_measures_nothing_is_refused(changes: dict[str, Any]) -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match=r"runners are|measures? nothing|no durations"):
        measure(clock, clock.runner("f", 1.0), clock.runner("q", 1.0), **changes)


def test_a_run_goes_through_json() -> None:
    clock = FakeClock()
    run = measure(clock, clock.runner("f", 10.0, 12.5), clock.runner("q", 4.0))
    assert from_json(LatencyRun, to_json(run)) == run


def test_no_rounds_have_no_median() -> None:
    clock = FakeClock()
    run = measure(clock, clock.runner("f", 10.0), clock.runner("q", 4.0))
    assert run.quantized.median_ms == 4.0
    assert math.isnan(replace(run.quantized, times_ms=()).median_ms)


# -- runners ---------------------------------------------------------------------------------


def test_a_callable_is_timed_by_the_clock() -> None:
    clock = FakeClock()
    ran: list[int] = []

    def run() -> None:
        ran.append(1)
        clock.now_s += 0.003

    assert time_callable(run, clock=clock)(4) == pytest.approx(3.0)
    assert len(ran) == 4


class FakeEvent:
    """An event of a device that takes 2 ms for each thing that was put on it."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.at = -1

    def record(self, stream: str | None) -> None:
        self.at = self.log.count("run")
        self.log.append(f"record on {stream}" if stream else "record")

    def synchronize(self) -> None:
        self.log.append("wait")

    def elapsed_time(self, end: FakeEvent) -> float:
        return 2.0 * (end.at - self.at)


class FakeCuda:
    def __init__(self) -> None:
        self.log: list[str] = []

    def Event(self, *, enable_timing: bool) -> FakeEvent:
        assert enable_timing
        return FakeEvent(self.log)


def test_a_device_is_timed_between_two_events() -> None:
    cuda = FakeCuda()
    time_runs = time_on_device(lambda: cuda.log.append("run"), cuda=cuda)
    assert time_runs(3) == 2.0
    assert cuda.log == ["record", "run", "run", "run", "record", "wait"]


def test_a_stream_of_its_own_bears_the_events() -> None:
    cuda = FakeCuda()
    time_runs = time_on_device(lambda: cuda.log.append("run"), cuda=cuda, stream="mine")
    assert time_runs(1) == 2.0
    assert cuda.log == ["record on mine", "run", "record on mine", "wait"]


def test_an_engine_times_itself() -> None:
    class Engine:
        def time_batch_ms(self, *, runs: int) -> float:
            return runs * 1.5

    assert time_engine(Engine())(4) == 6.0


# -- the machine ---------------------------------------------------------------------------------


def test_the_processor_is_named_as_linux_names_it(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2.0 GHz \nflags\t: a\n")
    machine = read_machine(threads=2, cpu_info=info)
    assert (machine.processor, machine.threads, machine.device) == ("Some CPU @ 2.0 GHz", 2, "cpu")
    assert machine.cores >= 1
    assert machine.system


@pytest.mark.parametrize(("known", "shown"), [("arm", "arm"), ("", "unknown")])
def test_a_processor_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str, shown: str
) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr("platform.processor", lambda: known)
    assert read_machine(threads=1, cpu_info=info).processor == shown
    info.write_text("no name here\n")
    assert read_machine(threads=1, cpu_info=info).processor == shown


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU at {device}")
    assert read_machine(threads=1, device="cuda:0").device == "GPU at cuda:0"


@pytest.mark.parametrize(
    ("info", "gain"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", 4),
        ("flags\t\t: fpu sse2\n", 4),
        ("flags\t\t: avx512_vnni amx_bf16 amx_tile amx_int8\nprocessor: 1\n", 32),
        ("model name: amx_int8\nflags\t\t: fpu avx2\n", 4),
        ("Features\t: fp asimd asimddp\n", 4),
        ("Features\t: fp asimd asimddp i8mm\n", 8),
        ("Features\t: fp asimd i8mm sme sme2\n", 32),
        ("a processor that does not tell\n", 32),
        (None, 32),
    ],
)
def test_a_cpu_gains_in_8_bits_what_its_units_can(
    tmp_path: Path, info: str | None, gain: int
) -> None:
    path = tmp_path / "cpuinfo"
    if info is not None:
        path.write_text(info)
    assert read_arithmetic_gain(runtime="onnxruntime", cpu_info=path) == gain
    assert read_arithmetic_gain(runtime="torch", cpu_info=path) == 1
    assert read_arithmetic_gain(runtime="tensorrt-rtx", cpu_info=path) == 4


# -- pytest-benchmark ----------------------------------------------------------------------------


def make_times(name: str, time_ms: float) -> RunnerTimes:
    return RunnerTimes(
        name=name,
        times_ms=(time_ms, time_ms),
        runs=5,
        first_run_ms=9.0,
        warm_up_batches=10,
        warm=True,
    )


def test_extra_info_has_units_the_machine_and_the_sizes_that_are_told() -> None:
    run = LatencyRun(
        runtime="tensorrt-rtx",
        runtime_version="1.7",
        machine=MACHINE,
        tower="text",
        batch_size=8,
        fp16=make_times(FP16, 4.0),
        quantized=make_times(QUANTIZED, 2.0),
        fp16_again=make_times(AGAIN, 4.1),
        fp16_footprint=Footprint(file_bytes=100, activation_bytes=0),
        quantized_footprint=Footprint(file_bytes=60, weights_bytes=50, device_bytes=70),
        process_peak_rss_bytes=1000,
    )
    info = list_extra_info(run)
    assert (info["fp16_median_ms"], info["quantized_median_ms"]) == (4.0, 2.0)
    assert (info["fp16_samples_per_s"], info["quantized_samples_per_s"]) == (2000.0, 4000.0)
    assert info["fp16_again_median_ms"] == 4.1
    assert (info["rounds"], info["quantized_runs_per_round"], info["device"]) == (2, 5, "cpu")
    assert (info["runtime"], info["runtime_version"]) == ("tensorrt-rtx", "1.7")
    assert {name: size for name, size in info.items() if name.endswith("_bytes")} == {
        "process_peak_rss_bytes": 1000,
        "fp16_file_bytes": 100,
        "fp16_activation_bytes": 0,
        "quantized_file_bytes": 60,
        "quantized_weights_bytes": 50,
        "quantized_device_bytes": 70,
    }
    assert info["machine_fingerprint"] == MACHINE.fingerprint


def test_a_fingerprint_is_that_of_every_property() -> None:
    assert MACHINE.fingerprint == replace(MACHINE).fingerprint
    for change in ({"system": "x"}, {"processor": "x"}, {"cores": 3}, {"threads": 2}):
        assert replace(MACHINE, **change).fingerprint != MACHINE.fingerprint
    assert replace(MACHINE, device="GPU").fingerprint != MACHINE.fingerprint


def test_the_peak_of_the_process_is_in_bytes() -> None:
    assert 10**7 < read_peak_rss_bytes() < 10**12


def test_footprints_are_those_of_their_runners() -> None:
    clock = FakeClock()
    run = measure(
        clock,
        clock.runner("f", 10.0),
        clock.runner("q", 4.0),
        footprints={QUANTIZED: Footprint(file_bytes=1), FP16: Footprint(file_bytes=2)},
        runtime_version="1.2",
    )
    assert (run.quantized_footprint.file_bytes, run.fp16_footprint.file_bytes) == (1, 2)
    assert run.runtime_version == "1.2"
