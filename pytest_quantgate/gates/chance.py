"""Whether FP16 answers better than chance: where it does not, no drop means anything.

A model that guesses loses nothing by quantization. Chance is what the same answers would hit if
they were given without looking: `sum(share of answers * share of samples)` over the classes, as in
Cohen's kappa (Cohen, Educational and Psychological Measurement 20 (1960) 37), and at least one in
as many as there are classes to choose from. Against it stands the exact one-sided binomial test.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.outcomes import group_places
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.tasks.kind import find_task
from pytest_quantgate.text.words import count, percent, points

if TYPE_CHECKING:
    from pytest_quantgate.evidence.outcomes import Outcomes
    from pytest_quantgate.evidence.sanity import Answers
    from pytest_quantgate.gates.run import GateRun
    from pytest_quantgate.gates.sections import TaskGate
    from pytest_quantgate.tasks.kind import TaskKind

#: How often answers at chance are taken for better ones: at most in 1 %, over all looks. Up to
#: seven looks on a part of the samples spend EARLY_ALPHA each, that on the most LAST_ALPHA.
EARLY_ALPHA = 0.0005
LAST_ALPHA = 0.005

#: Data could have shown what they do not where they would have, with this probability, on a model
#: that is right in sqrt(chance): halfway from chance to certainty on a scale of factors.
SHOWN = 0.95

CODE = "sanity.fp16-at-chance"
SWAPPED = "sanity.classes-exchanged"


def is_above_chance(answers: Answers, *, alpha: float) -> bool:
    """Return whether answers are better than chance at a level of `alpha`."""
    if answers.seen < 2:
        return False  # whoever always says the one class that there is would be right
    return chance_of_as_many(answers.right, answers.samples, answers.chance) <= alpha


def is_under_chance(answers: Answers, *, alpha: float) -> bool:
    """Return whether answers are worse than chance at a level of `alpha`."""
    wrong = answers.samples - answers.right
    return chance_of_as_many(wrong, answers.samples, 1 - answers.chance) <= alpha


def is_settled(answers: Answers) -> bool:
    """Return whether answers to a part of the samples are better or worse than chance already."""
    return is_above_chance(answers, alpha=EARLY_ALPHA) or is_under_chance(
        answers, alpha=EARLY_ALPHA
    )


def judge_chance(answers: Answers, *, gate: str, task: str) -> Verdict:
    """Return whether FP16 is shown to answer a task better than chance, each class as itself.

    PASS where it is; FAIL where it is not and that many samples would have shown it, or where it
    is right no more often than chance; else INCONCLUSIVE.
    """
    samples, chance = answers.samples, answers.chance
    figures = {
        "fp16_right": answers.right,
        "fp16_samples": samples,
        "fp16_chance_share": chance,
        "fp16_chance_p": chance_of_as_many(answers.right, samples, chance),
    }
    found = (
        f"FP16 is right on {answers.right} of {count(samples, 'sample')} "
        f"({percent(answers.right / samples)}), chance alone gives {percent(chance)}"
    )
    confusions = tuple(
        f"{times} of {of} samples labelled {label!r} are answered {answer!r}"
        for label, answer, times, of in answers.confused
    )
    if answers.swapped:
        names = ", ".join(repr(label) for label, *_ in answers.confused)
        return Verdict(
            gate=gate,
            status=Status.FAIL,
            headline=f"{gate}: {task}: FP16 answers classes in another order: samples of {names} "
            f"are taken for one another",
            brief=f"FP16 answers classes in another order: {names}"[:70],
            evidence=(*confusions, found),
            cause="class names, or labels, that are exchanged: sorted otherwise, or of another "
            "release of the data set",
            next_step="put the class names into the order of the labels",
            figures=figures,
            code=SWAPPED,
        )
    if is_above_chance(answers, alpha=LAST_ALPHA):
        return Verdict(
            gate=gate,
            status=Status.PASS,
            headline=f"{gate}: {task}: {found}",
            figures=figures,
        )
    if answers.seen < 2:
        return Verdict(
            gate=gate,
            status=Status.INCONCLUSIVE,
            headline=f"{gate}: {task}: all {count(samples, 'sample')} are of one class: nothing "
            f"shows that FP16 tells classes apart",
            brief="samples of one class: nothing shows that FP16 tells classes apart",
            figures=figures,
            next_step="evaluate on samples of all classes",
            code=CODE,
            cause="the data set is sorted by class, and `samples` takes its beginning",
        )
    enough = _is_enough(samples, chance)
    failed = answers.right <= samples * chance or enough
    under = is_under_chance(answers, alpha=LAST_ALPHA)
    word = "under chance" if under else "no better than chance"
    return Verdict(
        gate=gate,
        status=Status.FAIL if failed else Status.INCONCLUSIVE,
        headline=f"{gate}: {task}: FP16 is {word if failed else 'not shown to beat chance'}: "
        f"{found.removeprefix('FP16 is ')}",
        brief=f"FP16 {word if failed else 'not shown to beat chance'}: {answers.right} of "
        f"{samples} right, chance {percent(chance)}",
        evidence=confusions,
        cause="labels and class names do not belong together: shifted, sorted otherwise, or of "
        "another data set"
        if under or answers.confused
        else "class names, prompts or preprocessing of another model, or weights that were never "
        "trained for this task",
        next_step="compare a few samples with their labels and class names, and evaluate the FP16 "
        "model by itself"
        if failed
        else "evaluate on more samples",
        figures=figures,
        code=CODE,
    )


def chance_of_as_many(right: int, samples: int, share: float) -> float:
    """Return the probability of `right` or more of `samples` at a share of `share` each.

    The upper tail of the binomial distribution, summed term by term.
    """
    if right <= 0:
        return 1.0
    if share <= 0 or right > samples:
        return 0.0
    if share >= 1:
        return 1.0
    log_term = (
        math.lgamma(samples + 1)
        - math.lgamma(right + 1)
        - math.lgamma(samples - right + 1)
        + right * math.log(share)
        + (samples - right) * math.log1p(-share)
    )
    ratio, total, term = share / (1 - share), 0.0, 1.0
    for hit in range(right, samples + 1):
        total += term
        term *= ratio * (samples - hit) / (hit + 1)
        if term < total * 1e-17 and hit > samples * share:
            break
    return min(1.0, math.exp(log_term + math.log(total)))


def _is_enough(samples: int, chance: float) -> bool:
    """Return whether so many samples would show a model that is right in sqrt(chance)."""
    low, high = 0, samples + 1  # the fewest right answers that are better than chance
    while low < high:
        middle = (low + high) // 2
        if chance_of_as_many(middle, samples, chance) <= LAST_ALPHA:
            high = middle
        else:
            low = middle + 1
    return chance_of_as_many(low, samples, math.sqrt(chance)) >= SHOWN


def is_left_open(answers: Answers) -> bool:
    """Return whether FP16's answers on a part of the samples do not show that it beats chance.

    The gates of the task, which have them all, then decide it.
    """
    return not answers.whole and not is_settled(answers)


def judge_answers(run: GateRun, gate: TaskGate, *, fp16: Outcomes) -> Verdict | None:
    """Return why FP16's answers to a whole task mean nothing; None where they do, and for a task
    that says nothing about chance.

    Chance is judged where sanity, which looks at a part, left it open; exchanged classes show
    on many samples only.
    """
    if fp16.nonfinite:
        return None  # no answers: its own gate says so
    asked = (gate.task, gate.samples, gate.first)
    answers = _read_answers(fp16, kind=find_task(gate.task))
    if answers is None:
        return None
    is_open = any(
        (task.task, task.samples, task.first) == asked
        and (task.answers is None or is_left_open(task.answers))
        for task in run.sanity.tasks
    )
    if not is_open and not answers.swapped:
        return None
    verdict = judge_chance(answers, gate=gate.kind, task=gate.task)
    return None if verdict.passed else verdict


def _read_answers(fp16: Outcomes, *, kind: TaskKind) -> Answers | None:
    """Return FP16's answers, of which one of a cluster counts: the binomial test takes each for
    independent, and the K nearest of a query, or copies of a picture, are right together."""
    from pytest_quantgate.measure.sanity import read_answers

    if fp16.class_names and fp16.clusters:
        fp16 = fp16.select([places[0] for places in group_places(fp16.clusters).values()])
    return read_answers(fp16, chance=kind.chance)


def describe_chance(gate: TaskGate, *, fp16: Outcomes) -> tuple[str, dict[str, float]]:
    """Return how far FP16 is from chance in a sentence, and its figures; what it says where chance
    is not known."""
    kind = find_task(gate.task)
    answers = _read_answers(fp16, kind=kind)
    if answers is not None and kind.needs_fp16:
        return f"right is what FP16 answers; chance alone gives {percent(answers.chance)}", {
            "fp16_chance_share": answers.chance
        }
    if answers is None or fp16.nonfinite:
        return f"what chance alone would give is not known of {gate.task}", {}
    share = answers.right / answers.samples
    words = (
        f"FP16 is right on {answers.right} of {count(answers.samples, 'sample')} "
        f"({percent(share)}), chance alone gives {percent(answers.chance)}: "
        f"{points(share - answers.chance)} above it"
    )
    return words, {
        "fp16_chance_share": answers.chance,
        "fp16_over_chance_points": (share - answers.chance) * 100,
    }
