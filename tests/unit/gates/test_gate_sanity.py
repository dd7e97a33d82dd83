"""The sanity gate: what must be true before any limit means something, each with its own code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_quantgate.encoders import faults
from pytest_quantgate.evidence.sanity import (
    Answers,
    Fault,
    Sanity,
    TaskSanity,
    TextPlaces,
    TextReading,
    Twins,
)
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.sanity import judge_sanity, leave_rounded, list_faults

READING = TextReading(count=20, distinct=20, commonest=1, end_token="</s>")
ANSWERS = Answers(samples=5, right=5, chance=0.1, classes=10, seen=10, whole=False)
TASK = TaskSanity(
    task="photos/classification",
    data="photos/test",
    samples=None,
    first=False,
    answers=ANSWERS,
    classes=10,
    templates=2,
    reading=READING,
)
CAPTIONS = TaskSanity(
    task="coco/retrieval",
    data="coco/test",
    samples=64,
    first=True,
    classes=0,
    reading=READING,
    answers=ANSWERS,
)
SANITY = Sanity(
    data="photos/train",
    pairs=2,
    images=2,
    reading=replace(READING, count=2, distinct=2),
    tasks=(TASK, CAPTIONS),
)
PLACES = TextPlaces(
    class_names=tuple(f"photos/classnames.txt:{line}" for line in range(1, 11)),
    templates=("photos/templates.txt:1", "photos/templates.txt:3"),
)


def judge(*, task: dict[str, Any] | None = None, **changes: Any) -> Verdict:
    if task is not None:
        changes["tasks"] = (replace(TASK, **task), CAPTIONS)
    sanity = replace(SANITY, **changes)
    return judge_sanity(sanity, model="clip-tiny", places={"photos/test": PLACES})


def test_what_holds_passes_and_says_what_was_looked_at() -> None:
    verdict = judge()

    assert verdict.status is Status.PASS
    assert verdict.code == ""
    assert verdict.headline == (
        "sanity: 2 pairs of photos/train encoded in FP16, the end token of 42 texts is pooled, "
        "prompts of 10 classes differ, FP16 beats chance in 2 of 2 tasks"
    )
    assert verdict.brief == (
        "a pair runs, prompts of 10 classes differ, FP16 beats chance in 2 of 2 tasks"
    )
    assert verdict.evidence[0] == (
        "photos/classification: FP16 is right on 5 of 5 samples, 10 to choose from, chance gives "
        "0.5"
    )


def test_a_suite_without_tasks_passes_on_its_pairs() -> None:
    verdict = judge(tasks=())

    assert verdict.passed
    assert verdict.brief == "a pair runs"


def test_a_template_without_class_names_its_file_and_line() -> None:
    verdict = judge(task={"without_class": ((1, "a photo of a {}."),)})

    assert (verdict.status, verdict.code) == (Status.FAIL, "sanity.template-without-class")
    assert verdict.headline == (
        "sanity: photos/templates.txt:3: template 'a photo of a {}.' has no {c}: every class gets "
        "the same prompt"
    )
    assert verdict.next_step == "write {c} where the class name belongs (photos/templates.txt:3)"


def test_a_class_name_that_stands_twice_names_both_lines() -> None:
    twins = Twins(first=7, second=9, names=("horse", "horse"), pairs=1)
    verdict = judge(task={"same_name": twins, "same_prompt": twins})

    assert verdict.code == "sanity.class-name-twice"
    assert verdict.headline == (
        "sanity: photos/classnames.txt:8 and 10: class name 'horse' stands twice: the two classes "
        "cannot be told apart"
    )
    assert not any("read alike" in line for line in verdict.evidence), "it is said once"


def test_classes_that_read_alike_are_named() -> None:
    twins = Twins(first=0, second=3, names=("Cat", "cat"), pairs=2)
    verdict = judge(task={"same_prompt": twins})

    assert verdict.code == "sanity.prompts-equal"
    assert verdict.headline == (
        "sanity: photos/classification: classes 'Cat' and 'cat' read alike (and 1 more such "
        "pairs): after tokenization their prompts are the same in 2 templates"
    )
    assert "(photos/classnames.txt:1 and 4)" in verdict.next_step


def test_all_classes_alike_are_said_so() -> None:
    verdict = judge(
        task={
            "reading": replace(READING, distinct=2),
            "same_prompt": Twins(first=0, second=1, names=("cat", "dog"), pairs=9),
        }
    )

    assert "photos/classification: all 10 classes read alike: " in verdict.headline


def test_a_tokenizer_without_end_token_says_what_is_pooled_instead() -> None:
    verdict = judge(
        reading=replace(
            READING, without_end=2, pooled_elsewhere=2, example="a cat", pooled="<s>", position=0
        )
    )

    assert verdict.code == "sanity.end-token-absent"
    assert verdict.headline == (
        "sanity: clip-tiny: 2 of 20 texts of photos/train have no end token '</s>': the text tower "
        "pools '<s>' at position 0 of 'a cat' instead"
    )


def test_another_pooled_token_is_named() -> None:
    verdict = judge(
        task={
            "reading": replace(
                READING, pooled_elsewhere=5, example="a <domain> cat", pooled="<domain>", position=2
            )
        }
    )

    assert verdict.code == "sanity.pooled-token"
    assert verdict.headline == (
        "sanity: clip-tiny: the text tower pools '<domain>' at position 2 of 'a <domain> cat', not "
        "the end token '</s>' behind it (5 of 20 texts of photos/test)"
    )


@pytest.mark.parametrize(("tower", "field"), [("image", "images"), ("text", "texts")])
def test_embeddings_that_are_not_finite_fail(tower: str, field: str) -> None:
    verdict = judge(**{f"nonfinite_{field}": 1})  # type: ignore[arg-type]

    assert verdict.code == "sanity.embeddings-nonfinite"
    assert f"FP16 gives NaN or Inf for 1 of 2 {tower}s of photos/train" in verdict.headline


@pytest.mark.parametrize(("commonest", "red"), [(1, False), (10, False), (11, True), (20, True)])
def test_captions_that_mostly_read_alike_fail(commonest: int, red: bool) -> None:
    captions = replace(CAPTIONS, reading=replace(READING, commonest=commonest))
    verdict = judge(tasks=(captions,))

    assert (verdict.code == "sanity.captions-equal") is red
    assert verdict.passed is not red
    if red:
        assert verdict.headline == (
            f"sanity: coco/retrieval: {commonest} of 20 captions read alike: none of them can find "
            "its image"
        )


@pytest.mark.parametrize(("captions", "red"), [(1, False), (2, True)])
def test_one_caption_alone_is_like_no_other(captions: int, red: bool) -> None:
    reading = replace(READING, count=captions, commonest=captions)

    assert judge(tasks=(replace(CAPTIONS, reading=reading),)).passed is not red


def test_a_task_of_one_class_is_named_as_one() -> None:
    told = judge(tasks=(replace(TASK, classes=1),)).brief

    assert told == "a pair runs, prompts of 1 class differ, FP16 beats chance in 1 of 1 task"


def test_the_first_cause_leads_and_the_others_are_evidence() -> None:
    verdict = judge(
        task={
            "without_class": ((0, "a {}"), (1, "the {}")),
            "same_prompt": Twins(first=0, second=1, names=("cat", "dog"), pairs=9),
        }
    )

    assert verdict.code == "sanity.template-without-class"
    assert [line.partition(": ")[0] for line in verdict.evidence] == ["FAIL", "FAIL"]
    assert "photos/templates.txt:3" in verdict.evidence[0]


def test_a_data_set_of_a_package_is_named_by_its_number() -> None:
    verdict = judge_sanity(
        replace(SANITY, tasks=(replace(TASK, without_class=((1, "a {}"),)),)), model="clip-tiny"
    )

    assert verdict.headline.startswith("sanity: photos/test, template 2: template 'a {}' has no")


def test_classes_of_one_embedding_are_named() -> None:
    twins = Twins(first=2, second=3, names=("bird", "cat"), pairs=1)
    some = judge(task={"same_embedding": twins})
    every = judge(task={"same_embedding": replace(twins, pairs=9)})

    assert some.code == every.code == "sanity.class-embeddings-equal"
    assert some.headline == (
        "sanity: clip-tiny: FP16 embeds classes 'bird' and 'cat' of photos/test alike, though "
        "their prompts differ"
    )
    assert "alike and all others too, though" in every.headline


def test_images_of_one_embedding_fail() -> None:
    verdict = judge(task={"images": 20, "images_alike": 20})

    assert verdict.code == "sanity.images-alike"
    assert "FP16 embeds 20 different images of photos/test alike" in verdict.headline


def test_images_that_are_not_finite_fail() -> None:
    verdict = judge(task={"nonfinite": 3, "images": 5})

    assert verdict.code == "sanity.embeddings-nonfinite"
    assert verdict.headline == (
        "sanity: clip-tiny: FP16 gives NaN or Inf for 3 of 5 images of photos/test"
    )


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({"samples": 700, "right": 70, "whole": True}, "sanity.fp16-at-chance"),
        ({"samples": 320, "right": 12, "whole": False}, "sanity.fp16-at-chance"),
        ({"samples": 20, "right": 3, "whole": False}, ""),
        ({"samples": 700, "right": 92, "whole": True}, ""),
    ],
)
def test_answers_at_chance_fail_where_they_show_it(answers: dict[str, Any], code: str) -> None:
    verdict = judge(task={"answers": replace(ANSWERS, **answers)})

    assert verdict.code == code
    assert (verdict.gate, verdict.passed) == ("sanity", not code)
    if code:
        assert verdict.headline.startswith("sanity: photos/classification: FP16 is ")


def test_what_a_part_leaves_open_is_left_to_the_gates_of_the_task() -> None:
    verdict = judge(task={"answers": replace(ANSWERS, samples=20, right=3)})

    assert verdict.passed
    assert verdict.headline.endswith("FP16 beats chance in 1 of 2 tasks")
    assert verdict.evidence[0].endswith("chance gives 2.0; the gates of the task decide")


def test_faults_of_the_files_lead_and_doubts_are_notes() -> None:
    fault = Fault(finding="image-size", text="it makes 224, the tower takes 32", fix="set 32")
    doubt = Fault(finding="normalization", text="other mean", fix="compare", certain=False)
    red, green = judge(faults=(doubt, fault), pairs=0), judge(faults=(doubt,))

    assert (red.status, red.code) == (Status.FAIL, "sanity.image-size")
    assert red.headline == "sanity: clip-tiny: it makes 224, the tower takes 32"
    assert red.next_step == "set 32"
    assert red.cause == "files of the checkpoint, its tokenizer or the data do not fit together"
    assert (red.brief, red.gate) == ("", "sanity")
    assert green.passed
    assert green.evidence[-1] == "note: other mean: compare"


@pytest.mark.parametrize(
    ("low", "high", "red"),
    [
        (-1.8, 2.2, False),
        (-20, 20, False),
        (-20.1, 1, True),
        (-2, 980.5, True),
        (-150, 0, True),
    ],
)
def test_pixels_that_were_never_scaled_fail(low: float, high: float, red: bool) -> None:
    verdict = judge(lowest_pixel=low, highest_pixel=high)

    assert (verdict.code == "sanity.pixel-range") is red
    if red:
        assert verdict.headline == (
            f"sanity: clip-tiny: pixel values of photos/train reach from {low:.4g} to {high:.4g} "
            "after the image processor: no model is trained on that"
        )


def test_fp16_that_was_rounded_before_is_red_until_its_score_is_known() -> None:
    found = replace(SANITY, faults=(faults.fp16_rounded(tower="vision", layers=8, most=125),))

    verdict = judge_sanity(found, model="clip")

    assert (verdict.status, verdict.code) == (Status.FAIL, "sanity.fp16-rounded")
    assert "each of 8 layers of its vision tower that were looked at has at most 125 different" in (
        verdict.headline
    )
    assert "published" in verdict.next_step
    assert judge_sanity(leave_rounded(found), model="clip").passed


def test_an_empty_file_of_templates_is_named() -> None:
    places = {"photos/test": replace(PLACES, templates=(), empty_templates="photos/templates.txt")}
    verdict = judge_sanity(SANITY, model="clip-tiny", places=places)

    assert verdict.code == "sanity.templates-empty"
    assert verdict.headline == "sanity: photos/templates.txt is there and holds no template"
    assert verdict.brief == "a templates file without a template"
    assert verdict.cause
    assert verdict.next_step


TWINS = Twins(first=0, second=3, names=("Cat", "cat"), pairs=1)


@pytest.mark.parametrize(
    ("code", "changes", "brief"),
    [
        ("pixel-range", {"highest_pixel": 255.0}, "pixel values were never scaled to 1"),
        (
            "embeddings-nonfinite",
            {"nonfinite_images": 1},
            "FP16 gives NaN or Inf for 1 of 2 images",
        ),
        (
            "end-token-absent",
            {"reading": replace(READING, without_end=2, pooled="<s>")},
            "no end token: '<s>' is pooled instead",
        ),
        (
            "pooled-token",
            {"reading": replace(READING, pooled_elsewhere=1, pooled="<x>")},
            "'<x>' is pooled, not the end token",
        ),
        (
            "template-without-class",
            {"task": {"without_class": ((0, "a {}"),)}},
            "template 'a {}' has no {c}",
        ),
        ("class-name-twice", {"task": {"same_name": TWINS}}, "class name 'Cat' stands twice"),
        (
            "prompts-equal",
            {"task": {"same_prompt": TWINS}},
            "'Cat' and 'cat' have one prompt",
        ),
        (
            "captions-equal",
            {"tasks": (replace(CAPTIONS, reading=replace(READING, commonest=11)),)},
            "11 of 20 captions read alike",
        ),
        (
            "embeddings-nonfinite",
            {"task": {"nonfinite": 3, "images": 5}},
            "FP16 gives NaN or Inf for 3 of 5 images",
        ),
        ("images-alike", {"task": {"images_alike": 2}}, "different images have one embedding"),
        (
            "class-embeddings-equal",
            {"task": {"same_embedding": TWINS}},
            "classes with different prompts have one embedding",
        ),
    ],
)
def test_every_finding_has_its_code_a_brief_a_cause_and_a_next_step(
    code: str, changes: dict[str, Any], brief: str
) -> None:
    verdict = judge(**changes)

    assert (verdict.gate, verdict.code, verdict.brief) == ("sanity", f"sanity.{code}", brief)
    assert verdict.status is Status.FAIL
    assert verdict.cause
    assert verdict.next_step
    assert verdict.headline.startswith("sanity: ")


def test_figures_count_what_was_looked_at() -> None:
    assert judge().figures == {"pairs": 2, "tasks": 2, "texts": 42}


def test_doubts_are_told_where_they_are_asked_for() -> None:
    """The doctor asks: nothing ran there that could have decided it."""
    doubt = Fault(finding="normalization", text="other mean", fix="compare", certain=False)
    sanity = replace(SANITY, faults=(doubt,))

    (told,) = list_faults(sanity, model="clip-tiny", places={}, doubts=True)

    assert list_faults(sanity, model="clip-tiny", places={}) == ()
    assert (told.status, told.code) == (Status.INCONCLUSIVE, "sanity.normalization")
    assert (told.headline, told.next_step) == ("sanity: clip-tiny: other mean", "compare")


def test_what_the_files_say_is_not_said_again() -> None:
    fault = Fault(finding="pixel-range", text="do_rescale is false", fix="set it to true")

    verdict = judge(faults=(fault,), highest_pixel=255.0, nonfinite_texts=1)

    assert verdict.headline == "sanity: clip-tiny: do_rescale is false"
    assert [line.partition(": FP16")[0] for line in verdict.evidence] == ["FAIL: sanity: clip-tiny"]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("a.txt:1", "a.txt:4", "a.txt:1 and 4: class name"),
        ("C:/a.txt:1", "C:/a.txt:4", "C:/a.txt:1 and 4: class name"),
        ("a.txt:1", "b.txt:4", "a.txt:1 and b.txt:4: class name"),
        ("aa.txt:1", "a.txt:4", "aa.txt:1 and a.txt:4: class name"),
        ("line 1", "line 4", "line 1 and line 4: class name"),
    ],
)
def test_two_places_of_one_file_name_it_once(first: str, second: str, words: str) -> None:
    places = {"photos/test": TextPlaces(class_names=(first, second))}
    twins = replace(TWINS, second=1)
    sanity = replace(SANITY, tasks=(replace(TASK, same_name=twins),))

    assert f"sanity: {words}" in judge_sanity(sanity, model="m", places=places).headline


def test_a_place_that_nobody_knows_is_a_number() -> None:
    places = {"photos/test": TextPlaces(class_names=("a.txt:1",))}
    twins = replace(TWINS, second=1)
    sanity = replace(SANITY, tasks=(replace(TASK, same_name=twins),))

    headline = judge_sanity(sanity, model="m", places=places).headline
    assert "sanity: a.txt:1 and photos/test, class 1: " in headline


def test_texts_that_all_read_alike_fail_where_no_task_says_so() -> None:
    alike = replace(READING, count=2, given=2, distinct=1)

    verdict = judge(reading=alike, towers=("text",), tasks=())

    assert verdict.code == "sanity.texts-alike"
    assert "2 different texts of photos/train read alike" in verdict.headline
    assert judge(reading=alike, tasks=()).passed


def test_a_tower_without_an_end_token_reads_its_texts_whole() -> None:
    reading = replace(READING, count=2, distinct=2, pools_end=False)

    assert "24 texts read whole" in judge(reading=reading, task={"reading": reading}).headline
