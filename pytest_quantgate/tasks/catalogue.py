"""Search in a catalogue of pictures, where several answers are right: those with the query's label.

Metrics: `hit@K`, the share of queries with a right answer among the K nearest (what retrieval
benchmarks such as Stanford Online Products call Recall@K), and `precision@K`, the share of the K
nearest that is right, on average over the queries: each of the K is one outcome, and those of a
query count as one group. Cosine similarity. A picture never finds its own copies.
"""

from __future__ import annotations

from collections import Counter

from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.kind import TaskKind
from pytest_quantgate.tasks.knn import check_bank
from pytest_quantgate.tasks.neighbours import count_queries, find_nearest
from pytest_quantgate.tasks.scoring import Scored, TaskInputs, find_finite


def score(inputs: TaskInputs) -> Scored:
    """Return what each query finds; raises DataError for queries that nothing can answer."""
    import torch

    bank, labels = check_bank(inputs)
    samples, k = inputs.samples, inputs.k
    assert inputs.images is not None
    assert bank.images is not None
    assert samples.labels is not None
    assert k is not None
    _refuse_without_answer(inputs, bank)
    _, indices = find_nearest(
        inputs.images,
        bank.images,
        asked=inputs.pixels,
        stored=bank.pixels,
        k=k,
        subject=f"{inputs.metric} of {inputs.task}",
    )
    finite = find_finite(inputs.images) & find_finite(bank.images).all()
    found = torch.where(finite[:, None], labels[indices], torch.tensor(-1))
    hits = found == torch.tensor(samples.labels)[:, None]
    bad = int((~finite).sum())
    if inputs.metric.startswith("hit"):
        return Scored(
            correct=hits.any(dim=1).tolist(),
            answers=found[:, 0].tolist(),
            labels=samples.labels,
            class_names=samples.class_names,
            nonfinite=bad,
        )
    rows = torch.arange(len(samples)).repeat_interleave(k).tolist()
    return Scored(
        correct=hits.flatten().tolist(),
        answers=found.flatten().tolist(),
        ids=[f"{samples.ids[row]}#{place % k}" for place, row in enumerate(rows)],
        labels=[samples.labels[row] for row in rows],
        class_names=samples.class_names,
        shared=([inputs.pixels[row] for row in rows],),
        copies=k * (len(samples) - len(set(zip(inputs.pixels, samples.labels, strict=True)))),
        nonfinite=bad,
    )


def _refuse_without_answer(inputs: TaskInputs, bank: TaskInputs) -> None:
    """Raise DataError where a query has no other picture with its label in the catalogue."""
    samples = inputs.samples
    assert samples.labels is not None
    assert bank.samples.labels is not None
    stored = Counter(bank.samples.labels)
    copies = Counter(zip(bank.samples.labels, bank.pixels, strict=True))
    alone = [
        name
        for name, label, pixels in zip(samples.ids, samples.labels, inputs.pixels, strict=True)
        if stored[label] == copies[label, pixels]
    ]
    if alone:
        raise DataError(
            f"{inputs.task}: {len(alone)} of {len(samples)} queries have no right answer in "
            f"{bank.samples.name}, first {alone[0]!r}: leave them out, or name a larger bank"
        )


KIND = TaskKind(
    name="catalogue",
    help="pictures find others with their label in a catalogue",
    purpose="classification",
    metrics=("hit@K", "precision@K"),
    proposed=("hit@5",),
    score=score,
    has_classes=True,
    bank="may",
    name_answers=lambda samples, _: samples.class_names,
    count_queries=lambda metric, images, _: count_queries(
        metric if metric.startswith("precision") else "hit", images
    ),
)
