"""How many samples it takes: to settle a result, to pass a limit, and how often so many do."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

from pytest_quantgate.statistics.intervals import (
    CONTINUITY,
    MOST_SAMPLES,
    Flips,
    Result,
    chance_below,
    restricted_won,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: How often a run of the advised size comes to a decision.
SETTLING_POWER = 0.8


def samples_to_settle(
    found: Result, *, confidence: float, limit: float, power: float = SETTLING_POWER
) -> int | None:
    """Return how many samples settle on which side of `limit` a value is, if these are its rates.

    So many that `power` of all runs of that size decide. None where no number would: the value is
    the limit, or it would take more than 10^9. Of flips the sample size of the score test (Nam,
    Biometrics 53 (1997) 1422-1430; Liu and others, Statistics in Medicine 21 (2002) 231-245), with
    the continuity correction; otherwise where a result with these rates `is_settled`.
    """
    distance = abs(found.value - limit)
    if not distance:
        return None
    quantile = NormalDist().inv_cdf
    if isinstance(found, Flips):
        there, here = _deviations(found, limit)
        spread = quantile(confidence) * there + quantile(power) * here
        # n distance - continuity = sqrt(n) spread, solved for sqrt(n).
        continuity = found.grow(MOST_SAMPLES / found.samples).continuity
        root = (spread + math.sqrt(spread**2 + 4 * distance * continuity)) / (2 * distance)
        needed = math.ceil(root * root)
        return needed if needed <= MOST_SAMPLES else None

    def settles(samples: int) -> bool:
        grown = found.grow(samples / found.samples)
        return is_settled(grown, confidence=confidence, limit=limit, power=power)

    return first_count(settles, low=1, high=MOST_SAMPLES)


def is_settled(found: Result, *, confidence: float, limit: float, power: float) -> bool:
    """Return whether `power` of all runs at these rates decide on which side of `limit` they are.

    Where the limit of a result decides that lies by as many standard deviations nearer to it.
    """
    quantile = NormalDist().inv_cdf
    side = math.copysign(1.0, found.value - limit)
    moved = found.move(-side * quantile(power) * math.sqrt(found.variance))
    return side * (moved.limit(side * quantile(confidence)) - limit) >= 0


def chance_to_pass(expected: Flips, *, confidence: float, limit: float) -> float:
    """Return how often so many samples keep a limit on the drop, if these are their true rates.

    Every result of up to 1,000 samples is enumerated with its exact probability; beyond, by the
    normal approximation of `samples_to_settle`.
    """
    z, samples = NormalDist().inv_cdf(confidence), round(expected.samples)
    if samples > 1000:
        there, here = _deviations(expected, limit)
        root = math.sqrt(samples)
        spare = root * (limit - expected.value) - CONTINUITY / root - z * there
        return NormalDist().cdf(spare / here) if here else float(spare >= 0)
    won = expected.wrong_to_right / expected.samples
    lost = min(1.0, expected.right_to_wrong / expected.samples / (1 - won)) if won < 1 else 0.0
    total = 0.0
    for gained, chance in _binomial(samples, won):

        def fails(missed: int, gained: int = gained) -> bool:
            found = Flips(right_to_wrong=missed, wrong_to_right=gained, samples=samples)
            return found.deviate(limit) > -z

        left = samples - gained
        first = first_count(fails, low=0, high=left)
        total += chance * sum(p for k, p in _binomial(left, lost) if first is None or k < first)
    return min(1.0, total)


def samples_without_loss(*, confidence: float, limit: float) -> int | None:
    """Return the least number of samples that pass a limit on the drop if none of them flips."""

    def passes(samples: int) -> bool:
        still = Flips(right_to_wrong=0, wrong_to_right=0, samples=samples)
        return chance_below(still, limit) <= 1 - confidence

    return first_count(passes, low=1, high=MOST_SAMPLES)


def first_count(holds: Callable[[int], bool], *, low: int, high: int) -> int | None:
    """Return the least number from `low` to `high` for which `holds`; None where there is none.

    `holds` must be false up to some number and true from there on.
    """
    if low > high or not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _deviations(flips: Flips, limit: float) -> tuple[float, float]:
    """Return a sample's standard deviation if the true drop is the limit, and if it is as found."""
    there = 2 * restricted_won(flips, limit) + limit * (1 - limit)
    return math.sqrt(max(0.0, there)), math.sqrt(flips.variance * flips.samples)


def _binomial(samples: int, share: float) -> Iterator[tuple[int, float]]:
    """Yield each count of a binomial that is not out of the question, and its probability."""
    if share <= 0 or share >= 1:
        yield (samples if share > 0 else 0), 1.0
        return
    reach = 8 * math.sqrt(samples * share * (1 - share)) + 20
    whole = math.lgamma(samples + 1)
    for k in range(
        max(0, int(samples * share - reach)), min(samples, int(samples * share + reach)) + 1
    ):
        log = whole - math.lgamma(k + 1) - math.lgamma(samples - k + 1)
        yield k, math.exp(log + k * math.log(share) + (samples - k) * math.log1p(-share))
