"""What a task gives becomes evidence: one entry each, values, clusters and copies."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.tasks import classification, scoring
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import (
    CHUNK_ROWS,
    Scored,
    TaskInputs,
    build_outcomes,
    find_finite,
    number_clusters,
)


def make_inputs(pixels: str, *, labels: tuple[int, ...] = (), metric: str = "acc1") -> TaskInputs:
    """Return inputs of samples whose pictures are letters."""
    samples = Samples(
        name="d",
        ids=tuple(map(str, range(len(pixels)))),
        images=[None] * len(pixels),
        hashes=tuple(pixels),
        labels=labels or (0,) * len(pixels),
        class_names=("cat", "dog"),
    )
    return TaskInputs(samples=samples, pixels=tuple(pixels), task="d/t", metric=metric)


def build(scored: Scored, pixels: str = "abcd", **of: object) -> Outcomes:
    return build_outcomes(scored, inputs=make_inputs(pixels, **of), variant="v")  # type: ignore[arg-type]


def test_outcomes_alone_are_enough() -> None:
    found = build(Scored(correct=[True, False, True, True]))

    assert found.ids == ("0", "1", "2", "3")
    assert found.answers == (1, 0, 1, 1)
    assert found.labels == (-1,) * 4
    assert (found.value, found.clusters, found.copies) == (0.75, (), 0)


def test_grades_are_kept_and_averaged() -> None:
    found = build(Scored(correct=[True, 1 / 3, 0.0, 0.5]))

    assert [*map(type, found.correct)] == [bool, float, bool, float]
    assert found.value == pytest.approx(11 / 24, abs=1e-7)
    assert found.answers == (1, 0, 0, 0)


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
def test_what_is_no_score_is_named_with_its_sample(bad: float) -> None:
    with pytest.raises(DataError, match=rf"d/t: acc1: v: sample '2': {bad} is no score in \[0, 1"):
        build(Scored(correct=[True, 0.5, bad, True]))


@pytest.mark.parametrize("which", ["images", "texts", "bank"])
def test_embeddings_that_a_task_did_not_look_at_are_counted(which: str) -> None:
    """A function of one's own may rank NaN first."""
    odd = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [0.0, math.inf], [0.0, 1.0]])
    inputs = make_inputs("abcd")
    given = {which: odd} if which != "bank" else {"bank": replace(inputs, images=odd)}
    right = Scored(correct=[True] * 4)

    assert build_outcomes(right, inputs=replace(inputs, **given), variant="v").nonfinite == 2
    counted = replace(right, nonfinite=1)
    assert build_outcomes(counted, inputs=replace(inputs, **given), variant="v").nonfinite == 1


def test_a_mean_over_classes_weighs_each_alike() -> None:
    labels = (0, 0, 0, 1)
    scored = Scored(correct=[True, True, True, False], labels=labels, class_names=("cat", "dog"))

    assert build(scored, metric="mean_per_class_recall@5").value == 0.5
    assert build(scored, metric="acc1@5").value == 0.75


@pytest.mark.parametrize(
    "scored",
    [
        Scored(correct=[True] * 3),
        Scored(correct=[True] * 4, answers=[1]),
        Scored(correct=[True] * 4, labels=[1]),
        Scored(correct=[True] * 8),
        Scored(correct=[True] * 4, shared=(["a"],)),
    ],
)
def test_one_entry_too_few_or_too_many_is_no_result(scored: Scored) -> None:
    with pytest.raises(DataError, match=r"d/t: \d outcomes and \d \w+: a task gives one for each"):
        build(scored)


def test_samples_of_one_picture_are_a_cluster() -> None:
    def cluster(pixels: str, labels: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        found = build(Scored(correct=[True] * 4), pixels, labels=labels)
        return found.clusters, found.copies

    assert cluster("abcd", (0, 1, 0, 1)) == ((), 0)
    # b and B are one picture under two ids; with two labels it is in two classes, and no copy.
    assert cluster("abcb", (0, 1, 0, 1)) == ((0, 1, 2, 1), 1)
    assert cluster("abcb", (0, 1, 0, 0)) == ((0, 1, 2, 1), 0)
    assert cluster("aaaa", (0, 0, 0, 0)) == ((0, 0, 0, 0), 3)


def test_a_picture_of_several_captions_is_a_copy_where_classes_are_asked_for() -> None:
    inputs = make_inputs("abcb", labels=(0, 1, 0, 1))
    captions = tuple((f"caption {number}",) for number in range(4))
    both = replace(inputs, samples=replace(inputs.samples, captions=captions))
    classed = Scored(correct=[True] * 4, labels=(0, 1, 0, 1), class_names=("cat", "dog"))

    assert build_outcomes(classed, inputs=both, variant="v").copies == 1
    assert build_outcomes(Scored(correct=[True] * 4), inputs=both, variant="v").copies == 0


def test_the_bank_is_part_of_the_data() -> None:
    alone, bank, other = make_inputs("abcd"), make_inputs("efgh"), make_inputs("efgi")
    digests = [
        build_outcomes(
            Scored(correct=[True] * 4), inputs=replace(alone, bank=of), variant="v"
        ).data_digest
        for of in (None, bank, other)
    ]

    assert len(set(digests)) == 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_clusters_are_what_is_connected(items: list[tuple[int, int]]) -> None:
    numbers = number_clusters([a for a, _ in items], [b for _, b in items])
    pairs = list(itertools.combinations(range(len(items)), 2))
    least = list(range(len(items)))
    for _ in items:
        for i, j in pairs:
            if items[i][0] == items[j][0] or items[i][1] == items[j][1]:
                least[i] = least[j] = min(least[i], least[j])

    assert list(dict.fromkeys(numbers)) == list(range(max(numbers) + 1))
    assert all((numbers[i] == numbers[j]) == (least[i] == least[j]) for i, j in pairs)


@pytest.mark.parametrize("count", [0, 1, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS - 1])
def test_finite_rows_are_found_in_every_chunk(count: int) -> None:
    embedded = torch.ones(count, 3)
    embedded[::2, 1], embedded[count // 2 :, 0] = torch.nan, torch.inf

    assert torch.equal(find_finite(embedded), torch.isfinite(embedded).all(dim=1))


def test_classes_are_scored_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more scores are held at once than of a chunk of samples, and they are the same."""
    count, classes = 3 * CHUNK_ROWS + 5, 12
    generator = torch.Generator().manual_seed(0)
    names = tuple(map(str, range(count)))
    inputs = TaskInputs(
        samples=Samples(
            name="d",
            ids=names,
            images=numpy.zeros((count, 1, 1, 3), numpy.uint8),
            hashes=names,
            labels=tuple(number % classes for number in range(count)),
            class_names=tuple(f"class {number}" for number in range(classes)),
        ),
        pixels=names,
        metric="acc5",
        task="d/classification",
        images=torch.randn(count, 32, generator=generator),
        texts=torch.randn(classes, 32, generator=generator),
    )
    assert inputs.images is not None
    inputs.images[-1, 0] = torch.nan
    held: list[int] = []
    measure = scoring.measure_margins

    def measure_margins(scores: torch.Tensor, *, right: torch.Tensor, k: int = 1) -> list[float]:
        held.append(len(scores))
        return measure(scores, right=right, k=k)

    monkeypatch.setattr(classification, "measure_margins", measure_margins)
    found = classification.score(inputs)
    assert held == [CHUNK_ROWS] * 3 + [5]

    monkeypatch.setattr(classification, "CHUNK_ROWS", count)
    assert classification.score(inputs) == found
    assert held[-1] == count
    assert (len(found.correct), found.nonfinite, found.answers[-1]) == (count, 1, -1)
