"""Zero-shot classification, with clip-benchmark's definitions: images against texts of classes.

Metrics: `acc1`, `acc5`, `mean_per_class_recall` (clip_benchmark.metrics.zeroshot_classification).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.kind import TaskKind
from pytest_quantgate.tasks.samples import Samples, fill
from pytest_quantgate.tasks.scoring import (
    CHUNK_ROWS,
    Scored,
    TaskInputs,
    find_finite,
    measure_margins,
)

if TYPE_CHECKING:
    import torch

#: The metrics of every task whose answers are classes.
METRICS = ("acc1", "acc5", "mean_per_class_recall")

#: Of more classes, a study of layers keeps those of its samples.
MOST_CLASSES = 256


def list_prompts(samples: Samples) -> list[str]:
    """Return every class name in every template, the templates of one class together."""
    templates = samples.templates or ("{c}",)
    return [fill(t, name) for name in samples.class_names for t in templates]


def average_templates(embedded: torch.Tensor, *, classes: int) -> torch.Tensor:
    """Return the classifier [D, C] of the embeddings of `list_prompts`, [C * templates, D].

    The embeddings of a class name in every template, each normalised, are averaged, and the mean
    is normalised (`clip_benchmark.metrics.zeroshot_classification.zero_shot_classifier`).
    """
    from torch.nn import functional

    unit = functional.normalize(embedded, dim=-1)
    mean = unit.view(classes, -1, unit.shape[-1]).mean(dim=1)
    classifier: torch.Tensor = (mean / mean.norm(dim=-1, keepdim=True)).T.contiguous()
    return classifier


def score(inputs: TaskInputs) -> Scored:
    """Return the outcome of every sample; one whose embedding holds NaN or Inf is wrong."""
    import torch
    from torch.nn import functional

    assert inputs.images is not None
    assert inputs.texts is not None
    classifier = average_templates(inputs.texts, classes=len(inputs.samples.class_names))
    sound = torch.isfinite(classifier).all()
    embedded, every_label = inputs.images, torch.tensor(inputs.samples.labels)

    def score_part(start: int) -> Scored:
        images = embedded[start : start + CHUNK_ROWS]
        labels = every_label[start : start + CHUNK_ROWS]
        cosines = functional.normalize(images, dim=-1) @ classifier
        found = _answer(
            100.0 * cosines, finite=find_finite(images) & sound, labels=labels, inputs=inputs
        )
        right = functional.one_hot(labels, cosines.shape[1]).bool()
        top = 5 if inputs.metric.startswith("acc5") else 1
        return replace(found, margins=measure_margins(cosines, right=right, k=top))

    parts = [score_part(start) for start in range(0, len(embedded), CHUNK_ROWS)]
    return Scored(
        correct=[right for part in parts for right in part.correct],
        answers=[answer for part in parts for answer in part.answers],
        margins=[margin for part in parts for margin in part.margins],
        labels=inputs.samples.labels or (),
        class_names=inputs.samples.class_names,
        nonfinite=sum(part.nonfinite for part in parts),
    )


def score_classes(logits: torch.Tensor, *, finite: torch.Tensor, inputs: TaskInputs) -> Scored:
    """Return what scores of classes [N, C] answer; where not `finite` [N], nothing.

    A class with a score of -inf is never an answer that is right.

    Raises DataError for acc5 where there are no more than five classes: every answer were right.
    """
    import torch

    samples = inputs.samples
    assert samples.labels is not None
    found = _answer(logits, finite=finite, labels=torch.tensor(samples.labels), inputs=inputs)
    return replace(found, labels=samples.labels, class_names=samples.class_names)


def _answer(
    logits: torch.Tensor, *, finite: torch.Tensor, labels: torch.Tensor, inputs: TaskInputs
) -> Scored:
    """Return what `score_classes` does of some samples, which have `labels` [N]."""
    import torch

    top = 5 if inputs.metric.startswith("acc5") else 1
    if logits.shape[1] <= top != 1:
        raise DataError(
            f"{inputs.metric} of {inputs.task} needs more than {top} classes, there are "
            f"{logits.shape[1]}"
        )
    scores, best = logits.topk(top, dim=1)
    hits = (best == labels[:, None]) & (scores > -torch.inf)
    answers = torch.where(finite, best[:, 0], torch.tensor(-1))
    return Scored(
        correct=(hits.any(dim=1) & finite).tolist(),
        answers=answers.tolist(),
        nonfinite=int((~finite).sum()),
    )


def simplify(samples: Samples) -> Samples:
    """Return samples with about as many prompts as there are samples.

    Of many templates the first are kept, at least one; of more than `MOST_CLASSES` classes those of
    the samples, which makes the task easier for every state alike.
    """
    assert samples.labels is not None
    if len(samples.class_names) > MOST_CLASSES:
        kept = sorted(set(samples.labels))
        samples = replace(
            samples,
            class_names=tuple(samples.class_names[label] for label in kept),
            labels=tuple(kept.index(label) for label in samples.labels),
        )
    most = max(1, len(samples) // len(samples.class_names))
    return replace(samples, templates=samples.templates[:most])


KIND = TaskKind(
    name="classification",
    help="zero-shot: images against class names in templates",
    purpose="classification",
    towers=("vision", "text"),
    metrics=METRICS,
    proposed=("acc1",),
    list_texts=list_prompts,
    score=score,
    has_classes=True,
    is_zero_shot=True,
    simplify=simplify,
    name_answers=lambda samples, _: samples.class_names,
)
