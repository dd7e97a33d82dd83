"""Clipping of the calibration gate: shares with an interval, decided among all quantizers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.audit import Audit, CalibrationRun
from pytest_quantgate.evidence.verdict import Status
from tests.unit.gates.calibration_builders import AUDIT, FC1, WEIGHT, judge
from tests.unit.gates.gate_builders import (
    SAME_EXAMPLES,
    at,
    change_quantizers,
    make_run,
    number_in,
)


def test_clipping_over_its_limit_fails_worst_first() -> None:
    audit = change_quantizers(AUDIT, "text*.1.*fc1.input*", clipped=50)
    audit = change_quantizers(audit, FC1, clipped=200, amax_max=0.5)

    verdict = judge(audit)

    assert verdict.status is Status.FAIL
    assert (
        "2 quantizers clip more than max_clipped 0.100 % of values that they were not calibrated "
        f"on; worst {FC1}: 200 of 10000 values, 2.000 % [1.775, 2.246], above amax 0.5 "
        f"({at('max_clipped')})"
    ) in verdict.headline
    assert verdict.evidence[:2] == (
        f"{FC1}: 200 of 10000 values, 2.000 % [1.775, 2.246], above amax 0.5",
        "text_model.layers.1.mlp.fc1.input_quantizer: 50 of 10000 values, 0.500 % [0.390, 0.633], "
        "above amax 1",
    )
    assert verdict.code == "calibration.clipped"
    assert verdict.figures["worst_clipped_share"] == pytest.approx(0.02)


def test_worst_clipping_is_the_largest_share_not_the_largest_count() -> None:
    """A quantizer of a wide layer sees more values, and clips more of them at a smaller share."""
    many = change_quantizers(AUDIT, "text*.1.*fc1.input*", clipped=500, seen=1_000_000)
    both = change_quantizers(many, FC1, clipped=9, seen=10_000)

    passed = judge(both, max_clipped=Fraction(2, 1000))
    failed = judge(both, max_clipped=Fraction(1, 10_000))

    assert passed.passed
    assert (
        f"worst clipping 0.090 % of 10000 held-out values, at most 0.157 % ({FC1})"
        in passed.headline
    )
    assert passed.figures["worst_clipped_share"] == pytest.approx(0.0009)
    assert passed.figures["worst_clipped_high"] == pytest.approx(0.001574, rel=0.001)
    assert "2 quantizers clip more than max_clipped 0.010 % of values" in failed.headline
    assert f"worst {FC1}: 9 of 10000 values, 0.090 % [" in failed.headline


@pytest.mark.parametrize(
    ("clipped", "status"),
    [
        (0, Status.PASS),
        (60, Status.PASS),
        (98, Status.INCONCLUSIVE),
        (100, Status.INCONCLUSIVE),
        (120, Status.INCONCLUSIVE),
        (160, Status.FAIL),
    ],
)
def test_share_near_its_limit_is_open(clipped: int, status: Status) -> None:
    """0.1 % of 100,000 is 100: what lies around it can be either, whatever was counted."""
    verdict = judge(change_quantizers(AUDIT, FC1, clipped=clipped, seen=100_000))

    assert verdict.status is status
    if status is Status.INCONCLUSIVE:
        assert verdict.code == "calibration.clipping-open"
        assert f"whether {FC1} clips more than max_clipped 0.100 % is open" in verdict.headline
        assert at("max_clipped") in verdict.headline


def test_samples_that_would_settle_a_share_are_named() -> None:
    """Advice that is followed helps: so many more samples with the same share are a PASS."""
    found = {"clipped": 90, "seen": 100_000}
    open_ = judge(change_quantizers(AUDIT, FC1, **found), make_run(held_out_samples=16))
    times = number_in(r"held_out_samples: (\d+)", (open_.next_step,)) // 16
    more = {name: value * times for name, value in found.items()}

    assert open_.status is Status.INCONCLUSIVE
    assert times > 1
    assert judge(change_quantizers(AUDIT, FC1, **more)).passed


def test_share_that_no_number_of_samples_settles_says_so() -> None:
    verdict = judge(change_quantizers(AUDIT, FC1, clipped=100, seen=100_000))

    assert verdict.next_step == "the share is the limit: set max_clipped to what may be lost"


def test_values_that_one_sample_clips_together_count_once() -> None:
    """40 values of one picture are one event; of 40 pictures they are forty."""
    one = change_quantizers(
        AUDIT, FC1, clipped=40, clipped_samples=1, clipped_squares=1600, seen=10_000
    )
    many = change_quantizers(
        AUDIT, FC1, clipped=40, clipped_samples=40, clipped_squares=40, seen=10_000
    )

    assert judge(one).status is Status.INCONCLUSIVE
    assert "40 of 10000 values in 1 sample, 0.400 %" in judge(one).headline
    assert judge(many).status is Status.FAIL
    assert "40 of 10000 values in 40 samples, 0.400 %" in judge(many).headline


def test_what_few_samples_clip_is_open_though_it_is_little() -> None:
    """Two pictures clip 30 values each: of a third one nobody knows. Sixty that clip one do."""
    few = change_quantizers(
        AUDIT, FC1, clipped=60, clipped_samples=2, clipped_squares=1800, seen=200_000
    )
    many = change_quantizers(
        AUDIT, FC1, clipped=60, clipped_samples=60, clipped_squares=60, seen=200_000
    )

    verdict = judge(few)

    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.code == "calibration.clipping-open"
    assert "60 of 200000 values in 2 samples, 0.030 %" in verdict.headline
    assert verdict.cause == (
        "all of it is in 2 samples: how much the next one clips is not known from so few"
    )
    assert verdict.next_step.startswith("set calibration.held_out_samples: ")
    assert judge(many).passed


def test_next_to_nothing_in_one_sample_passes() -> None:
    """What the FP8 reference clips: 2 of 262144 values, in one picture of 128."""
    audit = change_quantizers(
        AUDIT, FC1, clipped=2, clipped_samples=1, clipped_squares=4, seen=262_144
    )

    assert judge(audit).passed


def test_one_of_many_quantizers_must_be_surer() -> None:
    """1.8 % chance is enough for one limit, and happens among 24 that are all just kept."""
    audit = change_quantizers(AUDIT, FC1, clipped=17, seen=10_000)
    (alone,) = (q for q in audit.quantizers if q.name == FC1)

    assert judge(replace(audit, quantizers=(alone,))).status is Status.FAIL
    assert judge(audit).status is Status.INCONCLUSIVE


@SAME_EXAMPLES
@given(
    samples=st.integers(2, 200),
    clipped=st.lists(st.integers(0, 50), min_size=1, max_size=40),
    limit=st.fractions(0, 1, max_denominator=10**4),
)
def test_interval_holds_the_share_and_decides(
    samples: int, clipped: list[int], limit: Fraction
) -> None:
    seen = 64 * max(samples, len(clipped))
    audit = change_quantizers(
        AUDIT,
        FC1,
        clipped=sum(clipped),
        seen=seen,
        clipped_samples=sum(number > 0 for number in clipped),
        clipped_squares=sum(number**2 for number in clipped),
    )
    verdict = judge(audit, max_clipped=limit)
    share, high = (verdict.figures[f"worst_clipped_{name}"] for name in ("share", "high"))

    assert isinstance(share, float)
    assert isinstance(high, float)
    assert share <= high
    if verdict.status is Status.FAIL:
        assert share > limit
    elif sum(clipped):
        assert verdict.passed is (high <= limit)
    else:
        assert verdict.passed


def test_weight_is_no_sample() -> None:
    """All of its values are there: its share is what it is."""
    over = judge(change_quantizers(AUDIT, WEIGHT, clipped=11))
    within = judge(change_quantizers(AUDIT, WEIGHT, clipped=10))

    assert over.status is Status.FAIL
    assert f"worst {WEIGHT}: 11 of 10000 values, 0.110 %, above amax 1 " in over.headline
    assert within.passed
    assert within.figures["worst_clipped_high"] == within.figures["worst_clipped_share"] == 0.001


def test_weights_take_nothing_from_the_chance_of_the_others() -> None:
    """Alone among weights, 1.8 % chance is enough, as it is for one quantizer by itself."""
    audit = change_quantizers(AUDIT, FC1, clipped=17, seen=10_000)
    kept = tuple(q for q in audit.quantizers if q.name == FC1 or q.slot == "weight")

    assert len(kept) == 5
    assert judge(replace(audit, quantizers=kept)).status is Status.FAIL


def test_one_value_is_a_measurement() -> None:
    audit = change_quantizers(change_quantizers(AUDIT, "*", seen=0), FC1, seen=1)

    assert judge(audit).passed


def test_other_shares_that_are_open_are_evidence() -> None:
    audit = change_quantizers(AUDIT, FC1, clipped=120, seen=100_000)
    audit = change_quantizers(audit, "text*.0.*fc1.input*", clipped=110, seen=100_000)

    verdict = judge(audit)

    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.evidence[0].startswith(
        "text_model.layers.0.mlp.fc1.input_quantizer: 110 of 100000 values, 0.110 % ["
    )
    assert sum("100000 values" in line for line in verdict.evidence) == 1


def test_the_least_advice_is_twice_as_many_samples() -> None:
    """Twice the samples settle it, and three times would as well."""
    verdict = judge(change_quantizers(AUDIT, FC1, clipped=86, seen=100_000))

    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.next_step == "set calibration.held_out_samples: 32"


@pytest.mark.parametrize(
    ("audit", "run"),
    [
        (AUDIT, make_run(held_out_samples=0)),
        (change_quantizers(AUDIT, "*", seen=0), make_run()),
    ],
    ids=["no held-out samples", "no values seen"],
)
def test_clipping_that_was_not_measured_is_no_pass(audit: Audit, run: CalibrationRun) -> None:
    verdict = judge(audit, run)

    assert verdict.status is Status.NOT_MEASURED
    assert f"clipping was not measured: {run.held_out_samples} held-out samples" in verdict.headline
    assert at("max_clipped") in verdict.headline
    assert verdict.next_step == "set calibration.held_out_samples"


def test_failure_weighs_more_than_clipping_that_was_not_measured() -> None:
    audit = change_quantizers(AUDIT, "*", seen=0)

    verdict = judge(change_quantizers(audit, FC1, amax_min=0.0))

    assert verdict.status is Status.FAIL
    assert any(line.startswith("NOT_MEASURED: calibration: clipping") for line in verdict.evidence)
