"""The sanity gate: what must be true before any limit means something. It has no limit to set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.gates.chance import EARLY_ALPHA, is_above_chance, is_left_open, judge_chance
from pytest_quantgate.gates.deciding import fail, let_pass
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.text.words import count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_quantgate.evidence.audit import TowerName
    from pytest_quantgate.evidence.sanity import (
        Answers,
        Fault,
        Sanity,
        TaskSanity,
        TextPlaces,
        TextReading,
        Twins,
    )

GATE = "sanity"
_fail = partial(fail, GATE)
_pass = partial(let_pass, GATE)


@dataclass(frozen=True, kw_only=True)
class SanityGate(GateSection):
    """The model and its data make sense; no limits to set, and every suite has it."""

    kind = GATE


#: A normalised pixel is a few standard deviations from the mean; one that was never divided by 255
#: is hundreds.
LARGEST_PIXEL = 20.0

#: What a model of one tower takes.
_SAMPLES: Mapping[TowerName, str] = {"vision": "image", "text": "text"}


def judge_sanity(
    sanity: Sanity, *, model: str, places: Mapping[str, TextPlaces] | None = None
) -> Verdict:
    """Return whether a model and its data can mean anything.

    `model` is the model's name for people, `places` where the texts of a data set (by its name)
    stand. The first cause leads: what follows from it is evidence.
    """
    found = list_faults(sanity, model=model, places=places or {})
    if found:
        return combine(gate=GATE, parts=found)
    tasks = [task for task in sanity.tasks if task.answers is not None]
    above = sum(not is_left_open(task.answers) for task in tasks if task.answers is not None)
    classes = sum(task.classes for task in sanity.tasks)
    texts = sanity.reading.count + sum(task.reading.count for task in sanity.tasks)
    told = f", prompts of {count(classes, 'class', 'classes')} differ" if classes else ""
    told += f", FP16 beats chance in {above} of {count(len(tasks), 'task')}" if tasks else ""
    what = "pair" if len(sanity.towers) > 1 else _SAMPLES[sanity.towers[0]]
    seen = f" ({count(sanity.images, 'image')})" if 0 < sanity.images < sanity.pairs else ""
    pairs = f"{count(sanity.pairs, what)}{seen} of {sanity.data}"
    read = f", the end token of {count(texts, 'text')} is pooled" if texts else ""
    if texts and not sanity.reading.pools_end:
        read = f", {count(texts, 'text')} read whole"
    return _pass(
        f"{pairs} encoded in FP16{read}{told}",
        brief=f"{'an' if what == 'image' else 'a'} {what} runs{told}",
        evidence=(
            *dict.fromkeys(_describe_answers(task, task.answers) for task in tasks if task.answers),
            *(f"note: {fault.text}: {fault.fix}" for fault in sanity.faults),
        ),
        figures={"pairs": sanity.pairs, "tasks": len(sanity.tasks), "texts": texts},
    )


def list_faults(
    sanity: Sanity, *, model: str, places: Mapping[str, TextPlaces], doubts: bool = False
) -> tuple[Verdict, ...]:
    """Return a verdict for everything that is wrong, causes before what follows from them.

    With `doubts`, what may be meant so is there too, as INCONCLUSIVE.
    """
    from pytest_quantgate.evidence.sanity import TextPlaces

    of_files = [
        _judge_fault(fault, model=model) for fault in sanity.faults if fault.certain or doubts
    ]
    found = [*_judge_pairs(sanity, model=model)]
    for task in sanity.tasks:
        found += _judge_texts(task, model=model, places=places.get(task.data, TextPlaces()))
        found += _judge_images(task, model=model)
        if task.answers is not None:
            found += _judge_answers(task, task.answers, model=model)
    said = {verdict.code for verdict in of_files}
    return (*of_files, *(verdict for verdict in found if verdict.code not in said))


def _describe_answers(task: TaskSanity, answers: Answers) -> str:
    later = "; the gates of the task decide" if is_left_open(answers) else ""
    return (
        f"{task.task}: FP16 is right on {answers.right} of {count(answers.samples, 'sample')}, "
        f"{answers.classes} to choose from, chance gives "
        f"{answers.samples * answers.chance:.1f}{later}"
    )


def _judge_fault(fault: Fault, *, model: str) -> Verdict:
    verdict = _fail(
        fault.finding,
        f"{model}: {fault.text}",
        next_step=fault.fix,
        cause="files of the checkpoint, its tokenizer or the data do not fit together",
    )
    return verdict if fault.certain else replace(verdict, status=Status.INCONCLUSIVE)


def _judge_pairs(sanity: Sanity, *, model: str) -> Iterator[Verdict]:
    largest = max(abs(sanity.lowest_pixel), abs(sanity.highest_pixel))
    if largest > LARGEST_PIXEL:
        yield _fail(
            "pixel-range",
            f"{model}: pixel values of {sanity.data} reach from {sanity.lowest_pixel:.4g} to "
            f"{sanity.highest_pixel:.4g} after the image processor: no model is trained on that",
            brief="pixel values were never scaled to 1",
            cause="an image processor that does not divide by 255",
            next_step="set do_rescale and do_normalize in preprocessor_config.json to true",
        )
    for what, bad, of in (
        ("image", sanity.nonfinite_images, sanity.images),
        ("text", sanity.nonfinite_texts, sanity.pairs),
    ):
        if bad:
            yield _nonfinite(bad, of=count(of, what), data=sanity.data, model=model)
    yield from _judge_reading(sanity.reading, of=sanity.data, model=model)
    reading = sanity.reading
    alone = "vision" not in sanity.towers  # else its tasks say so
    if alone and reading.given > 1 and reading.distinct == 1:
        yield _fail(
            "texts-alike",
            f"{model}: {count(reading.given, 'different text')} of {sanity.data} read alike: its "
            f"tokenizer makes one row of ids of all of them",
            brief="different texts read alike",
            cause="the tokenizer of another model, which knows none of these words",
            next_step="save the tokenizer that the model was trained with beside it",
        )


def _judge_texts(task: TaskSanity, *, model: str, places: TextPlaces) -> Iterator[Verdict]:
    if places.empty_templates:
        yield _fail(
            "templates-empty",
            f"{places.empty_templates} is there and holds no template",
            brief="a templates file without a template",
            cause="an export that was cut off",
            next_step="write one template a line, such as `a photo of a {c}`, or delete the file",
        )
    for index, template in task.without_class:
        where = _place(places.templates, index, of=f"{task.data}, template {index + 1}")
        yield _fail(
            "template-without-class",
            f"{where}: template {template!r} has no {{c}}: every class gets the same prompt",
            brief=f"template {template!r:.35} has no {{c}}",
            cause="a template of another tool: `{}` or `{0}` is not filled, `{c}` is",
            next_step=f"write {{c}} where the class name belongs ({where})",
        )
    if task.same_name is not None:
        both = _both(task.same_name, places=places, data=task.data)
        yield _fail(
            "class-name-twice",
            f"{both}: class name {task.same_name.names[0]!r} stands twice"
            f"{_further(task.same_name)}: the two classes cannot be told apart",
            brief=f"class name {task.same_name.names[0]!r:.40} stands twice",
            cause="a line that was copied, or two classes that another word must tell apart",
            next_step=f"give each class a name of its own ({both})",
        )
    yield from _judge_reading(task.reading, of=task.data, model=model)
    if task.same_prompt is not None and task.same_name is None:
        twins = task.same_prompt
        everything = twins.pairs == task.classes - 1
        subject = (
            f"all {task.classes} classes read alike"
            if everything
            else f"classes {twins.names[0]!r} and {twins.names[1]!r} read alike{_further(twins)}"
        )
        yield _fail(
            "prompts-equal",
            f"{task.task}: {subject}: after tokenization their prompts are the same in "
            f"{count(task.templates, 'template')}",
            brief=f"{twins.names[0]!r:.20} and {twins.names[1]!r:.20} have one prompt",
            cause="words that the tokenizer does not know, or that it cuts off or lowercases",
            next_step="use the tokenizer that the model was trained with, or other class names "
            f"({_both(twins, places=places, data=task.data)})",
        )
    reading = task.reading
    if not task.classes and reading.count > 1 and 2 * reading.commonest > reading.count:
        yield _fail(
            "captions-equal",
            f"{task.task}: {reading.commonest} of {reading.count} captions read alike: none of "
            f"them can find its image",
            brief=f"{reading.commonest} of {reading.count} captions read alike",
            cause="the captions of another export, or words that the tokenizer does not know",
            next_step="look at the captions of the data set, and at the tokenizer",
        )


def _judge_images(task: TaskSanity, *, model: str) -> Iterator[Verdict]:
    if task.nonfinite:
        yield _nonfinite(
            task.nonfinite, of=count(task.images, "image"), data=task.data, model=model
        )
    if task.images_alike:
        others = " and others" if 0 < task.images < task.images_alike else ""
        yield _fail(
            "images-alike",
            f"{model}: FP16 embeds {task.images_alike} different images of {task.data}{others} "
            f"alike",
            brief="different images have one embedding",
            cause="a vision tower without its weights, or pixels that the processor makes alike",
            next_step="compare preprocessor_config.json and the weights with the original's",
        )


def _judge_answers(task: TaskSanity, answers: Answers, *, model: str) -> Iterator[Verdict]:
    if task.same_embedding is not None:
        twins = task.same_embedding
        everything = twins.pairs == answers.classes - 1
        yield _fail(
            "class-embeddings-equal",
            f"{model}: FP16 embeds classes {twins.names[0]!r} and {twins.names[1]!r} of "
            f"{task.data} alike{' and all others too' if everything else _further(twins)}, though "
            f"their prompts differ",
            brief="classes with different prompts have one embedding",
            cause="a text tower without its weights, or one that pools a token before the text",
            next_step="compare the weights of the text tower with the original's",
        )
    is_open = is_left_open(answers)
    if answers.swapped or not (is_open or is_above_chance(answers, alpha=EARLY_ALPHA)):
        verdict = judge_chance(answers, gate=GATE, task=task.task)
        if not verdict.passed:
            yield verdict


def _judge_reading(reading: TextReading, *, of: str, model: str) -> Iterator[Verdict]:
    pooled = f"{reading.pooled!r} at position {reading.position}"
    if reading.without_end:
        yield _fail(
            "end-token-absent",
            f"{model}: {reading.without_end} of {count(reading.count, 'text')} of {of} have no "
            f"end token {reading.end_token!r}: the text tower pools {pooled} of "
            f"{reading.example!r} instead",
            brief=f"no end token: {reading.pooled!r:.20} is pooled instead",
            cause="the tokenizer appends no end token (post_processor in tokenizer.json)",
            next_step="save the tokenizer that the model was trained with beside it",
        )
    elif reading.pooled_elsewhere:
        yield _fail(
            "pooled-token",
            f"{model}: the text tower pools {pooled} of {reading.example!r}, not the end token "
            f"{reading.end_token!r} behind it ({reading.pooled_elsewhere} of "
            f"{count(reading.count, 'text')} of {of})",
            brief=f"{reading.pooled!r:.20} is pooled, not the end token",
            cause="text_config.eos_token_id in config.json is not the tokenizer's end token; 2 "
            "means that the largest id is pooled, which an added word changes",
            next_step="set text_config.eos_token_id to the id of the tokenizer's end token",
        )


def _nonfinite(bad: int, *, of: str, data: str, model: str) -> Verdict:
    return _fail(
        "embeddings-nonfinite",
        f"{model}: FP16 gives NaN or Inf for {bad} of {of} of {data}",
        brief=f"FP16 gives NaN or Inf for {bad} of {of}",
        cause="an overflow in FP16, or weights that are damaged",
        next_step="evaluate the FP16 model by itself before it is quantized",
    )


def _both(twins: Twins, *, places: TextPlaces, data: str) -> str:
    first, second = (
        _place(places.class_names, index, of=f"{data}, class {index}")
        for index in (twins.first, twins.second)
    )
    file, _, line = second.rpartition(":")
    return (
        f"{first} and {line}" if file and first.startswith(f"{file}:") else f"{first} and {second}"
    )


def _place(places: tuple[str, ...], index: int, *, of: str) -> str:
    return places[index] if index < len(places) else of


def _further(twins: Twins) -> str:
    return f" (and {twins.pairs - 1} more such pairs)" if twins.pairs > 1 else ""


def leave_rounded(sanity: Sanity) -> Sanity:
    """Return what is left where it is known, and judged, what FP16 scores: a model may have been
    trained in few bits."""
    kept = (fault for fault in sanity.faults if fault.finding != "fp16-rounded")
    return replace(sanity, faults=tuple(kept))


def judge(run: GateRun, gate: SanityGate) -> Judged:
    """Return whether the model and its data make sense."""
    from pytest_quantgate.gates.accuracy import AccuracyGate
    from pytest_quantgate.tasks.registry import locate_texts

    del gate  # it sets no limit
    sanity, datasets = run.sanity, run.suite.datasets
    places = {
        task.data: locate_texts(task.data, datasets=datasets, environ=run.environ)
        for task in sanity.tasks
    }
    if any(task.published is not None for task in run.suite.gates.all(AccuracyGate)):
        sanity = leave_rounded(sanity)
    return Judged(verdict=judge_sanity(sanity, model=run.model_name, places=places))


KIND = GateKind(
    section=SanityGate, help="the model and its data make sense, before any limit", judge=judge
)
