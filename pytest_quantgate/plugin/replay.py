"""Lets pytest-benchmark record times that were taken before; light, as collecting imports it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class ReplayClock:
    """A clock for pytest-benchmark that stands still but for `step`.

    Calibration and rounds of pytest-benchmark would time one runner on its own; here the rounds
    of all are interleaved, and on a GPU the time is the device's. So the clock is the timer of a
    benchmark (`@pytest.mark.benchmark(timer=clock)`) from its collection on; once the times are
    there it is loaded with them, and `benchmark.pedantic(clock.step, rounds=len(times_ms))` lets
    them pass again.
    """

    def __init__(self) -> None:
        self._waiting: Iterator[float] = iter(())
        self._now_s = 0.0

    def load(self, times_ms: Iterable[float]) -> None:
        """Take the times of the rounds to come."""
        self._waiting = iter(tuple(times_ms))

    def __call__(self) -> float:
        """Return the time in s."""
        return self._now_s

    def step(self) -> None:
        """Let the next recorded time pass; nothing passes after the last."""
        self._now_s += next(self._waiting, 0.0) / 1e3
