"""Coverage of layers: off, of another format, never run, of another depth, along a wrong axis."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_quantgate.evidence.audit import Audit, Declared
from tests.unit.gates.coverage_builders import AUDIT, DEEP, fail, judge, parts_of
from tests.unit.gates.gate_builders import (
    FILE,
    add,
    change_operations,
    change_quantizers,
    make_module,
    make_quantizer,
    make_waiver,
    switch_off,
)


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
    assert verdict.evidence[0] == "vision_model.layers.{0-1}.mlp.fc1.input_quantizer (2)"


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


def test_static_range_per_channel_of_no_product_is_nobodys() -> None:
    other = make_quantizer("vision_model.pool.quantizer", granularity="per-channel")
    audit = add(AUDIT, other)
    assert judge(replace(audit, intended=(*audit.intended, other.name))).passed


def test_static_range_per_channel_may_be_waived() -> None:
    audit = change_quantizers(DEEP, "vision*.0.*input_quantizer", granularity="per-channel")
    waiver = make_waiver("vision*.0.mlp*")

    assert judge(audit, waive=(waiver,)).passed
    elsewhere = change_quantizers(audit, "vision*.1.*input_quantizer", granularity="per-channel")
    assert judge(elsewhere, waive=(waiver,)).code == "coverage.range-per-channel"


def test_layers_of_no_tower_are_looked_at_though_all_of_them_are_off() -> None:
    name = "logits.weight_quantizer"
    off = make_quantizer(name, tower="other", enabled=False, tower_calls={})
    audit = replace(add(AUDIT, off), intended=(*AUDIT.intended, name))

    verdict = fail(audit)
    assert verdict.code == "coverage.layers-off"
    assert verdict.evidence == (f"off: {name}",)


def test_depth_is_that_of_blocks_that_are_alike() -> None:
    """A layer that only some blocks have, or parts that a block has several of, are as they are."""
    few = deepen(AUDIT, 3)
    assert fail(few, towers=("text",)).headline.startswith(
        "coverage: recipe 'fp8-attention' means only 2 of 5 blocks of the text tower: 3 weights"
    )
    parts = [
        make_quantizer(f"vision_model.layers.0.experts.{n}.weight_quantizer", enabled=False)
        for n in range(4)
    ]
    meant = make_quantizer("vision_model.layers.0.experts.9.weight_quantizer")
    audit = add(AUDIT, *parts, meant)
    assert judge(replace(audit, intended=(*audit.intended, meant.name))).passed
    other = [
        make_quantizer(f"vision_model.layers.{n}.gate.weight_quantizer", enabled=False)
        for n in range(9)
    ]
    assert judge(add(AUDIT, *other)).passed
    inputs = [
        make_quantizer(f"vision_model.layers.{n}.mlp.fc1.input_quantizer", enabled=False)
        for n in range(2, 9)
    ]
    assert judge(add(AUDIT, *inputs)).passed
    stem = [make_quantizer(f"vision_model.stem.{n}.weight_quantizer", block=None) for n in range(9)]
    stem = [replace(q, enabled=n == 0) for n, q in enumerate(stem)]
    assert judge(replace(add(AUDIT, *stem), intended=(*AUDIT.intended, stem[0].name))).passed


def test_blocks_that_are_left_out_may_be_waived_or_on() -> None:
    shallow = deepen(AUDIT, 5)
    waiver = make_waiver("vision_model.layers.3", "text_model.layers.3")
    on = change_quantizers(shallow, "*layers.5*", enabled=True)

    assert fail(shallow).figures["weights_left_out"] == 10
    assert fail(shallow, waive=(waiver,)).figures["weights_left_out"] == 8
    assert fail(on, parts=None).figures["weights_left_out"] == 8
    one = replace(shallow, intended=tuple(n for n in AUDIT.intended if "layers.1" not in n))
    assert "means only 1 of 7 blocks" in str(parts_of(fail(one, parts=None)))


def test_ranges_that_are_taken_otherwise_than_declared_fail() -> None:
    as_declared = Declared(format="E4M3", granularity="per-tensor", dynamic=False)
    audit = replace(AUDIT, declared=dict.fromkeys(AUDIT.intended, as_declared))

    assert judge(audit).passed
    verdict = fail(change_quantizers(audit, "*layers.0.mlp*input*", dynamic=True))

    assert verdict.headline == (
        "coverage: 2 quantizers take their ranges in another way than the recipe says: "
        "vision_model.layers.0.mlp.fc1.input_quantizer is dynamic per-tensor, and static "
        f"per-tensor is declared ({FILE}:10)"
    )
    assert verdict.figures["other_scaling"] == 2
