"""What a task is given and what it gives: embeddings of one variant, and an outcome a sample."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.fingerprint import digest_of, digest_parts
from pytest_quantgate.evidence.outcomes import Outcomes, Score, mean_score, round_score
from pytest_quantgate.tasks.contents import count_copies
from pytest_quantgate.tasks.samples import Samples

if TYPE_CHECKING:
    import torch

#: Rows of a score matrix that are held at once.
CHUNK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """Samples, and what one variant makes of them.

    `images` are float32 [N, D] and `texts` [M, D] of what the task's `list_texts` gives, on the CPU
    and not normalised; None where the task does not ask for that tower. `pixels` are digests of the
    decoded pictures. `bank` is the same for the data that the suite names as `bank`. `fp16` is what
    FP16 makes of the same samples; None where that is FP16 itself. `positive` are the classes that
    the suite names so.
    """

    samples: Samples
    pixels: tuple[str, ...]
    metric: str
    task: str = ""
    images: torch.Tensor | None = None
    texts: torch.Tensor | None = None
    bank: TaskInputs | None = None
    fp16: TaskInputs | None = None
    positive: tuple[str, ...] = ()

    @property
    def reference(self) -> TaskInputs:
        """What FP16 makes of the same samples."""
        return self.fp16 or self

    @property
    def k(self) -> int | None:
        """The K of a metric `name@K`, None without one."""
        _, at, number = self.metric.partition("@")
        return int(number) if at else None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a variant answers: one entry an outcome, in an order that depends on the data alone.

    `correct` says whether it is right, or how right, in [0, 1] (nDCG, a reciprocal rank).
    `answers` are numbers that stand for what was answered (default: whether it is right), -1 for
    none; `labels` the class of each with `class_names`, both empty where the task has no classes.
    `ids` are those of the samples where nothing else is said; several outcomes of one sample have
    `<id>#<number>`. Outcomes that share an entry in any of `shared` are not independent (default:
    the picture); `copies` counts those that repeat others (None: samples with the same picture and
    label). `nonfinite` counts embeddings with NaN or Inf. `margins` is what `Outcomes` keeps of it.
    """

    correct: Sequence[Score]
    answers: Sequence[int] = ()
    ids: Sequence[str] = ()
    labels: Sequence[int] = ()
    class_names: tuple[str, ...] = ()
    shared: tuple[Sequence[Hashable], ...] = ()
    copies: int | None = None
    nonfinite: int = 0
    margins: Sequence[float] = ()


def build_outcomes(scored: Scored, *, inputs: TaskInputs, variant: str) -> Outcomes:
    """Return what a task gave as evidence; raises DataError where it has not one entry each."""
    samples, task = inputs.samples, inputs.task
    ids = tuple(scored.ids) or samples.ids
    correct = _round_scores(scored.correct, ids=ids, subject=f"{task}: {inputs.metric}: {variant}")
    answers = tuple(scored.answers) or tuple(int(score == 1) for score in correct)
    labels = tuple(scored.labels) or (-1,) * len(correct)
    shared = scored.shared or (inputs.pixels,)
    parts: dict[str, Sequence[object]] = {"ids": ids, "answers": answers, "labels": labels}
    if scored.margins:
        parts["margins"] = scored.margins
    for name, values in (*parts.items(), *(("groups", keys) for keys in shared)):
        if len(values) != len(correct):
            raise DataError(
                f"{task}: {len(correct)} outcomes and {len(values)} {name}: a task gives one for "
                f"each sample"
            )
    clusters = number_clusters(*shared)
    copies = scored.copies
    if copies is None:
        by_class = scored.labels if scored.class_names else ()
        copies = count_copies(samples, pixels=inputs.pixels, labels=by_class)
    return Outcomes(
        task=task,
        metric=inputs.metric,
        variant=variant,
        ids=ids,
        correct=correct,
        answers=answers,
        labels=labels,
        class_names=scored.class_names,
        value=mean_score(correct, labels=labels, metric=inputs.metric),
        data_digest=digest_data(inputs),
        nonfinite=scored.nonfinite or _count_nonfinite(inputs),
        clusters=() if len(set(clusters)) == len(clusters) else clusters,
        copies=copies,
        data_parts=list_parts(inputs),
        margins=tuple(scored.margins),
    )


def _round_scores(
    scores: Sequence[Score], *, ids: Sequence[str], subject: str
) -> tuple[Score, ...]:
    found: list[Score] = []
    for index, score in enumerate(scores):
        try:
            found.append(round_score(score))
        except ValueError as error:
            name = repr(ids[index]) if index < len(ids) else str(index)
            raise DataError(f"{subject}: sample {name}: {error}") from error
    return tuple(found)


def digest_data(inputs: TaskInputs) -> str:
    """Return the SHA-256 of all data that decides a result: that of the samples, and the bank."""
    digest, bank = inputs.samples.digest, inputs.bank
    return digest if bank is None else digest_of([digest, bank.samples.digest])


def list_parts(inputs: TaskInputs) -> tuple[tuple[str, str], ...]:
    """Return the name and SHA-256 of each part of the data."""
    parts = digest_parts(inputs.samples)
    return parts if inputs.bank is None else (*parts, ("bank", inputs.bank.samples.digest))


def number_clusters(*keys: Sequence[Hashable]) -> tuple[int, ...]:
    """Return the number of each item's cluster, from 0 in the order of the items.

    Items that have a key in common are in one cluster, also over a third one.
    """
    parents = list(range(len(keys[0])))

    def find(item: int) -> int:
        while parents[item] != item:
            parents[item] = item = parents[parents[item]]
        return item

    for values in keys:
        seen: dict[Hashable, int] = {}
        for item, value in enumerate(values):
            first, second = sorted((find(item), find(seen.setdefault(value, item))))
            parents[second] = first
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(find(item), len(numbers)) for item in range(len(parents)))


def _count_nonfinite(inputs: TaskInputs) -> int:
    """Return how many embeddings of a variant hold NaN or Inf, for a task that did not count."""
    given = (inputs, inputs.bank) if inputs.bank else (inputs,)
    embedded = [found for part in given for found in (part.images, part.texts) if found is not None]
    return sum(int((~find_finite(found)).sum()) for found in embedded)


def measure_margins(scores: torch.Tensor, *, right: torch.Tensor, k: int = 1) -> list[float]:
    """Return by how much the best right answer of each row is above its `k`-th best wrong one.

    `scores` and `right` (whether an answer is a right one) are [N, C]. 0 where one is no number.
    """
    import torch

    best = scores.masked_fill(~right, -torch.inf).amax(dim=1)
    wrong = scores.masked_fill(right, -torch.inf).topk(k, dim=1).values[:, -1]
    margins = torch.nan_to_num(best - wrong, nan=0.0, posinf=0.0, neginf=0.0)
    return [round(margin, 5) for margin in margins.tolist()]


def refuse_forced(k: int, *, wrong: torch.Tensor, names: Sequence[str], subject: str) -> None:
    """Raise DataError where the `k` nearest of a query hold a right answer whatever the model.

    `wrong` [N] is how many wrong answers each of the queries `names` has to choose from.
    """
    forced = (wrong < k).nonzero()[:, 0].tolist()
    if forced:
        least = int(wrong.min())
        raise DataError(
            f"{subject}: {len(forced)} of {len(names)} queries, first {names[forced[0]]!r}, have "
            f"fewer than {k} wrong answers, so any model finds a right one: take a K of at most "
            f"{least}, or more samples"
            if least
            else f"{subject}: {len(forced)} of {len(names)} queries, first {names[forced[0]]!r}, "
            f"have no wrong answer to choose from: take samples of several labels"
        )


def find_finite(embedded: torch.Tensor) -> torch.Tensor:
    """Return bool [N]: which embeddings hold neither NaN nor Inf.

    In chunks: what PyTorch makes of all of them is larger than they are.
    """
    import torch

    starts = range(0, len(embedded), CHUNK_ROWS)
    parts = [torch.isfinite(embedded[at : at + CHUNK_ROWS]).all(dim=1) for at in starts]
    return torch.cat(parts) if parts else torch.ones(0, dtype=torch.bool)
