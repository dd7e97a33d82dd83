"""A published score: FP16 that is far from it is not the model that was published."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.accuracy import judge_accuracy, list_strengths
from pytest_quantgate.statistics.family import ALONE, Family
from tests.unit.gates.gate_builders import WHERE, accuracy_gate, all_text, make_pair


def judge(right: int, *, samples: int, lost: int = 0, family: Family = ALONE) -> Verdict:
    fp16, quantized = make_pair(samples, lost=lost, both_wrong=samples - right)
    gate = accuracy_gate(published=Fraction(755, 1000), tolerance=Fraction(5, 1000))
    return judge_accuracy(fp16=fp16, quantized=quantized, gate=gate, family=family)


@pytest.mark.parametrize(
    ("right", "status", "cause"),
    [
        (7_550, Status.PASS, ""),
        (7_430, Status.PASS, ""),  # its interval reaches 75 %
        (7_400, Status.FAIL, "preprocessing"),
        (7_700, Status.FAIL, "the data is easier"),
    ],
)
def test_fp16_is_far_where_its_whole_interval_is(right: int, status: Status, cause: str) -> None:
    verdict = judge(right, samples=10_000)

    assert verdict.status is status
    assert verdict.cause.startswith(cause)
    assert verdict.code == ("" if status is Status.PASS else "accuracy.fp16-off-published")


def test_nothing_is_compared_where_fp16_is_far() -> None:
    """A quantized variant that lost a third is not what is wrong first."""
    verdict = judge(5_000, samples=10_000, lost=3_000)

    assert verdict.headline == (
        "accuracy: scenes/classification: FP16 acc1 50.00 % on 10000 samples, one-sided 95 % "
        "limits [49.17, 50.83] %, is 25.50 pp under the published 75.50 %, tolerance 0.50 pp "
        f"({WHERE.of('published')}): nothing was compared"
    )
    assert "right to wrong" not in all_text(verdict)
    assert "drop_points" not in verdict.figures


def test_a_score_that_is_near_says_what_so_many_samples_tell() -> None:
    verdict = judge(74, samples=100)

    assert any(
        "FP16 acc1 74.00 % on 100 samples, one-sided 95 % limits [65.79, 81.11] %" in line
        and "is 1.50 pp under the published 75.50 %" in line
        for line in (verdict.headline, *verdict.evidence)
    ), verdict.evidence


def test_a_published_score_is_one_limit_of_the_family() -> None:
    fp16, quantized = make_pair(10_000, both_wrong=2_580)
    gate = accuracy_gate(published=Fraction(755, 1000), tolerance=Fraction(5, 1000))
    _, strength = list_strengths(fp16=fp16, quantized=quantized, gate=gate)
    assert 1 / 12 < strength < 1

    alone = judge(7_420, samples=10_000)
    among = judge(
        7_420, samples=10_000, family=Family(size=12, strengths=lambda: (strength, *[5.0] * 11))
    )

    assert alone.code == "accuracy.fp16-off-published"
    assert among.code != alone.code
    assert any("one of 12 limits of this suite" in line for line in among.evidence)
