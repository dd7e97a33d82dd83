"""A fall over time: exact chances, ties, and small steps that add up."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.statistics.trend import MOST_VALUES, find_fall


def count_orders(values: tuple[int, ...]) -> float:
    """Return the chance of a fall as clear as this one, by trying every order."""

    def score(order: tuple[int, ...]) -> int:
        return sum((b > a) - (b < a) for a, b in itertools.combinations(order, 2))

    scores = Counter(score(order) for order in itertools.permutations(values))
    falls = sum(number for found, number in scores.items() if found <= score(values))
    return falls / sum(scores.values())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
def test_the_chance_is_that_of_all_orders_ties_or_none(values: list[int]) -> None:
    assert find_fall(values).chance == pytest.approx(count_orders(tuple(values)))


def test_a_fall_in_steps_that_nobody_minds_is_clear() -> None:
    found = find_fall([0.912 - 0.0005 * run for run in range(8)])

    assert found.score == -28
    assert found.chance == pytest.approx(1 / 40320)
    assert found.change == pytest.approx(-0.0035)
    assert found.largest_step == pytest.approx(-0.0005)


def test_values_that_stay_or_rise_do_not_fall() -> None:
    assert find_fall([1.0] * 9).chance == 1
    assert find_fall([1.0, 2.0, 3.0]).chance == 1


def test_the_slope_takes_no_notice_of_one_odd_run() -> None:
    assert find_fall([5.0, 5.0, 5.0, -90.0, 5.0, 5.0]).change == 0


def test_old_values_make_way_and_many_are_quick() -> None:
    found = find_fall([float(i) for i in range(500)] + [0.0] * MOST_VALUES)
    assert (found.values, found.score) == (MOST_VALUES, 0)


def test_a_single_value_has_no_trend() -> None:
    with pytest.raises(ValueError, match="1 values have no trend"):
        find_fall([1.0])


def test_noise_is_taken_for_a_fall_as_often_as_the_level_says() -> None:
    stream = random.Random(0)
    alarms = sum(
        find_fall([stream.gauss(0, 1) for _ in range(8)]).chance <= 0.05 for _ in range(500)
    )
    assert alarms <= 0.05 * 500 + 3 * (500 * 0.05 * 0.95) ** 0.5
