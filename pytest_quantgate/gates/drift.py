"""Today's outcomes against those that a baseline holds: four comparisons, and those of slices."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.deciding import RELATIONS, confirm, decide, relation
from pytest_quantgate.gates.drops import (
    describe_allowed,
    describe_moves,
    describe_worth,
    drop_flips,
    drop_interval,
    show_interval,
)
from pytest_quantgate.gates.samples import describe_samples
from pytest_quantgate.gates.sections import ALL_LOST, TaskGate
from pytest_quantgate.gates.slices import (
    Cut,
    Slices,
    SlicesSpec,
    judge_worst,
    name_left_out,
)
from pytest_quantgate.statistics.family import Alarm, Family
from pytest_quantgate.statistics.intervals import chance_above
from pytest_quantgate.statistics.pairing import NO_SLICES, Pairs, pair_stored
from pytest_quantgate.suite.keys import points_key, section_key
from pytest_quantgate.text.words import brief_drop, code_of, percent, points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_quantgate.evidence.outcomes import Outcomes, StoredOutcomes, StoredPair

GATE = "regression"


@dataclass(frozen=True, kw_only=True)
class DriftSlicesSpec(SlicesSpec):
    """As slices of an accuracy gate, against the variants that the baseline holds."""

    max_drop_since_first: Fraction | None = field(
        default=None,
        metadata=points_key(
            help="of the worst slice since the first variant; default: max_drop", reach=ALL_LOST
        ),
    )


@dataclass(frozen=True, kw_only=True)
class DriftLimits(TaskGate):
    """Limits on drift: FP16 against stored FP16, quantized against accepted and first."""

    max_fp16_drop: Fraction = field(
        metadata=points_key(help="FP16 against the stored FP16", reach=ALL_LOST)
    )
    max_drop: Fraction = field(
        metadata=points_key(help="against the variant accepted last", reach=ALL_LOST)
    )
    max_drop_since_first: Fraction = field(
        metadata=points_key(help="against the first accepted", reach=ALL_LOST)
    )
    slices: DriftSlicesSpec | None = field(
        default=None,
        metadata=section_key(DriftSlicesSpec, help="loss of the worst part: a column, a class"),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Outcomes of today against those that a baseline holds as `name`, within a limit `key`."""

    name: str
    key: str
    subject: str
    brief: str
    next_step: str
    of_fp16: bool = False


#: Each regression gate compares so often.
COMPARISONS = (
    Comparison(
        name="fp16",
        key="max_fp16_drop",
        subject="against its own baseline",
        brief="FP16",
        next_step="compare the library versions with those in the baseline: the baseline moved, "
        "not the quantization",
        of_fp16=True,
    ),
    Comparison(
        name="accepted",
        key="max_drop",
        subject="against the variant accepted last",
        brief="variant",
        next_step="if that is meant: {update}",
    ),
    Comparison(
        name="first",
        key="max_drop_since_first",
        subject="against the first variant accepted",
        brief="since first",
        next_step="undo the change that cost most: small accepted drops have added up",
    ),
    Comparison(
        name="first_fp16",
        key="max_drop_since_first",
        subject="against FP16 when the first variant was accepted",
        brief="FP16 since first",
        next_step="compare the library versions with those of the first baseline: small "
        "accepted drifts of FP16 have added up",
        of_fp16=True,
    ),
)


def pair_all(
    stored: StoredPair,
    *,
    fp16: Outcomes,
    quantized: Outcomes,
    slices: Mapping[str, Sequence[int]] = NO_SLICES,
) -> dict[str, Pairs]:
    """Return the pairs of each comparison; `slices` are places in `quantized`. Raises Unpaired."""
    return {
        kind.name: pair_stored(stored=getattr(stored, kind.name), now=fp16)
        if kind.of_fp16
        else pair_stored(stored=getattr(stored, kind.name), now=quantized, slices=slices)
        for kind in COMPARISONS
    }


def list_alarms(pairs: Mapping[str, Pairs], *, gate: DriftLimits) -> tuple[Alarm, ...]:
    """Return the alarm of each comparison, and of each one of slices."""
    return (
        *(
            _alarm(pairs[kind.name], gate=gate, limit=getattr(gate, kind.key))
            for kind in COMPARISONS
        ),
        *(cut.alarm(gate.confidence) for cut in _cut_slices(pairs, gate=gate).values()),
    )


def count_limits(gate: DriftLimits) -> int:
    """Return how many limits a gate adds to its suite's family."""
    return len(COMPARISONS) + (len(_SLICED) if gate.slices is not None else 0)


def _alarm(pairs: Pairs, *, gate: DriftLimits, limit: Fraction) -> Alarm:
    flips = drop_flips(pairs, metric=gate.metric)
    return Alarm(chance=chance_above(flips, float(limit)), confidence=gate.confidence)


def compare(
    pairs: Pairs,
    *,
    kind: Comparison,
    stored: StoredOutcomes,
    now: Outcomes,
    gate: DriftLimits,
    family: Family,
    fp16_drop: float,
    update_command: str,
) -> Verdict:
    key, limit = kind.key, getattr(gate, kind.key)
    next_step = kind.next_step.format(update=update_command)
    drop, interval = drop_interval(pairs, metric=gate.metric, confidence=float(gate.confidence))
    status, doubts = confirm(
        decide(interval, limit=float(limit)),
        alarm=_alarm(pairs, gate=gate, limit=limit),
        family=family,
    )
    headline = (
        f"regression: {gate.task}: {now.variant} {gate.metric} {percent(now.value)} "
        f"{kind.subject} {percent(stored.value)} on {describe_samples(now)}: drop "
        f"{points(drop)}, {show_interval(interval, confidence=gate.confidence)}, "
        f"{relation(status, name=key, limit=points(limit))} "
        f"= {describe_allowed(limit, pairs=pairs)} ({gate.where.of(key)})"
    )
    cause = ""
    if status is not Status.PASS:
        if status is Status.INCONCLUSIVE and drop <= float(limit):
            cause = "too few samples for this limit and this rate of flips"
            next_step = f"evaluate on fresh samples, or accept a larger {key} on purpose"
        elif kind.of_fp16:
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
        brief=f"{kind.brief} "
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
            describe_moves(pairs),
            *describe_worth(pairs, metric=gate.metric, confidence=gate.confidence),
        ),
        cause=cause,
        next_step="" if status is Status.PASS else next_step,
        figures={
            f"{kind.name}_drop_points": drop * 100,
            f"{kind.name}_drop_low_points": interval.low * 100,
            f"{kind.name}_drop_high_points": interval.high * 100,
            "samples": pairs.samples,
        },
        code=code_of(GATE, f"{kind.name.replace('_', '-')}-drop", status),
    )


# -- slices ---------------------------------------------------------------------------------------

#: Slices are judged of the variant: FP16's own drift says why it moved.
_SLICED = tuple(kind for kind in COMPARISONS if not kind.of_fp16)


def _cut_slices(pairs: Mapping[str, Pairs], *, gate: DriftLimits) -> dict[str, Cut]:
    """Return the slices of each comparison that has a limit on them, by its name."""
    spec = gate.slices
    if spec is None:
        return {}
    limits = {"accepted": ("max_drop", spec.max_drop), "first": ("max_drop", spec.max_drop)}
    if spec.max_drop_since_first is not None:
        limits["first"] = "max_drop_since_first", spec.max_drop_since_first
    return {
        kind.name: Cut(
            parts=pairs[kind.name].slices,
            limit=limits[kind.name][1],
            key=f"slices.{limits[kind.name][0]}",
            where=spec.where.of(limits[kind.name][0]),
            noun="slice",
            plural="slices",
            against=f" {kind.subject}",
        )
        for kind in _SLICED
    }


def judge_slices(
    pairs: Mapping[str, Pairs],
    *,
    slices: Slices,
    stored: StoredPair,
    fp16: Outcomes,
    quantized: Outcomes,
    gate: DriftLimits,
    family: Family,
    update_command: str,
) -> list[Verdict]:
    """Return whether each slice is what the baseline holds of it, as `judge_worst` decides."""
    verdicts = list(slices.problems)
    if gate.slices is None or not slices.judged:
        return verdicts
    cuts = _cut_slices(pairs, gate=gate)
    left_out = name_left_out(slices.left_out, spec=gate.slices)
    is_first = stored.first == stored.accepted
    for kind in _SLICED:
        if is_first and kind.name == "first" and cuts["first"].limit >= cuts["accepted"].limit:
            continue  # that with the variant accepted last says it
        found = judge_worst(cuts[kind.name], gate=gate, family=family)
        cause, next_step = found.cause, found.next_step
        if found.status is Status.FAIL:
            next_step = kind.next_step.format(update=update_command)
            inside = slices.judged[str(found.figures["worst_slice"])]
            cause = _find_slice_cause(inside, stored=stored, fp16=fp16, quantized=quantized)
        verdicts.append(
            replace(
                found,
                evidence=(*found.evidence, *left_out),
                cause=cause,
                next_step=next_step,
                figures={f"{kind.name}_{name}": value for name, value in found.figures.items()},
            )
        )
    return verdicts


def _find_slice_cause(
    inside: Sequence[int], *, stored: StoredPair, fp16: Outcomes, quantized: Outcomes
) -> str:
    """Return whether FP16 moved in a slice as well, whose places in `quantized` are `inside`."""
    names = {quantized.ids[place] for place in inside}
    places = [place for place, name in enumerate(fp16.ids) if name in names]
    ((_, before),) = pair_stored(stored=stored.accepted, now=quantized, slices={"": inside}).slices
    ((_, own),) = pair_stored(stored=stored.fp16, now=fp16, slices={"": places}).slices
    if own.drop > 0 and own.drop >= before.drop / 2:
        return f"FP16 itself moved by {points(own.drop)} in this slice: the baseline moved"
    return "an average over all slices hides it: the variant changed in this one, FP16 did not"
