"""Pairs of pictures that show the same thing, found by their cosine at a precision that FP16 keeps.

Labels name what a picture shows, such as a product or an original: two pictures of one label are a
pair that is to be found, two of different labels are not. A pair is found where its cosine is at
least the threshold: the lowest at which FP16 keeps the precision, on the `bank` where the suite
names one. The quantized variant is judged at that threshold of FP16. Files of the same pixels are
no pair: any encoder finds them.

Metrics: `recall@precisionP%`, the share of the pairs that is found (scikit-learn's
`precision_recall_curve`, torchmetrics' `RecallAtFixedPrecision`), each pair an outcome, those of
one label a group; and `clean@precisionP%`, the share of the pictures that are in no wrong pair,
each picture an outcome, though the two of a wrong pair are wrong together.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes, group_places
from pytest_quantgate.tasks.kind import Queries, TaskKind
from pytest_quantgate.tasks.neighbours import compare_rows
from pytest_quantgate.tasks.operating_point import (
    count_negatives,
    keep_precision,
    name_other_side,
    read_rate,
)
from pytest_quantgate.tasks.scoring import Scored, TaskInputs, find_finite

if TYPE_CHECKING:
    import torch

#: Labels that make more pairs name classes, and not things.
MOST_PAIRS = 1_000_000

#: About so many pairs are compared at once.
PAIRS_AT_ONCE = 1 << 16

#: FP16 finds no fewer pairs: fewer may be luck.
FEWEST_FOUND = 10


def score(inputs: TaskInputs) -> Scored:
    """Return which pairs are found, or which pictures are in no wrong pair.

    Raises DataError for labels without pairs, or with too many, and where FP16 does not reach the
    precision.
    """
    import torch

    threshold = _find_threshold(inputs)
    assert inputs.images is not None
    samples, finite = inputs.samples, find_finite(inputs.images)
    bad = int((~finite).sum())
    if inputs.metric.startswith("clean"):
        right = (_find_nearest_wrong(inputs) < threshold) & finite
        return Scored(correct=right.tolist(), answers=(~right).long().tolist(), nonfinite=bad)
    pairs = list_pairs(inputs)
    firsts, seconds = torch.tensor(pairs).T
    found = _pair_cosines(inputs, pairs) >= threshold
    labels = samples.labels or ()
    return Scored(
        correct=(found & finite[firsts] & finite[seconds]).tolist(),
        ids=[f"{samples.ids[first]}#{samples.ids[second]}" for first, second in pairs],
        shared=([labels[first] for first, _ in pairs],),
        copies=0,
        nonfinite=bad,
    )


def list_pairs(inputs: TaskInputs) -> list[tuple[int, int]]:
    """Return the samples that are a pair, by their places, the earlier first; DataError for none,
    and for more than `MOST_PAIRS`."""
    samples, pixels = inputs.samples, inputs.pixels
    groups = group_places(samples.labels or ())
    count = sum(len(inside) * (len(inside) - 1) // 2 for inside in groups.values())
    if count > MOST_PAIRS:
        raise DataError(
            f"{inputs.task}: the {len(groups)} labels of {samples.name} make {count} pairs: a "
            f"label names one thing of which there are a few pictures, and no class"
        )
    pairs = [
        (first, second)
        for inside in groups.values()
        for first, second in combinations(inside, 2)
        if pixels[first] != pixels[second]
    ]
    if not pairs or len(groups) < 2:
        what = "no two pictures of one label" if not pairs else "one label alone"
        raise DataError(f"{inputs.task}: {samples.name} has {what}: nothing is to be found")
    return sorted(pairs)


def _find_threshold(inputs: TaskInputs) -> float:
    """Return the threshold of FP16."""
    import torch

    rate, reference = read_rate(inputs.metric), inputs.reference
    tuned = reference.bank or reference
    pairs = list_pairs(tuned)
    cosines = _pair_cosines(tuned, pairs)
    cosines = cosines.masked_fill(~torch.isfinite(cosines), -torch.inf)  # its own gate says so
    highest = _find_highest(tuned, most=count_negatives(len(pairs), least=rate))
    threshold = keep_precision(cosines, highest, least=rate)
    found = 0 if threshold is None else int((cosines >= threshold).sum())
    if threshold is None or found < min(FEWEST_FOUND, len(pairs)):
        raise DataError(
            f"{inputs.metric} of {inputs.task}: FP16 finds {found} of the {len(pairs)} pairs of "
            f"{tuned.samples.name} at a precision of {float(rate):.2%}: too few to judge by; take "
            f"a lower precision, or look whether labels and pictures belong together"
        )
    return threshold


def _pair_cosines(inputs: TaskInputs, pairs: list[tuple[int, int]]) -> torch.Tensor:
    """Return the cosines [P] of pairs of pictures."""
    import torch
    from torch.nn import functional

    assert inputs.images is not None
    unit = functional.normalize(inputs.images, dim=-1)
    firsts, seconds = torch.tensor(pairs).T
    parts = zip(firsts.split(PAIRS_AT_ONCE), seconds.split(PAIRS_AT_ONCE), strict=True)
    return torch.cat([(unit[one] * unit[other]).sum(dim=1) for one, other in parts])


def _scan_wrong(inputs: TaskInputs) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield rows of the cosines of all pictures, -inf within a label."""
    import torch

    assert inputs.images is not None
    labels = torch.tensor(inputs.samples.labels)
    yield from compare_rows(inputs.images, inputs.images, own=labels, others=labels)


def _find_highest(inputs: TaskInputs, *, most: int) -> torch.Tensor:
    """Return the highest cosines of pictures of different labels, each pair once, so many."""
    import torch

    highest = torch.empty(0)
    for part, rows in _scan_wrong(inputs):
        later = torch.ones_like(rows, dtype=torch.bool).triu(part.start + 1)
        found = torch.cat([highest, rows.masked_fill(rows.isnan(), -torch.inf)[later]])
        highest = found.topk(min(most, len(found))).values
    return highest[highest > -torch.inf]


def _find_nearest_wrong(inputs: TaskInputs) -> torch.Tensor:
    """Return the highest cosine [N] of each picture to one of another label."""
    import torch

    return torch.cat([rows.amax(dim=1) for _, rows in _scan_wrong(inputs)])


def count_chance(outcomes: Outcomes) -> float | None:
    """Return that guessing finds no pairs at a precision: FP16 that does is refused."""
    return 0.0 if outcomes.metric.startswith("recall") else None


KIND = TaskKind(
    name="duplicates",
    help="finds pictures of one thing in pairs, at the precision of FP16",
    purpose="classification",
    metrics=("recall@precisionP%", "clean@precisionP%"),
    proposed=("recall@precision95%", "clean@precision95%"),
    score=score,
    bank="may",
    chance=count_chance,
    needs_fp16=True,
    name_answers=lambda _samples, _metric: ("apart", "together"),
    count_queries=lambda metric, images, _: (
        Queries(count=images) if metric.startswith("clean") else None
    ),
    name_other_side=partial(name_other_side, sides=("recall", "clean")),
)
