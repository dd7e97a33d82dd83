"""The search for the worst slice of a gate that names none: evidence, and never a verdict."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from pytest_quantgate.gates.slices import MOST_VALUES, Columns, cut, find_worst
from pytest_quantgate.statistics.intervals import ClassCounts, chance_above
from pytest_quantgate.statistics.pairing import pair_outcomes
from pytest_quantgate.text.words import count, points

if TYPE_CHECKING:
    from fractions import Fraction

    from pytest_quantgate.evidence.outcomes import Outcomes

#: Slices of fewer samples in either half are not looked at.
FEWEST_SEARCHED = 30

#: The error chance of a finding that is searched for, whatever the gate's: nobody asked for it.
SEARCH_ALPHA = 0.01

#: The seed of the halves. Another text finds other slices.
SEED = "quantgate halves 1"


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """The slice that is worst on one half of the samples, and what the other half says of it."""

    by: tuple[str, ...]
    name: str
    found: ClassCounts
    again: ClassCounts
    chance: float
    searched: int

    @property
    def is_confirmed(self) -> bool:
        return self.chance <= SEARCH_ALPHA

    def describe(self, limit: Fraction) -> str:
        """Return what was found in a sentence."""
        told = (
            f"over max_drop {points(limit)} there too (chance {self.chance:.2g})"
            if self.is_confirmed
            else f"not shown to be over max_drop {points(limit)}"
        )
        return (
            f"searched {count(self.searched, 'slice')}: the worst on one half is {self.name!r}, "
            f"which loses {points(self.found.drop)} of {self.found.samples}; on the other half "
            f"{points(self.again.drop)} of {self.again.samples}, {told}"
        )


def search_worst(
    fp16: Outcomes, quantized: Outcomes, *, columns: Columns, limit: Fraction
) -> Suspect | None:
    """Return the slice that is least likely to be within a limit; None where there are none.

    Slices are those by one column and by two together. It is found on one half of the samples and
    tested once, on the other: what chance alone found does not come again. Halves are drawn by
    seed; samples of one cluster are in one half.
    """
    first = _draw_half(fp16)
    halves: dict[str, tuple[tuple[str, ...], list[int], list[int]]] = {}
    for by in _list_cuts(columns, samples=len(fp16.ids)):
        for name, inside in cut(columns, by).items():
            half = [place for place in inside if first[place]]
            other = [place for place in inside if not first[place]]
            if min(len(half), len(other)) >= FEWEST_SEARCHED and len(inside) < len(fp16.ids):
                halves[name] = by, half, other
    if not halves:
        return None
    named = {name: half for name, (_, half, _) in halves.items()}
    pairs = pair_outcomes(before=fp16, after=quantized, slices=named)
    name, found = find_worst(pairs.slices, limit=float(limit))
    by, _, other = halves[name]
    ((_, again),) = pair_outcomes(before=fp16, after=quantized, slices={name: other}).slices
    return Suspect(
        by=by,
        name=name,
        found=found,
        again=again,
        chance=chance_above(again.flips, float(limit)),
        searched=len(halves),
    )


def _list_cuts(columns: Columns, *, samples: int) -> list[tuple[str, ...]]:
    """Return the columns, and the pairs of them, whose slices may be large enough."""
    sizes = {name: len(set(values)) for name, values in columns.items()}
    most = min(MOST_VALUES, samples // (2 * FEWEST_SEARCHED))
    names = [name for name, size in sizes.items() if 2 <= size <= MOST_VALUES]
    pairs = [(a, b) for a, b in combinations(names, 2) if sizes[a] * sizes[b] <= most]
    return [*((name,) for name in names), *pairs]


def _draw_half(outcomes: Outcomes) -> list[bool]:
    """Return which samples are in the first half, by seed."""
    leaders: dict[int, str] = {}
    for cluster, name in zip(outcomes.clusters, outcomes.ids, strict=False):
        leaders.setdefault(cluster, name)
    named = [leaders[cluster] for cluster in outcomes.clusters] or outcomes.ids
    return [hashlib.sha256(f"{SEED}: {name}".encode()).digest()[0] % 2 == 0 for name in named]
