"""The regression gate: today's results against those that were accepted, sample by sample."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from fractions import Fraction

from pytest_quantgate.gates.accuracy import (
    MEAN_OVER_CLASSES,
    RELATIONS,
    allowed_count,
    check_outcomes,
    confirm,
    decide,
    describe_worth,
    drop_flips,
    drop_interval,
    relation,
    show_interval,
)
from pytest_quantgate.gates.family import ALONE, SILENT, Alarm, Family
from pytest_quantgate.gates.pairing import Pairs, Unpaired, pair_stored
from pytest_quantgate.gates.samples import describe_samples, judge_samples
from pytest_quantgate.gates.statistics import chance_above
from pytest_quantgate.gates.words import brief_drop, count, percent, points
from pytest_quantgate.measurement import Outcomes, StoredOutcomes, StoredPair
from pytest_quantgate.suite import RegressionGate
from pytest_quantgate.verdict import Status, Verdict, combine

GATE = "regression"

#: As much as a table shows of one gate.
BRIEF_LENGTH = 70


def judge_regression(
    *,
    fp16: Outcomes,
    quantized: Outcomes,
    stored: StoredPair | None,
    differences: tuple[str, ...],
    create_command: str,
    update_command: str,
    gate: RegressionGate,
    family: Family = ALONE,
) -> Verdict:
    """Return whether FP16 and the quantized variant are still what was accepted.

    Four comparisons: FP16 with the stored FP16 (libraries drift: then the baseline moved, not the
    quantization), the variant with the one accepted last, and both with what they were when the
    first variant was accepted, so that small accepted drops do not add up unseen. `differences`
    say what else is different from what the baseline was made of; then nothing is compared.
    """
    if stored is None:
        return Verdict(
            gate=GATE,
            status=Status.FAIL,
            headline=f"regression: no baseline of {gate.task} {gate.metric} ({gate.where})",
            next_step=f"look at the accuracy gate, then: {create_command}",
        )
    if differences:
        return Verdict(
            gate=GATE,
            status=Status.INCOMPARABLE,
            headline=f"regression: the baseline of {gate.task} {gate.metric} was made of "
            f"something else ({gate.where})",
            brief=textwrap.shorten(", ".join(differences), BRIEF_LENGTH, placeholder=" ..."),
            evidence=differences,
            next_step=f"if that is meant: {update_command}",
            code="regression.baseline-of-other-things",
        )
    broken = check_outcomes(fp16, quantized)
    if broken is not None:
        found = broken.headline.removeprefix(f"{broken.gate}: ")
        return replace(broken, gate=GATE, headline=f"{GATE}: {found}")
    if gate.metric == MEAN_OVER_CLASSES and not quantized.class_names:
        return Verdict(
            gate=GATE,
            status=Status.FAIL,
            headline=f"regression: {gate.task}: {gate.metric} needs classes, and the samples have "
            f"none ({gate.where.of('metric')})",
            next_step="use metric: acc1, or the recall metrics for retrieval",
        )
    try:
        drift = pair_stored(stored=stored.fp16, now=fp16)
        drift_since_first = pair_stored(stored=stored.first_fp16, now=fp16)
        since_accepted = pair_stored(stored=stored.accepted, now=quantized)
        since_first = pair_stored(stored=stored.first, now=quantized)
    except Unpaired as error:
        return Verdict(
            gate=GATE,
            status=Status.INCOMPARABLE,
            headline=f"regression: {gate.task} {gate.metric} cannot be compared: {error} "
            f"({gate.where})",
            next_step=f"if that is meant: {update_command}",
        )
    exchanged = _judge_slot(
        stored.fp16, own=fp16, other=quantized, gate=gate, update_command=update_command
    )
    if exchanged is not None:
        return exchanged
    moved = _compare(
        drift,
        name="fp16",
        limit=gate.max_fp16_drop,
        stored=stored.fp16,
        now=fp16,
        gate=gate,
        family=family,
    )
    accepted = _compare(
        since_accepted,
        name="accepted",
        limit=gate.max_drop,
        stored=stored.accepted,
        now=quantized,
        gate=gate,
        family=family,
        fp16_drop=drift.drop,
        next_step=f"if that is meant: {update_command}",
    )
    first = _compare(
        since_first,
        name="first",
        limit=gate.max_drop_since_first,
        stored=stored.first,
        now=quantized,
        gate=gate,
        family=family,
        fp16_drop=drift.drop,
        next_step="undo the change that cost most: small accepted drops have added up",
    )
    needs_all = gate.metric == MEAN_OVER_CLASSES
    parts = [
        *judge_samples(quantized, kind=GATE, gate=gate, needs_all=needs_all),
        *(moved, accepted, first),
    ]
    if stored.first_fp16 != stored.fp16:  # else `moved` says it
        parts.append(
            _compare(
                drift_since_first,
                name="first_fp16",
                limit=gate.max_drop_since_first,
                stored=stored.first_fp16,
                now=fp16,
                gate=gate,
                family=family,
                next_step="compare the library versions with those of the first baseline: small "
                "accepted drifts of FP16 have added up",
            )
        )
    verdict = combine(gate=GATE, parts=tuple(parts))
    if not verdict.passed:
        return verdict
    # A variant that was as good as FP16 and lost something is one of the three; no loss is left.
    return (
        _judge_slot(
            stored.accepted, own=quantized, other=fp16, gate=gate, update_command=update_command
        )
        or verdict
    )


#: Outcomes of one model differ from its own by a few bits; so many times more is another model.
MUCH_CLOSER = 4
#: Fewer than this in either direction are chance.
LEAST_EACH_WAY = 4


def _judge_slot(
    slot: StoredOutcomes,
    *,
    own: Outcomes,
    other: Outcomes,
    gate: RegressionGate,
    update_command: str,
) -> Verdict | None:
    """A slot of the baseline that holds what the other model gives.

    A limit on a drop does not see that: both models may be equally good. But sample by sample each
    is like itself, and a slot that is much more like the other model holds its outcomes.
    """
    to_own, to_other = (pair_stored(stored=slot, now=now) for now in (own, other))
    # A model that got worse loses samples; another model also wins some.
    fewer = min(to_own.right_to_wrong, to_own.wrong_to_right)
    if fewer < LEAST_EACH_WAY or to_own.changed < MUCH_CLOSER * to_other.changed:
        return None
    return Verdict(
        gate=GATE,
        status=Status.INCOMPARABLE,
        headline=f"regression: {gate.task}: the baseline's slot of {own.variant} holds the "
        f"outcomes of {other.variant}: {to_other.changed} of {count(len(own.ids), 'sample')} "
        f"differ from {other.variant} now, {to_own.changed} from {own.variant} ({gate.where})",
        cause="the baseline was made with one model in the place of the other",
        next_step=f"look at how it was made, then: {update_command}",
    )


#: Each regression gate compares with a limit so many times.
LIMITS_COUNT = 4


def list_strengths(
    *, fp16: Outcomes, quantized: Outcomes, stored: StoredPair | None, gate: RegressionGate
) -> tuple[float, ...]:
    """Return the strength of the alarm of each comparison; silent without a baseline."""
    needs_classes = gate.metric == MEAN_OVER_CLASSES and not quantized.class_names
    if stored is None or needs_classes or check_outcomes(fp16, quantized) is not None:
        return (SILENT,) * LIMITS_COUNT
    try:
        compared = (
            (pair_stored(stored=stored.fp16, now=fp16), gate.max_fp16_drop),
            (pair_stored(stored=stored.accepted, now=quantized), gate.max_drop),
            (pair_stored(stored=stored.first, now=quantized), gate.max_drop_since_first),
            (pair_stored(stored=stored.first_fp16, now=fp16), gate.max_drop_since_first),
        )
    except Unpaired:
        return (SILENT,) * LIMITS_COUNT
    return tuple(_alarm(pairs, gate=gate, limit=limit).strength for pairs, limit in compared)


def _alarm(pairs: Pairs, *, gate: RegressionGate, limit: Fraction) -> Alarm:
    flips = drop_flips(pairs, metric=gate.metric)
    return Alarm(chance=chance_above(flips, float(limit)), confidence=gate.confidence)


_LIMITS = {
    "fp16": "max_fp16_drop",
    "accepted": "max_drop",
    "first": "max_drop_since_first",
    "first_fp16": "max_drop_since_first",
}
_BRIEF = {
    "fp16": "FP16",
    "accepted": "variant",
    "first": "since first",
    "first_fp16": "FP16 since first",
}
_SUBJECTS = {
    "fp16": "against its own baseline",
    "accepted": "against the variant accepted last",
    "first": "against the first variant accepted",
    "first_fp16": "against FP16 when the first variant was accepted",
}


def _compare(
    pairs: Pairs,
    *,
    name: str,
    limit: Fraction,
    stored: StoredOutcomes,
    now: Outcomes,
    gate: RegressionGate,
    family: Family,
    fp16_drop: float = 0.0,
    next_step: str = "compare the library versions with those in the baseline: the baseline moved, "
    "not the quantization",
) -> Verdict:
    drop, interval = drop_interval(pairs, metric=gate.metric, confidence=float(gate.confidence))
    status, doubts = confirm(
        decide(interval, limit=float(limit)),
        alarm=_alarm(pairs, gate=gate, limit=limit),
        family=family,
    )
    key = _LIMITS[name]
    headline = (
        f"regression: {gate.task}: {now.variant} {gate.metric} {percent(now.value)} "
        f"{_SUBJECTS[name]} {percent(stored.value)} on {describe_samples(now)}: drop "
        f"{points(drop)}, {show_interval(interval, confidence=gate.confidence)}, "
        f"{relation(status, name=key, limit=points(limit))} "
        f"= {count(allowed_count(limit, samples=pairs.samples), 'sample')} ({gate.where.of(key)})"
    )
    cause = ""
    if status is not Status.PASS:
        if status is Status.INCONCLUSIVE and drop <= float(limit):
            cause = "too few samples for this limit and this rate of flips"
            next_step = f"evaluate on fresh samples, or accept a larger {key} on purpose"
        elif name in ("fp16", "first_fp16"):
            cause = "a library, the machine or the preprocessing changed what FP16 computes"
        elif fp16_drop >= drop / 2:
            cause = (
                f"FP16 itself moved by {points(fp16_drop)}: the baseline moved, "
                f"not the quantization"
            )
        else:
            cause = "the quantized variant changed while FP16 did not"
    return Verdict(
        gate=GATE,
        status=status,
        headline=headline,
        brief=f"{_BRIEF[name]} "
        + brief_drop(
            stored.value,
            now.value,
            drop=drop,
            low=interval.low,
            high=interval.high,
            word=RELATIONS.get(status, "around"),
            limit=float(limit),
        ),
        evidence=(
            *doubts,
            f"{pairs.right_to_wrong} right to wrong, {pairs.wrong_to_right} wrong to right",
            *describe_worth(pairs, metric=gate.metric, confidence=gate.confidence),
        ),
        cause=cause,
        next_step="" if status is Status.PASS else next_step,
        figures={
            f"{name}_drop_points": drop * 100,
            f"{name}_drop_low_points": interval.low * 100,
            f"{name}_drop_high_points": interval.high * 100,
            "samples": pairs.samples,
        },
    )
