"""Pairs the outcomes of two variants sample by sample; nothing is ever dropped on the way."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.outcomes import group_places, is_graded
from pytest_quantgate.statistics.intervals import (
    ClassCounts,
    Flips,
    Share,
    clustered_samples,
    sum_moves,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_quantgate.evidence.outcomes import Outcomes, Score, StoredOutcomes

#: Nothing but the whole and its classes is counted.
NO_SLICES: Mapping[str, Sequence[int]] = MappingProxyType({})


class Unpaired(Exception):
    """Two results that cannot be compared sample by sample; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What samples are worth that come in clusters (captions of an image, copies), or are graded.

    `drop`, `right` and `changed` are how many independent true or false samples would know the
    drop, the share that is right and the share that changed as well as these. `clusters` is None
    where every sample stands for itself.
    """

    clusters: int | None
    drop: float
    right: float
    changed: float


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Counts over paired samples. `changed` counts answers that differ, right or wrong.

    `right_to_wrong` and `wrong_to_right` count samples, `lost` and `won` are what `sum_moves` makes
    of them: of true or false outcomes the same. Where outcomes are graded, `before_right` and
    `after_right` are sums of grades, and the counts those of samples that score less and more.
    `slices` are the counts of the groups that were asked for. `worth` is None where every sample
    stands for itself and none is graded.
    """

    samples: int
    before_right: float
    after_right: float
    right_to_wrong: int
    wrong_to_right: int
    lost: float
    won: float
    changed: int
    graded: bool = False
    classes: tuple[tuple[str, ClassCounts], ...] = ()
    slices: tuple[tuple[str, ClassCounts], ...] = ()
    worth: Worth | None = None

    @property
    def drop(self) -> float:
        return (self.lost - self.won) / self.samples

    @property
    def flips(self) -> Flips:
        """What was lost and won, in independent samples."""
        found = Flips(right_to_wrong=self.lost, wrong_to_right=self.won, samples=self.samples)
        return found.grow(self.worth.drop / self.samples) if self.worth else found

    @property
    def right_share(self) -> Share:
        """What is right afterwards, in independent samples."""
        found = Share(count=self.after_right, samples=self.samples)
        return found.grow(self.worth.right / self.samples) if self.worth else found

    @property
    def changed_share(self) -> Share:
        """What changed, in independent samples."""
        found = Share(count=self.changed, samples=self.samples)
        return found.grow(self.worth.changed / self.samples) if self.worth else found


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
    by_answer = before.class_names and not is_graded((*before.correct, *correct))
    return pair_scores(
        before.correct,
        correct,
        changed=[a != b for a, b in zip(before.answers, answers, strict=True)]
        if by_answer
        else None,
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
    return pair_scores(
        before,
        correct,
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


def pair_scores(
    before: Sequence[Score],
    after: Sequence[Score],
    *,
    changed: Sequence[bool] | None = None,
    labels: Sequence[int] = (),
    names: Sequence[str] = (),
    clusters: Sequence[int] = (),
    slices: Mapping[str, Sequence[int]] = NO_SLICES,
) -> Pairs:
    """Return the paired counts of the scores of samples, both in one order.

    `changed` says whose answers differ (default: whose scores do); `slices` are the places of the
    samples of each slice, by its name.
    """
    losses = [was - now for was, now in zip(before, after, strict=True)]
    changed = [loss != 0 for loss in losses] if changed is None else changed
    moves = _sum_moves(losses)

    def count(inside: Sequence[int]) -> ClassCounts:
        lost, now = [losses[i] for i in inside], [after[i] for i in inside]
        other = [changed[i] for i in inside]
        moves = _sum_moves(lost)
        worth = _weigh(lost, now, other, [clusters[i] for i in inside if clusters])
        return ClassCounts(
            samples=len(inside),
            right=_add(now),
            right_to_wrong=moves[0],
            wrong_to_right=moves[1],
            worth=min(worth.drop, worth.right) / len(inside) if worth else 1.0,
        )

    return Pairs(
        samples=len(losses),
        before_right=_add(before),
        after_right=_add(after),
        right_to_wrong=sum(loss > 0 for loss in losses),
        wrong_to_right=sum(loss < 0 for loss in losses),
        lost=moves[0],
        won=moves[1],
        changed=sum(changed),
        graded=is_graded(losses),
        classes=tuple(
            (names[label] if 0 <= label < len(names) else str(label), count(inside))
            for label, inside in sorted(group_places(labels if names else ()).items())
        ),
        slices=tuple((name, count(inside)) for name, inside in slices.items()),
        worth=_weigh(losses, after, changed, clusters),
    )


def _sum_moves(losses: Sequence[float]) -> tuple[float, float]:
    """Return what `sum_moves` does, as whole numbers where nothing is graded."""
    if is_graded(losses):
        return sum_moves(losses)
    return sum(loss > 0 for loss in losses), sum(loss < 0 for loss in losses)


def _add(values: Sequence[float]) -> float:
    """Return the sum: a whole number of whole ones, else the same in any order."""
    return math.fsum(values) if is_graded(values) else sum(values)


def _weigh(
    losses: Sequence[float],
    after: Sequence[Score],
    changed: Sequence[bool],
    clusters: Sequence[int],
) -> Worth | None:
    sizes = Counter(clusters)
    apart, graded = len(sizes) == len(clusters), is_graded(losses)
    if apart and not graded:
        return None

    def weigh(values: Sequence[float], *, moved: float) -> float:
        most = float(len(values))
        if is_graded(values):
            each = range(len(values))
            most = _weigh_values(values, clusters=each, moved=moved, most=math.inf)
        if apart:
            return most
        return _weigh_values(values, clusters=clusters, moved=moved, most=most)

    return Worth(
        clusters=None if apart else len(sizes),
        drop=weigh(losses, moved=sum(_sum_moves(losses))),
        right=weigh(after, moved=_add(after)),
        changed=weigh(changed, moved=sum(changed)),
    )


def _weigh_values(
    values: Sequence[float], *, clusters: Sequence[int], moved: float, most: float
) -> float:
    sizes = Counter(clusters)
    totals: dict[int, float] = dict.fromkeys(sizes, 0)
    for cluster, value in zip(clusters, values, strict=True):
        totals[cluster] += value
    return clustered_samples(
        sizes=list(sizes.values()),
        totals=list(totals.values()),
        moved=moved,
        most=most,
    )
