"""The catalogue that works on any suite, and what a gate is found to be by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.sanity import NO_TEXTS, Sanity
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.selftest.model import audit_again, switch_off
from pytest_quantgate.selftest.outcomes import (
    answer_wrong,
    drop_samples,
    exchange_outcomes,
    trade_answers,
    with_correct,
)
from pytest_quantgate.selftest.proof import Trial, conclude, list_sabotages
from pytest_quantgate.selftest.sabotage import Sabotage, exchange, exchange_stages, whole_text
from pytest_quantgate.store.baseline_mode import BaselineMode
from pytest_quantgate.suite.load import load_suite

pytestmark = pytest.mark.slow

OUTCOMES = Outcomes(
    task="scenes/classification",
    metric="acc1",
    variant="fp8-attention",
    ids=("a", "b", "c", "d"),
    correct=(True, True, True, False),
    answers=(0, 1, 2, 0),
    labels=(0, 1, 2, 1),
    class_names=("cat", "dog", "owl"),
    value=0.75,
    data_digest="d" * 64,
)
SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: fp8-attention}}
gates:
  coverage: {{}}
  accuracy:
    - {{task: scenes/classification, metric: acc1, max_drop: 100pp, max_flips: 90%, samples: 64}}
"""
SABOTAGE = Sabotage(
    name="noise", gate="fidelity", cause="under min_cosine", spoil=lambda case, _key: case
)
FAILED = Verdict(gate="fidelity", status=Status.FAIL, headline="cosine 0.1, under min_cosine 0.9")
PASSED = Verdict(gate="fidelity", status=Status.PASS, headline="fine")


@pytest.fixture
def case(tiny_clip: Path, tmp_path: Path, make_case: Callable[..., Case]) -> Case:
    path = tmp_path / "tiny.quantgate.yaml"
    path.write_text(SUITE.format(model=tiny_clip), encoding="utf-8")
    return make_case(load_suite(path))


def test_every_gate_has_several_sabotages() -> None:
    counts = Counter(sabotage.gate for sabotage in list_sabotages())

    assert counts["sanity"] >= 6
    assert counts["coverage"] >= 4
    assert counts["calibration"] >= 6
    assert counts["accuracy"] >= 6
    assert set(counts) == {
        *("sanity", "coverage", "calibration", "fidelity", "accuracy", "regression"),
        *(
            "roundtrip",
            "serves",
            "export",
            "parity",
            "engine",
            "memory",
            "trace",
            "latency",
            "load",
        ),
    }
    assert len({(s.gate, s.name) for s in list_sabotages()}) == len(list_sabotages())


def test_wrong_answers_agree_with_their_value() -> None:
    wrong = answer_wrong(OUTCOMES)

    assert wrong.value == 0
    assert wrong.answers == (1, 2, 0, 0)
    assert not any(a == b for a, b in zip(wrong.answers, wrong.labels, strict=True))


def test_answers_change_only_where_they_flip() -> None:
    changed = with_correct(OUTCOMES, correct=(False, True, True, True))

    assert changed.answers == (1, 1, 2, 1)
    assert changed.value == 0.75


def test_traded_answers_keep_the_value() -> None:
    traded = trade_answers(OUTCOMES)

    assert traded.value == OUTCOMES.value
    assert traded.correct == (False, True, True, True)


def test_dropped_samples_are_gone_from_every_column() -> None:
    fewer = drop_samples(OUTCOMES)

    assert (fewer.ids, fewer.correct, fewer.labels) == (("a", "b"), (True, True), (0, 1))
    assert fewer.value == 1


@pytest.mark.parametrize(
    ("verdict", "caught", "named"),
    [
        (FAILED, True, True),
        (PASSED, False, False),
        (replace(FAILED, headline="something else"), True, False),
        (replace(FAILED, headline="x", cause="under min_cosine"), True, True),
        (replace(FAILED, status=Status.INCONCLUSIVE), True, True),
        (replace(FAILED, status=Status.NOT_MEASURED), False, False),
    ],
)
def test_caught_is_red_and_named_is_red_for_the_right_reason(
    verdict: Verdict, caught: bool, named: bool
) -> None:
    trial = Trial(sabotage=SABOTAGE, verdict=verdict)

    assert (trial.caught, trial.named) == (caught, named)


@pytest.mark.parametrize(
    ("verdicts", "again", "status", "words"),
    [
        ([FAILED, FAILED], PASSED, Status.PASS, "turns red on 2 of 2 sabotages and names each"),
        ([FAILED], None, Status.PASS, "turns red on 1 of 1 sabotages and names each"),
        ([FAILED, PASSED], PASSED, Status.FAIL, "stays green on 1 of 2 sabotages"),
        ([replace(FAILED, headline="?")], None, Status.FAIL, "names another cause"),
        ([FAILED], FAILED, Status.FAIL, "is FAIL on the same variant measured again"),
        ([], None, Status.NOT_MEASURED, "there is no sabotage for a fidelity gate"),
    ],
)
def test_a_gate_is_proven_by_all_of_its_sabotages(
    verdicts: list[Verdict], again: Verdict | None, status: Status, words: str
) -> None:
    trials = tuple(Trial(sabotage=SABOTAGE, verdict=verdict) for verdict in verdicts)

    verdict = conclude(kind="fidelity", again=again, trials=trials).verdict

    assert verdict.status is status
    assert words in verdict.headline


def test_an_exchange_leaves_the_case_as_it_is(case: Case) -> None:
    good = case.judge(kind="coverage").verdict
    spoiled = exchange(case, audit=replace(case.audit, quantizers=(), intended=()))
    stages = exchange_stages(case, onnx_path=lambda **_request: Path("elsewhere"))

    assert not spoiled.judge(kind="coverage").verdict.passed
    assert case.judge(kind="coverage").verdict is good
    assert case.stages is not stages.stages
    assert stages.stages.case is stages


def test_exchanged_outcomes_reach_the_gates(case: Case) -> None:
    spoiled = exchange_outcomes(case, quantized=drop_samples)

    verdict = spoiled.judge(kind="accuracy", key="scenes/classification-acc1").verdict

    assert verdict.status is Status.INCOMPARABLE
    assert "sample ids differ" in whole_text(verdict)


def test_damage_to_the_model_is_undone(case: Case) -> None:
    before = audit_again(case)
    names = [q.name for q in case.audit.quantizers if q.enabled and q.tower == "vision"]

    damaged = audit_again(case, names=names, damage=switch_off)

    assert sum(q.enabled for q in damaged.quantizers) == len(
        [q for q in before.quantizers if q.enabled and q.tower != "vision"]
    )
    assert audit_again(case) == before


def test_engines_are_spoiled_only_where_the_gate_has_a_limit(
    tiny_clip: Path, tmp_path: Path, make_case: Callable[..., Case]
) -> None:
    gate = "  engine: {{target: sm89, {limits}}}\n"
    tried = {}
    for limits in ("max_weights_ratio: 0.9x", "min_fp8_gemms: 1, attention: fused-fp8"):
        path = tmp_path / "tiny.quantgate.yaml"
        text = SUITE.format(model=tiny_clip) + gate.format(limits=limits)
        path.write_text(text, encoding="utf-8")
        case = make_case(load_suite(path))
        tried[limits] = [
            s.spoil(case, "sm89") is not None for s in list_sabotages() if s.gate == "engine"
        ]

    assert list(tried.values()) == [[True, False, False], [True, True, True]]


def test_a_text_that_is_read_whole_has_no_end_token_to_lose(case: Case) -> None:
    sanity = Sanity(data="noise", pairs=1, reading=replace(NO_TEXTS, pools_end=False))
    vars(case)["sanity"] = sanity

    spoiled = {
        s.name: s.spoil(case, "") is not None for s in list_sabotages() if s.gate == "sanity"
    }

    assert not spoiled["a tokenizer without end token"]
    assert not spoiled["another token pooled"]
    assert spoiled["the image processor of another model"]


def write_sliced(folder: Path, *, kind: str, model: Path, limit: str) -> Path:
    """Write a suite whose one gate of a kind has a limit on the worst class."""
    drops = "max_drop: 95pp"
    if kind == "regression":
        drops += ", max_fp16_drop: 95pp, max_drop_since_first: 95pp"
    gate = f"{{task: scenes/classification, metric: acc1, samples: 640, {drops}, slices: "
    text = SUITE.partition("  accuracy:")[0].format(model=model)
    text += f"  {kind}:\n    - {gate}{{by: class, max_drop: {limit}, min_samples: 10}}}}\n"
    path = folder / "tiny.quantgate.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["accuracy", "regression"])
def test_a_slice_that_lost_turns_red_and_is_named(
    kind: str,
    tiny_clip: Path,
    tmp_path: Path,
    make_case: Callable[..., Case],
) -> None:
    """The average loses too, within its limit: only the slice turns the gate red."""
    path = write_sliced(tmp_path, kind=kind, model=tiny_clip, limit="40pp")

    def make_right(found: Outcomes) -> Outcomes:
        return with_correct(found, correct=(True,) * len(found.ids))

    key = "scenes/classification-acc1"
    mode = BaselineMode.CREATE if kind == "regression" else BaselineMode.CHECK
    case = make_case(load_suite(path), baselines=mode)
    good = exchange_outcomes(case, fp16=make_right, quantized=make_right)
    judged = good.judge(kind=kind, key=key)
    assert judged.verdict.passed, whole_text(judged.verdict)
    if judged.record is not None:
        case.store.write(judged.record)
        good = exchange(good, settings=replace(case.settings, baselines=BaselineMode.CHECK))

    (planted,) = [s for s in list_sabotages() if (s.gate, s.name) == (kind, "one slice lost")]
    spoiled = planted.spoil(good, key)
    assert spoiled is not None
    verdict = spoiled.judge(kind=kind, key=key).verdict
    trial = Trial(sabotage=planted, verdict=verdict)

    assert (trial.caught, trial.named) == (True, True), whole_text(verdict)
    assert "slice-drop" in verdict.code


@pytest.mark.parametrize("kind", ["accuracy", "regression"])
def test_a_limit_that_no_slice_can_exceed_is_refused(
    kind: str, tiny_clip: Path, tmp_path: Path
) -> None:
    path = write_sliced(tmp_path, kind=kind, model=tiny_clip, limit="100pp")

    with pytest.raises(SuiteError, match=f"{kind}.slices.max_drop: 100pp decides nothing"):
        load_suite(path)


def test_a_gate_without_slices_has_none_to_lose(case: Case) -> None:
    found = {
        s.name: s.spoil(case, "scenes/classification-acc1") is not None
        for s in list_sabotages()
        if s.gate == "accuracy"
    }

    assert not found["one slice lost"]
    assert found["answers of another class"]
