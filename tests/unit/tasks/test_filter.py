"""A filter at FP16's false-positive rate: values, the threshold's side, and what is no filter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.gates.chance import LAST_ALPHA, is_above_chance
from pytest_quantgate.measure.sanity import read_answers
from pytest_quantgate.tasks.filter import score_margins
from pytest_quantgate.tasks.kind import find_task
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import TaskInputs, build_outcomes

CLASSES = ("food", "weapon", "landscape", "gore")
CAUGHT = ("weapon", "gore")


def make_inputs(
    *, seed: int = 0, count: int = 600, spread: float = 0.5, metric: str = "recall@fpr5%", **of: Any
) -> TaskInputs:
    """Return pictures around the texts of four classes, which overlap."""
    texts = torch.randn(4, 16, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = normalize(texts, dim=1)[labels] + spread * torch.randn(count, 16, generator=generator)
    ids = tuple(f"{seed}-{index:04d}" for index in range(count))
    samples = Samples(
        name="photos/test",
        ids=ids,
        images=[None] * count,
        hashes=ids,
        labels=tuple(labels.tolist()),
        class_names=CLASSES,
    )
    values: dict[str, Any] = {
        "samples": samples,
        "pixels": ids,
        "metric": metric,
        "task": "photos/filter",
        "images": images,
        "texts": texts,
        "positive": CAUGHT,
        **of,
    }
    return TaskInputs(**values)


def answer(inputs: TaskInputs) -> Outcomes:
    return build_outcomes(find_task("photos/filter").score(inputs), inputs=inputs, variant="v")


def both(inputs: TaskInputs) -> tuple[float, float]:
    """Return the value of both rates."""
    found = (replace(inputs, metric=f"{of}@fpr5%") for of in ("recall", "specificity"))
    return tuple(answer(one).value for one in found)  # type: ignore[return-value]


def test_fp16_is_the_point_of_scikit_learns_curve() -> None:
    roc_curve = pytest.importorskip("sklearn.metrics").roc_curve
    inputs = make_inputs()
    truth = [CLASSES[label] in CAUGHT for label in inputs.samples.labels or ()]
    fpr, tpr, _ = roc_curve(truth, score_margins(inputs).numpy(), drop_intermediate=False)

    recall, specificity = both(inputs)

    assert recall == pytest.approx(tpr[fpr <= 0.05].max())
    assert 1 - specificity == pytest.approx(fpr[fpr <= 0.05].max())
    assert 0.3 < recall < 0.99


def test_outcomes_are_those_of_one_side_each() -> None:
    inputs = make_inputs(count=400)
    labels = inputs.samples.labels or ()
    caught = answer(inputs)
    passed = answer(replace(inputs, metric="specificity@fpr5%"))

    assert caught.ids == tuple(
        name for name, label in zip(inputs.samples.ids, labels, strict=True) if label in (1, 3)
    )
    assert {*caught.ids} | {*passed.ids} == {*inputs.samples.ids}
    assert len(caught.ids) + len(passed.ids) == 400
    assert caught.answers == tuple(map(int, caught.correct))
    assert passed.answers == tuple(1 - right for right in passed.correct)


def test_the_threshold_is_fp16s_and_not_the_variants_own() -> None:
    """All margins of the variant are 0.2 higher: at a threshold of its own nothing would be lost,
    at FP16's it flags far more negatives."""
    fp16 = make_inputs()
    assert fp16.images is not None
    assert fp16.texts is not None
    texts = normalize(fp16.texts, dim=1)
    towards = texts[[1, 3]].mean(dim=0) - texts[[0, 2]].mean(dim=0)
    moved = replace(fp16, images=fp16.images + 0.8 * towards, fp16=fp16)
    own = replace(moved, fp16=None)

    assert both(moved)[1] < both(fp16)[1] - 0.1
    assert both(moved)[0] > both(fp16)[0]
    assert both(own)[1] >= 0.95  # the check can fail: a threshold of its own hides it


def test_a_bank_decides_the_threshold() -> None:
    bank = make_inputs(seed=7, spread=1.0)
    alone, tuned = make_inputs(), make_inputs(bank=bank)

    assert both(tuned)[0] < both(alone)[0]
    assert both(tuned)[1] > both(alone)[1]


def is_caught(inputs: TaskInputs) -> bool:
    """Return whether FP16 is refused, or not shown to beat chance."""
    try:
        outcomes = answer(inputs)
    except DataError as error:
        return "does not tell them apart" in str(error)
    answers = read_answers(outcomes, chance=find_task("photos/filter").chance)
    return answers is not None and not is_above_chance(answers, alpha=LAST_ALPHA)


@pytest.mark.parametrize("seed", range(4))
def test_labels_that_are_shifted_are_refused_or_chance(seed: int) -> None:
    inputs = make_inputs(seed=seed)
    labels = inputs.samples.labels or ()
    shifted = replace(inputs.samples, labels=(*labels[1:], labels[0]))

    assert not is_caught(inputs)
    assert is_caught(replace(inputs, samples=shifted))


def test_scores_that_are_negated_show(monkeypatch: pytest.MonkeyPatch) -> None:
    fp16 = make_inputs()
    whole = both(fp16)

    def negate(inputs: TaskInputs) -> torch.Tensor:
        margins = score_margins(inputs)
        return -margins if inputs.task == "negated" else margins

    monkeypatch.setattr("pytest_quantgate.tasks.filter.score_margins", negate)
    negated = replace(fp16, task="negated")

    assert both(replace(negated, fp16=fp16)) < (0.1, whole[1])
    for metric in ("recall@fpr5%", "specificity@fpr5%"):
        with pytest.raises(
            DataError, match=r"FP16 flags 0\.\d\d% of the positives and 4\.\d\d% of"
        ):
            answer(replace(negated, metric=metric))


def test_nan_is_no_answer_and_is_counted() -> None:
    fp16 = make_inputs()
    images = fp16.images.clone()  # type: ignore[union-attr]
    images[:40] = torch.nan
    for metric in ("recall@fpr5%", "specificity@fpr5%"):
        found = answer(replace(fp16, images=images, metric=metric, fp16=fp16))
        whole = answer(replace(fp16, metric=metric))
        assert found.nonfinite == 40
        bad = {name for name in fp16.samples.ids[:40] if name in found.ids}
        assert not any(
            right for name, right in zip(found.ids, found.correct, strict=True) if name in bad
        )
        assert found.value < whole.value
    assert answer(replace(fp16, images=images)).nonfinite == 40


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"positive": ("wepon",)}, "has no class 'wepon': did you mean 'weapon'"),
        ({"positive": ("cat",)}, "has no class 'cat': classes are food, weapon, landscape, gore"),
        ({"positive": CLASSES}, "photos/test has no negatives: positive: names food, weapon"),
        (
            {"metric": "recall@fpr0.1%"},
            "0.1 % of 290 negatives is less than one: take at least 1000",
        ),
    ],
)
def test_what_is_no_filter_is_named(of: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        answer(make_inputs(**of))


def test_a_side_without_samples_is_named() -> None:
    inputs = make_inputs()
    only = replace(inputs.samples, labels=(0,) * len(inputs.samples))
    with pytest.raises(DataError, match="photos/test has no positives"):
        answer(replace(inputs, samples=only))


def test_how_many_positives_there_are_is_not_known_before() -> None:
    kind = find_task("photos/filter")

    assert kind.count_queries("recall@fpr5%", 100, 0) is None
    kind.check_metric("specificity@fpr0.5%")
    for odd in ("recall@5", "recall@fpr5", "recall@fpr123%"):
        with pytest.raises(DataError, match="is no metric of filter"):
            kind.check_metric(odd)
