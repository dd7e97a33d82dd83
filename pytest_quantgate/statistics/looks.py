"""Group-sequential confidence: what each of several looks at growing samples is judged at.

Looks at nested samples are spent like money: all together are wrong in at most the chance that one
alone would be. How much the how many-th has is a spending function of the share of the data that
it sees (Lan and DeMets, Biometrika 70 (1983) 659-663); what it is judged at follows from how looks
hang together, by the recursion of Armitage, McPherson and Rowe (Journal of the Royal Statistical
Society A 132 (1969) 235-244; Jennison and Turnbull, Group Sequential Methods (2000), chapter 19).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context
from fractions import Fraction
from statistics import NormalDist

#: The share of the error chance that a plan spends up to its end, and one look without a plan.
#: What is left is for looks that nobody planned.
PLANNED_SHARE = 0.99

#: The least chance that a look is given: a float knows no confidence much nearer to 1.
LEAST_CHANCE = 1e-12

#: Samples that grow by less than this share tell a look little that the one before did not. Looks
#: so near are added up (Bonferroni), which is valid, and asks nothing of the grid.
LEAST_GROWTH = 0.03

#: Points of the grid that the recursion integrates over, and how far it reaches to the left.
GRID, REACH = 201, 8.0

NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A look at so many samples; `spent` is the share of the error chance spent up to its end."""

    samples: float
    spent: float


def spend_share(fraction: float, *, spent: float, confidence: Fraction) -> float:
    """Return the share of the error chance that is spent after a look at `fraction` of the plan.

    `spent` is what earlier looks spent, 0 for none. The spending function is the one that gives
    about O'Brien and Fleming's limits, 2 - 2 Phi(z / sqrt(t)) with z for half the chance: next to
    nothing early, nearly all at the end. After the end of a plan each look takes half of what is
    left.
    """
    if spent >= PLANNED_SHARE:
        return spent + (1 - spent) / 2
    if fraction >= 1:
        return PLANNED_SHARE
    chance = float(1 - confidence)
    z = NORMAL.inv_cdf(1 - chance / 2)
    return max(spent, PLANNED_SHARE * 2 * NORMAL.cdf(-z / math.sqrt(fraction)) / chance)


def confidences_of_looks(confidence: Fraction, looks: Sequence[Step]) -> tuple[Fraction, ...]:
    """Return the confidence at which each of some looks is judged, in the order they were taken.

    The chance that any of them is wrong is then at most 1 - `confidence`, as far as counts are
    normal. Rounded up to three digits of what is left to 1, so that it can be said.
    """
    chance = float(1 - confidence)
    # The sum of what the samples say, as nodes and weights of its density where no look decided.
    nodes, at, spent = [(0.0, 1.0)], 0.0, 0.0
    found = []
    for look in looks:
        here = max(LEAST_CHANCE, (look.spent - spent) * chance)
        spent = max(spent, look.spent)
        if look.samples - at >= LEAST_GROWTH * look.samples:
            root, spread = math.sqrt(look.samples), math.sqrt(look.samples - at)
            limit = _find_limit(nodes, here, spread=spread, root=root)
            nodes = _carry(nodes, limit, spread=spread, root=root)
            here, at = NORMAL.cdf(-limit / root), look.samples
        # What is exact stays so: the search may have taken its last digit.
        digits = Context(prec=3, rounding=ROUND_DOWN).create_decimal_from_float(here * (1 + 1e-9))
        found.append(1 - Fraction(digits))
    return tuple(found)


def _find_limit(
    nodes: Sequence[tuple[float, float]], chance: float, *, spread: float, root: float
) -> float:
    """Return the sum that is exceeded with a chance where no look before decided."""
    low, high = -REACH * root, REACH * root
    for _ in range(60):
        middle = (low + high) / 2
        beyond = sum(weight * NORMAL.cdf((sum_ - middle) / spread) for sum_, weight in nodes)
        if beyond > chance:
            low = middle
        else:
            high = middle
    return high


def _carry(
    nodes: Sequence[tuple[float, float]], limit: float, *, spread: float, root: float
) -> list[tuple[float, float]]:
    """Return the density of the sum up to a limit, at Simpson's nodes with their weights."""
    low = -REACH * root
    width = (limit - low) / (GRID - 1)
    found = []
    for index in range(GRID):
        here = low + index * width
        simpson = 1 if index in (0, GRID - 1) else 4 if index % 2 else 2
        density = sum(
            weight * math.exp(-(((here - sum_) / spread) ** 2) / 2) for sum_, weight in nodes
        )
        found.append((here, simpson * width / 3 * density / (spread * math.sqrt(2 * math.pi))))
    return found
