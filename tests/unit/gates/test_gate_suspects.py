"""A red verdict names the layers in which the error enters."""

from __future__ import annotations

import math
from typing import Any

import pytest
from gate_builders import accuracy_gate, all_text, make_pair

from pytest_quantgate.gates import judge_accuracy
from pytest_quantgate.gates.suspects import name_suspects
from pytest_quantgate.measurement import Suspect
from pytest_quantgate.verdict import Status, Verdict

SUITE = "suites/clip.quantgate.yaml"


def suspect(label: str, db: float, *patterns: str) -> Suspect:
    return Suspect(label=label, towers=("vision",), sqnr_db=db, patterns=patterns)


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
        'try quantize.exclude: ["*patch_embedding*"]; '
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
    assert 'quantize.exclude: ["x.*"]' in text


def test_where_no_layer_stands_out_none_is_to_be_left_out() -> None:
    verdict = name_suspects(red(), [QKV, PATCH], suite=SUITE)

    assert "no layer stands out" in verdict.cause
    assert "quantize.exclude" not in verdict.next_step
    assert f"quantgate sensitivity {SUITE}" in verdict.next_step


def test_all_patterns_of_a_group_are_given() -> None:
    verdict = name_suspects(red(), [QKV, MLP], suite=SUITE)

    assert 'try quantize.exclude: ["a.[kqv]_proj.*", "b.qkv.*"];' in verdict.next_step


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
    from dataclasses import replace
    from fractions import Fraction

    gate = replace(gate, floor=Fraction(9, 10), max_drop=Fraction(5, 100))
    verdict = judge_accuracy(fp16=fp16, quantized=quantized, gate=gate)
    named = name_suspects(verdict, [PATCH, MLP], suite=SUITE)

    assert verdict.status is Status.FAIL
    assert ("quantize.exclude" in named.next_step) is renamed
    assert "vision patch_embedding" in all_text(named)
