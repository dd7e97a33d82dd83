"""Holm's control of false alarms over all the limits of a suite.

Shipping needs every gate to pass, so a bad model ships with at most the error chance of the one
gate that should have stopped it: passing needs no correction (an intersection-union test, Berger,
Technometrics 24 (1982) 295-300). False alarms do add up: of twenty limits that are all just kept,
one says FAIL by chance in most runs. So FAIL, and nothing else, is corrected: Holm, Scandinavian
Journal of Statistics 6 (1979) 65-70, which holds however the limits depend on one another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from fractions import Fraction

#: The alarm of a limit that was not measured: never raised.
SILENT = math.inf


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """How rare a result is if its limit is just kept; at most `allowed` is a FAIL by itself."""

    chance: float
    confidence: Fraction

    @property
    def allowed(self) -> float:
        return float(1 - self.confidence)

    @property
    def strength(self) -> float:
        """The chance in units of the allowed one: 1 and less is a FAIL by itself."""
        return self.chance / self.allowed


@dataclass(frozen=True, kw_only=True)
class Family:
    """The limits that are judged together: how many, and how to get the strengths of all.

    `strengths` is only asked where the others decide: a result at 1 / size is a FAIL whatever they
    say, one above 1 is none. So a verdict never depends on which other gates ran.
    """

    size: int
    strengths: Callable[[], Sequence[float]] = field(default=tuple)

    def raises(self, alarm: Alarm) -> bool:
        """Return whether a result that is a FAIL by itself is one in its family."""
        if self.size == 1 or alarm.strength * self.size <= 1:
            return True
        return alarm.strength <= 1 and alarm.strength <= highest_rejected(self.strengths())

    def describe(self, alarm: Alarm) -> str:
        """Return why a result that is a FAIL by itself is none in its family."""
        return (
            f"a FAIL by itself, but one of {self.size} limits of this suite: where a limit is just "
            f"kept, chance shows as much in {alarm.chance * 100:.2g} % of runs, and one of so many "
            f"is believed from {alarm.allowed / self.size * 100:.2g} % on (family: holm)"
        )


#: A limit that stands for itself: an assertion in a hand-written test, or `family: none`.
ALONE = Family(size=1)


def highest_rejected(strengths: Sequence[float]) -> float:
    """Return the weakest strength that Holm's procedure still rejects; -inf where it rejects none.

    Steps down from the strongest: the j-th of m is rejected at 1 / (m - j + 1), as long as all
    before it were. With strengths p / allowed the chance of any false FAIL is at most the largest
    of the allowed ones: at the first false rejection at least as many limits are left as are kept.
    """
    rejected = -math.inf
    for place, strength in enumerate(sorted(strengths)):
        if strength * (len(strengths) - place) > 1:
            break
        rejected = strength
    return rejected
