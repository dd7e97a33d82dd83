"""How many samples it takes: searches that agree with the limits that they foresee."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_quantgate.statistics.intervals import (
    CONTINUITY,
    MOST_SAMPLES,
    Flips,
    Mean,
    Share,
    share_limits,
)
from pytest_quantgate.statistics.sizes import (
    chance_to_pass,
    first_count,
    samples_to_settle,
    samples_without_loss,
)
from tests.unit.gates.gate_builders import SAME_EXAMPLES
from tests.unit.statistics.interval_builders import counts_of, flips_of, limits, mean_flips, tables

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("limit", [0.01, 0.2])
def test_a_mean_is_settled_where_its_own_limits_decide(limit: float) -> None:
    """The advised size is the least at which a result decides that is as near to the limit as one
    in five is."""
    found = mean_flips([counts_of(900, 9, 9), counts_of(40, 4, 1), counts_of(38, 3, 0)])

    needed = samples_to_settle(found, confidence=0.95, limit=limit)

    def spare(samples: int) -> float:
        assert isinstance(found, Mean)
        grown = found.grow(samples / found.samples)
        away = NormalDist().inv_cdf(0.8) * math.sqrt(grown.variance)
        near = grown.move(away if found.value < limit else -away)
        assert abs(near.value - grown.value) == pytest.approx(away)
        mean = limits(near)
        return (limit - mean.high) if found.value < limit else (mean.low - limit)

    assert needed is not None
    assert spare(needed) >= 0 > spare(needed - 1)


def test_a_mean_at_its_limit_is_never_settled() -> None:
    found = mean_flips([counts_of(1000, 10, 0), counts_of(20, 1, 0)])

    assert samples_to_settle(found, confidence=0.95, limit=found.value) is None


@pytest.mark.parametrize(("value", "limit"), [(0.06, 0.1), (0.8, 0.7), (0.8, 0.9), (0.0, 0.02)])
def test_a_share_is_settled_where_its_own_limits_decide(value: float, limit: float) -> None:
    one = Share(count=value, samples=1)

    needed = samples_to_settle(one, confidence=0.95, limit=limit)

    def spare(samples: int) -> float:
        found = one.grow(samples)
        away = NormalDist().inv_cdf(0.8) * math.sqrt(value * (1 - value) / samples)
        bounds = share_limits(found.move(away if value < limit else -away), confidence=0.95)
        return (limit - bounds.high) if value < limit else (bounds.low - limit)

    assert needed is not None
    assert spare(needed) >= 0 > spare(needed - 1)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.2])
def test_samples_without_loss_are_the_least_that_pass(limit: float) -> None:
    least = samples_without_loss(confidence=0.95, limit=limit)

    assert least is not None
    assert limits(flips_of(least, 0, 0)).high <= limit
    assert limits(flips_of(least - 1, 0, 0)).high > limit


def test_no_number_of_samples_shows_that_nothing_is_lost() -> None:
    assert samples_without_loss(confidence=0.95, limit=0.0) is None


@SAME_EXAMPLES
@given(flips=tables(most=500), limit=st.sampled_from([0.001, 0.005, 0.01, 0.02, 0.1]))
def test_more_power_and_confidence_take_more_samples(flips: Flips, limit: float) -> None:
    needed = samples_to_settle(flips, confidence=0.95, limit=limit)
    assume(needed is not None and needed < MOST_SAMPLES / 10)
    assert needed is not None

    powerful = samples_to_settle(flips, confidence=0.95, limit=limit, power=0.95)
    confident = samples_to_settle(flips, confidence=0.99, limit=limit)

    assert powerful is not None
    assert confident is not None
    assert powerful >= needed
    assert confident > needed


@SAME_EXAMPLES
@given(flips=tables(most=500), limit=st.sampled_from([0.005, 0.01, 0.02, 0.1]))
def test_a_result_at_these_rates_and_the_advised_size_is_decided(
    flips: Flips, limit: float
) -> None:
    """Four in five runs decide, so the run that shows just the expected counts does too."""
    needed = samples_to_settle(flips, confidence=0.95, limit=limit)
    assume(needed is not None)
    assert needed is not None
    scale = needed / flips.samples

    found = limits(flips_of(needed, flips.right_to_wrong * scale, flips.wrong_to_right * scale))

    assert found.high <= limit * 1.03 or found.low > limit * 0.97


@pytest.mark.parametrize(
    ("lost", "won", "limit", "power"),
    [
        (0, 0, 0.01, 0.8),
        (5, 0, 0.02, 0.8),
        (5, 0, 0.02, 0.95),
        (30, 0, 0.1, 0.5),
        (30, 25, 0.02, 0.8),
        (40, 5, 0.01, 0.8),
    ],
)
def test_size_is_the_least_at_which_so_many_runs_decide(
    lost: int, won: int, limit: float, power: float
) -> None:
    """The standard deviation at the limit is the one that the score there divides by."""
    flips = flips_of(1_000, lost, won)
    moved = abs(lost - won - 1_000 * limit) - CONTINUITY
    there = moved / abs(flips.score(limit).value) / math.sqrt(1_000)
    if not won and lost <= 5:
        assert there == pytest.approx(math.sqrt(limit * (1 - limit)))
    here = math.sqrt(flips.variance * 1_000)
    spread = NormalDist().inv_cdf(0.95) * there + NormalDist().inv_cdf(power) * here

    needed = samples_to_settle(flips, confidence=0.95, limit=limit, power=power)

    def spare(number: int) -> float:
        return number * abs(limit - flips.value) - CONTINUITY - math.sqrt(number) * spread

    assert needed is not None
    assert spare(needed) >= 0 > spare(needed - 1)


@SAME_EXAMPLES
@given(
    samples=st.integers(1, 14),
    lost=st.sampled_from([0.0, 0.05, 0.3]),
    won=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    limit=st.sampled_from([0.1, 0.3, 0.6, 0.9]),
)
def test_chance_to_pass_is_the_sum_over_all_results_that_pass(
    samples: int, lost: float, won: float, limit: float
) -> None:
    lost = min(lost, 1 - won)

    found = chance_to_pass(
        flips_of(samples, samples * lost, samples * won), confidence=0.95, limit=limit
    )

    expected = sum(
        math.comb(samples, c)
        * math.comb(samples - c, b)
        * won**c
        * lost**b
        * (1 - won - lost) ** (samples - b - c)
        for c in range(samples + 1)
        for b in range(samples + 1 - c)
        if limits(flips_of(samples, b, c)).high <= limit
    )
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("power", [0.3, 0.8, 0.95])
@pytest.mark.parametrize(("lost", "won", "limit"), [(0.02, 0.015, 0.01), (0.03, 0.035, 0.0)])
def test_large_samples_pass_as_often_as_the_size_was_asked_for(
    power: float, lost: float, won: float, limit: float
) -> None:
    rates = flips_of(1, lost, won)
    needed = samples_to_settle(rates, confidence=0.95, limit=limit, power=power)
    assert needed is not None
    assert needed > 1_000

    found = chance_to_pass(rates.grow(needed), confidence=0.95, limit=limit)

    assert found == pytest.approx(power, abs=2e-3)


@pytest.mark.parametrize(("fewer", "chance"), [(1, 0.0), (0, 1.0)])
def test_large_samples_without_a_flip_pass_or_do_not(fewer: int, chance: float) -> None:
    least = samples_to_settle(flips_of(1, 0, 0), confidence=0.95, limit=0.002)
    assert least is not None
    assert least > 1_001

    assert chance_to_pass(flips_of(least - fewer, 0, 0), confidence=0.95, limit=0.002) == chance


@pytest.mark.parametrize("limit", [0.005, 0.005 + 1e-9, 0.005 * (1 + 1e-15)])
def test_drop_at_its_limit_is_never_settled(limit: float) -> None:
    """Either it is the limit, or so near that a thousand million samples do not part them."""
    assert samples_to_settle(flips_of(10_000, 60, 10), confidence=0.95, limit=limit) is None


@pytest.mark.parametrize("answer", [3, 4, 77, 100])
def test_first_count_is_the_least_that_holds(answer: int) -> None:
    assert first_count(lambda number: number >= answer, low=3, high=100) == answer


def test_first_count_may_be_the_only_one() -> None:
    assert first_count(lambda number: number == 7, low=7, high=7) == 7


def test_one_sample_settles_what_any_would() -> None:
    assert samples_to_settle(Share(count=0, samples=1), confidence=0.5, limit=1.0, power=0.5) == 1
    assert samples_without_loss(confidence=0.5, limit=0.99) == 1


def test_first_count_of_what_never_holds_is_none() -> None:
    assert first_count(lambda _: False, low=1, high=100) is None
    assert first_count(lambda _: True, low=1, high=0) is None
