"""Agreement of the nearest captions with FP16."""

from __future__ import annotations

import pytest
import torch

from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.tasks.kind import Queries, find_task
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import TaskInputs
from tests.unit.tasks.task_builders import answer

pytestmark = pytest.mark.slow

CAPTIONS = (("a cat", "a small cat"), ("a dog",), ("a cat",), ("a boat", "a red boat"))


def agree(before: torch.Tensor, after: torch.Tensor, *, metric: str) -> Outcomes:
    samples = Samples(
        name="d/test",
        ids=("a", "b", "c", "d"),
        images=[None] * 4,
        hashes=("1", "2", "3", "4"),
        captions=CAPTIONS,
    )
    fp16 = TaskInputs(
        samples=samples, pixels=samples.hashes, task="d/t", metric=metric, texts=before
    )
    return answer(samples, kind="text_neighbours", metric=metric, texts=after, fp16=fp16)


def test_captions_that_read_alike_are_no_neighbours() -> None:
    angles = torch.tensor([0.0, 0.2, 1.0, 0.0, 2.0, 2.1])
    texts = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = agree(texts, texts, metric="top1")

    # "a cat" is nearest to "a small cat", not to the other "a cat".
    assert found.answers == (1, 0, 1, 1, 5, 4)
    assert found.value == 1
    assert found.ids == ("a#0", "a#1", "b#0", "c#0", "d#0", "d#1")
    assert found.copies == 1
    assert found.clusters == (0, 1, 2, 0, 3, 4)


def test_a_caption_that_moved_is_lost() -> None:
    angles = torch.tensor([0.0, 0.2, 1.0, 0.0, 2.0, 2.1])
    moved = torch.tensor([0.0, 0.9, 1.0, 0.0, 2.0, 2.1])
    before, after = (torch.stack([x.cos(), x.sin()], dim=1) for x in (angles, moved))

    found = agree(before, after, metric="top1")
    assert found.correct == (True, False, True, True, True, True)
    overlap = agree(before, after, metric="overlap@2")
    assert len(overlap.ids) == len(set(overlap.ids)) == 12
    assert overlap.ids[:2] == ("a#0#0", "a#0#1")


def test_outcomes_are_counted_by_captions() -> None:
    kind = find_task("d/text_neighbours")

    assert kind.count_queries("top1", 10, 50) == Queries(count=50)
    assert kind.count_queries("overlap@5", 10, 50) == Queries(count=250, groups=50)
