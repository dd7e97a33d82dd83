"""What several recipes of one suite cost, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_quantgate.evidence.verdict import Status


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a gate measured of a task: the drop and its interval, in percentage points."""

    gate: str
    drop_points: float
    low_points: float
    high_points: float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One recipe on the gates of a suite.

    `red` are the gates that did not pass with what they say, in the suite's order. `weights_bytes`
    are those of the variant, None where none could be built.
    """

    recipe: str
    status: Status
    sentence: str
    red: tuple[tuple[str, str], ...]
    losses: tuple[Loss, ...]
    weights_bytes: int | None

    @property
    def worst(self) -> Loss | None:
        """The largest drop; None where no task was measured."""
        return max(self.losses, key=lambda loss: loss.drop_points, default=None)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Recipes in the order they were named. `fp16_bytes` are those of the weights in FP16 (None
    where no variant could be built), `left_out` the gates that judge no candidate."""

    suite: str
    candidates: tuple[Candidate, ...]
    fp16_bytes: int | None
    left_out: tuple[str, ...]

    @property
    def front(self) -> tuple[Candidate, ...]:
        """Those that no other one beats: no other is at most as large and loses at most as much,
        and is better in one of the two (Pareto)."""
        known = [c for c in self.candidates if c.weights_bytes is not None and c.worst is not None]
        return tuple(
            one for one in known if not any(_beats(other, one) for other in known if other != one)
        )

    @property
    def choice(self) -> Candidate | None:
        """The smallest of those that may ship, and among equals the one that loses least."""
        good = [c for c in self.candidates if c.status is Status.PASS]
        return min(good, key=_size_and_drop, default=None)


def _beats(other: Candidate, one: Candidate) -> bool:
    (size, drop), (its_size, its_drop) = _size_and_drop(other), _size_and_drop(one)
    return size <= its_size and drop <= its_drop and (size, drop) != (its_size, its_drop)


def _size_and_drop(candidate: Candidate) -> tuple[float, float]:
    size = candidate.weights_bytes
    drop = candidate.worst.drop_points if candidate.worst is not None else 0.0
    return (float("inf") if size is None else size, drop)
