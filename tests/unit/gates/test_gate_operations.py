"""Coverage of operations: a weight that is used as it is has escaped."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.gates.coverage_builders import AUDIT, DEEP, PATCH, fail, judge
from tests.unit.gates.gate_builders import (
    FILE,
    add,
    change_operations,
    change_quantizers,
    make_module,
    make_operation,
    make_waiver,
    switch_off,
)


def test_fused_multihead_attention_escapes() -> None:
    """The fast path of nn.MultiheadAttention takes the weights and calls none of its modules."""
    block = "vision_model.layers.0.attn"
    audit = add(
        AUDIT,
        make_operation(block, "mha", operands=("input",), quantized=False, weights_count=4000),
    )

    verdict = fail(audit)

    assert verdict.headline == (
        "coverage: 50.0 % of the weights escaped the quantization: 1 fused calls of "
        f"nn.MultiheadAttention ({FILE}:10)"
    )
    assert verdict.evidence == (f"fused calls of nn.MultiheadAttention: {block}",)
    assert verdict.cause.startswith("ModelOpt has no quantized class of nn.MultiheadAttention")
    assert verdict.next_step == ('add exclude: ["*layers.*.attn*"], where it may stay in FP16')
    assert verdict.figures["escaped_weights"] == 4000


def test_multihead_attention_module_must_have_the_wanted_slots() -> None:
    audit = add(AUDIT, make_module("vision_model.layers.0.attn", "mha"))

    assert "q has no quantizer in 1 of 5 blocks" in fail(audit).headline


def test_functional_call_with_a_weight_escapes() -> None:
    audit = add(
        AUDIT,
        make_operation("", "linear", quantized=False, tower="other"),
        make_operation(
            "vision_model.pool", "matmul", operands=("a", "b"), quantized=False, weights_count=500
        ),
    )

    verdict = fail(audit)

    assert (
        "27.3 % of the weights escaped the quantization: 1 linear calls on unquantized operands, "
        "1 matmul calls on unquantized operands"
    ) in verdict.headline
    assert "linear calls on unquantized operands: (the model itself)" in verdict.evidence
    assert "matmul calls on unquantized operands: vision_model.pool" in verdict.evidence
    assert verdict.cause.startswith("a function was called with the weight")
    assert verdict.next_step.startswith("replace the call by a module")


def test_call_around_a_module_whose_quantizer_runs_elsewhere_escapes() -> None:
    audit = add(AUDIT, make_operation("vision_model.layers.0.mlp.fc1", quantized=False))

    assert "1 linear calls on unquantized operands" in fail(audit).headline


def test_operation_counts_by_its_weight_not_by_its_input() -> None:
    audit = add(AUDIT, make_operation(PATCH, operands_quantized=(True, False)))

    assert "escaped" in fail(audit).headline


def test_matmul_without_weights_does_not_escape() -> None:
    audit = add(AUDIT, make_operation("vision_model.layers.0.self_attn", "matmul", quantized=False))

    assert judge(audit).passed


def test_operation_without_a_named_weight_counts_by_any_operand() -> None:
    audit = add(
        AUDIT,
        make_operation(
            PATCH, operands=("a", "b"), operands_quantized=(False, True), weights_count=10
        ),
    )

    assert judge(audit).passed


def test_operation_of_a_tower_that_is_not_expected_may_escape() -> None:
    audit = add(AUDIT, make_operation("text_model.pool", quantized=False))

    assert judge(audit, towers=("vision",)).passed
    assert "escaped" in fail(audit).headline


def test_escaped_weight_may_be_waived() -> None:
    audit = add(DEEP, make_operation(PATCH, quantized=False))

    assert judge(audit, waive=(make_waiver(PATCH),)).passed


def test_what_is_red_in_a_layer_is_no_second_finding() -> None:
    """Of a weight whose quantizer is off or never ran; behind it is looked on."""
    for spoiled in (
        switch_off(AUDIT, "vision*.0.mlp*"),
        change_operations(
            change_quantizers(AUDIT, "vision*.0.mlp*", tower_calls={}),
            "vision*.0.mlp*",
            operands_quantized=(False, False),
        ),
    ):
        assert fail(spoiled).code in ("coverage.layers-off", "coverage.never-ran")
    around = change_operations(AUDIT, "*.mlp.fc1", operands_quantized=(False, False))
    assert fail(around).figures["escaped_weights"] == 4000
    idle_input = change_quantizers(around, "*.input_quantizer", tower_calls={})
    assert "weights-escaped" in str(fail(idle_input, parts=2).other_codes)


def test_attention_calls_with_weights_are_judged_by_their_operands() -> None:
    block = "vision_model.layers.0.self_attn"
    call = make_operation(block, "attention", weights_count=500)
    assert judge(add(AUDIT, call)).passed
    bare = make_operation(block, "attention", weights_count=500, quantized=False)
    assert fail(add(AUDIT, bare)).code == "coverage.attention-bypassed"


def test_what_runs_behind_an_operation_of_another_tower_is_looked_at() -> None:
    stray = make_operation("text_model.pool", quantized=False)
    escaped = make_operation("vision_model.pool", quantized=False)
    found = replace(AUDIT, operations=(stray, escaped, *AUDIT.operations))
    assert fail(found, towers=("vision",)).figures["escaped_weights"] == 1000
