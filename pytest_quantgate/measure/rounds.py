"""Rounds of several runners in turn, each in processes of its own that are started anew."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

from pytest_quantgate.measure.runner import Clock, Runner

FP16 = "fp16"
QUANTIZED = "quantized"
AGAIN = "fp16 again"

#: How often the runners are started anew at least, and how many rounds they do each time.
LEAST_PROCESSES = 5
ROUNDS_A_PROCESS = 6

#: Starts a runner for as long as the context lasts, and opens it where that is called.
Start = Callable[[], AbstractContextManager[Callable[[], Runner]]]

Taken = TypeVar("Taken")


def _never(_taken: Mapping[str, Sequence[object]], _processes: int, _pause_rounds: float) -> bool:
    return False


def share_rounds(rounds: int) -> tuple[int, int]:
    """Return how many processes do how many rounds each, so that there are `rounds` at least."""
    processes = max(LEAST_PROCESSES, -(-rounds // ROUNDS_A_PROCESS))
    return processes, -(-rounds // processes)


def first_look(processes: int) -> int:
    """Return after how many of its processes a run is looked at, before its end."""
    return -(-3 * processes // 5)


def interleave(
    runners: Mapping[str, Start],
    *,
    processes: int,
    rounds: int,
    prepare: Callable[[str, Runner], Callable[[int], Taken]],
    clock: Clock,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _count: None,
    is_enough: Callable[[Mapping[str, Sequence[Taken]], int, float], bool] = _never,
) -> tuple[dict[str, list[Taken]], float]:
    """Return what each runner gave in every round, and the pause between processes in rounds.

    The runners are `fp16` and `quantized`, and FP16 a second time; all three are started
    `processes` times, and do `rounds` rounds each time. `prepare` is given the name and a
    runner that was opened, and returns what does a round of it by its number. The order in a
    round is drawn from `seed`; in every six rounds each runner is in each place twice.
    `advance` is called with 1 after each round. `is_enough` is asked after each process but the
    last whether it may be the last: it is given what was taken so far, of how many processes, and
    the pause between them.

    Raises ValueError for other runners or no rounds; what a runner raises is raised.
    """
    if set(runners) != {FP16, QUANTIZED}:
        raise ValueError(f"runners are {FP16!r} and {QUANTIZED!r}, not {sorted(runners)}")
    if min(rounds, processes) < 1:
        raise ValueError(f"{rounds} rounds in {processes} processes measure nothing")
    starts = {**runners, AGAIN: runners[FP16]}
    taken: dict[str, list[Taken]] = {name: [] for name in starts}
    orders = _draw_orders(tuple(sorted(starts)), seed=seed)
    spans: list[tuple[float, float]] = []
    for process in range(processes):
        with ExitStack() as stack:
            started = {name: stack.enter_context(start()) for name, start in starts.items()}
            ready = {name: prepare(name, open_it()) for name, open_it in started.items()}
            begun = clock()
            for number, order in enumerate(itertools.islice(orders, rounds)):
                for name in order:
                    taken[name].append(ready[name](process * rounds + number))
                advance(1)
            spans.append((begun, clock()))
        done = process + 1
        if done < processes and is_enough(taken, done, _measure_pause(spans, rounds=rounds)):
            break
    return taken, _measure_pause(spans, rounds=rounds)


def _measure_pause(spans: list[tuple[float, float]], *, rounds: int) -> float:
    """Return how long it takes from one process to the next, in rounds."""
    round_s = sum(end - begin for begin, end in spans) / (rounds * len(spans))
    pauses = [after[0] - before[1] for before, after in itertools.pairwise(spans)]
    if not pauses or not round_s:
        return 0.0
    return statistics.fmean(pauses) / round_s


def _draw_orders(names: tuple[str, ...], *, seed: int) -> Iterator[tuple[str, ...]]:
    """Yield orders for ever: all permutations in a drawn order, then all of them again.

    What runs after a slow runner finds other caches and clocks than what runs after a fast
    one; so every runner is in every place equally often.
    """
    stream = random.Random(seed)
    orders = list(itertools.permutations(names))
    while True:
        stream.shuffle(orders)
        yield from orders
