"""Search in a catalogue of pictures, where several answers are right: those with the query's label.

Metrics, each the mean over the queries:

- `hit@K`: whether a right answer is among the K nearest (what retrieval benchmarks such as Stanford
  Online Products call Recall@K);
- `precision@K`: the share of the K nearest that is right: each of the K is one outcome, and those
  of a query count as one group;
- `recall@K`: the share of the right answers that is among the K nearest (trec_eval's recall);
- `mrr`: 1 / rank of the first right answer (trec_eval's recip_rank);
- `ndcg@K`: what the right answers among the K nearest gain, 1 / log2(rank + 1) each, of what they
  could (Järvelin and Kekäläinen, ACM TOIS 20 (2002) 422-446; scikit-learn's `ndcg_score`).

Cosine similarity. A picture never finds its own copies, and they are no right answers of its.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.kind import TaskKind
from pytest_quantgate.tasks.knn import check_bank
from pytest_quantgate.tasks.neighbours import (
    compare_rows,
    count_queries,
    find_nearest,
    number_shown,
)
from pytest_quantgate.tasks.scoring import Scored, TaskInputs, find_finite, refuse_forced

if TYPE_CHECKING:
    import torch


def score(inputs: TaskInputs) -> Scored:
    """Return what each query finds; raises DataError for queries that nothing can answer, or that
    any model does."""
    import torch

    bank, labels = check_bank(inputs)
    samples = inputs.samples
    assert inputs.images is not None
    assert bank.images is not None
    assert samples.labels is not None
    counts = _count_answers(inputs, bank)
    is_of_order = inputs.metric.startswith(("mrr", "ndcg"))
    refuse_forced(
        1 if is_of_order else inputs.k or 1,
        wrong=_count_shown(bank, inputs) - counts,
        names=samples.ids,
        subject=f"{inputs.metric} of {inputs.task}",
    )
    finite = find_finite(inputs.images) & find_finite(bank.images).all()
    wanted, bad = torch.tensor(samples.labels), int((~finite).sum())
    if inputs.k is None:
        ranks, first = _rank_first(inputs, bank, labels=labels)
        return Scored(
            correct=(finite / ranks).tolist(),
            answers=torch.where(finite, first, torch.tensor(-1)).tolist(),
            labels=samples.labels,
            class_names=samples.class_names,
            nonfinite=bad,
        )
    _, indices = find_nearest(
        inputs.images,
        bank.images,
        asked=inputs.pixels,
        stored=bank.pixels,
        k=inputs.k,
        subject=f"{inputs.metric} of {inputs.task}",
    )
    found = torch.where(finite[:, None], labels[indices], torch.tensor(-1))
    hits = found == wanted[:, None]
    name = inputs.metric.partition("@")[0]
    if name == "precision":
        return _list_places(hits, found, inputs=inputs, nonfinite=bad)
    scores = {"hit": _has_hit, "recall": _recall, "ndcg": _ndcg}[name](hits, counts)
    return Scored(
        correct=scores.tolist(),
        answers=found[:, 0].tolist(),
        labels=samples.labels,
        class_names=samples.class_names,
        nonfinite=bad,
    )


def _has_hit(hits: torch.Tensor, _counts: torch.Tensor) -> torch.Tensor:
    return hits.any(dim=1)


def _recall(hits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return hits.sum(dim=1).double() / counts


def _ndcg(hits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return float64 [N] of hits [N, K] and how many right answers there are [N]."""
    import torch

    gains = 1 / torch.log2(torch.arange(2, hits.shape[1] + 2, dtype=torch.float64))
    best = gains.cumsum(0)[counts.clamp(max=hits.shape[1]) - 1]
    return (hits * gains).sum(dim=1) / best


def _rank_first(
    inputs: TaskInputs, bank: TaskInputs, *, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rank of the first right answer, from 1, and the label of what came first."""
    import torch

    assert inputs.images is not None
    assert bank.images is not None
    wanted = torch.tensor(inputs.samples.labels)
    own, others = number_shown(inputs.pixels, bank.pixels)
    ranks, first = [], []
    for part, rows in compare_rows(inputs.images, bank.images, own=own, others=others):
        is_right = labels == wanted[part, None]
        best = rows.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
        # Wrong ones that are as near come first: embeddings that are all alike find nothing.
        ranks.append(((rows >= best) & ~is_right).sum(dim=1) + 1)
        first.append(labels[rows.argmax(dim=1)])
    return torch.cat(ranks), torch.cat(first)


def _list_places(
    hits: torch.Tensor, found: torch.Tensor, *, inputs: TaskInputs, nonfinite: int
) -> Scored:
    """Return each of the K nearest as an outcome of its own."""
    samples, k = inputs.samples, hits.shape[1]
    assert samples.labels is not None
    rows = [row for row in range(len(samples)) for _ in range(k)]
    return Scored(
        correct=hits.flatten().tolist(),
        answers=found.flatten().tolist(),
        ids=[f"{samples.ids[row]}#{place % k}" for place, row in enumerate(rows)],
        labels=[samples.labels[row] for row in rows],
        class_names=samples.class_names,
        shared=([inputs.pixels[row] for row in rows],),
        copies=k * (len(samples) - len(set(zip(inputs.pixels, samples.labels, strict=True)))),
        nonfinite=nonfinite,
    )


def _count_answers(inputs: TaskInputs, bank: TaskInputs) -> torch.Tensor:
    """Return int64 [N]: how many other pictures with its label each query has in the catalogue.

    Raises DataError where that is none.
    """
    import torch

    samples = inputs.samples
    assert samples.labels is not None
    assert bank.samples.labels is not None
    stored = Counter(bank.samples.labels)
    copies = Counter(zip(bank.samples.labels, bank.pixels, strict=True))
    counts = [
        stored[label] - copies[label, pixels]
        for label, pixels in zip(samples.labels, inputs.pixels, strict=True)
    ]
    alone = [name for name, count in zip(samples.ids, counts, strict=True) if not count]
    if alone:
        raise DataError(
            f"{inputs.task}: {len(alone)} of {len(samples)} queries have no right answer in "
            f"{bank.samples.name}, first {alone[0]!r}: leave them out, or name a larger bank"
        )
    return torch.tensor(counts)


def _count_shown(bank: TaskInputs, inputs: TaskInputs) -> torch.Tensor:
    """Return int64 [N]: how many pictures each query is asked against, all but its copies."""
    import torch

    copies = Counter(bank.pixels)
    return torch.tensor([len(bank.pixels) - copies[pixels] for pixels in inputs.pixels])


KIND = TaskKind(
    name="catalogue",
    help="pictures find others with their label in a catalogue",
    purpose="classification",
    metrics=("hit@K", "precision@K", "recall@K", "mrr", "ndcg@K"),
    proposed=("hit@5",),
    score=score,
    has_classes=True,
    bank="may",
    name_answers=lambda samples, _: samples.class_names,
    count_queries=lambda metric, images, _: count_queries(
        metric if metric.startswith("precision") else "hit", images
    ),
)
