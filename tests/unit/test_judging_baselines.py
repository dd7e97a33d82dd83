"""What a case says of a baseline that is not of today's settings, data or release."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.evidence.fingerprint import Fingerprint
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.store.baselines import next_record
from pytest_quantgate.store.records import GateStatus
from pytest_quantgate.suite.load import load_suite

pytestmark = pytest.mark.slow

SUITE = """\
quantgate: 1
model: {{source: reference}}
calibration: {{data: scenes/calibration, samples: 8, batch_size: 8{first}}}
quantize: {{recipe: fp8}}
gates:
  regression:
    - {{task: scenes/classification, metric: acc1, max_fp16_drop: 1pp, max_drop: 1pp,
       max_drop_since_first: 1pp, samples: 400{first}}}
"""
KEY = "scenes/classification-acc1"
NOW = Fingerprint(
    model="a" * 64,
    data="b" * 64,
    calibration="c" * 64,
    recipe="d" * 64,
    recipe_entries=("*: off",),
    settings={"dtype": "float16"},
)


def outcomes(variant: str, *, data: str = "b" * 64) -> Outcomes:
    samples = 400
    return Outcomes(
        task="scenes/classification",
        metric="acc1",
        variant=variant,
        ids=tuple(f"{i:04d}" for i in range(samples)),
        correct=(True,) * samples,
        answers=(1,) * samples,
        labels=(1,) * samples,
        class_names=("no", "yes"),
        value=1.0,
        data_digest=data,
    )


@pytest.fixture
def judge(
    tmp_path: Path, make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Verdict]:
    """Judge today's outcomes against what version 0.1 accepted of a fingerprint and data."""

    def judge(
        was: Fingerprint,
        *,
        data: str = "b" * 64,
        first: str = "",
        verdicts: Mapping[str, GateStatus] | None = None,
        **more: Any,
    ) -> Verdict:
        path = tmp_path / "suites" / "clip.quantgate.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SUITE.format(first=first), encoding="utf-8")
        monkeypatch.setattr(
            Case, "outcomes", lambda *_args, **_more: (outcomes("FP16"), outcomes("fp8"))
        )
        monkeypatch.setattr(Case, "fingerprint", lambda *_args, **_more: NOW)
        monkeypatch.setattr(Case, "versions", {})
        monkeypatch.setattr(Case, "notes", ())
        case = make_case(load_suite(path, relative_to=tmp_path), **more)
        record = next_record(
            None,
            suite="suites/clip",
            key=KEY,
            task="scenes/classification",
            metric="acc1",
            fp16=outcomes("FP16", data=data),
            quantized=outcomes("fp8", data=data),
            fingerprint=was,
            versions={},
            today=case.today,
            reason="why",
        )
        case.store.write(replace(record, verdicts=verdicts or {}))
        verdict: Verdict = case.judge(kind="regression", key=KEY).verdict
        return verdict

    return judge


OLD = replace(NOW, settings={}, recipe_entries=())


def test_draw_that_came_since_version_0_1_is_named_with_what_takes_it_back(
    judge: Callable[..., Verdict],
) -> None:
    """It took the first samples: what was accepted on them is not lost with the new draw."""
    was = replace(OLD, calibration="1" * 64, data="2" * 64)
    words = "version 0.1 took the first samples, this one draws them: first: true in {} compares"

    verdict = judge(was, data="2" * 64)

    assert verdict.status is Status.INCOMPARABLE
    text = "\n".join(verdict.evidence)
    assert words.format("suites/clip.quantgate.yaml:3") in text
    assert words.format("suites/clip.quantgate.yaml:7") in text
    assert verdict.next_step.endswith("--quantgate-new-data")


@pytest.mark.parametrize(
    ("was", "first"),
    [
        (replace(OLD, calibration="1" * 64, data="2" * 64), ", first: true"),
        (replace(NOW, calibration="1" * 64, data="2" * 64), ""),
        (replace(OLD, model="1" * 64), ""),
    ],
)
def test_draw_is_not_blamed_for_what_it_has_not_done(
    judge: Callable[..., Verdict], was: Fingerprint, first: str
) -> None:
    verdict = judge(was, data=was.data, first=first)

    assert verdict.status is Status.INCOMPARABLE
    assert not any("version 0.1" in line for line in verdict.evidence)


def test_what_differs_is_named_in_the_table_too(judge: Callable[..., Verdict]) -> None:
    verdict = judge(replace(NOW, settings={"dtype": "bfloat16"}))

    assert verdict.status is Status.INCOMPARABLE
    assert verdict.code == "regression.baseline-of-other-things"
    assert verdict.brief == "dtype bfloat16 -> float16"


def test_a_baseline_of_a_red_run_is_no_reference(judge: Callable[..., Verdict]) -> None:
    """`accept` takes none, but a file can be copied by hand."""
    red = judge(NOW, verdicts={"sanity": "PASS", "coverage": "FAIL"})

    assert (red.status, red.code) == (Status.FAIL, "regression.baseline-of-red-run")
    assert red.headline == (
        "the baseline of scenes/classification-acc1 is of a run that may not be accepted: coverage "
        "is FAIL: take one of a green run: pytest suites/clip.quantgate.yaml "
        "--quantgate-baselines=update --quantgate-reason='why'"
    )
    for verdicts in ({"sanity": "PASS", "coverage": "PASS"}, {}):  # version 0.1 kept none
        assert judge(NOW, verdicts=verdicts).code == "regression.classes-unseen"
