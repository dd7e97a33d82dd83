"""Values that the number format which ships cannot hold turn a green gate red."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.audit import LayerActivation
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.overflow import ANSWERING, judge_overflow, size
from pytest_quantgate.suite.gates import BUILTIN
from tests.unit.gates.gate_builders import FILE, SAME_EXAMPLES, WHERE

GREEN = Verdict(
    gate="fidelity",
    status=Status.PASS,
    headline="fidelity: vision cosine 0.999",
    evidence=("a line",),
    figures={"vision_cosine": 0.999},
)


def layer(module: str, largest: float, overflowing: int = 0) -> LayerActivation:
    return LayerActivation(module=module, tower="vision", largest=largest, overflowing=overflowing)


SMALL = (layer("vision_model.embeddings", 3.0), layer("vision_model.encoder", 30_000.0))


def judge(
    verdict: Verdict = GREEN,
    *,
    fp16: tuple[LayerActivation, ...] = SMALL,
    quantized: tuple[LayerActivation, ...] = SMALL,
    dtype: str = "float16",
) -> Verdict:
    return judge_overflow(
        verdict, fp16=fp16, quantized=quantized, samples=32, dtype=dtype, where=WHERE
    )


def test_values_that_fit_are_evidence_with_what_is_left() -> None:
    verdict = judge()

    assert verdict == replace(
        GREEN,
        evidence=(
            "a line",
            "largest activation 30,000 in vision_model.encoder (FP16); the largest float16 is "
            "65,504, 2.2 times that",
            "largest activations by layer: vision_model.encoder 30,000, vision_model.embeddings 3",
        ),
        figures={"vision_cosine": 0.999, "largest_activation": 30_000.0},
    )


def test_values_that_do_not_fit_are_red_and_name_the_first_layer() -> None:
    over = (layer("patches", 109_000.0, 9), layer("vision_model.embeddings", 113_000.0, 12))

    verdict = judge(fp16=(*SMALL, *over), quantized=over)

    assert verdict.status is Status.FAIL
    assert verdict.code == "fidelity.overflow"
    assert verdict.headline == (
        "fidelity: float16 overflows on 12 of 32 held-out pairs: first in patches (FP16), whose "
        f"values reach 109,000; the largest float16 is 65,504 ({FILE}:10)"
    )
    assert verdict.brief == "float16 overflows on 12 of 32 pairs: up to 113,000"
    assert verdict.evidence == ("FP16 vision_model.embeddings: up to 113,000, on 12",)
    assert "FP32" in verdict.cause
    assert "bfloat16" in verdict.next_step
    assert verdict.figures["vision_cosine"] == 0.999


def test_what_only_the_quantized_variant_does_is_named_as_its_own() -> None:
    verdict = judge(quantized=(layer("vision_model.encoder", 70_000.0, 1),))

    assert "first in vision_model.encoder (quantized), whose values reach 70,000" in (
        verdict.headline
    )


def test_a_red_gate_keeps_what_it_said() -> None:
    red = replace(GREEN, status=Status.FAIL, headline="fidelity: vision cosine 0.1", cause="x")

    verdict = judge(red, fp16=(layer("patches", 7e4, 1),))

    assert verdict.code == "fidelity.overflow"
    assert "FAIL: fidelity: vision cosine 0.1" in verdict.evidence


def test_bfloat16_holds_what_float16_does_not() -> None:
    assert judge(fp16=(layer("patches", 1e30),), dtype="bfloat16").passed
    verdict = judge(fp16=(layer("patches", float("inf"), 3),), dtype="bfloat16")

    assert verdict.code == "fidelity.overflow"
    assert "values reach inf; the largest bfloat16 is 3.39e+38" in verdict.headline
    assert "bfloat16" not in verdict.next_step
    assert "largest_activation" not in verdict.figures


def test_a_value_that_overflows_and_is_finite_is_a_figure() -> None:
    assert judge(fp16=(layer("patches", 7e4, 1),)).figures["largest_activation"] == 7e4


def test_the_eight_largest_layers_are_listed() -> None:
    layers = tuple(layer(f"layers.{i}", float(i)) for i in range(1, 12))

    found = judge(fp16=layers, quantized=()).evidence[-1]

    assert found == "largest activations by layer: " + ", ".join(
        f"layers.{i} {i}" for i in range(11, 3, -1)
    )


def test_what_the_quantized_variant_alone_does_is_listed_beside_fp16s() -> None:
    fp16 = (layer("a", 1e5, 2), layer("b", 2e5, 3))
    quantized = (layer("a", 1e5, 2), layer("c", 9e6, 1), layer("d", 1.0))

    verdict = judge(fp16=fp16, quantized=quantized)

    assert verdict.evidence == (
        "FP16 b: up to 200,000, on 3",
        "quantized c: up to 9,000,000, on 1",
    )
    assert verdict.brief == "float16 overflows on 3 of 32 pairs: up to 9,000,000"
    assert judge(fp16=(), quantized=quantized).evidence == ("quantized c: up to 9,000,000, on 1",)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999.4, "999"),
        (1000.0, "1,000"),
        (9_999_999.0, "9,999,999"),
        (1e7, "1e+07"),
        (0.02134, "0.0213"),
    ],
)
def test_sizes_are_written_as_people_do(value: float, text: str) -> None:
    assert size(value) == text


def test_nothing_to_say_of_float32_and_of_models_that_were_not_looked_at() -> None:
    assert judge(fp16=(layer("patches", 1e30),), dtype="float32") is GREEN
    assert judge(fp16=(), quantized=()) is GREEN


def test_a_model_of_zeros_has_no_share() -> None:
    assert judge(fp16=(layer("patches", 0.0),), quantized=()).evidence[1:] == (
        "largest activation 0 in patches (FP16)",
        "largest activations by layer: patches 0",
    )


def test_gates_that_answer_are_gates() -> None:
    assert set(BUILTIN).issuperset(ANSWERING)


@SAME_EXAMPLES
@given(
    sizes=st.lists(st.tuples(st.floats(0, 1e38), st.integers(0, 32)), min_size=1, max_size=6),
    status=st.sampled_from(Status),
)
def test_red_exactly_where_a_sample_overflows(
    sizes: list[tuple[float, int]], status: Status
) -> None:
    layers = tuple(layer(f"layers.{i}", *found) for i, found in enumerate(sizes))
    verdict: Any = judge(replace(GREEN, status=status), fp16=layers, quantized=())

    over = any(number for _, number in sizes)
    assert (verdict.code == "fidelity.overflow") is over
    assert verdict.status is (Status.FAIL if over else status)
