"""Holm's procedure over the limits of a suite, and what it does to a verdict."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates import accuracy, regression
from pytest_quantgate.gates.accuracy import judge_accuracy
from pytest_quantgate.gates.regression import judge_regression
from pytest_quantgate.statistics.family import ALONE, SILENT, Alarm, Family, highest_rejected
from tests.unit.gates.gate_builders import (
    SAME_EXAMPLES,
    accuracy_gate,
    make_class_pair,
    make_hits,
    make_outcomes,
    make_pair,
    regression_gate,
    store,
)

STRENGTHS = st.lists(
    st.one_of(st.floats(0, 3), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0, SILENT])), max_size=8
)


def alarm_of(strength: float) -> Alarm:
    return Alarm(chance=strength * 0.05, confidence=Fraction(95, 100))


def reject_by_closure(strengths: Sequence[float]) -> list[bool]:
    """The closed testing procedure that Holm's shortens: a limit is rejected where every group of
    limits that it is in holds one that Bonferroni rejects in that group."""
    places = range(len(strengths))
    groups = [
        group
        for size in range(1, len(strengths) + 1)
        for group in itertools.combinations(places, size)
    ]
    return [
        all(
            any(strengths[i] * len(group) <= 1 for i in group) for group in groups if place in group
        )
        for place in places
    ]


@SAME_EXAMPLES
@given(strengths=STRENGTHS)
def test_the_procedure_is_holms(strengths: list[float]) -> None:
    """Marcus, Peritz and Gabriel (1976): closing Bonferroni's tests gives Holm's procedure."""
    cut = highest_rejected(strengths)

    assert [strength <= cut for strength in strengths] == reject_by_closure(strengths)


@SAME_EXAMPLES
@given(strengths=STRENGTHS.filter(bool), data=st.data())
def test_the_short_way_gives_what_the_whole_procedure_gives(
    strengths: list[float], data: st.DataObject
) -> None:
    """A family that asks the others only in doubt decides as one that always asks."""
    strength = data.draw(st.sampled_from([s for s in strengths if s != SILENT] or [2.0]))
    if strength not in strengths:
        strengths = [*strengths, strength]
    family = Family(size=len(strengths), strengths=lambda: strengths)
    by_itself = strength <= 1

    raised = by_itself and family.raises(alarm_of(strength))

    assert raised == (strength <= highest_rejected(strengths))


@SAME_EXAMPLES
@given(strengths=STRENGTHS.filter(bool))
def test_holm_only_takes_fails_away_and_never_all_of_bonferronis(strengths: list[float]) -> None:
    cut = highest_rejected(strengths)

    for strength in strengths:
        if strength <= cut:
            assert strength <= 1
        if strength * len(strengths) <= 1:
            assert strength <= cut


def test_the_others_are_not_asked_where_they_do_not_matter() -> None:
    def asked() -> Sequence[float]:
        raise AssertionError("nobody should ask")

    family = Family(size=10, strengths=asked)

    assert family.raises(alarm_of(0.09))
    assert not family.raises(alarm_of(1.5))
    assert replace(family, size=4).raises(alarm_of(0.25))


def test_an_alarm_of_just_the_allowed_chance_is_one() -> None:
    assert Family(size=2, strengths=lambda: (0.01, 1.0)).raises(alarm_of(1.0))


def test_what_is_no_fail_by_itself_is_none_of_a_family_of_two() -> None:
    assert not Family(size=2, strengths=lambda: (0.01, 1.5)).raises(alarm_of(1.5))


def test_why_a_fail_is_none_of_its_family_is_told_in_chances() -> None:
    assert Family(size=10).describe(alarm_of(0.5)) == (
        "a FAIL by itself, but one of 10 limits of this suite: where a limit is just kept, chance "
        "shows as much in 2.5 % of runs, and one of so many is believed from 0.5 % on "
        "(family: holm)"
    )


def test_a_limit_that_stands_alone_keeps_its_level() -> None:
    assert ALONE.raises(alarm_of(0.999))
    assert ALONE.raises(alarm_of(1 + 1e-9))  # the interval said so, and a float's last digit not


def test_a_strong_alarm_makes_room_for_the_next() -> None:
    """Of three limits: 1/3 for the strongest, 1/2 for the next, 1 for the last."""
    family = Family(size=3, strengths=lambda: (0.01, 0.45, 0.9))

    assert [family.raises(alarm_of(s)) for s in (0.01, 0.45, 0.9)] == [True, True, True]


def test_false_alarms_of_many_kept_limits_stay_at_the_level_of_one() -> None:
    chance = random.Random(4)
    runs, limits = 4000, 12
    alone = together = 0
    for _ in range(runs):
        strengths = [chance.random() / 0.05 for _ in range(limits)]
        alone += min(strengths) <= 1
        together += highest_rejected(strengths) > 0

    # 1 - 0.95^12 is 46 %; the level is 5 %, with three standard deviations of 4000 throws.
    assert 0.43 < alone / runs < 0.49
    assert 0.035 < together / runs < 0.06


# -- verdicts ------------------------------------------------------------------------------------

#: A drop of 2.1 pp on 1,000 samples: over 1 pp at 95 %, not at 99.5 %.
DOUBTFUL = make_pair(1_000, lost=24, won=3)


def family_of(*others: float) -> Family:
    fp16, quantized = DOUBTFUL
    own = accuracy.list_strengths(fp16=fp16, quantized=quantized, gate=accuracy_gate())
    return Family(size=1 + len(others), strengths=lambda: (*own, *others))


def test_a_fail_by_itself_may_be_none_of_its_family() -> None:
    fp16, quantized = DOUBTFUL
    alone = judge_accuracy(fp16=fp16, quantized=quantized, gate=accuracy_gate())

    among = judge_accuracy(
        fp16=fp16, quantized=quantized, gate=accuracy_gate(), family=family_of(*[5.0] * 9)
    )

    assert alone.status is Status.FAIL
    assert among.status is Status.INCONCLUSIVE
    assert among.evidence[0].startswith("a FAIL by itself, but one of 10 limits of this suite")
    assert "believed from 0.5 % on (family: holm)" in among.evidence[0]
    assert "not decided against max_drop 1.00 pp" in among.headline
    (advice,) = [line for line in among.evidence if "would settle it" in line]
    assert int(advice.split()[1]) > 1_500


@pytest.mark.parametrize(
    ("part", "pair", "limits"),
    [
        ("floor", make_pair(1_000, both_wrong=430), {"floor": Fraction(6, 10)}),
        (
            "flips",
            make_pair(1_000, other_answers=41, both_wrong=200),
            {"max_flips": Fraction(3, 100)},
        ),
        (
            "class-drop",
            make_class_pair(("cat", 200, 18, 0)),
            {"max_drop": Fraction(1), "max_class_drop": Fraction(5, 100)},
        ),
    ],
)
def test_each_limit_may_be_no_fail_of_its_family(
    part: str, pair: tuple[Outcomes, Outcomes], limits: dict[str, Fraction]
) -> None:
    fp16, quantized = pair
    gate = accuracy_gate(**limits)
    own = accuracy.list_strengths(fp16=fp16, quantized=quantized, gate=gate)
    family = Family(size=12, strengths=lambda: (*own, *[5.0] * 10))

    alone = judge_accuracy(fp16=fp16, quantized=quantized, gate=gate)
    among = judge_accuracy(fp16=fp16, quantized=quantized, gate=gate, family=family)

    assert (alone.status, alone.code) == (Status.FAIL, f"accuracy.{part}")
    assert (among.status, among.code) == (Status.INCONCLUSIVE, f"accuracy.{part}-open")
    assert among.evidence[0].startswith("a FAIL by itself, but one of 12 limits")
    if part != "class-drop":
        assert "not decided against" in among.headline
        assert " around " in among.brief
    assert among.next_step != alone.next_step


def test_advice_on_what_is_open_by_itself_knows_no_family() -> None:
    fp16, quantized = make_pair(2_000, lost=16)
    family = Family(size=10, strengths=lambda: (9.0,) * 10)

    alone, among = (
        judge_accuracy(fp16=fp16, quantized=quantized, gate=accuracy_gate(), family=each)
        for each in (ALONE, family)
    )

    assert alone.status is Status.INCONCLUSIVE
    assert among == alone


@pytest.mark.parametrize(
    ("metric", "classes", "silent"),
    [
        ("image_retrieval_recall@1", (), False),
        ("mean_per_class_recall", (), True),
        ("mean_per_class_recall", ("cat", "dog", "fox", "owl"), False),
    ],
)
def test_only_a_mean_over_no_classes_raises_no_alarm(
    metric: str, classes: tuple[str, ...], silent: bool
) -> None:
    common: dict[str, Any] = {"metric": metric, "class_names": classes}
    fp16, quantized = (
        make_outcomes([i >= lost for i in range(400)], variant=name, **common)
        for name, lost in (("fp16", 0), ("fp8", 20))
    )

    strengths = accuracy.list_strengths(
        fp16=fp16, quantized=quantized, gate=accuracy_gate(metric=metric)
    )

    assert (strengths == (SILENT,)) is silent
    assert silent or 0 < strengths[0] < 1


def test_a_limit_on_classes_is_silent_where_there_are_none() -> None:
    """It is red, but by no chance: the other limits of its suite are judged as without it."""
    hits = make_hits([True] * 400, variant="fp16")

    strengths = accuracy.list_strengths(
        fp16=hits,
        quantized=make_hits([i > 20 for i in range(400)]),
        gate=accuracy_gate(metric=hits.metric, max_class_drop=Fraction(1, 10)),
    )

    assert strengths[0] < 1
    assert strengths[1] == SILENT


def test_the_same_fail_stands_where_the_others_fail_clearly() -> None:
    fp16, quantized = DOUBTFUL

    verdict = judge_accuracy(
        fp16=fp16, quantized=quantized, gate=accuracy_gate(), family=family_of(*[0.001] * 9)
    )

    assert verdict.status is Status.FAIL


def test_a_family_never_touches_a_pass() -> None:
    fp16, quantized = make_pair(10_000, lost=20, won=15)

    verdict = judge_accuracy(
        fp16=fp16, quantized=quantized, gate=accuracy_gate(), family=family_of(*[0.001] * 50)
    )

    assert verdict.passed


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({}, 1),
        ({"floor": Fraction(1, 2)}, 2),
        (
            {
                "floor": Fraction(1, 2),
                "max_flips": Fraction(1, 10),
                "max_class_drop": Fraction(1, 10),
            },
            4,
        ),
    ],
)
def test_every_limit_of_a_gate_is_a_member(limits: dict[str, Fraction], count: int) -> None:
    fp16, quantized = DOUBTFUL
    gate = accuracy_gate(**limits)

    strengths = accuracy.list_strengths(fp16=fp16, quantized=quantized, gate=gate)

    assert len(strengths) == accuracy.count_limits(gate) == count
    assert 0 < strengths[0] < 1
    assert all(strength > 1 for strength in strengths[1:])


@pytest.mark.parametrize(
    "changes",
    [
        {"max_drop": Fraction(99, 100), "floor": Fraction(96, 100)},
        {"max_drop": Fraction(99, 100), "max_flips": Fraction(4, 100)},
        {"max_drop": Fraction(99, 100), "max_class_drop": Fraction(1, 1000)},
        {"max_drop": Fraction(3, 100)},
    ],
)
def test_a_part_that_fails_has_a_strong_alarm_and_the_other_way_round(
    changes: dict[str, Fraction],
) -> None:
    fp16, quantized = make_pair(400, lost=28, won=0)
    gate = accuracy_gate(**changes)

    verdict = judge_accuracy(fp16=fp16, quantized=quantized, gate=gate)
    strengths = accuracy.list_strengths(fp16=fp16, quantized=quantized, gate=gate)

    assert verdict.status is Status.FAIL
    assert min(strengths) < 1
    kept = replace(gate, confidence=Fraction(1) - Fraction(1, 10**12))
    assert judge_accuracy(fp16=fp16, quantized=quantized, gate=kept).status is not Status.FAIL
    assert min(accuracy.list_strengths(fp16=fp16, quantized=quantized, gate=kept)) > 1


def test_what_cannot_be_judged_raises_no_alarm() -> None:
    fp16, quantized = DOUBTFUL
    other = replace(quantized, data_digest="0" * 64)
    nan = replace(quantized, nonfinite=3)

    assert accuracy.list_strengths(fp16=fp16, quantized=other, gate=accuracy_gate()) == (SILENT,)
    assert accuracy.list_strengths(fp16=fp16, quantized=nan, gate=accuracy_gate()) == (SILENT,)
    nan = replace(fp16, nonfinite=3)
    assert accuracy.list_strengths(fp16=nan, quantized=fp16, gate=accuracy_gate()) == (SILENT,)


@pytest.mark.parametrize(
    "changes",
    [
        {"stored": None},
        {"stored": store(DOUBTFUL[0], replace(DOUBTFUL[1], data_digest="0" * 64))},
        {"quantized": replace(DOUBTFUL[1], nonfinite=3)},
        {"fp16": replace(DOUBTFUL[0], nonfinite=3)},
        {
            "gate": regression_gate(metric="mean_per_class_recall"),
            "quantized": replace(DOUBTFUL[1], class_names=()),
        },
    ],
)
def test_regression_that_cannot_be_judged_raises_no_alarm(changes: dict[str, Any]) -> None:
    fp16, quantized = DOUBTFUL
    judged: dict[str, Any] = {
        "fp16": fp16,
        "quantized": quantized,
        "stored": store(fp16, fp16),
        "gate": regression_gate(),
    }

    strengths = regression.list_strengths(**judged)

    assert all(0 < strength < SILENT for strength in strengths)
    assert regression.list_strengths(**judged | changes) == (SILENT,) * 4


def test_regression_of_retrieval_is_in_the_family() -> None:
    hits = make_hits([True] * 400, variant="fp16")

    strengths = regression.list_strengths(
        fp16=hits,
        quantized=make_hits([i > 20 for i in range(400)]),
        stored=store(hits, hits),
        gate=regression_gate(metric=hits.metric),
    )

    assert len(strengths) == 4
    assert strengths[0] > 1 > strengths[1] > 0


def test_a_regression_gate_has_four_members_that_its_family_holds_down() -> None:
    fp16, quantized = DOUBTFUL
    stored, gate = store(fp16, fp16), regression_gate(max_drop=Fraction(1, 100))
    strengths = regression.list_strengths(fp16=fp16, quantized=quantized, stored=stored, gate=gate)

    def judge(family: Family) -> Status:
        return judge_regression(
            fp16=fp16,
            quantized=quantized,
            stored=stored,
            differences=(),
            create_command="",
            update_command="",
            gate=gate,
            family=family,
        ).status

    assert strengths[0] > 1
    assert 1 / 10 < strengths[1] < 1
    assert strengths[2] > 5  # max_drop_since_first is 2 pp, and 2.1 pp hardly beyond it
    assert judge(ALONE) is Status.FAIL
    assert judge(Family(size=10, strengths=lambda: (*strengths, *[5.0] * 6))) is Status.INCONCLUSIVE
