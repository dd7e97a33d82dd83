"""The calibration gate: ranges that are finite, used, and fit data that they have not seen."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.audit import Audit, BatchInvariance, CalibrationRun, NearCopy
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.calibration import judge_calibration, judge_ranges, warn_of_near_copies
from pytest_quantgate.statistics.intervals import Share, share_limits
from tests.unit.gates.gate_builders import (
    FILE,
    SAME_EXAMPLES,
    all_text,
    at,
    calibration_gate,
    change_quantizers,
    make_audit,
    make_run,
    number_in,
    switch_off,
)

AUDIT = make_audit()
FC1 = "vision_model.layers.0.mlp.fc1.input_quantizer"


def judge(
    audit: Audit = AUDIT,
    run: CalibrationRun | None = None,
    *,
    evaluated: tuple[tuple[str, str], ...] = (("ff", "scene-9"),),
    near: tuple[NearCopy, ...] = (),
    **limits: Any,
) -> Verdict:
    return judge_calibration(
        audit,
        run if run is not None else make_run(),
        evaluation_hashes=evaluated,
        near_copies=near,
        gate=calibration_gate(**limits),
    )


def test_trusted_ranges_pass() -> None:
    audit = change_quantizers(AUDIT, FC1, clipped=3)

    verdict = judge(audit)

    assert verdict.passed
    assert verdict.headline == (
        "calibration: 24 static quantizers with a finite amax, all called; 64 pairs in 4 batches "
        "through both towers; worst clipping 0.030 % of 10000 held-out values, at most 0.078 % "
        f"({FC1}), within max_clipped 0.100 %"
    )
    assert verdict.brief == "24 static quantizers, worst clipping 0.030 % within 0.100 %"
    assert (verdict.gate, verdict.code, verdict.next_step) == ("calibration", "", "")
    assert verdict.evidence == (
        "calibration: 24 amax finite and positive",
        "calibration: every enabled quantizer was called in its tower's forward",
        "calibration: clipping within max_clipped",
        "calibration: none of 1 evaluation samples was calibrated on",
    )
    assert verdict.figures["calibration_samples"] == 64
    assert verdict.figures["calibration_copies"] == 0
    assert verdict.figures["calibration_batches"] == 4
    assert verdict.figures["worst_clipped_share"] == pytest.approx(0.0003)
    assert verdict.figures["near_copies"] == 0


def test_what_clipped_nothing_may_still_clip() -> None:
    high = share_limits(Share(count=0, samples=10_000), confidence=0.95).high

    assert judge(AUDIT).figures["worst_clipped_high"] == high


def test_green_parts_that_are_not_always_there_are_evidence_too() -> None:
    audit = replace(change_quantizers(AUDIT, "*weight_quantizer", largest=1.0), algorithm="max")

    verdict = judge(with_batch(audit, change=0.0))

    assert "calibration: 4 weights have the range of the weight itself" in verdict.evidence
    assert (
        "calibration: no embedding depends on its batch: embeddings move by vision 0.00 % (limit "
        "0.10 %), text 0.00 % (limit 0.10 %) with other samples beside them "
        f"({at('max_batch_change')})"
    ) in verdict.evidence


def test_quantizers_that_are_off_or_dynamic_need_no_range() -> None:
    nothing: dict[str, Any] = {"amax_min": None, "amax_max": None, "amax_count": 0}
    audit = change_quantizers(AUDIT, FC1, dynamic=True, **nothing)
    audit = change_quantizers(switch_off(audit, "text*fc1*"), "text*fc1*", **nothing)

    assert judge(audit).passed
    assert judge_ranges(audit, gate=calibration_gate()).passed


def test_weights_that_see_no_held_out_values_do_not_disturb() -> None:
    assert judge(change_quantizers(AUDIT, "*weight_quantizer", seen=0)).passed


# -- a model whose calibration nobody saw -------------------------------------------------------


def test_ranges_alone_pass_without_a_calibration_run() -> None:
    verdict = judge_ranges(AUDIT, gate=calibration_gate())

    assert verdict.passed
    assert verdict.gate == "calibration"
    assert verdict.figures["worst_clipped_share"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"amax_min": 0.0}, "an amax that is not positive"),
        ({"tower_calls": {}}, "were never called in a forward"),
        ({"clipped": 5_000}, "clips more than max_clipped"),
        ({"amax_max": 17.0, "largest": 1.0}, "more than 16 times wider than anything seen"),
    ],
)
def test_ranges_alone_fail_as_in_the_whole_gate(changes: dict[str, Any], words: str) -> None:
    verdict = judge_ranges(change_quantizers(AUDIT, FC1, **changes), gate=calibration_gate())

    assert verdict.status is Status.FAIL
    assert words in verdict.headline
    assert FILE in verdict.headline


def test_ranges_alone_are_no_pass_without_clipping() -> None:
    verdict = judge_ranges(change_quantizers(AUDIT, "*", seen=0), gate=calibration_gate())

    assert verdict.status is Status.NOT_MEASURED
    assert "clipping was not measured" in verdict.headline


# -- the run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"batches": 0}, {"samples": 0}], ids=str)
def test_no_calibration_at_all_fails(changes: dict[str, int]) -> None:
    verdict = judge(run=make_run(**changes))

    assert verdict.status is Status.FAIL
    assert "no batch was ever calibrated on" in verdict.headline
    assert "calibration.samples" in verdict.next_step


def test_nan_in_the_calibration_data_fails_and_is_named() -> None:
    verdict = judge(run=make_run(nonfinite=("image 17", "text 3")))

    assert verdict.status is Status.FAIL
    assert "holds NaN or Inf in 2 samples: image 17, text 3" in verdict.headline
    assert "preprocessing" in verdict.cause


@pytest.mark.parametrize(
    ("changes", "towers"),
    [
        ({"tower_batches": {"vision": 0, "text": 4}}, "vision"),
        ({"tower_batches": {"vision": 4, "text": 0}}, "text"),
        ({"tower_batches": {"vision": 0, "text": 0}}, "vision and text"),
        ({"tower_batches": {"vision": 4}}, "text"),
        ({"tower_batches": {}}, "vision and text"),
    ],
)
def test_tower_that_was_never_calibrated_fails(changes: dict[str, int], towers: str) -> None:
    verdict = judge(run=make_run(**changes))

    assert verdict.status is Status.FAIL
    assert f"the {towers} tower was never calibrated: 0 of 4 batches" in verdict.headline
    assert verdict.cause == "the forward loop runs one tower only"


# -- ranges -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words", "figure"),
    [
        (
            {"amax_min": None, "amax_max": None, "amax_count": 0},
            "no amax: each batch is quantized with its own range",
            "amax_missing",
        ),
        ({"amax_count": 0}, "no amax", "amax_missing"),
        (
            {"amax_max": math.nan, "amax_finite": False},
            "an amax that is NaN or Inf",
            "amax_nonfinite",
        ),
        (
            {"amax_max": math.inf, "amax_finite": False},
            "an amax that is NaN or Inf",
            "amax_nonfinite",
        ),
        ({"amax_min": 0.0}, "an amax that is not positive", "amax_zero"),
        ({"amax_min": -1.0}, "an amax that is not positive", "amax_zero"),
    ],
)
def test_range_that_cannot_be_trusted_fails(
    changes: dict[str, Any], words: str, figure: str
) -> None:
    verdict = judge(change_quantizers(AUDIT, "vision*fc1.input_quantizer", **changes))

    assert verdict.status is Status.FAIL
    assert "2 of 24 enabled static quantizers cannot be trusted: 2 with" in verdict.headline
    assert words in verdict.headline
    assert any(
        line.startswith("vision_model.layers.{0-1}.mlp.fc1.input_quantizer (2): ")
        for line in verdict.evidence
    )
    assert verdict.figures[figure] == 2
    others = {"amax_missing", "amax_nonfinite", "amax_zero"} - {figure}
    assert [verdict.figures[name] for name in others] == [0, 0]


def test_ranges_broken_in_several_ways_are_all_listed() -> None:
    audit = change_quantizers(AUDIT, "vision*fc1.input*", amax_min=0.0)
    audit = change_quantizers(audit, "text*fc1.input*", amax_max=None)

    verdict = judge(audit)

    assert "4 of 24 enabled static quantizers cannot be trusted: 2 with no amax" in verdict.headline
    assert "an amax that is not positive" in all_text(verdict)


def test_nothing_static_fails() -> None:
    verdict = judge(change_quantizers(AUDIT, "*", dynamic=True))

    assert verdict.status is Status.FAIL
    assert "no static quantizer is enabled: nothing to calibrate" in verdict.headline


NVFP4: dict[str, Any] = {"format": "NVFP4", "granularity": "block", "dynamic": True}


def test_dynamic_blocks_under_a_calibrated_range_of_the_tensor_are_trusted() -> None:
    verdict = judge(change_quantizers(AUDIT, "*", **NVFP4))

    assert verdict.passed
    assert "24 static quantizers with a finite amax" in verdict.headline


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"amax_min": None, "amax_max": None, "amax_count": 0}, "missing"),
        ({"amax_max": math.nan, "amax_finite": False}, "nonfinite"),
        ({"amax_min": 0.0, "amax_max": 0.0}, "zero"),
    ],
)
def test_dynamic_blocks_without_a_range_of_the_tensor_are_red(
    changes: dict[str, Any], code: str
) -> None:
    """ModelOpt then takes it from each batch, and says nothing."""
    audit = change_quantizers(change_quantizers(AUDIT, "*", **NVFP4), FC1, **changes)

    assert judge(audit).code == f"calibration.amax-{code}"
    assert not judge_ranges(audit, gate=calibration_gate()).passed


def test_formats_whose_scales_come_from_the_values_have_nothing_to_calibrate() -> None:
    audit = change_quantizers(AUDIT, "*", format="MXFP8", granularity="block", dynamic=True)
    verdict = judge(audit, run=make_run(batches=0, samples=0, tower_batches={}))

    assert verdict.passed
    assert verdict.headline == (
        "calibration: no range to calibrate: MXFP8 takes every scale from the values at hand; 24 "
        "quantizers, all called"
    )
    assert judge_ranges(audit, gate=calibration_gate()).passed


def test_formats_without_a_range_are_judged_by_calls_and_batch() -> None:
    audit = change_quantizers(AUDIT, "*", format="MXFP8", granularity="block", dynamic=True)

    never = judge(change_quantizers(audit, FC1, tower_calls={}))
    assert never.code == "calibration.never-called"
    mixed = judge(change_quantizers(audit, FC1, batch_dependent=True))
    assert mixed.code == "calibration.batch-dependent"
    # One range that a format does have, and that nobody calibrated, is a finding as before.
    partly = change_quantizers(audit, FC1, format="E4M3", dynamic=False, amax_count=0)
    assert judge(partly).code == "calibration.amax-missing"


def test_a_recipe_that_calibrates_nothing_is_named_as_the_cause() -> None:
    """W4A8 with MXFP4 weights: ModelOpt's preset has algorithm: null, and FP8 inputs."""
    audit = dataclasses.replace(AUDIT, algorithm="none")
    audit = change_quantizers(audit, "*weight*", format="MXFP4", granularity="block", dynamic=True)
    verdict = judge(
        change_quantizers(audit, "*input*", amax_count=0, amax_max=None),
        run=make_run(batches=0, tower_batches={}),
    )

    assert verdict.code == "calibration.amax-missing"
    assert verdict.cause == "the recipe has algorithm: null, which calibrates nothing"
    assert verdict.next_step == "write algorithm: max into the recipe"


IDLE: dict[str, Any] = {"amax_max": None, "amax_count": 0, "tower_calls": {}}


def test_ranges_that_no_batch_will_ever_give_ask_for_no_more_batches() -> None:
    never = change_quantizers(AUDIT, "vision*fc1.input*", **IDLE)
    some = change_quantizers(never, "vision*layers.1.mlp.fc1.input*", tower_calls={"vision": 1})
    elsewhere = change_quantizers(AUDIT, FC1, amax_count=0)
    elsewhere = change_quantizers(elsewhere, "text*layers.1.mlp.fc1.input*", tower_calls={})

    assert judge(never).cause.startswith("nothing calls these modules in a forward")
    assert judge(never).next_step == ('add exclude: ["vision_model.*input_quantizer"]')
    for audit in (some, elsewhere):
        assert judge(audit).cause == (
            "enabled after the calibration, or never reached by its forward"
        )
        assert judge(audit).next_step == "calibrate again with batches that reach these modules"


@pytest.mark.parametrize("changes", [IDLE, {"tower_calls": {}}], ids=["no range", "a range"])
def test_advice_for_quantizers_that_never_ran_knows_the_attention(changes: dict[str, Any]) -> None:
    verdict = judge_calibration(
        change_quantizers(AUDIT, "vision*q_bmm*", **changes),
        make_run(),
        evaluation_hashes=(),
        gate=calibration_gate(),
        attention="eager",
    )

    assert "it sees sdpa, not eager" in verdict.cause
    assert verdict.next_step == "set model.attn_implementation: sdpa"


# -- calls --------------------------------------------------------------------------------------


def test_quantizer_that_is_never_called_fails_although_it_has_a_range() -> None:
    verdict = judge(change_quantizers(AUDIT, "vision*bmm*", tower_calls={}))

    assert verdict.status is Status.FAIL
    assert (
        "8 of 24 enabled quantizers were never called in a forward (8 of them have an amax, which "
        "proves nothing)"
    ) in verdict.headline
    assert "vision_model.layers.{0-1}.self_attn.q_bmm_quantizer (2)" in verdict.evidence
    assert "attn_implementation" in verdict.next_step
    assert verdict.figures["never_called"] == 8


def test_quantizer_that_is_never_called_and_has_no_range_is_counted_apart() -> None:
    audit = change_quantizers(AUDIT, "vision*q_bmm*", tower_calls={})
    audit = change_quantizers(audit, "*layers.0.*q_bmm*", amax_max=None, amax_count=0)

    verdict = judge(audit)

    assert "2 of 24 enabled static quantizers cannot be trusted" in verdict.headline
    assert "2 of 24 enabled quantizers were never called" in all_text(verdict)
    assert "(1 of them have an amax, which proves nothing)" in all_text(verdict)


@pytest.mark.parametrize(
    ("tower", "changes"),
    [
        ("vision", {"tower_calls": {"text": 5}}),
        ("text", {"tower_calls": {"vision": 5}}),
    ],
)
def test_calls_in_the_other_tower_do_not_count(tower: str, changes: dict[str, int]) -> None:
    verdict = judge(change_quantizers(AUDIT, f"{tower}*layers.0.mlp*", **changes))

    assert verdict.status is Status.FAIL
    assert "2 of 24 enabled quantizers were never called" in verdict.headline


def test_quantizer_of_no_tower_may_run_in_any() -> None:
    runs = change_quantizers(AUDIT, FC1, tower="other", tower_calls={"text": 1})
    never = change_quantizers(AUDIT, FC1, tower="other", tower_calls={})

    assert judge(runs).passed
    assert judge(never).status is Status.FAIL


# -- clipping -----------------------------------------------------------------------------------


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


# -- the batch ----------------------------------------------------------------------------------


def with_batch(audit: Audit, *, change: float, floor: float = 1e-7, samples: int = 4) -> Audit:
    """Return an audit whose text embeddings move by so much with their batch."""
    found = [("vision", 1e-7, 1e-7), ("text", change, floor)]
    return replace(
        audit,
        invariance=tuple(
            BatchInvariance(tower=tower, samples=samples, change=moved, floor=own)  # type: ignore[arg-type]
            for tower, moved, own in found
        ),
    )


def test_range_of_the_whole_batch_is_named_with_what_it_does() -> None:
    audit = change_quantizers(AUDIT, "*fc1.input*", dynamic=True, batch_dependent=True)

    verdict = judge(with_batch(audit, change=0.04))

    assert verdict.status is Status.FAIL
    assert verdict.code == "calibration.batch-dependent"
    assert verdict.headline == (
        "calibration: 4 quantizers take the range from the whole batch: embeddings move by vision "
        f"0.00 % (limit 0.10 %), text 4.00 % (limit 0.10 %) with other samples beside "
        f"them ({at('max_batch_change')})"
    )
    assert verdict.brief == "4 ranges depend on the batch"
    assert verdict.evidence[0] == "vision_model.layers.{0-1}.mlp.fc1.input_quantizer (2)"
    assert "a dynamic range over all samples of a batch" in verdict.cause
    assert "type: static" in verdict.next_step
    assert verdict.figures["text_batch_change"] == 0.04


def test_ranges_of_the_batch_are_red_although_nothing_was_seen_to_move() -> None:
    """In a deep model all that moves is lost in what the model moves by itself."""
    audit = change_quantizers(AUDIT, FC1, dynamic=True, batch_dependent=True)

    assert judge(audit).code == "calibration.batch-dependent"
    assert judge(audit).headline == (
        f"calibration: 1 quantizer take the range from the whole batch ({at('max_batch_change')})"
    )
    assert judge(with_batch(audit, change=0.04, floor=0.05)).code == "calibration.batch-dependent"


def test_dynamic_ranges_that_do_not_look_at_the_batch_are_green_and_named() -> None:
    audit = change_quantizers(AUDIT, "*fc1.input*", dynamic=True, granularity="per-channel")

    verdict = judge(with_batch(audit, change=1e-7))

    assert verdict.passed
    assert "4 dynamic quantizers with ranges of their own (4 per-channel input)" in verdict.headline
    assert verdict.brief.startswith("20 static quantizers and 4 dynamic, worst clipping")
    assert verdict.figures["text_batch_change"] == 1e-7


@pytest.mark.parametrize(
    ("change", "floor", "limit", "green"),
    [
        (1e-3, 0.0, None, True),
        (1.001e-3, 0.0, None, False),
        (0.04, 0.01, None, True),
        (0.041, 0.01, None, False),
        (0.02, math.inf, None, False),
        (math.nan, 0.0, None, False),
        (0.02, 0.0, Fraction(2, 100), True),
        (0.021, 0.0, Fraction(2, 100), False),
    ],
)
def test_embedding_may_move_with_its_batch_as_far_as_the_limit(
    change: float, floor: float, limit: Fraction | None, green: bool
) -> None:
    verdict = judge(with_batch(AUDIT, change=change, floor=floor), max_batch_change=limit)

    assert verdict.passed is green
    if not green:
        assert verdict.code == "calibration.batch-dependent"
        assert "an embedding depends on what else is in its batch" in verdict.headline
        assert at("max_batch_change") in verdict.headline
        assert verdict.brief == ""
        assert verdict.cause == "a part of the model mixes the samples of a batch"
        assert verdict.next_step.startswith("embed each sample alone")


def test_limit_of_the_suite_allows_ranges_of_the_batch() -> None:
    audit = change_quantizers(AUDIT, FC1, dynamic=True, batch_dependent=True)
    moved = with_batch(audit, change=0.04)

    assert judge(moved, max_batch_change=Fraction(5, 100)).passed
    assert not judge(moved, max_batch_change=Fraction(3, 100)).passed
    assert not judge(audit, max_batch_change=Fraction(5, 100)).passed  # nothing was measured


def test_dynamic_quantizer_that_is_never_called_is_red() -> None:
    audit = change_quantizers(AUDIT, FC1, dynamic=True, tower_calls={})

    assert judge(audit).code == "calibration.never-called"


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


# -- the same data in both ----------------------------------------------------------------------


def test_evaluation_sample_that_was_calibrated_on_is_found_by_its_content() -> None:
    """Under another name: only the bytes are the same."""
    verdict = judge(evaluated=(("ff", "test-1"), ("bb", "test-2")))

    assert verdict.status is Status.FAIL
    assert "1 evaluation sample by content also calibrated the quantizers" in verdict.headline
    assert verdict.evidence[0] == "test-2 is calibration sample scene-2"
    assert verdict.next_step == "calibrate on another split"
    assert verdict.figures["evaluation_overlap"] == 1
    assert verdict.code == "calibration.overlap"


def test_same_name_with_other_content_is_no_overlap() -> None:
    assert judge(evaluated=(("ff", "scene-1"),)).passed


def test_held_out_sample_that_was_calibrated_on_fails() -> None:
    run = replace(make_run(), held_out_hashes=(("aa", "scene-3"), ("bb", "scene-4")))

    verdict = judge(run=run)

    assert verdict.status is Status.FAIL
    assert "2 held-out samples by content also calibrated the quantizers" in verdict.headline
    assert verdict.figures["held_out_overlap"] == 2


def test_near_copies_are_a_warning_with_the_pairs() -> None:
    """Different pictures can look alike, so it is not red."""
    near = tuple(NearCopy(sample=f"test-{n}", like="scene-1", bits=n) for n in range(1, 13))

    verdict = judge(near=near)
    (line,) = warn_of_near_copies(near)

    assert verdict.passed
    assert line in verdict.evidence
    assert line.startswith(
        "12 evaluation samples may be near copies of calibration samples, resized or compressed "
        "again: test-1 ~ scene-1 (1 of 256 bits), test-2 ~ scene-1 (2 of 256 bits), "
    )
    assert line.endswith(
        "... and 4 more: look at them; where they are, calibrate on another split "
        "[calibration.near-copies]"
    )
    assert verdict.figures["near_copies"] == 12
    assert warn_of_near_copies(()) == ()
    assert judge().figures["near_copies"] == 0


def test_long_overlap_is_cut_short() -> None:
    hashes = tuple((f"hash {n}", f"image {n}") for n in range(20))

    verdict = judge(run=make_run(sample_hashes=hashes), evaluated=hashes)

    assert "20 evaluation samples by content" in verdict.headline
    assert verdict.evidence[4] == "... and 16 more"


WEIGHT = "vision_model.layers.0.mlp.fc1.weight_quantizer"


@pytest.mark.parametrize("largest", [1.2, 0.5])
def test_range_that_is_not_the_weights_own_is_red(largest: float) -> None:
    """Fine-tuned, swapped or loaded after the calibration: no accuracy needs to show it."""
    audit = change_quantizers(AUDIT, "*weight_quantizer", largest=1.0)
    audit = replace(change_quantizers(audit, WEIGHT, largest=largest), algorithm="max")

    verdict = judge(audit)

    assert verdict.status is Status.FAIL
    assert f"the ranges of 1 of 4 weights are not those of the weights: {WEIGHT}" in (
        verdict.headline
    )
    assert "changed after the calibration" in verdict.cause
    assert verdict.evidence[0] == WEIGHT
    assert verdict.figures["weights_out_of_range"] == 1


def test_the_weight_that_is_furthest_from_its_range_is_named() -> None:
    """Four times too narrow is further than three times too wide."""
    audit = change_quantizers(AUDIT, "*weight_quantizer", largest=1 / 3)
    audit = replace(change_quantizers(audit, WEIGHT, largest=4.0), algorithm="max")

    assert f"weights: {WEIGHT} has amax 1, its weight goes to 4" in judge(audit).headline


def test_weight_without_a_positive_range_is_that_fault_and_no_other() -> None:
    nothing: dict[str, Any] = {"amax_min": 0.0, "amax_max": 0.0}
    audit = change_quantizers(AUDIT, "*weight_quantizer", largest=1.0)
    audit = replace(change_quantizers(audit, WEIGHT, **nothing), algorithm="max")

    verdict = judge(audit)

    assert verdict.code == "calibration.amax-zero"
    assert "not those of the weights" not in all_text(verdict)


@pytest.mark.parametrize(
    ("algorithm", "largest"), [("mse", 1.2), ("", 1.2), ("max", 1.0), ("max", 1.001)]
)
def test_range_that_the_algorithm_may_choose_is_green(algorithm: str, largest: float) -> None:
    audit = change_quantizers(AUDIT, "*weight_quantizer", largest=largest)

    assert judge(replace(audit, algorithm=algorithm)).passed


def test_range_much_wider_than_its_values_is_red() -> None:
    """Calibrated on pixels from 0 to 255: nothing is clipped, and small values round to nothing."""
    audit = change_quantizers(AUDIT, "*input_quantizer", largest=1.0)
    audit = change_quantizers(audit, FC1, amax_min=100.0, amax_max=100.0)

    verdict = judge(audit)

    assert verdict.status is Status.FAIL
    assert f"worst {FC1}: amax 100, values go to 1" in verdict.headline
    assert verdict.evidence[0] == f"{FC1}: 100 times wider than its values"
    assert "other preprocessing" in verdict.cause
    assert verdict.figures["widest_range"] == 100


def test_the_widest_range_comes_first() -> None:
    audit = change_quantizers(AUDIT, "*input_quantizer", largest=0.05)
    audit = change_quantizers(audit, FC1, largest=0.02)

    verdict = judge(audit)

    assert "4 ranges are more than 16 times wider than anything seen" in verdict.headline
    assert verdict.evidence[:2] == (
        f"{FC1}: 50 times wider than its values",
        "vision_model.layers.1.mlp.fc1.input_quantizer: 20 times wider than its values",
    )


def test_width_is_asked_of_no_weight() -> None:
    assert judge(change_quantizers(AUDIT, WEIGHT, largest=0.001)).passed


def test_range_with_some_room_is_green() -> None:
    audit = change_quantizers(AUDIT, "*input_quantizer", largest=1.0)

    assert judge(change_quantizers(audit, FC1, amax_min=16.0, amax_max=16.0)).passed


def test_ranges_of_any_model_are_judged_the_same_way() -> None:
    audit = replace(change_quantizers(AUDIT, WEIGHT, largest=2.0), algorithm="max")

    verdict = judge_ranges(audit, gate=calibration_gate())

    assert "not those of the weights" in verdict.headline


BY_GROUPS = ("amax-missing", "amax-nonfinite", "amax-zero", "never-called", "batch-dependent")


# -- what is red says what it is and what to do ---------------------------------------------------


@pytest.mark.parametrize(
    ("code", "audit", "run"),
    [
        ("no-batch", AUDIT, make_run(batches=0)),
        ("data-nonfinite", AUDIT, make_run(nonfinite=("image 17",))),
        ("tower-idle", AUDIT, make_run(tower_batches={"vision": 4, "text": 0})),
        ("copies", AUDIT, make_run(copies=32)),
        ("nothing-static", change_quantizers(AUDIT, "*", dynamic=True), make_run()),
        ("amax-missing", change_quantizers(AUDIT, "*", amax_count=0), make_run()),
        ("amax-nonfinite", change_quantizers(AUDIT, "*", amax_finite=False), make_run()),
        ("amax-zero", change_quantizers(AUDIT, "*", amax_min=0.0), make_run()),
        (
            "weights-changed",
            replace(change_quantizers(AUDIT, "*weight*", largest=2.0), algorithm="smoothquant"),
            make_run(),
        ),
        ("range-too-wide", change_quantizers(AUDIT, "*input*", largest=0.01), make_run()),
        ("never-called", change_quantizers(AUDIT, "*", tower_calls={}), make_run()),
        ("clipping-unmeasured", change_quantizers(AUDIT, "*", seen=0), make_run()),
        ("clipped", change_quantizers(AUDIT, FC1, clipped=200), make_run()),
        ("clipping-open", change_quantizers(AUDIT, FC1, clipped=10), make_run()),
        ("batch-dependent", change_quantizers(AUDIT, "*", batch_dependent=True), make_run()),
        ("overlap", AUDIT, make_run(sample_hashes=(("ff", "scene-9"),))),
    ],
)
def test_every_finding_has_its_code_a_cause_and_a_next_step(
    code: str, audit: Audit, run: CalibrationRun
) -> None:
    verdict = judge(audit, run)

    assert verdict.code == f"calibration.{code}"
    assert verdict.gate == "calibration"
    assert FILE in verdict.headline
    assert verdict.cause or verdict.status is Status.NOT_MEASURED
    assert verdict.next_step
    if code in BY_GROUPS:
        assert "... and 4 groups" in {line.partition(":")[0] for line in verdict.evidence}


def test_weights_that_changed_are_counted_by_groups() -> None:
    (one,) = (q for q in AUDIT.quantizers if q.name == WEIGHT)
    many = tuple(
        replace(one, name=f"{part}.weight_quantizer", largest=2.0) for part in "abcdefghij"
    )

    verdict = judge(replace(AUDIT, quantizers=many, algorithm="max"))

    assert verdict.code == "calibration.weights-changed"
    assert verdict.evidence[7:9] == ("h.weight_quantizer", "... and 2 groups")


def test_half_of_the_calibration_data_being_copies_is_not_decided() -> None:
    verdict = judge(run=make_run(copies=40))

    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.headline == (
        "calibration: scenes/calibration: 40 of 64 samples are copies of others, 24 are distinct "
        f"({FILE}:10)"
    )
    assert judge(run=make_run(copies=31)).figures["calibration_copies"] == 31
