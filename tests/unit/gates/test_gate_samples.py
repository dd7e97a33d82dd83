"""Samples that cannot stand for their task: copies, and classes without a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.parity import Parity, TowerParity
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.accuracy import judge_accuracy
from pytest_quantgate.gates.calibration import judge_calibration
from pytest_quantgate.gates.fidelity import judge_fidelity
from pytest_quantgate.gates.parity import ParityGate, judge_parity
from pytest_quantgate.gates.regression import judge_regression
from pytest_quantgate.gates.samples import judge_copies, most_unseen
from tests.unit.gates.calibration_builders import AUDIT
from tests.unit.gates.gate_builders import (
    WHERE,
    accuracy_gate,
    at,
    calibration_gate,
    fidelity_gate,
    make_audit,
    make_fidelity,
    make_outcomes,
    make_run,
    make_tower,
    regression_gate,
    store,
)

NAMES = tuple(f"class {n}" for n in range(10))


def outcomes(
    right: Sequence[bool],
    *,
    labels: Sequence[int] | None = None,
    times: int = 1,
    metric: str = "acc1",
    **changes: Any,
) -> Outcomes:
    """Return outcomes of ten classes, each sample `times` times."""
    own = labels if labels is not None else [i % 10 for i in range(len(right))]
    all_labels = tuple(own) * times
    made = make_outcomes(
        tuple(right) * times,
        labels=all_labels,
        class_names=NAMES,
        metric=metric,
        clusters=tuple(range(len(right))) * times if times > 1 else (),
        copies=len(right) * (times - 1),
        **changes,
    )
    if metric == "acc1":
        return made
    shares = [
        sum(r for r, at_label in zip(made.correct, all_labels, strict=True) if at_label == label)
        / all_labels.count(label)
        for label in sorted(set(all_labels))
    ]
    return replace(made, value=sum(shares) / len(shares))


def judge(fp16: Outcomes, quantized: Outcomes, **limits: Any) -> Verdict:
    return judge_accuracy(
        fp16=fp16, quantized=quantized, gate=accuracy_gate(metric=fp16.metric, **limits)
    )


# -- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["acc1", "mean_per_class_recall"])
def test_the_interval_is_that_of_the_distinct_images(metric: str) -> None:
    """400 distinct of 10,000: 3 % lost is not decided against 2 pp, whatever the export says."""
    before, after = [True] * 400, [i >= 12 for i in range(400)]

    def intervals(times: int) -> tuple[float, float, Status, str]:
        verdict = judge(
            outcomes(before, times=times, metric=metric, variant="fp16"),
            outcomes(after, times=times, metric=metric),
            max_drop=Fraction(2, 100),
        )
        low, high = (float(verdict.figures[f"drop_{end}_points"]) for end in ("low", "high"))
        return low, high, verdict.status, verdict.code

    low, high, status, _ = intervals(1)
    copied_low, copied_high, copied, code = intervals(25)

    assert (status, copied) == (Status.INCONCLUSIVE, Status.INCONCLUSIVE)
    assert code == "accuracy.copies"
    assert copied_low == pytest.approx(low, abs=0.1)
    assert copied_high == pytest.approx(high, abs=0.1)
    assert copied_high >= high


def test_a_set_that_was_exported_twice_is_not_decided_even_without_a_loss() -> None:
    same = [True] * 4_000
    verdict = judge(
        outcomes(same, times=25, variant="fp16"), outcomes(same, times=25), max_drop=Fraction(1, 50)
    )

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "accuracy.copies")
    assert verdict.headline == (
        "accuracy: scenes/classification: 96000 of 100000 samples are copies of others, 4000 are "
        f"distinct ({at('task')})"
    )
    assert verdict.brief == "96000 of 100000 samples are copies, 4000 are distinct"
    assert verdict.cause.startswith("an export that ran twice")
    assert verdict.next_step == "export the data again, each sample once"
    assert verdict.figures["copies"] == 96_000


@pytest.mark.parametrize(
    ("samples", "copies", "red"), [(100, 50, True), (100, 49, False), (3, 1, False), (2, 1, True)]
)
def test_half_of_all_being_copies_is_no_accident(samples: int, copies: int, red: bool) -> None:
    found = judge_copies(samples=samples, copies=copies, kind="fidelity", subject="s", where="w")

    assert (found is not None) is red
    if found is not None:
        assert (found.gate, found.code) == ("fidelity", "fidelity.copies")
        assert found.figures == {"copies": copies}


def test_a_few_copies_are_counted_once_and_pass() -> None:
    """Photographs stand twice in sets that people use: that is no damage."""
    right = [True] * 1000
    clusters = tuple(max(0, i - 30) for i in range(1000))
    fp16 = replace(outcomes(right, variant="fp16"), clusters=clusters, copies=30)
    verdict = judge(fp16, replace(outcomes(right), clusters=clusters, copies=30))

    assert verdict.passed
    assert "on 1000 samples (970 distinct) of 10 classes: drop 0.00 pp" in verdict.headline
    (line,) = [line for line in verdict.evidence if "clusters" in line]
    assert line.startswith("1000 samples in 970 clusters that share a picture or a text are worth ")


def test_one_photograph_in_two_classes_is_no_copy() -> None:
    """A multi-label set shows each photograph once a class: half of all, and each counts."""
    labels = [i % 5 + 5 * (i // 500) for i in range(1000)]
    clusters = tuple(i % 500 for i in range(1000))
    right = [i % 3 > 0 for i in range(1000)]

    def make(**changes: Any) -> Outcomes:
        return replace(outcomes(right, labels=labels, **changes), clusters=clusters)

    verdict = judge(make(variant="fp16"), make(), max_drop=Fraction(1, 100), floor=Fraction(1, 2))
    assert verdict.passed
    assert "on 1000 samples of 10 classes" in verdict.headline


def test_a_class_of_copies_is_worth_its_distinct_images() -> None:
    """Two pictures stored 100 times each are no class of 200 samples that lost nothing."""
    labels = [i % 9 for i in range(900)] + [9] * 200
    clusters = (*range(900), *(900 + i % 2 for i in range(200)))
    right = [True] * 1100

    def make(**changes: Any) -> Outcomes:
        made = outcomes(right, labels=labels, **changes)
        return replace(made, clusters=clusters, copies=198)

    verdict = judge(
        make(variant="fp16"), make(), max_drop=Fraction(5, 100), max_class_drop=Fraction(1, 10)
    )
    assert verdict.status is Status.INCONCLUSIVE
    assert "class 'class 9'" in "\n".join(verdict.evidence)


def test_copies_are_seen_by_every_gate_that_counts_samples() -> None:
    same = outcomes([True] * 400, times=25)
    fp16 = replace(same, variant="fp16")
    regression = judge_regression(
        fp16=fp16,
        quantized=same,
        stored=store(fp16, same),
        differences=(),
        create_command="create",
        update_command="update",
        gate=regression_gate(),
    )
    fidelity = judge_fidelity(make_fidelity(copies=500), gate=fidelity_gate(min_cosine=0.9))
    calibration = judge_calibration(
        make_audit(),
        make_run(samples=64, copies=60),
        evaluation_hashes=(),
        gate=calibration_gate(),
    )

    found = {v.code: v for v in (regression, fidelity, calibration)}
    assert set(found) == {"regression.copies", "fidelity.copies", "calibration.copies"}
    assert {v.status for v in found.values()} == {Status.INCONCLUSIVE}
    assert "500 of 512 samples are copies of others, 12 are distinct" in fidelity.headline
    assert "60 of 64 samples are copies of others, 4 are distinct" in calibration.headline


def test_a_few_copies_are_said_and_pass_where_nothing_is_counted() -> None:
    verdict = judge_fidelity(
        make_fidelity(vision={}, text={}, copies=3), gate=fidelity_gate(min_cosine=0.9)
    )
    assert verdict.passed
    assert verdict.headline.endswith("on 512 samples of scenes/test, 3 of them copies")
    assert make_tower("vision").samples == 512


# -- classes that were not seen -------------------------------------------------------------------


def of_classes(count: int, number: int, **changes: Any) -> Outcomes:
    return outcomes([True] * number, labels=[i % count for i in range(number)], **changes)


def seen(count: int, number: int, **limits: Any) -> Verdict:
    return judge(
        of_classes(count, number, variant="fp16"),
        of_classes(count, number),
        max_drop=Fraction(1, 4),
        **limits,
    )


def test_forty_samples_of_one_class_of_ten_do_not_stand_for_ten() -> None:
    verdict = seen(1, 40, samples=40, first=True)

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "accuracy.classes-unseen")
    assert verdict.headline == (
        "accuracy: scenes/classification: 40 samples of 1 of 10 classes do not stand for the task "
        f"({at('first')})"
    )
    assert verdict.evidence[0] == (
        "without a sample: class 1, class 2, class 3, class 4 and 5 more"
    )
    assert verdict.next_step == (
        "leave out first: true, or evaluate on data that shows every class; where it has no more, "
        "say so with min_classes: 1"
    )
    assert (verdict.figures["classes_seen"], verdict.figures["classes"]) == (1, 10)


def test_one_missing_class_is_enough() -> None:
    verdict = seen(9, 900)

    assert verdict.code == "accuracy.classes-unseen"
    assert verdict.brief == "1 of 10 classes without a sample"
    assert f"({at('task')})" in verdict.headline
    assert verdict.cause.startswith("a part of the data is missing")
    assert verdict.next_step.startswith("evaluate on data that shows every class")


def test_a_small_suite_that_shows_every_class_passes() -> None:
    verdict = seen(10, 40)

    assert verdict.passed
    assert "on 40 samples of 10 classes: drop 0.00 pp" in verdict.headline


def test_few_samples_of_many_classes_pass_as_a_fair_draw_would_show_no_more() -> None:
    names = tuple(f"class {n}" for n in range(1000))
    fair = make_outcomes([True] * 500, labels=tuple(range(500)), class_names=names)
    sorted_ = make_outcomes([True] * 500, labels=(0,) * 500, class_names=names)

    def verdict(found: Outcomes, **limits: Any) -> Verdict:
        return judge(replace(found, variant="fp16"), found, max_drop=Fraction(1, 20), **limits)

    assert verdict(fair).passed
    assert "on 500 samples of 500 of 1000 classes" in verdict(fair).headline
    assert verdict(sorted_).code == "accuracy.classes-unseen"
    # What is said of each class needs a sample of each.
    assert verdict(fair, max_class_drop=Fraction(99, 100)).code == "accuracy.classes-unseen"


def test_one_class_of_one_is_named_as_one() -> None:
    lone = make_outcomes([True] * 9, labels=(5,) * 9, class_names=("cat",), variant="fp16")
    gate = accuracy_gate(max_drop=Fraction(1))

    verdict = judge_accuracy(fp16=lone, quantized=replace(lone, variant="fp8"), gate=gate)

    assert "9 samples of 0 of 1 class do not stand for the task" in verdict.headline


def test_copies_show_no_classes() -> None:
    """Eight of ten classes are a fair draw of 20 samples, and no more for being stored in fours."""
    labels = [i % 8 for i in range(20)]
    right = [True] * 20
    few = outcomes(right, labels=labels, variant="fp16")
    many = outcomes(right, labels=labels, times=4, variant="fp16")

    assert judge(few, replace(few, variant="fp8"), max_drop=Fraction(99, 100)).passed
    found = judge(many, replace(many, variant="fp8"), max_drop=Fraction(99, 100))
    assert "do not stand for the task" not in " ".join((found.headline, *found.evidence))


def test_a_suite_may_say_how_many_classes_its_data_has() -> None:
    assert seen(6, 900, min_classes=6).passed
    assert seen(6, 900, min_classes=7).code == "accuracy.classes-unseen"
    assert seen(10, 40, min_classes=10).passed


def test_a_mean_over_classes_needs_all_of_them() -> None:
    def made(**changes: Any) -> Outcomes:
        return of_classes(9, 18, metric="mean_per_class_recall", **changes)

    verdict = judge(made(variant="fp16"), made(), max_drop=Fraction(1, 2))
    assert verdict.code == "accuracy.classes-unseen"
    assert seen(9, 18).code != "accuracy.classes-unseen"  # two of eighteen may be missed by chance


def test_regression_says_it_too() -> None:
    fp16, quantized = of_classes(3, 300, variant="fp16"), of_classes(3, 300)
    verdict = judge_regression(
        fp16=fp16,
        quantized=quantized,
        stored=store(fp16, quantized),
        differences=(),
        create_command="create",
        update_command="update",
        gate=regression_gate(),
    )
    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "regression.classes-unseen")


@pytest.mark.parametrize(("samples", "classes"), [(250, 100), (64, 100), (30, 30)])
def test_a_fair_draw_leaves_out_no_more(samples: int, classes: int) -> None:
    """Of 400 draws of classes of one size at most a few leave out more."""
    random = Random(0)
    most = most_unseen(samples=samples, classes=classes)
    unseen = [
        classes - len({random.randrange(classes) for _ in range(samples)}) for _ in range(400)
    ]
    assert sum(found > most for found in unseen) <= 0.06 * 400
    assert max(unseen) - most < 8


@pytest.mark.parametrize(
    ("samples", "classes", "most"), [(40, 10, 0), (20, 10, 2), (250, 100, 12), (1, 1, 0), (1, 2, 1)]
)
def test_number_of_classes_that_chance_leaves_out(samples: int, classes: int, most: int) -> None:
    """The occupancy problem: mean and two standard deviations of the number of empty boxes."""
    assert most_unseen(samples=samples, classes=classes) == most


@given(st.integers(1, 400), st.integers(1, 400))
def test_more_samples_leave_out_fewer_classes(samples: int, classes: int) -> None:
    most = most_unseen(samples=samples, classes=classes)

    assert 0 <= most < classes
    assert most_unseen(samples=samples * 2, classes=classes) <= most
    assert most_unseen(samples=20 * classes, classes=classes) == 0


@pytest.mark.parametrize(("samples", "is_open"), [(1, True), (4, True), (5, False)])
def test_too_few_samples_say_nothing_of_others(samples: int, is_open: bool) -> None:
    """Four that are fine may be four of a minority: 0.5^4 is 6 %."""
    fidelity = judge_fidelity(
        make_fidelity(vision={"samples": 9}, text={"samples": 9}, copies=9 - samples),
        gate=fidelity_gate(min_cosine=0.99),
    )
    towers = tuple(
        TowerParity(
            tower=tower,
            samples=samples,
            error=2e-4,
            floor=3e-5,
            quantization_error=0.07,
            sqnr_torch_db=23.1,
            sqnr_onnx_db=23.2,
            nonfinite=0,
            optimization="basic",
        )
        for tower in ("vision", "text")
    )
    parity = judge_parity(
        Parity(towers=towers, runtime="ONNX Runtime"), gate=ParityGate(where=WHERE)
    )
    calibration = judge_calibration(
        AUDIT,
        make_run(held_out_samples=samples),
        evaluation_hashes=(),
        gate=calibration_gate(),
    )

    for verdict in (parity, calibration):
        assert (verdict.code == f"{verdict.gate}.few-samples") is is_open, verdict.headline
        assert verdict.passed is not is_open
    # Nearly all of these samples are copies, which is said as well.
    assert ("fidelity.few-samples" in (fidelity.code, *fidelity.other_codes)) is is_open
