"""A task of your own: each picture is of the class whose mean embedding is nearest to it.

gates:
  accuracy: {task: photos/prototypes, metric: mrr, max_drop: 1pp, bank: photos/train}

`acc1` says whether the right class is the nearest, `mrr` grades: 1, 1/2, 1/3, ... by its place.
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
    cosines = normalize(inputs.images, dim=1) @ normalize(means, dim=1).T
    wanted = cosines.gather(1, torch.tensor(samples.labels)[:, None])
    # With itself, and with wrong ones that are as near; NaN is less than nothing.
    places = (~(cosines < wanted)).sum(dim=1)
    return Scored(
        correct=(places == 1 if inputs.metric == "acc1" else 1 / places).tolist(),
        answers=cosines.argmax(dim=1).tolist(),
        labels=samples.labels,
        class_names=samples.class_names,
        nonfinite=int((~torch.isfinite(inputs.images).all(dim=1)).sum()),
    )


KIND = TaskKind(
    name="prototypes",
    help="the class whose mean embedding is nearest",
    purpose="classification",
    metrics=("acc1", "mrr"),
    score=score,
    has_classes=True,
    bank="must",
)
