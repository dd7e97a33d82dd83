"""Names, in a red verdict, the layers in which the error enters, and outlier channels there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.formats.table import E4M3, find_format
from pytest_quantgate.text.words import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_quantgate.evidence.sensitivity import OutlierChannels, Suspect

#: A suspect that is no noisier than this above the next does not stand out.
STANDS_OUT_DB = 3.0

#: Outlier channels explain the noise of a suspect if it falls by so much once all other channels
#: have a range of their own: to a quarter, so that no other cause is as large as this one.
EXPLAINS_DB = 2 * STANDS_OUT_DB

#: In E4M3, whose normal numbers go from 2^-6 to 448, a channel that is so many times smaller than
#: the range still has its values down to 2^-6 of its largest rounded as finely as any.
FP8_REACH = E4M3.largest


def name_suspects(
    verdict: Verdict, suspects: Sequence[Suspect], *, suite: str, recipe: str = ""
) -> Verdict:
    """Return a verdict that also says where the largest error enters, and what to try.

    `suspects` are groups of quantizers by their noise alone, worst first; `recipe` is the name of
    the one that quantized them. A verdict that passed, and one without suspects, stays as it is.
    The next step changes where the loss itself is over its limit, and not where FP16 is in doubt
    (a floor) or samples are too few. Outlier channels are named where they explain the noise of
    the worst suspect (`explained_by_outliers`).
    """
    if verdict.passed or not suspects:
        return verdict
    worst, *rest = suspects
    after = f"; next {_db(rest[0])}, {rest[0].label}" if rest else ""
    where = f"the largest error enters at {worst.label} (SQNR {_db(worst)} alone{after})"
    names = f"quantgate sensitivity {suite}"
    if not _stands_out(worst, rest):
        where += ": no layer stands out"
        leave_out = ""
        advice = (
            f"choose a gentler recipe, or run quantgate repair {suite}: it looks for the smallest "
            f"mixed recipe that meets all limits"
        )
    else:
        patterns = ", ".join(json.dumps(pattern, ensure_ascii=False) for pattern in worst.patterns)
        leave_out = f"exclude: [{patterns}]"
        advice = f"try {leave_out}; {names} finds the smallest list that passes"
    if explained_by_outliers(worst):
        where += f"; outlier channels explain it: {describe_outliers(worst)}"
        gentler = _advise(worst.outliers, recipe=recipe)
        if gentler:
            tries = ", or ".join([*gentler, *([leave_out] if leave_out else [])])
            advice = f"try {tries}; {names} finds the smallest exclude list that passes"
    if not _is_loss(verdict):
        return replace(verdict, evidence=(*verdict.evidence, where))
    return replace(
        verdict,
        cause=f"{verdict.cause}; {where}" if verdict.cause else where,
        next_step=advice,
        evidence=(
            *verdict.evidence,
            *(f"{s.label}: SQNR {_db(s)} alone{_apart(s)}" for s in suspects),
        ),
    )


def explained_by_outliers(suspect: Suspect) -> bool:
    """Return whether most of a suspect's noise comes from a range that outlier channels stretch.

    That was tried out, not derived: the group was run alone once more, the outliers and the other
    channels rounded apart from each other, and its SQNR rose by `EXPLAINS_DB`. It is the
    decomposition of LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339, section 3.2), where each
    part has a range of its own; that a channel of size m_i has but m_i / m of all levels in a range
    m is in SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, section 3).
    """
    if not suspect.outliers or suspect.sqnr_apart_db is None:
        return False
    return suspect.sqnr_apart_db >= suspect.sqnr_db + EXPLAINS_DB


def describe_outliers(suspect: Suspect) -> str:
    """Return which channels of a suspect reach furthest, and what they leave to the others."""
    worst = max(suspect.outliers, key=lambda found: found.largest_ratio)
    low, high = (_times(ratio) for ratio in (worst.smallest_ratio, worst.largest_ratio))
    left = ""
    if worst.levels is not None:
        left = f", which has {worst.levels or 'none'} of the {worst.levels_count} levels of "
        left += worst.format
    one = len(worst.channels) == 1
    return (
        f"{len(worst.channels)} of {worst.channels_count} input channels of "
        f"{_places(worst, suspect.outliers)} ({_channels(worst)}) {'reaches' if one else 'reach'} "
        f"{high if low == high else f'{low} to {high}'} times the median channel{left}"
    )


def _apart(suspect: Suspect) -> str:
    if not explained_by_outliers(suspect):
        return ""
    worst = max(suspect.outliers, key=lambda found: found.largest_ratio)
    return (
        f", {suspect.sqnr_apart_db:.1f} dB with channels {_channels(worst)} of "
        f"{_places(worst, suspect.outliers)} quantized apart"
    )


def _places(worst: OutlierChannels, outliers: Sequence[OutlierChannels]) -> str:
    """Return `self_attn.q_proj, k_proj, v_proj` for layers that are given the same input."""
    first, *others = (
        found.place
        for found in outliers
        if (found.channels, found.largest_ratio) == (worst.channels, worst.largest_ratio)
    )
    parent = first.rpartition(".")[0]
    return ", ".join([first, *(place.removeprefix(f"{parent}.") for place in others)])


def _channels(found: OutlierChannels) -> str:
    return listed([str(channel) for channel in found.channels])


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _advise(outliers: Sequence[OutlierChannels], *, recipe: str) -> list[str]:
    """Return what there is against outlier channels, first what keeps most of the recipe.

    SmoothQuant is for Linear layers in INT8 alone, FP8 for a range that it can span.
    """
    found = []
    if all(one.smoothable for one in outliers):
        own = recipe == "inline quant_cfg" or recipe.endswith((".yaml", ".yml"))
        name = "algorithm: smoothquant next to its quant_cfg" if own else "recipe: int8-smoothquant"
        found.append(f"{name}, which moves the range of such channels into the weights")
    if all(_is_integer(o.format) and o.largest_ratio <= FP8_REACH for o in outliers):
        found.append("a recipe in FP8 (fp8, fp8-attention), which rounds small values as finely")
    return found


def _is_integer(name: str) -> bool:
    found = find_format(name)
    return found is not None and found.is_integer


def _stands_out(worst: Suspect, rest: Sequence[Suspect]) -> bool:
    if not rest or not math.isfinite(worst.sqnr_db):
        return True
    return worst.sqnr_db <= rest[0].sqnr_db - STANDS_OUT_DB


def _is_loss(verdict: Verdict) -> bool:
    """Return whether a FAIL is the loss of quantization: a drop, or flips, over their limit."""
    if verdict.status is not Status.FAIL:
        return False
    low, limit = (verdict.figures.get(f"{name}_points") for name in ("drop_low", "max_drop"))
    over = isinstance(low, (int, float)) and isinstance(limit, (int, float)) and low > limit
    return over or verdict.figures.get("floor_status") != Status.FAIL.value


def _db(suspect: Suspect) -> str:
    return f"{suspect.sqnr_db:.1f} dB" if math.isfinite(suspect.sqnr_db) else "none, NaN or Inf"
