"""Variants of the bench of false alarms compute the same function, and are the same each time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.false_alarms import KINDS, Judgement, rebatch, render_page
from pytest_quantgate.encoders.encoder import Batch, Encoder

CHANGES = {kind: change for kind, (change, _) in KINDS.items() if change is not None}


def changed(fp16: Encoder, change: Any, *, seed: int) -> Encoder:
    module = copy.deepcopy(fp16.module)
    with torch.no_grad():
        change(module, torch.Generator().manual_seed(seed))
    return replace(fp16, module=module)


@pytest.mark.parametrize("kind", CHANGES)
def test_variant_computes_the_same_function_from_other_weights(
    kind: str, tiny_fp16: Encoder, make_pairs: Callable[..., list[Batch]]
) -> None:
    (pairs, _) = make_pairs()
    variant = changed(tiny_fp16, CHANGES[kind], seed=3)
    again = changed(tiny_fp16, CHANGES[kind], seed=3)

    for encode, value in (
        ("encode_image", pairs.pixel_values),
        ("encode_text", pairs.tokens),
    ):
        before, after = (getattr(model, encode)(value) for model in (tiny_fp16, variant))
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    weights = [model.module.state_dict() for model in (tiny_fp16, variant, again)]
    assert any(not torch.equal(weights[0][name], value) for name, value in weights[1].items())
    assert all(torch.equal(weights[2][name], value) for name, value in weights[1].items())


def test_pairs_are_cut_anew_without_losing_any(
    make_pairs: Callable[..., list[Batch]],
) -> None:
    before = make_pairs(batches=3)
    after = list(rebatch(before, size=5))

    assert [len(batch.ids) for batch in after] == [5, 5, 2]
    assert [name for b in after for name in b.ids] == [name for b in before for name in b.ids]
    assert torch.equal(
        torch.cat([b.pixel_values for b in after]),
        torch.cat([b.pixel_values for b in before]),
    )


def test_page_counts_what_is_red_by_kind() -> None:
    kinds = list(KINDS)
    judgements = [
        Judgement(
            model="reference",
            number=number,
            kind=kinds[number % 2],
            recipe="fp8-attention",
            red={"parity": "FAIL parity.block-differs: off"} if number == 1 else {},
            figures={"worst_clipped_share": number / 100},
            seconds=60.0,
        )
        for number in range(4)
    ]

    page = render_page(judgements)

    assert "4 variants that compute the same function as their original: **1 red**" in page
    assert f"| {kinds[0]} | 0 of 2 red |" in page
    assert f"| {kinds[1]} | 1 of 2 red |" in page
    assert "| `worst_clipped_share` | 0.03 |" in page
    assert f"- reference 1, {kinds[1]}, fp8-attention: FAIL parity.block-differs: off" in page
