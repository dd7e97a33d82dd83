"""Intervals for paired outcomes, and what it would take to change a verdict.

All limits are one-sided: the true value lies below `high` with the stated confidence, and above
`low` with the same. Counts may be real numbers, so that a result can be scaled to other sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pytest_quantgate.errors import MissingPackage

#: More samples than this would "settle" nothing in practice.
MOST_SAMPLES = 10**9


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One-sided lower and upper limit of a share or of a difference of shares."""

    low: float
    high: float


def paired_drop_limits(
    *, right_to_wrong: float, wrong_to_right: float, samples: float, confidence: float
) -> Interval:
    """Return the limits of the drop (right_to_wrong - wrong_to_right) / samples, in [-1, 1].

    Score interval for the difference of paired proportions: Tango, Statistics in Medicine 17
    (1998) 891-908, equations (8) to (11); the limits are where the score statistic, with the
    nuisance parameter at its restricted maximum likelihood, meets the normal quantile. Raises
    ValueError for no samples or counts that do not fit.
    """
    _check_counts(right_to_wrong, wrong_to_right, samples)
    z = NormalDist().inv_cdf(confidence)
    drop = (right_to_wrong - wrong_to_right) / samples

    def score(delta: float) -> float:
        return tango_score(
            delta,
            right_to_wrong=right_to_wrong,
            wrong_to_right=wrong_to_right,
            samples=samples,
        )

    # The score falls as delta grows.
    return Interval(
        low=_last(lambda delta: score(delta) >= z, inside=-1.0, outside=drop),
        high=_last(lambda delta: score(delta) <= -z, inside=1.0, outside=drop),
    )


def tango_score(
    delta: float, *, right_to_wrong: float, wrong_to_right: float, samples: float
) -> float:
    """Return Tango's score statistic for the hypothesis that the drop is `delta`."""
    b, c, n = right_to_wrong, wrong_to_right, samples
    linear = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    # The form without cancellation: the textbook one loses all digits for few discordant pairs.
    nuisance = (root - linear) / (4 * n) if linear <= 0 else -2 * constant / (root + linear)
    variance = n * (2 * nuisance + delta * (1 - delta))
    distance = b - c - n * delta
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def share_limits(*, count: float, samples: float, confidence: float) -> Interval:
    """Return the limits of a share: Wilson's score interval (JASA 22 (1927) 209-212)."""
    if samples <= 0 or not 0 <= count <= samples:
        raise ValueError(f"{count} of {samples} is no share")
    z = NormalDist().inv_cdf(confidence)
    share = count / samples
    scale = 1 + z * z / samples
    centre = (share + z * z / (2 * samples)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == samples else min(1.0, centre + half)
    return Interval(low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Paired outcomes of one class."""

    samples: int
    right_to_wrong: int
    wrong_to_right: int

    @property
    def drop(self) -> float:
        return (self.right_to_wrong - self.wrong_to_right) / self.samples


def mean_class_drop_limits(
    classes: Sequence[ClassCounts], *, confidence: float, draws: int = 4000, seed: int = 0
) -> Interval:
    """Return the limits of the mean over classes of the drop, by a seeded Bayesian bootstrap.

    Rubin, Annals of Statistics 9 (1981) 130-134, stratified by class, with Jeffreys' half count in
    each of the three cells: without it ten samples that all agree would claim certainty. Raises
    ValueError for no classes or an empty one, MissingPackage without NumPy.
    """
    if not classes or any(found.samples <= 0 for found in classes):
        raise ValueError("a mean over classes needs samples in each class")
    try:
        import numpy
    except ImportError as error:
        raise MissingPackage("numpy", extra="clip", purpose="the bootstrap") from error
    cells = numpy.array(
        [
            [
                found.right_to_wrong + 0.5,
                found.wrong_to_right + 0.5,
                found.samples - found.right_to_wrong - found.wrong_to_right + 0.5,
            ]
            for found in classes
        ]
    )
    # RandomState, not Generator: NumPy has frozen its stream, so the digits stay the same.
    stream = numpy.random.RandomState(seed)
    means = numpy.empty(draws)
    step = max(1, 2_000_000 // cells.size)
    for start in range(0, draws, step):
        size = (min(step, draws - start), *cells.shape)
        gammas = stream.standard_gamma(cells, size=size)
        shares = gammas / gammas.sum(axis=2, keepdims=True)
        means[start : start + step] = (shares[:, :, 0] - shares[:, :, 1]).mean(axis=1)
    low, high = numpy.quantile(means, [1 - confidence, confidence])
    return Interval(low=float(low), high=float(high))


def samples_to_settle(
    *,
    right_to_wrong: float,
    wrong_to_right: float,
    samples: int,
    confidence: float,
    limit: float,
) -> int | None:
    """Return how many samples, at the same rates, would bring the interval to one side of `limit`.

    None where no number would: the drop is the limit, or it would take more than 10^9.
    """
    drop = (right_to_wrong - wrong_to_right) / samples
    if math.isclose(drop, limit, rel_tol=1e-12, abs_tol=1e-15):
        return None

    def settled(size: int) -> bool:
        scale = size / samples
        interval = paired_drop_limits(
            right_to_wrong=right_to_wrong * scale,
            wrong_to_right=wrong_to_right * scale,
            samples=size,
            confidence=confidence,
        )
        return interval.high <= limit or interval.low > limit

    return first_count(settled, low=samples, high=MOST_SAMPLES)


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


def _last(holds: Callable[[float], bool], *, inside: float, outside: float) -> float:
    """Return where `holds` begins on the way from `outside` to `inside`, on the `inside` side.

    `inside` where it holds nowhere: the limit is the end of the range.
    """
    if not holds(inside):
        return inside
    for _ in range(200):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside


def _check_counts(right_to_wrong: float, wrong_to_right: float, samples: float) -> None:
    changed = right_to_wrong + wrong_to_right
    if samples <= 0 or right_to_wrong < 0 or wrong_to_right < 0 or changed > samples * (1 + 1e-12):
        raise ValueError(
            f"{right_to_wrong} and {wrong_to_right} flips do not fit {samples} samples"
        )
