"""Results of all sizes, for the tests of intervals and of sample sizes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from pytest_quantgate.statistics.intervals import (
    ClassCounts,
    Flips,
    Interval,
    Mean,
    drop_limits,
    mean_over,
)


@st.composite
def tables(draw: st.DrawFn, *, most: int = 3000) -> Flips:
    """Samples, lost and won that fit together, with the corners drawn often."""
    samples = draw(st.integers(1, most))
    lost = draw(st.one_of(st.just(0), st.integers(0, min(samples, 40)), st.integers(0, samples)))
    won = draw(st.one_of(st.just(0), st.integers(0, samples - lost)))
    return flips_of(samples, lost, won)


def flips_of(samples: float, lost: float, won: float) -> Flips:
    return Flips(right_to_wrong=lost, wrong_to_right=won, samples=samples)


def limits(flips: Flips | Mean[Flips], confidence: float = 0.95) -> Interval:
    return drop_limits(flips, confidence=confidence)


def counts_of(samples: int, lost: int, won: int, *, right: int = 0) -> ClassCounts:
    return ClassCounts(samples=samples, right=right, right_to_wrong=lost, wrong_to_right=won)


def mean_flips(classes: Sequence[ClassCounts]) -> Flips | Mean[Flips]:
    return mean_over([found.flips for found in classes])
