"""What interleaved rounds say of a ratio, and how far the machine's own noise lets it be told."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pytest_quantgate.statistics.intervals import Interval

#: A look at a run before its end has this share of the error chance, the end the rest (Bonferroni,
#: whatever the two have in common).
FIRST_CHANCE = Fraction(1, 10)

#: Into so many parts the rounds of one process are cut.
PARTS = 5

#: No correlation of neighbouring rounds is told from a higher one than this.
MOST_CORRELATION = 0.99

#: No limit is further from its value than this, in natural logarithms: beyond, two of them together
#: with the noise are more than a float holds, and no limit of a suite is there.
MOST_REACH = 250.0

#: More rounds than this, times those that were measured, are no advice.
MOST_TIMES_ROUNDS = 100


def least_rounds(confidence: Fraction) -> int:
    """Return how many rounds it takes until all of them together bound a median at `confidence`.

    The true median lies above all of n with probability 2^-n.
    """
    rounds, missed = 1, Fraction(1, 2)
    while missed > 1 - confidence:
        rounds, missed = rounds + 1, missed / 2
    return rounds


def confidence_of_look(confidence: Fraction, *, processes: int, planned: int) -> Fraction:
    """Return the confidence at which a run of so many of the planned processes is judged.

    Where the look after some of them or the one after all decides, the two together are wrong in at
    most 1 - `confidence`. `confidence` itself where nothing was `planned`: then nobody looked.
    """
    if not planned:
        return confidence
    chance = FIRST_CHANCE if processes < planned else 1 - FIRST_CHANCE
    return 1 - (1 - confidence) * chance


@dataclass(frozen=True, kw_only=True)
class Levels:
    """A positive quantity round by round, as logarithms by process; see `LatencyRun`.

    Rounds of one process alone, or of none that is known, are cut into PARTS in their order, each
    as good as a process: Ibragimov and Müller (t-Statistic based correlation and heterogeneity
    robust inference, Journal of Business and Economic Statistics 28 (2010) 453-468).
    """

    logs: tuple[tuple[float, ...], ...]
    pause_rounds: float

    @classmethod
    def of(cls, values: Sequence[float], *, processes: int, pause_rounds: float) -> Levels:
        """Return the values of a run by its processes; raises ValueError for less than two."""
        parts = processes if processes > 1 else min(PARTS, len(values))
        if parts < 2:
            raise ValueError(f"{len(values)} values are too few for limits")
        cuts = [len(values) * part // parts for part in range(parts + 1)]
        return cls(
            logs=tuple(
                tuple(math.log(value) for value in values[begin:end])
                for begin, end in itertools.pairwise(cuts)
            ),
            pause_rounds=pause_rounds,
        )

    @property
    def values(self) -> tuple[float, ...]:
        """The level of each process: the median over its rounds."""
        return tuple(statistics.median(part) for part in self.logs)

    @property
    def typical(self) -> float:
        """The quantity itself, from the mean over processes."""
        return math.exp(statistics.fmean(self.values))

    @property
    def spread_share(self) -> float:
        """By what share a process typically differs from the others (one standard deviation)."""
        return math.exp(statistics.stdev(self.values)) - 1

    def limits(self, *, confidence: float) -> Interval:
        """Return one-sided limits of the quantity.

        Student's, over the levels of processes (Kalibera and Jones, Rigorous benchmarking in
        reasonable time, ISMM 2013): they ask nothing of how the rounds of one process hang
        together. Noise that outlives a process joins them, though; what the rounds show of that
        widens the limits (`dependence`).
        """
        levels = self.values
        reach = student_quantile(confidence, degrees=len(levels) - 1) * math.sqrt(
            statistics.variance(levels) / len(levels)
        )
        reach = min(MOST_REACH, reach * self.dependence())
        mean = statistics.fmean(levels)
        return Interval(low=math.exp(mean - reach), high=math.exp(mean + reach))

    def dependence(self) -> float:
        """Return by what factor the levels' mean is less certain than if they were independent.

        Rounds are taken as autoregressive, with the largest correlation of neighbours that is
        likely: two standard errors above its estimate, corrected for its bias (Marriott and Pope,
        Biometrika 41 (1954) 390-402). Levels are then correlated by its power of the distance
        between processes, in rounds, and their variance is that of correlated values (Bayley and
        Hammersley, Journal of the Royal Statistical Society B 8 (1946) 184-197).
        """
        rounds = sum(map(len, self.logs))
        centre = statistics.fmean(itertools.chain.from_iterable(self.logs))
        squares = sum((log - centre) ** 2 for part in self.logs for log in part)
        pairs = [pair for part in self.logs for pair in itertools.pairwise(part)]
        if not pairs or squares == 0:
            return 1.0
        shared = sum((left - centre) * (right - centre) for left, right in pairs)
        found = (shared / len(pairs)) / (squares / rounds)
        found = max(-1.0, min(1.0, found + (1 + 3 * found) / rounds))
        likely = min(MOST_CORRELATION, found + 2 * math.sqrt((1 - found**2) / rounds))
        count = len(self.logs)
        joined = max(0.0, likely) ** (rounds / count + self.pause_rounds)
        sum_of_shared = sum((1 - lag / count) * joined**lag for lag in range(1, count))
        return math.sqrt((1 + 2 * sum_of_shared) / (1 - 2 * sum_of_shared / (count - 1)))


def student_quantile(share: float, *, degrees: int) -> float:
    """Return the value that Student's t exceeds with probability 1 - `share`, for 0.5 <= share < 1.

    By bisection on the distribution in closed form (Abramowitz and Stegun 26.7.3 and 26.7.4).
    """
    if not 0.5 <= share < 1 or degrees < 1:
        raise ValueError(f"no quantile of Student's t: share {share}, {degrees} degrees of freedom")
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, degrees) < share else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _student_share(angle: float, degrees: int) -> float:
    """Return the probability of values below sqrt(degrees) * tan(angle)."""
    square, odd = math.cos(angle) ** 2, degrees % 2
    term = series = 1.0
    for step in range(2 + odd, degrees, 2):
        term *= square * (step - 1) / step
        series += term
    if not odd:
        return (1 + math.sin(angle) * series) / 2
    if degrees == 1:
        series = 0.0
    return 0.5 + (angle + math.sin(angle) * math.cos(angle) * series) / math.pi


def noise_factor(again: Levels, *, confidence: float) -> float:
    """Return by what factor FP16 against itself may leave 1, to either side: 1 or more."""
    interval = again.limits(confidence=confidence)
    return max(1.0, interval.high, 1 / interval.low)


def widen(interval: Interval, *, by: float) -> Interval:
    """Return an interval of a positive quantity, opened by a factor to both sides."""
    return Interval(low=interval.low / by, high=interval.high * by)


def rounds_to_settle(value: float, interval: Interval, *, limit: float, rounds: int) -> int | None:
    """Return about how many rounds would bring the interval to one side of `limit`.

    The interval and the A/A floor narrow with the root of the rounds. None where the value is at
    the limit, or it would take more than MOST_TIMES_ROUNDS times the rounds.
    """
    distance = abs(math.log(value / limit))
    width = math.log(interval.high / value if value <= limit else value / interval.low)
    if distance * math.sqrt(MOST_TIMES_ROUNDS) <= width:
        return None
    return max(rounds + 1, math.ceil(rounds * (width / distance) ** 2))


def compare_levels(above: Levels, below: Levels, *, confidence: float) -> tuple[float, Interval]:
    """Return the ratio of two quantities that were measured apart, and its one-sided limits.

    Welch's, with the degrees of freedom of the one that has fewer, which is never too few.
    """
    values = (above.values, below.values)
    variances = [
        statistics.variance(one.values) / len(one.values) * one.dependence() ** 2
        for one in (above, below)
    ]
    quantile = student_quantile(confidence, degrees=min(map(len, values)) - 1)
    reach = min(MOST_REACH, quantile * math.sqrt(sum(variances)))
    mean = statistics.fmean(values[0]) - statistics.fmean(values[1])
    return math.exp(mean), Interval(low=math.exp(mean - reach), high=math.exp(mean + reach))
