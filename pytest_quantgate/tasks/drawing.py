"""Which samples of a data set are taken: a seeded sample over the whole, stratified by class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

#: The seed of every draw, and part of the keys of what is measured on one. Another text draws
#: other samples, and ends every baseline that was made of a draw.
SEED = "quantgate draw 1"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """All samples (`count` None), the `first` ones in the order of the data, or a seeded draw.

    A draw keeps the order of the data where `in_order`. Otherwise it comes in the order in which
    it was drawn: then each beginning of it is a draw too.
    """

    count: int | None = None
    first: bool = False
    in_order: bool = True

    @property
    def is_drawn(self) -> bool:
        return self.count is not None and not self.first

    def choose(self, *, total: int, labels: Sequence[int] | None) -> Sequence[int]:
        """Return the indices of the samples taken of `total`; without labels all are one class."""
        if self.count is None or self.first:
            return range(total if self.count is None else min(self.count, total))
        drawn = order_draw(labels if labels is not None else (0,) * total)[: self.count]
        return sorted(drawn) if self.in_order else drawn


def order_draw(labels: Sequence[int]) -> list[int]:
    """Return the indices of all samples in the order in which they are drawn.

    The first n are a sample of n, so a larger one holds every smaller one. It is stratified: each
    class comes first by one sample (in an order in which large classes tend to be first), then by
    as many as are its share of n, to within one. Systematic sampling with a random start for each
    class (Cochran, Sampling Techniques (1977), section 8.9); the random numbers are SHA-256 of
    `SEED` and the sample's place, so they are the same on any machine and in any version of Python.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    places: list[tuple[bool, float, int]] = []
    for label, inside in members.items():
        start = _number(f"class {label}") / 2**64
        inside.sort(key=_number)
        places += [
            (rank > 0, (rank + start) / len(inside), index) for rank, index in enumerate(inside)
        ]
    return [index for *_, index in sorted(places)]


def _number(what: object) -> int:
    """Return an even random number below 2^64 that only depends on the seed and `what`."""
    return int.from_bytes(hashlib.sha256(f"{SEED}: {what}".encode()).digest()[:8])
