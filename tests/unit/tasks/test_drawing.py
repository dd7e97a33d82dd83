"""A sample of a data set: seeded, nested, stratified, and the same on any machine."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.tasks.drawing import Draw, order_draw

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=150)


def choose(labels: list[int], count: int | None, **more: bool) -> list[int]:
    return list(Draw(count=count, **more).choose(total=len(labels), labels=labels))


@settings(deadline=None)
@given(LABELS)
def test_every_sample_is_drawn_once(labels: list[int]) -> None:
    assert sorted(order_draw(labels)) == list(range(len(labels)))


@settings(deadline=None)
@given(LABELS, st.data())
def test_a_larger_draw_holds_the_smaller_one(labels: list[int], data: st.DataObject) -> None:
    small, large = sorted(data.draw(st.tuples(*[st.integers(1, len(labels))] * 2)))

    assert set(choose(labels, small)) <= set(choose(labels, large))
    drawn = choose(labels, large, in_order=False)
    assert drawn[:small] == choose(labels, small, in_order=False)
    assert sorted(drawn) == choose(labels, large)


@settings(deadline=None)
@given(LABELS, st.data())
def test_each_class_has_its_share(labels: list[int], data: st.DataObject) -> None:
    """Every class is seen as soon as the number allows, and none has more than its share and 1."""
    count = data.draw(st.integers(1, len(labels)))
    whole, drawn = Counter(labels), Counter(labels[i] for i in choose(labels, count))

    assert len(drawn) == min(count, len(whole)) or count > len(whole)
    assert count < len(whole) or len(drawn) == len(whole)
    for label, there in whole.items():
        share = count * there / len(labels)
        assert drawn[label] <= share + 2
        # A class that is seen before its turn takes the place of another one's sample.
        assert drawn[label] >= share - 1 - len(whole)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_classes_of_one_size_come_in_turn(classes: int, size: int, data: st.DataObject) -> None:
    labels = data.draw(st.permutations([label for label in range(classes) for _ in range(size)]))
    rounds = data.draw(st.integers(1, size))

    drawn = Counter(labels[i] for i in choose(labels, rounds * classes))
    assert set(drawn.values()) == {rounds}
    assert len(drawn) == classes


def test_a_sorted_archive_is_sampled_over_the_whole() -> None:
    labels = [label for label in range(10) for _ in range(100)]

    drawn = choose(labels, 40)
    assert Counter(labels[i] for i in drawn) == dict.fromkeys(range(10), 4)
    assert choose(labels, 40, first=True) == list(range(40))
    assert choose(labels, None) == choose(labels, 1000) == list(range(1000))


def test_a_draw_is_the_same_in_any_release() -> None:
    """A change here ends every baseline that was made of a draw."""
    assert choose([0] * 1000, 6, in_order=False) == DRAWN
    assert choose([i % 3 for i in range(30)], 6) == DRAWN_OF_THREE


DRAWN = [201, 138, 783, 346, 116, 538]
DRAWN_OF_THREE = [1, 17, 18, 19, 21, 29]


def test_a_draw_of_equal_samples_is_fair() -> None:
    """The places of a draw are spread evenly: the mean of 200 of 10,000 is not off by 4 sigma."""
    drawn = choose([0] * 10_000, 200)
    sigma = 10_000 / 12**0.5 / 200**0.5
    assert sum(drawn) / 200 == pytest.approx(5000, abs=4 * sigma)


def test_more_than_there_are_takes_all() -> None:
    assert choose([0, 1], 5) == [0, 1]
    assert choose([0, 1], 5, first=True) == [0, 1]
    assert Draw(count=3).choose(total=9, labels=None) == choose([0] * 9, 3)
