"""The coverage gate: what a whole-quantized CLIP passes with, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.gates.coverage_builders import AUDIT, judge
from tests.unit.gates.gate_builders import (
    change_operations,
    change_quantizers,
    switch_off,
)


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
