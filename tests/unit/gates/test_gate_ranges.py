"""Ranges of the calibration gate: each is there, is the values' own, and its quantizer runs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

import pytest

from pytest_quantgate.evidence.audit import InputScale
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates.calibration import judge_calibration, judge_ranges
from pytest_quantgate.gates.ranges import judge_input_scales
from tests.unit.gates.calibration_builders import AUDIT, FC1, WEIGHT, judge
from tests.unit.gates.gate_builders import (
    WHERE,
    all_text,
    calibration_gate,
    change_quantizers,
    make_run,
)


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


def test_weights_that_changed_are_counted_by_groups() -> None:
    (one,) = (q for q in AUDIT.quantizers if q.name == WEIGHT)
    many = tuple(
        replace(one, name=f"{part}.weight_quantizer", largest=2.0) for part in "abcdefghij"
    )

    verdict = judge(replace(AUDIT, quantizers=many, algorithm="max"))

    assert verdict.code == "calibration.weights-changed"
    assert verdict.evidence[7:9] == ("h.weight_quantizer", "... and 2 groups")


def with_scales(*layers: str, **changes: Any) -> Any:
    """Return an audit whose named layers have the input scales of SmoothQuant."""
    values: dict[str, Any] = {
        "count": 8,
        "smallest": 0.5,
        "largest": 2.0,
        "finite": True,
        "applied": True,
        **changes,
    }
    scales = tuple(InputScale(module=name, tower="vision", **values) for name in layers)
    return replace(AUDIT, input_scales=scales)


LAYERS = tuple(m.name for m in AUDIT.modules if m.kind == "linear")


@pytest.mark.parametrize(
    ("audit", "code", "words"),
    [
        (with_scales(*LAYERS, finite=False), "scale-broken", "4 of 4 input scales hold NaN"),
        (with_scales(*LAYERS, smallest=0.0), "scale-broken", "4 of 4 input scales hold NaN"),
        (with_scales(*LAYERS, applied=False), "scale-idle", "4 of 4 input scales are not applied"),
        (with_scales(*LAYERS[1:]), "scale-missing", "1 layer of 4 has no input scale"),
        (with_scales(*LAYERS[2:]), "scale-missing", "2 layers of 4 have no input scale"),
    ],
)
def test_input_scales_that_do_not_act_as_they_should_fail(
    audit: Any, code: str, words: str
) -> None:
    verdict = judge(audit)

    assert verdict.code == f"calibration.{code}"
    assert words in verdict.headline
    assert verdict.evidence
    assert verdict.cause
    assert verdict.next_step


@pytest.mark.parametrize("applied", [True, None])
def test_input_scales_that_are_applied_or_never_ran_pass(applied: bool | None) -> None:
    found = judge_input_scales(with_scales(*LAYERS, applied=applied), where=WHERE)

    assert found is not None
    assert found.passed
    assert found.headline == "calibration: 4 input scales applied"
    assert judge(with_scales(*LAYERS, applied=applied)).passed


@pytest.mark.parametrize("largest", [None, 1.0])
def test_ranges_of_a_weight_that_are_not_its_own_are_counted(largest: float | None) -> None:
    """Where values are not watched, the ranges are all that is known."""
    changes = {"ranges_off": 3, "amax_count": 8, "largest": largest}
    audit = replace(change_quantizers(AUDIT, WEIGHT, **changes), algorithm="max")

    verdict = judge(audit)

    assert verdict.code == "calibration.weights-changed"
    assert "3 of 8 ranges are others" in verdict.headline
    assert ("its weight goes to 1" in verdict.headline) is (largest is not None)
