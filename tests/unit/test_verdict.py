"""Verdicts: the worst check decides, and nothing that was found is lost."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict, combine


def verdict(status: Status, headline: str = "", **more: object) -> Verdict:
    return Verdict(
        gate="part",
        status=status,
        headline=headline or f"{status.value} headline",
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("status", list(Status))
def test_only_pass_is_green(status: Status) -> None:
    assert verdict(status).passed == (status is Status.PASS)


def test_severity_orders_from_green_to_fail() -> None:
    assert sorted(Status, key=lambda status: status.severity) == [
        Status.PASS,
        Status.NOT_MEASURED,
        Status.INCONCLUSIVE,
        Status.INCOMPARABLE,
        Status.FAIL,
    ]


@pytest.mark.parametrize("pair", list(itertools.product(Status, repeat=2)), ids=str)
def test_worst_part_leads_in_any_order(pair: tuple[Status, Status]) -> None:
    worst = max(pair, key=lambda status: status.severity)

    whole = combine(gate="coverage", parts=(verdict(pair[0]), verdict(pair[1])))

    assert whole.gate == "coverage"
    assert whole.status is worst
    assert whole.headline == f"{worst.value} headline"


def test_cause_and_next_step_are_those_of_the_worst() -> None:
    whole = combine(
        gate="g",
        parts=(
            verdict(Status.INCONCLUSIVE, cause="too few samples", next_step="take more"),
            verdict(Status.FAIL, cause="an overflow", next_step="exclude it"),
        ),
    )

    assert (whole.cause, whole.next_step) == ("an overflow", "exclude it")


def test_first_of_equals_leads() -> None:
    whole = combine(gate="g", parts=(verdict(Status.FAIL, "one"), verdict(Status.FAIL, "two")))

    assert whole.headline == "one"
    assert whole.evidence == ("FAIL: two",)


def test_evidence_of_all_that_is_not_green_is_kept_worst_first() -> None:
    whole = combine(
        gate="g",
        parts=(
            verdict(Status.PASS, "fine", evidence=("green detail",)),
            verdict(Status.NOT_MEASURED, "no data", evidence=("export DATA",)),
            verdict(Status.FAIL, "broken", evidence=("layer 1", "layer 2")),
            verdict(Status.INCONCLUSIVE, "unsure", evidence=("n = 3",)),
        ),
    )

    assert whole.evidence == (
        "layer 1",
        "layer 2",
        "INCONCLUSIVE: unsure",
        "n = 3",
        "NOT_MEASURED: no data",
        "export DATA",
    )


def test_evidence_of_green_parts_is_kept_where_all_are_green() -> None:
    whole = combine(
        gate="g",
        parts=(
            verdict(Status.PASS, "one", evidence=("a",)),
            verdict(Status.PASS, "two", evidence=("b",)),
        ),
    )

    assert whole.passed
    assert whole.headline == "one"
    assert whole.evidence == ("a", "two", "b")


def test_figures_of_all_parts_are_merged() -> None:
    whole = combine(
        gate="g",
        parts=(
            verdict(Status.PASS, figures={"a": 1, "shared": "first"}),
            verdict(Status.FAIL, figures={"b": 2.5, "shared": "last"}),
        ),
    )

    assert whole.figures == {"a": 1, "b": 2.5, "shared": "last"}


def test_one_part_alone_is_the_whole() -> None:
    part = Verdict(
        gate="part",
        status=Status.INCOMPARABLE,
        headline="other data",
        brief="data",
        evidence=("e", "f"),
        cause="another export",
        next_step="take the old one",
        figures={"samples": 3},
        code="regression.data",
    )

    assert combine(gate="g", parts=(part,)) == replace(part, gate="g")


def test_gate_that_checked_nothing_is_never_green() -> None:
    with pytest.raises(ValueError, match="gate 'coverage' has no checks to combine"):
        combine(gate="coverage", parts=())
