"""The linear probe equals scikit-learn's ridge classifier."""

from __future__ import annotations

import pytest
import torch

from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import TaskInputs
from tests.unit.tasks.task_builders import answer, make_clusters

pytestmark = pytest.mark.slow


def as_bank(samples: Samples, images: torch.Tensor) -> TaskInputs:
    return TaskInputs(samples=samples, pixels=samples.hashes, metric="", images=images)


@pytest.mark.parametrize("count", [6, 40, 300])
def test_it_answers_as_scikit_learn(count: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    bank, stored = make_clusters(count, seed=1, classes=7, spread=1.2, prefix="bank")
    samples, images = make_clusters(200, seed=2, classes=7, spread=1.2)
    judge = linear.RidgeClassifier()
    rows, asked = (preprocessing.normalize(x.double().numpy()) for x in (stored, images))
    # Classes without a sample in the bank are nobody's answer here, and unknown there.
    judge.fit(rows, bank.labels)

    found = answer(
        samples, kind="linear_probe", metric="acc1", images=images, bank=as_bank(bank, stored)
    )

    assert found.answers == tuple(judge.predict(asked).tolist())
    assert 0.15 < found.value < 1


def test_the_scale_of_embeddings_is_nothing() -> None:
    bank, stored = make_clusters(80, seed=1, prefix="bank")
    samples, images = make_clusters(80, seed=2)
    found, again = (
        answer(
            samples,
            kind="linear_probe",
            metric="acc5" if len(samples.class_names) > 4 else "acc1",
            images=scale * images,
            bank=as_bank(bank, scale * stored),
        )
        for scale in (1, 64)
    )

    assert found.answers == again.answers


def test_nan_in_the_bank_spoils_all() -> None:
    bank, stored = make_clusters(30, seed=1, prefix="bank")
    samples, images = make_clusters(30, seed=2)
    stored[0] = torch.nan
    found = answer(
        samples, kind="linear_probe", metric="acc1", images=images, bank=as_bank(bank, stored)
    )

    assert found.nonfinite == 30
    assert not any(found.correct)


def test_a_bank_of_other_classes_is_refused() -> None:
    bank, stored = make_clusters(30, seed=1, classes=3, prefix="bank")
    samples, images = make_clusters(30, seed=2, classes=4)

    with pytest.raises(DataError, match="are not those of"):
        answer(
            samples, kind="linear_probe", metric="acc1", images=images, bank=as_bank(bank, stored)
        )
