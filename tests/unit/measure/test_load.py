"""Rounds under load: the same requests for all, and the search for the highest rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pytest_quantgate.evidence.latency import Machine
from pytest_quantgate.evidence.load import Load, Served
from pytest_quantgate.measure.load import find_highest_rate, measure_load
from pytest_quantgate.measure.runner import Runner

MACHINE = Machine(system="Linux x86_64", processor="A", cores=2, threads=1, device="cpu")


def served(p99_ms: float = 10.0, *, dropped: int = 0) -> Served:
    return Served(
        p50_ms=p99_ms / 2,
        p90_ms=p99_ms,
        p99_ms=p99_ms,
        queries=100,
        late=dropped,
        dropped=dropped,
        batches=100,
        scheduled_per_s=50.0,
        completed_per_s=50.0,
        offline_ms=None,
        answers=(),
    )


def test_all_three_answer_the_same_requests_of_a_round() -> None:
    asked: list[tuple[str, int]] = []

    def start(name: str) -> Callable[..., Iterator[Callable[[], Runner]]]:
        def serve(load: Load) -> Served:
            asked.append((name, load.seed))
            return served(10.0 if name == "fp16" else 5.0)

        @contextmanager
        def started() -> Iterator[Callable[[], Runner]]:
            yield lambda: Runner(time_runs=lambda _runs: 0.0, serve=serve)

        return started  # type: ignore[return-value]

    run = measure_load(
        runners={name: start(name) for name in ("fp16", "quantized")},  # type: ignore[misc]
        processes=2,
        rounds=2,
        load=Load(rate=50, queries=100, seed=7),
        runtime="onnxruntime",
        machine=MACHINE,
        tower="vision",
        arithmetic_gain=4,
    )
    assert sorted({seed for _, seed in asked}) == [7, 8, 9, 10]
    assert all(
        sorted(name for name, at in asked if at == seed) == ["fp16", "fp16", "quantized"]
        for seed in (7, 8, 9, 10)
    )
    assert run.timed.quantized.times_ms == (5.0,) * 4
    assert run.times("p50").fp16_again.times_ms == (5.0,) * 4
    assert (run.timed.processes, run.highest_rates) == (2, {})


@pytest.mark.parametrize("capacity", [3, 40, 50, 333, 5000])
@pytest.mark.parametrize("drops", [False, True])
def test_the_highest_rate_is_found_to_a_sixteenth(capacity: int, drops: bool) -> None:
    def serve(load: Load) -> Served:
        over = load.rate > capacity
        return served(dropped=9) if over and drops else served(99.0 if over else 1.0)

    found = find_highest_rate(serve, load=Load(rate=50, queries=100, bound_ms=20.0))
    assert found <= capacity < found + max(2, found / 16 + 1)


def test_a_bound_that_no_rate_keeps_is_0_and_an_endless_search_ends() -> None:
    load = Load(rate=50, queries=100, bound_ms=20.0)
    assert find_highest_rate(lambda _load: served(99.0), load=load) == 0
    assert find_highest_rate(lambda _load: served(1.0), load=load) >= 50 * 2**7
    with pytest.raises(ValueError, match="needs a bound"):
        find_highest_rate(lambda _load: served(), load=Load(rate=50, queries=100))
