"""Whether samples can stand for their task: how many are copies, and which classes they show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.text.words import count, listed

if TYPE_CHECKING:
    from pytest_quantgate.evidence.outcomes import Outcomes
    from pytest_quantgate.gates.sections import TaskGate

#: What is wrong with the data, and not with the variant.
FINDINGS = ("copies", "classes-unseen")

#: So many samples that are all fine show, with 95 %, that most of all are: 0.5^5 is 3 %.
LEAST_SAMPLES = 5


def judge_samples(
    outcomes: Outcomes, *, kind: str, gate: TaskGate, needs_all: bool
) -> list[Verdict]:
    """Return what keeps the samples of a task from standing for it; empty where nothing does.

    `needs_all` is for what is said of each class: then each must have a sample.
    """
    copies = judge_copies(
        samples=len(outcomes.ids),
        copies=outcomes.copies,
        kind=kind,
        subject=gate.task,
        where=gate.where.of("task"),
    )
    unseen = _judge_classes(outcomes, kind=kind, gate=gate, needs_all=needs_all)
    return [part for part in (copies, unseen) if part is not None]


def judge_copies(
    *, samples: int, copies: int, kind: str, subject: str, where: str
) -> Verdict | None:
    """Return INCONCLUSIVE where at least half of the samples are copies of others.

    So many are no accident: a set that was exported twice lacks what the copies stand in for.
    """
    if not copies or 2 * copies < samples:
        return None
    return Verdict(
        gate=kind,
        status=Status.INCONCLUSIVE,
        headline=f"{kind}: {subject}: {copies} of {count(samples, 'sample')} are copies of "
        f"others, {samples - copies} are distinct ({where})",
        brief=f"{copies} of {samples} samples are copies, {samples - copies} are distinct",
        cause="an export that ran twice, or a shard that is there under two numbers",
        next_step="export the data again, each sample once",
        figures={"copies": copies},
        code=f"{kind}.copies",
    )


def judge_few(*, samples: int, kind: str, subject: str, where: str) -> Verdict | None:
    """Return INCONCLUSIVE where so few distinct samples say nothing of others.

    What no task counts has no interval: however well fewer than `LEAST_SAMPLES` do, more than half
    of all others may not.
    """
    if samples >= LEAST_SAMPLES:
        return None
    return Verdict(
        gate=kind,
        status=Status.INCONCLUSIVE,
        headline=f"{kind}: {count(samples, 'distinct sample')} of {subject} cannot show that most "
        f"others are within the limits ({where})",
        brief=f"{count(samples, 'sample')}: at least {LEAST_SAMPLES} say something of others",
        cause="the suite asks for so few, or the data has no more",
        next_step=f"measure on at least {LEAST_SAMPLES}; some hundred find what is rare",
        code=f"{kind}.few-samples",
    )


def _judge_classes(
    outcomes: Outcomes, *, kind: str, gate: TaskGate, needs_all: bool
) -> Verdict | None:
    """Return INCONCLUSIVE where classes have no sample that a fair draw would show."""
    names, samples = outcomes.class_names, len(outcomes.ids)
    if not names:
        return None
    unseen = sorted(set(range(len(names))) - set(outcomes.labels))
    if gate.min_classes is not None:
        most = len(names) - gate.min_classes
    elif needs_all:
        most = 0
    else:
        most = most_unseen(samples=samples - outcomes.copies, classes=len(names))
    if len(unseen) <= most:
        return None
    seen, of = len(names) - len(unseen), count(len(names), "class", "classes")
    first = "leave out first: true, or " if gate.first else ""
    return Verdict(
        gate=kind,
        status=Status.INCONCLUSIVE,
        headline=f"{kind}: {gate.task}: {count(samples, 'sample')} of {seen} of {of} do not stand "
        f"for the task ({gate.where.of('first' if gate.first else 'task')})",
        brief=f"{len(unseen)} of {of} without a sample",
        evidence=(f"without a sample: {listed([names[label] for label in unseen])}",),
        cause="a part of the data is missing, or its first samples are those of a few classes",
        next_step=f"{first}evaluate on data that shows every class; where it has no more, say so "
        f"with min_classes: {seen}",
        figures={"classes_seen": seen, "classes": len(names)},
        code=f"{kind}.classes-unseen",
    )


def most_unseen(*, samples: int, classes: int) -> int:
    """Return how many of so many classes of one size a fair draw leaves out at most.

    The expectation of the empty boxes in the occupancy problem and two standard deviations (Feller,
    An Introduction to Probability Theory and Its Applications I (1968), section IV.2): 0 of 10 for
    40 samples, 12 of 100 for 250.
    """
    empty = (1 - 1 / classes) ** samples
    both_empty = max(0.0, 1 - 2 / classes) ** samples
    mean = classes * empty
    variance = classes * (classes - 1) * both_empty + mean - mean**2
    return math.floor(mean + 2 * math.sqrt(max(0.0, variance)))


def describe_samples(outcomes: Outcomes) -> str:
    """Return `1000 samples (400 distinct) of 9 of 10 classes`."""
    samples, names = len(outcomes.ids), outcomes.class_names
    distinct = f" ({samples - outcomes.copies} distinct)" if outcomes.copies else ""
    if not names:
        return f"{count(samples, 'sample')}{distinct}"
    seen = len(set(outcomes.labels))
    of = "" if seen == len(names) else f"{seen} of "
    return f"{count(samples, 'sample')}{distinct} of {of}{count(len(names), 'class', 'classes')}"
