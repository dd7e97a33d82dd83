"""A linear probe on image embeddings: ridge regression on the labels of a bank, in closed form.

Embeddings are normalised, and the classifier is that of scikit-learn's `RidgeClassifier` with its
defaults (alpha = 1, an intercept that is not shrunk): nothing is drawn and nothing iterates, so two
runs give the same. Each variant is probed by a classifier of its own embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_quantgate.tasks.classification import METRICS, score_classes
from pytest_quantgate.tasks.kind import TaskKind
from pytest_quantgate.tasks.knn import check_bank
from pytest_quantgate.tasks.scoring import Scored, TaskInputs, find_finite

if TYPE_CHECKING:
    import torch

ALPHA = 1.0


def fit_ridge(
    rows: torch.Tensor, labels: torch.Tensor, *, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights [D, C] and intercepts [C] of float64 rows [N, D] with labels [N]."""
    import torch
    from torch.nn import functional

    wanted = functional.one_hot(labels, classes).to(rows.dtype)
    centre, mean = rows.mean(dim=0), wanted.mean(dim=0)
    around = rows - centre
    gram = around.T @ around + ALPHA * torch.eye(rows.shape[1], dtype=rows.dtype)
    weights = torch.linalg.solve(gram, around.T @ (wanted - mean))
    return weights, mean - centre @ weights


def score(inputs: TaskInputs) -> Scored:
    """Return the class that the probe finds for each sample."""
    import torch
    from torch.nn import functional

    bank, labels = check_bank(inputs)
    assert inputs.images is not None
    assert bank.images is not None
    finite = find_finite(inputs.images) & find_finite(bank.images).all()
    stored, asked = (
        functional.normalize(torch.nan_to_num(images, posinf=0, neginf=0).double(), dim=-1)
        for images in (bank.images, inputs.images)
    )
    weights, intercepts = fit_ridge(stored, labels, classes=len(inputs.samples.class_names))
    return score_classes(asked @ weights + intercepts, finite=finite, inputs=inputs)


KIND = TaskKind(
    name="linear_probe",
    help="a linear classifier on image embeddings, fitted to a bank",
    purpose="classification",
    metrics=METRICS,
    proposed=("acc1",),
    score=score,
    has_classes=True,
    bank="must",
    name_answers=lambda samples, _: samples.class_names,
)
