"""Sabotages of outcomes: what the accuracy and the regression gate must not let pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_quantgate.evidence.outcomes import Outcomes, Score, mean_score
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.regression import RegressionGate
from pytest_quantgate.gates.run import measure_task
from pytest_quantgate.gates.slices import find_slices, read_columns
from pytest_quantgate.selftest.sabotage import OTHER_DIGEST, Sabotage, Spoil, altered, exchange

if TYPE_CHECKING:
    from pytest_quantgate.gates.sections import TaskGate
    from pytest_quantgate.run.case import Case

#: What a verdict says of a slice that lost, whatever else went red with it.
OVER_SLICES = r"worst slice .* [1-9]\d* of \d+ slices over slices\.max_drop"


def _keep(outcomes: Outcomes) -> Outcomes:
    return outcomes


def list_outcome_sabotages() -> tuple[Sabotage, ...]:
    return (*_accuracy(), *_regression())


def answer_wrong(outcomes: Outcomes) -> Outcomes:
    """Return outcomes in which no sample is right."""
    return with_correct(outcomes, correct=(False,) * len(outcomes.ids))


def with_correct(outcomes: Outcomes, *, correct: tuple[Score, ...]) -> Outcomes:
    """Return outcomes with these samples right; answers change where that does, so the value."""
    classes = len(outcomes.class_names) or 2
    answers = tuple(
        answer if was == right else label if right else (label + 1) % classes
        for answer, was, label, right in zip(
            outcomes.answers, outcomes.correct, outcomes.labels, correct, strict=True
        )
    )
    value = mean_score(correct, labels=outcomes.labels, metric=outcomes.metric)
    return replace(outcomes, correct=correct, answers=answers, value=value)


def drop_samples(outcomes: Outcomes) -> Outcomes:
    """Return outcomes without the second half of the samples."""
    return outcomes.select(range(max(1, len(outcomes.ids) // 2)))


def trade_answers(outcomes: Outcomes) -> Outcomes:
    """Return outcomes in which as many wrong answers became right as right ones wrong."""
    right = [i for i, good in enumerate(outcomes.correct) if good]
    wrong = [i for i, good in enumerate(outcomes.correct) if not good]
    traded = min(len(right), len(wrong))
    flipped = {*right[:traded], *wrong[:traded]}
    correct = tuple(not good if i in flipped else good for i, good in enumerate(outcomes.correct))
    return with_correct(outcomes, correct=correct)


def exchange_outcomes(
    case: Case,
    *,
    fp16: Callable[[Outcomes], Outcomes] = _keep,
    quantized: Callable[[Outcomes], Outcomes] = _keep,
) -> Case:
    """Return a copy of a case whose outcomes are changed, on whatever task a gate asks for."""

    def outcomes(**request: Any) -> tuple[Outcomes, Outcomes]:
        before, after = case.outcomes(**request)
        return fp16(before), quantized(after)

    return exchange(case, outcomes=outcomes)


def _on_outcomes(
    *,
    fp16: Callable[[Outcomes], Outcomes] = _keep,
    quantized: Callable[[Outcomes], Outcomes] = _keep,
) -> Spoil:
    return lambda case, _key: exchange_outcomes(case, fp16=fp16, quantized=quantized)


def lose_slice(case: Case, gate: TaskGate) -> Case | None:
    """Return a copy of a case whose variant has no sample right of one slice that a gate judges:
    the one with the most to lose. None where there is none."""
    _, after = measure_task(case, gate)
    judged = find_slices(gate, columns=read_columns(case, gate, after), outcomes=after).judged

    rights = {name: sum(after.correct[i] for i in inside) for name, inside in judged.items()}
    if not any(rights.values()):
        return None
    lost = set(judged[max(rights, key=rights.__getitem__)])
    correct = tuple(False if i in lost else score for i, score in enumerate(after.correct))
    return exchange_outcomes(case, quantized=lambda found: with_correct(found, correct=correct))


def _accuracy() -> tuple[Sabotage, ...]:
    def one_slice(case: Case, key: str) -> Case | None:
        return lose_slice(case, case.suite.gates.get(AccuracyGate, key=key))

    def under_floor(case: Case, key: str) -> Case | None:
        if case.suite.gates.get(AccuracyGate, key=key).floor is None:
            return None
        return exchange_outcomes(case, fp16=answer_wrong, quantized=answer_wrong)

    def trade(case: Case, key: str) -> Case | None:
        gate = case.suite.gates.get(AccuracyGate, key=key)
        if gate.max_flips is None:
            return None
        before, _ = measure_task(case, gate)
        traded = trade_answers(before)
        flipped = sum(a != b for a, b in zip(before.answers, traded.answers, strict=True))
        if flipped <= gate.max_flips * len(before.ids):
            return None  # too few are wrong for an even trade over the limit

        def of_variant(after: Outcomes) -> Outcomes:
            return replace(traded, variant=after.variant)

        return exchange_outcomes(case, quantized=of_variant)

    of = partial(Sabotage, gate="accuracy")
    return (
        of(
            name="answers of another class",
            cause="over max_drop",
            spoil=_on_outcomes(quantized=answer_wrong),
        ),
        of(
            name="evaluated on a part",
            cause="sample ids differ",
            spoil=_on_outcomes(quantized=drop_samples),
        ),
        of(
            name="evaluated on other data",
            cause="the data differs",
            spoil=_on_outcomes(quantized=altered(data_digest=OTHER_DIGEST)),
        ),
        of(
            name="NaN in the embeddings",
            cause="NaN or Inf",
            spoil=_on_outcomes(quantized=altered(nonfinite=1)),
        ),
        of(
            name="a value that was edited",
            cause="is not what its .* samples say",
            spoil=_on_outcomes(quantized=lambda o: replace(o, value=o.value / 2 + 0.25)),
        ),
        of(
            name="both variants wrong alike",
            cause="under floor|classes in another order",  # each sample gets the next class
            spoil=under_floor,
        ),
        of(name="losses that gains hide", cause="max_flips", spoil=trade),
        of(name="one slice lost", cause=OVER_SLICES, spoil=one_slice),
    )


def _regression() -> tuple[Sabotage, ...]:
    def without_baseline(case: Case, _key: str) -> Case:
        return exchange(case, store=_EmptyStore())

    def one_slice(case: Case, key: str) -> Case | None:
        return lose_slice(case, case.suite.gates.get(RegressionGate, key=key))

    of = partial(Sabotage, gate="regression")
    return (
        of(name="no baseline", cause="no baseline", spoil=without_baseline),
        of(
            name="a variant that got worse",
            cause="over max_drop",
            spoil=_on_outcomes(quantized=answer_wrong),
        ),
        of(
            name="FP16 that moved",
            cause="over max_fp16_drop|classes in another order",
            spoil=_on_outcomes(fp16=answer_wrong),
        ),
        of(
            name="evaluated on other data",
            cause="evaluation data differ",
            spoil=_on_outcomes(
                fp16=altered(data_digest=OTHER_DIGEST), quantized=altered(data_digest=OTHER_DIGEST)
            ),
        ),
        of(name="one slice lost", cause=OVER_SLICES, spoil=one_slice),
    )


class _EmptyStore:
    """A store in which nothing was ever written."""

    def read(self, _suite: str, _key: str) -> None:
        return None
