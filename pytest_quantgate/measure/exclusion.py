"""The search for the smallest exclusion that meets a suite's limits: pure, no model in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(kw_only=True)
class Search(Generic[Item]):
    """Looks for a short list of items that meets a condition that is costly to verify.

    `meets(items)` verifies one list; it is asked at most `budget` times, never twice for one.
    """

    meets: Callable[[tuple[Item, ...]], bool]
    budget: int
    verified: dict[frozenset[int], bool] = field(default_factory=dict)

    def run(
        self, order: Sequence[Item], *, first: int, drop_order: Sequence[Item] | None = None
    ) -> tuple[Item, ...] | None:
        """Return the shortest list found, or None where the budget ended without one.

        The first `first` items of `order` are tried, then more or fewer: a longer beginning of
        `order` is taken to meet the condition if a shorter one does. What is left of the budget
        tries to do without single items, in the order of `drop_order`. The whole of `order` is
        never tried: whoever excludes everything quantizes nothing.
        """
        most = len(order) - 1
        low, high, step = 0, None, max(1, min(first, most))
        while high is None and step <= most and low < step:
            answer = self._ask(order, range(step))
            if answer is None:
                return None
            if answer:
                high = step
            else:
                low, step = step, min(2 * step, most)
        if high is None:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            answer = self._ask(order, range(middle))
            if answer is None:
                break
            low, high = (low, middle) if answer else (middle, high)
        kept = list(range(high))
        places = {id(item): place for place, item in enumerate(order)}
        for item in drop_order if drop_order is not None else order:
            place = places[id(item)]
            if place in kept and len(kept) > 1 and place != high - 1:
                fewer = [index for index in kept if index != place]
                if self._ask(order, fewer):
                    kept = fewer
        return tuple(order[index] for index in kept)

    def _ask(self, order: Sequence[Item], indices: Sequence[int]) -> bool | None:
        """Return whether a list meets the condition, or None where the budget is spent."""
        key = frozenset(indices)
        if key not in self.verified:
            if len(self.verified) >= self.budget:
                return None
            self.verified[key] = self.meets(tuple(order[index] for index in indices))
        return self.verified[key]
