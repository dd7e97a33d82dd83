"""The paired interval, Wilson's interval, the bootstrap over classes, and the searches."""

from __future__ import annotations

import itertools
import math
import random
import sys
from statistics import NormalDist

import pytest
from gate_builders import SAME_EXAMPLES
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_quantgate.errors import MissingPackage
from pytest_quantgate.gates.statistics import (
    MOST_SAMPLES,
    ClassCounts,
    Interval,
    first_count,
    mean_class_drop_limits,
    paired_drop_limits,
    samples_to_settle,
    share_limits,
    tango_score,
)

CONFIDENCES = st.sampled_from([0.8, 0.9, 0.95, 0.975, 0.99, 0.999])
Z95 = NormalDist().inv_cdf(0.95)


@st.composite
def tables(draw: st.DrawFn, *, most: int = 3000) -> tuple[int, int, int]:
    """Samples, lost and won that fit together, with the corners drawn often."""
    samples = draw(st.integers(1, most))
    lost = draw(st.one_of(st.just(0), st.integers(0, min(samples, 40)), st.integers(0, samples)))
    won = draw(st.one_of(st.just(0), st.integers(0, samples - lost)))
    return samples, lost, won


def limits(table: tuple[int, int, int], confidence: float = 0.95) -> Interval:
    samples, lost, won = table
    return paired_drop_limits(
        right_to_wrong=lost, wrong_to_right=won, samples=samples, confidence=confidence
    )


# -- the paired interval ------------------------------------------------------------------------


@SAME_EXAMPLES
@given(table=tables(), confidence=CONFIDENCES)
def test_drop_lies_between_its_limits(table: tuple[int, int, int], confidence: float) -> None:
    samples, lost, won = table

    found = limits(table, confidence)

    assert -1 <= found.low <= (lost - won) / samples <= found.high <= 1


@SAME_EXAMPLES
@given(table=tables(), confidence=CONFIDENCES)
def test_limits_solve_the_score_equation(table: tuple[int, int, int], confidence: float) -> None:
    samples, lost, won = table
    z = NormalDist().inv_cdf(confidence)

    found = limits(table, confidence)

    for limit, expected in ((found.low, z), (found.high, -z)):
        if abs(limit) < 1:
            score = tango_score(limit, right_to_wrong=lost, wrong_to_right=won, samples=samples)
            assert score == pytest.approx(expected, rel=1e-6)


@SAME_EXAMPLES
@given(table=tables(), confidence=CONFIDENCES)
def test_one_more_loss_raises_both_limits(table: tuple[int, int, int], confidence: float) -> None:
    samples, lost, won = table
    assume(lost + won < samples)

    fewer, more = limits(table, confidence), limits((samples, lost + 1, won), confidence)

    assert more.low > fewer.low
    assert more.high > fewer.high or fewer.high == 1


@SAME_EXAMPLES
@given(table=tables(), confidence=CONFIDENCES)
def test_swapping_the_variants_turns_the_interval_round(
    table: tuple[int, int, int], confidence: float
) -> None:
    samples, lost, won = table

    there, back = limits(table, confidence), limits((samples, won, lost), confidence)

    assert there.low == pytest.approx(-back.high, abs=1e-12)
    assert there.high == pytest.approx(-back.low, abs=1e-12)


@SAME_EXAMPLES
@given(table=tables(), confidence=CONFIDENCES, times=st.integers(2, 50))
def test_more_samples_at_the_same_rates_narrow_the_interval(
    table: tuple[int, int, int], confidence: float, times: int
) -> None:
    samples, lost, won = table

    few = limits(table, confidence)
    many = limits((samples * times, lost * times, won * times), confidence)

    assert many.low > few.low or few.low == many.low == -1
    assert many.high < few.high or few.high == many.high == 1
    assert many.high - many.low < few.high - few.low


@SAME_EXAMPLES
@given(table=tables())
def test_more_confidence_widens_the_interval(table: tuple[int, int, int]) -> None:
    found = [limits(table, confidence) for confidence in (0.8, 0.95, 0.99)]

    for narrow, wide in itertools.pairwise(found):
        assert wide.low <= narrow.low
        assert wide.high >= narrow.high


@SAME_EXAMPLES
@given(table=tables(most=400), delta=st.floats(-0.95, 0.95))
def test_nuisance_is_where_the_likelihood_is_largest(
    table: tuple[int, int, int], delta: float
) -> None:
    """The closed form against a plain search for the restricted maximum likelihood."""
    samples, lost, won = table
    same = samples - lost - won

    def likelihood(share_won: float) -> float:
        cells = ((lost, share_won + delta), (won, share_won), (same, 1 - 2 * share_won - delta))
        return sum(times * math.log(share) for times, share in cells if times)

    low, high = max(0.0, -delta), (1 - delta) / 2
    for _ in range(200):
        third = (high - low) / 3
        left, right = low + third, high - third
        if not low < left < right < high:
            break
        if likelihood(left) < likelihood(right):
            low = left
        else:
            high = right
    nuisance = (low + high) / 2
    variance = samples * (2 * nuisance + delta * (1 - delta))
    assume(variance > 1e-3)
    expected = (lost - won - samples * delta) / math.sqrt(variance)

    found = tango_score(delta, right_to_wrong=lost, wrong_to_right=won, samples=samples)

    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("limit", "least"), [(0.01, 268), (0.005, 539)])
def test_without_a_flip_a_known_number_of_samples_is_enough(limit: float, least: int) -> None:
    assert Z95**2 / (least + Z95**2) <= limit < Z95**2 / (least - 1 + Z95**2)

    assert limits((least, 0, 0)).high <= limit
    assert limits((least - 1, 0, 0)).high > limit


@pytest.mark.parametrize("samples", [1, 7, 268, 10_000])
def test_without_a_flip_the_limits_have_a_closed_form(samples: int) -> None:
    expected = Z95**2 / (samples + Z95**2)

    found = limits((samples, 0, 0))

    assert found.high == pytest.approx(expected, rel=1e-12)
    assert found.low == pytest.approx(-expected, rel=1e-12)


def test_all_lost_leaves_no_room_above() -> None:
    found = limits((50, 50, 0))

    assert found.high == 1
    assert found.low == pytest.approx((50 - Z95**2) / (50 + Z95**2), rel=1e-12)


def test_all_won_leaves_no_room_below() -> None:
    found = limits((50, 0, 50))

    assert found.low == -1
    assert found.high == pytest.approx(-(50 - Z95**2) / (50 + Z95**2), rel=1e-12)


@pytest.mark.parametrize("table", [(100, 0, 0), (100, 7, 2), (100, 0, 1)])
def test_at_even_odds_both_limits_are_the_drop(table: tuple[int, int, int]) -> None:
    samples, lost, won = table

    found = limits(table, 0.5)

    assert found.low == pytest.approx((lost - won) / samples, abs=1e-12)
    assert found.high == pytest.approx((lost - won) / samples, abs=1e-12)


def test_few_flips_in_very_many_samples_keep_their_digits() -> None:
    """The textbook form of the nuisance loses them all to cancellation."""
    many, fewer = limits((10**9, 1, 0)), limits((10**6, 1, 0))

    # One flip is one flip: as a count, the limits do not depend on how many samples agree.
    assert many.high * 10**9 == pytest.approx(fewer.high * 10**6, rel=1e-4)
    assert many.low * 10**9 == pytest.approx(fewer.low * 10**6, rel=1e-4)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((0, 0, 0), "0 and 0 flips do not fit 0 samples"),
        ((5, 3, 3), "3 and 3 flips do not fit 5 samples"),
        ((5, -1, 0), "-1 and 0 flips do not fit 5 samples"),
        ((5, 0, -1), "0 and -1 flips do not fit 5 samples"),
    ],
)
def test_impossible_counts_are_refused(table: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limits(table)


def test_score_of_a_hypothesis_without_spread() -> None:
    def score(delta: float, *, lost: int) -> float:
        return tango_score(delta, right_to_wrong=lost, wrong_to_right=0, samples=10)

    assert score(0.0, lost=0) == 0.0
    assert score(1.0, lost=10) == 0.0
    assert score(1.0, lost=9) == -math.inf


# -- Wilson's interval --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "samples", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_share_limits_are_the_published_ones(
    count: int, samples: int, low: float, high: float
) -> None:
    """Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, two-sided 95 %."""
    found = share_limits(count=count, samples=samples, confidence=0.975)

    assert round(found.low, 4) == low
    assert round(found.high, 4) == high


@SAME_EXAMPLES
@given(data=st.data(), samples=st.integers(1, 5000), confidence=CONFIDENCES)
def test_share_limits_solve_their_score_equation(
    data: st.DataObject, samples: int, confidence: float
) -> None:
    count = data.draw(st.integers(0, samples))
    z, share = NormalDist().inv_cdf(confidence), count / samples

    found = share_limits(count=count, samples=samples, confidence=confidence)

    assert 0 <= found.low <= share <= found.high <= 1
    for limit in (found.low, found.high):
        if 0 < limit < 1:
            spread = math.sqrt(limit * (1 - limit) / samples)
            assert abs(share - limit) / spread == pytest.approx(z, rel=1e-6)


def test_none_and_all_reach_the_ends() -> None:
    assert share_limits(count=0, samples=10, confidence=0.95).low == 0
    assert share_limits(count=10, samples=10, confidence=0.95).high == 1


@pytest.mark.parametrize(("count", "samples"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_share_is_refused(count: int, samples: int) -> None:
    with pytest.raises(ValueError, match=f"{count} of {samples} is no share"):
        share_limits(count=count, samples=samples, confidence=0.95)


# -- the bootstrap over classes -----------------------------------------------------------------

THREE = (
    ClassCounts(samples=100, right_to_wrong=6, wrong_to_right=2),
    ClassCounts(samples=40, right_to_wrong=0, wrong_to_right=1),
    ClassCounts(samples=10, right_to_wrong=0, wrong_to_right=0),
)


def test_same_classes_give_the_same_digits() -> None:
    assert mean_class_drop_limits(THREE, confidence=0.95) == mean_class_drop_limits(
        THREE, confidence=0.95
    )


def test_another_seed_gives_other_digits_of_the_same_limits() -> None:
    first = mean_class_drop_limits(THREE, confidence=0.95)
    second = mean_class_drop_limits(THREE, confidence=0.95, seed=1)

    assert first != second
    assert first.low == pytest.approx(second.low, abs=0.005)
    assert first.high == pytest.approx(second.high, abs=0.005)


def test_many_classes_are_drawn_in_several_pieces() -> None:
    """A thousand classes do not fit in one piece; the pieces still make one distribution."""
    classes = [ClassCounts(samples=50, right_to_wrong=5, wrong_to_right=0)] * 1000

    found = mean_class_drop_limits(classes, confidence=0.95, draws=1500)

    assert found.low < 0.1 < found.high + 0.002
    assert found.high - found.low < 0.005


def test_agreeing_samples_claim_no_certainty() -> None:
    found = mean_class_drop_limits(
        [ClassCounts(samples=10, right_to_wrong=0, wrong_to_right=0)], confidence=0.95
    )

    assert found.low < -0.05
    assert found.high > 0.05


def test_limits_cover_the_true_mean_drop_as_often_as_they_say() -> None:
    chance = random.Random(20)
    rates = ((0.08, 0.02), (0.05, 0.05), (0.12, 0.03), (0.02, 0.06))
    truth = sum(lost - won for lost, won in rates) / len(rates)
    below = above = 0
    runs = 200
    for _ in range(runs):
        classes = []
        for lost_rate, won_rate in rates:
            draws = [chance.random() for _ in range(150)]
            lost = sum(draw < lost_rate for draw in draws)
            won = sum(lost_rate <= draw < lost_rate + won_rate for draw in draws)
            classes.append(ClassCounts(samples=150, right_to_wrong=lost, wrong_to_right=won))
        found = mean_class_drop_limits(classes, confidence=0.9, draws=500)
        above += found.high >= truth
        below += found.low <= truth

    # 0.9 plus or minus three standard deviations of 200 throws.
    assert 0.83 < above / runs < 0.97
    assert 0.83 < below / runs < 0.97


@pytest.mark.parametrize(
    "classes", [(), (ClassCounts(samples=0, right_to_wrong=0, wrong_to_right=0),)]
)
def test_empty_class_is_refused(classes: tuple[ClassCounts, ...]) -> None:
    with pytest.raises(ValueError, match="needs samples in each class"):
        mean_class_drop_limits(classes, confidence=0.95)


def test_bootstrap_without_numpy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)

    with pytest.raises(MissingPackage, match=r"pip install 'pytest-quantgate\[clip\]'"):
        mean_class_drop_limits(THREE, confidence=0.95)


# -- the searches -------------------------------------------------------------------------------


@SAME_EXAMPLES
@given(table=tables(most=500), limit=st.sampled_from([0.001, 0.005, 0.01, 0.02, 0.1]))
def test_number_of_samples_settles_and_one_fewer_does_not(
    table: tuple[int, int, int], limit: float
) -> None:
    samples, lost, won = table

    def settled(size: int) -> bool:
        scale = size / samples
        found = paired_drop_limits(
            right_to_wrong=lost * scale,
            wrong_to_right=won * scale,
            samples=size,
            confidence=0.95,
        )
        return found.high <= limit or found.low > limit

    assume(not settled(samples))

    needed = samples_to_settle(
        right_to_wrong=lost, wrong_to_right=won, samples=samples, confidence=0.95, limit=limit
    )

    if needed is None:
        assert not settled(MOST_SAMPLES) or math.isclose((lost - won) / samples, limit)
    else:
        assert needed > samples
        assert settled(needed)
        assert not settled(needed - 1)


@pytest.mark.parametrize("limit", [0.005, 0.005 + 1e-9])
def test_drop_at_its_limit_is_never_settled(limit: float) -> None:
    """Either it is the limit, or so near that a thousand million samples do not part them."""
    assert (
        samples_to_settle(
            right_to_wrong=60, wrong_to_right=10, samples=10_000, confidence=0.95, limit=limit
        )
        is None
    )


@pytest.mark.parametrize("answer", [3, 4, 77, 100])
def test_first_count_is_the_least_that_holds(answer: int) -> None:
    assert first_count(lambda number: number >= answer, low=3, high=100) == answer


def test_first_count_of_what_never_holds_is_none() -> None:
    assert first_count(lambda _: False, low=1, high=100) is None
    assert first_count(lambda _: True, low=1, high=0) is None
