"""Names, in a red verdict, the layers in which the error enters."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

from pytest_quantgate.measurement import Suspect
from pytest_quantgate.verdict import Status, Verdict

#: A suspect that is no noisier than this above the next does not stand out.
STANDS_OUT_DB = 3.0


def name_suspects(verdict: Verdict, suspects: Sequence[Suspect], *, suite: str) -> Verdict:
    """Return a verdict that also says where the largest error enters, and what to try.

    `suspects` are groups of quantizers by their noise alone, worst first. A verdict that passed,
    and one without suspects, stays as it is. The next step changes where the loss itself is over
    its limit, and not where FP16 is in doubt (a floor) or samples are too few.
    """
    if verdict.passed or not suspects:
        return verdict
    worst, *rest = suspects
    after = f"; next {_db(rest[0])}, {rest[0].label}" if rest else ""
    where = f"the largest error enters at {worst.label} (SQNR {_db(worst)} alone{after})"
    names = f"quantgate sensitivity {suite}"
    if not _stands_out(worst, rest):
        where += ": no layer stands out"
        advice = f"choose a gentler recipe, or run {names}: it ranks all layers"
    else:
        patterns = ", ".join(json.dumps(pattern, ensure_ascii=False) for pattern in worst.patterns)
        advice = f"try quantize.exclude: [{patterns}]; {names} finds the smallest list that passes"
    if not _is_loss(verdict):
        return replace(verdict, evidence=(*verdict.evidence, where))
    return replace(
        verdict,
        cause=f"{verdict.cause}; {where}" if verdict.cause else where,
        next_step=advice,
        evidence=(
            *verdict.evidence,
            *(f"{s.label}: SQNR {_db(s)} alone" for s in suspects),
        ),
    )


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
