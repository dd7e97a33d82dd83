"""The regression gate: what moved since the baseline, and whether it was the quantization."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pytest_quantgate.evidence.outcomes import Outcomes, StoredPair
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.regression import RegressionGate, judge_regression
from tests.unit.gates.gate_builders import (
    all_text,
    at,
    make_class_pair,
    make_hits,
    make_outcomes,
    make_pair,
    regression_gate,
    store,
)

SAMPLES = 2_000
CREATE = "pytest suites --quantgate-baselines=create"
UPDATE = "pytest suites --quantgate-baselines=update"


def with_wrong(*wrong: range, variant: str = "fp8-attention") -> Outcomes:
    """Return outcomes that are right but for the samples in some ranges."""
    lost = {i for part in wrong for i in part}
    return make_outcomes([i not in lost for i in range(SAMPLES)], variant=variant)


ALL_RIGHT = with_wrong()
FP16 = with_wrong(variant="fp16")


def judge(
    *,
    stored: StoredPair | None,
    fp16: Outcomes = FP16,
    quantized: Outcomes = ALL_RIGHT,
    differences: tuple[str, ...] = (),
    gate: RegressionGate | None = None,
) -> Verdict:
    return judge_regression(
        fp16=fp16,
        quantized=quantized,
        stored=stored,
        differences=differences,
        create_command=CREATE,
        update_command=UPDATE,
        gate=gate if gate is not None else regression_gate(),
    )


def test_same_results_pass_all_comparisons() -> None:
    verdict = judge(stored=store(FP16, ALL_RIGHT))

    assert verdict.passed
    text = all_text(verdict)
    assert "fp16 acc1 100.00 % against its own baseline 100.00 % on 2000 samples" in text
    assert "against the variant accepted last 100.00 %" in text
    assert "against the first variant accepted 100.00 %" in text
    assert f"within max_fp16_drop 1.00 pp = 20 samples ({at('max_fp16_drop')})" in text
    assert (
        f"within max_drop_since_first 2.00 pp = 40 samples ({at('max_drop_since_first')})" in text
    )
    assert (verdict.cause, verdict.next_step) == ("", "")
    assert verdict.brief == "FP16 100.00 -> 100.00 %, drop 0.00 [-0.16, 0.16] within 1.00 pp"
    assert verdict.figures["samples"] == SAMPLES
    assert verdict.figures["fp16_drop_points"] == 0
    assert verdict.figures["accepted_drop_high_points"] == pytest.approx(0.156, abs=0.001)


def test_better_results_pass() -> None:
    before = with_wrong(range(100))

    verdict = judge(stored=store(FP16, before))

    assert verdict.passed
    assert "drop -5.00 pp" in all_text(verdict)


# -- nothing to compare with --------------------------------------------------------------------


def test_missing_baseline_fails_and_says_how_to_make_one() -> None:
    verdict = judge(stored=None)

    assert verdict.status is Status.FAIL
    assert "no baseline of scenes/classification acc1" in verdict.headline
    assert verdict.next_step == f"look at the accuracy gate, then: {CREATE}"


def test_baseline_of_another_model_is_not_compared() -> None:
    words = "model weights or files differ: baseline aaaa, now bbbb"

    verdict = judge(stored=store(FP16, ALL_RIGHT), differences=(words,))

    assert verdict.status is Status.INCOMPARABLE
    assert "was made of something else" in verdict.headline
    assert verdict.evidence == (words,)
    assert verdict.brief == words
    assert verdict.code == "regression.baseline-of-other-things"
    assert verdict.next_step == f"if that is meant: {UPDATE}"


def test_as_many_differences_as_a_table_shows_are_brief() -> None:
    many = tuple(f"setting {n} differs" for n in range(9))

    brief = judge(stored=store(FP16, ALL_RIGHT), differences=many).brief

    assert brief == "setting 0 differs, setting 1 differs, setting 2 differs, setting 3 ..."
    assert len(brief) <= 70


def test_baseline_of_another_model_is_not_compared_even_where_it_would_fail() -> None:
    verdict = judge(
        stored=store(FP16, ALL_RIGHT),
        quantized=with_wrong(range(1_000)),
        differences=("evaluation data differ: baseline aaaa, now bbbb",),
    )

    assert verdict.status is Status.INCOMPARABLE


@pytest.mark.parametrize("which", ["fp16", "accepted", "first", "first_fp16"])
def test_baseline_of_other_data_is_not_compared(which: str) -> None:
    good = store(FP16, ALL_RIGHT)
    stored = replace(good, **{which: replace(getattr(good, which), data_digest="e" * 64)})

    verdict = judge(stored=stored)

    assert verdict.status is Status.INCOMPARABLE
    assert "cannot be compared: the data differs: baseline eeeeeeeeeeee" in verdict.headline
    assert verdict.next_step == f"if that is meant: {UPDATE}"


def test_baseline_of_fewer_samples_is_not_compared() -> None:
    fewer = make_outcomes([True] * 10)

    verdict = judge(stored=store(replace(fewer, variant="fp16"), fewer))

    assert verdict.status is Status.INCOMPARABLE
    assert "the sample ids differ: 10 in the baseline" in verdict.headline


# -- results that are no result -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nonfinite": 3}, "gave NaN or Inf on 3 of 2000 samples"),
        ({"value": math.nan}, "gave NaN or Inf"),
        ({"value": 0.5}, "is not what its 2000 samples say"),
    ],
)
@pytest.mark.parametrize("which", ["fp16", "quantized"])
def test_broken_results_fail_under_the_name_of_this_gate(
    which: str, changes: dict[str, Any], words: str
) -> None:
    now: dict[str, Any] = {"fp16": FP16, "quantized": ALL_RIGHT}
    now[which] = replace(now[which], **changes)

    verdict = judge(stored=store(FP16, ALL_RIGHT), **now)

    assert verdict.status is Status.FAIL
    assert verdict.gate == "regression"
    assert verdict.headline.startswith("regression: ")
    assert "accuracy: " not in verdict.headline
    assert words in verdict.headline
    assert verdict.cause
    assert verdict.next_step


def test_mean_over_classes_needs_classes() -> None:
    hits = make_hits([True] * 4, metric="mean_per_class_recall")

    verdict = judge(
        stored=store(hits, hits),
        fp16=hits,
        quantized=hits,
        gate=regression_gate(metric="mean_per_class_recall"),
    )

    assert verdict.status is Status.FAIL
    assert f"needs classes, and the samples have none ({at('metric')})" in verdict.headline
    assert verdict.next_step == "use metric: acc1, or the recall metrics for retrieval"


# -- what moved ---------------------------------------------------------------------------------


def test_fp16_that_moved_is_told_from_a_quantization_that_moved() -> None:
    moved = range(100)

    verdict = judge(
        stored=store(FP16, ALL_RIGHT),
        fp16=with_wrong(moved, variant="fp16"),
        quantized=with_wrong(moved),
    )

    assert verdict.status is Status.FAIL
    assert "fp16 acc1 95.00 % against its own baseline 100.00 %" in verdict.headline
    assert "drop 5.00 pp" in verdict.headline
    assert f"over max_fp16_drop 1.00 pp = 20 samples ({at('max_fp16_drop')})" in verdict.headline
    assert "a library, the machine or the preprocessing" in verdict.cause
    assert "the baseline moved, not the quantization" in verdict.next_step
    assert verdict.evidence[0] == "100 right to wrong, 0 wrong to right"


@pytest.mark.parametrize(("fp16_lost", "lost"), [(60, 80), (60, 120)])
def test_most_of_the_drop_being_fp16s_own_is_said(fp16_lost: int, lost: int) -> None:
    """FP16 is still within its wider limit, so the variant leads: it must not be blamed."""
    verdict = judge(
        stored=store(FP16, ALL_RIGHT),
        fp16=with_wrong(range(fp16_lost), variant="fp16"),
        quantized=with_wrong(range(lost)),
        gate=regression_gate(max_fp16_drop=Fraction(10, 100)),
    )

    assert verdict.status is Status.FAIL
    assert "against the variant accepted last" in verdict.headline
    assert verdict.cause == (
        "FP16 itself moved by 3.00 pp: the baseline moved, not the quantization"
    )


def test_fp16s_own_drop_is_said_of_the_drop_since_the_first_too() -> None:
    verdict = judge(
        stored=store(FP16, with_wrong(range(80)), ALL_RIGHT),
        fp16=with_wrong(range(60), variant="fp16"),
        quantized=with_wrong(range(80)),
        gate=regression_gate(max_fp16_drop=Fraction(10, 100)),
    )

    assert "against the first variant accepted" in verdict.headline
    assert verdict.cause.startswith("FP16 itself moved by 3.00 pp")


@pytest.mark.parametrize("metric", ["acc1", "mean_per_class_recall"])
def test_only_a_mean_over_classes_needs_a_sample_of_each(metric: str) -> None:
    """Four samples of three of four classes: a fair draw shows no more."""
    now = make_outcomes([True] * 4, labels=(0, 1, 2, 2), metric=metric)
    fp16 = replace(now, variant="fp16")

    verdict = judge(
        stored=store(fp16, now), fp16=fp16, quantized=now, gate=regression_gate(metric=metric)
    )

    assert ("without a sample: owl" in all_text(verdict)) is (metric != "acc1")


@pytest.mark.parametrize("fp16_lost", [0, 10, 40])
def test_quantization_that_moved_alone_is_blamed(fp16_lost: int) -> None:
    verdict = judge(
        stored=store(FP16, ALL_RIGHT),
        fp16=with_wrong(range(fp16_lost), variant="fp16"),
        quantized=with_wrong(range(100)),
        gate=regression_gate(max_fp16_drop=Fraction(10, 100)),
    )

    assert verdict.status is Status.FAIL
    assert "against the variant accepted last 100.00 %" in verdict.headline
    assert f"over max_drop 1.00 pp = 20 samples ({at('max_drop')})" in verdict.headline
    assert verdict.cause == "the quantized variant changed while FP16 did not"
    assert verdict.next_step == f"if that is meant: {UPDATE}"


def test_small_accepted_drops_do_not_add_up_unseen() -> None:
    """Each step was within its limit when it was accepted; together they are not."""
    first = ALL_RIGHT
    steps = [with_wrong(range(12 * n)) for n in range(1, 8)]
    gate = regression_gate()

    verdicts = []
    accepted = first
    for now in steps:
        verdicts.append(judge(stored=store(FP16, accepted, first), quantized=now, gate=gate))
        accepted = now

    alone = judge(stored=store(FP16, steps[-2], steps[-2]), quantized=steps[-1], gate=gate)
    assert alone.passed
    assert verdicts[0].passed
    last = verdicts[-1]
    assert last.status is Status.FAIL
    assert "against the first variant accepted 100.00 %" in last.headline
    assert f"over max_drop_since_first 2.00 pp = 40 samples ({at('max_drop_since_first')})" in (
        last.headline
    )
    assert last.figures["accepted_drop_points"] == pytest.approx(0.6)
    assert last.figures["first_drop_points"] == pytest.approx(4.2)
    assert last.figures["first_drop_low_points"] == pytest.approx(3.487, abs=0.001)
    assert last.figures["first_drop_high_points"] == pytest.approx(5.015, abs=0.001)
    assert "small accepted drops have added up" in last.next_step


@pytest.mark.parametrize(("lost", "drop"), [(16, "0.80 pp"), (20, "1.00 pp")])
def test_drop_within_its_limit_on_few_samples_asks_for_more(lost: int, drop: str) -> None:
    verdict = judge(stored=store(FP16, ALL_RIGHT), quantized=with_wrong(range(lost)))

    assert verdict.status is Status.INCONCLUSIVE
    assert f"drop {drop}" in verdict.headline
    assert "not decided against max_drop 1.00 pp" in verdict.headline
    assert re.fullmatch(r"variant 100.00 -> .* around 1.00 pp", verdict.brief)
    assert verdict.cause == "too few samples for this limit and this rate of flips"
    assert verdict.next_step == (
        "evaluate on fresh samples, or accept a larger max_drop on purpose"
    )


def test_drop_over_its_limit_is_blamed_although_it_is_not_decided() -> None:
    verdict = judge(stored=store(FP16, ALL_RIGHT), quantized=with_wrong(range(24)))

    assert verdict.status is Status.INCONCLUSIVE
    assert "drop 1.20 pp" in verdict.headline
    assert verdict.cause == "the quantized variant changed while FP16 did not"
    assert verdict.next_step == f"if that is meant: {UPDATE}"


def test_drops_are_compared_sample_by_sample_not_by_their_mean() -> None:
    """Half of all answers flipped and the mean is the same: the interval says how unsure it is."""
    calm = judge(stored=store(FP16, with_wrong(range(500))), quantized=with_wrong(range(500)))
    wild = judge(
        stored=store(FP16, with_wrong(range(500))), quantized=with_wrong(range(500, 1_000))
    )

    assert calm.passed
    assert wild.status is Status.INCONCLUSIVE
    assert "500 right to wrong, 500 wrong to right" in wild.evidence


def test_mean_over_classes_is_compared_class_by_class() -> None:
    metric = "mean_per_class_recall"
    before, now = make_class_pair(("cat", 900, 0, 0), ("dog", 100, 10, 0), metric=metric)
    fp16 = replace(before, variant="fp16")

    verdict = judge(
        stored=store(fp16, replace(before, variant="fp8-attention")),
        fp16=fp16,
        quantized=now,
        gate=regression_gate(metric=metric, max_drop=Fraction(2, 100)),
    )

    assert verdict.status is Status.FAIL
    assert verdict.figures["accepted_drop_points"] == pytest.approx(5)
    assert verdict.figures["fp16_drop_points"] == 0


def test_results_of_make_pair_can_be_stored_and_compared() -> None:
    fp16, quantized = make_pair(2_000, lost=10, won=3, both_wrong=100)

    verdict = judge(stored=store(fp16, fp16), fp16=fp16, quantized=quantized)

    assert verdict.passed
    assert "10 right to wrong, 3 wrong to right" in verdict.evidence


def test_fp16_slot_that_holds_the_variant_is_found() -> None:
    """Both are equally good, so no limit on a drop sees it; sample by sample it shows."""
    fp16, quantized = make_pair(2_000, lost=10, won=10, both_wrong=100)

    verdict = judge(stored=store(quantized, quantized), fp16=fp16, quantized=quantized)

    assert verdict.status is Status.INCOMPARABLE
    assert "the baseline's slot of fp16 holds the outcomes of fp8-attention" in verdict.headline
    assert "0 of 2000 samples differ from fp8-attention now, 20 from fp16" in verdict.headline
    assert verdict.cause == "the baseline was made with one model in the place of the other"
    assert verdict.next_step == f"look at how it was made, then: {UPDATE}"


def test_slot_of_the_variant_that_holds_fp16_is_found() -> None:
    fp16, quantized = make_pair(2_000, lost=10, won=10, both_wrong=100)

    verdict = judge(stored=store(fp16, fp16), fp16=fp16, quantized=quantized)

    assert verdict.status is Status.INCOMPARABLE
    assert "the baseline's slot of fp8-attention holds the outcomes of fp16" in verdict.headline

    assert verdict.next_step == f"look at how it was made, then: {UPDATE}"


@pytest.mark.parametrize(("each_way", "found"), [(3, False), (4, True)])
def test_four_flips_each_way_are_another_model(each_way: int, found: bool) -> None:
    fp16, quantized = make_pair(2_000, lost=each_way, won=each_way, both_wrong=100)

    verdict = judge(stored=store(quantized, quantized), fp16=fp16, quantized=quantized)

    assert (verdict.status is Status.INCOMPARABLE) is found


@pytest.mark.parametrize(("own_flips", "found"), [(2, True), (3, False)])
def test_a_slot_is_anothers_where_it_is_four_times_as_near(own_flips: int, found: bool) -> None:
    """Three samples each way part the models; two of 8, or three of 9, are the slot's own."""
    fp16, quantized = make_pair(2_000, lost=3, won=3, both_wrong=100)
    moved = (50, 1_999, 1_998)[:own_flips]  # one that is wrong in both, then right ones
    correct = tuple(bool(right) ^ (i in moved) for i, right in enumerate(quantized.correct))
    slot = replace(quantized, correct=correct, value=sum(correct) / 2_000)

    verdict = judge(stored=store(slot, quantized), fp16=fp16, quantized=quantized)

    assert (verdict.status is Status.INCOMPARABLE) is found


def test_few_flips_exchange_no_slots() -> None:
    fp16, quantized = make_pair(2_000, lost=3, won=3, both_wrong=100)

    assert judge(stored=store(fp16, fp16), fp16=fp16, quantized=quantized).passed


def test_small_accepted_drifts_of_fp16_do_not_add_up_unseen() -> None:
    """An update replaces the FP16 slot each time; what FP16 gave at first stays."""
    drifts = [with_wrong(range(12 * n), variant="fp16") for n in range(8)]
    stored = store(drifts[6], ALL_RIGHT, first_fp16=FP16)

    step = judge(stored=store(drifts[6], ALL_RIGHT), fp16=drifts[7])
    verdict = judge(stored=stored, fp16=drifts[7])

    assert step.passed
    assert verdict.status is Status.FAIL
    assert "fp16 acc1 95.80 % against FP16 when the first variant was accepted 100.00 %" in (
        verdict.headline
    )
    assert f"over max_drop_since_first 2.00 pp = 40 samples ({at('max_drop_since_first')})" in (
        verdict.headline
    )
    assert verdict.figures["first_fp16_drop_points"] == pytest.approx(4.2)
    assert "small accepted drifts of FP16 have added up" in verdict.next_step
    assert "a library, the machine or the preprocessing" in verdict.cause


@pytest.mark.parametrize(("chance", "right"), [(0.1, 300), (0.0, 200)])
def test_limits_that_one_that_guesses_would_keep_decide_nothing(chance: float, right: int) -> None:
    """As in the accuracy gate: all that the accepted variant has over chance may be lost."""
    fp16, accepted = (
        make_outcomes([i < right for i in range(1000)], variant=variant)
        for variant in ("fp16", "fp8-attention")
    )

    def judge_limits(**limits: Fraction) -> Verdict:
        return judge_regression(
            fp16=fp16,
            quantized=accepted,
            stored=store(fp16, accepted),
            differences=(),
            create_command=CREATE,
            update_command=UPDATE,
            gate=regression_gate(**limits),
            chance=chance,
        )

    wide = judge_limits(max_drop=Fraction(20, 100), max_drop_since_first=Fraction(20, 100))

    assert (wide.status, wide.code) == (Status.INCONCLUSIVE, "regression.limit-reaches-chance")
    assert "max_drop 20.00 pp passes a variant that has lost everything" in wide.headline
    assert at("max_drop") in wide.headline
    assert wide.next_step == "set max_drop well under 20.00 pp"
    # One limit that fails who guesses is enough.
    assert judge_limits(max_drop=Fraction(20, 100)).passed
    assert judge_limits(max_drop_since_first=Fraction(20, 100)).passed
