"""k-NN classification on image embeddings, as DINO's evaluation does it.

The K nearest pictures of the bank, by cosine, vote for their class with weight exp(cosine / 0.07)
(Wu et al., CVPR 2018, section 3.4; Caron et al., ICCV 2021, appendix F; `eval_knn.py` of DINO).
Without a bank each sample is asked against all others (leave one out). Each variant has a bank of
its own embeddings.

Metrics: `acc1`, `acc5`, `mean_per_class_recall`, with K = 20, or with another as in `acc1@10`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.classification import METRICS, score_classes
from pytest_quantgate.tasks.kind import TaskKind
from pytest_quantgate.tasks.neighbours import find_nearest
from pytest_quantgate.tasks.scoring import Scored, TaskInputs, find_finite

if TYPE_CHECKING:
    import torch

#: What DINO's evaluation takes.
K = 20
TEMPERATURE = 0.07


def score(inputs: TaskInputs) -> Scored:
    """Return the class that the neighbours of each sample vote for."""
    import torch

    bank, labels = check_bank(inputs)
    assert inputs.images is not None
    assert bank.images is not None
    cosines, indices = find_nearest(
        inputs.images,
        bank.images,
        asked=inputs.pixels,
        stored=bank.pixels,
        k=inputs.k or K,
        subject=f"{inputs.metric} of {inputs.task}",
    )
    weights = (cosines.double() / TEMPERATURE).exp()
    votes = torch.zeros(len(indices), len(inputs.samples.class_names), dtype=torch.float64)
    votes.scatter_add_(1, labels[indices], weights)
    votes[votes == 0] = -torch.inf  # nobody's vote is no answer
    finite = find_finite(inputs.images) & find_finite(bank.images).all()
    return score_classes(votes, finite=finite, inputs=inputs)


def check_bank(inputs: TaskInputs) -> tuple[TaskInputs, torch.Tensor]:
    """Return the bank and its labels [M]; raises DataError for one with other classes."""
    import torch

    bank, samples = inputs.bank or inputs, inputs.samples
    if bank.samples.class_names != samples.class_names:
        raise DataError(
            f"{inputs.task}: the classes of the bank {bank.samples.name} are not those of "
            f"{samples.name}: {len(bank.samples.class_names)} and {len(samples.class_names)}, or "
            f"in another order"
        )
    assert bank.samples.labels is not None
    return bank, torch.tensor(bank.samples.labels)


KIND = TaskKind(
    name="knn",
    help="images are of the class of their nearest neighbours; needs no text tower",
    purpose="classification",
    metrics=(*METRICS, *(f"{metric}@K" for metric in METRICS)),
    proposed=("acc1",),
    score=score,
    has_classes=True,
    bank="may",
    name_answers=lambda samples, _: samples.class_names,
)
