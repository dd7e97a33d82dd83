"""Overflow: values that the number format which ships cannot hold.

A run on a CPU computes in FP32, so every other measurement of it is of a model in which nothing
overflows. One gate of a suite therefore answers for the values as well.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.formats.table import BFLOAT16, FLOAT16
from pytest_quantgate.text.words import count, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_quantgate.evidence.audit import LayerActivation
    from pytest_quantgate.suite.where import Where

#: The largest finite value of each format.
LARGEST = {kind.name: kind.largest for kind in (FLOAT16, BFLOAT16)}

#: So many layers are listed with their largest activation.
MOST_LAYERS = 8

#: Which gate answers, if the suite has it: the first of these.
ANSWERING = ("fidelity", "calibration", "accuracy", "regression", "coverage")


def judge_overflow(
    verdict: Verdict,
    *,
    fp16: Sequence[LayerActivation],
    quantized: Sequence[LayerActivation],
    samples: int,
    dtype: str,
    where: Where,
) -> Verdict:
    """Return the verdict of a gate, which is FAIL where a value on held-out data overflows `dtype`.

    Otherwise it says in a line of evidence, and in a figure, how far the values go. `samples` are
    the held-out pairs on which they were seen.
    """
    limit = LARGEST.get(dtype)
    layers = [("FP16", layer) for layer in fp16] + [("quantized", layer) for layer in quantized]
    if limit is None or not layers:
        return verdict
    variant, worst = max(layers, key=lambda found: found[1].largest)
    figures = {"largest_activation": worst.largest} if math.isfinite(worst.largest) else {}
    over = [found for found in layers if found[1].overflowing]
    if not over:
        share = worst.largest / limit
        of = f"; the largest {dtype} is {size(limit)}, {1 / share:.1f} times that" if share else ""
        line = f"largest activation {size(worst.largest)} in {worst.module} ({variant}){of}"
        ranked = sorted(fp16 or quantized, key=lambda layer: -layer.largest)[:MOST_LAYERS]
        listing = ", ".join(f"{layer.module} {size(layer.largest)}" for layer in ranked)
        return replace(
            verdict,
            evidence=(*verdict.evidence, line, f"largest activations by layer: {listing}"),
            figures={**verdict.figures, **figures},
        )
    variant, first = over[0]
    most = max(layer.overflowing for _, layer in over)
    # What the quantized variant does too needs no second line.
    known = {layer.module for layer in fp16 if layer.overflowing}
    others = [(v, layer) for v, layer in over[1:] if v == "FP16" or layer.module not in known]
    found = Verdict(
        gate=verdict.gate,
        status=Status.FAIL,
        headline=f"{verdict.gate}: {dtype} overflows on {most} of "
        f"{count(samples, 'held-out pair')}: first in {first.module} ({variant}), whose values "
        f"reach {size(first.largest)}; the largest {dtype} is {size(limit)} ({where})",
        brief=f"{dtype} overflows on {most} of {samples} pairs: up to {size(worst.largest)}",
        evidence=shorten(
            [
                f"{v} {layer.module}: up to {size(layer.largest)}, on {layer.overflowing}"
                for v, layer in others
            ]
        ),
        cause="the weights come from a wider format; a run on a CPU computes in FP32, where "
        "nothing overflows and all other numbers look right",
        next_step="scale the weights in front of this layer down"
        if dtype == "bfloat16"
        else "ship in bfloat16 (model: {dtype: bfloat16}), or scale the weights in front of this "
        "layer down",
        figures=figures,
        code=f"{verdict.gate}.overflow",
    )
    return combine(gate=verdict.gate, parts=(found, verdict))


def size(value: float) -> str:
    """Return a magnitude as people write it: `65,504`, `3.39e+38`, `0.0213`."""
    return f"{value:,.0f}" if 1000 <= value < 1e7 else f"{value:.3g}"
