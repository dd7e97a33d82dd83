"""The fidelity gate: cosine and SQNR of both towers against their limits."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates.fidelity import judge_fidelity, judge_tower
from tests.unit.gates.gate_builders import (
    FILE,
    all_text,
    at,
    fidelity_gate,
    make_fidelity,
    make_tower,
)

LAYERS = (
    ("vision_model.encoder.layers.11.mlp.fc2", 8.1),
    ("text_model.encoder.layers.3.mlp.fc1", 9.5),
    ("vision_model.encoder.layers.10.mlp.fc2", 15.2),
    ("logit_scale", 20.0),
)
ALL_LIMITS: dict[str, float] = {
    "min_cosine": 0.99,
    "min_worst_cosine": 0.95,
    "min_sqnr_db": 20.0,
    "min_worst_sqnr_db": 10.0,
}


def test_another_scale_of_the_logits_fails_whatever_the_embeddings_are() -> None:
    found = make_fidelity(scales=(("logit_scale", 4.6052, 0.0),))
    verdict = judge_fidelity(found, gate=fidelity_gate(**ALL_LIMITS))

    assert (verdict.status, verdict.code) == (Status.FAIL, "fidelity.scale-changed")
    assert "logit_scale is 0, FP16's 4.6052: probabilities change" in verdict.headline
    assert verdict.next_step == "copy logit_scale from the FP16 model"


def test_a_quantized_tower_that_is_fp16_to_the_last_bit_was_not_evaluated() -> None:
    same = {"cosine_mean": 1.0, "cosine_worst": 1.0, "sqnr_mean_db": math.inf}
    found = make_fidelity(text={**same, "sqnr_worst_db": math.inf})
    gate = fidelity_gate(**ALL_LIMITS)

    verdict = judge_fidelity(found, gate=gate, rounded=("vision", "text"))

    assert (verdict.status, verdict.code) == (Status.FAIL, "fidelity.identical")
    assert "embeddings of the text tower are FP16's to the last bit" in verdict.headline
    # A tower that nobody quantized is what it was.
    assert judge_fidelity(found, gate=gate, rounded=("vision",)).passed


def test_embeddings_over_every_limit_pass() -> None:
    verdict = judge_fidelity(make_fidelity(), gate=fidelity_gate(**ALL_LIMITS))

    assert verdict.passed
    assert verdict.headline == (
        "fidelity: vision cosine 0.9991 (worst 0.9902), SQNR 27.4 dB (worst 17.1); "
        "text cosine 0.9991 (worst 0.9902), SQNR 27.4 dB (worst 17.1) on 512 samples of scenes/test"
    )
    assert verdict.brief == ("vision cosine 0.9991, SQNR 27.4 dB; text cosine 0.9991, SQNR 27.4 dB")
    assert (verdict.gate, verdict.code) == ("fidelity", "")
    assert len(verdict.evidence) == 8
    assert (
        "fidelity: text worst SQNR 17.1 dB (sample 'scene-42'), over min_worst_sqnr 10 dB "
        f"({at('min_worst_sqnr')})"
    ) in verdict.evidence
    assert verdict.figures == {
        f"{tower}_{name}": value
        for tower in ("vision", "text")
        for name, value in {
            "cosine": 0.9991,
            "worst_cosine": 0.9902,
            "sqnr_db": 27.4,
            "worst_sqnr_db": 17.1,
        }.items()
    }
    assert (verdict.cause, verdict.next_step) == ("", "")


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize(
    ("measured", "limit", "words"),
    [
        (
            {"cosine_mean": 0.9899},
            {"min_cosine": 0.99},
            f"mean cosine 0.9899, under min_cosine 0.99 ({at('min_cosine')})",
        ),
        (
            {"cosine_worst": 0.5},
            {"min_worst_cosine": 0.95},
            "worst cosine 0.5000 (sample 'scene-17'), under min_worst_cosine 0.95 "
            f"({at('min_worst_cosine')})",
        ),
        (
            {"sqnr_mean_db": 19.96},
            {"min_sqnr_db": 20.0},
            f"mean SQNR 20.0 dB, under min_sqnr 20 dB ({at('min_sqnr')})",
        ),
        (
            {"sqnr_worst_db": -3.0},
            {"min_worst_sqnr_db": 10.0},
            "worst SQNR -3.0 dB (sample 'scene-42'), under min_worst_sqnr 10 dB "
            f"({at('min_worst_sqnr')})",
        ),
    ],
)
def test_each_limit_is_held_against_each_tower(
    tower: str, measured: dict[str, float], limit: dict[str, float], words: str
) -> None:
    bad, good = make_fidelity(**{tower: measured}), make_fidelity()
    gate = fidelity_gate(**limit)

    verdict = judge_fidelity(bad, gate=gate)

    assert verdict.status is Status.FAIL
    assert verdict.headline == f"fidelity: {tower} {words}"
    assert judge_fidelity(good, gate=gate).passed


def test_value_at_its_limit_passes() -> None:
    fidelity = make_fidelity(vision={"cosine_mean": 0.99}, text={"cosine_mean": 0.99})

    assert judge_fidelity(fidelity, gate=fidelity_gate(min_cosine=0.99)).passed


def test_one_sample_is_compared_and_says_nothing_of_others() -> None:
    verdict = judge_fidelity(
        make_fidelity(vision={"samples": 1}, text={"samples": 1}),
        gate=fidelity_gate(min_cosine=0.99),
    )

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "fidelity.few-samples")
    assert "1 distinct sample of scenes/test cannot show" in verdict.headline
    assert verdict.figures["vision_cosine"] == 0.9991


def test_both_towers_are_named_where_both_fail() -> None:
    fidelity = make_fidelity(vision={"cosine_mean": 0.5}, text={"cosine_mean": 0.4})

    verdict = judge_fidelity(fidelity, gate=fidelity_gate(min_cosine=0.99))

    assert "vision mean cosine 0.5000" in verdict.headline
    assert any("text mean cosine 0.4000" in line for line in verdict.evidence)


def test_half_of_the_samples_being_copies_is_not_decided() -> None:
    gate = fidelity_gate(**ALL_LIMITS)

    some = judge_fidelity(make_fidelity(copies=255), gate=gate)
    half = judge_fidelity(make_fidelity(copies=256), gate=gate)

    assert some.passed
    assert some.headline.endswith("on 512 samples of scenes/test, 255 of them copies")
    assert (half.status, half.code) == (Status.INCONCLUSIVE, "fidelity.copies")
    assert half.headline == (
        "fidelity: scenes/test: 256 of 512 samples are copies of others, 256 are distinct "
        f"({FILE}:10)"
    )


# -- one tower alone ----------------------------------------------------------------------------


def test_one_tower_is_judged_by_the_same_limits() -> None:
    gate = fidelity_gate(**ALL_LIMITS)

    green = judge_tower(make_tower("text"), gate=gate)
    assert green.passed
    assert (green.cause, green.next_step, green.gate) == ("", "", "fidelity")
    assert len(green.evidence) == 3  # of four limits the first leads
    verdict = judge_tower(make_tower("text", cosine_worst=0.5), gate=gate)

    assert verdict.status is Status.FAIL
    assert "text worst cosine 0.5000" in verdict.headline
    assert verdict.cause == "noise that no single layer explains"


def test_one_tower_without_limits_fails() -> None:
    verdict = judge_tower(make_tower("vision"), gate=fidelity_gate())

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"fidelity: the gate sets no limit, so it decides nothing ({FILE}:10)"
    )
    assert verdict.next_step.startswith("set min_cosine")


# -- results that are no result -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("towers", "words"),
    [
        ((make_tower("vision"),), "no embeddings of the text tower were compared"),
        ((make_tower("text"),), "no embeddings of the vision tower were compared"),
        ((), "no embeddings of the vision and text tower were compared"),
        (
            (make_tower("vision"), make_tower("text", samples=0)),
            "no embeddings of the text tower were compared",
        ),
    ],
)
def test_tower_that_was_not_measured_fails(towers: tuple[Any, ...], words: str) -> None:
    verdict = judge_fidelity(make_fidelity(towers=towers), gate=fidelity_gate(**ALL_LIMITS))

    assert verdict.status is Status.FAIL
    assert verdict.headline == f"fidelity: {words} ({FILE}:10)"
    assert verdict.gate == "fidelity"
    assert verdict.next_step == "evaluate with pairs: images and texts"


def test_gate_without_limits_fails() -> None:
    verdict = judge_fidelity(make_fidelity(), gate=fidelity_gate())

    assert verdict.status is Status.FAIL
    assert "sets no limit, so it decides nothing" in verdict.headline
    assert "min_cosine" in verdict.next_step


def test_nan_embeddings_fail_even_under_loose_limits() -> None:
    fidelity = make_fidelity(text={"nonfinite": 3})

    verdict = judge_fidelity(fidelity, gate=fidelity_gate(min_cosine=-1.0))

    assert verdict.status is Status.FAIL
    assert "text embeddings of 3 of 512 samples hold NaN or Inf, first 'scene-42'" in (
        verdict.headline
    )
    assert "overflow" in verdict.cause
    assert verdict.next_step == "look at the calibration gate"
    assert f"({FILE}:10)" in verdict.headline


def test_nan_embeddings_fail_without_any_limit() -> None:
    verdict = judge_fidelity(make_fidelity(vision={"nonfinite": 1}), gate=fidelity_gate())

    assert verdict.status is Status.FAIL
    assert "hold NaN or Inf" in verdict.headline


def test_nan_is_never_over_a_limit() -> None:
    verdict = judge_fidelity(
        make_fidelity(vision={"cosine_mean": math.nan}), gate=fidelity_gate(min_cosine=-1.0)
    )

    assert verdict.status is Status.FAIL
    assert "vision mean cosine nan, under min_cosine -1" in verdict.headline
    assert "vision_cosine" not in verdict.figures


def test_equal_embeddings_have_no_noise_at_all() -> None:
    equal = {"sqnr_mean_db": math.inf, "sqnr_worst_db": math.inf}
    fidelity = make_fidelity(vision=equal, text=equal)

    verdict = judge_fidelity(fidelity, gate=fidelity_gate(min_sqnr_db=20.0))

    assert verdict.passed
    assert "SQNR inf dB" in verdict.headline
    assert "vision_sqnr_db" not in verdict.figures


# -- blame --------------------------------------------------------------------------------------


def test_worst_layers_of_the_failing_tower_are_named() -> None:
    fidelity = make_fidelity(vision={"cosine_mean": 0.5}, worst_layers=LAYERS)

    verdict = judge_fidelity(fidelity, gate=fidelity_gate(min_cosine=0.99))

    first = LAYERS[0][0]
    assert verdict.cause == f"the largest error enters at {first}, SQNR 8.1 dB (next 15.2 dB)"
    assert verdict.evidence[:2] == (
        f"{first}: SQNR 8.1 dB",
        "vision_model.encoder.layers.10.mlp.fc2: SQNR 15.2 dB",
    )
    assert verdict.next_step == f'try exclude: ["*{first}*"], or a gentler recipe'
    assert "text_model" not in all_text(verdict)


def test_single_worst_layer_has_no_next_one() -> None:
    fidelity = make_fidelity(text={"cosine_mean": 0.5}, worst_layers=LAYERS)

    verdict = judge_fidelity(fidelity, gate=fidelity_gate(min_cosine=0.99))

    assert verdict.cause == (
        "the largest error enters at text_model.encoder.layers.3.mlp.fc1, SQNR 9.5 dB"
    )


def test_layers_whose_names_say_no_tower_stand_in_for_it() -> None:
    fidelity = make_fidelity(
        text={"cosine_mean": 0.5}, worst_layers=(("image_encoder.0", 3.0), ("blocks.7.fc", 4.0))
    )

    verdict = judge_fidelity(fidelity, gate=fidelity_gate(min_cosine=0.99))

    assert verdict.cause == "the largest error enters at blocks.7.fc, SQNR 4.0 dB"


@pytest.mark.parametrize("name", ["visual.blocks.3", "image_encoder.3", "vision_model.3"])
def test_a_layer_is_of_the_tower_that_its_name_says(name: str) -> None:
    layers = (("blocks.7.fc", 1.0), ("text_model.1", 2.0), (name, 3.0))
    fidelity = make_fidelity(vision={"cosine_mean": 0.5}, worst_layers=layers)

    verdict = judge_fidelity(fidelity, gate=fidelity_gate(min_cosine=0.99))

    assert verdict.cause == f"the largest error enters at {name}, SQNR 3.0 dB"


def test_without_layers_nothing_is_blamed() -> None:
    verdict = judge_fidelity(
        make_fidelity(vision={"cosine_mean": 0.5}), gate=fidelity_gate(min_cosine=0.99)
    )

    assert verdict.cause == "noise that no single layer explains"
    assert verdict.next_step == "choose a gentler recipe"


def test_the_four_worst_layers_are_listed() -> None:
    layers = tuple((f"image_tower.{n}", float(n)) for n in range(1, 7))
    fidelity = make_fidelity(vision={"cosine_mean": 0.5}, worst_layers=layers)

    verdict = judge_fidelity(fidelity, gate=fidelity_gate(min_cosine=0.99))

    named = [line for line in verdict.evidence if line.startswith("image_tower")]
    assert named == [f"image_tower.{n}: SQNR {n}.0 dB" for n in range(1, 5)]


def test_a_pass_on_the_calibration_data_says_so() -> None:
    """Ranges fit the pairs that they were made of: other data is another question."""
    found, gate = make_fidelity(data="scenes/calibration"), fidelity_gate(**ALL_LIMITS)

    verdict = judge_fidelity(found, gate=gate, is_calibration=True)

    assert verdict.passed
    assert verdict.headline.endswith("512 samples of scenes/calibration, the calibration data")
    assert "name other data with fidelity: {data: <data set>/<split>}" in verdict.evidence[-1]
    assert "the calibration data" not in judge_fidelity(found, gate=gate).headline
