"""The parity gate: the exported towers compute what PyTorch does, as far as that is stable."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pytest_quantgate.evidence.audit import Tower
from pytest_quantgate.evidence.parity import BlockParity, Parity, ShippedTower, TowerParity
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.parity import ParityGate, judge_parity, point_to_export
from pytest_quantgate.gates.shipped import SPREAD_DB
from pytest_quantgate.suite.where import Where
from tests.unit.gates.gate_builders import FILE, SAME_EXAMPLES

LINES = {"max_error": 11, "max_sqnr_change": 12}
WHERE = Where(file=FILE, line=10, keys=LINES)
RUNTIME = "ONNX Runtime 1.22.0"


def make_tower(tower: Tower, **changes: Any) -> TowerParity:
    """Return a tower that agrees with PyTorch up to rounding."""
    values: dict[str, Any] = {
        "tower": tower,
        "samples": 64,
        "error": 2e-4,
        "floor": 3e-5,
        "quantization_error": 0.07,
        "sqnr_torch_db": 23.1,
        "sqnr_onnx_db": 23.2,
        "nonfinite": 0,
        "optimization": "basic",
        **changes,
    }
    return TowerParity(**values)


def judge(
    *,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    towers: tuple[TowerParity, ...] | None = None,
    **gate: Any,
) -> Verdict:
    """Judge two towers that agree; `vision` and `text` change one of them."""
    if towers is None:
        towers = (make_tower("vision", **(vision or {})), make_tower("text", **(text or {})))
    return judge_parity(
        Parity(towers=towers, runtime=RUNTIME), gate=ParityGate(**{"where": WHERE, **gate})
    )


# -- by reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(2e-4, Status.NOT_MEASURED, ""), (0.3, Status.FAIL, "parity.embeddings-differ")],
)
def test_what_no_runtime_computed_is_never_green(error: float, status: Status, code: str) -> None:
    towers = (make_tower("vision", error=error, high_error=error), make_tower("text"))
    parity = Parity(
        towers=towers,
        runtime="the reference evaluator of ONNX 1.21.0",
        by_reference="ONNX Runtime 1.24.4 has no kernel for QuantizeLinear(23)",
    )

    verdict = judge_parity(parity, gate=ParityGate(where=WHERE))

    assert (verdict.status, verdict.code) == (status, code)
    assert "the reference evaluator of ONNX 1.21.0" in verdict.headline
    if status is Status.NOT_MEASURED:
        assert verdict.headline.startswith(
            "parity: ONNX Runtime 1.24.4 has no kernel for QuantizeLinear(23); by the standard it "
            "computes what PyTorch does: vision error 2.00e-04"
        )
        assert verdict.figures["vision_parity_error"] == error


# -- what agrees ----------------------------------------------------------------------------------


def test_towers_that_agree_pass_and_say_by_how_much() -> None:
    verdict = judge()

    assert verdict.passed
    assert verdict.headline == (
        "parity: vision error 2.00e-04 (the model moves 3.00e-05 by itself), SQNR against FP16 "
        "23.2 dB, PyTorch 23.1 dB; text error 2.00e-04 (the model moves 3.00e-05 by itself), SQNR "
        f"against FP16 23.2 dB, PyTorch 23.1 dB on 64 samples in {RUNTIME}"
    )
    assert verdict.brief == "vision error 2.0e-04, SQNR 23.2 dB; text error 2.0e-04, SQNR 23.2 dB"
    assert verdict.evidence == (
        f"parity: vision embeddings in {RUNTIME} (optimization basic) differ from PyTorch's by "
        f"2.00e-04, within 1.00e-03, max_error ({FILE}:11)",
        "parity: vision SQNR against FP16 is 23.2 dB exported and 23.1 dB in PyTorch, within "
        f"max_sqnr_change 1 dB ({FILE}:12)",
        f"parity: text embeddings in {RUNTIME} (optimization basic) differ from PyTorch's by "
        f"2.00e-04, within 1.00e-03, max_error ({FILE}:11)",
        "parity: text SQNR against FP16 is 23.2 dB exported and 23.1 dB in PyTorch, within "
        f"max_sqnr_change 1 dB ({FILE}:12)",
        *(
            f"the {tower} tower was compared as a whole alone: its graph could not be cut between "
            f"blocks"
            for tower in ("vision", "text")
        ),
    )
    assert verdict.figures == {
        "vision_parity_error": 2e-4,
        "vision_parity_floor": 3e-5,
        "vision_sqnr_onnx_db": 23.2,
        "text_parity_error": 2e-4,
        "text_parity_floor": 3e-5,
        "text_sqnr_onnx_db": 23.2,
    }
    assert (verdict.cause, verdict.next_step) == ("", "")


def test_five_samples_are_compared() -> None:
    assert "on 5 samples in" in judge(vision={"samples": 5}, text={"samples": 5}).headline


# -- the error ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_error_over_the_limit_fails_in_each_tower(tower: str) -> None:
    verdict = judge(**{tower: {"error": 0.0011}})  # type: ignore[arg-type]

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"parity: {tower} embeddings in {RUNTIME} (optimization basic) differ from PyTorch's by "
        f"1.10e-03, over 1.00e-03, max_error ({FILE}:11)"
    )
    assert verdict.brief == f"{tower} differs by 1.1e-03, over 1.0e-03"
    assert "computes something else than the model that was approved" in verdict.cause
    assert verdict.next_step.startswith("export the approved variant again")
    assert verdict.code == "parity.embeddings-differ"
    assert verdict.figures[f"{tower}_parity_error"] == 0.0011


def test_error_at_the_limit_passes() -> None:
    assert judge(vision={"error": 0.001}).passed
    assert not judge(vision={"error": math.nextafter(0.001, 1)}).passed
    assert judge(vision={"error": 0.05}, max_error=Fraction(1, 20)).passed


def test_error_within_what_the_model_moves_by_itself_passes_over_max_error() -> None:
    verdict = judge(vision={"error": 0.018, "floor": 0.01})

    assert verdict.passed
    assert (
        f"parity: vision embeddings in {RUNTIME} (optimization basic) differ from PyTorch's by "
        "1.80e-02, within 2.00e-02, 2 times the 1.00e-02 that the model moves by itself "
        f"({FILE}:11)"
    ) in verdict.evidence


def test_error_over_what_the_model_moves_by_itself_fails() -> None:
    verdict = judge(text={"error": 0.0201, "floor": 0.01})

    assert verdict.status is Status.FAIL
    assert "over 2.00e-02, 2 times the 1.00e-02 that the model moves by itself" in verdict.headline


@pytest.mark.parametrize("floor", [0.0, math.nan, math.inf])
def test_model_that_says_nothing_of_itself_is_held_to_max_error(floor: float) -> None:
    assert judge(vision={"floor": floor}).passed
    verdict = judge(vision={"floor": floor, "error": 0.5})

    assert verdict.status is Status.FAIL
    assert "over 1.00e-03, max_error" in verdict.headline


# -- the noise against FP16 -----------------------------------------------------------------------


def test_graph_that_is_quantized_less_is_told_from_one_with_more_noise() -> None:
    verdict = judge(vision={"sqnr_onnx_db": 26.0})

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        "parity: vision SQNR against FP16 is 26.0 dB exported and 23.1 dB in PyTorch, over "
        f"max_sqnr_change 1 dB ({FILE}:12)"
    )
    assert verdict.brief == "vision SQNR 26.0 dB exported, 23.1 dB in PyTorch"
    assert verdict.cause == "the graph is quantized less than the model"
    assert verdict.code == "parity.noise-changed"
    assert verdict.next_step.startswith("export the approved variant again")

    verdict = judge(vision={"sqnr_onnx_db": 20.0})

    assert verdict.status is Status.FAIL
    assert verdict.cause == "the graph adds noise that the model does not have"


def test_noise_is_judged_although_the_error_is_within_the_floor() -> None:
    verdict = judge(text={"error": 0.1, "floor": 0.06, "sqnr_onnx_db": 19.0})

    assert verdict.status is Status.FAIL
    assert "text SQNR against FP16 is 19.0 dB exported" in verdict.headline


@pytest.mark.parametrize(("change", "passes"), [(2.0, True), (-2.0, True), (2.125, False)])
def test_change_at_the_limit_passes(change: float, passes: bool) -> None:
    verdict = judge(
        vision={"sqnr_torch_db": 23.0, "sqnr_onnx_db": 23.0 + change}, max_sqnr_change_db=2.0
    )

    assert verdict.passed is passes


def test_the_same_noise_is_within_no_change_at_all() -> None:
    same = {"sqnr_torch_db": 23.0, "sqnr_onnx_db": 23.0}

    assert judge(vision=same, text=same, max_sqnr_change_db=0.0).passed


def test_graph_without_any_quantizer_has_no_noise() -> None:
    verdict = judge(vision={"sqnr_onnx_db": math.inf})

    assert verdict.status is Status.FAIL
    assert verdict.cause == "the graph is quantized less than the model"
    assert "vision_sqnr_onnx_db" not in verdict.figures


@pytest.mark.parametrize(
    ("onnx", "torch", "passes"),
    [
        (math.inf, math.inf, True),
        (95.0, math.inf, True),
        (120.0, 90.0, True),
        (80.5, 90.0, True),
        (90.0, 80.5, True),
        (80.0, 90.0, False),
        (90.0, 80.0, False),
        (math.nan, 23.0, False),
        (23.0, math.nan, False),
        (100.0, math.nan, False),
        (math.nan, 100.0, False),
        (math.nan, math.nan, False),
        (-math.inf, 23.0, False),
    ],
)
def test_only_rounding_is_left_where_nothing_is_quantized(
    onnx: float, torch: float, passes: bool
) -> None:
    verdict = judge(vision={"sqnr_onnx_db": onnx, "sqnr_torch_db": torch})

    assert verdict.passed is passes


# -- results that are no result -------------------------------------------------------------------


@pytest.mark.parametrize("error", [math.nan, math.inf, 2e-4])
def test_nan_in_the_exported_tower_fails_under_any_limit(error: float) -> None:
    verdict = judge(
        text={"nonfinite": 3, "error": error, "floor": 1e9},
        max_error=Fraction(1),
        max_sqnr_change_db=200.0,
    )

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"parity: the exported text tower gives NaN or Inf on 3 of 64 samples ({FILE}:10)"
    )
    assert verdict.code == "parity.nonfinite"
    assert verdict.cause.startswith("a scale or a weight of the graph is not finite")
    assert verdict.next_step.startswith("export the approved variant again")


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_pytorch_model_without_numbers_is_not_blamed_on_the_export(error: float) -> None:
    verdict = judge(vision={"error": error})

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        "parity: the vision tower of the PyTorch model gives NaN, Inf or nothing but zeros: there "
        f"is nothing to compare with ({FILE}:10)"
    )
    assert verdict.next_step == "look at the fidelity gate"
    assert verdict.code == "parity.nothing-to-compare"


@pytest.mark.parametrize(
    ("towers", "words"),
    [
        ((make_tower("vision"),), "the text tower was not compared"),
        ((make_tower("text"),), "the vision tower was not compared"),
        ((), "the vision and text tower was not compared"),
        (
            (make_tower("vision", samples=0), make_tower("text")),
            "the vision tower was not compared",
        ),
    ],
)
def test_tower_that_was_not_compared_fails(towers: tuple[TowerParity, ...], words: str) -> None:
    verdict = judge(towers=towers)

    assert verdict.status is Status.FAIL
    assert verdict.headline == f"parity: {words} ({FILE}:10)"


def test_faults_of_both_towers_are_shown() -> None:
    verdict = judge(vision={"error": 0.5, "sqnr_onnx_db": 3.0}, text={"nonfinite": 64})

    assert "vision embeddings" in verdict.headline
    assert any("vision SQNR" in line for line in verdict.evidence)
    assert any("text tower gives NaN or Inf on 64 of 64" in line for line in verdict.evidence)


# -- whatever was measured ------------------------------------------------------------------------

measures = st.floats(0, 2)


@SAME_EXAMPLES
@given(error=measures, floor=measures, limit=st.fractions(0, 1, max_denominator=10**6))
@example(error=1e-3, floor=5e-4, limit=Fraction(1, 1000))
def test_error_is_held_to_the_wider_of_two_limits(
    error: float, floor: float, limit: Fraction
) -> None:
    verdict = judge(vision={"error": error, "floor": floor}, text={"error": 0.0}, max_error=limit)
    line = verdict.evidence[0] if verdict.passed else verdict.headline

    assert verdict.passed is (error <= float(limit) or error <= 2 * floor)
    assert ("times the" in line) is (2 * floor > float(limit))


@SAME_EXAMPLES
@given(
    onnx=st.floats(-50, 80),
    torch=st.floats(-50, 80),
    limit=st.floats(0, 50),
)
def test_change_of_noise_is_symmetric(onnx: float, torch: float, limit: float) -> None:
    assume(onnx != torch)
    noise = ((onnx, torch), (torch, onnx))
    both = ({"sqnr_onnx_db": left, "sqnr_torch_db": right} for left, right in noise)
    there, back = (judge(vision=one, text=one, max_sqnr_change_db=limit) for one in both)

    assert there.passed is back.passed is (abs(onnx - torch) <= limit)
    assert (there.cause == back.cause) is there.passed


# -- a few samples, and most of them --------------------------------------------------------------


def test_a_few_samples_that_a_tie_threw_far_off_say_nothing() -> None:
    """Those are in the quantile that the nudged ones have too."""
    assert judge(text={"error": 1e-6, "high_error": 0.04, "high_floor": 0.021}).passed


def test_one_sample_in_ten_that_is_off_further_than_any_nudged_one_fails() -> None:
    verdict = judge(text={"error": 1e-6, "high_error": 0.04, "high_floor": 0.019})

    assert verdict.code == "parity.embeddings-differ"
    assert (
        "differ from PyTorch's by 4.00e-02, over 3.80e-02, 2 times the 1.90e-02 that the model "
        "moves by itself"
    ) in verdict.headline


def test_most_samples_decide_before_a_few() -> None:
    verdict = judge(text={"error": 0.01, "high_error": 0.04, "high_floor": 0.019})

    assert "differ from PyTorch's by 1.00e-02, over 1.00e-03, max_error" in verdict.headline


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({"error": 1e-3, "high_error": 0.04, "high_floor": 0.019}, False),
        ({"error": 1e-4, "high_error": 0.04, "high_floor": 0.02}, True),
    ],
)
def test_both_quantiles_may_be_just_at_their_limits(changes: dict[str, Any], good: bool) -> None:
    assert judge(text=changes).passed is good


def test_towers_in_the_format_that_ships_are_part_of_it() -> None:
    """Held to the noise of their own tower in PyTorch, by the limit of this gate."""
    shipped = ShippedTower(
        tower="vision",
        dtype="float16",
        samples=32,
        nonfinite=0,
        first="",
        largest=0.0,
        sqnr_db=23.1 - 3.1 - 2 * SPREAD_DB / math.sqrt(32),
        rounding_db=60.0,
    )
    parity = Parity(
        towers=(make_tower("vision"), make_tower("text", sqnr_torch_db=3.0, sqnr_onnx_db=3.0)),
        runtime=RUNTIME,
    )

    def verdict(limit_db: float) -> Verdict:
        gate = ParityGate(where=WHERE, max_sqnr_change_db=limit_db)
        return judge_parity(parity, gate=gate, shipped=[shipped])

    assert (verdict(3.0).code, verdict(3.2).passed) == ("parity.precision-lost", True)
    assert f"({FILE}:10)" in verdict(3.0).headline


# -- what to do -----------------------------------------------------------------------------------


def test_next_step_is_the_finding_of_the_export_gate_if_it_has_one() -> None:
    red = judge(vision={"error": 0.5})
    found = Verdict(
        gate="export", status=Status.FAIL, headline="export: 3 pairs lost", next_step="put them in"
    )

    pointed = point_to_export(red, export=found)

    assert pointed.next_step == "the export gate names what differs: 3 pairs lost; put them in"
    assert replace(pointed, next_step=red.next_step) == red
    assert point_to_export(red, export=replace(found, status=Status.PASS)) is red
    without = point_to_export(red, export=replace(found, next_step=""))
    assert without.next_step.endswith("3 pairs lost; mend that first")


# -- block by block -------------------------------------------------------------------------------


def make_blocks(*pairs: tuple[float, float]) -> tuple[BlockParity, ...]:
    return tuple(
        BlockParity(module=f"vision_model.layers.{i}", error=error, floor=floor)
        for i, (error, floor) in enumerate(pairs)
    )


def test_a_block_that_differs_is_named_although_the_whole_agrees() -> None:
    blocks = make_blocks((2e-4, 1e-5), (3e-2, 2e-3), (5e-2, 1e-3))

    verdict = judge(vision={"blocks": blocks})

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        "parity: 2 of 3 vision blocks compute something else than PyTorch's from the same hidden "
        "state: vision_model.layers.1 differs by 3.00e-02 of what it adds, over 4.00e-03 "
        f"({FILE}:11)"
    )
    assert "vision_model.layers.2: 5.00e-02, limit 2.00e-03" in verdict.evidence
    assert verdict.figures["vision_worst_block_error"] == 5e-2
    assert verdict.brief == "vision blocks that differ: 2 of 3"
    assert verdict.cause.startswith("a quantizer, a scale, a weight or an operator of these blocks")


@pytest.mark.parametrize(
    ("error", "floor", "good"),
    [
        (1e-3, 0.0, True),
        (1.001e-3, 0.0, False),
        (2e-2, 1e-2, True),
        (2.001e-2, 1e-2, False),
        (1e-2, math.inf, False),
        (math.nan, 1e-2, False),
        (math.inf, 1e-2, False),
    ],
)
def test_a_block_may_differ_by_twice_what_it_moves_by_itself(
    error: float, floor: float, good: bool
) -> None:
    assert judge(vision={"blocks": make_blocks((error, floor))}).passed == good


def test_a_block_that_is_off_in_one_sample_of_ten_is_named() -> None:
    off = BlockParity(
        module="vision_model.layers.1", error=1e-7, floor=1e-7, high_error=0.02, high_floor=1e-3
    )

    verdict = judge(vision={"blocks": (*make_blocks((2e-4, 1e-5)), off)})

    assert verdict.code == "parity.block-differs"
    assert "vision_model.layers.1 differs by 2.00e-02 of what it adds, over 2.00e-03" in (
        verdict.headline
    )
    assert "vision_model.layers.1" in verdict.next_step


def test_blocks_that_agree_are_evidence() -> None:
    verdict = judge(vision={"blocks": make_blocks((2e-4, 1e-5), (3e-4, 2e-3))})

    assert verdict.passed
    assert (
        "parity: each of 2 vision blocks, given PyTorch's hidden state, agrees within its own "
        f"limit, worst vision_model.layers.1 3.00e-04 ({FILE}:11)"
    ) in verdict.evidence
    assert verdict.figures["vision_worst_block_error"] == 3e-4


@pytest.mark.parametrize(
    ("error", "blocks", "floor", "good"),
    [
        (6.9e-2, True, 1.5e-2, True),  # chaos: no block differs
        (6.9e-2, False, 1.5e-2, False),
        (7.1e-2, True, 1.5e-2, False),
        (6.9e-2, True, 0.0, True),  # no nudge met the tie in a token that all samples have
        (6.9e-2, False, 0.0, False),
    ],
)
def test_chaos_of_the_whole_is_no_fault_where_every_block_agrees(
    error: float, blocks: bool, floor: float, good: bool
) -> None:
    compared = make_blocks((2e-4, 1e-5), (3e-4, 2e-3)) if blocks else ()

    verdict = judge(vision={"error": error, "floor": floor, "blocks": compared})

    assert verdict.passed == good
