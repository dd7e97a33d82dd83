"""What both variants answer to each sample of a task."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

#: The metric that is not the share of the samples that is right, but the mean of it over classes.
MEAN_OVER_CLASSES = "mean_per_class_recall"


def averages_classes(metric: str) -> bool:
    """Return whether a metric, with or without its `@K`, is the mean over classes."""
    return metric.partition("@")[0] == MEAN_OVER_CLASSES


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Per-sample results of one variant on one task and metric.

    `ids`, `correct`, `answers` (index of the predicted class, or of the best match) and
    `labels` (class of the sample, -1 where the task has no classes) have one entry a sample.
    For retrieval a sample is a query, and `correct` says whether a match was in the first k.
    `clusters` numbers for each sample what it shares with others, such as the image that several
    captions describe: those are not independent. Empty: each stands for itself. `copies` counts the
    samples that repeat the picture and the label (or captions) of another.
    `data_parts` are the SHA-256 of what `data_digest` covers, part by part (`images`, `labels`,
    `templates`, ...), so that two data sets that differ can be told apart.
    `value` is the metric as clip-benchmark defines it, in [0, 1].
    """

    task: str
    metric: str
    variant: str
    ids: tuple[str, ...]
    correct: tuple[bool, ...]
    answers: tuple[int, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    value: float
    data_digest: str
    nonfinite: int = 0
    clusters: tuple[int, ...] = ()
    copies: int = 0
    data_parts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoredOutcomes:
    """Per-sample results as a baseline keeps them: `correct` in the order of the sorted ids.

    `ids_digest` is the SHA-256 of the sorted ids, one a line; `correct_bits` is `pack_bits` of
    `correct`. `effective_samples` is how many independent samples these are worth where they come
    in clusters: of FP16 for the share that is right, of a variant for what it lost against FP16;
    `answers_changed` how many answers of a variant were not FP16's (None: not recorded).
    """

    samples: int
    ids_digest: str
    correct_bits: str
    value: float
    data_digest: str
    effective_samples: float | None = None
    answers_changed: int | None = None

    @cached_property
    def correct(self) -> tuple[bool, ...]:
        """Whether each sample is right; raises ValueError where the bits are damaged."""
        return unpack_bits(self.correct_bits, count=self.samples)


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """What a regression gate compares with: FP16, the variant accepted last, and the first.

    `first_fp16` is what FP16 gave when `first` was accepted.
    """

    fp16: StoredOutcomes
    accepted: StoredOutcomes
    first: StoredOutcomes
    first_fp16: StoredOutcomes


def pack_bits(bits: Sequence[bool]) -> str:
    """Return one bit a sample, first sample in the highest bit of the first byte, in base64."""
    packed = bytearray((len(bits) + 7) // 8)
    for index, bit in enumerate(bits):
        if bit:
            packed[index // 8] |= 0x80 >> (index % 8)
    return base64.b64encode(bytes(packed)).decode("ascii")


def unpack_bits(text: str, *, count: int) -> tuple[bool, ...]:
    """Return `count` bits out of `pack_bits`; raises ValueError where there are more or fewer."""
    packed = base64.b64decode(text, validate=True)
    if len(packed) != (count + 7) // 8:
        raise ValueError(f"{len(packed)} bytes cannot hold {count} outcomes")
    if count % 8 and packed[-1] & (0xFF >> (count % 8)):
        raise ValueError(f"there are more than {count} outcomes")
    return tuple(bool(packed[i // 8] & (0x80 >> (i % 8))) for i in range(count))
