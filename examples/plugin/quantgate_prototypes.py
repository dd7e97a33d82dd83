"""A task of your own: each picture is of the class whose mean embedding is nearest to it.

gates:
  accuracy: {task: photos/prototypes, metric: acc1, max_drop: 1pp, bank: photos/train}
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from pytest_quantgate.tasks.kind import TaskKind
from pytest_quantgate.tasks.scoring import Scored, TaskInputs


def score(inputs: TaskInputs) -> Scored:
    """Return the outcome of every sample, for the embeddings of one variant."""
    samples, bank = inputs.samples, inputs.bank
    assert bank is not None  # the suite names one, see `bank` below
    assert samples.labels is not None
    stored, labels = normalize(bank.images, dim=1), torch.tensor(bank.samples.labels)
    means = torch.stack(
        [stored[labels == label].mean(dim=0) for label in range(len(samples.class_names))]
    )
    answers = (normalize(inputs.images, dim=1) @ normalize(means, dim=1).T).argmax(dim=1).tolist()
    return Scored(
        correct=[answer == label for answer, label in zip(answers, samples.labels, strict=True)],
        answers=answers,
        labels=samples.labels,
        class_names=samples.class_names,
        nonfinite=int((~torch.isfinite(inputs.images).all(dim=1)).sum()),
    )


KIND = TaskKind(
    name="prototypes",
    help="the class whose mean embedding is nearest",
    purpose="classification",
    metrics=("acc1",),
    score=score,
    has_classes=True,
    bank="must",
)
