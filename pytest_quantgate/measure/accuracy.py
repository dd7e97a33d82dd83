"""Per-sample outcomes of zero-shot classification and retrieval, with clip-benchmark's definitions.

Metrics: `acc1`, `acc5`, `mean_per_class_recall` (clip_benchmark.metrics.zeroshot_classification);
`image_retrieval_recall@K` (a text finds its image) and `text_retrieval_recall@K` (an image finds
one of its texts; clip_benchmark.metrics.zeroshot_retrieval).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.tasks.contents import count_copies
from pytest_quantgate.tasks.samples import Samples

if TYPE_CHECKING:
    import torch

CLASSIFICATION_METRICS = ("acc1", "acc5", "mean_per_class_recall")
_RETRIEVAL = re.compile(r"(image|text)_retrieval_recall@([1-9]\d*)")

#: Rows of a score matrix that are held at once.
CHUNK_ROWS = 512


def classification_outcomes(
    *,
    images: torch.Tensor,
    classifier: torch.Tensor,
    samples: Samples,
    task: str,
    metric: str,
    variant: str,
) -> Outcomes:
    """Return the outcome of every sample for image embeddings [N, D] and a classifier [D, C].

    A sample whose embedding holds NaN or Inf is wrong, and counted in `nonfinite`. Raises
    DataError for a metric that is none of classification, or acc5 with fewer than five classes.
    """
    import torch
    from torch.nn import functional

    if metric not in CLASSIFICATION_METRICS:
        raise DataError(f"{metric!r} is no metric of {task}: {', '.join(CLASSIFICATION_METRICS)}")
    assert samples.labels is not None
    top = 5 if metric == "acc5" else 1
    if classifier.shape[1] < top:
        raise DataError(f"{metric} of {task} needs {top} classes, there are {classifier.shape[1]}")
    labels = torch.tensor(samples.labels)
    finite = torch.isfinite(images).all(dim=1) & torch.isfinite(classifier).all()
    logits = 100.0 * functional.normalize(images, dim=-1) @ classifier
    best = logits.topk(top, dim=1).indices
    correct = (best == labels[:, None]).any(dim=1) & finite
    answers = torch.where(finite, best[:, 0], torch.tensor(-1))
    return Outcomes(
        task=task,
        metric=metric,
        variant=variant,
        ids=samples.ids,
        correct=tuple(bool(c) for c in correct.tolist()),
        answers=tuple(answers.tolist()),
        labels=samples.labels,
        class_names=samples.class_names,
        value=_value(correct=correct, labels=labels, metric=metric),
        data_digest=samples.digest,
        nonfinite=int((~finite).sum()),
    )


def retrieval_outcomes(
    *,
    images: torch.Tensor,
    texts: torch.Tensor,
    image_of_text: Sequence[int],
    samples: Samples,
    task: str,
    metric: str,
    variant: str,
) -> Outcomes:
    """Return the outcome of every query for embeddings of images [N, D] and texts [M, D].

    `image_of_text[j]` is the index of the image that text j describes. Scores are computed a few
    rows at a time: at MS-COCO size the whole matrix would take half a gigabyte. Raises DataError
    for a metric that is none of retrieval, or a K larger than what there is to find.
    """
    import torch
    from torch.nn import functional

    found = _RETRIEVAL.fullmatch(metric)
    if found is None:
        raise DataError(
            f"{metric!r} is no metric of {task}: image_retrieval_recall@K, text_retrieval_recall@K"
        )
    k = int(found.group(2))
    owner = torch.tensor(list(image_of_text))
    unit_images, unit_texts = (
        functional.normalize(images, dim=-1),
        functional.normalize(texts, dim=-1),
    )
    by_text = found.group(1) == "image"
    queries, candidates = (len(texts), len(images)) if by_text else (len(images), len(texts))
    if k > candidates:
        raise DataError(f"{metric} of {task}: there are only {candidates} candidates")
    correct, answers = [], []
    for start in range(0, queries, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, queries)
        if by_text:
            best = (unit_texts[start:stop] @ unit_images.T).topk(k, dim=1).indices
            hit = (best == owner[start:stop, None]).any(dim=1)
        else:
            best = (unit_texts @ unit_images[start:stop].T).T.topk(k, dim=1).indices
            hit = (owner[best] == torch.arange(start, stop)[:, None]).any(dim=1)
        correct.append(hit)
        answers.append(best[:, 0])
    finite_images, finite_texts = (torch.isfinite(x).all(dim=1) for x in (images, texts))
    finite = finite_texts if by_text else finite_images
    hits = torch.cat(correct) & finite
    ids = _text_ids(samples, image_of_text) if by_text else samples.ids
    return Outcomes(
        task=task,
        metric=metric,
        variant=variant,
        ids=ids,
        correct=tuple(bool(c) for c in hits.tolist()),
        answers=tuple(torch.cat(answers).tolist()),
        labels=(-1,) * queries,
        class_names=(),
        value=float(hits.double().mean()),
        data_digest=samples.digest,
        nonfinite=int((~finite_images).sum() + (~finite_texts).sum()),
    )


def list_captions(samples: Samples) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return all captions in order and, for each, the index of its image."""
    assert samples.captions is not None
    texts = tuple(text for captions in samples.captions for text in captions)
    owners = tuple(i for i, captions in enumerate(samples.captions) for _ in captions)
    return texts, owners


def cluster_samples(outcomes: Outcomes, *, samples: Samples, pixels: Sequence[str]) -> Outcomes:
    """Return outcomes that say which of their samples are not independent, and which are copies.

    `pixels` are the digests of the images. Samples of one picture are a cluster, whatever their
    labels; so are queries of one text, and the captions of one image: they look for the same thing,
    and are found or lost together. A sample whose picture and label (captions) another one had
    before is a copy of that.
    """
    if outcomes.metric.startswith("image"):  # a caption looks for its picture
        texts, owners = list_captions(samples)
        shown = [pixels[owner] for owner in owners]
        clusters = number_clusters(shown, texts)
        copies = len(texts) - len(set(zip(shown, texts, strict=True)))
    else:
        clusters = number_clusters(pixels)
        copies = count_copies(samples, pixels=pixels)
    alone = len(set(clusters)) == len(clusters)
    return replace(outcomes, clusters=() if alone else clusters, copies=copies)


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


def _text_ids(samples: Samples, image_of_text: Sequence[int]) -> tuple[str, ...]:
    seen: dict[int, int] = {}
    ids = []
    for image in image_of_text:
        seen[image] = seen.get(image, -1) + 1
        ids.append(f"{samples.ids[image]}#{seen[image]}")
    return tuple(ids)


def _value(*, correct: torch.Tensor, labels: torch.Tensor, metric: str) -> float:
    """Return the metric in [0, 1]; mean_per_class_recall averages over the classes that occur."""
    import torch

    if metric != "mean_per_class_recall":
        return float(correct.double().mean())
    recalls = [float(correct[labels == label].double().mean()) for label in torch.unique(labels)]
    return sum(recalls) / len(recalls)
