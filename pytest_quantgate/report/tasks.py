"""What both variants answered to each sample of a task, as the facts of a report. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pytest_quantgate.evidence.outcomes import Outcomes, group_places, is_graded, pack_scores
from pytest_quantgate.gates.slices import NO_COLUMNS, Columns, cut
from pytest_quantgate.report.model import (
    ClassFacts,
    Confusion,
    Flip,
    OutcomeFacts,
    StageName,
    TaskFacts,
)
from pytest_quantgate.report.previews import list_flips

#: A report names no more flipped samples of a task than this, losses first.
MAX_FLIPS = 200

#: A report counts no more pairs of answers of a task than this.
MAX_CONFUSIONS = 50

#: A column of more values than this is no list of slices.
MAX_SLICES = 50


def describe_task(
    *,
    fp16: Outcomes,
    quantized: Outcomes,
    stage: StageName,
    gates: tuple[str, ...],
    previews: Mapping[str, Mapping[str, str]],
    columns: Columns = NO_COLUMNS,
) -> TaskFacts:
    """Return the facts of one task; both outcomes must be of the same ids in the same order."""
    order = sorted(range(len(fp16.ids)), key=fp16.ids.__getitem__)
    flips = list_flips(fp16, quantized)
    lost = sum(fp16.correct[index] > quantized.correct[index] for index in flips)
    by_score = not fp16.class_names or is_graded((*fp16.correct, *quantized.correct))
    pairs = zip(fp16.correct, quantized.correct, fp16.answers, quantized.answers, strict=True)
    return TaskFacts(
        task=fp16.task,
        metric=fp16.metric,
        stage=stage,
        gates=gates,
        samples=len(order),
        ids_digest=_digest(fp16.ids[i] for i in order),
        data_digest=fp16.data_digest,
        fp16=_describe_outcomes(fp16, order=order),
        quantized=_describe_outcomes(quantized, order=order),
        right_to_wrong=lost,
        wrong_to_right=len(flips) - lost,
        answers_changed=sum((a != b) if by_score else (x != y) for a, b, x, y in pairs),
        classes=_count_parts(fp16, quantized, parts=_list_classes(fp16)),
        slices=_count_parts(
            fp16,
            quantized,
            parts=[
                part
                for name, values in columns.items()
                if 2 <= len(set(values)) <= MAX_SLICES
                for part in cut(columns, (name,)).items()
            ],
        ),
        flips=tuple(
            _describe_flip(fp16, quantized, index=index, preview=previews.get(fp16.ids[index], {}))
            for index in flips[:MAX_FLIPS]
        ),
        data_parts=dict(fp16.data_parts),
        confusions=_count_confusions(fp16, quantized),
    )


def _count_confusions(fp16: Outcomes, quantized: Outcomes) -> tuple[Confusion, ...]:
    """Return the answers that took the place of others, the most frequent ones first."""
    pairs = list(zip(fp16.answers, quantized.answers, strict=True)) if fp16.class_names else []
    found = []
    for (before, after), places in group_places(pairs).items():
        if before != after:
            gains = [quantized.correct[i] - fp16.correct[i] for i in places]
            found.append(
                Confusion(
                    fp16_answer=_class_name(fp16.class_names, before),
                    quantized_answer=_class_name(fp16.class_names, after),
                    samples=len(places),
                    lost=sum(gain < 0 for gain in gains),
                    won=sum(gain > 0 for gain in gains),
                )
            )
    found.sort(key=lambda pair: (-pair.samples, -pair.lost))
    return tuple(found[:MAX_CONFUSIONS])


def _describe_outcomes(outcomes: Outcomes, *, order: Sequence[int]) -> OutcomeFacts:
    return OutcomeFacts(
        variant=outcomes.variant,
        value=outcomes.value,
        right=sum(outcomes.correct),
        correct_bits=pack_scores(tuple(outcomes.correct[i] for i in order)),
        answers_digest=_digest(str(outcomes.answers[i]) for i in order),
        nonfinite=outcomes.nonfinite,
    )


def _digest(lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _list_classes(fp16: Outcomes) -> list[tuple[str, list[int]]]:
    """Return the name of each class with samples, and the places of these."""
    if not fp16.class_names:
        return []
    places = sorted(group_places(fp16.labels).items())
    return [(_class_name(fp16.class_names, label), inside) for label, inside in places]


def _count_parts(
    fp16: Outcomes, quantized: Outcomes, *, parts: Iterable[tuple[str, Sequence[int]]]
) -> tuple[ClassFacts, ...]:
    found = []
    for name, inside in parts:
        both = [(fp16.correct[i], quantized.correct[i]) for i in inside]
        found.append(
            ClassFacts(
                name=name,
                samples=len(both),
                fp16_right=sum(was for was, _ in both),
                quantized_right=sum(now for _, now in both),
                right_to_wrong=sum(max(was - now, 0) for was, now in both),
                wrong_to_right=sum(max(now - was, 0) for was, now in both),
            )
        )
    return tuple(found)


def _class_name(names: Sequence[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else f"#{label}"


def _describe_flip(
    fp16: Outcomes, quantized: Outcomes, *, index: int, preview: Mapping[str, str]
) -> Flip:
    names, label = fp16.class_names, fp16.labels[index]
    scores = fp16.correct[index], quantized.correct[index]
    graded = is_graded(scores)
    return Flip(
        id=fp16.ids[index],
        right_to_wrong=scores[0] > scores[1],
        label=_class_name(names, label) if names else "",
        fp16_answer=preview.get("fp16_answer") or _class_name(names, fp16.answers[index]),
        quantized_answer=(
            preview.get("quantized_answer") or _class_name(names, quantized.answers[index])
        ),
        image=preview.get("image", ""),
        text=preview.get("text", ""),
        fp16_score=float(scores[0]) if graded else None,
        quantized_score=float(scores[1]) if graded else None,
        fp16_margin=fp16.margins[index] if fp16.margins else None,
        quantized_margin=quantized.margins[index] if quantized.margins else None,
    )
