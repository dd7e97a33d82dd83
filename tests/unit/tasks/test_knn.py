"""k-NN on embeddings equals scikit-learn's, with and without a bank."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch

from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.knn import TEMPERATURE
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import TaskInputs
from tests.unit.tasks.task_builders import answer, make_clusters

pytestmark = pytest.mark.slow


def as_bank(samples: Samples, images: torch.Tensor) -> TaskInputs:
    return TaskInputs(samples=samples, pixels=samples.hashes, metric="", images=images)


def weigh(distances: numpy.ndarray) -> numpy.ndarray:
    return numpy.exp((1 - distances) / TEMPERATURE)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_a_bank_votes_as_in_scikit_learn(k: int) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    bank, stored = make_clusters(200, seed=1, prefix="bank")
    samples, images = make_clusters(150, seed=2)
    assert bank.labels is not None
    assert samples.labels is not None
    judge = neighbors.KNeighborsClassifier(n_neighbors=k, metric="cosine", weights=weigh)
    judge.fit(stored.numpy(), bank.labels)

    found = answer(
        samples, kind="knn", metric=f"acc1@{k}", images=images, bank=as_bank(bank, stored)
    )

    assert found.answers == tuple(judge.predict(images.numpy()).tolist())
    assert found.value == judge.score(images.numpy(), samples.labels)
    assert 0.5 < found.value < 1


def test_without_a_bank_each_is_left_out_as_in_scikit_learn() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    selection = pytest.importorskip("sklearn.model_selection")
    samples, images = make_clusters(120, seed=3)
    judge = neighbors.KNeighborsClassifier(n_neighbors=20, metric="cosine", weights=weigh)
    expected = selection.cross_val_predict(
        judge, images.numpy(), samples.labels, cv=selection.LeaveOneOut()
    )

    assert answer(samples, kind="knn", metric="acc1", images=images).answers == tuple(expected)


def test_the_first_five_and_the_mean_over_classes_are_those_of_the_votes() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    metrics = pytest.importorskip("sklearn.metrics")
    bank, stored = make_clusters(300, seed=4, classes=8, spread=1.4, prefix="bank")
    samples, images = make_clusters(150, seed=5, classes=8, spread=1.4)
    judge = neighbors.KNeighborsClassifier(n_neighbors=40, metric="cosine", weights=weigh)
    judge.fit(stored.numpy(), bank.labels)
    votes = judge.predict_proba(images.numpy())
    of = {"images": images, "bank": as_bank(bank, stored)}

    five = answer(samples, kind="knn", metric="acc5@40", **of)  # type: ignore[arg-type]
    mean = answer(samples, kind="knn", metric="mean_per_class_recall@40", **of)  # type: ignore[arg-type]

    assert five.value == metrics.top_k_accuracy_score(samples.labels, votes, k=5)
    assert mean.value == pytest.approx(
        metrics.balanced_accuracy_score(samples.labels, judge.predict(images.numpy()))
    )
    assert mean.value < five.value < 1


def test_a_class_without_a_vote_is_no_answer() -> None:
    samples, images = make_clusters(60, seed=6, classes=6)
    found = answer(samples, kind="knn", metric="acc5@1", images=images)

    # One neighbour has one class: the other four places are empty, not filled at random.
    assert found.value == answer(samples, kind="knn", metric="acc1@1", images=images).value


def test_a_copy_in_the_bank_does_not_answer_for_its_picture() -> None:
    samples, images = make_clusters(100, seed=2, spread=1.4)
    leaked = replace(samples, name="bank", ids=tuple(f"copy of {name}" for name in samples.ids))

    # Each finds its own copy at a cosine of 1 and would be right.
    found = answer(
        samples, kind="knn", metric="acc1@1", images=images, bank=as_bank(leaked, images)
    )

    assert found.answers == answer(samples, kind="knn", metric="acc1@1", images=images).answers
    assert found.value < 0.9


def test_a_bank_of_other_classes_is_refused() -> None:
    bank, stored = make_clusters(30, seed=1, classes=3, prefix="bank")
    samples, images = make_clusters(30, seed=2, classes=4)

    with pytest.raises(DataError, match=r"the classes of the bank .* are not those of .*: 3 and 4"):
        answer(samples, kind="knn", metric="acc1", images=images, bank=as_bank(bank, stored))


def test_more_neighbours_than_pictures_are_refused() -> None:
    samples, images = make_clusters(20, seed=2)

    with pytest.raises(
        DataError, match=r"acc1 of d/knn looks at the 20 nearest, .* only 19 besides"
    ):
        answer(samples, kind="knn", metric="acc1", images=images)


def test_nan_is_wrong_and_counted_and_spoils_a_bank() -> None:
    samples, images = make_clusters(60, seed=2)
    spoiled = images.clone()
    spoiled[3] = torch.nan
    bank, stored = make_clusters(60, seed=3, prefix="bank")

    alone = answer(samples, kind="knn", metric="acc1@5", images=spoiled, bank=as_bank(bank, stored))
    assert (alone.nonfinite, alone.answers[3], alone.correct[3]) == (1, -1, False)
    stored[0] = torch.inf
    found = answer(samples, kind="knn", metric="acc1@5", images=images, bank=as_bank(bank, stored))
    assert found.nonfinite == 60
    assert not any(found.correct)
