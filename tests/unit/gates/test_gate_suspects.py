"""A red verdict names the layers in which the error enters."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pytest_quantgate.evidence.sensitivity import OutlierChannels, Suspect
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.accuracy import judge_accuracy
from pytest_quantgate.gates.suspects import explained_by_outliers, name_suspects
from tests.unit.gates.gate_builders import accuracy_gate, all_text, make_pair

SUITE = "suites/clip.quantgate.yaml"


def suspect(label: str, db: float, *patterns: str, **changes: Any) -> Suspect:
    return Suspect(label=label, towers=("vision",), sqnr_db=db, patterns=patterns, **changes)


def outliers(place: str = "mlp.fc1", **changes: Any) -> OutlierChannels:
    values: dict[str, Any] = {
        "quantizer": f"vision_model.encoder.layers.3.{place}.input_quantizer",
        "place": place,
        "format": "INT8",
        "channels": (93, 17),
        "channels_count": 256,
        "largest_ratio": 44.51,
        "smallest_ratio": 38.2,
        "range_ratio": 0.03,
        "levels": 3,
        "levels_count": 127,
        "smoothable": True,
        **changes,
    }
    return OutlierChannels(**values)


def with_outliers(*found: OutlierChannels, db: float = 18.0, apart: float = 36.6) -> Suspect:
    return suspect("vision block 3 mlp", db, "x.*", outliers=found, sqnr_apart_db=apart)


PATCH = suspect("vision patch_embedding", 19.0, "*patch_embedding*")
MLP = suspect("vision block 3 mlp", 31.2, "vision_model.encoder.layers.3.mlp.*")
QKV = suspect("text block 0 attention qkv", 17.5, "a.[kqv]_proj.*", "b.qkv.*")


def red(**changes: Any) -> Verdict:
    fp16, quantized = make_pair(2000, lost=300, won=10)
    return judge_accuracy(fp16=fp16, quantized=quantized, gate=accuracy_gate(**changes))


def test_the_worst_layer_is_named_with_what_to_try() -> None:
    verdict = name_suspects(red(), [PATCH, MLP], suite=SUITE)

    assert verdict.status is Status.FAIL
    assert verdict.cause == (
        "quantization noise where the model is sensitive; the largest error enters at vision "
        "patch_embedding (SQNR 19.0 dB alone; next 31.2 dB, vision block 3 mlp)"
    )
    assert verdict.next_step == (
        'try exclude: ["*patch_embedding*"]; '
        f"quantgate sensitivity {SUITE} finds the smallest list that passes"
    )
    assert verdict.evidence[-2:] == (
        "vision patch_embedding: SQNR 19.0 dB alone",
        "vision block 3 mlp: SQNR 31.2 dB alone",
    )


def test_a_layer_alone_and_one_without_a_number_stand_out() -> None:
    broken = suspect("text block 1 mlp", -math.inf, "x.*")

    assert "enters at vision patch_embedding (SQNR 19.0 dB alone)" in all_text(
        name_suspects(red(), [PATCH], suite=SUITE)
    )
    text = all_text(name_suspects(red(), [broken, PATCH], suite=SUITE))
    assert "enters at text block 1 mlp (SQNR none, NaN or Inf alone; next 19.0 dB" in text
    assert 'exclude: ["x.*"]' in text


def test_where_no_layer_stands_out_none_is_to_be_left_out() -> None:
    verdict = name_suspects(red(), [QKV, PATCH], suite=SUITE)

    assert verdict.cause.endswith(
        "the largest error enters at text block 0 attention qkv (SQNR 17.5 dB alone; next 19.0 dB, "
        "vision patch_embedding): no layer stands out"
    )
    assert verdict.next_step == (
        f"choose a gentler recipe, or run quantgate repair {SUITE}: it looks for the smallest "
        f"mixed recipe that meets all limits"
    )


@pytest.mark.parametrize(("db", "stands_out"), [(22.0, True), (21.9, False)])
def test_three_db_more_noise_than_the_next_stand_out(db: float, stands_out: bool) -> None:
    verdict = name_suspects(red(), [PATCH, suspect("x", db)], suite=SUITE)

    assert ("no layer stands out" in verdict.cause) is not stands_out


@pytest.mark.parametrize(
    ("figures", "loss"),
    [
        ({}, True),
        ({"floor_status": "PASS"}, True),
        ({"floor_status": "FAIL"}, False),
        ({"floor_status": "FAIL", "drop_low_points": 1.0, "max_drop_points": 1.0}, False),
        ({"floor_status": "FAIL", "drop_low_points": 1.1, "max_drop_points": 1}, True),
        ({"floor_status": "FAIL", "drop_low_points": 1.1}, False),
        ({"floor_status": "FAIL", "max_drop_points": 1.0}, False),
    ],
)
def test_a_floor_alone_is_no_loss_of_quantization(figures: dict[str, Any], loss: bool) -> None:
    verdict = Verdict(gate="g", status=Status.FAIL, headline="h", next_step="as it was")
    verdict = replace(verdict, figures=figures)

    named = name_suspects(verdict, [PATCH], suite=SUITE)

    assert (named.next_step != "as it was") is loss
    assert named.cause.startswith("the largest error enters at") is loss


def test_all_patterns_of_a_group_are_given() -> None:
    verdict = name_suspects(red(), [QKV, MLP], suite=SUITE)

    assert 'try exclude: ["a.[kqv]_proj.*", "b.qkv.*"];' in verdict.next_step


def test_a_pass_and_a_verdict_without_suspects_stay_as_they_are() -> None:
    fp16, quantized = make_pair(2000, lost=0)
    passed = judge_accuracy(fp16=fp16, quantized=quantized, gate=accuracy_gate())

    assert name_suspects(passed, [PATCH], suite=SUITE) is passed
    failed = red()
    assert name_suspects(failed, [], suite=SUITE) is failed


def test_too_few_samples_keep_their_next_step() -> None:
    fp16, quantized = make_pair(300, lost=4, won=1)
    verdict = judge_accuracy(fp16=fp16, quantized=quantized, gate=accuracy_gate())
    named = name_suspects(verdict, [PATCH, MLP], suite=SUITE)

    assert verdict.status is Status.INCONCLUSIVE
    assert (named.cause, named.next_step) == (verdict.cause, verdict.next_step)
    assert named.evidence[:-1] == verdict.evidence
    assert named.evidence[-1].startswith("the largest error enters at vision patch_embedding")


@pytest.mark.parametrize(("lost", "renamed"), [(2, False), (300, True)])
def test_a_floor_under_fp16_is_not_blamed_on_a_layer(lost: int, renamed: bool) -> None:
    fp16, quantized = make_pair(2000, lost=lost, both_wrong=1500)
    gate = accuracy_gate(floor="0.9", max_drop="0.05")
    gate = replace(gate, floor=Fraction(9, 10), max_drop=Fraction(5, 100))
    verdict = judge_accuracy(fp16=fp16, quantized=quantized, gate=gate)
    named = name_suspects(verdict, [PATCH, MLP], suite=SUITE)

    assert verdict.status is Status.FAIL
    assert ("exclude: [" in named.next_step) is renamed
    assert "vision patch_embedding" in all_text(named)


# -- outlier channels -----------------------------------------------------------------------------


def test_outlier_channels_are_named_with_what_helps_against_them() -> None:
    verdict = name_suspects(red(), [with_outliers(outliers()), MLP], suite=SUITE, recipe="int8")

    assert verdict.cause == (
        "quantization noise where the model is sensitive; the largest error enters at vision "
        "block 3 mlp (SQNR 18.0 dB alone; next 31.2 dB, vision block 3 mlp); outlier channels "
        "explain it: 2 of 256 input channels of mlp.fc1 (93, 17) reach 38 to 45 times the median "
        "channel, which has 3 of the 127 levels of INT8"
    )
    assert verdict.next_step == (
        "try recipe: int8-smoothquant, which moves the range of such channels into the weights, or "
        "a recipe in FP8 (fp8, fp8-attention), which rounds small values as finely, or "
        f'exclude: ["x.*"]; quantgate sensitivity {SUITE} finds the smallest exclude list '
        "that passes"
    )
    assert verdict.evidence[-2:] == (
        "vision block 3 mlp: SQNR 18.0 dB alone, 36.6 dB with channels 93, 17 of mlp.fc1 "
        "quantized apart",
        "vision block 3 mlp: SQNR 31.2 dB alone",
    )


@pytest.mark.parametrize(("apart", "named"), [(24.0, True), (23.9, False), (-math.inf, False)])
def test_outlier_channels_are_named_only_where_they_explain_the_noise(
    apart: float, named: bool
) -> None:
    found = [with_outliers(outliers(), apart=apart), MLP]
    verdict = name_suspects(red(), found, suite=SUITE, recipe="int8")

    assert ("outlier" in all_text(verdict)) is named
    assert ("smoothquant" in verdict.next_step) is named
    assert ("quantized apart" in all_text(verdict)) is named
    assert "exclude: [" in verdict.next_step


def test_outlier_channels_of_a_lesser_suspect_are_evidence_and_no_cause() -> None:
    found = [suspect("vision patch_embedding", 5.0, "p.*"), with_outliers(outliers())]
    verdict = name_suspects(red(), found, suite=SUITE, recipe="int8")

    assert "outlier" not in verdict.cause
    assert "smoothquant" not in verdict.next_step
    assert "with channels 93, 17 of mlp.fc1 quantized apart" in verdict.evidence[-1]


def test_where_no_layer_stands_out_none_is_left_out_for_its_outliers() -> None:
    rest = suspect("vision block 0 mlp", 18.5, "y.*")
    verdict = name_suspects(red(), [with_outliers(outliers()), rest], suite=SUITE, recipe="int8")

    assert "no layer stands out; outlier channels explain it: 2 of 256" in verdict.cause
    assert verdict.next_step == (
        "try recipe: int8-smoothquant, which moves the range of such channels into the weights, or "
        "a recipe in FP8 (fp8, fp8-attention), which rounds small values as finely; quantgate "
        f"sensitivity {SUITE} finds the smallest exclude list that passes"
    )


def test_where_nothing_helps_against_outliers_a_gentler_recipe_is_asked_for() -> None:
    found = with_outliers(outliers(smoothable=False, format="E4M3"))
    rest = suspect("vision block 0 mlp", 18.5, "y.*")
    verdict = name_suspects(red(), [found, rest], suite=SUITE, recipe="fp8")

    assert "outlier channels explain it" in verdict.cause
    assert verdict.next_step.startswith("choose a gentler recipe, or run quantgate repair")


@pytest.mark.parametrize(("found", "apart"), [((), 60.0), ((outliers(),), None)])
def test_outliers_explain_nothing_that_was_not_tried(
    found: tuple[OutlierChannels, ...], apart: float | None
) -> None:
    tried = suspect("vision block 3 mlp", 18.0, "x.*", outliers=found, sqnr_apart_db=apart)

    assert not explained_by_outliers(tried)
    assert "outlier" not in all_text(name_suspects(red(), [tried], suite=SUITE))


def test_patterns_are_given_as_they_are_written() -> None:
    verdict = name_suspects(red(), [suspect("tür", 3.0, "tür.*")], suite=SUITE)

    assert 'exclude: ["tür.*"]' in verdict.next_step


def test_the_common_start_of_places_is_said_once() -> None:
    same = [outliers(f"attn.proj.{name}") for name in "qk"]

    cause = name_suspects(red(), [with_outliers(*same)], suite=SUITE).cause

    assert "channels of attn.proj.q, k (93, 17) reach" in cause


def test_layers_of_one_input_are_named_together() -> None:
    same = [outliers(f"self_attn.{name}_proj") for name in "qkv"]
    other = outliers("mlp.fc2", channels=(5,), largest_ratio=9.0)
    verdict = name_suspects(red(), [with_outliers(other, *same)], suite=SUITE)

    assert "channels of self_attn.q_proj, k_proj, v_proj (93, 17) reach" in verdict.cause


@pytest.mark.parametrize(
    ("smallest", "largest", "words"),
    [(9.94, 10.0, "9.9 to 10 times"), (9.96, 31.5, "10.0 to 32 times"), (12.1, 12.4, "12 times")],
)
def test_ratios_have_two_digits_at_least(smallest: float, largest: float, words: str) -> None:
    found = with_outliers(outliers(smallest_ratio=smallest, largest_ratio=largest))

    assert f"reach {words} the median channel" in name_suspects(red(), [found], suite=SUITE).cause


def test_one_channel_and_many_read_well() -> None:
    one = outliers(channels=(7,), largest_ratio=4.44, smallest_ratio=4.44, levels=0)
    many = outliers(channels=tuple(range(40)), channels_count=4096, levels=None, levels_count=None)

    assert (
        "1 of 256 input channels of mlp.fc1 (7) reaches 4.4 times the median channel, which has "
        "none of the 127 levels of INT8"
    ) in name_suspects(red(), [with_outliers(one)], suite=SUITE).cause
    text = name_suspects(red(), [with_outliers(many)], suite=SUITE).cause
    assert "40 of 4096 input channels of mlp.fc1 (0, 1, 2, 3 and 36 more) reach 38" in text
    assert text.endswith("times the median channel")


@pytest.mark.parametrize(
    ("changes", "recipe", "advice"),
    [
        ({}, "int8", "try recipe: int8-smoothquant, which moves"),
        ({}, "INT8_DEFAULT_CFG", "try recipe: int8-smoothquant, which moves"),
        ({}, "inline quant_cfg", "try algorithm: smoothquant next to its quant_cfg, which moves"),
        ({}, "ours.yaml", "try algorithm: smoothquant next to its quant_cfg, which moves"),
        ({"smoothable": False}, "int8-smoothquant", "try a recipe in FP8 (fp8, fp8-attention), "),
        ({"largest_ratio": 449.0}, "int8", "weights, or exclude"),
        ({"largest_ratio": 448.0}, "int8", "weights, or a recipe in FP8"),
        ({}, "ours.yml", "try algorithm: smoothquant next to its quant_cfg, which moves"),
        ({"smoothable": False, "format": "E4M3"}, "fp8", 'try exclude: ["x.*"]; quantg'),
    ],
)
def test_the_advice_is_what_there_is(changes: dict[str, Any], recipe: str, advice: str) -> None:
    verdict = name_suspects(
        red(), [with_outliers(outliers(**changes)), MLP], suite=SUITE, recipe=recipe
    )

    assert "outlier channels explain it" in verdict.cause
    assert advice in verdict.next_step
    assert ("smoothquant" in verdict.next_step) is changes.get("smoothable", True)


def test_outlier_channels_are_no_remedy_for_too_few_samples() -> None:
    fp16, quantized = make_pair(300, lost=4, won=1)
    verdict = judge_accuracy(fp16=fp16, quantized=quantized, gate=accuracy_gate())
    named = name_suspects(verdict, [with_outliers(outliers())], suite=SUITE, recipe="int8")

    assert (named.cause, named.next_step) == (verdict.cause, verdict.next_step)
    assert "outlier channels explain it: 2 of 256" in named.evidence[-1]
