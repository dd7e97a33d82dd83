"""The accuracy gate: what quantization costs on a task, sample by sample, with a confidence."""

from __future__ import annotations

import math
from fractions import Fraction

from pytest_quantgate.gates.pairing import Pairs, Unpaired, pair_outcomes
from pytest_quantgate.gates.statistics import (
    Interval,
    first_count,
    mean_class_drop_limits,
    paired_drop_limits,
    samples_to_settle,
    share_limits,
)
from pytest_quantgate.gates.words import brief_drop, count, level, percent, points, signed
from pytest_quantgate.measurement import Outcomes
from pytest_quantgate.suite import AccuracyGate
from pytest_quantgate.verdict import Status, Verdict, combine

GATE = "accuracy"
MEAN_OVER_CLASSES = "mean_per_class_recall"

#: How a result stands to a limit that it must not exceed.
RELATIONS = {Status.PASS: "within", Status.FAIL: "over"}


def judge_accuracy(*, fp16: Outcomes, quantized: Outcomes, gate: AccuracyGate) -> Verdict:
    """Return whether a variant loses no more than its suite allows.

    `max_drop`, `floor` and `max_flips` are decided on one-sided score limits at the gate's
    confidence: PASS where the limit of the interval is within, FAIL where the whole interval is
    beyond, INCONCLUSIVE between. `max_class_drop` is a screen: it passes on the counts as they
    are, and fails where one class is beyond with that confidence after Bonferroni's correction
    for looking at all of them. An improvement never fails.
    """
    broken = check_outcomes(fp16, quantized)
    if broken is not None:
        return broken
    try:
        pairs = pair_outcomes(before=fp16, after=quantized)
    except Unpaired as error:
        return Verdict(
            gate=GATE,
            status=Status.INCOMPARABLE,
            headline=f"accuracy: {gate.task} {gate.metric} cannot be compared: {error}",
            next_step="evaluate both variants on the same samples",
        )
    if gate.metric == MEAN_OVER_CLASSES and not pairs.classes:
        return Verdict(
            gate=GATE,
            status=Status.FAIL,
            headline=f"accuracy: {gate.task}: {gate.metric} needs classes, and the samples have "
            f"none ({gate.where.of('metric')})",
            next_step="use metric: acc1, or the recall metrics for retrieval",
        )
    parts = [_judge_drop(pairs, fp16=fp16, quantized=quantized, gate=gate)]
    if gate.floor is not None:
        parts.append(_judge_floor(pairs, quantized=quantized, gate=gate, floor=gate.floor))
    if gate.max_flips is not None:
        parts.append(_judge_flips(pairs, gate=gate, limit=gate.max_flips))
    if gate.max_class_drop is not None:
        parts.append(_judge_classes(pairs, gate=gate, limit=gate.max_class_drop))
    return combine(gate=GATE, parts=tuple(parts))


def check_outcomes(*both: Outcomes) -> Verdict | None:
    """Return a red verdict for outcomes that are no result: NaN, or a value its counts deny."""
    for outcomes in both:
        task = f"{outcomes.task} {outcomes.metric}"
        if outcomes.nonfinite or not math.isfinite(outcomes.value):
            return Verdict(
                gate=GATE,
                status=Status.FAIL,
                headline=f"accuracy: {task}: {outcomes.variant} gave NaN or Inf on "
                f"{outcomes.nonfinite} of {count(len(outcomes.ids), 'sample')}, its value is "
                f"{percent(outcomes.value)}",
                cause="an overflow in FP16, or a scale that is not finite",
                next_step="look at the calibration gate and the worst layers of the fidelity gate",
            )
        lengths = {
            len(part)
            for part in (outcomes.ids, outcomes.correct, outcomes.answers, outcomes.labels)
        }
        counted = _counted_value(outcomes)
        if len(lengths) > 1 or abs(counted - outcomes.value) > 1e-6:
            return Verdict(
                gate=GATE,
                status=Status.FAIL,
                headline=f"accuracy: {task}: the value of {outcomes.variant}, "
                f"{percent(outcomes.value)}, is not what its {len(outcomes.correct)} samples say, "
                f"{percent(counted)}",
                cause="the measurement was changed after it was taken",
                next_step="measure again with an empty cache (--quantgate-cache-dir)",
            )
    return None


def _counted_value(outcomes: Outcomes) -> float:
    """Return the value that the samples give: the share that is right, or its mean over classes."""
    if not outcomes.correct:
        return 0.0
    if outcomes.metric != MEAN_OVER_CLASSES:
        return sum(outcomes.correct) / len(outcomes.correct)
    by_class: dict[int, list[bool]] = {}
    for label, right in zip(outcomes.labels, outcomes.correct, strict=False):
        by_class.setdefault(label, []).append(right)
    return sum(sum(found) / len(found) for found in by_class.values()) / max(1, len(by_class))


def decide(interval: Interval, *, limit: float) -> Status:
    """Return PASS below the limit, FAIL above it, INCONCLUSIVE where the interval straddles it."""
    if interval.high <= limit:
        return Status.PASS
    return Status.FAIL if interval.low > limit else Status.INCONCLUSIVE


def relation(status: Status, *, name: str, limit: str) -> str:
    """Return how a result stands to its limit: `over max_drop 0.50 pp`."""
    return f"{RELATIONS.get(status, 'not decided against')} {name} {limit}"


def drop_interval(pairs: Pairs, *, metric: str, confidence: float) -> tuple[float, Interval]:
    """Return the drop of a metric and its limits."""
    if metric == MEAN_OVER_CLASSES:
        classes = [counts for _, counts in pairs.classes]
        drop = sum(counts.drop for counts in classes) / len(classes)
        found = mean_class_drop_limits(classes, confidence=confidence)
        # The prior of the bootstrap pulls towards nothing; the limits still hold the result.
        return drop, Interval(low=min(found.low, drop), high=max(found.high, drop))
    interval = paired_drop_limits(
        right_to_wrong=pairs.right_to_wrong,
        wrong_to_right=pairs.wrong_to_right,
        samples=pairs.samples,
        confidence=confidence,
    )
    return pairs.drop, interval


def show_interval(interval: Interval, *, confidence: Fraction) -> str:
    low, high = signed(interval.low * 100), signed(interval.high * 100)
    return f"one-sided {level(confidence)} limits [{low}, {high}] pp"


def allowed_count(limit: Fraction, *, samples: int) -> int:
    """Return a limit as a count of samples, rounded down exactly."""
    return (limit * samples).__floor__()


def _judge_drop(
    pairs: Pairs, *, fp16: Outcomes, quantized: Outcomes, gate: AccuracyGate
) -> Verdict:
    confidence, limit = float(gate.confidence), float(gate.max_drop)
    drop, interval = drop_interval(pairs, metric=gate.metric, confidence=confidence)
    status = decide(interval, limit=limit)
    allowed = allowed_count(gate.max_drop, samples=pairs.samples)
    source = gate.where.of("max_drop")
    headline = (
        f"accuracy: {gate.task}: {quantized.variant} {gate.metric} {percent(quantized.value)} vs "
        f"{fp16.variant} {percent(fp16.value)} on {count(pairs.samples, 'sample')}: drop "
        f"{points(drop)}, {show_interval(interval, confidence=gate.confidence)}, "
        f"{relation(status, name='max_drop', limit=points(gate.max_drop))} "
        f"= {count(allowed, 'sample')} ({source})"
    )
    evidence = [
        f"{pairs.right_to_wrong} right to wrong, {pairs.wrong_to_right} wrong to right, "
        f"{pairs.changed} answers changed"
    ]
    if pairs.classes:
        name, worst = max(pairs.classes, key=lambda item: item[1].drop)
        if worst.drop > 0:
            evidence.append(
                f"worst class {name!r} -{points(worst.drop)} "
                f"({worst.right_to_wrong} lost, {worst.wrong_to_right} won of {worst.samples})"
            )
    evidence += _advise(pairs, status=status, gate=gate)
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
        next_step=_next_step(status),
        figures={
            "samples": pairs.samples,
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
    )


def _next_step(status: Status) -> str:
    if status is Status.FAIL:
        return "exclude the worst layers of the fidelity gate, or choose a gentler recipe"
    if status is Status.INCONCLUSIVE:
        return "evaluate on more samples, or accept a larger max_drop on purpose"
    return ""


def _advise(pairs: Pairs, *, status: Status, gate: AccuracyGate) -> list[str]:
    """Return how far the verdict is from another one, in flips or samples."""
    if gate.metric == MEAN_OVER_CLASSES:
        return []
    confidence, limit = float(gate.confidence), float(gate.max_drop)

    def status_with(lost: int) -> Status:
        interval = paired_drop_limits(
            right_to_wrong=lost,
            wrong_to_right=pairs.wrong_to_right,
            samples=pairs.samples,
            confidence=confidence,
        )
        return decide(interval, limit=limit)

    lost = pairs.right_to_wrong
    if status is not Status.INCONCLUSIVE:
        step = 1 if status is Status.PASS else -1
        room = pairs.samples - pairs.wrong_to_right - lost if step > 0 else lost
        flips = first_count(
            lambda number: status_with(lost + step * number) is not status, low=1, high=room
        )
        if flips is None:
            return []
        if step > 0:
            return [f"{count(flips, 'more flip')} to wrong would end this PASS"]
        return [f"{count(flips, 'flip')} fewer would end this FAIL"]
    needed = samples_to_settle(
        right_to_wrong=lost,
        wrong_to_right=pairs.wrong_to_right,
        samples=pairs.samples,
        confidence=confidence,
        limit=limit,
    )
    if needed is None:
        return ["the drop is the limit: no number of samples would settle it"]
    return [f"about {needed} samples at these rates would settle it, {pairs.samples} were measured"]


def _judge_floor(
    pairs: Pairs, *, quantized: Outcomes, gate: AccuracyGate, floor: Fraction
) -> Verdict:
    if gate.metric == MEAN_OVER_CLASSES:
        # A mean over classes is no share of samples; its count is the nearest one.
        right = quantized.value * pairs.samples
    else:
        right = pairs.after_right
    interval = share_limits(
        count=min(right, pairs.samples), samples=pairs.samples, confidence=float(gate.confidence)
    )
    if interval.low >= floor:
        status, word = Status.PASS, "over"
    elif interval.high < floor:
        status, word = Status.FAIL, "under"
    else:
        status, word = Status.INCONCLUSIVE, "not decided against"
    return Verdict(
        gate=GATE,
        status=status,
        headline=f"accuracy: {gate.task}: {quantized.variant} {gate.metric} "
        f"{percent(quantized.value)}, one-sided {level(gate.confidence)} limits "
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
        figures={"floor": float(floor), "floor_status": status.value},
    )


def _judge_flips(pairs: Pairs, *, gate: AccuracyGate, limit: Fraction) -> Verdict:
    interval = share_limits(
        count=pairs.changed, samples=pairs.samples, confidence=float(gate.confidence)
    )
    status = decide(interval, limit=float(limit))
    allowed = allowed_count(limit, samples=pairs.samples)
    what = "answers" if pairs.classes else "hits and misses"
    return Verdict(
        gate=GATE,
        status=status,
        headline=f"accuracy: {gate.task}: {pairs.changed} of {pairs.samples} {what} changed, "
        f"{percent(pairs.changed / pairs.samples)}, one-sided {level(gate.confidence)} limits "
        f"[{interval.low * 100:.2f}, {interval.high * 100:.2f}] %, "
        f"{relation(status, name='max_flips', limit=percent(limit))} = {allowed} "
        f"({gate.where.of('max_flips')})",
        brief=f"{percent(pairs.changed / pairs.samples)} of {what} changed "
        f"[{interval.low * 100:.2f}, {interval.high * 100:.2f}] "
        f"{RELATIONS.get(status, 'around')} max_flips {percent(limit)}",
        cause=(
            "the average hides it: losses and gains cancel out, but single answers are not FP16's"
            if status is Status.FAIL
            else ""
        ),
        next_step=_next_step(status),
        figures={"flips_share": pairs.changed / pairs.samples, "max_flips": float(limit)},
    )


def _judge_classes(pairs: Pairs, *, gate: AccuracyGate, limit: Fraction) -> Verdict:
    if not pairs.classes:
        return Verdict(
            gate=GATE,
            status=Status.FAIL,
            headline=f"accuracy: {gate.task}: max_class_drop is set, but the samples have no "
            f"classes ({gate.where.of('max_class_drop')})",
        )
    tail = (1 - float(gate.confidence)) / len(pairs.classes)
    over, beyond = [], []
    for name, counts in pairs.classes:
        lost = counts.right_to_wrong - counts.wrong_to_right
        if lost <= limit * counts.samples:
            continue
        over.append((counts.drop, name, counts))
        interval = paired_drop_limits(
            right_to_wrong=counts.right_to_wrong,
            wrong_to_right=counts.wrong_to_right,
            samples=counts.samples,
            confidence=1 - tail,
        )
        if interval.low > limit:
            beyond.append(name)
    worst_name, worst = max(pairs.classes, key=lambda item: item[1].drop)
    status = Status.FAIL if beyond else Status.INCONCLUSIVE if over else Status.PASS
    over.sort(key=lambda item: (-item[0], item[1]))
    return Verdict(
        gate=GATE,
        status=status,
        headline=f"accuracy: {gate.task}: worst class {worst_name!r} drops {points(worst.drop)} on "
        f"{count(worst.samples, 'sample')}, {len(over)} of {len(pairs.classes)} classes over "
        f"max_class_drop {points(limit)} ({gate.where.of('max_class_drop')})",
        brief=f"{len(over)} of {len(pairs.classes)} classes over max_class_drop {points(limit)}",
        evidence=tuple(
            f"class {name!r}: drop {points(drop)} ({found.right_to_wrong} lost, "
            f"{found.wrong_to_right} won of {found.samples})"
            for drop, name, found in over[:4]
        ),
        cause="" if status is Status.PASS else "an average over all classes hides the loss of some",
        next_step=_next_step(status),
        figures={
            "worst_class": worst_name,
            "worst_class_drop_points": worst.drop * 100,
            "classes_over": len(over),
        },
    )
