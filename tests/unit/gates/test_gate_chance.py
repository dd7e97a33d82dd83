"""Whether FP16 answers better than chance: an exact test that guesses and constants do not pass."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.sanity import NO_TEXTS, Answers, TaskSanity
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.chance import (
    EARLY_ALPHA,
    LAST_ALPHA,
    chance_of_as_many,
    describe_chance,
    is_above_chance,
    is_settled,
    is_under_chance,
    judge_answers,
    judge_chance,
)
from pytest_quantgate.measure.sanity import count_answers, read_answers
from pytest_quantgate.tasks.retrieval import count_chance
from tests.unit.gates.gate_builders import SAME_EXAMPLES, make_outcomes

pytestmark = pytest.mark.slow


def answers(
    *, right: int, samples: int, classes: int = 10, seen: int | None = None, whole: bool = True
) -> Answers:
    return Answers(
        samples=samples,
        right=right,
        chance=1 / classes,
        classes=classes,
        seen=classes if seen is None else seen,
        whole=whole,
    )


def judge(**counts: int) -> Verdict:
    return judge_chance(answers(**counts), gate="sanity", task="photos/classification")  # type: ignore[arg-type]


def exact_tail(right: int, samples: int, share: Fraction) -> Fraction:
    return sum(
        (
            math.comb(samples, hit) * share**hit * (1 - share) ** (samples - hit)
            for hit in range(max(0, right), samples + 1)
        ),
        Fraction(0),
    )


@SAME_EXAMPLES
@given(
    samples=st.integers(1, 80),
    right=st.integers(-1, 81),
    share=st.fractions(0, 1, max_denominator=50),
)
@example(samples=10, right=1, share=Fraction(1, 10))
@example(samples=10, right=10, share=Fraction(1, 2))
@example(samples=10, right=11, share=Fraction(1))
def test_the_tail_is_the_exact_sum(samples: int, right: int, share: Fraction) -> None:
    found = chance_of_as_many(right, samples, float(share))

    assert found == pytest.approx(float(exact_tail(right, samples, share)), rel=1e-9, abs=1e-300)


def test_the_tail_of_a_large_data_set_is_quick_and_finite() -> None:
    assert chance_of_as_many(50_000, 50_000, 0.001) == 0
    assert chance_of_as_many(5_100, 50_000, 0.1) == pytest.approx(0.069316, abs=1e-6)
    assert chance_of_as_many(0, 50_000, 0.1) == 1


@pytest.mark.parametrize(
    ("right", "samples", "classes", "status"),
    [
        (61, 700, 10, Status.FAIL),  # 8.67 %: templates with {}
        (21, 700, 10, Status.FAIL),  # 3.00 %: shifted labels
        (70, 700, 10, Status.FAIL),  # chance itself
        (92, 700, 10, Status.PASS),  # weak, and above chance
        (91, 700, 10, Status.FAIL),
        (24, 30, 2, Status.PASS),  # a binary task
        (21, 30, 2, Status.INCONCLUSIVE),
        (15, 30, 2, Status.FAIL),
        (12, 20, 10, Status.PASS),  # a small advisory suite
        (3, 20, 10, Status.INCONCLUSIVE),
        (2, 20, 10, Status.FAIL),
        (1, 1000, 1000, Status.FAIL),
        (3, 1000, 1000, Status.FAIL),  # 1,000 would have shown 3 %
        (6, 1000, 1000, Status.PASS),
        (0, 1, 10, Status.FAIL),
        (1, 1, 10, Status.INCONCLUSIVE),
    ],
)
def test_what_is_decided_of_how_many(
    right: int, samples: int, classes: int, status: Status
) -> None:
    verdict = judge(right=right, samples=samples, classes=classes)

    assert verdict.status is status
    assert verdict.code == ("" if status is Status.PASS else "sanity.fp16-at-chance")


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_samples_are_enough_where_a_weak_model_would_be_shown(classes: int) -> None:
    """One more right than chance gives: FAIL where sqrt(chance) would be seen in 95 of 100 runs."""
    found = []
    for samples in range(1, 160):
        fewest = next(
            right
            for right in range(samples + 2)
            if chance_of_as_many(right, samples, 1 / classes) <= LAST_ALPHA
        )
        shown = chance_of_as_many(fewest, samples, math.sqrt(1 / classes))
        right = samples // classes + 1
        if right < fewest:
            status = judge(right=right, samples=samples, classes=classes).status
            assert (status is Status.FAIL) == (shown >= 0.95), samples
            found.append(status)
    assert {Status.FAIL, Status.INCONCLUSIVE} == set(found)


@pytest.mark.parametrize(
    ("right", "samples", "seen", "word", "cause", "step"),
    [
        (61, 700, 10, "no better than chance", "class names, prompts", "compare a few samples"),
        (21, 700, 10, "under chance", "labels and class names", "compare a few samples"),
        (3, 20, 10, "not shown to beat chance", "class names, prompts", "evaluate on more samples"),
    ],
)
def test_what_is_said_of_answers_at_chance(
    right: int, samples: int, seen: int, word: str, cause: str, step: str
) -> None:
    verdict = judge(right=right, samples=samples, seen=seen)

    assert verdict.gate == "sanity"
    assert f"sanity: photos/classification: FP16 is {word}: right on {right} of" in verdict.headline
    assert verdict.brief == f"FP16 {word}: {right} of {samples} right, chance 10.00 %"
    assert verdict.cause.startswith(cause)
    assert verdict.next_step.startswith(step)
    assert verdict.figures == {
        "fp16_right": right,
        "fp16_samples": samples,
        "fp16_chance_share": 0.1,
        "fp16_chance_p": pytest.approx(float(exact_tail(right, samples, Fraction(1, 10)))),
    }


def test_answers_above_chance_say_so_with_their_figures() -> None:
    verdict = judge(right=92, samples=700)

    assert verdict.headline == (
        "sanity: photos/classification: FP16 is right on 92 of 700 samples (13.14 %), chance alone "
        "gives 10.00 %"
    )
    assert (verdict.gate, verdict.cause, verdict.next_step) == ("sanity", "", "")
    assert verdict.figures["fp16_samples"] == 700


def test_confusions_alone_tell_that_labels_and_names_do_not_belong_together() -> None:
    confused = Answers(
        samples=700,
        right=65,
        chance=0.1,
        classes=10,
        seen=10,
        whole=True,
        confused=(("cat", "dog", 41, 70),),
    )

    verdict = judge_chance(confused, gate="accuracy", task="t")

    assert "no better than chance" in verdict.headline
    assert verdict.cause.startswith("labels and class names do not belong together")


def test_what_is_said_of_labels_that_were_shifted() -> None:
    shifted = judge_chance(
        Answers(
            samples=700,
            right=21,
            chance=0.1,
            classes=10,
            seen=10,
            whole=True,
            confused=(("automobile", "airplane", 41, 70),),
        ),
        gate="sanity",
        task="photos/classification",
    )

    assert shifted.headline == (
        "sanity: photos/classification: FP16 is under chance: right on 21 of 700 samples (3.00 %), "
        "chance alone gives 10.00 %"
    )
    assert shifted.evidence == ("41 of 70 samples labelled 'automobile' are answered 'airplane'",)
    assert shifted.cause.startswith("labels and class names do not belong together")
    assert shifted.brief == "FP16 under chance: 21 of 700 right, chance 10.00 %"
    assert shifted.figures["fp16_right"] == 21


def test_one_class_shows_nothing() -> None:
    verdict = judge(right=40, samples=40, classes=10, seen=1)

    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.headline == (
        "sanity: photos/classification: all 40 samples are of one class: nothing shows that FP16 "
        "tells classes apart"
    )
    assert verdict.brief == "samples of one class: nothing shows that FP16 tells classes apart"
    assert (verdict.gate, verdict.code) == ("sanity", "sanity.fp16-at-chance")
    assert verdict.next_step == "evaluate on samples of all classes"
    assert verdict.figures["fp16_right"] == 40


def test_a_guess_is_taken_for_an_answer_once_in_a_hundred_at_most() -> None:
    """Over all looks at 5, 20, 80 and 320 samples and at all 700, for 2, 10 and 100 classes."""
    for classes in (2, 10, 100):
        chance = random.Random(classes)
        passed = 0
        for _ in range(3000):
            hits = [chance.randrange(classes) == 0 for _ in range(700)]
            early = any(
                is_above_chance(
                    answers(right=sum(hits[:look]), samples=look, classes=classes),
                    alpha=EARLY_ALPHA,
                )
                for look in (5, 20, 80, 320)
            )
            last = is_above_chance(
                answers(right=sum(hits), samples=700, classes=classes), alpha=LAST_ALPHA
            )
            passed += early or last
        assert passed <= 0.01 * 3000


@SAME_EXAMPLES
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=200), constant=st.integers(0, 4))
def test_one_answer_to_everything_is_never_above_chance(labels: list[int], constant: int) -> None:
    found = count_answers(labels, [constant] * len(labels), names="abcde", whole=True)

    assert found.right == labels.count(constant)
    assert not is_above_chance(found, alpha=0.4)


@SAME_EXAMPLES
@given(labels=st.lists(st.integers(0, 4), min_size=40, max_size=200))
def test_right_answers_are_above_chance_wherever_there_are_two_classes(labels: list[int]) -> None:
    found = count_answers(labels, labels, names="abcde", whole=True)
    rare = min(Counter(labels).values())

    assert found.right == len(labels)
    if found.seen > 1 and rare >= 10:
        assert is_above_chance(found, alpha=LAST_ALPHA)


def test_an_unbalanced_set_is_held_to_its_own_shares() -> None:
    """90 of 100 right is no more than always the common class; 98 is."""
    labels = [0] * 90 + [1] * 10
    lazy = count_answers(labels, [0] * 100, names=("cat", "dog"), whole=True)
    good = count_answers(labels, [0] * 89 + [1] * 9 + [0, 1], names=("cat", "dog"), whole=True)

    assert lazy.chance == pytest.approx(0.9)
    assert not is_above_chance(lazy, alpha=LAST_ALPHA)
    assert (good.right, good.chance) == (98, pytest.approx(0.82))  # type: ignore[comparison-overlap]
    assert is_above_chance(good, alpha=LAST_ALPHA)


def confuse(*rows: tuple[int, ...]) -> Answers:
    """Count answers of a confusion matrix: a row a label, a column an answer."""
    labels = [label for label, row in enumerate(rows) for _ in range(sum(row))]
    found = [answer for row in rows for answer, times in enumerate(row) for _ in range(times)]
    return count_answers(labels, found, names=("cat", "dog", "owl", "cow"), whole=True)


def test_a_class_that_draws_the_others_is_no_ring() -> None:
    found = confuse((60, 0, 0, 0), (50, 10, 0, 0), (45, 10, 5, 0), (3, 2, 2, 3))

    assert found.confused == (("dog", "cat", 50, 60), ("owl", "cat", 45, 60))
    assert not found.swapped


def test_two_classes_that_were_exchanged_are_a_ring() -> None:
    """FP16 is right on half of the samples: far above chance."""
    found = confuse((5, 55, 0, 0), (50, 10, 0, 0), (0, 0, 60, 0), (0, 0, 0, 60))
    verdict = judge_chance(found, gate="accuracy", task="photos/classification")

    assert is_above_chance(found, alpha=LAST_ALPHA)
    assert (verdict.status, verdict.code) == (Status.FAIL, "sanity.classes-exchanged")
    assert verdict.headline == (
        "accuracy: photos/classification: FP16 answers classes in another order: samples of 'cat', "
        "'dog' are taken for one another"
    )
    assert verdict.gate == "accuracy"
    assert verdict.brief == "FP16 answers classes in another order: 'cat', 'dog'"
    assert verdict.cause.startswith("class names, or labels, that are exchanged")
    assert verdict.next_step == "put the class names into the order of the labels"
    assert verdict.figures["fp16_right"] == 135
    long = replace(found, confused=(("c" * 90, "dog", 1, 2),))
    assert len(judge_chance(long, gate="accuracy", task="t").brief) == 70
    assert verdict.evidence[:2] == (
        "55 of 60 samples labelled 'cat' are answered 'dog'",
        "50 of 60 samples labelled 'dog' are answered 'cat'",
    )


def test_three_classes_in_a_ring_and_a_tail_into_it() -> None:
    found = confuse((0, 60, 0, 0), (0, 0, 60, 0), (60, 0, 0, 0), (60, 0, 0, 0))

    assert found.swapped
    assert [label for label, *_ in found.confused] == ["cat", "dog", "owl"]


def test_classes_that_are_hard_to_tell_apart_are_no_ring() -> None:
    found = confuse((25, 35, 0, 0), (34, 26, 0, 0), (0, 0, 60, 0), (0, 0, 0, 60))

    assert found.confused == ()
    assert not found.swapped


@SAME_EXAMPLES
@given(seed=st.integers(0, 10_000), skill=st.floats(0, 1))
def test_a_model_that_guesses_at_times_makes_no_ring(seed: int, skill: float) -> None:
    """However weak it is: where it is not right, it guesses."""
    drawn = random.Random(seed)
    labels = [drawn.randrange(4) for _ in range(400)]
    guesses = [label if drawn.random() < skill else drawn.randrange(4) for label in labels]

    assert not count_answers(labels, guesses, names="abcd", whole=True).swapped


@pytest.mark.parametrize(("right", "settled"), [(0, False), (4, True), (5, True), (2, False)])
def test_a_look_settles_what_is_clear(right: int, settled: bool) -> None:
    assert is_settled(answers(right=right, samples=5)) is settled


def test_under_chance_is_the_other_tail() -> None:
    assert is_under_chance(answers(right=12, samples=320), alpha=EARLY_ALPHA)
    assert not is_under_chance(answers(right=0, samples=5), alpha=EARLY_ALPHA)


def outcomes(*, metric: str, correct: tuple[bool, ...], clusters: tuple[int, ...]) -> Outcomes:
    return Outcomes(
        task="coco/retrieval",
        metric=metric,
        variant="FP16",
        ids=tuple(map(str, range(len(correct)))),
        correct=correct,
        answers=(0,) * len(correct),
        labels=(-1,) * len(correct),
        class_names=(),
        value=0.5,
        data_digest="d" * 64,
        clusters=clusters,
    )


def test_of_retrieval_one_caption_an_image_counts() -> None:
    found = read_answers(
        outcomes(
            metric="image_retrieval_recall@1",
            correct=(True, True, False, False, True, True),
            clusters=(0, 0, 1, 1, 2, 2),
        ),
        chance=count_chance,
    )

    assert found is not None
    assert (found.right, found.samples, found.chance) == (2, 3, pytest.approx(1 / 3))  # type: ignore[comparison-overlap]


def test_recall_among_fewer_than_k_is_chance() -> None:
    found = read_answers(
        outcomes(metric="text_retrieval_recall@5", correct=(True,) * 4, clusters=()),
        chance=count_chance,
    )

    assert found is not None
    assert found.chance == 1
    assert not is_above_chance(found, alpha=0.5)


def judge_knn(
    labels: list[int],
    found: list[int],
    *,
    known: TaskSanity,
    clusters: tuple[int, ...] = (),
    class_names: tuple[str, ...] = ("cat", "dog", "owl", "cow"),
    nonfinite: int = 0,
) -> Verdict | None:
    fp16 = replace(
        outcomes(
            metric="acc1",
            correct=tuple(a == b for a, b in zip(labels, found, strict=True)),
            clusters=clusters,
        ),
        labels=tuple(labels),
        answers=tuple(found),
        class_names=class_names,
        nonfinite=nonfinite,
    )
    gate = SimpleNamespace(kind="accuracy", task="photos/knn", samples=None, first=False)
    run = SimpleNamespace(sanity=SimpleNamespace(tasks=(known,)))
    return judge_answers(cast(Any, run), cast(Any, gate), fp16=fp16)


def test_a_task_that_sanity_leaves_to_its_gate_must_beat_chance() -> None:
    rng = random.Random(3)
    known = TaskSanity(task="photos/knn", data="photos/test", classes=0, reading=NO_TEXTS)
    labels = [rng.randrange(4) for _ in range(400)]
    guessed = judge_knn(labels, [rng.randrange(4) for _ in range(400)], known=known)

    assert guessed is not None
    assert (guessed.status, guessed.code) == (Status.FAIL, "sanity.fp16-at-chance")
    assert judge_knn(labels, labels, known=known) is None


def test_answers_that_are_none_or_of_unknown_chance_are_left_to_others() -> None:
    known = TaskSanity(task="photos/knn", data="photos/test", classes=0, reading=NO_TEXTS)
    labels, wrong = [place % 4 for place in range(400)], [(place + 1) % 4 for place in range(400)]

    assert judge_knn(labels, wrong, known=known) is not None
    assert judge_knn(labels, wrong, known=known, nonfinite=1) is None
    assert judge_knn(labels, wrong, known=known, class_names=()) is None


def test_of_the_nearest_of_a_query_one_counts() -> None:
    """Ten outcomes each: 17 of 40 queries right may be luck, 170 of 400 samples could not."""
    known = TaskSanity(task="photos/knn", data="photos/test", classes=0, reading=NO_TEXTS)
    labels = [query % 4 for query in range(40) for _ in range(10)]
    answers = [label if place // 10 < 17 else (label + 1) % 4 for place, label in enumerate(labels)]
    clusters = tuple(place // 10 for place in range(400))

    guessed = judge_knn(labels, answers, known=known, clusters=clusters)

    assert guessed is not None
    assert (guessed.code, guessed.figures["fp16_samples"]) == ("sanity.fp16-at-chance", 40)
    assert judge_knn(labels, labels, known=known, clusters=clusters) is None


@pytest.mark.parametrize(
    ("task", "metric", "words"),
    [
        (
            "photos/classification",
            "acc1",
            "FP16 is right on 6 of 8 samples (75.00 %), chance alone gives 50.00 %: 25.00 pp above "
            "it",
        ),
        (
            "photos/retrieval",
            "image_retrieval_recall@2",
            "FP16 is right on 6 of 8 samples (75.00 %), chance alone gives 25.00 %: 50.00 pp above "
            "it",
        ),
        (
            "photos/neighbours",
            "top1",
            "right is what FP16 answers; chance alone gives 14.29 %",
        ),
        (
            "photos/knn",
            "acc1",
            "what chance alone would give is not known of photos/knn",
        ),
    ],
)
def test_how_far_fp16_is_from_chance_is_said(task: str, metric: str, words: str) -> None:
    names = ("cat", "dog") if task.endswith("classification") else ()
    fp16 = make_outcomes(
        [True, False, True, True, True, True, False, True],
        task=task,
        metric=metric,
        class_names=names,
        labels=(0, 0, 0, 0, 1, 1, 1, 1) if names else None,
    )
    gate = cast(Any, SimpleNamespace(task=task))

    found, figures = describe_chance(gate, fp16=fp16)

    assert found == words
    assert ("fp16_chance_share" in figures) is ("not known" not in words)
