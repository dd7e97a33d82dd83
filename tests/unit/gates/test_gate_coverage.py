"""The coverage gate: what was meant to be quantized is, really runs, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.audit import Audit
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.coverage import judge_coverage
from pytest_quantgate.report.terminal import BRIEF_LENGTH
from tests.unit.gates.gate_builders import (
    FILE,
    SAME_EXAMPLES,
    add,
    all_text,
    at,
    change_operations,
    change_quantizers,
    coverage_gate,
    exclude,
    make_audit,
    make_module,
    make_operation,
    make_quantizer,
    make_waiver,
    matching,
    switch_off,
)

TODAY = date(2030, 6, 30)
AUDIT = make_audit()
#: So deep that one layer of it is little: waivers name at most a quarter of a tower.
DEEP = make_audit(blocks=8)
PATCH = "vision_model.patch_embedding"


def judge(audit: Audit, *, today: date = TODAY, **gate: Any) -> Verdict:
    return judge_coverage(audit, gate=coverage_gate(**gate), today=today)


def parts_of(verdict: Verdict) -> list[str]:
    """Return the headlines of everything that is not green."""
    others = [line.removeprefix("FAIL: ") for line in verdict.evidence if line.startswith("FAIL: ")]
    return [verdict.headline, *others]


#: What the headline of each finding says.
FINDINGS = {
    "attention-bypassed": "ran on operands that no quantizer touched",
    "attention-missing": "attention is not quantized as expected",
    "attention-not-found": "no attention block was found",
    "blocks-left-out": "means only",
    "exclude-enabled": "are enabled all the same",
    "exclude-matches-nothing": "matches none of",
    "exclude-without-effect": "it excludes nothing",
    "layers-off": "intended layer quantizers are off",
    "never-ran": "never ran in their tower's forward",
    "no-layers": "the model has no layers to quantize",
    "no-quantizers": "the model holds no quantizer at all",
    "no-towers": "coverage.towers is empty",
    "nothing-ran": "nothing was seen running",
    "other-format": "have another format than the recipe's",
    "range-per-channel": "have a range per channel",
    "recipe-matches-nothing": "means no layer of this model",
    "tower-missing": "or its forward was not run",
    "tower-off": "tower is unquantized",
    "unasked": "enabled that nobody asked for",
    "waiver-expired": "expired on",
    "waiver-too-long": "days from today",
    "waiver-unused": "is not used",
    "waivers-too-wide": "the waivers name",
    "weights-escaped": "escaped the quantization",
}


def fail(audit: Audit, *, parts: int | None = 1, **gate: Any) -> Verdict:
    """Judge what must fail, with as many findings as expected: one cause is one finding."""
    verdict = judge(audit, **gate)
    assert verdict.status is Status.FAIL
    if parts is not None:
        assert len(parts_of(verdict)) == parts, all_text(verdict)
    kind, _, finding = verdict.code.partition(".")
    assert kind == verdict.gate == "coverage"
    assert FINDINGS[finding] in verdict.headline
    assert f"({FILE}:" in verdict.headline
    assert verdict.cause
    assert verdict.next_step
    return verdict


# -- green --------------------------------------------------------------------------------------


def test_whole_quantized_clip_passes_and_says_what_is_covered() -> None:
    verdict = judge(AUDIT)

    assert verdict.passed
    assert verdict.headline == (
        "coverage: 4 of 4 Linear, attention q k v output in 2+2 blocks quantized (E4M3) and run, "
        "100.0 % of matrix weights"
    )
    assert verdict.figures["quantizers"] == 24
    assert verdict.figures["quantizers_enabled"] == 24
    assert verdict.figures["quantizers_intended"] == 24
    assert verdict.figures["weights_covered_share"] == 1


def test_layers_alone_pass_where_no_attention_is_meant() -> None:
    layers = tuple(name for name in AUDIT.intended if "mlp" in name)
    audit = switch_off(replace(AUDIT, intended=layers), "*self_attn*")

    verdict = judge(audit)

    assert verdict.passed
    assert "attention" not in verdict.headline


def test_layers_that_are_not_meant_may_stay_as_they_are() -> None:
    """A bare weight whose quantizer the recipe leaves off has not escaped."""
    meant = tuple(name for name in AUDIT.intended if "layers.1.mlp" not in name)
    audit = switch_off(replace(AUDIT, intended=meant), "*layers.1.mlp*")

    verdict = judge(audit)

    assert verdict.passed
    assert "2 of 4 Linear" in verdict.headline
    assert verdict.figures["weights_covered_share"] == pytest.approx(0.5)


def test_formats_that_are_unknown_are_not_compared() -> None:
    assert judge(replace(change_quantizers(AUDIT, "*fc1*", format="INT8"), formats=())).passed


def test_without_weighted_operations_no_share_is_claimed() -> None:
    audit = change_operations(AUDIT, "*", weights_count=0)

    verdict = judge(audit)

    assert verdict.figures["weights_covered_share"] == 0


# -- empty expectations -------------------------------------------------------------------------


def test_model_without_layers_fails() -> None:
    verdict = fail(replace(AUDIT, modules=()), parts=None)

    assert verdict.headline == f"coverage: the model has no layers to quantize ({FILE}:10)"


def test_recipe_that_means_nothing_fails() -> None:
    off = switch_off(AUDIT, "*")

    verdict = fail(replace(off, intended=(), recipe_name="other-model"), parts=None)

    assert (
        "recipe 'other-model' means no layer of this model: its patterns match none of 13 modules"
    ) in verdict.headline
    assert verdict.cause == "patterns written for another model's names"


def test_forward_without_an_operation_fails() -> None:
    verdict = fail(replace(AUDIT, operations=()), parts=None)

    assert "no matrix operation ran in the audit's forward" in verdict.headline


def test_no_expected_tower_fails() -> None:
    verdict = fail(AUDIT, towers=())

    assert verdict.headline == (
        f"coverage: coverage.towers is empty: nothing is expected ({at('towers')})"
    )
    assert "vision, text" in verdict.next_step


def test_nothing_quantized_at_all_fails_once_a_tower() -> None:
    verdict = fail(switch_off(AUDIT, "*"), parts=None)

    text = all_text(verdict)
    assert "the whole vision tower is unquantized: 0 of 12 intended quantizers" in text
    assert "the whole text tower is unquantized: 0 of 12 intended quantizers" in text
    assert "layer quantizers are off" not in text
    assert "escaped" not in text
    assert verdict.figures["quantizers_enabled"] == 0
    assert verdict.figures["weights_covered_share"] == 0


# -- towers -------------------------------------------------------------------------------------


def test_tower_switched_off_by_the_recipe_is_named_with_its_pattern() -> None:
    """What ModelOpt's presets do to a vision tower: they say nothing while text is quantized."""
    verdict = fail(switch_off(AUDIT, "vision*", by="*vision*"), parts=None)

    assert verdict.headline == (
        "coverage: the whole vision tower is unquantized: 0 of 12 intended quantizers enabled, "
        f"switched off by pattern '*vision*' of the recipe ({FILE}:10)"
    )
    assert "ModelOpt says nothing as long as another tower is quantized" in verdict.cause
    assert verdict.next_step == (
        "use recipe: fp8-attention, or an inline quant_cfg without these patterns"
    )
    assert "text tower" not in all_text(verdict)


def test_tower_switched_off_by_two_patterns_names_both() -> None:
    audit = switch_off(AUDIT, "text*mlp*", by="*mlp*")
    audit = switch_off(audit, "text*self_attn*", by="*self_attn*")

    verdict = fail(audit, parts=None)

    assert (
        "switched off by pattern '*self_attn*' of the recipe and pattern '*mlp*' of the recipe"
    ) in verdict.headline


def test_tower_switched_off_by_the_exclude_list_is_not_excused_by_it() -> None:
    verdict = fail(exclude(AUDIT, "vision*"))

    assert "switched off by pattern 'vision*' of the exclude list" in verdict.headline
    assert verdict.next_step == (
        "remove the pattern, or leave vision out of coverage.towers if that is meant"
    )


def test_tower_that_was_disabled_afterwards_has_no_pattern_to_blame() -> None:
    verdict = fail(switch_off(AUDIT, "text*"), parts=None)

    assert "0 of 12 intended quantizers enabled (" in verdict.headline
    assert verdict.cause == "they were disabled after the quantization, or never switched on"


def test_tower_that_the_recipe_does_not_mean_fails() -> None:
    meant = tuple(name for name in AUDIT.intended if name.startswith("vision"))
    audit = switch_off(replace(AUDIT, intended=meant), "text*")

    verdict = fail(audit, parts=None)

    assert "the whole text tower is unquantized: 0 of 0 intended" in verdict.headline
    assert verdict.cause == "no pattern of recipe 'fp8-attention' matches the text tower"


def test_tower_that_is_not_expected_may_be_off() -> None:
    verdict = judge(switch_off(AUDIT, "text*"), towers=("vision",))

    assert verdict.passed
    assert "attention q k v output in 2+0 blocks" in verdict.headline


def test_tower_whose_forward_did_not_run_fails() -> None:
    audit = replace(
        AUDIT,
        towers=("vision",),
        modules=tuple(m for m in AUDIT.modules if m.tower == "vision"),
        quantizers=tuple(q for q in AUDIT.quantizers if q.tower == "vision"),
        operations=tuple(op for op in AUDIT.operations if op.tower == "vision"),
        intended=tuple(name for name in AUDIT.intended if name.startswith("vision")),
    )

    verdict = fail(audit, parts=2)

    assert verdict.headline == (
        f"coverage: the model has no text tower, or its forward was not run ({at('towers')})"
    )
    assert verdict.next_step == "leave text out of coverage.towers if that is meant"
    assert judge(audit, towers=("vision",)).passed


def test_no_waiver_covers_a_whole_tower() -> None:
    for audit in (switch_off(AUDIT, "text*"), exclude(AUDIT, "text*")):
        verdict = fail(audit, parts=2, waive=(make_waiver("text_model"),))

        assert verdict.code == "coverage.tower-off"
        assert "the waivers name 100.0 % of the text tower's quantizers" in all_text(verdict)


def test_tower_that_is_waived_in_part_fails() -> None:
    waiver = make_waiver("text_model.layers.0")

    verdict = fail(switch_off(AUDIT, "text*"), parts=None, waive=(waiver,))

    assert "the whole text tower is unquantized" in verdict.headline


# -- layers -------------------------------------------------------------------------------------


def test_layer_switched_off_by_a_pattern_of_the_recipe_fails() -> None:
    verdict = fail(switch_off(AUDIT, "*fc1.weight_quantizer", by="*weight*"))

    assert verdict.headline == (
        "coverage: 4 of 8 intended layer quantizers are off: switched off by '*weight*' "
        f"({FILE}:10)"
    )
    assert "off by '*weight*': vision_model.layers.{0-1}.mlp.fc1.weight_quantizer (2)" in (
        verdict.evidence
    )
    assert verdict.cause == "a pattern inside the recipe switches them off again"


def test_layer_that_is_off_without_a_pattern_fails() -> None:
    verdict = fail(switch_off(AUDIT, "vision*layers.0.mlp*"))

    assert verdict.headline == f"coverage: 2 of 8 intended layer quantizers are off ({FILE}:10)"
    assert "off: vision_model.layers.0.mlp.fc1.input_quantizer" in verdict.evidence
    assert "never switched on" in verdict.cause


def test_intended_quantizer_that_does_not_exist_fails() -> None:
    audit = replace(AUDIT, intended=(*AUDIT.intended, "vision_model.proj.input_quantizer"))

    verdict = fail(audit)

    assert "1 of 9 intended layer quantizers are off" in verdict.headline


def test_layer_of_another_format_fails() -> None:
    audit = change_quantizers(AUDIT, "*layers.0.mlp*", format="INT8")
    audit = change_quantizers(audit, "text*layers.1.mlp*weight*", format="INT4")

    verdict = fail(audit)

    assert verdict.headline == (
        "coverage: 5 quantizers have another format than the recipe's E4M3: 4 INT8, 1 INT4 "
        f"({FILE}:10)"
    )
    assert verdict.evidence[0] == "vision_model.layers.0.mlp.fc1.input_quantizer: INT8"


@pytest.mark.parametrize("name", ["MXFP8", "NVFP4", "NVFP4 (block 32)", "INT4"])
def test_a_format_in_blocks_is_expected_by_its_name(name: str) -> None:
    """MXFP8 has the elements of E4M3, and is another format."""
    audit = replace(change_quantizers(AUDIT, "*", format=name), formats=(name,))
    assert judge(audit).passed

    verdict = fail(change_quantizers(audit, "vision*layers.0.mlp*weight*", format="E4M3"))
    assert f"1 quantizers have another format than the recipe's {name}: 1 E4M3" in verdict.headline


def test_layer_that_never_ran_fails() -> None:
    """The weight went through a functional call: its quantizers are on and were never asked."""
    audit = change_quantizers(AUDIT, "vision*mlp*", tower_calls={})
    audit = change_operations(audit, "vision*mlp*", operands_quantized=(False, False))

    verdict = fail(audit)

    assert verdict.headline == (
        f"coverage: 4 enabled quantizers never ran in their tower's forward ({FILE}:10)"
    )
    assert "functional call" in verdict.cause


def test_layer_that_ran_in_the_other_tower_only_fails() -> None:
    audit = change_quantizers(AUDIT, "text*layers.0.mlp*", tower_calls={"vision": 9})

    assert "2 enabled quantizers never ran in their tower's forward" in fail(audit).headline


def test_layer_of_no_tower_may_run_in_any() -> None:
    name = "logits.input_quantizer"
    shared = make_quantizer(name, tower="other", tower_calls={"text": 1})
    audit = replace(
        add(AUDIT, make_module("logits", "linear", tower="other"), shared),
        intended=(*AUDIT.intended, name),
    )

    assert judge(audit).passed
    assert (
        "1 enabled quantizers never ran"
        in fail(change_quantizers(audit, name, tower_calls={})).headline
    )


def test_layers_wrong_in_several_ways_are_several_findings() -> None:
    audit = switch_off(AUDIT, "vision*layers.0.mlp*")
    audit = change_quantizers(audit, "vision*layers.1.mlp*", format="INT8")
    audit = change_quantizers(audit, "text*layers.1.mlp*", tower_calls={})

    assert len(parts_of(fail(audit, parts=3))) == 3


# -- attention ----------------------------------------------------------------------------------


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


# -- what nobody asked for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "kind", "own"),
    [
        ("vision_model.layers.0.layer_norm1", "norm", "input_quantizer"),
        ("text_model.token_embedding", "embedding", "weight_quantizer"),
    ],
)
def test_norms_and_embeddings_that_nobody_asked_for_fail(owner: str, kind: str, own: str) -> None:
    verdict = fail(add(AUDIT, make_quantizer(f"{owner}.{own}")))

    assert verdict.headline == (
        f"coverage: 1 quantizer enabled that nobody asked for: 1 on {kind} modules ({FILE}:10)"
    )
    assert verdict.evidence == (f"{kind}: {owner}.{own}",)
    assert "a bare '*input_quantizer' also switches on the inputs of LayerNorm" in verdict.cause
    assert f'exclude: ["*{owner.split(".")[-1]}.{own}"]' in verdict.next_step
    assert verdict.figures["unasked_quantizers"] == 1


def test_linear_that_was_switched_on_afterwards_fails() -> None:
    audit = replace(
        AUDIT, intended=tuple(name for name in AUDIT.intended if "layers.0.mlp" not in name)
    )

    verdict = fail(audit)

    assert "4 quantizers enabled that nobody asked for: 4 on linear modules" in verdict.headline
    assert verdict.cause == "they were switched on after the recipe was applied"


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("extra", "extra"), ("extra.input_quantizer", "extra.*input_quantizer")],
)
def test_quantizer_of_an_unknown_module_fails(name: str, pattern: str) -> None:
    verdict = fail(add(AUDIT, make_quantizer(name)))

    assert "1 on other modules" in verdict.headline
    assert f'exclude: ["{pattern}"]' in verdict.next_step


def test_unasked_quantizer_may_be_waived() -> None:
    audit = add(AUDIT, make_quantizer("vision_model.layers.0.layer_norm1.input_quantizer"))

    assert judge(audit, waive=(make_waiver("*layer_norm1*"),)).passed


def test_unasked_quantizer_that_is_off_does_not_matter() -> None:
    norm = make_quantizer("vision_model.layers.0.layer_norm1.input_quantizer", enabled=False)

    assert judge(add(AUDIT, norm)).passed


# -- exclude ------------------------------------------------------------------------------------


def test_excluded_layers_pass_and_are_listed() -> None:
    verdict = judge(exclude(AUDIT, "*layers.1.mlp.fc1*"))

    assert verdict.passed
    assert "excluded by '*layers.1.mlp.fc1*': vision_model.layers.1.mlp.fc1.input_quantizer" in (
        verdict.evidence
    )
    assert "2 of 4 Linear" in verdict.headline
    assert verdict.figures["quantizers_excluded"] == 4


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("*layer_norn1*", ": did you mean '*layer_norm1*'?"),
        ("token_embeding", ": did you mean '*token_embedding*'?"),
        ("zzzzzz", ""),
        ("*token_embedding*", ""),
    ],
)
def test_exclude_that_matches_nothing_fails_with_a_guess(pattern: str, hint: str) -> None:
    verdict = fail(replace(AUDIT, excludes=((pattern, ()),)))

    assert verdict.headline == (
        f"coverage: exclude {pattern!r} matches none of 24 quantizers{hint} ({FILE}:10)"
    )
    assert "shell patterns that match the whole quantizer name" in verdict.cause


def test_exclude_that_matches_only_idle_quantizers_fails() -> None:
    idle = [
        make_quantizer(f"vision_model.layers.{n}.mlp.fc1.output_quantizer", enabled=False)
        for n in range(2)
    ]

    audit = add(AUDIT, *idle)

    verdict = fail(exclude(audit, "*fc1.output_quantizer"))

    # The wider pattern also takes away the outputs of attention, which were on.
    assert judge(exclude(audit, "*output_quantizer")).passed
    assert verdict.headline == (
        "coverage: exclude '*fc1.output_quantizer' matches 2 quantizers that the recipe does not "
        f"switch on: it excludes nothing ({FILE}:10)"
    )
    assert verdict.evidence == ("vision_model.layers.{0-1}.mlp.fc1.output_quantizer (2)",)
    assert verdict.next_step == "remove the pattern"


def test_excluded_quantizer_that_was_switched_on_again_fails() -> None:
    audit = exclude(AUDIT, "*layers.0.mlp*")
    back = change_quantizers(audit, "text*layers.0.mlp*", enabled=True, tower_calls={"text": 1})
    back = change_operations(back, "text*layers.0.mlp*", operands_quantized=(True, True))

    verdict = fail(back)

    assert verdict.headline == (
        "coverage: exclude '*layers.0.mlp*' matched 4 quantizers, 2 of them are enabled all the "
        f"same ({FILE}:10)"
    )


# -- operations ---------------------------------------------------------------------------------


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


# -- waivers ------------------------------------------------------------------------------------


def test_waiver_holds_on_its_last_day_and_not_after() -> None:
    audit = switch_off(DEEP, "vision*layers.0.mlp*")
    waiver = make_waiver("*layers.0.mlp*", until=date(2030, 6, 30))

    assert judge(audit, today=date(2030, 6, 30), waive=(waiver,)).passed
    verdict = judge(audit, today=date(2030, 7, 1), waive=(waiver,))

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"coverage: the waiver for *layers.0.mlp* expired on 2030-06-30 ({at('until')})"
    )
    assert verdict.evidence == ("its reason was: no FP8 kernel yet",)


def test_waiver_that_covers_nothing_fails() -> None:
    verdict = fail(DEEP, waive=(make_waiver("*layers.0.mlp*"),))

    assert verdict.code == "coverage.waiver-unused"
    assert verdict.headline == (
        "coverage: the waiver for *layers.0.mlp* is not used: nothing that it names is uncovered "
        f"({FILE}:10)"
    )
    assert verdict.next_step == "remove the waiver"


def test_each_waiver_must_be_used() -> None:
    audit = switch_off(DEEP, "vision*layers.0.mlp*")
    used, idle = make_waiver("vision_model.layers.0.mlp"), make_waiver("text_model.layers.0.mlp")

    assert judge(audit, waive=(used,)).passed
    assert "text_model.layers.0.mlp is not used" in fail(audit, waive=(used, idle)).headline


def test_layer_that_is_excluded_needs_no_waiver() -> None:
    audit = exclude(DEEP, "vision*layers.0.mlp*")

    assert "is not used" in fail(audit, waive=(make_waiver("*layers.0.mlp*"),)).headline


def test_waiver_covers_wrong_formats_and_layers_that_never_ran() -> None:
    audit = change_quantizers(DEEP, "vision*layers.0.mlp*", format="INT8")
    audit = change_quantizers(audit, "text*layers.0.mlp*", tower_calls={})

    assert judge(audit, waive=(make_waiver("*.layers.0.mlp"),)).passed


def test_waiver_for_a_block_does_not_cover_its_neighbour() -> None:
    audit = switch_off(DEEP, "vision*mlp*")

    verdict = fail(audit, waive=(make_waiver("vision_model.layers.0"),))

    assert "14 of 32 intended layer quantizers are off" in verdict.headline
    assert "layers.{1-7}" in all_text(verdict)
    assert "layers.0" not in all_text(verdict)


def test_waiver_stands_on_the_line_of_its_gate_with_what_it_names_and_may_name() -> None:
    audit = switch_off(DEEP, "vision*layers.0.mlp*")
    waiver = make_waiver("vision_model.layers.0.mlp", until=date(2030, 8, 30))

    verdict = judge(audit, waive=(waiver,))

    assert verdict.brief == "1 waiver until 2030-08-30, 12.5 % of at most 25 %; E4M3 on 93.8 %"
    assert len(verdict.brief) <= BRIEF_LENGTH
    assert verdict.headline.endswith(
        "; waived: 4.2 % of the vision tower's quantizers and 12.5 % of its matrix weights"
    )
    assert verdict.evidence == (
        "waived until 2030-08-30 (in 61 of at most 366 days): vision_model.layers.0.mlp "
        "(no FP8 kernel yet)",
    )
    assert verdict.figures["waivers"] == 1
    assert verdict.figures["waived_until"] == "2030-08-30"
    assert verdict.figures["waived_weights_share"] == 0.125


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        (["*"], "100.0 % of the vision tower's quantizers"),
        (["text*"], "100.0 % of the text tower's quantizers"),
        (["[a-z]*"], "100.0 % of the vision tower's quantizers"),
        (["*layers.[0-2]*"], "37.5 % of the vision tower's quantizers"),
        (["*input_quantizer"], "100.0 % of its matrix weights"),
        (["*.mlp.fc1"], "33.3 % of the vision tower's quantizers"),
        (["vision*.0.*", "vision*.1", "vision_model.layers.2"], "37.5 % of the vision tower's"),
    ],
)
def test_waivers_name_at_most_a_quarter_of_a_tower(patterns: list[str], named: str) -> None:
    """All of them together, and by what they name: one layer that is off is no blank cheque."""
    audit = switch_off(DEEP, "*layers.0.mlp*")
    waivers = [make_waiver(pattern) for pattern in patterns]

    verdict = judge(audit, waive=(make_waiver("*.0.mlp"), *waivers))
    found = next(line for line in parts_of(verdict) if "the waivers name" in line)

    assert verdict.status is Status.FAIL
    assert named in found
    assert ": at most 25 % (" in found
    assert f"({', '.join([f'{FILE}:10'] * (1 + len(waivers)))})" in found


@given(data=st.data(), blocks=st.integers(1, 12))
@SAME_EXAMPLES
def test_waiver_passes_up_to_a_quarter_of_the_weights(data: st.DataObject, blocks: int) -> None:
    audit = make_audit(blocks=blocks)
    waived = [f"text_model.layers.{n}.mlp" for n in range(data.draw(st.integers(1, blocks)))]
    for name in waived:
        audit = switch_off(audit, f"{name}.*")

    assert judge(audit, waive=(make_waiver(*waived),)).passed == (4 * len(waived) <= blocks)


@pytest.mark.parametrize(("days", "green"), [(366, True), (367, False), (2_900_000, False)])
def test_waiver_lasts_a_year_at_most(days: int, green: bool) -> None:
    audit = switch_off(DEEP, "vision*layers.0.mlp*")
    until = TODAY + timedelta(days=days)

    verdict = judge(audit, waive=(make_waiver("vision*.0.mlp", until=until),))

    assert verdict.passed == green
    if not green:
        assert verdict.code == "coverage.waiver-too-long"
        assert verdict.headline == (
            f"coverage: the waiver for vision*.0.mlp holds until {until}, {days} days from today: "
            f"at most 366 ({at('until')})"
        )
        assert verdict.next_step == "write until: 2031-07-01 or earlier, and decide anew then"


def test_model_without_any_quantizer_is_not_blamed_on_patterns() -> None:
    verdict = judge(replace(AUDIT, quantizers=(), intended=()))

    assert verdict.headline.startswith("coverage: the model holds no quantizer at all")
    assert "never quantized" in verdict.cause


def test_pattern_that_took_a_part_is_not_blamed_for_the_whole_tower() -> None:
    """One layer is excluded; something else switched off the rest of the tower."""
    audit = switch_off(exclude(AUDIT, "vision*layers.0.mlp*"), "vision*")

    verdict = judge(audit)

    assert "the whole vision tower is unquantized" in verdict.headline
    assert "switched off by" not in verdict.headline
    assert "disabled after the quantization" in verdict.cause
    assert "quantize again" in verdict.next_step


def deepen(audit: Audit, blocks: int) -> Audit:
    """Return an audit whose towers have so many more blocks, none of which the recipe means."""
    found = audit
    for block in range(2, 2 + blocks):
        for tower in ("vision", "text"):
            name = f"{tower}_model.layers.{block}.mlp.fc1.weight_quantizer"
            quantizer = make_quantizer(name, block=block, enabled=False, tower_calls={})
            found = add(found, replace(quantizer, tower_calls={}))
    return found


def test_recipe_of_a_shallower_model_is_red() -> None:
    """The patterns name the blocks of another model: most of this one is not meant at all."""
    verdict = fail(deepen(AUDIT, 3))

    assert verdict.figures["weights_left_out"] == 6
    assert verdict.headline.startswith(
        "coverage: recipe 'fp8-attention' means only 2 of 5 blocks of the vision tower and 2 of 5 "
        "blocks of the text tower: 6 weights are left out"
    )
    assert "vision_model.layers.{2-4}.mlp.fc1.weight_quantizer (3)" in verdict.evidence


def test_recipe_that_leaves_out_a_few_blocks_is_green() -> None:
    assert judge(deepen(AUDIT, 2)).passed


@pytest.mark.parametrize(
    ("pattern", "dynamic", "green"),
    [
        ("*input_quantizer", False, False),
        ("*input_quantizer", True, True),
        ("*weight*", False, True),
    ],
)
def test_static_range_per_channel_is_for_weights_alone(
    pattern: str, dynamic: bool, green: bool
) -> None:
    """No kernel multiplies by it: the accuracy is fine, and the engine runs in half precision."""
    audit = change_quantizers(AUDIT, pattern, granularity="per-channel", dynamic=dynamic)

    verdict = judge(audit) if green else fail(audit)

    assert verdict.passed == green
    if not green:
        assert "4 activation quantizers have a range per channel" in verdict.headline
        assert verdict.evidence[0] == "vision_model.layers.{0-1}.mlp.fc1.input_quantizer (2)"
        assert verdict.cause.startswith("a wrong axis")
        assert verdict.figures["per_channel_activations"] == 4


def test_static_range_per_channel_may_be_waived() -> None:
    audit = change_quantizers(DEEP, "vision*.0.*input_quantizer", granularity="per-channel")
    waiver = make_waiver("vision*.0.mlp*")

    assert judge(audit, waive=(waiver,)).passed
    elsewhere = change_quantizers(audit, "vision*.1.*input_quantizer", granularity="per-channel")
    assert judge(elsewhere, waive=(waiver,)).code == "coverage.range-per-channel"


def test_every_expected_tower_is_looked_at() -> None:
    """One is not there, and the other one is off."""
    audit = switch_off(replace(AUDIT, towers=("text",)), "*", by="*")

    verdict = judge(audit)

    codes = " ".join(parts_of(verdict))
    assert "the model has no vision tower" in codes
    assert "the whole text tower is unquantized" in codes


def test_a_block_after_one_that_is_waived_is_looked_at() -> None:
    audit = switch_off(DEEP, "vision*.0.*q_bmm*")
    waiver = make_waiver("vision*.0.self_attn*")
    assert judge(audit, waive=(waiver,)).passed

    verdict = judge(switch_off(audit, "vision*.5.*q_bmm*"), waive=(waiver,))

    assert verdict.code == "coverage.attention-missing"
    assert "q is off in 1 of 16 blocks" in verdict.headline
    assert verdict.evidence[0] == "q is off: vision_model.layers.5.self_attn"
    assert verdict.figures["attention_slots_missing"] == 1
