"""The table of a self-test: whole, and in the width that there is."""

from __future__ import annotations

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.report.terminal import Summary
from pytest_quantgate.run.conclusion import Results, Row, SuiteGates
from pytest_quantgate.selftest.terminal import render_selftest

EVIDENCE = "red on a tower that was switched off: " + "the whole vision tower is unquantized " * 4


def summary() -> Summary:
    verdict = Verdict(
        gate="coverage",
        status=Status.PASS,
        headline="selftest: coverage",
        brief="red for the right reason on 9 of 9 sabotages",
        evidence=(EVIDENCE,),
        figures={"sabotages": 9, "sabotages_named": 9},
    )
    suite = SuiteGates(suite="clip", file="suites/clip.quantgate.yaml", gates=("coverage",))
    row = Row(suite="clip", gate="coverage", verdict=verdict)
    return Summary(results=Results(suites=(suite,), rows=(row,)))


@pytest.mark.parametrize("width", [80, 120, None])
def test_no_word_is_cut(width: int | None) -> None:
    lines = [line for line, _ in render_selftest(summary(), width=width)]

    told = " ".join(" ".join(lines).split())
    assert " ".join(EVIDENCE.split()) in told
    assert "..." not in told
    if width is None:
        assert f"      {EVIDENCE}" in lines
    else:
        assert max(map(len, lines)) <= width
