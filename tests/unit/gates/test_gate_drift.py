"""Slices against the baseline: one that got worse is red while the whole is within its limit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pytest_quantgate.evidence.outcomes import Outcomes, StoredPair
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.drift import DriftSlicesSpec, count_limits
from pytest_quantgate.gates.regression import judge_regression, list_strengths
from pytest_quantgate.statistics.family import ALONE, SILENT, Family
from pytest_quantgate.suite.where import Where
from tests.unit.gates.gate_builders import all_text, make_outcomes, regression_gate, store

FILE = "suites/clip.quantgate.yaml"
AT = Where(
    file=FILE,
    line=30,
    keys={"by": 31, "max_drop": 32, "min_samples": 33, "max_drop_since_first": 34},
)
UPDATE = "pytest suites --quantgate-baselines=update"
SAMPLES, NIGHT = 5_000, 200
LIGHTS = {"light": ["night" if i < NIGHT else "day" for i in range(SAMPLES)]}


def slices(**changes: Any) -> DriftSlicesSpec:
    values: dict[str, Any] = {"by": (("light",),), "max_drop": Fraction(5, 100), **changes}
    return DriftSlicesSpec(where=AT, **values)


def with_wrong(*wrong: range, variant: str = "fp8-attention") -> Outcomes:
    lost = {i for part in wrong for i in part}
    return make_outcomes([i not in lost for i in range(SAMPLES)], variant=variant)


def judge(
    stored: StoredPair,
    *,
    quantized: Outcomes,
    fp16: Outcomes | None = None,
    columns: dict[str, list[str]] | None = None,
    spec: DriftSlicesSpec | None = None,
    family: Family | None = None,
) -> Verdict:
    gate = regression_gate(slices=spec or slices())
    return judge_regression(
        fp16=fp16 or with_wrong(variant="fp16"),
        quantized=quantized,
        stored=stored,
        differences=(),
        create_command="create",
        update_command=UPDATE,
        gate=gate,
        columns=LIGHTS if columns is None else columns,
        family=family or ALONE,
    )


ALL_RIGHT = with_wrong()
STORED = store(with_wrong(variant="fp16"), ALL_RIGHT)


def test_a_slice_that_got_worse_is_red_while_the_whole_is_within() -> None:
    """30 of 200 at night are 0.6 pp of all, and 15 pp of these."""
    worse = with_wrong(range(30))

    verdict = judge(STORED, quantized=worse)

    assert (verdict.status, verdict.code) == (Status.FAIL, "regression.slice-drop")
    assert verdict.headline == (
        "regression: scenes/classification: worst slice 'light=night' drops 15.00 pp on 200 "
        "samples against the variant accepted last, 1 of 2 slices over slices.max_drop 5.00 pp "
        f"({FILE}:32)"
    )
    assert "light=day 100.00 -> 100.00 %, light=night 100.00 -> 85.00 %" in verdict.evidence
    assert "the variant changed in this one, FP16 did not" in verdict.cause
    assert verdict.next_step == f"if that is meant: {UPDATE}"
    assert verdict.figures["accepted_worst_slice"] == "light=night"
    alone = judge_regression(
        fp16=with_wrong(variant="fp16"),
        quantized=worse,
        stored=STORED,
        differences=(),
        create_command="",
        update_command="",
        gate=regression_gate(),
    )
    assert alone.passed


def test_the_same_slices_pass_and_are_said_once() -> None:
    verdict = judge(STORED, quantized=ALL_RIGHT)

    assert verdict.passed
    assert all_text(verdict).count("2 slices over") == 1
    assert "0 of 2 slices over slices.max_drop 5.00 pp" in all_text(verdict)


def test_outcomes_in_another_order_are_the_same_slices() -> None:
    """Places are those of the variant; the baseline is sorted, FP16 in an order of its own."""
    turned = list(range(SAMPLES))
    random.Random("order").shuffle(turned)
    worse, fp16 = with_wrong(range(30)).select(turned), with_wrong(range(20), variant="fp16")
    columns = {"light": [LIGHTS["light"][i] for i in turned]}

    verdict = judge(STORED, quantized=worse, fp16=fp16, columns=columns)

    assert verdict.figures["accepted_worst_slice"] == "light=night"
    assert verdict.figures["accepted_worst_slice_drop_points"] == pytest.approx(15)
    assert verdict.cause == "FP16 itself moved by 10.00 pp in this slice: the baseline moved"


@pytest.mark.parametrize(("own", "is_fp16s"), [(0, False), (14, False), (15, True)])
def test_half_of_the_loss_is_fp16s_own(own: int, is_fp16s: bool) -> None:
    fp16 = with_wrong(range(own), variant="fp16")
    verdict = judge(STORED, quantized=with_wrong(range(30)), fp16=fp16)
    assert ("the baseline moved" in verdict.cause) is is_fp16s


def test_small_accepted_losses_of_a_slice_do_not_add_up_unseen() -> None:
    """Each step loses 2 pp of a slice, eight of them 16: the last step alone is within."""
    steps = [with_wrong(range(4 * n)) for n in range(9)]
    fp16 = with_wrong(variant="fp16")

    step = judge(store(fp16, steps[7]), quantized=steps[8])
    verdict = judge(store(fp16, steps[7], first=steps[0]), quantized=steps[8])

    assert step.passed, step.headline
    assert (verdict.status, verdict.code) == (Status.FAIL, "regression.slice-drop")
    assert "against the first variant accepted" in verdict.headline
    assert f"over slices.max_drop 5.00 pp ({FILE}:32)" in verdict.headline
    assert verdict.next_step.startswith("undo the change that cost most")


@pytest.mark.parametrize(("limit", "passes"), [(25, True), (5, False), (0, False)])
def test_the_first_variant_may_have_a_limit_of_its_own(limit: int, passes: bool) -> None:
    spec = slices(max_drop_since_first=Fraction(limit, 100))
    fp16 = with_wrong(variant="fp16")
    stored = store(fp16, with_wrong(range(28)), first=ALL_RIGHT)

    verdict = judge(stored, quantized=with_wrong(range(32)), spec=spec)

    assert verdict.passed is passes, verdict.headline
    assert f"slices.max_drop_since_first {limit}.00 pp" in all_text(verdict)
    assert f"({FILE}:34)" in all_text(verdict)


def test_a_stricter_limit_since_the_first_is_judged_of_the_same_variant_too() -> None:
    spec = slices(max_drop=Fraction(25, 100), max_drop_since_first=Fraction(5, 100))
    verdict = judge(STORED, quantized=with_wrong(range(30)), spec=spec)
    assert (verdict.code, "first_worst_slice" in verdict.figures) == ("regression.slice-drop", True)
    assert "against the first variant accepted" in verdict.headline


def test_a_slice_too_small_for_its_limit_is_open_and_left_out_by_name() -> None:
    columns = {"light": ["rare" if i < 12 else LIGHTS["light"][i] for i in range(SAMPLES)]}

    verdict = judge(STORED, quantized=ALL_RIGHT, columns=columns)
    left_out = judge(STORED, quantized=ALL_RIGHT, columns=columns, spec=slices(min_samples=61))

    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.code == "regression.slice-drop-open"
    assert verdict.next_step.endswith("accept a larger slices.max_drop on purpose")
    assert left_out.passed
    assert "not judged: 1 slice of fewer than 61 samples" in all_text(left_out)


@pytest.mark.parametrize(
    ("by", "code"),
    [("ligth", "slices-unknown-column"), ("one", "slices-of-one-value")],
)
def test_what_cannot_be_cut_is_red_under_the_name_of_this_gate(by: str, code: str) -> None:
    columns = {**LIGHTS, "one": ["value"] * SAMPLES}
    verdict = judge(STORED, quantized=ALL_RIGHT, columns=columns, spec=slices(by=((by,),)))

    assert verdict.code == f"regression.{code}"
    assert verdict.headline.startswith("regression: scenes/classification: ")


def test_classes_are_slices_too() -> None:
    spec = slices(by=(("class",),))
    worse = make_outcomes([not (i % 4 == 2 and i < 400) for i in range(SAMPLES)])
    gate_limits = replace(regression_gate(slices=spec), max_drop=Fraction(5, 100))

    verdict = judge_regression(
        fp16=with_wrong(variant="fp16"),
        quantized=worse,
        stored=STORED,
        differences=(),
        create_command="",
        update_command="",
        gate=replace(gate_limits, max_drop_since_first=Fraction(5, 100)),
    )

    assert verdict.code == "regression.slice-drop"
    assert verdict.figures["accepted_worst_slice"] == "class=fox"


def test_the_limits_of_slices_are_in_the_family() -> None:
    """A result that is only just a FAIL by itself is none among many."""
    gate = regression_gate(slices=slices())
    outcomes: dict[str, Any] = {
        "fp16": with_wrong(variant="fp16"),
        "quantized": with_wrong(range(19)),
        "stored": STORED,
        "columns": LIGHTS,
    }
    strengths = list_strengths(**outcomes, gate=gate)

    assert len(strengths) == count_limits(gate) == count_limits(regression_gate()) + 2
    assert strengths[4] == strengths[5]
    assert 1 / 6 < strengths[4] < 1
    alone = judge(STORED, quantized=outcomes["quantized"])
    assert alone.code == "regression.slice-drop"
    among = Family(size=6, strengths=lambda: strengths)
    assert judge(STORED, quantized=outcomes["quantized"], family=among).status is (
        Status.INCONCLUSIVE
    )


def test_slices_that_cannot_be_cut_raise_no_alarm() -> None:
    strengths = list_strengths(
        fp16=with_wrong(variant="fp16"),
        quantized=with_wrong(range(400)),
        stored=STORED,
        gate=regression_gate(slices=slices()),
    )
    assert strengths[4:] == (SILENT, SILENT)


def draw(seed: str, *, planted: float) -> tuple[Outcomes, Outcomes, Sequence[str]]:
    """Return a stored and a new variant that flip 3 % of 5,000, in 20 lights of equal size."""
    chance = random.Random(seed)
    lights = [f"l{i % 20}" for i in range(SAMPLES)]
    before = [chance.random() < 0.8 for _ in lights]
    after = []
    for right, light in zip(before, lights, strict=True):
        lost = 0.015 + (planted if light == "l7" else 0.0)
        flips = chance.random() < (lost / 0.8 if right else 0.015 / 0.2)
        after.append(right is not flips)
    return make_outcomes(before), make_outcomes(after), lights


@pytest.mark.slow
def test_a_planted_slice_is_named_in_nineteen_of_twenty_and_no_good_one() -> None:
    """5 % of the samples lose 16 pp, 0.8 pp on average, which the limit of the whole allows."""
    fp16 = with_wrong(variant="fp16")
    named = 0
    for seed in range(20):
        before, after, lights = draw(f"planted {seed}", planted=0.16)
        columns = {"light": list(lights)}
        verdict = judge(store(fp16, before), quantized=after, columns=columns)
        named += verdict.figures.get("accepted_worst_slice") == "light=l7" and verdict.code == (
            "regression.slice-drop"
        )
        before, after, lights = draw(f"good {seed}", planted=0.0)
        good = judge(store(fp16, before), quantized=after, columns={"light": list(lights)})
        assert good.status is not Status.FAIL, good.headline
    assert named >= 19
