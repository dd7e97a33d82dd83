"""Intervals for paired outcomes and shares, and what it would take to change a verdict.

All limits are one-sided: the true value lies below `high` with the stated confidence, and above
`low` with the same. Counts may be real numbers: a result can be scaled to other sizes, and samples
that are not independent count as fewer. `docs/statistics.md` shows how often
these limits hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Rarer than this is never: a float knows no smaller chance.
MOST_DEVIATE = 38.0

#: More samples than this would "settle" nothing in practice.
MOST_SAMPLES = 10**9

#: How far, in samples, a count is moved towards the hypothesis before it is judged. Laud
#: (Pharmaceutical Statistics 16 (2017) 334-348, section 2.4) offers 0 to 0.5; 0.5 is the least, in
#: steps of 0.05, with which no wrong PASS is likelier than it says (docs/statistics.md).
CONTINUITY = 0.5


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One-sided lower and upper limit of a share or of a difference of shares."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """The standardised distance of a result from a hypothesis, and the skewness of that distance.

    `value` is positive where the result lies above the hypothesis.
    """

    value: float
    skewness: float

    def normal(self) -> float:
        """Return the standard normal deviate that is as rare as this score.

        The inverse of Cornish and Fisher's expansion, s = z + (z^2 - 1) skewness / 6, which is the
        skewness correction of Gart and Nam (Biometrics 44 (1988) 323-338). Where the expansion
        turns back, left of its vertex, its slowest continuation stands in: it never turns.
        """
        s, bend = self.value, max(-0.5, min(0.5, self.skewness / 6))
        if math.isinf(s):
            return s
        sign = math.copysign(1.0, s)
        # Mirrored, so that s is not negative: then only a negative bend has a vertex ahead.
        s, bend = abs(s), bend * sign
        vertex = -1 / (2 * bend) if bend < 0 else math.inf
        if s > vertex / 2 + 1 / (2 * vertex):
            return sign * (s + math.sqrt(max(0.0, s * s - 1)))
        # The root that is `bend` at s = 0, in the form without cancellation; it keeps its side.
        root = math.sqrt(max(0.0, 1 + 4 * bend * (bend + s)))
        return sign * max(0.0, 2 * (s + bend) / (1 + root))


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Paired outcomes: how many were lost and won by the change, of how many samples.

    Raises ValueError for no samples or counts that do not fit.
    """

    right_to_wrong: float
    wrong_to_right: float
    samples: float

    def __post_init__(self) -> None:
        b, c, n = self.right_to_wrong, self.wrong_to_right, self.samples
        if n <= 0 or b < 0 or c < 0 or b + c > n * (1 + 1e-12):
            raise ValueError(f"{b} and {c} flips do not fit {n} samples")

    @property
    def value(self) -> float:
        """The drop, in [-1, 1]."""
        return (self.right_to_wrong - self.wrong_to_right) / self.samples

    @property
    def rate(self) -> float:
        """The share of samples that flipped, either way."""
        return (self.right_to_wrong + self.wrong_to_right) / self.samples

    @property
    def variance(self) -> float:
        """The estimated variance of the drop."""
        return max(0.0, self.rate - self.value**2) / self.samples

    @property
    def continuity(self) -> float:
        """How far lost - won is moved towards a hypothesis: CONTINUITY, or up to twice that.

        Where all samples flip, lost - won comes in steps of two, not one.
        """
        flips = self.right_to_wrong + self.wrong_to_right
        return CONTINUITY * (1 + min(1.0, flips) * max(0.0, 1 - (self.samples - flips) / 2))

    def grow(self, times: float) -> Flips:
        """Return the same rates on so many times the samples."""
        return Flips(
            right_to_wrong=self.right_to_wrong * times,
            wrong_to_right=self.wrong_to_right * times,
            samples=self.samples * times,
        )

    def move(self, by: float) -> Flips:
        """Return the flips of a drop that is larger by so much, if there can be one.

        What is lost changes; what is won, too, where all samples flip or nothing is lost.
        """
        won, lost = self.wrong_to_right, self.right_to_wrong + by * self.samples
        turned = max(0.0, lost + won - self.samples) / 2 if lost > 0 else lost
        won = max(0.0, min(self.samples, won - turned))
        return Flips(
            right_to_wrong=max(0.0, min(self.samples - won, lost - turned)),
            wrong_to_right=won,
            samples=self.samples,
        )

    def deviate(self, drop: float) -> float:
        """Return the normal deviate that is as rare as these flips if the true drop is `drop`."""
        return self.score(drop).normal()

    def limit(self, z: float) -> float:
        """Return the drop whose deviate is `z`: a lower limit for z > 0, else an upper one."""
        return _solve(self.deviate, z, at=self.value, least=-1.0)

    def score(self, drop: float) -> Score:
        """Return the score of the hypothesis that the true drop is `drop`.

        Tango's statistic (Statistics in Medicine 17 (1998) 891-908, equations (8) to (11)): the
        nuisance, the share won, is at its restricted maximum likelihood. Its skewness is the third
        central moment of a sample's lost - won there.
        """
        b, c, n = self.right_to_wrong, self.wrong_to_right, self.samples
        won = restricted_won(self, drop)
        variance = 2 * won + drop * (1 - drop)
        third = drop - 3 * drop * (2 * won + drop) + 2 * drop**3
        return _standardise(
            b - c - n * drop,
            variance=variance,
            third=third,
            samples=n,
            continuity=self.continuity,
        )


@dataclass(frozen=True, kw_only=True)
class Share:
    """So many of so many samples. Raises ValueError for no samples or a count that does not fit."""

    count: float
    samples: float

    def __post_init__(self) -> None:
        if self.samples <= 0 or not 0 <= self.count <= self.samples * (1 + 1e-12):
            raise ValueError(f"{self.count} of {self.samples} is no share")

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.count / self.samples

    @property
    def variance(self) -> float:
        """The estimated variance of the share."""
        return self.value * (1 - self.value) / self.samples

    def grow(self, times: float) -> Share:
        """Return the same share of so many times the samples."""
        return Share(count=self.count * times, samples=self.samples * times)

    def move(self, by: float) -> Share:
        """Return the count of a share that is larger by so much, if there can be one."""
        count = self.count + by * self.samples
        return Share(count=max(0.0, min(self.samples, count)), samples=self.samples)

    def deviate(self, share: float) -> float:
        """Return the normal deviate that is as rare as this count if the true share is `share`."""
        return self.score(share).normal()

    def limit(self, z: float) -> float:
        """Return the share whose deviate is `z`: a lower limit for z > 0, else an upper one."""
        return _solve(self.deviate, z, at=self.value, least=0.0)

    def score(self, share: float) -> Score:
        """Return the score of the hypothesis that the true share is `share` (Wilson's)."""
        variance = share * (1 - share)
        return _standardise(
            self.count - self.samples * share,
            variance=variance,
            third=variance * (1 - 2 * share),
            samples=self.samples,
            continuity=CONTINUITY,
        )


Counts = TypeVar("Counts", Flips, Share)


@dataclass(frozen=True, kw_only=True)
class Mean(Generic[Counts]):
    """A weighted mean of independent results; the weights add up to 1.

    Its limits are by the method of variance estimates recovery (Zou and Donner, Statistics in
    Medicine 27 (2008) 1693-1702; Donner and Zou, Statistical Methods in Medical Research 21 (2012)
    347-359; for two shares Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10): the
    distance from a part's value to its own limit stands for its standard error there.
    """

    parts: tuple[tuple[float, Counts], ...]

    @property
    def value(self) -> float:
        return sum(weight * part.value for weight, part in self.parts)

    @property
    def samples(self) -> float:
        return sum(part.samples for _, part in self.parts)

    @property
    def variance(self) -> float:
        """The estimated variance of the value."""
        return sum(weight**2 * part.variance for weight, part in self.parts)

    def limit(self, z: float) -> float:
        """Return the lower limit for z > 0, else the upper one."""
        distances = (weight * (part.value - part.limit(z)) for weight, part in self.parts)
        return self.value - math.copysign(math.hypot(*distances), z)

    def deviate(self, truth: float) -> float:
        """Return the `z` whose limit is `truth`."""
        sign = math.copysign(1.0, self.value - truth)
        return sign * _last(
            lambda z: sign * (self.limit(sign * z) - truth) <= 0, inside=MOST_DEVIATE, outside=0.0
        )

    def grow(self, times: float) -> Mean[Counts]:
        """Return the mean with so many times the samples, at the same rates."""
        return Mean(parts=tuple((weight, part.grow(times)) for weight, part in self.parts))

    def move(self, by: float) -> Mean[Counts]:
        """Return the likeliest result that is larger by so much: uncertain parts move most."""
        share = by / self.variance if self.variance else 0.0
        return Mean(
            parts=tuple((w, part.move(share * w * part.variance)) for w, part in self.parts)
        )


#: What limits can be had of: counts, or a mean of such.
Result = Flips | Share | Mean[Flips] | Mean[Share]


def drop_limits(found: Flips | Mean[Flips], *, confidence: float) -> Interval:
    """Return the limits of the drop, in [-1, 1].

    Where the score of the hypothesis, corrected for skewness and continuity, meets the normal
    quantile. Laud's SCAS method (Pharmaceutical Statistics 16 (2017) 334-348) for Tango's score.
    Those of a mean are its parts', combined.
    """
    return _limits(found, confidence=confidence)


def share_limits(found: Share | Mean[Share], *, confidence: float) -> Interval:
    """Return the limits of a share, in [0, 1]: the same for one binomial share."""
    return _limits(found, confidence=confidence)


def chance_above(found: Result, limit: float) -> float:
    """Return how likely a result this high or higher is at most, if the truth is at the limit.

    The one-sided p-value of "not over the limit": `low` is above the limit just where it is less
    than 1 - confidence.
    """
    return NormalDist().cdf(-found.deviate(limit))


def chance_below(found: Result, limit: float) -> float:
    """Return how likely a result this low or lower is at most, if the truth is at the limit."""
    return NormalDist().cdf(found.deviate(limit))


# -- samples that are not alike ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Paired outcomes of one class; `right` are those that are right after the change.

    Of graded outcomes these are sums, see `sum_moves`. `worth` is how much of an independent sample
    each is worth, where copies or grades are among them.
    """

    samples: int
    right: float
    right_to_wrong: float
    wrong_to_right: float
    worth: float = 1.0

    @property
    def independent(self) -> float:
        """How many independent samples these are worth."""
        return self.samples * self.worth

    @property
    def flips(self) -> Flips:
        """What was lost and won, in independent samples."""
        return Flips(
            right_to_wrong=self.right_to_wrong,
            wrong_to_right=self.wrong_to_right,
            samples=self.samples,
        ).grow(self.worth)

    @property
    def right_share(self) -> Share:
        return Share(count=self.right, samples=self.samples).grow(self.worth)

    @property
    def drop(self) -> float:
        return self.flips.value


#: Classes whose sizes differ by no more than this factor are judged as one part of the mean.
LIKE_SIZES = 1.5


def mean_over(classes: Sequence[Counts]) -> Counts | Mean[Counts]:
    """Return what the mean of the values of classes rests on, for their limits.

    Classes of like size are one part, with as many samples each as the smallest of them; with
    classes of one size that part is the plain counts. Raises ValueError for no classes.
    """
    if not classes:
        raise ValueError("a mean over classes needs classes")
    groups: list[list[Counts]] = []
    for found in sorted(classes, key=lambda found: found.samples):
        if not groups or found.samples > LIKE_SIZES * groups[-1][0].samples:
            groups.append([])
        groups[-1].append(found)
    parts = tuple(
        (len(group) / len(classes), _pool([f.grow(group[0].samples / f.samples) for f in group]))
        for group in groups
    )
    return parts[0][1] if len(parts) == 1 else Mean(parts=parts)


def _pool(results: Sequence[Counts]) -> Counts:
    """Return all counts together."""
    kind = type(results[0])
    return kind(**{item.name: sum(getattr(r, item.name) for r in results) for item in fields(kind)})


def sum_moves(losses: Sequence[float]) -> tuple[float, float]:
    """Return how much was lost and won: counts of whole losses and gains, as they are.

    Grades move by many sizes. They are told as moves of one size, sum |x|^3 / sum x^2, with the
    same difference of lost and won: with the variance that `clustered_samples` gives them they are
    as skew as what was seen, where a few large losses stand among many small moves.
    """
    lost = math.fsum(loss for loss in losses if loss > 0)
    won = math.fsum(-loss for loss in losses if loss < 0)
    squares, cubes = (math.fsum(abs(loss) ** power for loss in losses) for power in (2, 3))
    if not cubes:
        return lost, won
    moved = max(abs(lost - won), min(lost + won, squares**2 / cubes))
    return max(0.0, (moved + lost - won) / 2), max(0.0, (moved - lost + won) / 2)


def clustered_samples(
    *, sizes: Sequence[int], totals: Sequence[float], moved: float, most: float | None = None
) -> float:
    """Return how many true or false samples those are worth that come in clusters, or are graded.

    Clusters are such as the captions of an image; `totals` are the sums of the samples' values in
    each, `moved` the sum of their sizes over all. `Flips` and `Share` take each value for a whole
    one: grades vary less than that, clusters more. Never more than `most` (None: than there are
    samples); a single cluster is worth one.
    """
    count, samples = len(sizes), sum(sizes)
    if count < 2:
        return 1.0
    mean = sum(totals) / samples
    around = sum((t - m * mean) ** 2 for t, m in zip(totals, sizes, strict=True))
    found = _effective(
        spread=moved / samples - mean**2,
        variance=count / (count - 1) * around / samples**2,
        mass=sum(m * m for m in sizes) / samples**2,
    )
    return min(float(samples) if most is None else most, found)


def _effective(*, spread: float, variance: float, mass: float) -> float:
    """Return the effective size of an average sum(w x), with weights of sum 1.

    `spread` is sum(w (x - average)^2) for whole values x, `variance` the estimated variance of the
    average: their quotient is the effective size of Rao and Scott (Biometrics 48 (1992) 577-585).
    Few flips say little about how they move together, or how far, so one group of average weight
    that moves as a whole is added to both, with `mass` the sum of W^2 over groups of weight W:
    without a flip 1 / mass is left, the number of groups where all are alike.
    """
    return (spread + mass) / (variance + mass * mass)


def most_of_clumps(*, clumps: float, total: float, squares: float, confidence: float) -> float:
    """Return the upper limit of a total that comes in so many clumps, of sizes that differ.

    `squares` is the sum of the squared sizes. How many clumps there are has a Poisson limit, how
    large they are on average that of a gamma distribution (its quantile by Wilson and Hilferty,
    PNAS 17 (1931) 684-688) with twice the squared spread that was seen, and at least as much as
    one exponential size has: few clumps seldom show a large one. Both distances together as in
    `Mean`, of logarithms, as the total is a product.
    """
    number = Share(count=clumps, samples=max(MOST_SAMPLES, clumps))
    more = number.limit(NormalDist().inv_cdf(1 - confidence)) / number.value
    freedom = max(2.0, total**2 / squares)
    spread = 2 / (9 * freedom)
    root = 1 - spread + NormalDist().inv_cdf(1 - confidence) * math.sqrt(spread)
    larger = max(root, 0.01) ** -3
    return total * math.exp(math.hypot(math.log(more), math.log(larger)))


def effective_samples(found: Flips | Mean[Flips], *, confidence: float) -> float:
    """Return how many samples of equal weight, at the same rates, have as near an upper limit."""
    if isinstance(found, Flips):
        return found.samples
    z = -NormalDist().inv_cdf(confidence)
    high, one = found.limit(z), _pool([part.grow(w / part.samples) for w, part in found.parts])
    return _last(
        lambda samples: one.grow(samples).limit(z) <= high, inside=found.samples, outside=0.0
    )


# -- the machinery -------------------------------------------------------------------------------


def restricted_won(flips: Flips, drop: float) -> float:
    """Return the share won that is most likely if the true drop is `drop`: Tango's equation (10).

    In the form without cancellation: the textbook one loses all digits for few flips.
    """
    b, c, n = flips.right_to_wrong, flips.wrong_to_right, flips.samples
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    return (root - linear) / (4 * n) if linear <= 0 else -2 * constant / (root + linear)


def _standardise(
    distance: float, *, variance: float, third: float, samples: float, continuity: float
) -> Score:
    """Return the score of a sum's distance from its expectation, moved by `continuity` towards it.

    `variance` and `third` are central moments of one sample.
    """
    distance = math.copysign(max(0.0, abs(distance) - continuity), distance)
    if variance <= 0:
        value = 0.0 if distance == 0 else math.copysign(math.inf, distance)
        return Score(value=value, skewness=0.0)
    return Score(
        value=distance / math.sqrt(samples * variance),
        skewness=third / variance**1.5 / math.sqrt(samples),
    )


def _limits(found: Result, *, confidence: float) -> Interval:
    z = NormalDist().inv_cdf(confidence)
    return Interval(low=found.limit(z), high=found.limit(-z))


def _solve(deviate: Callable[[float], float], z: float, *, at: float, least: float) -> float:
    """Return the value from `least` to 1 whose deviate is `z`; it falls as the value grows.

    `at` is where it is 0.
    """
    if z >= 0:
        return _last(lambda value: deviate(value) >= z, inside=least, outside=at)
    return _last(lambda value: deviate(value) <= z, inside=1.0, outside=at)


def _last(holds: Callable[[float], bool], *, inside: float, outside: float) -> float:
    """Return where `holds` begins on the way from `outside` to `inside`, on the `inside` side.

    `inside` where it holds nowhere: the limit is the end of the range.
    """
    if not holds(inside):
        return inside
    for _ in range(200):
        if math.isclose(inside, outside, rel_tol=1e-12, abs_tol=1e-300):
            break
        middle = (inside + outside) / 2
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside
