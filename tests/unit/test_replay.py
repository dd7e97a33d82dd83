"""The clock with which pytest-benchmark records times that were taken before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_quantgate.plugin.replay import ReplayClock


def test_a_replay_clock_gives_the_times_it_was_loaded_with() -> None:
    clock = ReplayClock()
    assert clock() == 0.0
    clock.load([10.0, 2.5])

    def durations() -> Iterator[float]:
        for _ in range(3):
            started = clock()
            clock.step()
            yield clock() - started

    assert list(durations()) == pytest.approx([0.010, 0.0025, 0.0])


def test_it_can_be_loaded_again() -> None:
    clock = ReplayClock()
    clock.load([10.0, 10.0])
    clock.step()
    clock.load([1.0])
    started = clock()
    clock.step()
    assert clock() - started == pytest.approx(0.001)
