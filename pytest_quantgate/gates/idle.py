"""Quantizers that are on and never run: why, and what mends it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_quantgate.evidence.audit import Quantizer

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
            "run the model with attn_implementation: sdpa and recipe: fp8-attention, whose "
            "attention class sees it, or "
            f"{exclude_words(found, among=among)}",
        )
    if found and all(q.slot == "softmax" for q in found):
        return (
            f"the probabilities of attention are never handed to a quantizer here: {attention} "
            "computes them inside one call, or this format has no quantizer for them",
            f"{exclude_words(found, among=among)}",
        )
    return (
        "nothing calls these modules in a forward: a fused call goes around them, or they are "
        "not used",
        exclude_words(found, among=among),
    )


def exclude_words(quantizers: Sequence[Quantizer], *, among: Sequence[Quantizer]) -> str:
    """Return the edit that switches `quantizers` off, and no other enabled one of `among`.

    A pattern is the shortest that only they match, of ends of their names and of tower and end.
    """
    names = {q.name for q in quantizers}
    others = [q.name for q in among if q.enabled and q.name not in names]
    patterns = dict.fromkeys(_shortest_pattern(q.name, others=others) for q in quantizers)
    listing = ", ".join(f'"{pattern}"' for pattern in patterns)
    return f"add exclude: [{listing}]"


def _shortest_pattern(name: str, *, others: Sequence[str]) -> str:
    parts = name.split(".")
    ends = [".".join(parts[-count:]) for count in range(1, len(parts))]
    patterns = [f"*{end}" for end in ends[:2]]
    patterns += [f"{parts[0]}.*{end}" for end in ends[:1]]
    patterns += [f"*{end}" for end in ends[2:]]
    for pattern in patterns:
        if not any(fnmatchcase(other, pattern) for other in others):
            return pattern
    return name
