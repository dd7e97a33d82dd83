"""The samples that flipped, by class, and which answers took the place of which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pytest_quantgate.report.facts import task_name
from pytest_quantgate.report.markup import Child, Html, join, tag
from pytest_quantgate.report.model import Confusion, Flip, TaskFacts
from pytest_quantgate.report.parts import WORST, row, table
from pytest_quantgate.text.words import count

#: Fewer flips than this are read without a filter.
FILTER_FROM = 6

_BY = (
    "What changed most comes first. By: how far the right answer was above the best wrong one, or "
    "below it, in cosine similarity."
)


def render_flips(task: TaskFacts) -> Html:
    """Return what flipped in a task, lost before won: pictures first, the rest by name."""
    groups = group_flips(task.flips)
    places = {name: place for place, name in enumerate(groups)}
    order = sorted(task.flips, key=lambda flip: (not flip.right_to_wrong, places[flip.label]))
    pictured = [flip for flip in order if flip.image]
    rest = len(task.flips) - len(pictured)
    total = task.right_to_wrong + task.wrong_to_right
    cut = f", the first of {total - len(pictured)}" if len(task.flips) < total else ""
    title = f"{task_name(task)}: {task.right_to_wrong} lost, {task.wrong_to_right} won"
    return tag(
        "div",
        tag("h4", title),
        tag("p", _BY, class_="note") if _has_margins(task) else None,
        _render_confusions(task),
        _render_filter(groups, of=task_name(task)) if len(task.flips) >= FILTER_FROM else None,
        tag(
            "ul",
            (_render_card(flip, task=task) for flip in pictured),
            class_="flips",
            tabindex=0,
            role="list",
            aria_label=title,
        )
        if pictured
        else None,
        tag(
            "details",
            tag("summary", f"{rest} {'more ' if pictured else ''}by name{cut}"),
            table(
                ["sample", *([] if task.classes else ["asked"]), "FP16", "quantized"],
                [_render_group(name, flips, task=task) for name, flips in groups.items()],
                caption=f"Flips of {task_name(task)}",
                quiet=True,
                grouped=True,
            ),
        )
        if rest
        else None,
        class_="flipped",
    )


def _has_margins(task: TaskFacts) -> bool:
    return any(flip.fp16_margin is not None for flip in task.flips)


def group_flips(flips: Sequence[Flip]) -> dict[str, list[Flip]]:
    """Return flips by their class, the one that lost most first, inside lost before won.

    A task without classes has one group, of the name "".
    """
    groups: dict[str, list[Flip]] = {}
    for flip in sorted(flips, key=lambda flip: not flip.right_to_wrong):
        groups.setdefault(flip.label, []).append(flip)
    return dict(sorted(groups.items(), key=lambda item: (*(-n for n in _count(item[1])), item[0])))


def _count(flips: Sequence[Flip]) -> tuple[int, int]:
    lost = sum(flip.right_to_wrong for flip in flips)
    return lost, len(flips) - lost


def _name_group(name: str, flips: Sequence[Flip]) -> str:
    lost, won = _count(flips)
    return f"{name}: {', '.join(f'{n} {w}' for n, w in ((lost, 'lost'), (won, 'won')) if n)}"


def _render_confusions(task: TaskFacts) -> Html | None:
    """Return which answers took the place of which more than once; single ones stand below."""
    often = [pair for pair in task.confusions if pair.samples > 1]
    if not often:
        return None
    heads = ["FP16 says \N{RIGHTWARDS ARROW} quantized says", "samples", "lost", "won"]
    caption = f"Answers of {task_name(task)} that changed most often, right ones or not"
    rows = [_confusion_row(pair) for pair in often]
    more = count(len(rows) - WORST, "more pair")
    return join(
        table(heads, rows[:WORST], caption=caption, numeric=True),
        tag(
            "details",
            tag("summary", f"{more} of answers"),
            table(heads, rows[WORST:], caption=f"{caption}: {more}", numeric=True),
        )
        if len(rows) > WORST
        else None,
    )


def _confusion_row(pair: Confusion) -> Html:
    name = f"{pair.fp16_answer} \N{RIGHTWARDS ARROW} {pair.quantized_answer}"
    return row(name, pair.samples, pair.lost, pair.won)


def _render_filter(groups: dict[str, list[Flip]], *, of: str) -> Html:
    """Return what sifts the flips of a task; the page's script shows it, and does the work."""
    classes = [tag("option", _name_group(name, flips), value=name)
               for name, flips in groups.items() if name]  # fmt: skip
    sides = Counter(_side(flip) for flips in groups.values() for flip in flips)
    return tag(
        "fieldset",
        tag("legend", f"Filter the flips of {of}", class_="hidden"),
        tag("label", "Find ", tag("input", type="search", name="words")),
        tag(
            "label",
            "Show ",
            tag(
                "select",
                tag("option", "lost and won", value=""),
                (tag("option", f"{side}: {sides[side]}", value=side) for side in sorted(sides)),
                name="side",
            ),
        ),
        tag("label", "Class ", tag("select", tag("option", "all", value=""), classes, name="class"))
        if classes
        else None,
        tag("output", "", aria_live="polite"),
        class_="filter",
        hidden=True,
    )


def _render_group(name: str, flips: Sequence[Flip], *, task: TaskFacts) -> Html:
    """Return the flips of a class that have no picture, as a group of rows below its name."""
    named = [flip for flip in flips if not flip.image]
    if not named:
        return Html()
    rows = [
        row(
            flip.id,
            *([] if task.classes else [flip.text]),
            _describe_answer(flip, task=task, fp16=True),
            _describe_answer(flip, task=task, fp16=False),
            class_=_side(flip),
        )
        for flip in named
    ]
    head = tag("th", _name_group(name, named), scope="rowgroup", colspan=3, class_="group")
    return tag("tbody", tag("tr", head) if name else None, rows, data_class=name)


def _side(flip: Flip) -> str:
    return "lost" if flip.right_to_wrong else "won"


def _render_card(flip: Flip, *, task: TaskFacts) -> Html:
    said: list[Child] = [
        tag("p", tag("span", who, class_="who"), _describe_answer(flip, task=task, fp16=fp16))
        for who, fp16 in (("FP16", True), ("quantized", False))
    ]
    return tag(
        "li",
        tag("img", src=flip.image, alt=f"sample {flip.id}"),
        tag("p", flip.text or flip.label, class_="label") if flip.text or flip.label else None,
        said,
        tag("p", flip.id, class_="id"),
        class_=_side(flip),
        data_class=flip.label,
    )


def _describe_answer(flip: Flip, *, task: TaskFacts, fp16: bool) -> Html:
    """Return what a variant answered; of a recall, whether it was found, and what came first."""
    right = flip.right_to_wrong is fp16
    score = flip.fp16_score if fp16 else flip.quantized_score
    margin = flip.fp16_margin if fp16 else flip.quantized_margin
    by = "" if margin is None else f" by {abs(margin):.4f}"
    answer = flip.fp16_answer if fp16 else flip.quantized_answer
    sign = "\N{HEAVY CHECK MARK}" if right else "\N{HEAVY MULTIPLICATION X}"
    if not task.classes and "retrieval_recall@" in task.metric:
        first = task.metric.rpartition("@")[2]
        answer = f"{'in' if right else 'not in'} the first {first}{by}; on top: {answer}"
        by = ""
    if score is not None:
        return tag("span", f"{score:.3f}; on top: {answer}", class_="answer")
    return tag(
        "span",
        tag("span", sign, class_="right" if right else "wrong", aria_hidden="true"),
        tag("span", "right: " if right else "wrong: ", class_="hidden"),
        answer + by,
        class_="answer",
    )
