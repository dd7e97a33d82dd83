"""Several recipes side by side, as terminal text and a chart. Pure: text out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_quantgate.evidence.sweep import Candidate, Loss, Sweep
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.svg import LABEL_ROOM, Chart, Mark, Scale, Shape
from pytest_quantgate.text.tables import align
from pytest_quantgate.text.words import count, signed


def render_sweep(found: Sweep) -> Iterator[str]:
    """Yield a table with a row a recipe, what did not pass below it, and what to do next."""
    yield f"{found.suite}: {count(len(found.candidates), 'recipe')}"
    front = found.front
    cells = [("recipe", "verdict", "weights", "largest drop (pp)")]
    cells += [_cells(candidate, found) for candidate in found.candidates]
    heads, *rows = align(cells)
    yield f"    {heads}"
    for candidate, row in zip(found.candidates, rows, strict=True):
        mark = "*" if candidate in front and len(found.candidates) > 1 else " "
        yield f"  {mark} {row}"
        for gate, brief in candidate.red:
            yield f"        {gate}: {brief}"
    yield ""
    if front and len(found.candidates) > 1:
        yield "  * no other recipe is as small and loses as little"
    if found.left_out:
        yield f"  not judged in a sweep: {', '.join(found.left_out)} (a baseline, or times)"
    yield f"  {_say_choice(found)}"


def _cells(candidate: Candidate, found: Sweep) -> tuple[str, str, str, str]:
    verdict = candidate.sentence.partition(":")[0]
    return candidate.recipe, verdict, _size(candidate, found), _drop(candidate.worst)


def _size(candidate: Candidate, found: Sweep) -> str:
    if candidate.weights_bytes is None:
        return "-"
    size = f"{candidate.weights_bytes / 1e6:.1f} MB"
    return f"{candidate.weights_bytes / found.fp16_bytes:.2f}x {size}" if found.fp16_bytes else size


def _drop(loss: Loss | None) -> str:
    if loss is None:
        return "-"
    ends = f"[{signed(loss.low_points)}, {signed(loss.high_points)}]"
    return f"{signed(loss.drop_points)} {ends}"


def _say_choice(found: Sweep) -> str:
    choice = found.choice
    if choice is None:
        return (
            "none may ship; next: quantgate sensitivity says which layers cost what, and what to "
            "exclude"
        )
    said = f"smallest that may ship: {choice.recipe}"
    tried = len(found.candidates)
    if tried == 1:
        return said
    return (
        f"{said}; next: set quantize.recipe to it and run the suite on samples that were not seen "
        f"here: the best of {tried} passes more easily than one"
    )


def draw_sweep(found: Sweep) -> Chart:
    """Return the drop of each recipe by its size, with intervals; a full dot may ship."""
    known = [
        (candidate, candidate.weights_bytes / 1e6, candidate.worst)
        for candidate in found.candidates
        if candidate.weights_bytes is not None and candidate.worst is not None
    ]
    largest = max([(found.fp16_bytes or 1) / 1e6, *(size for _, size, _ in known)])
    ends = [end for _, _, loss in known for end in (loss.low_points, loss.high_points)]
    low, high = min([0.0, *ends]), max([1.0, *ends])
    marks: list[Mark] = []
    for candidate, size, loss in known:
        about: dict[str, Any] = {"y": size, "series": "quantized"}
        about["text"] = f"{candidate.recipe}: {candidate.sentence}"
        shape: Shape = "circle" if candidate.status is Status.PASS else "ring"
        marks += [
            Mark(
                x=loss.high_points,
                end=loss.low_points,
                shape="interval",
                **about,
                label=candidate.recipe,
            ),
            Mark(x=loss.drop_points, shape=shape, **about),
        ]
    return Chart(
        title="Drop of each recipe by its size",
        description="Largest drop in points across, weights in MB upwards; a full dot may ship",
        x=Scale(
            low=low,
            high=high + LABEL_ROOM * (high - low),
            title="largest drop, points; a full dot may ship",
        ),
        y=Scale(low=0.0, high=largest, title="weights, MB"),
        marks=marks,
    )
