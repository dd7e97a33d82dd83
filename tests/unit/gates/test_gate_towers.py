"""Coverage: an expectation that is empty, and towers that are off, are red."""

from __future__ import annotations

import re
from dataclasses import replace

from tests.unit.gates.coverage_builders import AUDIT, fail, judge, parts_of
from tests.unit.gates.gate_builders import (
    FILE,
    all_text,
    at,
    exclude,
    make_waiver,
    switch_off,
)


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


def test_a_tower_of_which_only_a_projection_is_quantized_is_off() -> None:
    """A pattern that takes all blocks of a tower leaves what stands in front of and behind them."""
    outer = tuple(
        replace(q, block=None) if q.name.startswith("vision_model.layers.1") else q
        for q in AUDIT.quantizers
    )
    audit = exclude(replace(AUDIT, quantizers=outer), "vision_model.layers.0*")

    verdict = fail(audit, parts=None)

    assert verdict.code == "coverage.tower-off"
    assert re.search(
        r"whole vision tower is unquantized but for \d quantizers outside its blocks: 0 of \d+ ",
        verdict.headline,
    )
    assert "by pattern 'vision_model.layers.0*' of the exclude list" in verdict.headline


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


def test_model_without_any_quantizer_is_not_blamed_on_patterns() -> None:
    verdict = fail(replace(AUDIT, quantizers=(), intended=()), parts=None)

    assert verdict.code == "coverage.no-quantizers"
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


def test_every_expected_tower_is_looked_at() -> None:
    """One is not there, and the other one is off."""
    audit = switch_off(replace(AUDIT, towers=("text",)), "*", by="*")

    verdict = judge(audit)

    codes = " ".join(parts_of(verdict))
    assert "the model has no vision tower" in codes
    assert "the whole text tower is unquantized" in codes
