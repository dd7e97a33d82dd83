"""Agreement of nearest neighbours with FP16, against a plain computation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.statistics.intervals import share_limits
from pytest_quantgate.statistics.pairing import pair_outcomes
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import TaskInputs
from tests.unit.tasks.task_builders import answer, make_clusters

pytestmark = pytest.mark.slow


def agree(samples: Samples, images: torch.Tensor, other: torch.Tensor, *, metric: str) -> Outcomes:
    fp16 = TaskInputs(
        samples=samples, pixels=samples.hashes, task="d/neighbours", metric=metric, images=images
    )
    return answer(samples, kind="neighbours", metric=metric, images=other, fp16=fp16)


def rank(images: torch.Tensor) -> list[list[int]]:
    """Return the neighbours of each row, the nearest first, by a plain loop."""
    rows = images.double().numpy()
    unit = rows / numpy.linalg.norm(rows, axis=1, keepdims=True)
    found = []
    for index, row in enumerate(unit):
        order = numpy.argsort(-(unit @ row)).tolist()
        found.append([other for other in order if other != index])
    return found


def disturb(images: torch.Tensor, *, noise: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return images + noise * torch.randn(images.shape, generator=generator)


def test_the_same_neighbours_are_counted_as_a_loop_does() -> None:
    samples, images = make_clusters(150, seed=1)
    other = disturb(images, noise=0.15)
    before, after = rank(images), rank(other)

    top = agree(samples, images, other, metric="top1")
    overlap = agree(samples, images, other, metric="overlap@7")

    assert top.answers == tuple(row[0] for row in after)
    assert top.value == sum(a[0] == b[0] for a, b in zip(before, after, strict=True)) / 150
    shares = [len(set(a[:7]) & set(b[:7])) / 7 for a, b in zip(before, after, strict=True)]
    assert overlap.value == pytest.approx(sum(shares) / 150)
    assert 0.2 < top.value < 0.95
    assert len(overlap.ids) == len(set(overlap.ids)) == 150 * 7


def test_fp16_agrees_with_itself() -> None:
    samples, images = make_clusters(40, seed=1)

    assert answer(samples, kind="neighbours", metric="top1", images=images).value == 1
    assert agree(samples, images, 3 * images, metric="overlap@5").value == 1


def test_neighbours_of_one_picture_are_kept_or_lost_together() -> None:
    samples, images = make_clusters(60, seed=1)
    found = agree(samples, images, disturb(images, noise=0.2), metric="overlap@5")
    fp16 = agree(samples, images, images, metric="overlap@5")
    pairs = pair_outcomes(before=fp16, after=found)

    assert found.clusters == tuple(index for index in range(60) for _ in range(5))
    assert pairs.worth is not None
    assert pairs.worth.clusters == 60
    assert pairs.worth.drop <= 300


def test_a_copy_is_no_neighbour() -> None:
    samples, images = make_clusters(40, seed=1)
    doubled = Samples(
        name="d/test",
        ids=(*samples.ids, *(f"copy of {name}" for name in samples.ids)),
        images=[None] * 80,
        hashes=samples.hashes * 2,
    )
    other = disturb(images, noise=0.3)
    found = agree(doubled, images.repeat(2, 1), other.repeat(2, 1), metric="top1")
    alone = agree(samples, images, other, metric="top1")

    # The copies would all agree: they are nearest to one another in both.
    assert found.value == alone.value < 1
    assert found.answers == alone.answers * 2
    assert found.copies == 40
    assert len(set(found.clusters)) == 40


def test_a_picture_that_gives_nan_has_no_neighbours() -> None:
    samples, images = make_clusters(20, seed=1)
    other = images.clone()
    other[2] = torch.nan
    found = agree(samples, images, other, metric="top1")

    assert found.nonfinite == 1
    assert not any(found.correct)


def test_too_few_pictures_are_refused() -> None:
    samples, images = make_clusters(5, seed=1)

    with pytest.raises(DataError, match=r"overlap@5 of .* the 5 nearest, but .* only 4 besides"):
        agree(samples, images, images, metric="overlap@5")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(0, 1))
def test_overlap_is_a_share_that_any_order_of_samples_gives(
    seed: int, k: int, noise: float
) -> None:
    samples, images = make_clusters(24, seed=seed)
    other = disturb(images, noise=noise)
    order = numpy.random.default_rng(seed).permutation(24).tolist()

    found = agree(samples, images, other, metric=f"overlap@{k}")
    again = agree(samples.select(order), images[order], other[order], metric=f"overlap@{k}")

    assert 0 <= found.value <= 1
    assert again.value == found.value


def test_one_sided_limits_of_an_overlap_hold_as_often_as_they_say() -> None:
    """Each picture keeps its neighbours at a rate of its own; as if they were independent, limits
    would be too narrow."""
    rng = numpy.random.default_rng(5)
    k, samples, runs = 10, 100, 200
    held = 0
    common: dict[str, Any] = {
        "task": "d/neighbours",
        "metric": f"overlap@{k}",
        "ids": tuple(f"{i}#{j}" for i in range(samples) for j in range(k)),
        "labels": (-1,) * (samples * k),
        "class_names": (),
        "data_digest": "d",
        "clusters": tuple(i for i in range(samples) for _ in range(k)),
    }
    for _ in range(runs):
        rates = rng.beta(6, 1, size=samples)  # 6 / 7 on average
        kept = rng.random((samples, k)) < rates[:, None]
        flat = tuple(map(bool, kept.flatten()))
        whole = (True,) * len(flat)
        before, after = (
            Outcomes(variant="v", correct=c, answers=(0,) * len(flat), value=0.0, **common)
            for c in (whole, flat)
        )
        pairs = pair_outcomes(before=before, after=after)
        held += share_limits(pairs.right_share, confidence=0.95).low <= 6 / 7
    assert 0.91 <= held / runs <= 0.99


def test_samples_need_no_labels() -> None:
    samples, images = make_clusters(20, seed=1)
    bare = replace(samples, labels=None, class_names=())

    assert agree(bare, images, images, metric="top1").value == 1
