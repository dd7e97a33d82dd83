"""What differs between two recipes, each as lines (`artifacts/recipe_lines.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pytest_quantgate.comparison.changes import Change

_ALL_OFF = "*: off"


def compare_recipes(before: Sequence[str], after: Sequence[str]) -> list[Change]:
    """Return what differs between two recipes, and whether they still switch anything on."""
    changes = compare_recipe_lines(before, after)
    on = [bool(_switches_on(side)) for side in (before, after)]
    if not before or not after or on[0] == on[1]:
        return changes
    text = "the recipe switches something on again"
    if on[0]:
        reason = "every entry is off"
        if any(not line.endswith(": off") for line in _entries(after)):
            reason = f"`{_ALL_OFF}` stands behind the entries that switch on, and takes them back"
        text = f"the recipe switches nothing on any more: {reason}"
    change = Change(
        area="recipe",
        kind="switches nothing on" if on[0] else "switches on again",
        subjects=("quant_cfg",),
        text=text,
        before="; ".join(before),
        after="; ".join(after),
    )
    return [change, *changes]


def compare_recipe_lines(before: Sequence[str], after: Sequence[str]) -> list[Change]:
    """Return which recipe entries came, went or moved; later entries win, so order counts."""
    had, has = Counter(before), Counter(after)
    changes = [
        Change(
            area="recipe",
            kind="removed",
            subjects=(line,),
            text=f"recipe entry removed: {line}",
            before=line,
        )
        for line in (had - has).elements()
    ]
    changes += [
        Change(
            area="recipe",
            kind="added",
            subjects=(line,),
            text=f"recipe entry added: {line}",
            after=line,
        )
        for line in (has - had).elements()
    ]
    common = had & has
    if _kept(before, common) != _kept(after, common):
        changes.append(
            Change(
                area="recipe",
                kind="reordered",
                subjects=("quant_cfg",),
                text="the recipe has the same entries in another order (later entries win)",
                before="; ".join(_kept(before, common)),
                after="; ".join(_kept(after, common)),
            )
        )
    return changes


def _entries(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if not line.startswith("algorithm: ")]


def _switches_on(lines: Sequence[str]) -> list[str]:
    """Return the entries that switch on and are not taken back by a later `*: off`."""
    left: list[str] = []
    for line in _entries(lines):
        left = [] if line == _ALL_OFF else [*left, *([] if line.endswith(": off") else [line])]
    return left


def _kept(lines: Sequence[str], common: Counter[str]) -> list[str]:
    left = Counter(common)
    kept = []
    for line in lines:
        if left[line]:
            left[line] -= 1
            kept.append(line)
    return kept
