"""The coverage gate: what a whole-quantized CLIP passes with, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_quantgate.evidence.audit import LowRankBranch
from tests.unit.gates.coverage_builders import AUDIT, DEEP, judge
from tests.unit.gates.gate_builders import (
    add,
    change_operations,
    change_quantizers,
    make_module,
    make_operation,
    make_waiver,
    switch_off,
)


def test_whole_quantized_clip_passes_and_says_what_is_covered() -> None:
    verdict = judge(AUDIT)

    assert verdict.passed
    assert verdict.headline == (
        "coverage: 4 of 4 Linear, attention q k v output in 2+2 blocks quantized (E4M3) and run, "
        "100.0 % of matrix weights"
    )
    assert (
        verdict.brief == "E4M3 on 100.0 % of matrix weights, attention q k v output in 2+2 blocks"
    )
    assert verdict.evidence == ()
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
    assert verdict.brief == "E4M3 on 100.0 % of matrix weights"


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


def test_a_pass_lists_what_adds_to_layers_and_what_is_excluded() -> None:
    pool, token = "vision_model.pool.attn", "vision_model.query"
    audit = add(
        AUDIT,
        make_module(pool, "mha"),
        make_operation(pool, "mha", operands=("input",), quantized=False),
        make_operation(token, "matmul", operands=("a", "b"), quantized=False, weights_count=9),
    )
    branch = LowRankBranch(module="a.fc", tower="vision", rank=4, output_share=0.25)
    verdict = judge(replace(audit, excludes=(("*pool*", ()), ("*query*", ())), branches=(branch,)))

    assert verdict.passed
    assert verdict.gate == "coverage"
    assert verdict.evidence == (
        "1 low-rank branch of rank 4, from 25.0 % of the output (a.fc) to 25.0 % (a.fc)",
        f"excluded, nn.MultiheadAttention: {pool}",
        f"excluded, a Parameter: {token}",
    )
    assert verdict.figures["branches"] == 1


def test_a_brief_names_one_format_beside_a_waiver() -> None:
    audit = switch_off(replace(DEEP, formats=("E4M3", "INT8")), "vision*layers.0.mlp*")
    verdict = judge(audit, waive=(make_waiver("vision*layers.0.mlp*"),))
    assert "E4M3 and 1 more on 93.8 %" in verdict.brief
