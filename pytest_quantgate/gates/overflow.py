"""Overflow: values that the number format which ships cannot hold.

A run on a CPU computes in FP32, so every other measurement of it is of a model in which nothing
overflows. One gate of a suite therefore answers for the values as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pytest_quantgate.gates.words import count, percent, shorten
from pytest_quantgate.measurement import LayerActivation
from pytest_quantgate.suite import Where
from pytest_quantgate.verdict import Status, Verdict, combine

#: The largest finite value of each format.
LARGEST = {"float16": 65504.0, "bfloat16": 2.0**128 - 2.0**120}

#: Which gate answers, if the suite has it: the first of these.
ANSWERING = ("fidelity", "calibration", "accuracy", "regression", "coverage")


def judge_overflow(
    verdict: Verdict,
    *,
    fp16: Sequence[LayerActivation],
    quantized: Sequence[LayerActivation],
    dtype: str,
    where: Where,
) -> Verdict:
    """Return the verdict of a gate, which is FAIL where a value on held-out data overflows `dtype`.

    Otherwise it says in a line of evidence, and in a figure, how far the values go.
    """
    limit = LARGEST.get(dtype)
    layers = [("FP16", layer) for layer in fp16] + [("quantized", layer) for layer in quantized]
    if limit is None or not layers:
        return verdict
    name, worst = max(layers, key=lambda found: found[1].largest)
    figures = {"largest_activation": worst.largest} if math.isfinite(worst.largest) else {}
    over = [found for found in layers if found[1].overflowing]
    if not over:
        line = (
            f"largest activation {worst.largest:,.5g} ({name}, {worst.module}), "
            f"{percent(worst.largest / limit, 1)} of what {dtype} holds"
        )
        return replace(
            verdict,
            evidence=(*verdict.evidence, line),
            figures={**verdict.figures, **figures},
        )
    name, first = over[0]
    samples = count(max(layer.overflowing for _, layer in over), "held-out sample")
    # One cause is one line: the modules around a layer hand on the same values.
    lines = [
        f"{variant} {layer.module}: {layer.largest:,.5g} on "
        f"{count(layer.overflowing, 'sample')}"
        for variant, layer in over
    ]
    found = Verdict(
        gate=verdict.gate,
        status=Status.FAIL,
        headline=f"{verdict.gate}: {dtype} overflows on {samples}: first in {first.module} ({name}),"
        f" whose values reach {first.largest:,.5g}; the largest {dtype} is {limit:,.5g} ({where})",
        brief=f"{dtype} overflows on {samples}: values reach {worst.largest:,.5g}",
        evidence=shorten(lines[1:]),
        cause="the weights come from a wider format; a run on a CPU computes in FP32, where nothing "
        "overflows and all other numbers look right",
        next_step="ship in bfloat16 (model: {dtype: bfloat16}), or scale the weights in front of "
        "this layer down"
        if dtype == "float16"
        else "scale the weights in front of this layer down",
        figures=figures,
        code=f"{verdict.gate}.overflow",
    )
    return combine(gate=verdict.gate, parts=(found, verdict))
