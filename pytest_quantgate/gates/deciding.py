"""How a result with an interval stands to its limit, by itself and among those of its suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict, Unpack

from pytest_quantgate.evidence.verdict import Figure, Status, Verdict

if TYPE_CHECKING:
    from pytest_quantgate.statistics.family import Alarm, Family
    from pytest_quantgate.statistics.intervals import Interval

#: How a result stands to a limit that it must not exceed.
RELATIONS = {Status.PASS: "within", Status.FAIL: "over"}


class Details(TypedDict, total=False):
    """What a verdict says besides its headline; see `Verdict`."""

    brief: str
    evidence: tuple[str, ...]
    cause: str
    next_step: str
    figures: Mapping[str, Figure]


def fail(gate: str, finding: str, headline: str, **more: Unpack[Details]) -> Verdict:
    """Return FAIL of a gate, its name before the headline and before the finding in the code.

    A gate's module calls it as `_fail = partial(fail, GATE)`: so the list of codes finds it.
    """
    return _say(gate, Status.FAIL, headline, code=f"{gate}.{finding}", **more)


def leave_open(gate: str, finding: str, headline: str, **more: Unpack[Details]) -> Verdict:
    """Return INCONCLUSIVE of a gate, as `fail` does; `_open` in a gate's module."""
    return _say(gate, Status.INCONCLUSIVE, headline, code=f"{gate}.{finding}", **more)


def refuse(gate: str, finding: str, headline: str, **more: Unpack[Details]) -> Verdict:
    """Return INCOMPARABLE of a gate, as `fail` does; `_refuse` in a gate's module."""
    return _say(gate, Status.INCOMPARABLE, headline, code=f"{gate}.{finding}", **more)


def let_pass(gate: str, headline: str, **more: Unpack[Details]) -> Verdict:
    """Return PASS of a gate; `_pass` in a gate's module."""
    return _say(gate, Status.PASS, headline, code="", **more)


def _say(
    gate: str, status: Status, headline: str, *, code: str, **more: Unpack[Details]
) -> Verdict:
    return Verdict(gate=gate, status=status, headline=f"{gate}: {headline}", code=code, **more)


def decide(interval: Interval, *, limit: float) -> Status:
    """Return PASS below the limit, FAIL above it, INCONCLUSIVE where the interval straddles it."""
    if interval.high <= limit:
        return Status.PASS
    return Status.FAIL if interval.low > limit else Status.INCONCLUSIVE


def confirm(status: Status, *, alarm: Alarm, family: Family) -> tuple[Status, tuple[str, ...]]:
    """Return the status in the family, and what a reader must know where that changes it."""
    if status is not Status.FAIL or family.raises(alarm):
        return status, ()
    return Status.INCONCLUSIVE, (family.describe(alarm),)


def relation(status: Status, *, name: str, limit: str) -> str:
    """Return how a result stands to its limit: `over max_drop 0.50 pp`."""
    return f"{RELATIONS.get(status, 'not decided against')} {name} {limit}"


def advise_next(status: Status, *, limit: str = "max_drop") -> str:
    """Return what to do about a limit that is broken or open; empty where it is kept."""
    if status is Status.FAIL:
        return "exclude the worst layers of the fidelity gate, or choose a gentler recipe"
    if status is Status.INCONCLUSIVE:
        return f"evaluate on fresh samples, or accept a larger {limit} on purpose"
    return ""
