"""The coverage gate's part on blocks and on SVDQuant: what acts, and what a kernel takes."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Figure, Verdict
from pytest_quantgate.formats.table import find_format
from pytest_quantgate.gates.deciding import fail
from pytest_quantgate.text.words import count, list_groups, listed, percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_quantgate.evidence.audit import Audit, LowRankBranch, Quantizer
    from pytest_quantgate.suite.where import Where

GATE = "coverage"
_fail = partial(fail, GATE)

#: The algorithm that gives every quantized Linear layer a branch.
SVDQUANT = "svdquant"


def judge_block_formats(audit: Audit, *, where: Where) -> Iterator[Verdict]:
    """Yield a FAIL for each thing that is wrong with blocks, their scales or low-rank branches."""
    enabled = [q for q in audit.quantizers if q.enabled]
    yield from _judge_ignored_scales([q for q in enabled if q.scales_ignored], where=where)
    yield from _judge_partial_blocks([q for q in enabled if _ends_in_part(q)], where=where)
    yield from _judge_branches(audit, where=where)


def _judge_ignored_scales(found: Sequence[Quantizer], *, where: Where) -> Iterator[Verdict]:
    if not found:
        return
    formats = listed(tuple(dict.fromkeys(q.format for q in found)))
    yield _fail(
        "scales-ignored",
        f"double quantization does nothing in {count(len(found), 'quantizer')} "
        f"({formats}): the format that is declared for the scales of blocks is passed over "
        f"({where})",
        evidence=list_groups(q.name for q in found),
        cause="ModelOpt rounds the scales of blocks in NVFP4 and in Microscaling formats alone, "
        "and ignores scale_bits and scale_block_sizes in silence elsewhere",
        next_step="remove scale_bits and scale_block_sizes, or use recipe: nvfp4",
        figures={"scales_ignored": len(found)},
    )


def _ends_in_part(quantizer: Quantizer) -> bool:
    kind = find_format(quantizer.format)
    size = kind.block_size if kind is not None and kind.scale_bits is not None else None
    return bool(size and quantizer.row_values % size)


def _judge_partial_blocks(found: Sequence[Quantizer], *, where: Where) -> Iterator[Verdict]:
    if not found:
        return
    first = found[0]
    kind = find_format(first.format)
    assert kind is not None
    yield _fail(
        "block-partial",
        f"the rows of {count(len(found), 'quantizer')} are no whole blocks: "
        f"{first.name} has {first.row_values} values a row, blocks of {kind.name} have "
        f"{kind.block_size} ({where})",
        evidence=list_groups(q.name for q in found),
        cause="fake quantization fills the last block with zeros, and a kernel that multiplies in "
        "blocks does not: it takes a number of inputs that is a multiple of the block",
        next_step="exclude these layers, or give them a format without blocks, such as E4M3",
        figures={"partial_blocks": len(found)},
    )


def _judge_branches(audit: Audit, *, where: Where) -> Iterator[Verdict]:
    """SVDQuant's branches are there, and each adds something to its layer's output."""
    if audit.algorithm == SVDQUANT:
        there = {branch.module for branch in audit.branches}
        without = [
            q.module
            for q in audit.quantizers
            if q.slot == "weight" and q.enabled and q.own_calls and q.module not in there
        ]
        if without:
            yield _fail(
                "branch-missing",
                f"{count(len(without), 'quantized layer')} of SVDQuant "
                f"{'has' if len(without) == 1 else 'have'} no low-rank branch ({where})",
                evidence=list_groups(without),
                cause="the branch was lost: the weight is what is left after it was taken out, so "
                "the layer computes something else",
                next_step="quantize again, and restore with ModelOpt's state: the branch is in "
                "buffers of the weight quantizer",
                figures={"branches_missing": len(without)},
            )
    idle = [
        branch.module
        for branch in audit.branches
        if branch.output_share is not None and not branch.output_share > 0  # NaN, too
    ]
    if idle:
        yield _fail(
            "branch-idle",
            f"the low-rank branch of {count(len(idle), 'layer')} adds nothing to "
            f"the output ({where})",
            evidence=list_groups(idle),
            cause="its values are zero, or the layer's forward goes around it, and the weight is "
            "what is left after the branch was taken out",
            next_step="quantize again, and look for what touches the model after that",
            figures={"branches_idle": len(idle)},
        )


def describe_branches(branches: Sequence[LowRankBranch]) -> str:
    """Return what the branches that ran add to their layers, '' for none: `26 low-rank branches`"""
    shares = _list_shares(branches)
    if not shares:
        return ""
    (low, first), (high, last) = shares[0], shares[-1]
    ranks = listed([str(rank) for rank in sorted({branch.rank for _, branch in shares})])
    return (
        f"{count(len(shares), 'low-rank branch', plural='low-rank branches')} of rank {ranks}, "
        f"from {percent(low, 1)} of the output ({first.module}) to {percent(high, 1)} "
        f"({last.module})"
    )


def branch_figures(branches: Sequence[LowRankBranch]) -> dict[str, Figure]:
    """Return the least and the largest share of a layer's output that a branch gives."""
    shares = [share for share, _ in _list_shares(branches)]
    if not shares:
        return {}
    return {
        "branches": len(shares),
        "branch_share_low": shares[0],
        "branch_share_high": shares[-1],
    }


def _list_shares(branches: Sequence[LowRankBranch]) -> list[tuple[float, LowRankBranch]]:
    """Return the branches that ran and what each adds, the least first."""
    ran = [
        (branch.output_share, branch)
        for branch in branches
        if branch.output_share is not None and math.isfinite(branch.output_share)
    ]
    return sorted(ran, key=lambda item: item[0])
