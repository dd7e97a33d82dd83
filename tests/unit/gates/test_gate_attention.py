"""Coverage of attention: every block has each wanted slot, and its calls go through them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_quantgate.gates.fused import name_fused
from tests.unit.gates.coverage_builders import AUDIT, DEEP, fail, judge
from tests.unit.gates.gate_builders import (
    add,
    at,
    change_operations,
    change_quantizers,
    make_module,
    make_operation,
    make_quantizer,
    make_waiver,
    matching,
    switch_off,
)


def test_slot_that_is_off_in_one_block_fails_and_names_the_block() -> None:
    verdict = fail(switch_off(AUDIT, "vision*layers.1.*.k_bmm_quantizer"))

    assert verdict.headline == (
        "coverage: attention is not quantized as expected: k is off in 1 of 4 blocks "
        f"({at('attention')})"
    )
    assert verdict.evidence == ("k is off: vision_model.layers.1.self_attn",)
    assert verdict.next_step == (
        "use recipe: fp8-attention, or leave the slots out of coverage.attention"
    )
    assert verdict.figures["attention_slots_missing"] == 1


def test_slot_that_is_missing_in_one_block_fails() -> None:
    gone = matching(AUDIT, "text*layers.0*v_bmm*")[0]
    audit = replace(
        AUDIT,
        quantizers=tuple(q for q in AUDIT.quantizers if q.name != gone),
        intended=tuple(name for name in AUDIT.intended if name != gone),
    )
    audit = change_operations(
        audit, "text*layers.0.self_attn", operands_quantized=(True, True, False)
    )

    verdict = fail(audit, parts=2)

    assert "v has no quantizer in 1 of 4 blocks" in verdict.headline
    assert "the attention class was not replaced" in verdict.cause
    assert verdict.next_step == "use recipe: fp8-attention"


def test_block_without_any_quantizer_is_found_because_it_ran() -> None:
    """The attention class of one tower was not replaced: no quantizer tells of its blocks."""
    audit = replace(
        AUDIT,
        quantizers=tuple(q for q in AUDIT.quantizers if q.module not in _text_attention()),
        intended=tuple(
            name for name in AUDIT.intended if name.rpartition(".")[0] not in _text_attention()
        ),
    )

    verdict = fail(audit)

    assert "q has no quantizer in 2 of 4 blocks" in verdict.headline
    assert "q has no quantizer: text_model.layers.{0-1}.self_attn (2)" in verdict.evidence
    assert verdict.figures["attention_slots_missing"] == 8


@pytest.mark.parametrize(("amax_count", "words"), [(1, "with an amax"), (0, "without an amax")])
def test_slot_that_is_never_called_fails_with_or_without_a_range(
    amax_count: int, words: str
) -> None:
    audit = change_quantizers(AUDIT, "vision*q_bmm*", tower_calls={}, amax_count=amax_count)
    audit = change_operations(audit, "vision*self_attn", operands_quantized=(False, True, True))

    verdict = fail(audit)

    assert f"q is enabled {words} and never called in 2 of 4 blocks" in verdict.headline
    assert "sees sdpa, not eager or flex" in verdict.cause
    assert "attn_implementation: sdpa" in verdict.next_step


def test_slot_of_another_format_fails() -> None:
    verdict = fail(change_quantizers(AUDIT, "*layers.0*v_bmm*", format="INT8"))

    assert "v has format INT8 in 2 of 4 blocks" in verdict.headline


def test_suite_may_ask_for_more_than_the_recipe_means() -> None:
    verdict = fail(AUDIT, attention=("q", "softmax"))

    assert "softmax has no quantizer in 4 of 4 blocks" in verdict.headline


def test_suite_may_ask_for_no_attention() -> None:
    audit = switch_off(AUDIT, "*self_attn*")

    assert judge(audit, attention=()).passed
    assert fail(audit).headline.startswith("coverage: attention is not quantized")


def test_slot_that_the_suite_asks_for_is_not_unasked() -> None:
    softmax = [
        make_quantizer(f"{tower}_model.layers.{n}.self_attn.softmax_quantizer", slot="softmax")
        for tower in ("vision", "text")
        for n in range(2)
    ]
    audit = add(AUDIT, *softmax)

    assert judge(audit, attention=("q", "k", "v", "softmax", "output")).passed
    assert "4 quantizers enabled that nobody asked for" in fail(audit).headline


def test_attention_that_is_a_bare_function_is_found_missing() -> None:
    """No attention module ran in the text tower, although its quantizers are expected."""
    audit = replace(
        AUDIT,
        modules=tuple(m for m in AUDIT.modules if m.name not in _text_attention()),
        operations=tuple(op for op in AUDIT.operations if op.module not in _text_attention()),
    )

    verdict = fail(audit)

    assert verdict.headline == (
        "coverage: no attention block was found in the text tower, although q, k, v, output "
        f"quantizers are expected ({at('attention')})"
    )


def _text_attention() -> set[str]:
    return {m.name for m in AUDIT.modules if m.kind == "attention" and m.tower == "text"}


def test_attention_module_that_never_runs_is_no_block() -> None:
    """Such as a wrapper class whose name ends in Attention around the one that computes."""
    audit = add(AUDIT, make_module("vision_model.layers.0.attention", "attention"))

    assert judge(audit).passed


def test_slot_may_be_waived_by_block() -> None:
    audit = switch_off(DEEP, "vision*layers.1.*.k_bmm_quantizer")

    assert judge(audit, waive=(make_waiver("vision_model.layers.1.self_attn"),)).passed


@pytest.mark.parametrize("pattern", ["*.self_attn.softmax", "*softmax*"])
def test_slot_without_a_quantizer_is_waived_by_its_name(pattern: str) -> None:
    verdict = judge(AUDIT, attention=("softmax",), waive=(make_waiver(pattern),))

    assert verdict.passed
    assert verdict.figures["waived_quantizers_share"] == 0.0


def test_slot_without_a_quantizer_is_waived_by_its_module() -> None:
    gone = "vision_model.layers.3.self_attn.q_bmm_quantizer"
    audit = replace(
        DEEP,
        quantizers=tuple(q for q in DEEP.quantizers if q.name != gone),
        intended=tuple(name for name in DEEP.intended if name != gone),
    )

    assert "q has no quantizer in 1 of 16 blocks" in fail(audit).headline
    assert judge(audit, waive=(make_waiver("vision_model.layers.3.self_attn"),)).passed


def test_attention_call_around_its_quantizers_fails() -> None:
    audit = change_operations(AUDIT, "text*self_attn", operands_quantized=(True, False, True))

    verdict = fail(audit)

    assert verdict.headline == (
        f"coverage: 2 attention calls ran on operands that no quantizer touched ({at('attention')})"
    )
    assert verdict.evidence == ("text_model.layers.{0-1}.self_attn (2)",)
    assert verdict.cause == "the call goes around the quantizers of its block"


def test_operands_that_nobody_wants_quantized_may_be_bare() -> None:
    audit = change_operations(AUDIT, "*self_attn", operands_quantized=(True, True, False))

    assert judge(audit, attention=("q", "k")).passed


def test_attention_call_around_its_quantizers_may_be_waived() -> None:
    name = "text_model.layers.2.self_attn"
    audit = change_operations(DEEP, name, operands_quantized=(False, False, False))

    assert judge(audit, waive=(make_waiver(name),)).passed


def test_a_block_after_one_that_is_waived_is_looked_at() -> None:
    audit = switch_off(DEEP, "vision*.0.*q_bmm*")
    waiver = make_waiver("vision*.0.self_attn*")
    assert judge(audit, waive=(waiver,)).passed

    verdict = judge(switch_off(audit, "vision*.5.*q_bmm*"), waive=(waiver,))

    assert verdict.code == "coverage.attention-missing"
    assert "q is off in 1 of 16 blocks" in verdict.headline
    assert verdict.evidence[0] == "q is off: vision_model.layers.5.self_attn"
    assert verdict.figures["attention_slots_missing"] == 1


def test_attention_outside_of_the_towers_counts_too() -> None:
    audit = add(
        AUDIT,
        make_module("fusion.attn", "attention", tower="other"),
        make_operation("fusion.attn", "matmul", tower="other"),
    )
    assert fail(audit).evidence[0] == "q has no quantizer: fusion.attn"
    bare = make_operation("fusion.attn", "attention", tower="other", quantized=False)
    found = fail(add(AUDIT, bare))
    assert (found.code, found.evidence) == ("coverage.attention-bypassed", ("fusion.attn",))
    # What no suite expects may be as it is, and a layer is no attention.
    text = switch_off(AUDIT, "vision*")
    assert judge(text, towers=("text",)).passed


@pytest.mark.parametrize("function", ["attention", "mha", "matmul"])
def test_a_module_that_computes_attention_is_a_block_whatever_it_calls(function: str) -> None:
    block = "vision_model.pool.attn"
    ran = make_operation(block, function, weights_count=0)
    assert "in 1 of 5 blocks" in fail(add(AUDIT, make_module(block, "attention"), ran)).headline
    assert judge(add(AUDIT, make_module("vision_model.idle", "attention"))).passed
    known = add(AUDIT, make_module(block, "attention"), make_quantizer(f"{block}.q_bmm_quantizer"))
    known = replace(known, intended=(*known.intended, f"{block}.q_bmm_quantizer"))
    assert "k has no quantizer in 1 of 5 blocks" in fail(known).headline


def test_fused_attention_is_advised_to_be_excluded() -> None:
    block = "vision_model.pool.attn"
    fused = make_operation(block, "mha", operands=("input",), quantized=False, weights_count=0)
    verdict = fail(add(AUDIT, make_module(block, "mha"), fused))

    assert verdict.code == "coverage.attention-missing"
    assert verdict.cause.startswith("ModelOpt has no quantized class of nn.MultiheadAttention")
    assert verdict.next_step == 'add exclude: ["*pool.attn*"], where it may stay in FP16'
    other = fail(switch_off(add(AUDIT, make_module(block, "mha"), fused), "vision*.0.*q_bmm*"))
    assert "exclude" not in other.next_step


def test_softmax_that_is_asked_for_and_never_called_may_be_left_out() -> None:
    softmax = [
        make_quantizer(f"{q.module}.softmax_quantizer", slot="softmax", tower_calls={})
        for q in AUDIT.quantizers
        if q.slot == "q"
    ]
    audit = add(AUDIT, *softmax)
    audit = replace(audit, intended=(*audit.intended, *(q.name for q in softmax)))
    words = ", and leave softmax out of coverage.attention"

    asked = fail(audit, attention=("q", "softmax"))
    assert asked.next_step.endswith(words)
    assert asked.cause.startswith("the probabilities of attention are never handed")
    assert not fail(audit).next_step.endswith(words)
    idle = change_quantizers(AUDIT, "*q_bmm*", tower_calls={})
    assert not fail(idle, attention=("q",)).next_step.endswith(words)


def test_slot_that_is_there_is_waived_by_its_own_name() -> None:
    audit = switch_off(DEEP, "vision*.0.*q_bmm*")
    assert judge(audit, waive=(make_waiver("vision*.0.*.q_bmm_quantizer"),)).passed


def test_a_fused_module_whose_tail_names_others_too_is_named_whole() -> None:
    others = ["b.3.mlp.attn.input_quantizer"]

    assert name_fused("a.3.mlp.attn") == "*mlp.attn*"
    assert name_fused("a.3.mlp.attn", others=others) == "a.*.mlp.attn*"
    assert name_fused("proj") == "proj*"
