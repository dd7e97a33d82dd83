"""The search for the smallest exclusion: short, within its budget, and never everything."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.measure.exclusion import Search


class Judge:
    """Says whether a list meets the condition, and counts how often it was asked for each."""

    def __init__(self, meets: Callable[[set[str]], bool]) -> None:
        self.asked: list[tuple[str, ...]] = []
        self._meets = meets

    def __call__(self, items: tuple[str, ...]) -> bool:
        self.asked.append(items)
        return self._meets(set(items))


def find(
    order: str, meets: Callable[[set[str]], bool], *, first: int = 1, budget: int = 20
) -> tuple[str | None, Judge]:
    judge = Judge(meets)
    found = Search(meets=judge, budget=budget).run(tuple(order), first=first)
    return None if found is None else "".join(found), judge


def test_one_item_is_enough() -> None:
    found, judge = find("abcdef", lambda items: "a" in items)

    assert found == "a"
    assert judge.asked == [("a",)]


def test_a_guess_that_is_too_long_is_cut() -> None:
    found, _ = find("abcdefgh", lambda items: {"a", "b", "c"} <= items, first=6)

    assert found == "abc"


def test_a_guess_that_is_too_short_grows() -> None:
    found, _ = find("abcdefgh", lambda items: {"a", "b", "c", "d", "e"} <= items)

    assert found == "abcde"


def test_items_that_are_not_needed_are_dropped() -> None:
    found, judge = find("abcdef", lambda items: {"a", "d"} <= items, first=4)

    assert found == "ad"
    assert len(set(judge.asked)) == len(judge.asked)


def test_everything_is_never_tried() -> None:
    found, judge = find("abcd", lambda items: len(items) == 4)

    assert found is None
    assert max(len(items) for items in judge.asked) == 3


def test_the_budget_is_kept_and_what_was_found_is_given() -> None:
    found, judge = find("abcdefgh", lambda items: {"a", "d"} <= items, first=6, budget=2)
    assert found == "abcdef"  # three were tried and were too few
    assert len(judge.asked) == 2

    nothing, judge = find("abcdefgh", lambda items: {"g"} <= items, budget=2)
    assert nothing is None
    assert len(judge.asked) == 2


def test_of_one_item_or_none_nothing_can_be_left_out() -> None:
    assert find("a", lambda _items: True)[0] is None
    assert find("", lambda _items: True)[0] is None


@given(needed=st.sets(st.sampled_from("abcdefg")), first=st.integers(0, 12))
def test_what_is_found_is_the_smallest_there_is(needed: set[str], first: int) -> None:
    found, _ = find("abcdefgh", lambda items: needed <= items, first=first, budget=100)

    # At least one is left out: the search is only asked where nothing left out is too little.
    assert found is not None
    assert set(found) == needed if needed else len(found) == 1


def test_a_pair_that_hurts_only_together_loses_one_of_both() -> None:
    """No layer is noisy alone: the ranking names neither, the search still leaves one out."""
    found, judge = find("abcdef", lambda items: bool({"c", "e"} & items), budget=20)

    assert found == "c"
    assert len(judge.asked) <= 20
