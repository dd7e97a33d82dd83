"""The threshold that a service keeps: where scores reach a rate, on the samples of FP16."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from pytest_quantgate.errors import DataError

if TYPE_CHECKING:
    import torch

_RATE = re.compile(r".*@[a-z]+(\d+(?:\.\d+)?)%")


def read_rate(metric: str) -> Fraction:
    """Return the rate of a metric such as `recall@fpr0.5%`, exactly; DataError outside (0, 1)."""
    found = _RATE.fullmatch(metric)
    rate = Fraction(found[1]) / 100 if found else Fraction(0)
    if not 0 < rate < 1:
        raise DataError(f"{metric}: the rate must be more than 0 % and less than 100 %")
    return rate


def name_other_side(metric: str, *, sides: tuple[str, str]) -> str:
    """Return the metric of the other of two `sides` at the same rate."""
    side, _, point = metric.partition("@")
    return f"{sides[side == sides[0]]}@{point}"


def keep_false_positives(negatives: torch.Tensor, *, most: Fraction) -> float:
    """Return the lowest threshold at which at most so large a share of negatives [N] is flagged.

    Flagged is what scores as much as the threshold or more, as in scikit-learn's `roc_curve`. That
    threshold lies just above the highest negative that must not be.

    Raises DataError where that share is less than one of them: nothing could be flagged at all.
    """
    import torch

    allowed = int(most * len(negatives))
    if not allowed:
        raise DataError(
            f"{float(most * 100):g} % of {len(negatives)} negatives is less than one: take at "
            f"least {-(-1 // most)} negatives, or a larger rate"
        )
    ordered = negatives.sort(descending=True).values
    return float(torch.nextafter(ordered[allowed], torch.tensor(torch.inf, dtype=ordered.dtype)))


def keep_precision(
    positives: torch.Tensor, negatives: torch.Tensor, *, least: Fraction
) -> float | None:
    """Return the lowest score of a positive from which on so large a share is positive, or None.

    The most that can be found at that precision: scikit-learn's `precision_recall_curve`,
    torchmetrics' `RecallAtFixedPrecision`. `negatives` may be the highest alone, as many as
    `count_negatives` says.
    """
    import torch

    found = positives.sort(descending=True).values
    # Of equal scores all are flagged together: the last of them counts.
    right = torch.searchsorted(-found, -found, right=True)
    wrong = torch.searchsorted(-negatives.sort(descending=True).values, -found, right=True)
    keeps = [
        place
        for place, (hits, misses) in enumerate(zip(right.tolist(), wrong.tolist(), strict=True))
        if hits >= least * (hits + misses)
    ]
    return float(found[keeps[-1]]) if keeps else None


def count_negatives(positives: int, *, least: Fraction) -> int:
    """Return how many of the highest negatives decide a precision: with more it is missed."""
    return int(positives * (1 - least) / least) + 1
