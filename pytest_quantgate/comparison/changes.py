"""What differs between two things, as plain values that any renderer can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.verdict import Figure

#: What a change is about, in the order in which a reviewer reads it.
Area = Literal[
    "damage",
    "gates",
    "limits",
    "quantizers",
    "ranges",
    "recipe",
    "weights",
    "accuracy",
    "engine",
    "model",
    "data",
    "versions",
    "sizes",
    "other",
]

AREAS: tuple[Area, ...] = get_args(Area)


class DiffError(QuantGateError):
    """Two things that cannot be read or compared; the command ends with status 2."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one change, the largest first; all cells are text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that differs.

    `kind` is what happened, for machines (`switched off`, `re-ranged`, `added`, ...); `subjects`
    are all names that it concerns; `text` is the sentence; `before` and `after` are the two values
    where there are two. `lines` are further sentences, `figures` the numbers (units in the names).
    """

    area: Area
    kind: str
    subjects: tuple[str, ...]
    text: str
    before: str = ""
    after: str = ""
    lines: tuple[str, ...] = ()
    table: Table | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that differs between two things of one kind.

    `before` and `after` name the sides for people. `same` are sentences on what is equal, `notes`
    on what could not be compared and why: neither makes a difference.
    """

    kind: str
    before: str
    after: str
    changes: tuple[Change, ...]
    same: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_different(self) -> bool:
        return bool(self.changes)

    def ordered(self) -> tuple[Change, ...]:
        """Return the changes area by area, each area in the order of its making."""
        return tuple(sorted(self.changes, key=lambda change: AREAS.index(change.area)))


def combine(parts: Sequence[Comparison], *, kind: str, before: str, after: str) -> Comparison:
    """Return one comparison of several, as of all baselines and suites of two revisions."""
    return Comparison(
        kind=kind,
        before=before,
        after=after,
        changes=tuple(change for part in parts for change in part.changes),
        same=tuple(line for part in parts for line in part.same),
        notes=tuple(line for part in parts for line in part.notes),
    )


def compare_texts(
    before: Mapping[str, str],
    after: Mapping[str, str],
    *,
    area: Area,
    noun: str = "",
    within: str = "",
) -> list[Change]:
    """Return a change for every name whose text differs, is new, or is gone.

    Names are those of a whole, `within`, where one is given.
    """
    changes = []
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        name = f"{within}: {key}" if within else key
        label = f"{noun} {name}".strip()
        if old is None:
            kind, text = "added", f"{label}: {new} (was not there)"
        elif new is None:
            kind, text = "removed", f"{label}: {old} is gone"
        else:
            kind, text = "changed", f"{label}: {old} -> {new}"
        changes.append(
            Change(
                area=area,
                kind=kind,
                subjects=(name,),
                text=text,
                before=old or "",
                after=new or "",
            )
        )
    return changes


def compare_counts(
    before: Mapping[str, int], after: Mapping[str, int], *, area: Area, within: str
) -> list[Change]:
    """Return a change for every number of a whole that differs; one that is absent is 0."""
    changes = []
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key, 0), after.get(key, 0)
        if old != new:
            name = f"{within}: {key}"
            ratio = f" ({new / old:.3f}x)" if old and area == "sizes" else ""
            changes.append(
                Change(
                    area=area,
                    kind="changed",
                    subjects=(name,),
                    text=f"{name}: {old} -> {new}{ratio}",
                    before=str(old),
                    after=str(new),
                    figures={"before": old, "after": new},
                )
            )
    return changes
