"""How a verdict is said, and how a result stands to its limit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.deciding import (
    advise_next,
    decide,
    fail,
    leave_open,
    let_pass,
    refuse,
    relation,
)
from pytest_quantgate.statistics.intervals import Interval


@pytest.mark.parametrize(
    ("say", "status"),
    [
        (fail, Status.FAIL),
        (leave_open, Status.INCONCLUSIVE),
        (refuse, Status.INCOMPARABLE),
    ],
)
def test_a_finding_stands_in_the_code_and_the_gate_before_the_headline(
    say: Callable[..., Verdict], status: Status
) -> None:
    found = partial(say, "export")("pairs-added", "two pairs", cause="a pass", figures={"pairs": 2})

    assert found == Verdict(
        gate="export",
        status=status,
        headline="export: two pairs",
        code="export.pairs-added",
        cause="a pass",
        figures={"pairs": 2},
    )


def test_what_passes_has_no_code() -> None:
    found = let_pass("export", "as approved", brief="fine")
    assert found == Verdict(
        gate="export", status=Status.PASS, headline="export: as approved", brief="fine"
    )


@pytest.mark.parametrize(
    ("low", "high", "status", "words"),
    [
        (0.1, 0.2, Status.PASS, "within max_drop 0.2"),
        (0.1, 0.21, Status.INCONCLUSIVE, "not decided against max_drop 0.2"),
        (0.2, 0.3, Status.INCONCLUSIVE, "not decided against max_drop 0.2"),
        (0.21, 0.3, Status.FAIL, "over max_drop 0.2"),
    ],
)
def test_an_interval_decides_where_it_is_on_one_side_of_its_limit(
    low: float, high: float, status: Status, words: str
) -> None:
    found = decide(Interval(low=low, high=high), limit=0.2)

    assert found is status
    assert relation(found, name="max_drop", limit="0.2") == words
    assert bool(advise_next(found)) is (status is not Status.PASS)
