"""What both variants answer to each sample of a task."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

#: The metric that is not the share of the samples that is right, but the mean of it over classes.
MEAN_OVER_CLASSES = "mean_per_class_recall"


def averages_classes(metric: str) -> bool:
    """Return whether a metric, with or without its `@K`, is the mean over classes."""
    return metric.partition("@")[0] == MEAN_OVER_CLASSES


Value = TypeVar("Value")

#: How right a sample is: true or false, or a grade between them (nDCG, a reciprocal rank).
Score = bool | float

#: What packed outcomes begin with where some are grades; `:` is no character of base64.
_GRADES = "float32:"


def round_score(value: float) -> Score:
    """Return a score in [0, 1] as it is kept: whole ones as booleans, grades as 32-bit floats.

    So what a baseline holds equals what was measured. Raises ValueError for a value outside.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{value!r} is no score in [0, 1]")
    (kept,) = struct.unpack(">f", struct.pack(">f", value))
    return bool(kept) if kept in (0, 1) else float(kept)


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Per-sample results of one variant on one task and metric.

    `ids`, `correct`, `answers` (index of the predicted class, or of the best match) and
    `labels` (class of the sample, -1 where the task has no classes) have one entry a sample.
    For retrieval a sample is a query, and `correct` says whether a match was in the first k, or
    how well it was answered (`round_score`).
    `clusters` numbers for each sample what it shares with others, such as the image that several
    captions describe: those are not independent. Empty: each stands for itself. `copies` counts the
    samples that repeat the picture and the label (or captions) of another. `margins` says by how
    much, in cosine similarity, the right answer is above the best wrong one (of a recall at K: the
    K-th best), below where it is negative; empty where a task does not say.
    `data_parts` are the SHA-256 of what `data_digest` covers, part by part (`images`, `labels`,
    `templates`, ...), so that two data sets that differ can be told apart.
    `value` is the metric as clip-benchmark defines it, in [0, 1]: the mean of `correct`, but for
    the mean over classes.
    """

    task: str
    metric: str
    variant: str
    ids: tuple[str, ...]
    correct: tuple[Score, ...]
    answers: tuple[int, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    value: float
    data_digest: str
    nonfinite: int = 0
    clusters: tuple[int, ...] = ()
    copies: int = 0
    data_parts: tuple[tuple[str, str], ...] = ()
    margins: tuple[float, ...] = ()

    def select(self, indices: Sequence[int]) -> Outcomes:
        """Return the results of some samples, with the metric over these."""
        correct = tuple(self.correct[index] for index in indices)
        labels = tuple(self.labels[index] for index in indices)
        return replace(
            self,
            ids=tuple(self.ids[index] for index in indices),
            correct=correct,
            answers=tuple(self.answers[index] for index in indices),
            labels=labels,
            value=mean_score(correct, labels=labels, metric=self.metric),
            clusters=tuple(self.clusters[index] for index in indices) if self.clusters else (),
            margins=tuple(self.margins[index] for index in indices) if self.margins else (),
        )


@dataclass(frozen=True, kw_only=True)
class StoredOutcomes:
    """Per-sample results as a baseline keeps them: `correct` in the order of the sorted ids.

    `ids_digest` is the SHA-256 of the sorted ids, one a line; `correct_bits` is `pack_scores` of
    `correct`. `effective_samples` is how many independent samples these are worth where they come
    in clusters or are graded: of FP16 for the share that is right, of a variant for what it lost
    against FP16; `answers_changed` how many answers of a variant were not FP16's (None: not
    recorded).
    """

    samples: int
    ids_digest: str
    correct_bits: str
    value: float
    data_digest: str
    effective_samples: float | None = None
    answers_changed: int | None = None

    @cached_property
    def correct(self) -> tuple[Score, ...]:
        """How right each sample is; raises ValueError where the bits are damaged."""
        return unpack_scores(self.correct_bits, count=self.samples)


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """What a regression gate compares with: FP16, the variant accepted last, and the first.

    `first_fp16` is what FP16 gave when `first` was accepted.
    """

    fp16: StoredOutcomes
    accepted: StoredOutcomes
    first: StoredOutcomes
    first_fp16: StoredOutcomes


def group_places(values: Iterable[Value]) -> dict[Value, list[int]]:
    """Return the places of each value, in the order in which values come."""
    places: dict[Value, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return places


def mean_score(correct: Sequence[Score], *, labels: Sequence[int], metric: str) -> float:
    """Return the mean of all scores, or the mean over classes of their means; 0.0 of none."""
    if not averages_classes(metric):
        return sum(correct) / max(1, len(correct))
    means = [
        sum(correct[place] for place in inside) / len(inside)
        for _, inside in sorted(group_places(labels[: len(correct)]).items())
    ]
    return sum(means) / max(1, len(means))


def is_graded(scores: Sequence[Score]) -> bool:
    """Return whether some scores, or differences of such, are no whole ones."""
    return any(isinstance(score, float) for score in scores)


def pack_scores(scores: Sequence[Score]) -> str:
    """Return scores in base64: one bit each, or 32-bit floats where some are grades.

    The first sample is in the highest bit of the first byte. Floats are big-endian, behind
    `float32:`.
    """
    if is_graded(scores):
        packed = struct.pack(f">{len(scores)}f", *scores)
        return _GRADES + base64.b64encode(packed).decode("ascii")
    bits = bytearray((len(scores) + 7) // 8)
    for index, bit in enumerate(scores):
        if bit:
            bits[index // 8] |= 0x80 >> (index % 8)
    return base64.b64encode(bytes(bits)).decode("ascii")


def unpack_scores(text: str, *, count: int) -> tuple[Score, ...]:
    """Return `count` scores out of `pack_scores`; raises ValueError for more, fewer, or others."""
    graded = text.startswith(_GRADES)
    packed = base64.b64decode(text.removeprefix(_GRADES), validate=True)
    if len(packed) != (4 * count if graded else (count + 7) // 8):
        raise ValueError(f"{len(packed)} bytes cannot hold {count} outcomes")
    if graded:
        return tuple(round_score(score) for (score,) in struct.iter_unpack(">f", packed))
    if count % 8 and packed[-1] & (0xFF >> (count % 8)):
        raise ValueError(f"there are more than {count} outcomes")
    return tuple(bool(packed[i // 8] & (0x80 >> (i % 8))) for i in range(count))
