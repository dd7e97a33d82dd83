"""The calibration gate: what ran, what depends on the batch, and what both have seen."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pytest_quantgate.evidence.audit import Audit, CalibrationRun, NearCopy
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates.calibration import judge_ranges, warn_of_near_copies
from pytest_quantgate.statistics.intervals import Share, share_limits
from tests.unit.gates.calibration_builders import AUDIT, FC1, WEIGHT, judge, with_batch
from tests.unit.gates.gate_builders import (
    FILE,
    at,
    calibration_gate,
    change_quantizers,
    make_run,
    switch_off,
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


def test_ranges_of_any_model_are_judged_the_same_way() -> None:
    audit = replace(change_quantizers(AUDIT, WEIGHT, largest=2.0), algorithm="max")

    verdict = judge_ranges(audit, gate=calibration_gate())

    assert "not those of the weights" in verdict.headline


def test_ranges_of_fewer_samples_than_are_held_out_leave_clipping_open() -> None:
    audit = change_quantizers(AUDIT, FC1, clipped=10)

    few = judge(audit, make_run(samples=1, held_out_samples=128))
    enough = judge(audit, make_run(samples=128, held_out_samples=128))

    assert few.code == enough.code == "calibration.clipping-open"
    assert few.cause == (
        "too few samples: the ranges are those of 1 sample, fewer than the 128 that are held out"
    )
    assert few.next_step == "calibrate on more samples of the data that the model will see"
    assert "fewer than" not in enough.cause


def test_a_range_far_too_wide_leads_before_others_that_clip() -> None:
    """Pixels from 0 to 255 widen the first range, and move the others a little."""
    audit = change_quantizers(AUDIT, "*input*", largest=0.01)
    audit = change_quantizers(audit, FC1, clipped=200)

    verdict = judge(audit)

    assert verdict.code == "calibration.range-too-wide"
    assert "calibration.clipped" in verdict.other_codes


BY_GROUPS = ("amax-missing", "amax-nonfinite", "amax-zero", "never-called", "batch-dependent")


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


def test_half_of_the_calibration_data_being_copies_is_not_decided() -> None:
    verdict = judge(run=make_run(copies=40))

    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.headline == (
        "calibration: scenes/calibration: 40 of 64 samples are copies of others, 24 are distinct "
        f"({FILE}:10)"
    )
    assert judge(run=make_run(copies=31)).figures["calibration_copies"] == 31


def test_a_model_that_answers_one_batch_twice_in_two_ways_fails() -> None:
    audit = with_batch(AUDIT, change=1e-7)
    first, second = audit.invariance
    audit = replace(audit, invariance=(first, replace(second, repeat=0.02)))

    verdict = judge(audit)

    assert verdict.code == "calibration.two-answers"
    assert verdict.brief == "the same batch gives two answers: text by 2.00 %"
    assert verdict.figures["text_repeat_change"] == 0.02


def test_how_a_handed_over_checkpoint_was_calibrated_is_taken_from_the_suite() -> None:
    verdict = judge(run=make_run(given=True, batches=0, tower_batches={}))

    assert verdict.passed
    assert "handed over, calibrated on scenes/calibration as the suite says" in verdict.headline
