"""What two reports say of accuracy: answers, data, classes, and whether the figures are sound."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_quantgate.comparison.changes import Change, compare_texts
from pytest_quantgate.comparison.outcomes import Sampled, compare_results
from pytest_quantgate.evidence.fingerprint import list_changed_parts
from pytest_quantgate.evidence.outcomes import averages_classes, unpack_scores
from pytest_quantgate.report.model import ClassFacts, OutcomeFacts, TaskFacts
from pytest_quantgate.text.words import listed, percent, tally

#: Fewer samples of a class are no sign that it was lost.
LEAST_OF_A_CLASS = 3


def compare_tasks(
    before: Iterable[TaskFacts], after: Iterable[TaskFacts], *, suite: str
) -> list[Change]:
    """Return what differs between the tasks that both reports have."""
    changes: list[Change] = []
    olds = {_task_name(task): task for task in before}
    for task in after:
        old = olds.get(_task_name(task))
        if old is None:
            continue
        for field, word in (("fp16", "FP16"), ("quantized", "quantized")):
            changes += compare_results(
                _sampled(getattr(old, field), old),
                _sampled(getattr(task, field), task),
                subject=f"{suite} {_task_name(task)} {field}",
                what=f"{suite}: {_task_name(task)}: {word}",
                metric=task.metric,
            )
        changes += _compare_data(old, task, suite=suite)
        changes += _compare_soundness(old, task, suite=suite)
        changes += _compare_classes(old, task, suite=suite)
        flips = (old.answers_changed, task.answers_changed)
        if flips[0] != flips[1]:
            changes.append(
                Change(
                    area="accuracy",
                    kind="flips",
                    subjects=(f"{suite} {_task_name(task)}",),
                    text=f"{suite}: {_task_name(task)}: answers that differ from FP16's "
                    f"{flips[0]} -> {flips[1]} of {task.samples}",
                    before=str(flips[0]),
                    after=str(flips[1]),
                    figures={"before": flips[0], "after": flips[1]},
                )
            )
    return changes


def _compare_data(before: TaskFacts, after: TaskFacts, *, suite: str) -> list[Change]:
    """Return which part of the evaluation data is another one."""
    if before.data_digest == after.data_digest:
        return []
    old, new = before.data_parts, after.data_parts
    others = list_changed_parts(old, new)
    if not others:
        return []  # a report of an older release does not say
    kept = [part for part in old if part in new and part not in others]
    return [
        Change(
            area="data",
            kind="other data",
            subjects=(f"{suite} {_task_name(after)}",),
            text=f"{suite}: {_task_name(after)}: other {' and '.join(others)}"
            + (f"; {', '.join(kept)} are the same" if kept else ""),
            before=before.data_digest[:12],
            after=after.data_digest[:12],
        )
    ]


def _compare_soundness(before: TaskFacts, after: TaskFacts, *, suite: str) -> list[Change]:
    """Return samples with NaN or Inf, and values that are not what their samples say."""
    sides = []
    for task in (before, after):
        found = {}
        for word, facts in (("FP16", task.fp16), ("quantized", task.quantized)):
            name = f"{suite}: {_task_name(task)}: {word}"
            found[f"{name}: samples with NaN or Inf"] = str(facts.nonfinite)
            counted = facts.right / task.samples if task.samples else 0.0
            agrees = averages_classes(task.metric) or abs(facts.value - counted) <= 1e-9
            found[f"{name}: the value reported"] = (
                "what its samples say"
                if agrees
                else f"{percent(facts.value)}, but {tally(facts.right)} of {task.samples} samples "
                f"are right, {percent(counted)}"
            )
        sides.append(found)
    return compare_texts(sides[0], sides[1], area="accuracy")


def _compare_classes(before: TaskFacts, after: TaskFacts, *, suite: str) -> list[Change]:
    """Return the classes of which the quantized variant lost, or won, most of the samples."""
    olds = {facts.name: facts for facts in before.classes}
    moved: dict[str, list[tuple[ClassFacts, ClassFacts]]] = {"class lost": [], "class won": []}
    for new in after.classes:
        old = olds.get(new.name)
        if old is None or old.samples != new.samples or before.data_digest != after.data_digest:
            continue
        change = new.quantized_right - old.quantized_right
        if abs(change) >= max(LEAST_OF_A_CLASS, new.samples / 2):
            moved["class won" if change > 0 else "class lost"].append((old, new))
    return [
        Change(
            area="accuracy",
            kind=kind,
            subjects=tuple(new.name for _, new in pairs),
            text=f"{suite}: {_task_name(after)}: {_count_classes(len(pairs))} "
            f"{'lost' if kind == 'class lost' else 'won'} at least half of the samples: "
            + listed(
                [
                    f"{new.name!r} {tally(old.quantized_right)} -> {tally(new.quantized_right)} "
                    f"right of {new.samples}"
                    for old, new in pairs
                ]
            ),
        )
        for kind, pairs in moved.items()
        if pairs
    ]


def _count_classes(number: int) -> str:
    return "1 class" if number == 1 else f"{number} classes"


def _task_name(task: TaskFacts) -> str:
    stage = "" if task.stage == "torch" else f" in {task.stage}"
    return f"{task.task} {task.metric}{stage}"


def _sampled(facts: OutcomeFacts, task: TaskFacts) -> Sampled:
    return Sampled(
        value=facts.value,
        correct=unpack_scores(facts.correct_bits, count=task.samples),
        ids_digest=task.ids_digest,
        data_digest=task.data_digest,
    )
