"""The graph in the number format that ships: finite everywhere, and no noisier than it may be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from gate_builders import FILE, SAME_EXAMPLES, WHERE
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_quantgate.gates.shipped import judge_shipped
from pytest_quantgate.measurement import ShippedTower
from pytest_quantgate.verdict import Status, Verdict

GOOD = ShippedTower(
    tower="vision",
    dtype="float16",
    samples=32,
    nonfinite=0,
    first="",
    largest=0.0,
    sqnr_db=22.8,
    rounding_db=60.0,
)


def judge(tower: ShippedTower = GOOD, *, quantized_db: float | None = 23.0) -> Verdict:
    (verdict,) = judge_shipped(
        [tower],
        gate="parity",
        where=WHERE,
        torch_db={} if quantized_db is None else {"vision": quantized_db},
        max_change_db=1.0,
    )
    return verdict


def test_graph_as_noisy_as_its_model_passes() -> None:
    verdict = judge()

    assert verdict.passed
    assert verdict.headline == (
        "parity: the float16 graph of the vision tower gives numbers on 32 samples, SQNR 22.8 dB "
        "against FP16 in float32; rounding alone 60.0 dB"
    )


def test_rows_that_are_no_numbers_name_the_first_value_that_is_too_large() -> None:
    verdict = judge(replace(GOOD, nonfinite=9, first="vision_model.embeddings", largest=79_643.0))

    assert verdict.status is Status.FAIL
    assert verdict.code == "parity.nonfinite"
    assert verdict.headline == (
        "parity: the float16 graph of the vision tower gives NaN or Inf on 9 of 32 samples: the "
        "first value that float16 does not hold is 79,643 in vision_model.embeddings, the largest "
        f"it does is 65,504 ({FILE}:10)"
    )
    assert "bfloat16" in verdict.next_step


def test_what_rounding_explains_is_no_fault() -> None:
    """A gentle recipe in bfloat16: rounding costs more than quantization."""
    gentle = replace(GOOD, dtype="bfloat16", sqnr_db=39.0, rounding_db=40.0)

    assert judge(gentle, quantized_db=50.0).passed
    assert judge(replace(gentle, rounding_db=55.0), quantized_db=50.0).code == (
        "parity.precision-lost"
    )


@pytest.mark.parametrize(("sqnr_db", "green"), [(18.9, False), (19.1, True), (math.nan, False)])
def test_noise_may_grow_by_the_limit(sqnr_db: float, green: bool) -> None:
    assert judge(replace(GOOD, sqnr_db=sqnr_db)).passed is green


def test_fp16_that_loses_its_embeddings_by_rounding_is_red() -> None:
    assert judge(replace(GOOD, rounding_db=12.0)).code == "parity.rounding"
    assert judge(replace(GOOD, rounding_db=math.nan)).code == "parity.rounding"


def test_without_pytorch_numbers_alone_are_judged() -> None:
    assert judge(replace(GOOD, sqnr_db=3.0), quantized_db=None).passed
    assert judge(replace(GOOD, nonfinite=1), quantized_db=None).code == "parity.nonfinite"


@SAME_EXAMPLES
@given(quantized=st.floats(0, 60), rounding=st.floats(20, 80), more_db=st.floats(-4.0, 2.0))
def test_noise_is_held_to_that_of_quantization_twice_and_of_rounding(
    quantized: float, rounding: float, more_db: float
) -> None:
    explained = -10 * math.log10(2 * 10 ** (-quantized / 10) + 10 ** (-rounding / 10))
    sqnr = explained + more_db
    assume(abs(more_db + 1.0) > 1e-9)

    verdict = judge(replace(GOOD, sqnr_db=sqnr, rounding_db=rounding), quantized_db=quantized)

    assert verdict.passed is (more_db >= -1.0 or sqnr >= 60)
