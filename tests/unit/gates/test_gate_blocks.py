"""Blocks, the scales of their scales, and SVDQuant's branches: what does nothing is red."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pytest_quantgate.evidence.audit import LowRankBranch
from pytest_quantgate.gates.blocks import branch_figures, describe_branches, judge_block_formats
from tests.unit.gates.gate_builders import FILE, WHERE, change_quantizers, make_audit

LAYER = "vision_model.layers.0.mlp.fc1"


def find_codes(**changes: Any) -> list[str]:
    return [found.code for found in judge_block_formats(make_audit(**changes), where=WHERE)]


def make_branch(module: str = LAYER, *, share: float | None = 0.25, rank: int = 4) -> LowRankBranch:
    return LowRankBranch(module=module, tower="vision", rank=rank, output_share=share)


def test_a_format_for_scales_that_is_passed_over_is_named() -> None:
    audit = change_quantizers(make_audit(), f"{LAYER}.*", scales_ignored=True, format="INT4")
    (found,) = judge_block_formats(audit, where=WHERE)

    assert found.code == "coverage.scales-ignored"
    assert found.headline.startswith(
        "coverage: double quantization does nothing in 2 quantizers (INT4): the format"
    )
    assert found.figures == {"scales_ignored": 2}
    off = change_quantizers(audit, f"{LAYER}.*", enabled=False)
    assert not list(judge_block_formats(off, where=WHERE))


@pytest.mark.parametrize(("values", "said"), [(24, True), (32, False), (0, False)])
def test_a_row_that_ends_within_a_block_is_red(values: int, said: bool) -> None:
    audit = change_quantizers(
        make_audit(), f"{LAYER}.weight_quantizer", format="NVFP4", row_values=values
    )
    found = list(judge_block_formats(audit, where=WHERE))

    assert [one.code for one in found] == ["coverage.block-partial"] * said
    if said:
        assert (
            f"{LAYER}.weight_quantizer has 24 values a row, blocks of NVFP4 have 16 ({FILE}:10)"
        ) in found[0].headline
        assert found[0].figures == {"partial_blocks": 1}


def test_formats_without_blocks_have_no_rows_to_cut() -> None:
    audit = change_quantizers(make_audit(), "*", row_values=7)
    assert not list(judge_block_formats(audit, where=WHERE))


def test_every_layer_of_svdquant_has_a_branch() -> None:
    layers = [q.module for q in make_audit().quantizers if q.slot == "weight"]
    branches = tuple(map(make_branch, layers))

    assert find_codes(algorithm="svdquant", branches=branches) == []
    assert find_codes(algorithm="svdquant", branches=branches[1:]) == ["coverage.branch-missing"]
    assert find_codes(algorithm="max", branches=()) == []
    (found,) = judge_block_formats(
        make_audit(algorithm="svdquant", branches=branches[2:]), where=WHERE
    )
    assert "2 quantized layers of SVDQuant have no low-rank branch" in found.headline
    assert found.figures == {"branches_missing": 2}


@pytest.mark.parametrize(
    ("share", "codes"),
    [(0.0, ["coverage.branch-idle"]), (math.nan, ["coverage.branch-idle"]), (1e-9, []), (None, [])],
)
def test_a_branch_that_adds_nothing_or_no_number_is_idle(
    share: float | None, codes: list[str]
) -> None:
    assert find_codes(branches=(make_branch(share=share), make_branch("b"))) == codes


def test_the_branches_that_ran_are_described() -> None:
    branches = (
        make_branch("a", share=0.5, rank=8),
        make_branch("b", share=None, rank=2),
        make_branch("c", share=0.125),
        make_branch("d", share=math.nan),
        make_branch("e", share=0.25),
    )

    assert describe_branches(branches) == (
        "3 low-rank branches of rank 4, 8, from 12.5 % of the output (c) to 50.0 % (a)"
    )
    assert branch_figures(branches) == {
        "branches": 3,
        "branch_share_low": 0.125,
        "branch_share_high": 0.5,
    }
    assert describe_branches(branches[:1]).startswith("1 low-rank branch of rank 8, from 50.0 %")
    assert describe_branches(branches[1:2]) == ""
    assert branch_figures(branches[1:2]) == {}
