"""Whether a series of values falls or rises over time, however small its steps are.

Mann's test (Nonparametric tests against trend, Econometrica 13 (1945) 245-259; Kendall, Rank
correlation methods, 1948): S is the number of pairs in which the later value is higher, less those
in which it is lower. Where time plays no role, every order of the values is as likely; S is then
the inversions of a random order of a multiset, whose numbers are the coefficients of a Gaussian
multinomial (MacMahon, Combinatory analysis, 1915), so the chance is exact, ties or none.

The slope is the median over all pairs (Sen, Estimates of the regression coefficient based on
Kendall's tau, Journal of the American Statistical Association 63 (1968) 1379-1389).
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

#: Older values than so many are left out: what they say of today is said by those in between.
MOST_VALUES = 60


@dataclass(frozen=True, kw_only=True)
class Trend:
    """`chance` is that of a fall as clear as this one, or clearer, where there is none.

    `change` is the slope times the steps between the values, `largest_step` the lowest difference
    of neighbours (the steepest fall).
    """

    values: int
    score: int
    chance: float
    change: float
    largest_step: float


def find_fall(values: Sequence[float]) -> Trend:
    """Return how clearly values fall in their order; raises ValueError for less than two."""
    last = values[-MOST_VALUES:]
    if len(last) < 2:
        raise ValueError(f"{len(last)} values have no trend")
    score = sum((b > a) - (b < a) for a, b in itertools.combinations(last, 2))
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(enumerate(last), 2)]
    return Trend(
        values=len(last),
        score=score,
        chance=_chance_of_score(score, ties=tuple(Counter(last).values())),
        change=statistics.median(slopes) * (len(last) - 1),
        largest_step=min(b - a for a, b in itertools.pairwise(last)),
    )


def _chance_of_score(score: int, *, ties: tuple[int, ...]) -> float:
    """Return the probability of a score of at most `score`, for values with so many of each."""
    counts = _count_inversions(ties)
    # Of the pairs that are not tied, each inversion is one that falls.
    falling = sum(
        count for falls, count in enumerate(counts) if len(counts) - 1 - 2 * falls <= score
    )
    return float(Fraction(falling, sum(counts)))


def _count_inversions(ties: tuple[int, ...]) -> list[int]:
    """Return how many orders of a multiset have 0, 1, ... inversions."""
    counts, total = [1], sum(ties)
    for size in range(1, total + 1):
        counts = _times_number(counts, size)
    for group in ties:
        for size in range(1, group + 1):
            counts = _over_number(counts, size)
    return counts


def _times_number(counts: list[int], size: int) -> list[int]:
    """Return a polynomial times 1 + q + ... + q^(size - 1)."""
    longer = [*counts, *[0] * (size - 1)]
    sums = [0, *itertools.accumulate(longer)]
    return [sums[i + 1] - sums[max(0, i + 1 - size)] for i in range(len(longer))]


def _over_number(counts: list[int], size: int) -> list[int]:
    """Return a polynomial over 1 + q + ... + q^(size - 1), of which it is a multiple."""
    found: list[int] = []
    for i in range(len(counts) - size + 1):
        found.append(counts[i] - sum(found[max(0, i - size + 1) : i]))
    return found
