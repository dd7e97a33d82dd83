"""Blocks, the scales of their scales, and SVDQuant's branches: what does nothing is red."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from pytest_quantgate.evidence.audit import Audit, LowRankBranch
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.blocks import branch_figures, describe_branches, judge_block_formats
from tests.unit.gates.coverage_builders import fail
from tests.unit.gates.gate_builders import FILE, WHERE, change_quantizers, make_audit

LAYER = "vision_model.layers.0.mlp.fc1"
#: More blocks than evidence has lines for, each in a group of its own.
MANY = 12


def find(audit: Audit) -> list[Verdict]:
    return list(judge_block_formats(audit, where=WHERE))


def spread(audit: Audit) -> Audit:
    """Return an audit whose layers have names that no pattern joins."""
    names = {
        module.name: f"part_{letter}.fc"
        for module, letter in zip(
            [m for m in audit.modules if m.kind == "linear"],
            "abcdefghijklmnopqrstuvwx",
            strict=True,
        )
    }
    return replace(
        audit,
        quantizers=tuple(
            replace(q, module=names[q.module], name=q.name.replace(q.module, names[q.module]))
            if q.module in names
            else q
            for q in audit.quantizers
        ),
    )


def make_branch(module: str = LAYER, *, share: float | None = 0.25, rank: int = 4) -> LowRankBranch:
    return LowRankBranch(module=module, tower="vision", rank=rank, output_share=share)


def branches_of(audit: Audit, **of: Any) -> tuple[LowRankBranch, ...]:
    layers = [q.module for q in audit.quantizers if q.slot == "weight"]
    return tuple(make_branch(layer, **of) for layer in layers)


def test_a_format_for_scales_that_is_passed_over_is_named() -> None:
    audit = change_quantizers(make_audit(), f"{LAYER}.*", scales_ignored=True)
    found = fail(audit)

    assert found.code == "coverage.scales-ignored"
    assert found.headline.startswith(
        "coverage: double quantization does nothing in 2 quantizers (E4M3): the format"
    )
    assert found.evidence == (f"{LAYER}.input_quantizer", f"{LAYER}.weight_quantizer")
    assert found.figures["scales_ignored"] == 2
    assert not find(change_quantizers(audit, f"{LAYER}.*", enabled=False))


@pytest.mark.parametrize(("values", "said"), [(24, True), (32, False), (0, False)])
def test_a_row_that_ends_within_a_block_is_red(values: int, said: bool) -> None:
    changes = {"format": "NVFP4", "row_values": values}
    audit = change_quantizers(make_audit(formats=("E4M3", "NVFP4")), f"{LAYER}.weight*", **changes)

    assert bool(find(audit)) is said
    if said:
        found = fail(audit)
        assert found.code == "coverage.block-partial"
        assert found.headline == (
            f"coverage: the rows of 1 quantizer are no whole blocks: {LAYER}.weight_quantizer has "
            f"24 values a row, blocks of NVFP4 have 16 ({FILE}:10)"
        )
        assert found.evidence == (f"{LAYER}.weight_quantizer",)
        assert found.figures["partial_blocks"] == 1


@pytest.mark.parametrize("name", ["E4M3", "INT4", "unknown(e9m9)"])
def test_formats_whose_blocks_need_no_whole_rows_are_not_asked(name: str) -> None:
    """Blocks of INT4 have no scale in a narrow type, and what nobody knows has no blocks."""
    assert not find(change_quantizers(make_audit(), "*", format=name, row_values=7))


def test_every_layer_of_svdquant_has_a_branch() -> None:
    audit = replace(make_audit(), algorithm="svdquant")
    branches = branches_of(audit)

    assert not find(replace(audit, branches=branches))
    assert not find(replace(audit, algorithm="max"))
    one, two = (fail(replace(audit, branches=branches[count:])) for count in (1, 2))
    assert one.code == "coverage.branch-missing"
    assert "1 quantized layer of SVDQuant has no low-rank branch" in one.headline
    assert one.evidence == (LAYER,)
    assert "2 quantized layers of SVDQuant have no low-rank branch" in two.headline
    assert two.figures["branches_missing"] == 2
    idle = change_quantizers(audit, f"{LAYER}.weight*", tower_calls={})
    assert not find(replace(idle, branches=branches[1:]))


@pytest.mark.parametrize(("share", "said"), [(0.0, True), (math.nan, True), (1e-9, False)])
def test_a_branch_that_adds_nothing_or_no_number_is_idle(share: float, said: bool) -> None:
    audit = replace(make_audit(), branches=(make_branch(share=share), make_branch("b", share=None)))

    assert bool(find(audit)) is said
    if said:
        found = fail(audit)
        assert found.code == "coverage.branch-idle"
        assert "the low-rank branch of 1 layer adds nothing to the output" in found.headline
        assert found.evidence == (LAYER,)
        assert found.figures["branches_idle"] == 1


def test_evidence_counts_groups_where_it_has_no_room() -> None:
    audit = spread(make_audit(blocks=MANY, algorithm="svdquant"))
    there = replace(audit, branches=branches_of(audit))

    for spoiled in (
        change_quantizers(there, "part*", scales_ignored=True),
        change_quantizers(there, "part*", format="NVFP4", row_values=24),
        audit,
        replace(there, branches=branches_of(audit, share=0.0)),
    ):
        (found,) = find(spoiled)
        assert re.fullmatch(r"\.\.\. and \d+ groups", found.evidence[-1])


def test_the_branches_that_ran_are_described() -> None:
    branches = (
        make_branch("a", share=0.5, rank=8),
        make_branch("b", share=None, rank=2),
        make_branch("c", share=0.125),
        make_branch("d", share=math.nan),
        make_branch("e", share=0.125, rank=8),
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
