"""Whether pictures keep their nearest neighbours: for data without labels, with FP16 as the truth.

Metrics: `top1` (the nearest picture is the one that FP16 finds) and `overlap@K` (the share of the K
nearest that are among the K of FP16: each of FP16's K is one outcome, found or not, and those of a
picture count as one group). Cosine similarity. A picture is no neighbour of its own copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.tasks.kind import Queries, TaskKind
from pytest_quantgate.tasks.scoring import CHUNK_ROWS, Scored, TaskInputs, find_finite

if TYPE_CHECKING:
    import torch


def find_nearest(
    inputs: TaskInputs, *, k: int, distinct: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and indices [N, k] of the nearest pictures in the bank, the nearest first.

    Without a bank it is the samples themselves. A candidate with the same pixels as the query does
    not count; of several with the same pixels only the first, where `distinct`. Raises DataError
    where fewer than `k` are left for a query.
    """
    import torch
    from torch.nn import functional

    bank = inputs.bank or inputs
    assert inputs.images is not None
    assert bank.images is not None
    numbers: dict[str, int] = {}
    own, others = (
        torch.tensor([numbers.setdefault(pixels, len(numbers)) for pixels in found.pixels])
        for found in (inputs, bank)
    )
    first = {number: index for index, number in reversed(list(enumerate(others.tolist())))}
    copies = torch.ones(len(others), dtype=torch.bool)
    copies[list(first.values())] = False
    most = len(first) - 1 if distinct else len(others) - int(torch.bincount(others).max())
    if k > most:
        raise DataError(
            f"{inputs.metric} of {inputs.task} looks at the {k} nearest pictures, but there are "
            f"only {most} besides a query and its copies: take more samples, or a smaller K"
        )
    queries, candidates = (functional.normalize(x, dim=-1) for x in (inputs.images, bank.images))
    cosines, indices = [], []
    for start in range(0, len(queries), CHUNK_ROWS):
        rows = queries[start : start + CHUNK_ROWS] @ candidates.T
        rows[own[start : start + CHUNK_ROWS, None] == others] = -torch.inf
        if distinct:
            rows[:, copies] = -torch.inf
        best = rows.topk(k, dim=1)
        cosines.append(best.values)
        indices.append(best.indices)
    return torch.cat(cosines), torch.cat(indices)


def score(inputs: TaskInputs) -> Scored:
    """Return whether each sample has the neighbours that it has in FP16."""
    import torch

    assert inputs.images is not None
    k = inputs.k or 1
    _, wanted = find_nearest(inputs.reference, k=k, distinct=True)
    _, found = find_nearest(inputs, k=k, distinct=True)
    finite = find_finite(inputs.images)
    kept = (wanted[:, :, None] == found[:, None, :]).any(dim=2) & finite[:, None] & finite.all()
    bad = int((~finite).sum())
    if inputs.k is None:
        return Scored(correct=kept[:, 0].tolist(), answers=found[:, 0].tolist(), nonfinite=bad)
    samples = inputs.samples
    rows = torch.arange(len(samples)).repeat_interleave(k).tolist()
    return Scored(
        correct=kept.flatten().tolist(),
        answers=found.flatten().tolist(),
        ids=[f"{samples.ids[row]}#{place % k}" for place, row in enumerate(rows)],
        shared=([inputs.pixels[row] for row in rows],),
        copies=k * (len(samples) - len(set(inputs.pixels))),
        nonfinite=bad,
    )


def count_chance(outcomes: Outcomes) -> float:
    """Return K of the pictures that there are to choose from."""
    _, at, k = outcomes.metric.partition("@")
    number = int(k) if at else 1
    return min(1.0, number / max(1, len(outcomes.ids) // number - 1))


def count_queries(metric: str, images: int, captions: int) -> Queries:
    _, at, k = metric.partition("@")
    return Queries(count=images * int(k), groups=images) if at else Queries(count=images)


KIND = TaskKind(
    name="neighbours",
    help="pictures keep the nearest neighbours that they have in FP16; needs no labels",
    metrics=("top1", "overlap@K"),
    proposed=("top1",),
    score=score,
    chance=count_chance,
    needs_fp16=True,
    count_queries=count_queries,
)
