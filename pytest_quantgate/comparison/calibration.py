"""How two variants got their ranges, compared (`artifacts/calibration.py` says what is known)."""

from __future__ import annotations

from collections import Counter

from pytest_quantgate.comparison.changes import Change, compare_texts
from pytest_quantgate.evidence.calibration import Calibrated, CalibrationImages

#: Data sets and folders that are named; the rest is counted.
MOST_SOURCES = 6


def compare_calibration(before: Calibrated, after: Calibrated, *, suite: str = "") -> list[Change]:
    """Return what differs of what both sides know: another tool's checkpoint knows nothing."""
    shared = [name for name in before.facts if name in after.facts]
    changes = compare_texts(
        {name: before.facts[name] for name in shared},
        {name: after.facts[name] for name in shared},
        area="data",
        noun=suite,
    )
    old, new = before.images, after.images
    if old is None or new is None:
        return changes
    subject = f"{suite} calibration images".strip()
    if old.contents != new.contents:
        changes.append(
            Change(
                area="data",
                kind="other images",
                subjects=(subject,),
                text=f"{subject}: others than before{_count_common(old, new)}: "
                f"{_list_sources(old)} -> {_list_sources(new)}",
                before=old.contents[:12],
                after=new.contents[:12],
            )
        )
    elif old.order != new.order:
        changes.append(
            Change(
                area="data",
                kind="other order",
                subjects=(subject,),
                text=f"{subject}: the same ones in another order",
                before=old.order[:12],
                after=new.order[:12],
            )
        )
    if old.held_out != new.held_out:
        changes += compare_texts(
            {f"{subject} that are also held-out ones": str(old.held_out)},
            {f"{subject} that are also held-out ones": str(new.held_out)},
            area="data",
        )
    return changes


def _count_common(old: CalibrationImages, new: CalibrationImages) -> str:
    if not old.hashes or not new.hashes:
        return ""
    common = (Counter(old.hashes) & Counter(new.hashes)).total()
    return f" ({common} of {len(new.hashes)} are the same)"


def _list_sources(images: CalibrationImages) -> str:
    parts = [f"{number} of {name}" for name, number in images.sources.items()]
    if len(parts) > MOST_SOURCES:
        parts = [*parts[:MOST_SOURCES], f"{len(parts) - MOST_SOURCES} more folders"]
    return ", ".join(parts) or "none"
