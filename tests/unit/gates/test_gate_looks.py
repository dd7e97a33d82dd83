"""What each of several looks is judged at: no more is spent than one look alone would have."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.statistics import looks
from pytest_quantgate.statistics.looks import (
    PLANNED_SHARE,
    Step,
    confidences_of_looks,
    spend_share,
)

ASKED = Fraction(95, 100)


def spend(fractions: Sequence[float], *, confidence: Fraction = ASKED) -> list[Step]:
    """Return the looks at these fractions of a plan of 1000 samples."""
    found: list[Step] = []
    for fraction in fractions:
        before = found[-1].spent if found else 0.0
        spent = spend_share(fraction, spent=before, confidence=confidence)
        found.append(Step(samples=1000 * fraction, spent=spent))
    return found


def test_limits_are_those_of_lan_and_demets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five looks at a one-sided 2.5 %, as published for the spending function of O'Brien and
    Fleming's type."""
    monkeypatch.setattr(looks, "PLANNED_SHARE", 1.0)
    asked = Fraction(975, 1000)

    found = confidences_of_looks(asked, spend([0.2, 0.4, 0.6, 0.8, 1], confidence=asked))

    quantiles = [NormalDist().inv_cdf(float(confidence)) for confidence in found]
    assert quantiles == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=1.5e-3)


def test_one_look_has_all_but_a_hundredth() -> None:
    assert confidences_of_looks(ASKED, spend([1])) == (Fraction(9505, 10_000),)


def test_a_look_after_the_plan_takes_half_of_what_is_left() -> None:
    found = [step.spent for step in spend([1, 2, 4, 8])]

    assert found == pytest.approx([0.99, 0.995, 0.9975, 0.99875])


CHANCES = st.sampled_from([Fraction(9, 10), ASKED, Fraction(99, 100), Fraction(999, 1000)])
PLANS = st.lists(st.floats(0.01, 3), min_size=1, max_size=5)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(confidence=CHANCES, fractions=PLANS)
def test_nothing_is_given_back_and_never_more_than_all_is_spent(
    confidence: Fraction, fractions: list[float]
) -> None:
    """However the samples grow, shrink or stay."""
    steps = spend(fractions, confidence=confidence)

    spent = [step.spent for step in steps]
    found = confidences_of_looks(confidence, steps)

    assert 0 <= spent[0] <= PLANNED_SHARE
    assert all(before <= after < 1 for before, after in itertools.pairwise(spent))
    assert all(confidence < level < 1 for level in found)
    assert all(float(level) < 1 for level in found)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(confidence=CHANCES, fractions=PLANS)
def test_a_look_has_what_it_spends_at_least(confidence: Fraction, fractions: list[float]) -> None:
    """What hangs together with earlier looks has more of the chance, and never less."""
    steps = spend(fractions, confidence=confidence)
    chance = 1 - float(confidence)

    found = confidences_of_looks(confidence, steps)

    for (before, step), level in zip(
        itertools.pairwise([Step(samples=0, spent=0), *steps]), found, strict=True
    ):
        assert float(1 - level) >= (step.spent - before.spent) * chance * 0.985


def test_samples_that_hardly_grow_are_added_up() -> None:
    """Between 1000 and 1001 samples no grid could tell what is new."""
    steps = [Step(samples=1000, spent=0.99), Step(samples=1001, spent=0.995)]

    assert confidences_of_looks(ASKED, steps)[1] == 1 - Fraction(25, 100_000)


def test_a_hundredth_look_still_has_a_confidence_below_certainty() -> None:
    found = confidences_of_looks(ASKED, spend([1.0] * 100))

    assert 0.999 < float(found[-1]) < 1
