"""The accuracy gate: what quantization costs on a task, sample by sample, with a confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.outcomes import Outcomes, averages_classes, mean_score
from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.gates import guesses
from pytest_quantgate.gates.calibration import NO_RANGE
from pytest_quantgate.gates.deciding import (
    RELATIONS,
    advise_next,
    confirm,
    decide,
    fail,
    leave_open,
    refuse,
    relation,
)
from pytest_quantgate.gates.drops import (
    allowed_count,
    describe_allowed,
    describe_moves,
    describe_worth,
    drop_flips,
    drop_interval,
    right_share,
    show_interval,
)
from pytest_quantgate.gates.guesses import changed_by_guesses, judge_guesses, loses_in_parts
from pytest_quantgate.gates.looks import (
    confidence_left,
    describe_looks,
    find_looks,
    remember_look,
)
from pytest_quantgate.gates.published import Published, judge_published
from pytest_quantgate.gates.run import GateRun, Judged, measure_task
from pytest_quantgate.gates.samples import FINDINGS, describe_samples, judge_samples
from pytest_quantgate.gates.sections import ALL_LOST, TaskGate
from pytest_quantgate.gates.slice_search import search_worst
from pytest_quantgate.gates.slices import (
    NO_COLUMNS,
    Columns,
    Cut,
    SlicesSpec,
    describe_counts,
    find_slices,
    judge_worst,
    name_left_out,
    read_columns,
    with_classes,
)
from pytest_quantgate.statistics.family import ALONE, SILENT, Alarm, Family
from pytest_quantgate.statistics.intervals import (
    Flips,
    Mean,
    Share,
    chance_above,
    chance_below,
    drop_limits,
    share_limits,
)
from pytest_quantgate.statistics.pairing import Pairs, Unpaired, pair_outcomes
from pytest_quantgate.statistics.sizes import SETTLING_POWER, first_count, samples_to_settle
from pytest_quantgate.suite.gates import GateKind
from pytest_quantgate.suite.keys import (
    BadKey,
    Reach,
    count_key,
    percent_key,
    points_key,
    section_key,
)
from pytest_quantgate.suite.specs import STAGE, Stage
from pytest_quantgate.tasks.contents import CLASS
from pytest_quantgate.text.words import brief_drop, code_of, count, level, percent, points

if TYPE_CHECKING:
    from pytest_quantgate.store.looks import Looks

GATE = "accuracy"
_refuse = partial(refuse, GATE)
_fail = partial(fail, GATE)
_open = partial(leave_open, GATE)

#: Findings that no layer explains: they are about the data, or FP16.
NO_LAYERS = (
    *(*FINDINGS, "fp16-off-published", "slices-unknown-column"),
    *("slices-of-one-value", "slices-too-many", *guesses.FINDINGS),
)


@dataclass(frozen=True, kw_only=True)
class AccuracyGate(TaskGate):
    """Limits on what a task loses against FP16.

    `planned_samples` is how far `samples` may be raised until the limits decide: a look at fewer
    spends little of the error chance. None: what there is is looked at once. `asked` is no key: it
    is the confidence of all looks at the data, where `confidence` is what this one has left.
    """

    kind = GATE

    max_drop: Fraction = field(metadata=points_key(help="loss against FP16"))
    floor: Fraction | None = field(
        default=None,
        metadata=percent_key(
            help="least absolute value", reach=Reach(over="0%", why="no share is less")
        ),
    )
    max_flips: Fraction | None = field(
        default=None,
        metadata=percent_key(
            help="share of answers that differ from FP16's",
            reach=Reach(under="100%", why="no more than all answers can change"),
        ),
    )
    max_class_drop: Fraction | None = field(
        default=None, metadata=points_key(help="loss of the worst class", reach=ALL_LOST)
    )
    published: Fraction | None = field(
        default=None, metadata=percent_key(help="what FP16 is known to score on this task")
    )
    tolerance: Fraction = field(
        default=Fraction(1, 100),
        metadata=points_key(help="how far FP16 may be from `published`; default: 1pp"),
    )
    slices: SlicesSpec | None = field(
        default=None,
        metadata=section_key(SlicesSpec, help="loss of the worst part: a column, a class"),
    )
    stage: Stage = field(default="torch", metadata=STAGE)
    planned_samples: int | None = field(
        default=None,
        metadata=count_key(help="most that samples will be raised to; default: one look"),
    )
    asked: Fraction | None = None

    @property
    def confidence_of_all(self) -> Fraction:
        """The confidence of all looks together, by which limits are named."""
        return self.asked or self.confidence

    @property
    def key(self) -> str:
        """As any task's; `-onnx` or `-engine` follows where that stage is judged, not PyTorch."""
        return super().key if self.stage == "torch" else f"{super().key}-{self.stage}"

    def check(self) -> None:
        super().check()
        if "tolerance" in self.where.keys and self.published is None:
            raise BadKey("tolerance", "is about published: say what FP16 is known to score")
        known, off = self.published, self.tolerance
        if known is not None and known <= off and known + off >= 1:
            raise BadKey(
                "tolerance",
                f"reaches from 0% to 100% around published {percent(known)}: any score "
                f"is in it; set it under {points(max(known, 1 - known))}",
            )
        others = (self.floor, self.max_flips, self.max_class_drop, self.slices)
        if self.max_drop >= 1 and not any(limit is not None for limit in others):
            raise BadKey(
                "max_drop",
                f"100pp decides nothing: {ALL_LOST.why}; set it under 100pp, or floor, "
                f"max_flips, max_class_drop or slices beside it",
            )
        planned, samples = self.planned_samples, self.samples
        if planned is not None and samples is not None and samples > planned:
            raise BadKey("planned_samples", f"is less than samples: {samples}")


def judge_accuracy(
    *,
    fp16: Outcomes,
    quantized: Outcomes,
    gate: AccuracyGate,
    family: Family = ALONE,
    columns: Columns = NO_COLUMNS,
    chance: float = 0.0,
) -> Verdict:
    """Return whether a variant loses no more than its suite allows.

    `max_drop`, `floor` and `max_flips` are decided on one-sided score limits at the gate's
    confidence: PASS where the limit of the interval is within, FAIL where the whole interval is
    beyond, INCONCLUSIVE between, or where the whole is beyond but `family` does not raise the
    alarm. `max_class_drop` is decided so for each class by itself: it passes where every class is
    within, and fails where one is beyond after Bonferroni's correction for looking at all of them.
    So are `slices`, by `columns`: what the data says of each of FP16's outcomes. Without `slices`
    the worst one is searched for, which is no verdict. An improvement never fails. `published` is
    judged of FP16 before anything is compared. A `max_drop` that who guesses keeps, who is right
    on a share of `chance`, decides nothing.
    """
    broken = check_outcomes(fp16, quantized)
    if broken is not None:
        return broken
    slices = find_slices(gate, columns=columns, outcomes=fp16)
    try:
        pairs = pair_outcomes(before=fp16, after=quantized, slices=slices.judged)
    except Unpaired as error:
        return _refuse(
            "unpaired",
            f"{gate.task} {gate.metric} cannot be compared: {error}",
            next_step="evaluate both variants on the same samples",
            cause="the two variants were not evaluated on the same samples in the same order",
        )
    if averages_classes(gate.metric) and not pairs.classes:
        return _fail(
            "no-classes",
            f"{gate.task}: {gate.metric} needs classes, and the samples have "
            f"none ({gate.where.of('metric')})",
            next_step="use metric: acc1, or the recall metrics for retrieval",
            cause="the metric, or max_class_drop, is one of classes, and the task has captions",
        )
    published = _judge_published(fp16, gate=gate, family=family)
    if published is not None and not published.passed:
        return published
    needs_all = averages_classes(gate.metric) or gate.max_class_drop is not None
    parts = [
        *judge_samples(quantized, kind=GATE, gate=gate, needs_all=needs_all),
        _judge_drop(pairs, fp16=fp16, quantized=quantized, gate=gate, family=family),
    ]
    if not _refuses_guesses(pairs, fp16=fp16, gate=gate, chance=chance):
        parts.append(
            judge_guesses(
                fp16.value,
                subject=fp16.variant,
                chance=chance,
                samples=len(fp16.ids),
                key="max_drop",
                gate=gate,
            )
        )
    if gate.floor is not None:
        parts.append(
            _judge_floor(pairs, quantized=quantized, gate=gate, floor=gate.floor, family=family)
        )
    if gate.max_flips is not None:
        parts.append(_judge_flips(pairs, gate=gate, limit=gate.max_flips, family=family))
    if gate.max_class_drop is not None:
        parts.append(_judge_classes(pairs, gate=gate, limit=gate.max_class_drop, family=family))
    parts += slices.problems
    if gate.slices is not None and pairs.slices:
        found = judge_worst(_cut_slices(pairs, spec=gate.slices), gate=gate, family=family)
        left_out = name_left_out(slices.left_out, spec=gate.slices)
        parts.append(replace(found, evidence=(*found.evidence, *left_out)))
    verdict = combine(gate=GATE, parts=tuple(parts))
    if published is not None:  # said whatever leads
        verdict = replace(
            verdict,
            evidence=(*verdict.evidence, published.headline, *published.evidence),
            figures={**verdict.figures, **published.figures},
        )
    if gate.slices is not None:
        return verdict
    return _add_search(verdict, fp16=fp16, quantized=quantized, gate=gate, columns=columns)


def _refuses_guesses(pairs: Pairs, *, fp16: Outcomes, gate: AccuracyGate, chance: float) -> bool:
    """Return whether a limit fails a variant that is right on a share of `chance` and no more.

    `max_drop: 100pp` is how a suite leaves it to the others.
    """
    if fp16.value - chance > float(gate.max_drop) or (
        gate.floor is not None and gate.floor > chance
    ):
        return True
    if gate.max_drop < 1:
        return False
    flips = changed_by_guesses(fp16.value, chance=chance, has_classes=bool(pairs.classes))
    by_slices = gate.slices.max_drop if gate.slices is not None else None
    return (gate.max_flips is not None and gate.max_flips < flips) or any(
        limit is not None and loses_in_parts(parts, limit=limit, chance=chance)
        for parts, limit in ((pairs.classes, gate.max_class_drop), (pairs.slices, by_slices))
    )


def _add_search(
    verdict: Verdict, *, fp16: Outcomes, quantized: Outcomes, gate: AccuracyGate, columns: Columns
) -> Verdict:
    """Return a verdict with what a search for the worst slice found: evidence, and no more.

    Of classes alone only what the other half confirms is worth a line: the worst one is named.
    """
    columns = with_classes(columns, fp16)
    suspect = search_worst(fp16, quantized, columns=columns, limit=gate.max_drop)
    if suspect is None or not (suspect.is_confirmed or columns.keys() - {CLASS}):
        return verdict
    lines = [suspect.describe(gate.max_drop)]
    if suspect.is_confirmed:
        by = suspect.by[0] if len(suspect.by) == 1 else f"[{', '.join(suspect.by)}]"
        lines.append(f"to judge it: slices: {{by: [{by}], max_drop: ...}}")
    return replace(
        verdict,
        evidence=(*verdict.evidence, *lines),
        figures={
            **verdict.figures,
            "searched_slices": suspect.searched,
            "suspect_slice": suspect.name,
            "suspect_drop_points": suspect.again.drop * 100,
            "suspect_chance": suspect.chance,
            "suspect_confirmed": suspect.is_confirmed,
        },
    )


def spend_confidence(gate: AccuracyGate, looks: Looks) -> AccuracyGate:
    """Return the gate at the confidence that a look at its data has left."""
    left = confidence_left(gate.confidence, looks)
    return replace(gate, confidence=left, asked=gate.confidence)


def count_limits(gate: AccuracyGate) -> int:
    """Return how many limits a gate adds to its suite's family."""
    others = (gate.floor, gate.max_flips, gate.max_class_drop, gate.slices, gate.published)
    return 1 + sum(limit is not None for limit in others)


def list_strengths(
    *, fp16: Outcomes, quantized: Outcomes, gate: AccuracyGate, columns: Columns = NO_COLUMNS
) -> tuple[float, ...]:
    """Return the strength of the alarm of every limit of a gate; silent where it cannot judge."""
    try:
        broken = check_outcomes(fp16, quantized)
        slices = find_slices(gate, columns=columns, outcomes=fp16)
        pairs = pair_outcomes(before=fp16, after=quantized, slices=slices.judged)
    except Unpaired:
        return (SILENT,) * count_limits(gate)
    is_mean = averages_classes(gate.metric)
    if broken is not None or (is_mean and not pairs.classes):
        return (SILENT,) * count_limits(gate)
    alarms = [_drop_alarm(pairs, gate=gate, limit=gate.max_drop)]
    if gate.floor is not None:
        alarms.append(_floor_alarm(pairs, gate=gate, floor=gate.floor))
    if gate.max_flips is not None:
        alarms.append(_flips_alarm(pairs, gate=gate, limit=gate.max_flips))
    if gate.max_class_drop is not None:
        classes = _cut_classes(pairs, gate=gate, limit=gate.max_class_drop)
        alarms.append(classes.alarm(gate.confidence))
    if gate.slices is not None:
        alarms.append(_cut_slices(pairs, spec=gate.slices).alarm(gate.confidence))
    if gate.published is not None:
        known = Published(score=gate.published, tolerance=gate.tolerance)
        share = _fp16_share(fp16, gate=gate)
        alarms.append(known.alarm(share, confidence=gate.confidence_of_all))
    return tuple(alarm.strength for alarm in alarms)


def check_outcomes(*both: Outcomes) -> Verdict | None:
    """Return a red verdict for outcomes that are no result: NaN, or a value its counts deny."""
    for outcomes in both:
        task = f"{outcomes.task} {outcomes.metric}"
        if outcomes.nonfinite or not math.isfinite(outcomes.value):
            return _fail(
                "nonfinite",
                f"{task}: {outcomes.variant} gave NaN or Inf on "
                f"{outcomes.nonfinite} of {count(len(outcomes.ids), 'sample')}, its value is "
                f"{percent(outcomes.value)}",
                cause="an overflow in FP16, or a scale that is not finite",
                next_step="look at the calibration gate and the worst layers of the fidelity gate",
            )
        lengths = {
            len(part)
            for part in (
                outcomes.ids,
                outcomes.correct,
                outcomes.answers,
                outcomes.labels,
                outcomes.clusters or outcomes.ids,
            )
        }
        counted = mean_score(outcomes.correct, labels=outcomes.labels, metric=outcomes.metric)
        if len(lengths) > 1 or abs(counted - outcomes.value) > 1e-6:
            return _fail(
                "value-denied",
                f"{task}: the value of {outcomes.variant}, "
                f"{percent(outcomes.value)}, is not what its {len(outcomes.correct)} samples say, "
                f"{percent(counted)}",
                cause="the measurement was changed after it was taken",
                next_step="measure again without the cache: --quantgate-cache=off",
            )
    return None


def _drop_alarm(pairs: Pairs, *, gate: AccuracyGate, limit: Fraction) -> Alarm:
    flips = drop_flips(pairs, metric=gate.metric)
    return Alarm(chance=chance_above(flips, float(limit)), confidence=gate.confidence)


def _judge_drop(
    pairs: Pairs, *, fp16: Outcomes, quantized: Outcomes, gate: AccuracyGate, family: Family
) -> Verdict:
    confidence, limit = float(gate.confidence), float(gate.max_drop)
    drop, interval = drop_interval(pairs, metric=gate.metric, confidence=confidence)
    status, doubts = confirm(
        decide(interval, limit=limit),
        alarm=_drop_alarm(pairs, gate=gate, limit=gate.max_drop),
        family=family,
    )
    source = gate.where.of("max_drop")
    headline = (
        f"accuracy: {gate.task}: {quantized.variant} {gate.metric} {percent(quantized.value)} vs "
        f"{fp16.variant} {percent(fp16.value)} on {describe_samples(quantized)}: drop "
        f"{points(drop)}, {show_interval(interval, confidence=gate.confidence_of_all)}, "
        f"{relation(status, name='max_drop', limit=points(gate.max_drop))} "
        f"= {describe_allowed(gate.max_drop, pairs=pairs)} ({source})"
    )
    evidence = [
        *doubts,
        describe_moves(pairs) + ("" if pairs.graded else f", {pairs.changed} answers changed"),
        *describe_worth(pairs, metric=gate.metric, confidence=gate.confidence),
    ]
    if pairs.classes:
        name, worst = max(pairs.classes, key=lambda item: item[1].drop)
        if worst.drop > 0:
            evidence.append(
                f"worst class {name!r} -{points(worst.drop)} ({describe_counts(worst)})"
            )
    wanted = confidence
    if doubts:  # what is no FAIL in its family needs the confidence of a family
        wanted = 1 - (1 - confidence) / family.size
    elif status is Status.INCONCLUSIVE:  # fresh samples are a first look
        wanted = float(gate.confidence_of_all)
    evidence += _advise(pairs, status=status, gate=gate, confidence=wanted)
    return Verdict(
        gate=GATE,
        status=status,
        headline=headline,
        brief=brief_drop(
            fp16.value,
            quantized.value,
            drop=drop,
            low=interval.low,
            high=interval.high,
            word=RELATIONS.get(status, "around"),
            limit=limit,
        ),
        evidence=tuple(evidence),
        cause=(
            "too few samples for this limit and this rate of flips"
            if status is Status.INCONCLUSIVE
            else "quantization noise where the model is sensitive"
            if status is Status.FAIL
            else ""
        ),
        next_step=advise_next(status),
        figures={
            "samples": pairs.samples,
            "copies": quantized.copies,
            "classes_seen": len(pairs.classes),
            "fp16_value": fp16.value,
            "quantized_value": quantized.value,
            "drop_points": drop * 100,
            "drop_low_points": interval.low * 100,
            "drop_high_points": interval.high * 100,
            "max_drop_points": limit * 100,
            "right_to_wrong": pairs.right_to_wrong,
            "wrong_to_right": pairs.wrong_to_right,
            "answers_changed": pairs.changed,
        },
        code=code_of(GATE, "drop", status),
    )


def _advise(pairs: Pairs, *, status: Status, gate: AccuracyGate, confidence: float) -> list[str]:
    """Return how far the verdict is from another one, in flips or samples."""
    limit = float(gate.max_drop)
    if status is Status.INCONCLUSIVE:
        flips = drop_flips(pairs, metric=gate.metric)
        needed = samples_to_settle(flips, confidence=confidence, limit=limit)
        if needed is None:
            return ["the drop is the limit: no number of samples would settle it"]
        # Samples of the same kind: as many to one independent one as here.
        needed = math.ceil(needed * pairs.samples / flips.samples)
        return [
            f"about {needed} fresh samples at these rates would settle it "
            f"{SETTLING_POWER * 10:.0f} times in 10, {pairs.samples} were measured"
        ]
    if averages_classes(gate.metric) or pairs.worth is not None:
        return []

    def status_with(lost: int) -> Status:
        flips = Flips(
            right_to_wrong=lost, wrong_to_right=pairs.wrong_to_right, samples=pairs.samples
        )
        return decide(drop_limits(flips, confidence=confidence), limit=limit)

    lost, passed = pairs.right_to_wrong, status is Status.PASS
    step = 1 if passed else -1
    room = pairs.samples - pairs.wrong_to_right - lost if passed else lost
    number = first_count(
        lambda number: status_with(lost + step * number) is not status, low=1, high=room
    )
    if number is None:
        return []
    if passed:
        return [f"{count(number, 'more flip')} to wrong would end this PASS"]
    return [f"{count(number, 'flip')} fewer would end this FAIL"]


def _fp16_share(fp16: Outcomes, *, gate: AccuracyGate) -> Share | Mean[Share]:
    return right_share(pair_outcomes(before=fp16, after=fp16), metric=gate.metric)


def _judge_published(fp16: Outcomes, *, gate: AccuracyGate, family: Family) -> Verdict | None:
    if gate.published is None:
        return None
    return judge_published(
        _fp16_share(fp16, gate=gate),
        published=Published(score=gate.published, tolerance=gate.tolerance),
        samples=len(fp16.ids),
        # FP16 is no variant that somebody looks at until it passes.
        gate=replace(gate, confidence=gate.confidence_of_all),
        family=family,
    )


def _floor_alarm(pairs: Pairs, *, gate: AccuracyGate, floor: Fraction) -> Alarm:
    share = right_share(pairs, metric=gate.metric)
    return Alarm(chance=chance_below(share, float(floor)), confidence=gate.confidence)


def _judge_floor(
    pairs: Pairs, *, quantized: Outcomes, gate: AccuracyGate, floor: Fraction, family: Family
) -> Verdict:
    interval = share_limits(
        right_share(pairs, metric=gate.metric), confidence=float(gate.confidence)
    )
    status, word = Status.INCONCLUSIVE, "not decided against"
    if interval.low >= floor:
        status, word = Status.PASS, "over"
    elif interval.high < floor:
        status, word = Status.FAIL, "under"
    status, doubts = confirm(
        status, alarm=_floor_alarm(pairs, gate=gate, floor=floor), family=family
    )
    if doubts:
        word = "not decided against"
    return Verdict(
        gate=GATE,
        status=status,
        headline=f"accuracy: {gate.task}: {quantized.variant} {gate.metric} "
        f"{percent(quantized.value)}, one-sided {level(gate.confidence_of_all)} limits "
        f"[{interval.low * 100:.2f}, {interval.high * 100:.2f}] %, {word} floor "
        f"{percent(floor)} ({gate.where.of('floor')})",
        brief=f"{percent(quantized.value)} [{interval.low * 100:.2f}, {interval.high * 100:.2f}] "
        f"{'around' if status is Status.INCONCLUSIVE else word} floor {percent(floor)}",
        cause=(
            "the model, its tokenizer, preprocessing or templates are not what they should be: "
            "a loss of nothing from nothing is no pass"
            if status is Status.FAIL
            else ""
        ),
        next_step="check the FP16 value first" if status is Status.FAIL else "",
        evidence=doubts,
        figures={"floor": float(floor), "floor_status": status.value},
        code=code_of(GATE, "floor", status),
    )


def _flips_alarm(pairs: Pairs, *, gate: AccuracyGate, limit: Fraction) -> Alarm:
    return Alarm(chance=chance_above(pairs.changed_share, float(limit)), confidence=gate.confidence)


def _judge_flips(pairs: Pairs, *, gate: AccuracyGate, limit: Fraction, family: Family) -> Verdict:
    interval = share_limits(pairs.changed_share, confidence=float(gate.confidence))
    status, doubts = confirm(
        decide(interval, limit=float(limit)),
        alarm=_flips_alarm(pairs, gate=gate, limit=limit),
        family=family,
    )
    allowed = allowed_count(limit, samples=pairs.samples)
    what = "scores" if pairs.graded else "answers" if pairs.classes else "hits and misses"
    return Verdict(
        gate=GATE,
        status=status,
        headline=f"accuracy: {gate.task}: {pairs.changed} of {pairs.samples} {what} changed, "
        f"{percent(pairs.changed / pairs.samples)}, one-sided {level(gate.confidence_of_all)} "
        f"limits [{interval.low * 100:.2f}, {interval.high * 100:.2f}] %, "
        f"{relation(status, name='max_flips', limit=percent(limit))} = {allowed} "
        f"({gate.where.of('max_flips')})",
        brief=f"{percent(pairs.changed / pairs.samples)} of {what} changed "
        f"[{interval.low * 100:.2f}, {interval.high * 100:.2f}] "
        f"{RELATIONS.get(status, 'around')} max_flips {percent(limit)}",
        evidence=doubts,
        cause=(
            "the average hides it: losses and gains cancel out, but single answers are not FP16's"
            if status is Status.FAIL
            else ""
        ),
        next_step=advise_next(status, limit="max_flips"),
        figures={"flips_share": pairs.changed / pairs.samples, "max_flips": float(limit)},
        code=code_of(GATE, "flips", status),
    )


def _cut_classes(pairs: Pairs, *, gate: AccuracyGate, limit: Fraction) -> Cut:
    return Cut(
        parts=pairs.classes,
        limit=limit,
        key="max_class_drop",
        where=gate.where.of("max_class_drop"),
        noun="class",
        plural="classes",
    )


def _judge_classes(pairs: Pairs, *, gate: AccuracyGate, limit: Fraction, family: Family) -> Verdict:
    if not pairs.classes:
        return _fail(
            "no-classes",
            f"{gate.task}: max_class_drop is set, but the samples have no "
            f"classes ({gate.where.of('max_class_drop')})",
            next_step="leave max_class_drop out, or judge a task that has classes",
            cause="the metric, or max_class_drop, is one of classes, and the task has captions",
        )
    return judge_worst(_cut_classes(pairs, gate=gate, limit=limit), gate=gate, family=family)


def _cut_slices(pairs: Pairs, *, spec: SlicesSpec) -> Cut:
    return Cut(
        parts=pairs.slices,
        limit=spec.max_drop,
        key="slices.max_drop",
        where=spec.where.of("max_drop"),
        noun="slice",
        plural="slices",
    )


def judge(run: GateRun, gate: AccuracyGate) -> Judged:
    """Return whether a task loses no more against FP16 than its limits allow."""
    from pytest_quantgate.gates.chance import describe_chance, judge_answers

    fp16, quantized = measure_task(run, gate)
    senseless = judge_answers(run, gate, fp16=fp16)
    if senseless is not None:
        return Judged(verdict=senseless)
    looks, notes = remember_look(run, gate, quantized, planned=gate.planned_samples)
    above, figures = describe_chance(gate, fp16=fp16)
    verdict = judge_accuracy(
        fp16=fp16,
        quantized=quantized,
        gate=spend_confidence(gate, looks),
        family=run.judging.family,
        columns=read_columns(run, gate, fp16),
        chance=figures.get("fp16_chance_share", 0.0),
    )
    verdict = describe_looks(
        verdict, confidence=gate.confidence, planned=gate.planned_samples, looks=looks
    )
    verdict = replace(
        verdict,
        evidence=(*verdict.evidence, above),
        figures={**verdict.figures, **figures},
    )
    about_data = verdict.code.rpartition(".")[2] in NO_LAYERS
    if verdict.status in (Status.FAIL, Status.INCONCLUSIVE) and not about_data:
        verdict = run.judging.name_suspects(verdict, gate)
    return Judged(verdict=verdict, notes=notes)


def measure_strengths(run: GateRun, gate: AccuracyGate) -> tuple[float, ...]:
    """Return the strength of each alarm of a gate, see `Family`."""
    fp16, quantized = measure_task(run, gate)
    looks = find_looks(run, gate, quantized, planned=gate.planned_samples)
    return list_strengths(
        fp16=fp16,
        quantized=quantized,
        gate=spend_confidence(gate, looks),
        columns=read_columns(run, gate, fp16),
    )


KIND = GateKind(
    section=AccuracyGate,
    help="loss on tasks, paired with FP16",
    judge=judge,
    needs_torch=lambda gate: gate.stage == "torch",
    several=True,
    count_limits=count_limits,
    strengths=measure_strengths,
    follows={
        f"{GATE}.{finding}*": NO_RANGE
        for finding in ("class-drop", "drop", "flips", "floor", "nonfinite", "slice-drop")
    },
)
