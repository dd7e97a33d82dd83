"""Whether FP16 scores what is published of it: where it does not, a drop is one of another model.

A wrong resize, other prompts or another split cost FP16 and the quantized variant alike, so that
no comparison of the two shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.deciding import confirm, fail, let_pass
from pytest_quantgate.statistics.family import Alarm, Family
from pytest_quantgate.statistics.intervals import (
    Mean,
    Share,
    chance_above,
    chance_below,
    share_limits,
)
from pytest_quantgate.text.words import count, level, percent, points

if TYPE_CHECKING:
    from fractions import Fraction

    from pytest_quantgate.gates.sections import TaskGate

GATE = "accuracy"
_fail = partial(fail, GATE)
_pass = partial(let_pass, GATE)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What FP16 is known to score, and how far it may be from that."""

    score: Fraction
    tolerance: Fraction

    @property
    def low(self) -> float:
        return max(0.0, float(self.score - self.tolerance))

    @property
    def high(self) -> float:
        return min(1.0, float(self.score + self.tolerance))

    def alarm(self, share: Share | Mean[Share], *, confidence: Fraction) -> Alarm:
        """Return the alarm of a score that is farther from it than the tolerance."""
        chance = 1.0
        if share.value < self.low:
            chance = chance_below(share, self.low)
        elif share.value > self.high:
            chance = chance_above(share, self.high)
        return Alarm(chance=chance, confidence=confidence)


def judge_published(
    share: Share | Mean[Share],
    *,
    published: Published,
    samples: int,
    gate: TaskGate,
    family: Family,
) -> Verdict:
    """Return FAIL where the whole interval of FP16's score is farther from the published one than
    the tolerance; else PASS, with how far it is and what so many samples can tell."""
    value = share.value
    interval = share_limits(share, confidence=float(gate.confidence))
    away = value - float(published.score)
    outside = interval.high < published.low or interval.low > published.high
    status, doubts = confirm(
        Status.FAIL if outside else Status.PASS,
        alarm=published.alarm(share, confidence=gate.confidence),
        family=family,
    )
    failed = status is Status.FAIL
    found = (
        f"FP16 {gate.metric} {percent(value)} on {count(samples, 'sample')}, one-sided "
        f"{level(gate.confidence)} limits [{interval.low * 100:.2f}, {interval.high * 100:.2f}] %, "
        f"is {points(abs(away))} {'under' if away < 0 else 'over'} the published "
        f"{percent(published.score)}, tolerance {points(published.tolerance)} "
        f"({gate.where.of('published')})"
    )
    figures = {
        "published": float(published.score),
        "published_distance_points": away * 100,
    }
    if not failed:
        return _pass(
            f"{gate.task}: {found}",
            evidence=doubts,
            figures=figures,
        )
    return _fail(
        "fp16-off-published",
        f"{gate.task}: {found}: nothing was compared",
        brief=f"FP16 {percent(value)} is not the published {percent(published.score)}",
        cause="preprocessing (size, crop, interpolation, mean and deviation), prompts (class "
        "names, templates) or weights are not those of the published score"
        if away < 0
        else "the data is easier than that of the published score: other classes, other samples, "
        "or samples that the model was trained on",
        next_step="evaluate FP16 by itself until it scores what is published; quantgate data show "
        f"{gate.where.file} says what was read",
        figures=figures,
    )
