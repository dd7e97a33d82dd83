"""Which pairs calibrate: a study passes over those that another calibration had."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_quantgate.run.variants import Variants
from pytest_quantgate.suite.specs import CalibrationSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.contents import Contents
from pytest_quantgate.tasks.samples import Samples

NAMES = tuple(f"{index:02d}" for index in range(40))


def make_variants(monkeypatch: pytest.MonkeyPatch, *, skip: int) -> Variants:
    """Return the variants of a suite whose data has forty pairs, drawn in their order."""
    spec = CalibrationSpec(
        where=Where(file="s", line=1),
        data="photos/train",
        samples=10,
        held_out_samples=5,
        batch_size=5,
        skip=skip,
    )
    whole = Samples(name="photos/train", ids=NAMES, images=NAMES, hashes=NAMES)
    shown = Contents(ids=NAMES, pixels=NAMES, looks=NAMES)

    def take(_self: Variants, _name: str, count: int, **_: Any) -> Samples:
        return whole.take(count)

    def show(_self: Variants, _name: str, count: int, **_: Any) -> Contents:
        return shown.select(range(count))

    def describe(_self: Variants, _name: str, count: int, **_: Any) -> str:
        return f"the first {count}"

    monkeypatch.setattr(Variants, "samples", take)
    monkeypatch.setattr(Variants, "contents", show)
    monkeypatch.setattr(Variants, "_data_key", describe)
    variants = object.__new__(Variants)
    variants.suite = SimpleNamespace(calibration=spec)  # type: ignore[assignment]
    return variants


def test_each_calibration_of_a_study_has_pairs_that_no_other_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[str] = []
    for skip in (0, 10, 20):
        variants = make_variants(monkeypatch, skip=skip)
        (pairs, shown), (held_out, _) = variants._split_calibration()
        assert pairs.ids == shown.ids == NAMES[skip : skip + 10]
        assert held_out.ids == NAMES[skip + 10 : skip + 15]
        taken += pairs.ids

    assert len(set(taken)) == 30


def test_what_is_passed_over_is_part_of_what_calibrates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite itself passes over nothing: its measurements and baselines stay what they were."""
    plain, other = (make_variants(monkeypatch, skip=skip).calibration_plain for skip in (0, 10))

    assert "skip" not in plain
    assert (other["skip"], other["data"]) == (10, "the first 25")
