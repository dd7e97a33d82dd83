"""Quantizers that are on and never run: why, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_quantgate.gates.words import listed
from pytest_quantgate.measurement import Quantizer

#: What an attention class puts around the two products; `softmax` stands between them.
ATTENTION_SLOTS = ("q", "k", "v", "softmax", "attention_output")

#: The implementation that the quantized attention classes intercept.
INTERCEPTED = "sdpa"


def advise_idle(
    idle: Iterable[Quantizer], *, among: Sequence[Quantizer], attention: str
) -> tuple[str, str]:
    """Return the likely cause why `idle` of the quantizers `among` never ran, and the mend.

    `attention` is the model's attention implementation, as transformers names it.
    """
    found = list(idle)
    bypassed = [q for q in found if q.slot in ATTENTION_SLOTS and q.slot != "softmax"]
    if bypassed and attention != INTERCEPTED:
        return (
            f"the attention class intercepts another call than the model makes: it sees "
            f"{INTERCEPTED}, not {attention}",
            f"set model.attn_implementation: {INTERCEPTED}",
        )
    if bypassed:
        return (
            "the attention class intercepts another call than the model makes (it sees sdpa, not "
            "eager or flex), or nothing calls this block",
            "run the model in sdpa, with recipe: fp8-attention, whose attention class sees it, or "
            f"{_exclude(found, among=among)}",
        )
    if found and all(q.slot == "softmax" for q in found):
        return (
            f"the probabilities of attention are never handed to a quantizer here: {attention} "
            "computes them inside one call, or this format has no quantizer for them",
            f"{_exclude(found, among=among)}: ranges of probabilities that never run are promises",
        )
    return (
        "nothing calls these modules in a forward: a fused call goes around them, or they are "
        "not used",
        _exclude(found, among=among),
    )


def _exclude(idle: Sequence[Quantizer], *, among: Sequence[Quantizer]) -> str:
    """Return the edit that switches them off, by the last part of a name where that names them all."""
    names = {q.name for q in idle}
    patterns: list[str] = []
    for quantizer in idle:
        leaf = quantizer.name.rpartition(".")[2]
        alike = {q.name for q in among if q.name.endswith(f".{leaf}")}
        pattern = f"*{leaf}" if alike <= names else quantizer.name
        if pattern not in patterns:
            patterns.append(pattern)
    listing = ", ".join(f'"{pattern}"' for pattern in patterns)
    if len(patterns) > 4:
        listing = listed([f'"{pattern}"' for pattern in patterns])
    return f"add to quantize: exclude: [{listing}]"
