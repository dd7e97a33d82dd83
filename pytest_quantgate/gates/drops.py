"""What a drop rests on, and how it is said: of samples, clusters, grades and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_quantgate.evidence.outcomes import averages_classes
from pytest_quantgate.statistics.intervals import (
    Flips,
    Interval,
    Mean,
    Share,
    drop_limits,
    effective_samples,
    mean_over,
)
from pytest_quantgate.text.words import count, level, signed

if TYPE_CHECKING:
    from fractions import Fraction

    from pytest_quantgate.statistics.pairing import Pairs


def drop_flips(pairs: Pairs, *, metric: str) -> Flips | Mean[Flips]:
    """Return what a metric's drop rests on: independent samples, in parts of equal weight."""
    if averages_classes(metric):
        return mean_over([counts.flips for _, counts in pairs.classes])
    return pairs.flips


def drop_interval(pairs: Pairs, *, metric: str, confidence: float) -> tuple[float, Interval]:
    """Return the drop of a metric and its limits."""
    flips = drop_flips(pairs, metric=metric)
    return flips.value, drop_limits(flips, confidence=confidence)


def right_share(pairs: Pairs, *, metric: str) -> Share | Mean[Share]:
    """Return what the value of a metric rests on, of the variant after the change."""
    if averages_classes(metric):
        return mean_over([counts.right_share for _, counts in pairs.classes])
    return pairs.right_share


def describe_worth(pairs: Pairs, *, metric: str, confidence: Fraction) -> tuple[str, ...]:
    """Return what samples that do not count alike are worth; empty where all do."""
    if pairs.worth is not None:
        worth, clusters = pairs.worth.drop, pairs.worth.clusters
        if clusters is None:
            return (
                f"{count(pairs.samples, 'graded sample')} are worth {worth:.0f} true or false "
                f"ones: most that moved did so by less than a whole",
            )
        return (
            f"{count(pairs.samples, 'sample')} in {count(clusters, 'cluster')} that "
            f"share a picture or a text are worth {worth:.0f} independent ones: "
            f"those of one cluster are lost together",
        )
    found = drop_flips(pairs, metric=metric)
    if isinstance(found, Flips):
        return ()
    sizes = [counts.samples for _, counts in pairs.classes]
    worth = effective_samples(found, confidence=float(confidence))
    return (
        f"{count(pairs.samples, 'sample')} in {len(sizes)} classes of {min(sizes)} to {max(sizes)} "
        f"are worth {worth:.0f} in classes of one size: each class weighs "
        f"{100 / len(sizes):.3g} % of the mean",
    )


def describe_allowed(limit: Fraction, *, pairs: Pairs) -> str:
    """Return a limit as so many samples, of graded ones as so many that lose all."""
    allowed = allowed_count(limit, samples=pairs.samples)
    return count(allowed, "whole sample" if pairs.graded else "sample")


def allowed_count(limit: Fraction, *, samples: int) -> int:
    """Return a limit as a count of samples, rounded down exactly."""
    return (limit * samples).__floor__()


def describe_moves(pairs: Pairs) -> str:
    """Return how many samples were lost and won; of graded ones, how many score less and more."""
    if pairs.graded:
        return f"{pairs.right_to_wrong} score less, {pairs.wrong_to_right} more"
    return f"{pairs.right_to_wrong} right to wrong, {pairs.wrong_to_right} wrong to right"


def show_interval(interval: Interval, *, confidence: Fraction) -> str:
    low, high = signed(interval.low * 100), signed(interval.high * 100)
    return f"one-sided {level(confidence)} limits [{low}, {high}] pp"
