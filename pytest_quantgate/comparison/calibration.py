"""How two variants got their ranges: which images, in which order, through which towers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_quantgate.comparison.changes import Change, compare_texts

#: Data sets and folders that are named; the rest is counted.
MOST_SOURCES = 6


@dataclass(frozen=True, kw_only=True)
class CalibrationImages:
    """Which images calibrated a variant.

    `sources` counts them by where their ids say they are from, `contents` is the SHA-256 of their
    sorted content hashes, `order` of the same as they came. `held_out` counts those that are also
    held-out images. `hashes` are there where the whole list is.
    """

    sources: Mapping[str, int]
    contents: str
    order: str
    held_out: int
    hashes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What is known of one side's calibration: `facts` by name, and the images."""

    facts: Mapping[str, str] = field(default_factory=dict)
    images: CalibrationImages | None = None


def describe_images(
    samples: Sequence[Sequence[str]], *, held_out: Sequence[Sequence[str]]
) -> CalibrationImages:
    """Return what two lists of (content hash, sample id) say."""
    hashes = tuple(str(item[0]) for item in samples)
    kept_back = {str(item[0]) for item in held_out}
    return CalibrationImages(
        sources=dict(sorted(Counter(_source(str(item[1])) for item in samples).items())),
        contents=_digest(sorted(hashes)),
        order=_digest(hashes),
        held_out=sum(content in kept_back for content in hashes),
        hashes=hashes,
    )


def _source(sample_id: str) -> str:
    return sample_id.rpartition("/")[0] or "no folder"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
