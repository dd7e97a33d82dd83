"""Thresholds at a rate equal scikit-learn's points of the ROC and the precision-recall curve."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.operating_point import (
    count_negatives,
    keep_false_positives,
    keep_precision,
    read_rate,
)

metrics = pytest.importorskip("sklearn.metrics")

SCORES = st.lists(st.integers(-20, 20), min_size=5, max_size=60)
SAME_EXAMPLES = settings(deadline=None, derandomize=True, max_examples=80)


def join(
    positives: list[int], negatives: list[int]
) -> tuple[torch.Tensor, torch.Tensor, list[int], list[int]]:
    labels = [1] * len(positives) + [0] * len(negatives)
    right, wrong = (torch.tensor(scores).float() for scores in (positives, negatives))
    return right, wrong, labels, [*positives, *negatives]


@SAME_EXAMPLES
@given(positives=SCORES, negatives=SCORES, rate=st.integers(20, 60))
@example(positives=[5, 5, 1, 0, 0], negatives=[5, 5, 0, 0, 0], rate=20)
def test_a_false_positive_rate_is_kept_as_on_scikit_learns_curve(
    positives: list[int], negatives: list[int], rate: int
) -> None:
    """Also with ties: what scores alike is flagged together."""
    right, wrong, labels, scores = join(positives, negatives)
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)

    threshold = keep_false_positives(wrong, most=Fraction(rate, 100))

    allowed = fpr <= rate / 100 + 1e-12
    assert (wrong >= threshold).double().mean() <= rate / 100 + 1e-12
    assert (right >= threshold).double().mean() == pytest.approx(tpr[allowed].max())


@SAME_EXAMPLES
@given(positives=SCORES, negatives=SCORES, rate=st.integers(30, 99))
@example(positives=[3, 2, 1, 1, 1], negatives=[9, 1, 1, 0, 0], rate=60)
def test_a_precision_is_kept_as_on_scikit_learns_curve(
    positives: list[int], negatives: list[int], rate: int
) -> None:
    """With all negatives, and with no more of the highest than can decide it."""
    right, wrong, labels, scores = join(positives, negatives)
    least = Fraction(rate, 100)
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    keeps = [
        found
        for share, found in zip(precision[:-1], recall[:-1], strict=True)
        if share >= rate / 100 - 1e-12
    ]

    threshold = keep_precision(right, wrong, least=least)
    few = wrong.topk(min(len(wrong), count_negatives(len(right), least=least))).values

    assert keep_precision(right, few, least=least) == threshold
    assert (threshold is None) is not any(keeps)
    if threshold is not None:
        assert (right >= threshold).double().mean() == pytest.approx(max(keeps))


def test_a_rate_that_no_negative_makes_is_named_with_how_many_would() -> None:
    with pytest.raises(DataError, match=r"1 % of 50 negatives is less than one: take at least 100"):
        keep_false_positives(torch.zeros(50), most=Fraction(1, 100))


def test_a_rate_is_read_exactly() -> None:
    assert read_rate("recall@fpr0.1%") == Fraction(1, 1000)
    assert read_rate("recall@precision95%") == Fraction(19, 20)
    for odd in ("recall@fpr0%", "recall@5", "recall@fpr100%"):
        with pytest.raises(DataError, match="the rate must be more than 0 %"):
            read_rate(odd)
