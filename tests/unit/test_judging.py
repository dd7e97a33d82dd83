"""What becomes of an error on the way to a verdict: none is green, none is a traceback."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from pytest_quantgate.errors import CacheError, DataError, NotMeasured, WriteError
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.run.judging import Judged, Judging  # type: ignore[attr-defined]

FAIL, NOT_MEASURED = Status.FAIL, Status.NOT_MEASURED


@pytest.fixture
def judging() -> Judging:
    case: Any = SimpleNamespace(notes=())
    judging = Judging(case)
    sane = Verdict(gate="sanity", status=Status.PASS, headline="sane")
    judging._verdicts["sanity", ""] = Judged(verdict=sane)
    return judging


def judge(judging: Judging, kind: str, error: Exception) -> Verdict:
    def fail() -> NoReturn:
        raise error

    return judging._judge(kind, fail).verdict


@pytest.mark.parametrize(
    ("error", "status", "headline"),
    [
        (NotMeasured("no GPU"), NOT_MEASURED, "no GPU"),
        (DataError("no image"), FAIL, "no image"),
        (
            OSError(5, "Input/output error", "photos/1.png"),
            FAIL,
            "cannot read or write: photos/1.png: Input/output error",
        ),
        (OSError("600 requested"), FAIL, "cannot read or write: 600 requested"),
    ],
)
def test_an_error_is_a_verdict(
    judging: Judging, error: Exception, status: Status, headline: str
) -> None:
    verdict = judge(judging, "parity", error)

    assert (verdict.gate, verdict.status, verdict.headline) == ("parity", status, headline)


def test_a_place_that_cannot_be_written_is_said_once(judging: Judging) -> None:
    cache, temporary = CacheError("the cache is full"), WriteError("TMPDIR is full")

    first = judge(judging, "coverage", cache)
    other = judge(judging, "export", CacheError("the cache is full, of 1 byte less"))
    again = judge(judging, "coverage", cache)
    elsewhere = judge(judging, "roundtrip", temporary)

    assert (first.status, first.headline, first.code) == (
        FAIL,
        "the cache is full",
        "coverage.unwritable",
    )
    assert again == first
    assert (other.status, other.headline) == (
        NOT_MEASURED,
        "nothing could be written: the coverage gate says where, and what to do",
    )
    assert (elsewhere.status, elsewhere.code) == (FAIL, "roundtrip.unwritable")
