"""The accuracy gate: drops, floors, flips and classes, decided with a confidence."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.accuracy import (
    AccuracyGate,
    judge_accuracy,
    spend_confidence,
)
from pytest_quantgate.gates.deciding import decide
from pytest_quantgate.gates.looks import describe_looks
from pytest_quantgate.statistics.intervals import (
    Flips,
    Interval,
    chance_above,
    drop_limits,
    mean_over,
)
from pytest_quantgate.statistics.pairing import pair_outcomes
from pytest_quantgate.statistics.sizes import samples_to_settle
from pytest_quantgate.store.looks import Looks
from pytest_quantgate.store.records import Look
from tests.unit.gates.gate_builders import (
    SAME_EXAMPLES,
    accuracy_gate,
    all_text,
    at,
    make_class_pair,
    make_hits,
    make_outcomes,
    make_pair,
    number_in,
)

LIMITS = st.sampled_from([Fraction(n, 1000) for n in (0, 5, 10, 50, 200)])


def judge(
    pair: tuple[Outcomes, Outcomes], gate: AccuracyGate | None = None, **limits: Any
) -> Verdict:
    fp16, quantized = pair
    return judge_accuracy(fp16=fp16, quantized=quantized, gate=gate or accuracy_gate(**limits))


@st.composite
def flips(draw: st.DrawFn) -> tuple[int, int, int]:
    """Samples, lost and won that fit together."""
    samples = draw(st.integers(1, 400))
    lost = draw(st.one_of(st.integers(0, min(samples, 12)), st.integers(0, samples)))
    won = draw(st.one_of(st.integers(0, min(samples - lost, 12)), st.integers(0, samples - lost)))
    return samples, lost, won


# -- a case from practice -----------------------------------------------------------------------

#: 10,000 samples: a drop of 0.47 points, and 5.3 % of all answers are not FP16's.
PRACTICE = make_pair(10_000, lost=200, won=153, other_answers=177, both_wrong=3_600)


def test_half_a_point_on_ten_thousand_samples_is_not_decided() -> None:
    verdict = judge(PRACTICE, max_drop=Fraction(1, 200))

    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.headline == (
        "accuracy: scenes/classification: fp8-attention acc1 62.00 % vs fp16 62.47 % on 10000 "
        "samples of 4 classes: drop 0.47 pp, one-sided 95 % limits [0.16, 0.79] pp, not decided "
        f"against max_drop 0.50 pp = 50 samples ({at('max_drop')})"
    )
    assert "200 right to wrong, 153 wrong to right, 530 answers changed" in verdict.evidence
    assert verdict.figures["drop_points"] == pytest.approx(0.47)
    assert verdict.figures["drop_low_points"] == pytest.approx(0.16, abs=0.005)
    assert verdict.figures["drop_high_points"] == pytest.approx(0.786, abs=0.001)
    assert verdict.brief == "62.47 -> 62.00 %, drop 0.47 [0.16, 0.79] around 0.50 pp"
    assert verdict.code == "accuracy.drop-open"
    assert "too few samples" in verdict.cause
    assert verdict.next_step == (
        "evaluate on fresh samples, or accept a larger max_drop on purpose"
    )


def test_the_same_result_fails_on_its_flips() -> None:
    """The average hides it: gains and losses cancel out, but one answer in nineteen is another."""
    verdict = judge(PRACTICE, max_drop=Fraction(1, 200), max_flips=Fraction(3, 100))

    assert verdict.status is Status.FAIL
    assert (
        "530 of 10000 answers changed, 5.30 %, one-sided 95 % limits [4.94, 5.68] %"
    ) in verdict.headline
    assert f"over max_flips 3.00 % = 300 ({at('max_flips')})" in verdict.headline
    assert "the average hides it" in verdict.cause
    assert any(line.startswith("INCONCLUSIVE: accuracy:") for line in verdict.evidence)


def test_the_same_rates_settle_where_the_verdict_says() -> None:
    verdict = judge(PRACTICE, max_drop=Fraction(1, 200))

    needed = number_in(
        r"about (\d+) fresh samples at these rates would settle it 8 times in 10", verdict.evidence
    )

    assert needed > 100 * 10_000
    assert any("10000 were measured" in line for line in verdict.evidence)


# -- the drop -----------------------------------------------------------------------------------


@SAME_EXAMPLES
@given(case=flips(), limit=LIMITS)
def test_improvement_never_fails(case: tuple[int, int, int], limit: Fraction) -> None:
    samples, lost, won = case
    assume(won >= lost)

    verdict = judge(make_pair(samples, lost=lost, won=won), max_drop=limit)

    assert verdict.status is not Status.FAIL


@SAME_EXAMPLES
@given(case=flips(), limit=LIMITS)
def test_gaining_only_never_fails_a_class(case: tuple[int, int, int], limit: Fraction) -> None:
    samples, _, won = case

    verdict = judge(make_pair(samples, won=won), max_drop=Fraction(1), max_class_drop=limit)

    assert verdict.status is not Status.FAIL
    assert verdict.figures["classes_over"] == 0


@SAME_EXAMPLES
@given(case=flips(), limit=LIMITS)
def test_a_verdict_is_inconclusive_just_where_the_interval_straddles(
    case: tuple[int, int, int], limit: Fraction
) -> None:
    samples, lost, won = case

    assume(won < samples)  # else FP16 is right on none
    verdict = judge(make_pair(samples, lost=lost, won=won), max_drop=limit)

    points = float(limit) * 100
    low, high = (float(verdict.figures[f"drop_{side}_points"]) for side in ("low", "high"))
    assume(min(abs(low - points), abs(high - points)) > 1e-9)
    straddles = low < points < high
    assert (verdict.status is Status.INCONCLUSIVE) == straddles
    assert (verdict.status is Status.PASS) == (high < points)


@SAME_EXAMPLES
@given(case=flips(), limit=LIMITS)
def test_passing_means_that_the_drop_is_within_its_limit(
    case: tuple[int, int, int], limit: Fraction
) -> None:
    samples, lost, won = case
    verdict = judge(make_pair(samples, lost=lost, won=won), max_drop=limit)

    if verdict.passed:
        assert Fraction(lost - won, samples) <= limit
    if verdict.status is Status.FAIL:
        assert Fraction(lost - won, samples) > limit


@SAME_EXAMPLES
@given(case=flips(), limit=LIMITS, screens=st.booleans())
def test_another_loss_never_makes_a_verdict_better(
    case: tuple[int, int, int], limit: Fraction, screens: bool
) -> None:
    samples, lost, won = case
    assume(lost + won < samples)
    gate = accuracy_gate(max_drop=limit)
    if screens:
        gate = replace(
            gate, floor=Fraction(1, 2), max_flips=Fraction(1, 10), max_class_drop=Fraction(1, 20)
        )

    before = judge(make_pair(samples, lost=lost, won=won), gate)
    # The sample that is lost now was right in both: the last of those that changed places.
    fp16, quantized = make_pair(samples, lost=lost, won=won)
    at_last = samples - 1
    worse = replace(
        quantized,
        correct=(*quantized.correct[:at_last], False),
        answers=(*quantized.answers[:at_last], (quantized.labels[at_last] + 1) % 4),
        value=(sum(quantized.correct) - 1) / samples,
    )
    after = judge((fp16, worse), gate)

    assert after.status.severity >= before.status.severity


@pytest.mark.parametrize(
    ("samples", "lost", "won", "limit"),
    [
        (10_000, 20, 10, Fraction(1, 200)),
        (1_000, 0, 0, Fraction(1, 100)),
        (1_000, 0, 30, Fraction(1, 100)),
        (311, 0, 0, Fraction(1, 100)),
    ],
)
def test_number_of_flips_that_would_end_a_pass_is_exact(
    samples: int, lost: int, won: int, limit: Fraction
) -> None:
    gate = accuracy_gate(max_drop=limit)
    verdict = judge(make_pair(samples, lost=lost, won=won), gate)
    assert verdict.passed

    more = number_in(r"(\d+) more flips? to wrong would end this PASS", verdict.evidence)

    assert not judge(make_pair(samples, lost=lost + more, won=won), gate).passed
    assert judge(make_pair(samples, lost=lost + more - 1, won=won), gate).passed


@pytest.mark.parametrize(
    ("samples", "lost", "won", "limit"),
    [
        (10_000, 200, 20, Fraction(1, 200)),
        (1_000, 60, 0, Fraction(1, 100)),
        (50, 50, 0, Fraction(1, 100)),
    ],
)
def test_number_of_flips_that_would_end_a_fail_is_exact(
    samples: int, lost: int, won: int, limit: Fraction
) -> None:
    gate = accuracy_gate(max_drop=limit)
    verdict = judge(make_pair(samples, lost=lost, won=won), gate)
    assert verdict.status is Status.FAIL

    fewer = number_in(r"(\d+) flips? fewer would end this FAIL", verdict.evidence)

    ended = judge(make_pair(samples, lost=lost - fewer, won=won), gate)
    assert ended.status is not Status.FAIL
    still = judge(make_pair(samples, lost=lost - fewer + 1, won=won), gate)
    assert still.status is Status.FAIL


def test_no_flip_can_end_a_pass_that_allows_everything() -> None:
    verdict = judge(make_pair(100, lost=5), max_drop=Fraction(1), max_flips=Fraction(99, 100))

    assert verdict.passed
    assert "would end" not in all_text(verdict)


def test_drop_at_its_limit_says_that_samples_do_not_help() -> None:
    verdict = judge(make_pair(10_000, lost=60, won=10), max_drop=Fraction(1, 200))

    assert verdict.status is Status.INCONCLUSIVE
    assert "the drop is the limit: no number of samples would settle it" in verdict.evidence


def test_failure_names_the_limit_its_place_and_what_to_do() -> None:
    verdict = judge(make_pair(1_000, lost=60, won=5), max_drop=Fraction(1, 100))

    assert verdict.status is Status.FAIL
    assert "drop 5.50 pp, one-sided 95 % limits [4.23, 6.93] pp" in verdict.headline
    assert f"over max_drop 1.00 pp = 10 samples ({at('max_drop')})" in verdict.headline
    assert verdict.brief == "99.50 -> 94.00 %, drop 5.50 [4.23, 6.93] over 1.00 pp"
    assert verdict.code == "accuracy.drop"
    assert verdict.cause == "quantization noise where the model is sensitive"
    assert "exclude the worst layers" in verdict.next_step


def test_pass_carries_its_numbers_too() -> None:
    verdict = judge(make_pair(1_000, lost=3, won=1), max_drop=Fraction(1, 100))

    assert verdict.passed
    assert f"within max_drop 1.00 pp = 10 samples ({at('max_drop')})" in verdict.headline
    assert verdict.evidence[0] == "3 right to wrong, 1 wrong to right, 4 answers changed"
    assert (verdict.cause, verdict.next_step, verdict.code) == ("", "", "")
    assert verdict.brief.endswith(" within 1.00 pp")
    assert verdict.figures["samples"] == 1_000
    assert verdict.figures["copies"] == 0
    assert verdict.figures["classes_seen"] == 4
    assert verdict.figures["fp16_value"] == 0.999
    assert verdict.figures["quantized_value"] == 0.997
    assert verdict.figures["right_to_wrong"] == 3
    assert verdict.figures["wrong_to_right"] == 1
    assert verdict.figures["answers_changed"] == 4
    assert verdict.figures["max_drop_points"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("limit", "samples", "allowed"),
    [
        (Fraction(1, 200), 10_000, "50 samples"),
        (Fraction(29, 100), 100, "29 samples"),  # 0.29 * 100 is 28.999... in floats
        (Fraction(1, 100), 199, "1 sample"),
        (Fraction(1, 100), 99, "0 samples"),
    ],
)
def test_limit_is_shown_as_an_exact_count(limit: Fraction, samples: int, allowed: str) -> None:
    assert f"pp = {allowed} (" in judge(make_pair(samples), max_drop=limit).headline


@pytest.mark.parametrize(
    ("confidence", "text"),
    [
        (Fraction(95, 100), "95 %"),
        (Fraction(975, 1000), "97.5 %"),
        (Fraction(999, 1000), "99.9 %"),
    ],
)
def test_confidence_is_shown_as_the_suite_has_it(confidence: Fraction, text: str) -> None:
    verdict = judge(
        make_pair(2_000), confidence=confidence, floor=Fraction(1, 10), max_flips=Fraction(1, 10)
    )

    assert all_text(verdict).count(f"one-sided {text} limits") == 3


def test_more_confidence_asks_for_more_samples() -> None:
    pair = make_pair(400)

    assert judge(pair, confidence=Fraction(95, 100)).passed
    assert judge(pair, confidence=Fraction(99, 100)).status is Status.INCONCLUSIVE


def test_worst_class_is_named_only_where_one_lost() -> None:
    worse = judge(make_class_pair(("cat", 100, 0, 0), ("dog", 100, 4, 1)), max_drop=Fraction(1, 10))
    same = judge(make_class_pair(("cat", 100, 0, 0), ("dog", 100, 0, 4)), max_drop=Fraction(1, 10))

    assert "worst class 'dog' -3.00 pp (4 lost, 1 won of 100)" in worse.evidence
    assert "worst class" not in all_text(same)


def test_retrieval_is_judged_without_classes() -> None:
    pair = (make_hits([True] * 400, variant="fp16"), make_hits([True] * 400))

    verdict = judge(pair, task="scenes/retrieval", metric="image_retrieval_recall@1")

    assert verdict.passed
    assert "image_retrieval_recall@1 100.00 % vs fp16 100.00 % on 400 samples" in verdict.headline


def test_the_worst_class_is_the_one_that_lost_most() -> None:
    """By its drop, not by its name and not by how it stands in the list."""
    pair = make_class_pair(("ape", 100, 2, 0), ("bee", 100, 5, 0), ("yak", 100, 3, 0))

    verdict = judge(pair, max_drop=Fraction(1, 2))

    assert "worst class 'bee' -5.00 pp (5 lost, 0 won of 100)" in verdict.evidence


@pytest.mark.parametrize("each", [1, 5])
def test_advice_is_the_number_that_settles_it_in_samples_as_they_come(each: int) -> None:
    """Captions in fives are worth fewer samples, so as many more are needed."""
    clusters = tuple(i // each for i in range(1_000)) if each > 1 else ()
    fp16 = make_hits([True] * 1_000, variant="fp16", clusters=clusters)
    quantized = make_hits([i >= 10 for i in range(1_000)], clusters=clusters)
    flips = pair_outcomes(before=fp16, after=quantized).flips
    settled = samples_to_settle(flips, confidence=0.95, limit=0.014)
    assert settled is not None

    verdict = judge((fp16, quantized), max_drop=Fraction(14, 1000))

    needed = number_in(r"about (\d+) fresh samples", verdict.evidence)
    assert needed == math.ceil(settled * 1_000 / flips.samples) > 1_000


# -- results that are no result -----------------------------------------------------------------


def test_captions_of_one_image_are_no_independent_samples() -> None:
    """Twelve of 200 images lose all five captions: 60 of 1,000 captions prove much less."""
    clusters = tuple(i // 5 for i in range(1_000))
    fp16 = make_hits([True] * 1_000, variant="fp16", clusters=clusters)
    quantized = make_hits([i >= 60 for i in range(1_000)], clusters=clusters)
    gate = accuracy_gate(task="scenes/retrieval", max_drop=Fraction(4, 100), floor=Fraction(9, 10))

    verdict = judge((fp16, quantized), gate)
    apart = judge((replace(fp16, clusters=()), replace(quantized, clusters=())), gate)

    assert apart.status is Status.FAIL
    assert verdict.status is Status.INCONCLUSIVE
    assert "drop 6.00 pp" in verdict.headline
    (line,) = [line for line in verdict.evidence if "in 200 clusters that share" in line]
    assert 195 < number_in(r"are worth (\d+) independent", [line]) < 215
    needed = number_in(r"about (\d+) fresh samples", verdict.evidence)
    assert needed > 3_000
    assert verdict.figures["drop_low_points"] < apart.figures["drop_low_points"]  # type: ignore[operator]


def test_clusters_that_are_too_few_fail() -> None:
    fp16, quantized = make_pair(10, lost=1)

    verdict = judge((fp16, replace(quantized, clusters=(0, 0))))

    assert verdict.status is Status.FAIL


def test_other_samples_cannot_be_compared() -> None:
    fp16, quantized = make_pair(10)
    other = replace(quantized, ids=(*quantized.ids[:9], "image-99999"))

    verdict = judge((fp16, other))

    assert verdict.status is Status.INCOMPARABLE
    assert "cannot be compared: the sample ids differ: 1 only in fp16" in verdict.headline
    assert "same samples" in verdict.next_step


def test_no_samples_cannot_be_compared() -> None:
    verdict = judge((make_outcomes([], variant="fp16"), make_outcomes([])))

    assert verdict.status is Status.INCOMPARABLE
    assert "has no samples" in verdict.headline


@pytest.mark.parametrize(
    "changes", [{"nonfinite": 2}, {"value": math.nan}, {"value": math.inf}], ids=str
)
@pytest.mark.parametrize("which", ["fp16", "quantized"])
def test_nan_fails_in_either_variant(which: str, changes: dict[str, Any]) -> None:
    fp16, quantized = make_pair(1_000)
    if which == "fp16":
        fp16 = replace(fp16, **changes)
    else:
        quantized = replace(quantized, **changes)

    verdict = judge((fp16, quantized), max_drop=Fraction(1))

    assert verdict.status is Status.FAIL
    broken = fp16 if which == "fp16" else quantized
    assert verdict.headline == (
        f"accuracy: scenes/classification acc1: {broken.variant} gave NaN or Inf on "
        f"{broken.nonfinite} of 1000 samples, its value is {broken.value * 100:.2f} %"
    )
    assert verdict.cause == "an overflow in FP16, or a scale that is not finite"
    assert verdict.next_step.startswith("look at the calibration gate")


@pytest.mark.parametrize("metric", ["acc1", "mean_per_class_recall"])
def test_value_that_its_samples_deny_fails(metric: str) -> None:
    fp16, quantized = make_class_pair(("cat", 100, 0, 0), ("dog", 300, 30, 0), metric=metric)

    verdict = judge((fp16, replace(quantized, value=1.0)), metric=metric, max_drop=Fraction(1))

    assert verdict.status is Status.FAIL
    assert (
        "the value of fp8-attention, 100.00 %, is not what its 400 samples say" in verdict.headline
    )
    assert "changed after it was taken" in verdict.cause
    assert verdict.next_step == "measure again without the cache: --quantgate-cache=off"


def test_ragged_outcomes_fail() -> None:
    fp16, quantized = make_pair(10)

    verdict = judge((fp16, replace(quantized, answers=quantized.answers[:9])))

    assert verdict.status is Status.FAIL


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (0.0, 0.01, Status.PASS),
        (0.0, 0.0100001, Status.INCONCLUSIVE),
        (0.01, 0.02, Status.INCONCLUSIVE),
        (0.0100001, 0.02, Status.FAIL),
        (math.nan, math.nan, Status.INCONCLUSIVE),
    ],
)
def test_an_interval_is_decided_by_its_ends(low: float, high: float, status: Status) -> None:
    """A limit itself is kept, on either end; what is no number is never green."""
    assert decide(Interval(low=low, high=high), limit=0.01) is status


# -- floor --------------------------------------------------------------------------------------


def test_loss_of_nothing_from_nothing_is_no_pass() -> None:
    """Two models that both guess agree well; only a floor sees it."""
    guess = make_pair(1_000, both_wrong=750)

    without, with_floor = judge(guess), judge(guess, floor=Fraction(6, 10))

    assert without.passed
    assert with_floor.status is Status.FAIL
    assert f"under floor 60.00 % ({at('floor')})" in with_floor.headline
    assert "no pass" in with_floor.cause
    assert with_floor.next_step == "check the FP16 value first"
    assert with_floor.figures["floor_status"] == "FAIL"


@pytest.mark.parametrize(
    ("right", "limits", "status", "words"),
    [
        (650, "62.44, 67.50", Status.PASS, "over floor 60.00 %"),
        (610, "58.39, 63.56", Status.INCONCLUSIVE, "not decided against floor 60.00 %"),
        (590, "56.37, 61.59", Status.INCONCLUSIVE, "not decided against floor 60.00 %"),
        (550, "52.35, 57.62", Status.FAIL, "under floor 60.00 %"),
    ],
)
def test_floor_is_decided_with_confidence(
    right: int, limits: str, status: Status, words: str
) -> None:
    """A tenth of a point beyond scipy.stats.binomtest(...).proportion_ci(0.9, "wilson")."""
    verdict = judge(make_pair(1_000, both_wrong=1_000 - right), floor=Fraction(6, 10))

    assert verdict.status is status
    assert f"% limits [{limits}] %, {words}" in all_text(verdict)
    assert verdict.figures["floor"] == 0.6
    assert verdict.figures["floor_status"] == status.value
    if status is not Status.PASS:
        low, high = limits.split(", ")
        word = "under" if status is Status.FAIL else "around"
        assert verdict.brief == f"{right / 10:.2f} % [{low}, {high}] {word} floor 60.00 %"
        assert verdict.code == ("accuracy.floor" if word == "under" else "accuracy.floor-open")
        assert bool(verdict.cause) is bool(verdict.next_step) is (status is Status.FAIL)


def test_nothing_is_over_a_floor_of_nothing() -> None:
    assert judge(make_pair(1_000, both_wrong=980), floor=Fraction(0)).passed


def test_nothing_can_be_lost_where_fp16_is_right_on_none() -> None:
    """Of a task without classes nobody says what chance gives: no other check is there."""
    wrong = [False] * 1_000
    graded = [0.0] * 1_000
    for scores in (wrong, graded):
        fp16, quantized = (
            make_hits(scores, variant="fp16"),
            make_hits([True, *scores[1:]], value=0.001),
        )
        verdict = judge((fp16, quantized))
        assert (verdict.status, verdict.code) == (
            Status.INCONCLUSIVE,
            "accuracy.fp16-none-right",
        )
        assert "is 0 on 1000 samples: there is nothing to lose" in verdict.headline
        assert at("max_drop") in verdict.headline


@pytest.mark.parametrize(("chance", "right"), [(0.5, 529), (0.0, 29), (0.01, 39)])
def test_a_limit_that_one_that_guesses_would_keep_decides_nothing(
    chance: float, right: int
) -> None:
    """3 pp are all that FP16 has over chance: its answers may all be lost."""

    def judge_limit(points: int, **limits: Any) -> Verdict:
        fp16 = make_hits([place < right for place in range(1000)], variant="fp16")
        gate = accuracy_gate(max_drop=Fraction(points, 100), **limits)
        return judge_accuracy(
            fp16=fp16, quantized=replace(fp16, variant="v"), gate=gate, chance=chance
        )

    verdict = judge_limit(3)

    assert (verdict.status, verdict.code) == (
        Status.INCONCLUSIVE,
        "accuracy.limit-reaches-chance",
    )
    assert "max_drop 3.00 pp passes a variant that has lost everything" in verdict.headline
    assert at("max_drop") in verdict.headline
    assert verdict.next_step == (
        f"set max_drop well under 2.90 pp, or a floor above {chance * 100:.2f} %"
    )
    assert judge_limit(2).passed
    # A floor above chance catches who guesses.
    assert judge_limit(3, floor=Fraction(right - 15, 1000)).status is not Status.FAIL
    assert judge_limit(3, floor=Fraction(right - 15, 1000)).code != verdict.code
    assert judge_limit(3, floor=Fraction(chance)).code == verdict.code
    # 100 pp say that others decide; where there are none, nothing does.
    assert judge_limit(100).code == verdict.code
    assert judge_limit(100, max_flips=Fraction(1, 100)).passed
    # No more of the answers change than FP16 gets right: who guesses keeps that, too.
    assert judge_limit(100, max_flips=Fraction(99, 100)).code == verdict.code


def test_no_number_of_samples_proves_that_all_are_right() -> None:
    verdict = judge(make_pair(1_000), floor=Fraction(1))

    assert verdict.status is Status.INCONCLUSIVE
    assert "not decided against floor 100.00 %" in verdict.headline


def test_mean_over_classes_may_be_over_its_floor() -> None:
    metric = "mean_per_class_recall"
    pair = make_class_pair(("cat", 500, 0, 0), ("dog", 500, 0, 0), metric=metric, both_wrong=50)

    verdict = judge(pair, metric=metric, max_drop=Fraction(1, 10), floor=Fraction(8, 10))

    assert verdict.passed
    assert "mean_per_class_recall 90.00 %" in verdict.headline
    assert "over floor 80.00 %" in all_text(verdict)


def test_floor_of_a_mean_over_classes_looks_at_the_mean() -> None:
    """Nine of ten samples are right, but only half of the classes."""
    pair = make_class_pair(("cat", 900, 0, 0), ("dog", 100, 0, 0), metric="mean_per_class_recall")
    blind = tuple(
        replace(
            outcomes,
            correct=(True,) * 900 + (False,) * 100,
            answers=(0,) * 1_000,
            value=0.5,
        )
        for outcomes in pair
    )
    gate = accuracy_gate(
        metric="mean_per_class_recall", max_drop=Fraction(1, 10), floor=Fraction(7, 10)
    )

    verdict = judge((blind[0], blind[1]), gate)

    assert verdict.status is Status.FAIL
    assert "mean_per_class_recall 50.00 %" in verdict.headline
    assert "under floor 70.00 %" in verdict.headline


# -- flips and classes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        (20, Status.PASS, "within max_flips 3.00 % = 30"),
        (30, Status.INCONCLUSIVE, "not decided against max_flips 3.00 % = 30"),
        (60, Status.FAIL, "over max_flips 3.00 % = 30"),
    ],
)
def test_flips_are_decided_with_confidence(changed: int, status: Status, words: str) -> None:
    pair = make_pair(1_000, other_answers=changed, both_wrong=200)

    verdict = judge(pair, max_flips=Fraction(3, 100))

    assert verdict.status is status
    assert f"{changed} of 1000 answers changed" in all_text(verdict)
    assert words in all_text(verdict)
    assert verdict.figures["flips_share"] == pytest.approx(changed / 1_000)
    assert verdict.figures["max_flips"] == 0.03
    if status is Status.PASS:
        return
    word = "over" if status is Status.FAIL else "around"
    (limits,) = re.findall(r"limits (\[\d\.\d\d, \d\.\d\d\]) %", verdict.headline)
    assert verdict.brief == (
        f"{changed / 10:.2f} % of answers changed {limits} {word} max_flips 3.00 %"
    )
    assert verdict.code == ("accuracy.flips" if word == "over" else "accuracy.flips-open")
    assert bool(verdict.cause) is (status is Status.FAIL)
    assert ("max_flips on purpose" in verdict.next_step) is (status is Status.INCONCLUSIVE)


def test_grades_are_judged_by_their_mean_and_told_by_who_scores_less() -> None:
    """100 of 1,000 queries lose a half: 5 pp, known as well as by 2,000 whole ones."""
    fp16 = make_hits([True] * 500 + [0.5] * 500, variant="fp16", metric="ndcg@10")
    quantized = make_hits([True] * 400 + [0.5] * 600, metric="ndcg@10")

    verdict = judge((fp16, quantized), max_drop=Fraction(7, 100), max_flips=Fraction(12, 100))

    assert verdict.status is Status.PASS
    assert "70.00 % vs fp16 75.00 % on 1000 samples: drop 5.00 pp" in verdict.headline
    assert "within max_drop 7.00 pp = 70 whole samples" in verdict.headline
    assert verdict.evidence[0] == "100 score less, 0 more"
    assert any("1000 graded samples are worth 20" in line for line in verdict.evidence)
    assert "100 of 1000 scores changed, 10.00 %" in all_text(verdict)
    whole = judge(make_pair(1_000, lost=50), max_drop=Fraction(7, 100))
    assert verdict.figures["drop_high_points"] < whole.figures["drop_high_points"]  # type: ignore[operator]


def test_a_value_that_grades_do_not_give_is_denied() -> None:
    fp16 = make_hits([0.5] * 100, variant="fp16")
    changed = replace(make_hits([0.5] * 100), value=0.6)

    assert judge((fp16, changed)).code == "accuracy.value-denied"


def test_flips_of_retrieval_are_hits_and_misses() -> None:
    pair = (
        make_hits([True] * 90 + [False] * 10, variant="fp16"),
        make_hits([False] * 10 + [True] * 90),
    )

    verdict = judge(pair, max_drop=Fraction(1, 10), max_flips=Fraction(1, 100))

    assert verdict.status is Status.FAIL
    assert "20 of 100 hits and misses changed" in verdict.headline


def test_one_class_that_is_lost_fails_although_the_mean_is_kept() -> None:
    pair = make_class_pair(("cat", 500, 0, 40), ("dog", 500, 0, 0), ("fox", 100, 40, 0))

    verdict = judge(pair, max_drop=Fraction(1, 100), max_class_drop=Fraction(5, 100))

    assert verdict.status is Status.FAIL
    assert (
        "worst class 'fox' drops 40.00 pp on 100 samples, 1 of 3 classes over max_class_drop "
        f"5.00 pp ({at('max_class_drop')})"
    ) in verdict.headline
    assert (
        "class 'fox': drop 40.00 pp, upper limit 48.71 pp (40 lost, 0 won of 100)"
        in verdict.evidence
    )
    assert verdict.code == "accuracy.class-drop"
    assert "hides the loss of some" in verdict.cause
    assert verdict.figures["worst_class"] == "fox"
    assert verdict.figures["worst_class_drop_points"] == pytest.approx(40)
    assert verdict.figures["classes_over"] == 1


def test_few_samples_of_a_class_decide_nothing() -> None:
    pair = make_class_pair(("cat", 500, 0, 0), ("fox", 8, 1, 0))

    verdict = judge(pair, max_drop=Fraction(5, 100), max_class_drop=Fraction(5, 100))

    assert verdict.status is Status.INCONCLUSIVE
    assert "worst class 'fox' drops 12.50 pp" in verdict.headline


@SAME_EXAMPLES
@given(
    sizes=st.lists(
        st.integers(1, 60).flatmap(
            lambda n: st.tuples(st.just(n), st.integers(0, n // 2), st.integers(0, n // 2))
        ),
        min_size=1,
        max_size=4,
    ),
    limit=st.sampled_from([Fraction(n, 100) for n in (5, 10, 20, 40, 100)]),
)
def test_classes_pass_just_where_each_by_itself_does(
    sizes: list[tuple[int, int, int]], limit: Fraction
) -> None:
    """An intersection-union test: no class is let off for the others, none is held down."""
    classes = [(f"class {i}", *counts) for i, counts in enumerate(sizes)]

    def judge_classes(*found: tuple[str, int, int, int]) -> Verdict:
        fp16, quantized = make_class_pair(*found)
        gate = accuracy_gate(max_drop=Fraction(1), max_class_drop=limit)
        # A class that FP16 does badly has no more to lose than the limit: not what is asked here.
        return judge_accuracy(fp16=fp16, quantized=quantized, gate=gate, chance=-1.0)

    together = judge_classes(*classes)

    alone = [judge_classes(found).passed for found in classes]
    assert together.passed == all(alone)
    for name, samples, lost, won in classes:
        high = drop_limits(
            Flips(right_to_wrong=lost, wrong_to_right=won, samples=samples), confidence=0.95
        ).high
        assert (high <= limit) == alone[classes.index((name, samples, lost, won))]
    chance = len(classes) * min(
        chance_above(Flips(right_to_wrong=lost, wrong_to_right=won, samples=samples), float(limit))
        for _, samples, lost, won in classes
    )
    assume(abs(chance - 0.05) > 1e-9)
    assert (together.status is Status.FAIL) == (chance < 0.05)


def test_class_that_is_open_says_what_is_known_of_it() -> None:
    """Nothing was lost of 8 samples: that does not show that less than 5 pp are."""
    pair = make_class_pair(("cat", 500, 0, 0), ("fox", 8, 0, 0), ("owl", 300, 8, 1))

    verdict = judge(pair, max_drop=Fraction(5, 100), max_class_drop=Fraction(5, 100))

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "accuracy.class-drop-open")
    assert verdict.headline == (
        "accuracy: scenes/classification: worst class 'owl' drops 2.33 pp on 300 samples, 0 of 3 "
        f"classes over max_class_drop 5.00 pp, 1 not decided ({at('max_class_drop')})"
    )
    assert verdict.brief == "0 of 3 classes over max_class_drop 5.00 pp, 1 not decided"
    assert verdict.evidence[:2] == (
        "class 'fox': drop 0.00 pp, upper limit 32.14 pp (0 lost, 0 won of 8)",
        "1 class with fewer than 61 samples cannot show 5.00 pp, even without a loss",
    )
    assert verdict.cause == (
        "too few samples in some classes for this limit and this rate of flips"
    )
    assert verdict.next_step == (
        "evaluate on fresh samples, or accept a larger max_class_drop on purpose"
    )


@pytest.mark.parametrize("samples", [60, 61])
def test_number_of_samples_that_a_class_needs_is_exact(samples: int) -> None:
    pair = make_class_pair(("cat", 500, 0, 0), ("fox", samples, 0, 0))

    verdict = judge(pair, max_drop=Fraction(5, 100), max_class_drop=Fraction(5, 100))

    assert verdict.passed == (samples == 61)
    assert ("even without a loss" in all_text(verdict)) == (samples == 60)


def test_class_at_its_limit_is_not_over_it_but_open() -> None:
    pair = make_class_pair(("cat", 500, 0, 0), ("fox", 100, 29, 0))

    at_limit = judge(pair, max_drop=Fraction(1), max_class_drop=Fraction(29, 100))
    beyond = judge(pair, max_drop=Fraction(1), max_class_drop=Fraction(2899, 10_000))

    assert (at_limit.status, at_limit.figures["classes_over"]) == (Status.INCONCLUSIVE, 0)
    assert at_limit.figures["classes_not_decided"] == 1
    assert (beyond.status, beyond.figures["classes_over"]) == (Status.INCONCLUSIVE, 1)


def test_looking_at_more_classes_asks_for_more_evidence() -> None:
    """With a hundred classes one loses by chance: alone it fails, among them it does not."""
    fox = ("fox", 100, 12, 0)
    calm = tuple((f"class {n}", 100, 0, 0) for n in range(99))
    limits: dict[str, Any] = {"max_drop": Fraction(1), "max_class_drop": Fraction(5, 100)}

    assert judge(make_class_pair(fox), **limits).status is Status.FAIL
    assert judge(make_class_pair(fox, *calm), **limits).status is Status.INCONCLUSIVE


def test_worst_classes_come_first_and_ties_by_name() -> None:
    pair = make_class_pair(
        ("elk", 100, 20, 0), ("cat", 100, 30, 0), ("ape", 100, 20, 0), ("fox", 100, 40, 0)
    )

    verdict = judge(pair, max_drop=Fraction(1), max_class_drop=Fraction(5, 100))

    named = [re.findall(r"class '(\w+)': drop", line) for line in verdict.evidence]
    assert [name for names in named for name in names] == ["fox", "cat", "ape", "elk"]


def test_of_classes_that_lost_alike_the_one_that_may_have_lost_more_comes_first() -> None:
    pair = make_class_pair(("ape", 200, 40, 0), ("cat", 50, 10, 0), ("elk", 100, 20, 0))

    verdict = judge(pair, max_drop=Fraction(1), max_class_drop=Fraction(5, 100))

    named = [re.findall(r"class '(\w+)': drop", line) for line in verdict.evidence]
    assert [name for names in named for name in names] == ["cat", "elk", "ape"]


@pytest.mark.parametrize(("lost", "status"), [(9, Status.INCONCLUSIVE), (11, Status.FAIL)])
def test_a_class_fails_where_chance_gives_as_much_in_less_than_a_twentieth(
    lost: int, status: Status
) -> None:
    """9 lost of 100 happen in 6 % where 5 are lost on average, 11 in 1 %."""
    pair = make_class_pair(("fox", 100, lost, 0))

    assert judge(pair, max_drop=Fraction(1), max_class_drop=Fraction(5, 100)).status is status


def test_the_worst_class_leads_and_four_are_listed() -> None:
    """Of five that do not pass two are over the limit; the rest is open."""
    pair = make_class_pair(
        ("ant", 100, 2, 0),
        ("bee", 100, 30, 0),
        ("cow", 100, 3, 0),
        ("dog", 100, 9, 0),
        ("elk", 100, 4, 0),
        ("yak", 100, 1, 0),
    )

    verdict = judge(pair, max_drop=Fraction(1), max_class_drop=Fraction(5, 100))

    assert verdict.brief == "2 of 6 classes over max_class_drop 5.00 pp, 3 not decided"
    assert "worst class 'bee' drops 30.00 pp" in verdict.headline
    assert sum(line.startswith("class '") for line in verdict.evidence) == 4
    assert verdict.figures["classes_over"] == 2
    assert verdict.figures["classes_not_decided"] == 3


def test_class_limit_without_classes_fails() -> None:
    pair = (make_hits([True] * 400, variant="fp16"), make_hits([True] * 400))

    verdict = judge(pair, max_class_drop=Fraction(5, 100))

    assert verdict.status is Status.FAIL
    assert f"max_class_drop is set, but the samples have no classes ({at('max_class_drop')})" in (
        verdict.headline
    )
    assert verdict.code == "accuracy.no-classes"
    assert verdict.next_step.startswith("leave max_class_drop out")


# -- mean over classes --------------------------------------------------------------------------


def test_mean_over_classes_weighs_small_classes_alike() -> None:
    """Ten losses are 1 % of the samples but 5 points of the mean over two classes."""
    pair = make_class_pair(("cat", 900, 0, 0), ("dog", 100, 10, 0), metric="mean_per_class_recall")
    gate = accuracy_gate(metric="mean_per_class_recall", max_drop=Fraction(2, 100))

    verdict = judge(pair, gate)

    assert verdict.status is Status.FAIL
    assert "drop 5.00 pp" in verdict.headline
    assert "would end" not in all_text(verdict)
    fp16, quantized = pair
    classes = [counts for _, counts in pair_outcomes(before=fp16, after=quantized).classes]
    expected = drop_limits(mean_over([found.flips for found in classes]), confidence=0.95)
    assert verdict.figures["drop_low_points"] == pytest.approx(expected.low * 100)
    assert verdict.figures["drop_high_points"] == pytest.approx(expected.high * 100)


def test_a_class_of_one_sample_leaves_a_mean_over_classes_open() -> None:
    """Nine classes lost nothing, and nothing is known of what the tenth loses: 3 pp may be lost."""
    classes = [(f"class-{i}", 1_000, 0, 0) for i in range(9)]
    pair = make_class_pair(*classes, ("rare", 1, 0, 0), metric="mean_per_class_recall")

    verdict = judge(pair, metric="mean_per_class_recall", max_drop=Fraction(3, 100))

    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.figures["drop_high_points"] == pytest.approx(9.64, abs=0.01)
    assert (
        "9001 samples in 10 classes of 1 to 1000 are worth 31 in classes of one size: each class "
        "weighs 10 % of the mean"
    ) in verdict.evidence
    assert number_in(r"about (\d+) fresh samples", verdict.evidence) > 9_001 * 3


def test_classes_of_one_size_need_no_word() -> None:
    pair = make_class_pair(("cat", 400, 0, 0), ("dog", 400, 1, 0), metric="mean_per_class_recall")

    verdict = judge(pair, metric="mean_per_class_recall", max_drop=Fraction(3, 100))

    assert verdict.passed
    assert "are worth" not in all_text(verdict)


def test_mean_over_classes_improves_without_failing() -> None:
    pair = make_class_pair(("cat", 50, 0, 3), ("dog", 50, 1, 2), metric="mean_per_class_recall")

    verdict = judge(pair, metric="mean_per_class_recall", max_drop=Fraction(0))

    assert verdict.status is not Status.FAIL


def test_mean_over_classes_needs_classes() -> None:
    pair = tuple(
        make_hits([True] * 4, metric="mean_per_class_recall", variant=name)
        for name in ("fp16", "fp8-attention")
    )

    verdict = judge((pair[0], pair[1]), metric="mean_per_class_recall")

    assert verdict.status is Status.FAIL
    assert f"mean_per_class_recall needs classes, and the samples have none ({at('metric')})" in (
        verdict.headline
    )
    assert verdict.next_step == "use metric: acc1, or the recall metrics for retrieval"


# -- looks ---------------------------------------------------------------------------------------


def look(samples: int, number: int = 1, spent: float = 0.99) -> Look:
    return Look(samples=samples, data_digest="d" * 64, day="2026-11-28", number=number, spent=spent)


def judge_look(pair: tuple[Outcomes, Outcomes], looks: Looks, gate: AccuracyGate) -> Verdict:
    fp16, quantized = pair
    spent = spend_confidence(gate, looks)
    verdict = judge_accuracy(fp16=fp16, quantized=quantized, gate=spent)
    return describe_looks(
        verdict, confidence=gate.confidence, planned=gate.planned_samples, looks=looks
    )


def test_first_look_of_one_variant_says_nothing() -> None:
    """It has all of the error chance but a hundredth, and is told at the confidence asked for."""
    pair, gate = make_pair(2_000, lost=8), accuracy_gate()

    told = judge_look(pair, Looks(now=look(2_000)), gate)

    plain = judge_accuracy(fp16=pair[0], quantized=pair[1], gate=gate)
    assert (told.headline, told.brief) == (plain.headline, plain.brief)
    assert not any("look" in line for line in told.evidence)
    assert (told.figures["look"], told.figures["variants_judged"]) == (1, 1)
    assert told.figures["drop_high_points"] > plain.figures["drop_high_points"]  # type: ignore[operator]


def test_second_look_is_judged_with_what_is_left_and_says_so() -> None:
    """What passes at 95 % does not with the half of a hundredth of 5 % that it may spend."""
    pair, gate = make_pair(1_000, lost=4), accuracy_gate(samples=1_000)
    looks = Looks(now=look(1_000, 2, 0.995), earlier=(look(500),))

    told = judge_look(pair, looks, gate)

    assert judge_accuracy(fp16=pair[0], quantized=pair[1], gate=gate).passed
    assert told.status is Status.INCONCLUSIVE
    assert "one-sided 95 % limits" in told.headline
    assert told.evidence[-1] == (
        "look 2 at samples of the same data (500 on 2026-11-28): judged at 99.862 %, so that all "
        "looks together are wrong in at most 5 %; fresh samples are a first look"
    )
    assert told.brief.endswith(" around 1.00 pp, look 2")
    assert len(told.brief) <= 70
    assert told.figures["look"] == 2
    assert told.next_step.startswith("evaluate on fresh samples")


def test_an_early_look_of_a_plan_spends_next_to_nothing() -> None:
    gate = accuracy_gate(samples=1_000, planned_samples=4_000)
    looks = Looks(now=look(1_000, 1, 0.0017))

    told = judge_look(make_pair(1_000, lost=2), looks, gate)

    assert told.status is Status.INCONCLUSIVE
    assert told.evidence[-1] == (
        "look 1 of a plan to 4000 samples: judged at 99.9915 %, so that all looks together are "
        "wrong in at most 5 %"
    )
    assert told.next_step == "raise samples to 4000, as planned"
    assert told.brief.endswith(", look 1")


def test_a_variant_far_from_its_limit_is_decided_at_any_look() -> None:
    gate = accuracy_gate(samples=2_000, planned_samples=8_000)

    early = judge_look(make_pair(2_000, lost=0), Looks(now=look(2_000, 1, 0.0017)), gate)
    bad = judge_look(make_pair(1_000, lost=90), Looks(now=look(1_000, 3, 0.9975)), gate)

    assert early.passed
    assert bad.status is Status.FAIL


def test_the_last_four_looks_are_named() -> None:
    earlier = tuple(look(100 * n, n) for n in range(1, 7))

    told = judge_look(
        make_pair(2_000, lost=8), Looks(now=look(2_000, 7, 0.999), earlier=earlier), accuracy_gate()
    )

    named = re.findall(r"(\d+) on 2026-11-28", told.evidence[-1])
    assert named == ["300", "400", "500", "600"]


@pytest.mark.parametrize(("variants", "share"), [(2, "9.8 %"), (3, "14 %"), (10, "40 %")])
def test_many_variants_on_one_data_are_told(variants: int, share: str) -> None:
    fp16, quantized = make_pair(2_000, lost=8)
    gate = accuracy_gate()
    plain = judge_accuracy(fp16=fp16, quantized=quantized, gate=gate)

    told = describe_looks(
        plain,
        confidence=gate.confidence,
        planned=gate.planned_samples,
        looks=Looks(now=look(2_000), variants=variants),
    )

    assert told.status is plain.status
    assert told.evidence[-1] == (
        f"{variants} variants were judged on these samples: the best of so many passes wrongly in "
        f"up to {share}; confirm the one that ships on fresh samples"
    )
    assert told.figures["variants_judged"] == variants
