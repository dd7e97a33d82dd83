"""Pairs the outcomes of two variants sample by sample; nothing is ever dropped on the way."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_quantgate.gates.statistics import ClassCounts
from pytest_quantgate.measurement import Outcomes, StoredOutcomes


class Unpaired(Exception):
    """Two results that cannot be compared sample by sample; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Counts over paired samples. `changed` counts answers that differ, right or wrong."""

    samples: int
    before_right: int
    after_right: int
    right_to_wrong: int
    wrong_to_right: int
    changed: int
    classes: tuple[tuple[str, ClassCounts], ...] = ()

    @property
    def drop(self) -> float:
        return (self.right_to_wrong - self.wrong_to_right) / self.samples


def pair_outcomes(*, before: Outcomes, after: Outcomes) -> Pairs:
    """Return the paired counts of two variants on the same samples, in any order.

    Raises Unpaired for ids that are not equal as sets or stand twice, for no samples, and for
    other labels, class names or data.
    """
    for outcomes in (before, after):
        _check_ids(outcomes.ids, variant=outcomes.variant)
    missing = sorted(set(before.ids) ^ set(after.ids))
    if missing:
        raise Unpaired(
            f"the sample ids differ: {len(set(before.ids) - set(after.ids))} only in "
            f"{before.variant}, {len(set(after.ids) - set(before.ids))} only in {after.variant}, "
            f"first {missing[0]!r}"
        )
    if before.data_digest != after.data_digest:
        raise Unpaired(
            f"the data differs: {before.variant} {before.data_digest[:12]}, "
            f"{after.variant} {after.data_digest[:12]}"
        )
    place = {name: index for index, name in enumerate(after.ids)}
    order = [place[name] for name in before.ids]
    labels = tuple(after.labels[i] for i in order)
    if labels != before.labels or before.class_names != after.class_names:
        raise Unpaired("labels or class names differ between the variants")
    correct = [after.correct[i] for i in order]
    answers = [after.answers[i] for i in order]
    is_retrieval = not before.class_names
    changed = sum(
        (was != now) if is_retrieval else (a != b)
        for was, now, a, b in zip(before.correct, correct, before.answers, answers, strict=True)
    )
    return _count(
        before.correct,
        correct,
        changed=changed,
        classes=_count_classes(before.correct, correct, labels, before.class_names),
    )


def pair_stored(*, stored: StoredOutcomes, now: Outcomes) -> Pairs:
    """Return the paired counts of a stored result and today's; raises Unpaired as above."""
    _check_ids(now.ids, variant=now.variant)
    order = sorted(range(len(now.ids)), key=now.ids.__getitem__)
    digest = hashlib.sha256("\n".join(now.ids[i] for i in order).encode()).hexdigest()
    if (stored.ids_digest, stored.samples) != (digest, len(now.ids)):
        raise Unpaired(
            f"the sample ids differ: {stored.samples} in the baseline ({stored.ids_digest[:12]}), "
            f"{len(now.ids)} now ({digest[:12]})"
        )
    if stored.data_digest != now.data_digest:
        raise Unpaired(
            f"the data differs: baseline {stored.data_digest[:12]}, now {now.data_digest[:12]}"
        )
    if len(stored.correct) != stored.samples or not math.isfinite(stored.value):
        raise Unpaired("the baseline is damaged: its outcomes or its value make no sense")
    correct = [now.correct[i] for i in order]
    # The same ids of the same data have the same labels: today's are the baseline's.
    labels = [now.labels[i] for i in order]
    return _count(
        stored.correct,
        correct,
        changed=sum(a != b for a, b in zip(stored.correct, correct, strict=True)),
        classes=_count_classes(stored.correct, correct, labels, now.class_names),
    )


def _check_ids(ids: Sequence[str], *, variant: str) -> None:
    if not ids:
        raise Unpaired(f"{variant} has no samples")
    doubled = [name for name, times in Counter(ids).items() if times > 1]
    if doubled:
        raise Unpaired(f"{variant} has the sample {doubled[0]!r} more than once")


def _count(
    before: Sequence[bool],
    after: Sequence[bool],
    *,
    changed: int,
    classes: tuple[tuple[str, ClassCounts], ...],
) -> Pairs:
    both = list(zip(before, after, strict=True))
    return Pairs(
        samples=len(both),
        before_right=sum(before),
        after_right=sum(after),
        right_to_wrong=sum(was and not now for was, now in both),
        wrong_to_right=sum(now and not was for was, now in both),
        changed=changed,
        classes=classes,
    )


def _count_classes(
    before: Sequence[bool],
    after: Sequence[bool],
    labels: Sequence[int],
    names: Sequence[str],
) -> tuple[tuple[str, ClassCounts], ...]:
    counts: dict[int, list[int]] = {}
    for was, now, label in zip(before, after, labels, strict=True):
        found = counts.setdefault(label, [0, 0, 0])
        found[0] += 1
        found[1] += was and not now
        found[2] += now and not was
    return tuple(
        (
            names[label] if 0 <= label < len(names) else str(label),
            ClassCounts(samples=n, right_to_wrong=lost, wrong_to_right=won),
        )
        for label, (n, lost, won) in sorted(counts.items())
        if names
    )
