"""Whether pictures keep their nearest neighbours: for data without labels, with FP16 as the truth.

Metrics: `top1` (the nearest picture is the one that FP16 finds) and `overlap@K` (the share of the K
nearest that are among the K of FP16: each of FP16's K is one outcome, found or not, and those of a
picture count as one group). Cosine similarity. A picture is no neighbour of its own copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.tasks.kind import Queries, TaskKind
from pytest_quantgate.tasks.scoring import CHUNK_ROWS, Scored, TaskInputs, find_finite

if TYPE_CHECKING:
    import torch

METRICS = ("top1", "overlap@K")


def find_nearest(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    *,
    asked: Sequence[str],
    stored: Sequence[str],
    k: int,
    subject: str,
    distinct: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and indices [N, k] of the candidates [M, D] nearest to queries [N, D], the
    nearest first.

    `asked` and `stored` are what the rows show: a candidate that shows the same as the query does
    not count, and of several that show the same only the first, where `distinct`. Raises DataError,
    about `subject`, where fewer than `k` are left for a query.
    """
    import torch

    own, others = number_shown(asked, stored)
    first = {number: index for index, number in reversed(list(enumerate(others.tolist())))}
    copies = torch.ones(len(others), dtype=torch.bool)
    copies[list(first.values())] = False
    most = len(first) - 1 if distinct else len(others) - int(torch.bincount(others).max())
    if k > most:
        raise DataError(
            f"{subject} looks at the {k} nearest, but there are only {most} besides a query and "
            f"its copies: take more samples, or a smaller K"
        )
    cosines, indices = [], []
    for _, rows in compare_rows(queries, candidates, own=own, others=others):
        if distinct:
            rows[:, copies] = -torch.inf
        best = rows.topk(k, dim=1)
        cosines.append(best.values)
        indices.append(best.indices)
    return torch.cat(cosines), torch.cat(indices)


def number_shown(*shown: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Return int64 [N] for each sequence: the same number for the same picture or text."""
    import torch

    numbers: dict[str, int] = {}
    return tuple(
        torch.tensor([numbers.setdefault(one, len(numbers)) for one in found]) for found in shown
    )


def compare_rows(
    queries: torch.Tensor, candidates: torch.Tensor, *, own: torch.Tensor, others: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield some rows of the queries [N, D] and their cosines to all candidates [M, D].

    A candidate that shows the same as the query, by the numbers `own` [N] and `others` [M], has the
    cosine -inf.
    """
    import torch
    from torch.nn import functional

    queries, candidates = (functional.normalize(x, dim=-1) for x in (queries, candidates))
    for start in range(0, len(queries), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        rows = queries[part] @ candidates.T
        rows[own[part, None] == others] = -torch.inf
        yield part, rows


def score_agreement(
    rows: torch.Tensor,
    reference: torch.Tensor,
    *,
    shown: Sequence[str],
    ids: Sequence[str],
    inputs: TaskInputs,
) -> Scored:
    """Return whether rows [N, D] have the neighbours that they have in FP16's `reference` [N, D].

    `shown` is what each shows, `ids` what it is called.
    """
    import torch

    k = inputs.k or 1
    (_, wanted), (_, found) = (
        find_nearest(
            of,
            of,
            asked=shown,
            stored=shown,
            k=k,
            subject=f"{inputs.metric} of {inputs.task}",
            distinct=True,
        )
        for of in (reference, rows)
    )
    finite = find_finite(rows)
    kept = (wanted[:, :, None] == found[:, None, :]).any(dim=2) & finite.all()
    places = torch.arange(len(rows)).repeat_interleave(k).tolist()
    named = [f"{ids[row]}#{place % k}" for place, row in enumerate(places)]
    return Scored(
        correct=kept.flatten().tolist(),
        answers=found.flatten().tolist(),
        ids=ids if inputs.k is None else named,
        shared=([shown[row] for row in places],),
        copies=k * (len(shown) - len(set(shown))),
        nonfinite=int((~finite).sum()),
    )


def score(inputs: TaskInputs) -> Scored:
    """Return whether each picture has the neighbours that it has in FP16."""
    images, reference = inputs.images, inputs.reference.images
    assert images is not None
    assert reference is not None
    return score_agreement(
        images, reference, shown=inputs.pixels, ids=inputs.samples.ids, inputs=inputs
    )


def count_chance(outcomes: Outcomes) -> float:
    """Return K of the things that there are to choose from."""
    _, at, k = outcomes.metric.partition("@")
    number = int(k) if at else 1
    return min(1.0, number / max(1, len(outcomes.ids) // number - 1))


def count_queries(metric: str, things: int) -> Queries:
    """Return how many outcomes so many things give."""
    _, at, k = metric.partition("@")
    return Queries(count=things * int(k), groups=things) if at else Queries(count=things)


KIND = TaskKind(
    name="neighbours",
    help="pictures keep the nearest neighbours that they have in FP16; needs no labels",
    metrics=METRICS,
    proposed=("top1",),
    score=score,
    chance=count_chance,
    needs_fp16=True,
    count_queries=lambda metric, images, _: count_queries(metric, images),
)
