"""Search in a catalogue with several right answers, against a plain computation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch

from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.kind import Queries, find_task
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import TaskInputs
from tests.unit.tasks.task_builders import answer, make_clusters

pytestmark = pytest.mark.slow


def as_bank(samples: Samples, images: torch.Tensor) -> TaskInputs:
    return TaskInputs(samples=samples, pixels=samples.hashes, metric="", images=images)


def rank(queries: torch.Tensor, stored: torch.Tensor) -> list[list[int]]:
    """Return the catalogue's order for each query, by a plain loop in float64."""
    rows, others = (x.double().numpy() for x in (queries, stored))
    unit = others / numpy.linalg.norm(others, axis=1, keepdims=True)
    return [numpy.argsort(-(unit @ row)).tolist() for row in rows]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_values_are_those_of_a_plain_loop(k: int) -> None:
    bank, stored = make_clusters(150, seed=1, classes=9, spread=1.5, prefix="bank")
    samples, images = make_clusters(120, seed=2, classes=9, spread=1.5)
    assert bank.labels is not None
    assert samples.labels is not None
    orders = rank(images, stored)
    right = [
        [bank.labels[index] == label for index in order[:k]]
        for order, label in zip(orders, samples.labels, strict=True)
    ]
    of: Mapping[str, Any] = {"images": images, "bank": as_bank(bank, stored)}

    hit = answer(samples, kind="catalogue", metric=f"hit@{k}", **of)
    precision = answer(samples, kind="catalogue", metric=f"precision@{k}", **of)

    assert hit.correct == tuple(map(any, right))
    assert precision.value == pytest.approx(sum(map(sum, right)) / (k * 120))
    assert precision.clusters == (tuple(i for i in range(120) for _ in range(k)) if k > 1 else ())
    assert len(set(precision.ids)) == 120 * k
    assert 0.1 < precision.value < 1


def test_grades_are_those_of_scikit_learn_and_of_the_definitions() -> None:
    """nDCG is scikit-learn's; recall and reciprocal rank are read off its order, in float64."""
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    bank, stored = make_clusters(150, seed=1, classes=9, spread=1.5, prefix="bank")
    samples, images = make_clusters(120, seed=2, classes=9, spread=1.5)
    of: Mapping[str, Any] = {"images": images, "bank": as_bank(bank, stored)}
    right = numpy.array(samples.labels)[:, None] == numpy.array(bank.labels)
    unit = [x.double() / x.double().norm(dim=1, keepdim=True) for x in (images, stored)]
    cosines = (unit[0] @ unit[1].T).numpy()
    ordered = numpy.take_along_axis(right, (-cosines).argsort(axis=1), axis=1)

    for k in (1, 5, 40):
        ndcg = answer(samples, kind="catalogue", metric=f"ndcg@{k}", **of)
        recall = answer(samples, kind="catalogue", metric=f"recall@{k}", **of)
        each = [ndcg_score(right[i : i + 1], cosines[i : i + 1], k=k) for i in range(120)]
        assert ndcg.correct == pytest.approx(each, abs=1e-6)
        assert ndcg.value == pytest.approx(ndcg_score(right, cosines, k=k), abs=1e-6)
        assert recall.correct == pytest.approx(
            ordered[:, :k].sum(axis=1) / right.sum(axis=1), abs=1e-6
        )
    mrr = answer(samples, kind="catalogue", metric="mrr", **of)
    assert mrr.correct == pytest.approx(1 / (ordered.argmax(axis=1) + 1), abs=1e-6)
    assert 0.2 < mrr.value < 0.9
    assert mrr.answers == answer(samples, kind="catalogue", metric="hit@1", **of).answers


def test_copies_are_no_answers_that_a_grade_waits_for() -> None:
    """Each picture twice, in another order: what is found of the others stays what it was."""
    samples, images = make_clusters(40, seed=3, classes=3, spread=1.5)
    doubled = as_bank(samples.select([*range(40)]), images)
    alone = answer(samples, kind="catalogue", metric="recall@20", images=images)

    assert 0.5 < alone.value < 1
    assert (
        answer(samples, kind="catalogue", metric="recall@20", images=images, bank=doubled).correct
        == alone.correct
    )


def test_embeddings_that_are_all_alike_find_nothing() -> None:
    samples, images = make_clusters(60, seed=3, classes=6)
    same = torch.ones_like(images)

    found = answer(samples, kind="catalogue", metric="mrr", images=same)

    assert found.value < 0.05


def test_labels_that_are_shifted_or_scores_that_are_negated_show() -> None:
    samples, images = make_clusters(200, seed=5, classes=9, spread=1.0)
    bank, stored = make_clusters(200, seed=6, classes=9, spread=1.0, prefix="bank")
    assert bank.labels is not None
    shifted = replace(bank, labels=(*bank.labels[1:], bank.labels[0]))
    for metric in ("mrr", "ndcg@10", "recall@10"):
        value = answer(
            samples, kind="catalogue", metric=metric, images=images, bank=as_bank(bank, stored)
        ).value
        for broken in (as_bank(shifted, stored), as_bank(bank, -stored)):
            found = answer(samples, kind="catalogue", metric=metric, images=images, bank=broken)
            assert found.value < 0.6 * value


def test_without_a_bank_each_looks_among_the_others() -> None:
    samples, images = make_clusters(80, seed=3, spread=1.5)
    assert samples.labels is not None
    found = answer(samples, kind="catalogue", metric="hit@1", images=images)
    nearest = [
        next(other for other in order if other != index)
        for index, order in enumerate(rank(images, images))
    ]

    assert found.answers == tuple(samples.labels[index] for index in nearest)


def test_a_query_that_nothing_answers_is_named() -> None:
    samples, images = make_clusters(30, seed=3, classes=3)
    assert samples.labels is not None
    lonely = replace(
        samples, labels=(3, *samples.labels[1:]), class_names=(*samples.class_names, "rare")
    )
    with pytest.raises(DataError, match=r"1 of 30 queries have no right answer in d/test, first"):
        answer(lonely, kind="catalogue", metric="hit@5", images=images)
    # A copy of its own is no answer either.
    doubled = as_bank(replace(lonely, name="shelf"), images)
    with pytest.raises(DataError, match="1 of 30 queries have no right answer in shelf"):
        answer(lonely, kind="catalogue", metric="hit@5", images=images, bank=doubled)


@pytest.mark.parametrize("metric", ["hit", "precision", "recall"])
def test_a_k_that_no_model_can_miss_is_named(metric: str) -> None:
    """Of 40 pictures with 3 labels, 26 are wrong for some: among 27 one is right in any order."""
    samples, images = make_clusters(40, seed=3, classes=3, spread=1.5)

    answer(samples, kind="catalogue", metric=f"{metric}@26", images=images)
    with pytest.raises(
        DataError,
        match=rf"{metric}@27 of d/catalogue: \d+ of 40 queries, first '\d+', have fewer than 27 "
        r"wrong answers, so any model finds a right one: take a K of at most 26",
    ):
        answer(samples, kind="catalogue", metric=f"{metric}@27", images=images)
    # Of another 40 with the same labels so many are wrong, and of copies of its own none.
    again = replace(samples, name="bank", ids=tuple(f"bank-{name}" for name in samples.ids))
    assert again.labels is not None
    bank = as_bank(
        replace(
            again,
            ids=(*samples.ids, *again.ids),
            images=[None] * 80,
            hashes=samples.hashes * 2,
            labels=again.labels * 2,
        ),
        images.repeat(2, 1),
    )
    with pytest.raises(DataError, match="take a K of at most 52"):
        answer(samples, kind="catalogue", metric=f"{metric}@53", images=images, bank=bank)


@pytest.mark.parametrize("metric", ["hit@1", "mrr", "ndcg@5"])
def test_one_label_alone_is_named(metric: str) -> None:
    samples, images = make_clusters(40, seed=3, classes=3)
    alike = replace(samples, labels=(0,) * 40)
    with pytest.raises(DataError, match="have no wrong answer to choose from: take samples of sev"):
        answer(alike, kind="catalogue", metric=metric, images=images)


def test_nan_finds_nothing_and_is_counted() -> None:
    samples, images = make_clusters(40, seed=3)
    bank, stored = make_clusters(40, seed=4, prefix="bank")
    images[2] = torch.nan
    for metric in ("hit@3", "recall@3", "mrr", "ndcg@3"):
        found = answer(
            samples, kind="catalogue", metric=metric, images=images, bank=as_bank(bank, stored)
        )

        assert (found.nonfinite, found.correct[2], found.answers[2]) == (1, False, -1)


def test_outcomes_are_counted_by_metric() -> None:
    kind = find_task("d/catalogue")

    assert kind.count_queries("hit@5", 100, 0) == Queries(count=100)
    assert kind.count_queries("mrr", 100, 0) == Queries(count=100)
    assert kind.count_queries("precision@5", 100, 0) == Queries(count=500, groups=100)
