"""The calibration gate: ranges that are finite, used, and fit data that they have not seen."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from gate_builders import (
    all_text,
    at,
    calibration_gate,
    change_quantizers,
    make_audit,
    make_run,
    switch_off,
)

from pytest_quantgate.gates import judge_calibration
from pytest_quantgate.gates.calibration import judge_ranges
from pytest_quantgate.measurement import Audit, CalibrationRun
from pytest_quantgate.verdict import Status, Verdict

AUDIT = make_audit()
FC1 = "vision_model.layers.0.mlp.fc1.input_quantizer"


def judge(
    audit: Audit = AUDIT,
    run: CalibrationRun | None = None,
    *,
    evaluated: tuple[tuple[str, str], ...] = (("ff", "scene-9"),),
    **limits: Any,
) -> Verdict:
    return judge_calibration(
        audit,
        run if run is not None else make_run(),
        evaluation_hashes=evaluated,
        gate=calibration_gate(**limits),
    )


def test_trusted_ranges_pass() -> None:
    audit = change_quantizers(AUDIT, FC1, clipped=3)

    verdict = judge(audit)

    assert verdict.passed
    assert verdict.headline == (
        "calibration: 24 static quantizers with a finite amax, all called; 64 pairs in 4 batches "
        "through both towers; worst clipping 0.030 % of held-out values "
        f"({FC1}), within max_clipped 0.100 %"
    )
    assert "calibration: none of 1 evaluation samples was calibrated on" in verdict.evidence
    assert verdict.figures["calibration_samples"] == 64
    assert verdict.figures["worst_clipped_share"] == pytest.approx(0.0003)


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
        ({"vision_calls": 0}, "were never called in a forward"),
        ({"clipped": 5_000}, "clip more than max_clipped"),
    ],
)
def test_ranges_alone_fail_as_in_the_whole_gate(changes: dict[str, Any], words: str) -> None:
    verdict = judge_ranges(change_quantizers(AUDIT, FC1, **changes), gate=calibration_gate())

    assert verdict.status is Status.FAIL
    assert words in verdict.headline


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
        ({"vision_batches": 0}, "vision"),
        ({"text_batches": 0}, "text"),
        ({"vision_batches": 0, "text_batches": 0}, "vision and text"),
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


# -- calls --------------------------------------------------------------------------------------


def test_quantizer_that_is_never_called_fails_although_it_has_a_range() -> None:
    verdict = judge(change_quantizers(AUDIT, "vision*bmm*", vision_calls=0))

    assert verdict.status is Status.FAIL
    assert (
        "8 of 24 enabled quantizers were never called in a forward (8 of them have an amax, which "
        "proves nothing)"
    ) in verdict.headline
    assert "vision_model.layers.{0-1}.self_attn.q_bmm_quantizer (2)" in verdict.evidence
    assert "attn_implementation" in verdict.next_step
    assert verdict.figures["never_called"] == 8


def test_quantizer_that_is_never_called_and_has_no_range_is_counted_apart() -> None:
    audit = change_quantizers(AUDIT, "vision*q_bmm*", vision_calls=0)
    audit = change_quantizers(audit, "*layers.0.*q_bmm*", amax_max=None, amax_count=0)

    verdict = judge(audit)

    assert "2 of 24 enabled static quantizers cannot be trusted" in verdict.headline
    assert "2 of 24 enabled quantizers were never called" in all_text(verdict)
    assert "(1 of them have an amax, which proves nothing)" in all_text(verdict)


@pytest.mark.parametrize(
    ("tower", "changes"),
    [
        ("vision", {"vision_calls": 0, "text_calls": 5}),
        ("text", {"vision_calls": 5, "text_calls": 0}),
    ],
)
def test_calls_in_the_other_tower_do_not_count(tower: str, changes: dict[str, int]) -> None:
    verdict = judge(change_quantizers(AUDIT, f"{tower}*layers.0.mlp*", **changes))

    assert verdict.status is Status.FAIL
    assert "2 of 24 enabled quantizers were never called" in verdict.headline


def test_quantizer_of_no_tower_may_run_in_any() -> None:
    runs = change_quantizers(AUDIT, FC1, tower="other", vision_calls=0, text_calls=1)
    never = change_quantizers(AUDIT, FC1, tower="other", vision_calls=0, text_calls=0)

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
        f"on; worst {FC1}: 200 of 10000, 2.000 % ({at('max_clipped')})"
    ) in verdict.headline
    assert verdict.evidence[:2] == (
        f"{FC1}: 2.000 % above amax 0.5",
        "text_model.layers.1.mlp.fc1.input_quantizer: 0.500 % above amax 1",
    )
    assert verdict.figures["worst_clipped_share"] == pytest.approx(0.02)


def test_worst_clipping_is_the_largest_share_not_the_largest_count() -> None:
    """A quantizer of a wide layer sees more values, and clips more of them at a smaller share."""
    many = change_quantizers(AUDIT, "text*.1.*fc1.input*", clipped=500, seen=1_000_000)
    both = change_quantizers(many, FC1, clipped=9, seen=10_000)

    passed = judge(both)
    failed = judge(both, max_clipped=Fraction(1, 10_000))

    assert passed.passed
    assert f"worst clipping 0.090 % of held-out values ({FC1})" in passed.headline
    assert passed.figures["worst_clipped_share"] == pytest.approx(0.0009)
    assert "2 quantizers clip more than max_clipped 0.010 % of values" in failed.headline
    assert f"worst {FC1}: 9 of 10000, 0.090 %" in failed.headline


@pytest.mark.parametrize(("clipped", "passes"), [(10, True), (11, False)])
def test_clipping_limit_is_exact(clipped: int, passes: bool) -> None:
    audit = change_quantizers(AUDIT, FC1, clipped=clipped)

    assert judge(audit, max_clipped=Fraction(1, 1000)).passed is passes


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


def test_same_name_with_other_content_is_no_overlap() -> None:
    assert judge(evaluated=(("ff", "scene-1"),)).passed


def test_held_out_sample_that_was_calibrated_on_fails() -> None:
    run = replace(make_run(), held_out_hashes=(("aa", "scene-3"), ("bb", "scene-4")))

    verdict = judge(run=run)

    assert verdict.status is Status.FAIL
    assert "2 held-out samples by content also calibrated the quantizers" in verdict.headline
    assert verdict.figures["held_out_overlap"] == 2


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
    assert verdict.figures["weights_out_of_range"] == 1


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


def test_range_with_some_room_is_green() -> None:
    audit = change_quantizers(AUDIT, "*input_quantizer", largest=1.0)

    assert judge(change_quantizers(audit, FC1, amax_min=15.0, amax_max=15.0)).passed


def test_ranges_of_any_model_are_judged_the_same_way() -> None:
    audit = replace(change_quantizers(AUDIT, WEIGHT, largest=2.0), algorithm="max")

    verdict = judge_ranges(audit, gate=calibration_gate())

    assert "not those of the weights" in verdict.headline
