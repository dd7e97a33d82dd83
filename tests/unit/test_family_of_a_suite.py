"""A suite's limits as a family: one verdict a gate, whatever else runs, in whatever order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.run.case import Case
from pytest_quantgate.run.judging import Judging
from pytest_quantgate.statistics.family import SILENT
from pytest_quantgate.suite.load import load_suite

pytestmark = pytest.mark.slow

SUITE = """\
quantgate: 1
model: {{source: reference}}
calibration: {{data: scenes/calibration, samples: 8, batch_size: 8}}
quantize: {{recipe: fp8}}
{family}gates:
  accuracy:
    - {{task: scenes/classification, metric: acc1, max_drop: 1pp}}
    - {{task: scenes/classification, metric: acc5, max_drop: 1pp, floor: 10%}}
    - {{task: digits/classification, metric: acc1, max_drop: 1pp, max_flips: 5%}}
    - {{task: digits/classification, metric: acc5, max_drop: 1pp}}
  regression:
    - {{task: scenes/classification, metric: acc1, max_fp16_drop: 1pp, max_drop: 1pp,
       max_drop_since_first: 1pp}}
"""
SAMPLES = 1_000
KEYS = ("scenes/classification-acc1", "scenes/classification-acc5")
KEYS += ("digits/classification-acc1", "digits/classification-acc5")  # type: ignore[assignment]

#: Samples lost (and three won) of each task: a doubtful alarm, and results without any.
LOST = dict.fromkeys(KEYS, 3) | {KEYS[0]: 26}


def outcomes_of(task: str, metric: str, *, lost: int, variant: str) -> Outcomes:
    won = 3
    before = [True] * (SAMPLES - won) + [False] * won
    after = [False] * lost + [True] * (SAMPLES - lost)
    correct = tuple(before if variant == "fp16" else after)
    return Outcomes(
        task=task,
        metric=metric,
        variant=variant,
        ids=tuple(f"{i:04d}" for i in range(SAMPLES)),
        correct=correct,
        answers=tuple((i % 2) ^ (not right) for i, right in enumerate(correct)),
        labels=tuple(i % 2 for i in range(SAMPLES)),
        class_names=("no", "yes"),
        value=sum(correct) / SAMPLES,
        data_digest="d" * 64,
    )


@pytest.fixture
def measured_case(
    tmp_path: Path, make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Case, list[str]]]:
    """Make a case whose tasks lost so many samples (None: not measured), and what was asked for."""

    def make(lost: dict[str, int | None], *, family: str = "") -> tuple[Case, list[str]]:
        path = tmp_path / "family.quantgate.yaml"
        path.write_text(SUITE.format(family=family), encoding="utf-8")
        asked: list[str] = []

        def outcomes(_case: Case, *, task: str, metric: str, **_: Any) -> tuple[Outcomes, Outcomes]:
            key = f"{task}-{metric}"
            asked.append(key)
            number = lost[key]
            if number is None:
                raise NotMeasured(f"{key} is not here")
            fp16, quantized = (
                outcomes_of(task, metric, lost=number, variant=variant)
                for variant in ("fp16", "fp8")
            )
            return fp16, quantized

        monkeypatch.setattr(Case, "outcomes", outcomes)
        monkeypatch.setattr(Case, "notes", ())
        # What makes a FAIL is searched in the model, and there is none here.
        monkeypatch.setattr(Judging, "name_suspects", lambda _self, verdict, _gate: verdict)
        return make_case(load_suite(path)), asked

    return make


MakeCase = Callable[..., tuple[Case, list[str]]]


def test_all_limits_are_counted(measured_case: MakeCase) -> None:
    case, _ = measured_case(LOST)

    assert case.judging.family.size == 1 + 2 + 2 + 1 + 4


def test_a_doubtful_fail_is_inconclusive_and_says_why(measured_case: MakeCase) -> None:
    case, _ = measured_case(LOST)

    verdict = case.judge(kind="accuracy", key=KEYS[0]).verdict

    assert verdict.status is Status.INCONCLUSIVE
    assert "a FAIL by itself, but one of 10 limits of this suite" in verdict.evidence[0]


def test_without_a_family_each_limit_stands_for_itself(measured_case: MakeCase) -> None:
    case, asked = measured_case(LOST, family="family: none\n")

    verdict = case.judge(kind="accuracy", key=KEYS[0]).verdict

    assert verdict.status is Status.FAIL
    assert asked == [KEYS[0]]


def test_the_others_are_measured_only_in_doubt(measured_case: MakeCase) -> None:
    case, asked = measured_case(LOST | {KEYS[0]: 60})

    assert case.judge(kind="accuracy", key=KEYS[0]).verdict.status is Status.FAIL
    assert case.judge(kind="accuracy", key=KEYS[1]).verdict.passed
    assert asked == [KEYS[0], KEYS[1]]


@pytest.mark.parametrize("others", [3, 25, 200])
def test_a_verdict_does_not_depend_on_what_ran_before(measured_case: MakeCase, others: int) -> None:
    lost = dict.fromkeys(KEYS, others) | {KEYS[0]: 26}
    alone = {}
    for key in KEYS:
        case, _ = measured_case(lost)
        alone[key] = case.judge(kind="accuracy", key=key).verdict

    for order in (KEYS, KEYS[::-1], KEYS[2:] + KEYS[:2]):
        case, _ = measured_case(lost)
        for key in order:
            assert case.judge(kind="accuracy", key=key).verdict == alone[key]
    # With clear failures beside it the doubtful one is believed: Holm, not Bonferroni.
    assert (alone[KEYS[0]].status is Status.FAIL) == (others == 200)


def test_what_cannot_be_measured_counts_and_raises_no_alarm(measured_case: MakeCase) -> None:
    case, _ = measured_case(LOST | {KEYS[2]: None})  # type: ignore[misc]

    strengths = case.judging.family.strengths()

    assert len(strengths) == case.judging.family.size
    assert list(strengths).count(SILENT) == 2 + 4
    assert case.judge(kind="accuracy", key=KEYS[0]).verdict.status is Status.INCONCLUSIVE
    assert case.judge(kind="accuracy", key=KEYS[2]).verdict.status is Status.NOT_MEASURED  # type: ignore[misc]


def test_another_control_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "family.quantgate.yaml"
    path.write_text(SUITE.format(family="family: hulm\n"), encoding="utf-8")

    with pytest.raises(Exception, match=r"5: family: 'hulm' is none of holm, none; did you mean"):
        load_suite(path)
