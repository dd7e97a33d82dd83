"""Intervals, effective sizes and searches: their laws here, how often they hold in
`test_interval_rates.py`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pytest_quantgate.statistics.intervals import (
    CONTINUITY,
    ClassCounts,
    Flips,
    Mean,
    Score,
    Share,
    chance_above,
    chance_below,
    clustered_samples,
    effective_samples,
    mean_over,
    most_of_clumps,
    share_limits,
)
from tests.unit.gates.gate_builders import SAME_EXAMPLES
from tests.unit.statistics.interval_builders import counts_of, flips_of, limits, mean_flips, tables

pytestmark = pytest.mark.slow


CONFIDENCES = st.sampled_from([0.8, 0.9, 0.95, 0.975, 0.99, 0.999])


@SAME_EXAMPLES
@given(flips=tables(), confidence=CONFIDENCES)
def test_drop_lies_between_its_limits(flips: Flips, confidence: float) -> None:
    found = limits(flips, confidence)

    assert -1 <= found.low <= flips.value <= found.high <= 1


@SAME_EXAMPLES
@given(flips=tables(), confidence=CONFIDENCES)
def test_limits_solve_the_score_equation(flips: Flips, confidence: float) -> None:
    z = NormalDist().inv_cdf(confidence)

    found = limits(flips, confidence)

    for limit, expected in ((found.low, z), (found.high, -z)):
        if abs(limit) < 1:
            assert flips.score(limit).normal() == pytest.approx(expected, rel=1e-6)


@SAME_EXAMPLES
@given(flips=tables(), confidence=st.sampled_from([0.9, 0.95, 0.99]), limit=st.floats(0.0005, 0.2))
def test_a_limit_is_beyond_just_where_its_chance_is_small(
    flips: Flips, confidence: float, limit: float
) -> None:
    """The two faces of one decision: the interval for people, the chance for the family."""
    found = limits(flips, confidence)
    assume(min(abs(found.low - limit), abs(found.high - limit)) > 1e-9)

    assert (found.low > limit) == (chance_above(flips, limit) < 1 - confidence)
    assert (found.high < limit) == (chance_below(flips, limit) < 1 - confidence)


@SAME_EXAMPLES
@given(flips=tables(), confidence=CONFIDENCES)
def test_one_more_loss_raises_both_limits(flips: Flips, confidence: float) -> None:
    assume(flips.right_to_wrong + flips.wrong_to_right < flips.samples)
    more_lost = flips_of(flips.samples, flips.right_to_wrong + 1, flips.wrong_to_right)

    fewer, more = limits(flips, confidence), limits(more_lost, confidence)

    assert more.low > fewer.low or fewer.low == -1
    assert more.high > fewer.high or fewer.high == 1


@SAME_EXAMPLES
@given(flips=tables(), confidence=CONFIDENCES)
def test_swapping_the_variants_turns_the_interval_round(flips: Flips, confidence: float) -> None:
    swapped = flips_of(flips.samples, flips.wrong_to_right, flips.right_to_wrong)

    there, back = limits(flips, confidence), limits(swapped, confidence)

    assert there.low == pytest.approx(-back.high, abs=1e-9)
    assert there.high == pytest.approx(-back.low, abs=1e-9)


@SAME_EXAMPLES
@given(flips=tables(), confidence=CONFIDENCES, times=st.integers(2, 50))
def test_more_samples_at_the_same_rates_narrow_the_interval(
    flips: Flips, confidence: float, times: int
) -> None:
    few = limits(flips, confidence)
    many = limits(
        flips_of(flips.samples * times, flips.right_to_wrong * times, flips.wrong_to_right * times),
        confidence,
    )

    assert many.low > few.low or few.low == many.low == -1
    assert many.high < few.high or few.high == many.high == 1


@SAME_EXAMPLES
@given(flips=tables())
def test_more_confidence_widens_the_interval(flips: Flips) -> None:
    found = [limits(flips, confidence) for confidence in (0.8, 0.95, 0.99, 0.999)]

    for narrow, wide in itertools.pairwise(found):
        assert wide.low <= narrow.low
        assert wide.high >= narrow.high


@SAME_EXAMPLES
@given(flips=tables(most=400), delta=st.floats(-0.95, 0.95))
def test_nuisance_is_where_the_likelihood_is_largest(flips: Flips, delta: float) -> None:
    """The closed form against a plain search for the restricted maximum likelihood."""
    lost, won, samples = flips.right_to_wrong, flips.wrong_to_right, flips.samples
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
    variance = 2 * nuisance + delta * (1 - delta)
    assume(variance > 1e-3 / samples)
    distance = lost - won - samples * delta
    continuity = CONTINUITY * (2 - min(same, 2) / 2 if lost + won else 1)
    distance = math.copysign(max(0.0, abs(distance) - continuity), distance)
    moments = ((1, nuisance + delta), (-1, nuisance), (0, 1 - 2 * nuisance - delta))
    third_moment = sum((x - delta) ** 3 * share for x, share in moments)

    found = flips.score(delta)

    assert found.value == pytest.approx(
        distance / math.sqrt(samples * variance), rel=1e-4, abs=1e-4
    )
    assert found.skewness == pytest.approx(
        third_moment / variance**1.5 / math.sqrt(samples), rel=1e-3, abs=1e-3
    )


@pytest.mark.parametrize(("limit", "least"), [(0.01, 311), (0.005, 623)])
def test_without_a_flip_a_known_number_of_samples_is_enough(limit: float, least: int) -> None:
    """Just above the rule of three, which is exact: ln 20 = 3.0; 2.7 without the corrections."""
    assert 3.0 < least * limit < 3.2

    assert limits(flips_of(least, 0, 0)).high <= limit
    assert limits(flips_of(least - 1, 0, 0)).high > limit


def test_all_lost_leaves_no_room_above() -> None:
    found = limits(flips_of(50, 50, 0))

    # Under the exact limit for what is lost or stays the same: nothing says that none can be won.
    assert found.high == 1
    assert 0.87 < found.low < 0.05 ** (1 / 50)


def test_all_won_leaves_no_room_below() -> None:
    found = limits(flips_of(50, 0, 50))

    assert found.low == -1
    assert found.high == pytest.approx(-limits(flips_of(50, 50, 0)).low, abs=1e-12)


def test_few_flips_in_very_many_samples_keep_their_digits() -> None:
    """The textbook form of the nuisance loses them all to cancellation."""
    many, fewer = limits(flips_of(10**9, 1, 0)), limits(flips_of(10**6, 1, 0))

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
        flips_of(*table)


def test_score_of_a_hypothesis_without_spread() -> None:
    assert flips_of(10, 0, 0).score(0.0).normal() == 0.0
    assert flips_of(10, 10, 0).score(1.0).normal() == 0.0
    assert flips_of(10, 9, 0).score(1.0).normal() == -math.inf


@SAME_EXAMPLES
@given(z=st.floats(1.0, 4.0), skewness=st.floats(-3.0, 3.0))
@example(z=1.5, skewness=-1.5)
@example(z=1.99, skewness=-1.5)
@example(z=2.5, skewness=-1.0)
@example(z=3.0, skewness=2.0)
def test_deviate_inverts_the_expansion(z: float, skewness: float) -> None:
    """s = z + (z^2 - 1) skewness / 6 up to its vertex, and never falls behind it."""
    bend = skewness / 6
    assume(bend >= 0 or z <= -1 / (2 * bend))

    found = Score(value=z + (z * z - 1) * bend, skewness=skewness).normal()

    assert found == pytest.approx(z, rel=1e-6)


@SAME_EXAMPLES
@given(skewness=st.floats(-20.0, 20.0), value=st.floats(-40.0, 40.0), step=st.floats(0.0, 5.0))
def test_a_larger_score_is_never_a_smaller_deviate(
    skewness: float, value: float, step: float
) -> None:
    smaller, larger = (
        Score(value=value, skewness=skewness),
        Score(value=value + step, skewness=skewness),
    )

    assert smaller.normal() <= larger.normal() + 1e-12
    mirrored = Score(value=-value, skewness=-skewness)
    assert mirrored.normal() == pytest.approx(-smaller.normal(), abs=1e-12)


@pytest.mark.parametrize("skewness", [-2.5, -1.5, -0.8])
def test_deviate_goes_on_without_a_jump_where_the_expansion_turns_back(skewness: float) -> None:
    vertex = -3 / skewness
    turn = vertex / 2 + 1 / (2 * vertex)

    def deviate(score: float) -> float:
        return Score(value=score, skewness=skewness).normal()

    assert deviate(turn * (1 - 1e-9)) == pytest.approx(vertex, rel=1e-3)
    assert deviate(turn * (1 + 1e-9)) == pytest.approx(vertex, rel=1e-3)
    # The least bend that has its vertex there: z = s + sqrt(s^2 - 1).
    assert deviate(1.1 * turn) == pytest.approx(1.1 * turn + math.sqrt((1.1 * turn) ** 2 - 1))
    assert deviate(1.1 * turn) > vertex


@SAME_EXAMPLES
@given(data=st.data(), samples=st.integers(1, 5000), confidence=CONFIDENCES)
def test_share_limits_solve_their_score_equation(
    data: st.DataObject, samples: int, confidence: float
) -> None:
    share = Share(count=data.draw(st.integers(0, samples)), samples=samples)
    z = NormalDist().inv_cdf(confidence)

    found = share_limits(share, confidence=confidence)

    assert 0 <= found.low <= share.value <= found.high <= 1
    for limit, expected in ((found.low, z), (found.high, -z)):
        if 0 < limit < 1:
            assert share.score(limit).normal() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("samples", [20, 100, 1000])
def test_share_limits_lie_beside_the_exact_ones(samples: int, confidence: float) -> None:
    """Clopper and Pearson's limits, within a sixth of the interval's width on either side."""
    beta = pytest.importorskip("scipy.stats").beta
    for count in range(samples + 1) if samples < 1000 else (0, 1, 2, 5, 30, 500, 970, 998, 1000):
        found = share_limits(Share(count=count, samples=samples), confidence=confidence)

        low = beta.ppf(1 - confidence, count, samples - count + 1) if count else 0.0
        high = beta.ppf(confidence, count + 1, samples - count) if count < samples else 1.0
        assert found.low == pytest.approx(low, abs=(high - low) / 6)
        assert found.high == pytest.approx(high, abs=(high - low) / 6)


def test_none_and_all_reach_the_ends() -> None:
    assert share_limits(Share(count=0, samples=10), confidence=0.95).low == 0
    assert share_limits(Share(count=10, samples=10), confidence=0.95).high == 1


@pytest.mark.parametrize(("count", "samples"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_share_is_refused(count: int, samples: int) -> None:
    with pytest.raises(ValueError, match=f"{count} of {samples} is no share"):
        Share(count=count, samples=samples)


@SAME_EXAMPLES
@given(
    size=st.integers(2, 200),
    flips=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=20),
)
def test_classes_of_one_size_are_the_plain_counts(size: int, flips: list[tuple[int, int]]) -> None:
    classes = [counts_of(size, lost, won, right=size - lost) for lost, won in flips]

    found, share = mean_flips(classes), mean_share(classes)

    assert found.samples == pytest.approx(size * len(classes))
    assert found.right_to_wrong == pytest.approx(sum(lost for lost, _ in flips))  # type: ignore[union-attr]
    assert found.wrong_to_right == pytest.approx(sum(won for _, won in flips))  # type: ignore[union-attr]
    assert share.samples == pytest.approx(size * len(classes))
    assert share.count == pytest.approx(sum(found.right for found in classes))  # type: ignore[union-attr]


def mean_share(classes: Sequence[ClassCounts]) -> Share | Mean[Share]:
    return mean_over([found.right_share for found in classes])


CLASSES = st.lists(
    st.integers(1, 300).flatmap(
        lambda n: st.builds(counts_of, st.just(n), st.integers(0, n // 2), st.integers(0, n // 2))
    ),
    min_size=1,
    max_size=6,
)


def test_classes_of_like_size_are_one_part_and_the_others_parts_of_their_own() -> None:
    """10 and 15 are alike, 16 is not; each class of a part counts as its smallest."""
    classes = [
        counts_of(16, 4, 0, right=8),
        counts_of(10, 1, 2, right=5),
        counts_of(15, 3, 0, right=9),
    ]

    flips, share = mean_flips(classes), mean_share(classes)

    assert flips == Mean(
        parts=(
            (2 / 3, flips_of(20, 3, 2)),
            (1 / 3, flips_of(16, 4, 0)),
        )
    )
    assert share == Mean(
        parts=(
            (2 / 3, Share(count=11, samples=20)),
            (1 / 3, Share(count=8, samples=16)),
        )
    )


@SAME_EXAMPLES
@given(classes=CLASSES)
def test_the_mean_over_classes_is_kept(classes: list[ClassCounts]) -> None:
    flips, share = mean_flips(classes), mean_share(classes)

    assert flips.value == pytest.approx(sum(c.drop for c in classes) / len(classes), abs=1e-12)
    assert share.value == pytest.approx(sum(c.right / c.samples for c in classes) / len(classes))
    assert flips.samples <= sum(c.samples for c in classes) + 1e-9


@SAME_EXAMPLES
@given(classes=CLASSES, confidence=CONFIDENCES)
def test_limits_of_a_mean_are_no_nearer_than_those_of_any_part(
    classes: list[ClassCounts], confidence: float
) -> None:
    found = mean_flips(classes)
    assume(isinstance(found, Mean))
    assert isinstance(found, Mean)

    mean = limits(found, confidence)

    assert -1 <= mean.low <= found.value <= mean.high <= 1
    for weight, part in found.parts:
        own = limits(part, confidence)
        assert mean.high - found.value >= weight * (own.high - part.value) - 1e-12
        assert found.value - mean.low >= weight * (part.value - own.low) - 1e-12


@settings(SAME_EXAMPLES, max_examples=20)
@given(classes=CLASSES, limit=st.floats(0.001, 0.3), confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_a_limit_of_a_mean_is_beyond_just_where_its_chance_is_small(
    classes: list[ClassCounts], limit: float, confidence: float
) -> None:
    found = mean_flips(classes)
    assume(isinstance(found, Mean))
    mean = limits(found, confidence)
    assume(min(abs(mean.low - limit), abs(mean.high - limit)) > 1e-9)

    assert (mean.low > limit) == (chance_above(found, limit) < 1 - confidence)
    assert (mean.high < limit) == (chance_below(found, limit) < 1 - confidence)
    assert chance_above(found, limit) + chance_below(found, limit) == pytest.approx(1)


def test_a_drop_that_no_chance_explains_has_none() -> None:
    found = mean_flips([counts_of(10_000, 5_000, 0), counts_of(20_000, 10_000, 0)])

    assert chance_above(found, 0.001) < 1e-300
    assert chance_below(found, 0.001) == 1


def test_agreeing_samples_of_a_tiny_class_claim_no_certainty() -> None:
    found = limits(mean_flips([counts_of(1000, 0, 0), counts_of(2, 0, 0)]))

    assert found.high > 0.3


@dataclass(frozen=True)
class Wilson:
    """A share with Wilson's limits, without the corrections of `Share`."""

    count: int
    samples: int

    @property
    def value(self) -> float:
        return self.count / self.samples

    def limit(self, z: float) -> float:
        n, p = self.samples, self.value
        return (p + z * z / 2 / n - z * math.sqrt((p * (1 - p) + z * z / 4 / n) / n)) / (
            1 + z * z / n
        )


def test_limits_of_two_shares_are_newcombes() -> None:
    """The example of Newcombe (1998), table II: 56/70 - 48/80 by method 10 is 0.0524 to 0.3339."""
    z = NormalDist().inv_cdf(0.975)

    # 56/70 - 48/80 is 56/70 + 32/80 - 1.
    found: Mean[Any] = Mean(parts=((1.0, Wilson(56, 70)), (1.0, Wilson(32, 80))))

    assert found.limit(z) - 1 == pytest.approx(0.0524, abs=5e-5)
    assert found.limit(-z) - 1 == pytest.approx(0.3339, abs=5e-5)
    assert found.deviate(1.0524) == pytest.approx(z, abs=1e-3)
    assert found.deviate(1.3339) == pytest.approx(-z, abs=1e-3)


def test_effective_samples_have_the_same_upper_limit() -> None:
    found = mean_flips([counts_of(1000, 20, 10), counts_of(20, 1, 0), counts_of(20, 0, 0)])

    worth = effective_samples(found, confidence=0.95)

    assert 20 < worth < 100
    alike = flips_of(worth, worth * (0.02 + 0.05) / 3, worth * 0.01 / 3)
    assert alike.value == pytest.approx(found.value)
    assert limits(alike).high == pytest.approx(limits(found).high)


@SAME_EXAMPLES
@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=30), times=st.integers(2, 50))
def test_the_limit_of_clumps_comes_nearer_with_their_number(sizes: list[int], times: int) -> None:
    def most(times: int) -> float:
        found = most_of_clumps(
            clumps=len(sizes) * times,
            total=sum(sizes) * times,
            squares=sum(size**2 for size in sizes) * times,
            confidence=0.95,
        )
        return found / (sum(sizes) * times)

    assert most(1) > most(times) > 1
    assert most(10**6) == pytest.approx(1, abs=0.05)


def test_one_clump_says_little_and_sizes_that_differ_say_less() -> None:
    def most(sizes: list[int]) -> float:
        squares = sum(size**2 for size in sizes)
        total = sum(sizes)
        return (
            most_of_clumps(clumps=len(sizes), total=total, squares=squares, confidence=0.95) / total
        )

    assert 30 < most([7]) < 40
    assert most([10] * 30) < 1.8
    assert most([1] * 29 + [271]) > 5 * most([10] * 30)


def test_samples_of_equal_weight_are_worth_themselves() -> None:
    assert effective_samples(flips_of(70, 3, 1), confidence=0.95) == 70


@SAME_EXAMPLES
@given(flips=tables(), by=st.floats(-2, 2))
def test_moved_flips_have_the_drop_that_is_asked_for_if_there_is_one(
    flips: Flips, by: float
) -> None:
    moved = flips.move(by)

    assert moved.samples == flips.samples
    assert moved.value == pytest.approx(max(-1.0, min(1.0, flips.value + by)), abs=1e-9)


@SAME_EXAMPLES
@given(flips=tables(), times=st.floats(0.1, 50))
def test_growing_keeps_the_rates(flips: Flips, times: float) -> None:
    grown = flips.grow(times)

    assert grown.samples == pytest.approx(flips.samples * times)
    assert grown.value == pytest.approx(flips.value, abs=1e-12)
    assert grown.rate == pytest.approx(flips.rate)
    assert grown.variance == pytest.approx(flips.variance / times, abs=1e-12)


@SAME_EXAMPLES
@given(flips=tables(most=60))
def test_rate_and_variance_are_those_of_the_samples(flips: Flips) -> None:
    """Of lost - won, sample by sample, and of the mean of that."""
    same = flips.samples - flips.right_to_wrong - flips.wrong_to_right
    cells = ((1, flips.right_to_wrong), (-1, flips.wrong_to_right), (0, same))
    mean = sum(x * times for x, times in cells) / flips.samples
    spread = sum((x - mean) ** 2 * times for x, times in cells) / flips.samples

    assert flips.value == pytest.approx(mean, abs=1e-12)
    assert flips.rate == pytest.approx(sum(x * x * times for x, times in cells) / flips.samples)
    assert flips.variance == pytest.approx(spread / flips.samples, abs=1e-12)


def test_a_mean_has_the_samples_and_the_variance_of_its_parts() -> None:
    """Var(sum(w x)) is sum(w^2 Var(x)) of independent parts."""
    parts = (Share(count=2, samples=10), Share(count=30, samples=40))
    mean: Mean[Share] = Mean(parts=((0.25, parts[0]), (0.75, parts[1])))

    assert mean.samples == 50
    assert mean.value == pytest.approx(0.25 * 0.2 + 0.75 * 0.75)
    assert mean.variance == pytest.approx(0.0625 * 0.016 + 0.5625 * 0.75 * 0.25 / 40)


@pytest.mark.parametrize("z", [-3.0, -1.0, -0.3, 0.2, 1.0, 2.5])
def test_deviate_of_a_mean_is_that_whose_limit_is_there(z: float) -> None:
    found = mean_flips([counts_of(900, 9, 9), counts_of(40, 4, 1)])

    assert found.deviate(found.limit(z)) == pytest.approx(z, abs=1e-9)


def test_copies_are_worth_their_share() -> None:
    found = ClassCounts(samples=40, right=30, right_to_wrong=4, wrong_to_right=2, worth=0.25)

    assert found.independent == found.flips.samples == found.right_share.samples == 10
    assert found.drop == pytest.approx(0.05)
    assert found.right_share.value == 0.75


def test_no_classes_have_no_mean() -> None:
    with pytest.raises(ValueError, match="needs classes"):
        mean_over([])


def test_an_empty_class_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 0 samples"):
        mean_flips([counts_of(10, 1, 0), counts_of(0, 0, 0)])


@pytest.mark.parametrize(
    ("sizes", "totals", "moved", "worth"),
    [
        # spread 1/4, variance 2/1 * 2/16, mass 8/16
        ([2, 2], [2, 0], 2, (1 / 4 + 1 / 2) / (1 / 4 + 1 / 4)),
        # spread 1/4, variance 3/2 * (1/4 + 1 + 1/4)/36, mass 14/36
        ([1, 2, 3], [1, 0, 2], 3, (1 / 4 + 7 / 18) / (1 / 16 + (7 / 18) ** 2)),
    ],
)
def test_clusters_are_worth_what_rao_and_scott_say(
    sizes: list[int], totals: list[int], moved: int, worth: float
) -> None:
    found = clustered_samples(sizes=sizes, totals=totals, moved=moved)

    assert found == pytest.approx(worth)


def test_captions_that_move_together_are_worth_their_images() -> None:
    sizes = [5] * 400
    together = clustered_samples(sizes=sizes, totals=[5] * 20 + [0] * 380, moved=100)
    apart = clustered_samples(sizes=sizes, totals=[1] * 100 + [0] * 300, moved=100)

    assert together == pytest.approx(400, rel=0.03)
    assert apart > 1500


def test_without_a_flip_captions_are_worth_their_images() -> None:
    assert clustered_samples(sizes=[5] * 40, totals=[0] * 40, moved=0) == pytest.approx(40)


def test_clusters_of_one_are_worth_about_as_many() -> None:
    found = clustered_samples(sizes=[1] * 1000, totals=[1] * 30 + [0] * 970, moved=30)

    assert found == pytest.approx(1000, rel=2e-3)
    assert found <= 1000


def test_a_single_cluster_is_worth_one_sample() -> None:
    assert clustered_samples(sizes=[50], totals=[3], moved=3) == 1.0


def test_samples_that_exclude_each_other_are_not_worth_more_than_they_are() -> None:
    """One of two captions is always lost: the drop is known exactly, which is not believed."""
    assert clustered_samples(sizes=[2] * 500, totals=[1] * 500, moved=500) == 1000
