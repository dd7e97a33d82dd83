"""The graph in the number format that ships: finite everywhere, and no noisier than it may be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.parity import ShippedTower
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.shipped import SPREAD_DB, judge_shipped
from tests.unit.gates.gate_builders import FILE, SAME_EXAMPLES, WHERE

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
    assert verdict.figures == {"vision_sqnr_float16_db": 22.8, "vision_sqnr_rounding_db": 60.0}
    assert (verdict.gate, verdict.code, verdict.next_step) == ("parity", "", "")


def test_rows_that_are_no_numbers_name_the_first_value_that_is_too_large() -> None:
    verdict = judge(replace(GOOD, nonfinite=9, first="vision_model.embeddings", largest=79_643.0))

    assert verdict.status is Status.FAIL
    assert verdict.code == "parity.nonfinite"
    assert verdict.headline == (
        "parity: the float16 graph of the vision tower gives NaN or Inf on 9 of 32 samples: the "
        "first value that float16 does not hold is 79,643 in vision_model.embeddings, the largest "
        f"it does is 65,504 ({FILE}:10)"
    )
    assert verdict.brief == "vision: NaN or Inf in float16 on 9 of 32"
    assert "a value overflows in the number format that ships" in verdict.cause
    assert "bfloat16" in verdict.next_step
    assert verdict.figures == {"vision_nonfinite_float16": 9}


def test_bfloat16_that_overflows_is_not_told_to_ship_in_bfloat16() -> None:
    verdict = judge(replace(GOOD, dtype="bfloat16", nonfinite=1, largest=math.inf))

    assert "the first value that bfloat16 does not hold is inf in the graph" in verdict.headline
    assert verdict.next_step == "scale the weights in front of this module down"


def test_rows_that_are_no_numbers_without_a_known_value_say_so_much() -> None:
    verdict = judge(replace(GOOD, nonfinite=1, samples=1))

    assert verdict.headline == (
        "parity: the float16 graph of the vision tower gives NaN or Inf on 1 of 1 sample "
        f"({FILE}:10)"
    )


def test_noise_that_nothing_explains_names_its_limit_and_its_figures() -> None:
    verdict = judge(replace(GOOD, sqnr_db=12.0))

    assert verdict.headline == (
        "parity: the float16 graph of the vision tower gives numbers on 32 samples, SQNR 12.0 dB "
        "against FP16 in float32; rounding alone 60.0 dB, under 21.2 dB, which quantization and "
        f"rounding explain ({FILE}:10)"
    )
    assert verdict.brief == "vision SQNR 12.0 dB in float16, under 21.2"
    assert verdict.code == "parity.precision-lost"
    assert verdict.cause == "the graph loses more in float16 than its model does"
    assert verdict.next_step
    assert verdict.figures == {"vision_sqnr_float16_db": 12.0, "vision_sqnr_rounding_db": 60.0}


@pytest.mark.parametrize(
    ("sqnr_db", "rounding_db", "green"),
    [(60.0, 90.0, True), (59.9, 90.0, False), (math.inf, math.inf, True)],
)
def test_without_quantizers_sixty_db_are_enough(
    sqnr_db: float, rounding_db: float, green: bool
) -> None:
    """Nothing but rounding is left, which no two runs have alike."""
    tower = replace(GOOD, sqnr_db=sqnr_db, rounding_db=rounding_db)

    assert judge(tower, quantized_db=math.inf).passed is green


def test_figures_that_are_no_numbers_are_left_out() -> None:
    verdict = judge(replace(GOOD, sqnr_db=math.inf, rounding_db=math.inf))

    assert verdict.passed
    assert verdict.figures == {}


def test_what_rounding_explains_is_no_fault() -> None:
    """A gentle recipe in bfloat16: rounding costs more than quantization."""
    gentle = replace(GOOD, dtype="bfloat16", sqnr_db=39.0, rounding_db=40.0)

    assert judge(gentle, quantized_db=50.0).passed
    assert judge(replace(gentle, rounding_db=55.0), quantized_db=50.0).code == (
        "parity.precision-lost"
    )


@pytest.mark.parametrize(("sqnr_db", "green"), [(21.1, False), (21.3, True), (math.nan, False)])
def test_noise_may_grow_by_the_limit(sqnr_db: float, green: bool) -> None:
    assert judge(replace(GOOD, sqnr_db=sqnr_db)).passed is green


def test_fp16_that_loses_its_embeddings_by_rounding_is_red() -> None:
    verdict = judge(replace(GOOD, rounding_db=19.9))

    assert verdict.code == "parity.rounding"
    assert "FP16 itself loses the vision embeddings in float16" in verdict.headline
    assert f"rounding alone 19.9 dB, under 20 dB ({FILE}:10)" in verdict.headline
    assert verdict.cause
    assert verdict.next_step
    assert verdict.figures["vision_sqnr_rounding_db"] == 19.9
    assert judge(replace(GOOD, rounding_db=20.0, sqnr_db=20.0)).passed
    assert judge(replace(GOOD, rounding_db=math.nan)).code == "parity.rounding"


def test_without_pytorch_numbers_alone_are_judged() -> None:
    assert judge(replace(GOOD, sqnr_db=3.0), quantized_db=None).passed
    assert judge(replace(GOOD, nonfinite=1), quantized_db=None).code == "parity.nonfinite"


@SAME_EXAMPLES
@given(
    above=st.floats(-4, 4).filter(lambda above: abs(above) > 1e-6),
    quantized=st.floats(0, 55),
    rounding=st.floats(20, 80),
    samples=st.integers(1, 512),
)
def test_noise_is_held_to_that_of_quantization_and_rounding(
    above: float, quantized: float, rounding: float, samples: int
) -> None:
    explained = -10 * math.log10(10 ** (-quantized / 10) + 10 ** (-rounding / 10))
    spread = 2 * SPREAD_DB / math.sqrt(samples)
    tower = replace(
        GOOD, samples=samples, sqnr_db=explained - 1.0 - spread + above, rounding_db=rounding
    )
    verdict = judge(tower, quantized_db=quantized)

    assert verdict.passed is (above > 0)
