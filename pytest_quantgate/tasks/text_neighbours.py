"""Whether captions keep their nearest neighbours among the captions, with FP16 as the truth.

As `neighbours`, for a text tower: semantic search within texts. A caption is no neighbour of one
that reads the same.
"""

from __future__ import annotations

from dataclasses import replace

from pytest_quantgate.tasks.kind import TaskKind
from pytest_quantgate.tasks.neighbours import (
    METRICS,
    count_chance,
    count_queries,
    score_agreement,
)
from pytest_quantgate.tasks.retrieval import list_captions, list_owners, name_captions
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import Scored, TaskInputs


def score(inputs: TaskInputs) -> Scored:
    """Return whether each caption has the neighbours that it has in FP16."""
    texts, reference = inputs.texts, inputs.reference.texts
    assert texts is not None
    assert reference is not None
    captions = list_captions(inputs.samples)
    ids = name_captions(inputs.samples, list_owners(inputs.samples))
    return score_agreement(texts, reference, shown=captions, ids=ids, inputs=inputs)


def name_queries(samples: Samples, metric: str) -> tuple[str, ...]:
    """Return the caption that each outcome is of."""
    _, at, k = metric.partition("@")
    return tuple(text for text in list_captions(samples) for _ in range(int(k) if at else 1))


KIND = TaskKind(
    name="text_neighbours",
    help="captions keep the nearest neighbours among captions that they have in FP16",
    purpose="retrieval",
    towers=("text",),
    metrics=METRICS,
    proposed=("top1",),
    list_texts=list_captions,
    score=score,
    chance=count_chance,
    needs_fp16=True,
    simplify=lambda samples: replace(
        samples, captions=tuple(texts[:1] for texts in samples.captions or ())
    ),
    name_answers=lambda samples, _: list_captions(samples),
    name_queries=name_queries,
    count_queries=lambda metric, _, captions: count_queries(metric, captions),
)
