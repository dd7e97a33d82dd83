"""Where the search for a limit ends, and a look that adds nothing."""

from __future__ import annotations

from fractions import Fraction

from pytest_quantgate.statistics import intervals
from pytest_quantgate.statistics.looks import LEAST_CHANCE, Step, confidences_of_looks


def test_a_limit_at_zero_is_come_as_near_as_halving_comes() -> None:
    assert 0 < intervals._last(lambda value: value > 0, inside=1.0, outside=0.0) < 1e-50


def test_a_look_at_no_new_samples_has_what_is_left_of_the_chance() -> None:
    steps = [Step(samples=100, spent=1.0), Step(samples=100, spent=1.0)]

    first, again = confidences_of_looks(Fraction(95, 100), steps)

    assert first == Fraction(95, 100)
    assert float(1 - again) == LEAST_CHANCE
