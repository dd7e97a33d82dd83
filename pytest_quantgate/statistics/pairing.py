"""Pairs the outcomes of two variants sample by sample; nothing is ever dropped on the way."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from pytest_quantgate.statistics.intervals import ClassCounts, Flips, Share, clustered_samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_quantgate.evidence.outcomes import Outcomes, StoredOutcomes

#: Nothing but the whole and its classes is counted.
NO_SLICES: Mapping[str, Sequence[int]] = MappingProxyType({})

Value = TypeVar("Value")


class Unpaired(Exception):
    """Two results that cannot be compared sample by sample; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Samples that come in clusters (captions of an image, copies of one): what they are worth.

    `drop`, `right` and `changed` are how many independent samples would know the drop, the share
    that is right and the share that changed as well as these.
    """

    count: int
    drop: float
    right: float
    changed: float


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Counts over paired samples. `changed` counts answers that differ, right or wrong.

    `slices` are the counts of the groups that were asked for. `clusters` is None where every sample
    stands for itself.
    """

    samples: int
    before_right: int
    after_right: int
    right_to_wrong: int
    wrong_to_right: int
    changed: int
    classes: tuple[tuple[str, ClassCounts], ...] = ()
    slices: tuple[tuple[str, ClassCounts], ...] = ()
    clusters: Clusters | None = None

    @property
    def drop(self) -> float:
        return (self.right_to_wrong - self.wrong_to_right) / self.samples

    @property
    def flips(self) -> Flips:
        """What was lost and won, in independent samples."""
        found = Flips(
            right_to_wrong=self.right_to_wrong,
            wrong_to_right=self.wrong_to_right,
            samples=self.samples,
        )
        return found.grow(self.clusters.drop / self.samples) if self.clusters else found

    @property
    def right_share(self) -> Share:
        """What is right afterwards, in independent samples."""
        found = Share(count=self.after_right, samples=self.samples)
        return found.grow(self.clusters.right / self.samples) if self.clusters else found

    @property
    def changed_share(self) -> Share:
        """What changed, in independent samples."""
        found = Share(count=self.changed, samples=self.samples)
        return found.grow(self.clusters.changed / self.samples) if self.clusters else found


def pair_outcomes(
    *, before: Outcomes, after: Outcomes, slices: Mapping[str, Sequence[int]] = NO_SLICES
) -> Pairs:
    """Return the paired counts of two variants on the same samples, in any order.

    `slices` are places in `before` of the samples of each slice, by its name. Raises Unpaired for
    ids that are not equal as sets or stand twice, for no samples, and for other labels, class names
    or data.
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
    if before.clusters != tuple(after.clusters[i] for i in order if after.clusters):
        raise Unpaired("the clusters of the samples differ between the variants")
    correct = [after.correct[i] for i in order]
    answers = [after.answers[i] for i in order]
    is_retrieval = not before.class_names
    changed = [
        (was != now) if is_retrieval else (a != b)
        for was, now, a, b in zip(before.correct, correct, before.answers, answers, strict=True)
    ]
    return _count(
        before.correct,
        correct,
        changed=changed,
        labels=labels,
        names=before.class_names,
        clusters=before.clusters,
        slices=slices,
    )


def pair_stored(
    *, stored: StoredOutcomes, now: Outcomes, slices: Mapping[str, Sequence[int]] = NO_SLICES
) -> Pairs:
    """Return the paired counts of a stored result and today's.

    `slices` are places in `now`. Raises Unpaired as above.
    """
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
    try:
        before = stored.correct
    except ValueError as error:
        raise Unpaired(f"the baseline is damaged: {error}") from error
    if not math.isfinite(stored.value):
        raise Unpaired(f"the baseline is damaged: its value is {stored.value}")
    correct = [now.correct[i] for i in order]
    place = {index: rank for rank, index in enumerate(order)} if slices else {}
    # The same ids of the same data have the same labels and clusters: today's are the baseline's.
    return _count(
        before,
        correct,
        changed=[a != b for a, b in zip(before, correct, strict=True)],
        labels=[now.labels[i] for i in order],
        names=now.class_names,
        clusters=[now.clusters[i] for i in order if now.clusters],
        slices={name: [place[i] for i in inside] for name, inside in slices.items()},
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
    changed: Sequence[bool],
    labels: Sequence[int],
    names: Sequence[str],
    clusters: Sequence[int],
    slices: Mapping[str, Sequence[int]],
) -> Pairs:
    both = list(zip(before, after, strict=True))

    def count(inside: Sequence[int]) -> ClassCounts:
        was, now, other = ([values[i] for i in inside] for values in (before, after, changed))
        weighed = _weigh_clusters(was, now, other, [clusters[i] for i in inside if clusters])
        return ClassCounts(
            samples=len(inside),
            right=sum(now),
            right_to_wrong=sum(a and not b for a, b in zip(was, now, strict=True)),
            wrong_to_right=sum(b and not a for a, b in zip(was, now, strict=True)),
            worth=min(weighed.drop, weighed.right) / len(inside) if weighed else 1.0,
        )

    return Pairs(
        samples=len(both),
        before_right=sum(before),
        after_right=sum(after),
        right_to_wrong=sum(was and not now for was, now in both),
        wrong_to_right=sum(now and not was for was, now in both),
        changed=sum(changed),
        classes=tuple(
            (names[label] if 0 <= label < len(names) else str(label), count(inside))
            for label, inside in sorted(group_places(labels if names else ()).items())
        ),
        slices=tuple((name, count(inside)) for name, inside in slices.items()),
        clusters=_weigh_clusters(before, after, changed, clusters),
    )


def group_places(values: Iterable[Value]) -> dict[Value, list[int]]:
    """Return the places of each value, in the order in which values come."""
    places: dict[Value, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return places


def _weigh_clusters(
    before: Sequence[bool], after: Sequence[bool], changed: Sequence[bool], clusters: Sequence[int]
) -> Clusters | None:
    sizes = Counter(clusters)
    if len(sizes) == len(clusters):
        return None

    def weigh(values: Sequence[int]) -> float:
        totals = dict.fromkeys(sizes, 0)
        for cluster, value in zip(clusters, values, strict=True):
            totals[cluster] += value
        return clustered_samples(
            sizes=list(sizes.values()),
            totals=list(totals.values()),
            squares=sum(value * value for value in values),
        )

    return Clusters(
        count=len(sizes),
        drop=weigh([was - now for was, now in zip(before, after, strict=True)]),
        right=weigh(after),
        changed=weigh(changed),
    )
