"""Coverage of what nobody asked for, and of what a suite excludes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from pytest_quantgate.evidence.verdict import Status
from tests.unit.gates.coverage_builders import AUDIT, fail, judge
from tests.unit.gates.gate_builders import (
    FILE,
    add,
    change_operations,
    change_quantizers,
    exclude,
    make_audit,
    make_module,
    make_operation,
    make_quantizer,
    make_waiver,
)


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
        ("**fq1**", ": did you mean '*fc1*'?"),
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
    assert verdict.evidence == (
        "text_model.layers.0.mlp.fc1.input_quantizer",
        "text_model.layers.0.mlp.fc1.weight_quantizer",
    )


@pytest.mark.parametrize(
    ("module", "kind"),
    [("vision_model.layers.0.layer_norm1", "norm"), ("text_model.token_embedding", "embedding")],
)
def test_norms_and_embeddings_may_be_excluded_though_they_are_never_meant(
    module: str, kind: str
) -> None:
    """A bare '*input_quantizer' switches them on: the exclusion may be what they are off by."""
    off = make_quantizer(f"{module}.input_quantizer", enabled=False, tower_calls={})
    audit = add(AUDIT, off)

    assert judge(exclude(audit, f"{module}.*")).passed
    unknown = replace(off, name="nowhere.norm.input_quantizer", module="nowhere.norm")
    stray = exclude(add(AUDIT, unknown), "nowhere.*")
    assert fail(stray).code == "coverage.exclude-without-effect"
    # A name that no quantizer has, beside one that there is.
    mixed = replace(stray, excludes=((stray.excludes[0][0], ("gone", unknown.name)),))
    assert fail(mixed).code == "coverage.exclude-without-effect"


def test_a_fused_module_without_quantizers_may_be_excluded() -> None:
    """The pattern names the module, and matches no quantizer; those behind it are looked at."""
    block = "vision_model.pool.attn"
    fused = make_operation(block, "mha", operands=("input",), quantized=False)
    audit = add(AUDIT, make_module(block, "mha"), fused)
    excluded = replace(audit, excludes=(("*pool.attn*", ()),))

    assert judge(excluded).passed
    behind = replace(excluded, excludes=(*excluded.excludes, ("zzz", ())))
    assert fail(behind).code == "coverage.exclude-matches-nothing"
    inside = make_quantizer(f"{block}.out_proj.input_quantizer", enabled=False, tower_calls={})
    kept = replace(add(audit, inside), excludes=(("*pool.attn*", (inside.name,)),))
    assert judge(kept).passed


def test_an_exclude_list_that_leaves_little_must_be_meant() -> None:
    """All is in order and a quarter is quantized: that is FP16 for the most part."""
    excluded = exclude(make_audit(blocks=4), "*layers.[012].mlp*")

    verdict = judge(excluded)

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "coverage.mostly-excluded")
    assert "exclude leaves 25.0 % of the weights that the recipe means" in verdict.headline
    assert verdict.next_step == (
        "exclude less, or say that so much is meant: coverage: {min_quantized: 25%}"
    )
    assert verdict.figures["excluded_weights"] == 6000
    # A suite that says so, and one that excludes less, pass.
    assert judge(excluded, min_quantized=Fraction(25, 100)).passed
    assert judge(exclude(make_audit(blocks=4), "*layers.[01].mlp*")).passed
    # What is not one of the gate's towers is not counted.
    assert judge(exclude(AUDIT, "text_model*"), towers=("vision",)).passed
    # Attention alone is not what a recipe for weights means.
    nothing = judge(exclude(AUDIT, "*mlp*"))
    assert (nothing.code, nothing.next_step) == ("coverage.mostly-excluded", "exclude less")
