"""Retrieval of images by captions and captions by images, with clip-benchmark's definitions.

Metrics: `image_retrieval_recall@K` (a text finds its image) and `text_retrieval_recall@K` (an image
finds one of its texts; clip_benchmark.metrics.zeroshot_retrieval).
"""

from __future__ import annotations

from dataclasses import replace

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.tasks.kind import Queries, TaskKind
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import (
    CHUNK_ROWS,
    Scored,
    TaskInputs,
    find_finite,
    measure_margins,
    refuse_forced,
)


def asks_with_texts(metric: str) -> bool:
    """Return whether texts look for images, and not the other way round."""
    return metric.startswith("image")


def list_captions(samples: Samples) -> tuple[str, ...]:
    """Return all captions in order."""
    return tuple(text for captions in samples.captions or () for text in captions)


def list_owners(samples: Samples) -> tuple[int, ...]:
    """Return for each caption the index of its image."""
    return tuple(i for i, captions in enumerate(samples.captions or ()) for _ in captions)


def score(inputs: TaskInputs) -> Scored:
    """Return the outcome of every query.

    Scores are computed a few rows at a time: at MS-COCO size the whole matrix would take half a
    gigabyte. Raises DataError for a K that is not less than what there is to find, or larger than
    the number of captions that are wrong for an image: every query were answered.
    """
    import torch
    from torch.nn import functional

    images, texts, k = inputs.images, inputs.texts, inputs.k
    assert images is not None
    assert texts is not None
    assert k is not None
    owners = list_owners(inputs.samples)
    owner = torch.tensor(owners)
    unit_images, unit_texts = (
        functional.normalize(images, dim=-1),
        functional.normalize(texts, dim=-1),
    )
    by_text = asks_with_texts(inputs.metric)
    queries, candidates = (len(texts), len(images)) if by_text else (len(images), len(texts))
    if k >= candidates:
        raise DataError(f"{inputs.metric} of {inputs.task}: there are only {candidates} candidates")
    if not by_text:
        refuse_forced(
            k,
            wrong=len(texts) - torch.bincount(owner, minlength=len(images)),
            names=inputs.samples.ids,
            subject=f"{inputs.metric} of {inputs.task}",
        )
    correct, answers = [], []
    margins: list[float] = []
    for start in range(0, queries, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, queries)
        if by_text:
            cosines = unit_texts[start:stop] @ unit_images.T
            right = torch.arange(candidates) == owner[start:stop, None]
        else:
            cosines = (unit_texts @ unit_images[start:stop].T).T
            right = owner == torch.arange(start, stop)[:, None]
        best = cosines.topk(k, dim=1).indices
        correct.append(right.gather(1, best).any(dim=1))
        answers.append(best[:, 0])
        margins += measure_margins(cosines, right=right, k=k)
    finite_images, finite_texts = find_finite(images), find_finite(texts)
    finite = finite_texts if by_text else finite_images
    found = Scored(
        correct=(torch.cat(correct) & finite).tolist(),
        answers=torch.cat(answers).tolist(),
        nonfinite=int((~finite_images).sum() + (~finite_texts).sum()),
        margins=margins,
    )
    if not by_text:
        return found
    captions, shown = list_captions(inputs.samples), [inputs.pixels[owner] for owner in owners]
    return replace(
        found,
        ids=name_captions(inputs.samples, owners),
        # Captions of one image, and queries of one text, look for the same thing.
        shared=(shown, captions),
        copies=len(captions) - len(set(zip(shown, captions, strict=True))),
    )


def name_captions(samples: Samples, owners: tuple[int, ...]) -> tuple[str, ...]:
    """Return an id for each caption: that of its image, and a number."""
    seen: dict[int, int] = {}
    ids = []
    for image in owners:
        seen[image] = seen.get(image, -1) + 1
        ids.append(f"{samples.ids[image]}#{seen[image]}")
    return tuple(ids)


def count_chance(outcomes: Outcomes) -> float:
    """Return K of N where N queries look for one thing each.

    With K of M captions or of N images shown, chance is at most K/N for an image with M/N captions.
    """
    return min(1.0, int(outcomes.metric.rpartition("@")[2]) / count_independent(outcomes))


def count_independent(outcomes: Outcomes) -> int:
    """Return how many clusters outcomes are in."""
    return len(set(outcomes.clusters)) or len(outcomes.ids)


def count_queries(metric: str, images: int, captions: int) -> Queries:
    if not asks_with_texts(metric):
        return Queries(count=images)
    return Queries(count=captions, groups=images if captions > images else None)


def simplify(samples: Samples) -> Samples:
    """Return samples with the first caption of each image."""
    assert samples.captions is not None
    return replace(samples, captions=tuple(captions[:1] for captions in samples.captions))


def name_answers(samples: Samples, metric: str) -> tuple[str, ...]:
    return samples.ids if asks_with_texts(metric) else list_captions(samples)


KIND = TaskKind(
    name="retrieval",
    help="captions find their images, images their captions",
    purpose="retrieval",
    towers=("vision", "text"),
    metrics=("image_retrieval_recall@K", "text_retrieval_recall@K"),
    proposed=("image_retrieval_recall@5", "text_retrieval_recall@5"),
    list_texts=list_captions,
    score=score,
    chance=count_chance,
    is_zero_shot=True,
    simplify=simplify,
    name_answers=name_answers,
    name_queries=lambda samples, metric: list_captions(samples) if asks_with_texts(metric) else (),
    count_queries=count_queries,
)
