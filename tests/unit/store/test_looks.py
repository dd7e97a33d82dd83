"""The ledger of looks: which variants were judged on which data, and what a further look costs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantgate.store.looks import Ledger, count_looks, share_samples, sketch
from pytest_quantgate.store.records import Look

DAY = "2026-11-29"


def look_at(samples: Iterable[int], *, variant: str = "v", number: int = 1) -> Look:
    """Return a look at some numbered samples."""
    chosen = sorted(samples)
    return Look(
        samples=len(chosen),
        data_digest=hashlib.sha256(str(chosen).encode()).hexdigest(),
        day=DAY,
        variant=variant,
        number=number,
        sketch=sketch(f"image {i}" for i in chosen),
    )


@pytest.mark.parametrize(("few", "many"), [(100, 200), (500, 5_000), (1_000, 3_000)])
def test_a_larger_draw_is_known_to_hold_the_smaller(few: int, many: int) -> None:
    assert share_samples(look_at(range(few)), look_at(range(many)))


@pytest.mark.parametrize("size", [10, 1_000, 50_000])
def test_fresh_samples_are_a_first_look(size: int) -> None:
    before, now = look_at(range(size)), look_at(range(size, 2 * size))

    assert not share_samples(before, now)
    assert count_looks(now, [before]).now.number == 1
    assert count_looks(now, [before]).variants == 1


def test_raising_the_samples_is_another_look() -> None:
    first, second = look_at(range(500)), look_at(range(1_000), number=2)

    found = count_looks(look_at(range(2_000)), [second, first])

    assert (found.now.number, found.variants) == (3, 1)
    assert found.earlier == (first, second)


def test_the_same_variant_on_the_same_data_is_the_same_look() -> None:
    """A run again, or another machine with the baseline's looks, is not punished."""
    first, second = look_at(range(500)), look_at(range(1_000), number=2)

    assert count_looks(first, [first, second]).now.number == 1
    assert count_looks(look_at(range(1_000)), [first, second]).now.number == 2


def test_other_variants_are_counted_and_cost_no_look() -> None:
    """Ten calibration seeds on the same evaluation data."""
    before = [look_at(range(500), variant=f"seed {seed}") for seed in range(9)]

    found = count_looks(look_at(range(500), variant="seed 9"), before)

    assert (found.now.number, found.variants, found.earlier) == (1, 10, ())


def test_the_ledger_keeps_each_look_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "looks")
    first, second = look_at(range(500)), look_at(range(1_000), number=2)

    for look in (first, second, first):
        ledger.add("clip scenes-acc1", look)

    assert set(ledger.read("clip scenes-acc1")) == {first, second}
    assert ledger.read("clip digits-acc1") == ()


SHARE_OF_NONE = '{"samples": 5, "data_digest": "d", "day": "2026-11-29", "spent": 1.5}'


@pytest.mark.parametrize("damage", ["", "{", '{"samples": "many"}', "[]", SHARE_OF_NONE])
def test_a_damaged_look_says_nothing(tmp_path: Path, damage: str) -> None:
    ledger = Ledger(tmp_path)
    first, second = look_at(range(500)), look_at(range(1_000), number=2)
    ledger.add("q", first)
    next(tmp_path.rglob("*.json")).write_text(damage)
    ledger.add("q", second)

    assert ledger.read("q") == (second,)


def test_the_others_are_read_wherever_the_damaged_one_stands(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    looks = [look_at(range(size)) for size in (100, 200, 300)]
    for look in looks:
        ledger.add("q", look)
    for path in sorted(tmp_path.rglob("*.json")):
        kept = path.read_text()
        path.write_text("{")
        assert len(ledger.read("q")) == 2
        path.write_text(kept)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("1111111122222222", "1111111133333333", True),
        ("1111222233334444", "0000111122223333", False),  # the same text at another place
        ("1111111122222222", "3333333344444444", False),
        ("", "", False),
    ],
)
def test_samples_are_shared_where_a_whole_digest_is(one: str, other: str, shared: bool) -> None:
    looks = [replace(look_at([n]), sketch=text) for n, text in enumerate((one, other))]

    assert share_samples(*looks) is shared


def test_two_looks_that_were_the_second_at_once_do_not_count_for_each_other() -> None:
    """On two machines, say: each is judged as the second look that it was."""
    first = look_at(range(500))
    here, there = look_at(range(1_000), number=2), look_at(range(2_000), number=2)

    assert count_looks(here, [first, here, there]).earlier == (first,)
