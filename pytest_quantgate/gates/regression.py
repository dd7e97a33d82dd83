"""The regression gate: today's results against those that were accepted, sample by sample."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.outcomes import (
    Outcomes,
    StoredOutcomes,
    StoredPair,
    averages_classes,
)
from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.gates.accuracy import AccuracyGate, check_outcomes
from pytest_quantgate.gates.deciding import fail, refuse
from pytest_quantgate.gates.drift import (
    COMPARISONS,
    DriftLimits,
    compare,
    count_limits,
    judge_slices,
    list_alarms,
    pair_all,
)
from pytest_quantgate.gates.guesses import judge_guesses, loses_in_parts
from pytest_quantgate.gates.proposals import judge_others, note_old_place, propose
from pytest_quantgate.gates.run import GateRun, Judged, measure_task
from pytest_quantgate.gates.samples import judge_samples
from pytest_quantgate.gates.slices import NO_COLUMNS, Columns, find_slices, read_columns
from pytest_quantgate.statistics.family import ALONE, SILENT, Family
from pytest_quantgate.statistics.pairing import Pairs, Unpaired, pair_outcomes, pair_stored
from pytest_quantgate.store.baseline_mode import BaselineMode
from pytest_quantgate.suite.gates import GateKind
from pytest_quantgate.text.words import count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_quantgate.store.records import Look, Record

GATE = "regression"
_fail = partial(fail, GATE)
_refuse = partial(refuse, GATE)


#: As much as a table shows of one gate.
BRIEF_LENGTH = 70


@dataclass(frozen=True, kw_only=True)
class RegressionGate(DriftLimits):
    """The gate that holds a suite's limits on drift against its baseline."""

    kind = GATE


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
    columns: Columns = NO_COLUMNS,
    chance: float = 0.0,
) -> Verdict:
    """Return whether FP16 and the quantized variant are still what was accepted.

    Four comparisons: FP16 with the stored FP16 (libraries drift: then the baseline moved, not the
    quantization), the variant with the one accepted last, and both with what they were when the
    first variant was accepted, so that small accepted drops do not add up unseen. `differences`
    say what else is different from what the baseline was made of; then nothing is compared.
    `slices` of the variant, by `columns` of its outcomes, are compared with both it was. Limits
    that a variant keeps that guesses, and is right on a share of `chance`, decide nothing.
    """
    if stored is None:
        return _fail(
            "no-baseline",
            f"no baseline of {gate.task} {gate.metric} ({gate.where})",
            next_step=f"look at the accuracy gate, then: {create_command}",
            cause="this gate is new, or its baseline was never created and committed",
        )
    if differences:
        return _refuse(
            "baseline-of-other-things",
            f"the baseline of {gate.task} {gate.metric} was made of something else ({gate.where})",
            brief=textwrap.shorten(", ".join(differences), BRIEF_LENGTH, placeholder=" ..."),
            evidence=differences,
            next_step=f"if that is meant: {update_command}",
            cause="the model, the recipe or the data changed since the baseline was accepted",
        )
    broken = check_outcomes(fp16, quantized)
    if broken is not None:
        return replace(
            broken,
            gate=GATE,
            headline=broken.headline.replace(broken.gate, GATE, 1),
            code=broken.code.replace(broken.gate, GATE, 1),
        )
    if averages_classes(gate.metric) and not quantized.class_names:
        return _fail(
            "no-classes",
            f"{gate.task}: {gate.metric} needs classes, and the samples have "
            f"none ({gate.where.of('metric')})",
            next_step="use metric: acc1, or the recall metrics for retrieval",
            cause="the metric is one of classes, and the task has captions",
        )
    slices = find_slices(gate, columns=columns, outcomes=quantized)
    try:
        pairs = pair_all(stored, fp16=fp16, quantized=quantized, slices=slices.judged)
    except Unpaired as error:
        return _refuse(
            "unpaired",
            f"{gate.task} {gate.metric} cannot be compared: {error} ({gate.where})",
            next_step=f"if that is meant: {update_command}",
            cause="the evaluation data is not that of the baseline",
        )
    exchanged = _judge_slot(
        stored.fp16, own=fp16, other=quantized, gate=gate, update_command=update_command
    )
    if exchanged is not None:
        return exchanged
    parts = judge_samples(quantized, kind=GATE, gate=gate, needs_all=averages_classes(gate.metric))
    parts += _judge_limits(stored, pairs=pairs, gate=gate, chance=chance)
    for kind in COMPARISONS:
        if kind.name == "first_fp16" and stored.first_fp16 == stored.fp16:
            continue  # that of FP16 says it
        parts.append(
            compare(
                pairs[kind.name],
                kind=kind,
                stored=getattr(stored, kind.name),
                now=fp16 if kind.of_fp16 else quantized,
                gate=gate,
                family=family,
                fp16_drop=0.0 if kind.of_fp16 else pairs["fp16"].drop,
                update_command=update_command,
            )
        )
    parts += judge_slices(
        pairs,
        slices=slices,
        stored=stored,
        fp16=fp16,
        quantized=quantized,
        gate=gate,
        family=family,
        update_command=update_command,
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


def _judge_limits(
    stored: StoredPair, *, pairs: Mapping[str, Pairs], gate: RegressionGate, chance: float
) -> list[Verdict]:
    """Return INCONCLUSIVE where no limit fails a variant that guesses.

    FP16 that guesses is found by sanity, whatever `max_fp16_drop` is.
    """
    slots = {kind.key: getattr(stored, kind.name) for kind in COMPARISONS if not kind.of_fp16}
    if any(slot.value - chance > float(getattr(gate, key)) for key, slot in slots.items()):
        return []
    if gate.slices is not None and loses_in_parts(
        pairs["accepted"].slices, limit=gate.slices.max_drop, chance=chance
    ):
        return []
    found = judge_guesses(
        stored.accepted.value,
        subject="the variant accepted last",
        chance=chance,
        samples=pairs["accepted"].samples,
        key="max_drop",
        gate=gate,
    )
    return [found]


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
    return _refuse(
        "slot-of-other-model",
        f"{gate.task}: the baseline's slot of {own.variant} holds the "
        f"outcomes of {other.variant}: {to_other.changed} of {count(len(own.ids), 'sample')} "
        f"differ from {other.variant} now, {to_own.changed} from {own.variant} ({gate.where})",
        cause="the baseline was made with one model in the place of the other",
        next_step=f"look at how it was made, then: {update_command}",
    )


def list_strengths(
    *,
    fp16: Outcomes,
    quantized: Outcomes,
    stored: StoredPair | None,
    gate: RegressionGate,
    columns: Columns = NO_COLUMNS,
) -> tuple[float, ...]:
    """Return the strength of the alarm of each comparison; silent without a baseline."""
    silent = (SILENT,) * count_limits(gate)
    needs_classes = averages_classes(gate.metric) and not quantized.class_names
    if stored is None or needs_classes or check_outcomes(fp16, quantized) is not None:
        return silent
    slices = find_slices(gate, columns=columns, outcomes=quantized)
    try:
        pairs = pair_all(stored, fp16=fp16, quantized=quantized, slices=slices.judged)
    except Unpaired:
        return silent
    return tuple(alarm.strength for alarm in list_alarms(pairs, gate=gate))


def judge(run: GateRun, gate: RegressionGate) -> Judged:
    """Return whether a task has not drifted from its baseline; propose or keep one."""
    return judge_run(run, gate)


def judge_run(
    run: GateRun,
    gate: RegressionGate,
    *,
    fp16: Outcomes | None = None,
    quantized: Outcomes | None = None,
) -> Judged:
    """Return the verdict of `judge`, on outcomes that a caller measured where they are given."""
    from pytest_quantgate.evidence.fingerprint import differences, list_unknown
    from pytest_quantgate.gates.chance import describe_chance, judge_answers
    from pytest_quantgate.store.acceptance import refuse_red
    from pytest_quantgate.store.baselines import is_of_other_data, next_record

    if fp16 is None or quantized is None:
        measured = measure_task(run, gate)
        senseless = judge_answers(run, gate, fp16=measured[0])
        if senseless is not None:
            return Judged(verdict=senseless)
        fp16, quantized = fp16 or measured[0], quantized or measured[1]
    record = run.store.read(run.suite.name, gate.key)
    proposed = next_record(
        record,
        suite=run.suite.name,
        key=gate.key,
        task=gate.task,
        metric=gate.metric,
        fp16=fp16,
        quantized=quantized,
        fingerprint=run.fingerprint(data=fp16.data_digest, data_parts=fp16.data_parts),
        versions=run.versions,
        today=run.today,
        reason=run.settings.reason or "first baseline",
        pairs=_pair(fp16, quantized),
    )
    proposed = replace(proposed, looks=_list_looks(run, gate, quantized) or proposed.looks)
    mode = run.settings.baselines
    command = f"pytest {gate.where.file} --quantgate-baselines="
    update = f"{command}update --quantgate-reason='why'"
    has_new_data = record is not None and is_of_other_data(record, proposed)
    if has_new_data:
        update += " --quantgate-new-data"
    if mode is BaselineMode.UPDATE or (mode is BaselineMode.CREATE and record is None):
        if record is not None and has_new_data and not run.settings.new_data:
            refused = _refuse_new_data(record, gate=gate, command=update)
            draws = _list_draws(run, gate, before=record, now=proposed)
            return Judged(verdict=replace(refused, evidence=(*refused.evidence, *draws)))
        return _accept(run, gate, record=record, proposed=proposed)
    if record is not None:
        refuse_red(record, command=update)
    verdict = judge_regression(
        fp16=fp16,
        quantized=quantized,
        stored=_stored_pair(record),
        differences=(differences(record.fingerprint, proposed.fingerprint) if record else ()),
        create_command=f"{command}create",
        update_command=update,
        gate=gate,
        family=run.judging.family,
        columns=read_columns(run, gate, quantized) if gate.slices is not None else NO_COLUMNS,
        chance=describe_chance(gate, fp16=fp16)[1].get("fp16_chance_share", 0.0),
    )
    notes: tuple[str, ...] = ()
    if record is not None:
        notes = note_old_place(run, gate, kind="regression")
        chains = tuple(f"accepted before: {chain.describe()}" for chain in record.chains)
        draws = _list_draws(run, gate, before=record, now=proposed)
        verdict = replace(verdict, evidence=(*verdict.evidence, *draws, *chains))
        unknown = list_unknown(record.fingerprint, proposed.fingerprint)
        if unknown:
            notes = (
                *notes,
                f"the baseline of {gate.key} does not say: {', '.join(unknown)}; they were "
                f"not compared. To record them: {update}",
            )
    if verdict.passed:
        return Judged(verdict=verdict, notes=notes)
    return propose(run, proposed, verdict=verdict, notes=notes)


def measure_strengths(run: GateRun, gate: RegressionGate) -> tuple[float, ...]:
    """Return the strength of each alarm of a gate, see `Family`."""
    from pytest_quantgate.evidence.fingerprint import differences

    fp16, quantized = measure_task(run, gate)
    record = run.store.read(run.suite.name, gate.key)
    comparable = record is not None and not differences(
        record.fingerprint,
        run.fingerprint(data=fp16.data_digest, data_parts=fp16.data_parts),
    )
    return list_strengths(
        fp16=fp16,
        quantized=quantized,
        stored=_stored_pair(record) if comparable else None,
        gate=gate,
        columns=read_columns(run, gate, quantized) if gate.slices is not None else NO_COLUMNS,
    )


def _list_draws(
    run: GateRun, gate: RegressionGate, *, before: Record, now: Record
) -> tuple[str, ...]:
    """Say where version 0.1 took other samples of the same data: nothing accepted is lost."""
    if before.fingerprint.settings:
        return ()
    calibration, places = run.suite.calibration, []
    if before.fingerprint.calibration != now.fingerprint.calibration and not calibration.first:
        places.append(str(calibration.where))
    is_drawn = gate.samples is not None and not gate.first
    if before.fingerprint.data != now.fingerprint.data and is_drawn:
        places.append(str(gate.where))
    return tuple(
        f"version 0.1 took the first samples, this one draws them: first: true in {place} "
        f"compares with what was accepted"
        for place in places
    )


def _list_looks(run: GateRun, gate: RegressionGate, quantized: Outcomes) -> tuple[Look, ...]:
    """Return the looks at the data of a baseline that this machine and the baseline know of."""
    from pytest_quantgate.gates.looks import remember_look

    for other in run.suite.gates.all(AccuracyGate):
        if other.key == gate.key and run.ledger is not None:
            looks, _ = remember_look(run, other, quantized, planned=other.planned_samples)
            return (*looks.earlier, looks.now)
    return ()


def _accept(
    run: GateRun, gate: RegressionGate, *, record: Record | None, proposed: Record
) -> Judged:
    """Return the verdict of a writing mode: the new record, or why it may not be kept."""
    proposed = judge_others(run, proposed)
    if record is not None and record.same_result(proposed):
        headline = f"regression: baseline of {gate.key} is up to date, nothing to write"
        return Judged(verdict=Verdict(gate=GATE, status=Status.PASS, headline=headline))
    word = "updated" if record else "created"
    headline = f"regression: baseline of {gate.key} {word}: {proposed.describe()}"
    brief = f"{word}: {proposed.describe()}"
    return Judged(
        verdict=Verdict(gate=GATE, status=Status.PASS, headline=headline, brief=brief),
        proposal="baseline",
        record=proposed,
    )


def _refuse_new_data(record: Record, *, gate: RegressionGate, command: str) -> Verdict:
    from pytest_quantgate.store.baselines import end_chain

    return _fail(
        "new-data",
        f"baseline of {gate.key} is not updated: the evaluation data is not "
        f"that on which the first variant was accepted ({gate.where})",
        evidence=(f"accepted so far: {end_chain(record, record).describe()}",),
        cause="on other data nobody sees what the variant has lost since the first one",
        next_step=f"if the data is meant to change: {command}",
    )


def _pair(fp16: Outcomes, quantized: Outcomes) -> Pairs | None:
    """Return both variants paired; None where they cannot be, which their own gate says."""
    try:
        return pair_outcomes(before=fp16, after=quantized)
    except Unpaired:
        return None


def _stored_pair(record: Record | None) -> StoredPair | None:
    if record is None:
        return None
    return StoredPair(
        fp16=record.fp16,
        accepted=record.accepted,
        first=record.first,
        first_fp16=record.first_fp16,
    )


KIND = GateKind(
    section=RegressionGate,
    help="drift against the stored baseline",
    judge=judge,
    needs_torch=lambda _: True,
    several=True,
    count_limits=count_limits,
    strengths=measure_strengths,
    keeps_baseline=lambda _: True,
)
