"""Several recipes side by side, as terminal text and an SVG plot. Pure: text out."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from pytest_quantgate.evidence.sweep import Candidate, Loss, Sweep
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.text.words import count, signed


def render_sweep(found: Sweep) -> Iterator[str]:
    """Yield a table with a row a recipe, what did not pass below it, and what to do next."""
    yield f"{found.suite}: {count(len(found.candidates), 'recipe')}"
    front = found.front
    cells = [("recipe", "verdict", "weights", "largest drop (pp)")]
    cells += [_cells(candidate, found) for candidate in found.candidates]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) for line in cells]
    yield f"    {rows[0]}".rstrip()
    for candidate, row in zip(found.candidates, rows[1:], strict=True):
        mark = "*" if candidate in front and len(found.candidates) > 1 else " "
        yield f"  {mark} {row}".rstrip()
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


def render_svg(found: Sweep) -> str:
    """Return the drop of each recipe over its size, with intervals, as one SVG document.

    Colours follow the reader's light or dark scheme; those that may ship are filled.
    """
    known = [
        (candidate, candidate.weights_bytes, candidate.worst)
        for candidate in found.candidates
        if candidate.weights_bytes is not None and candidate.worst is not None
    ]
    left, top, width, height = 70, 30, 520, 300
    largest = max([found.fp16_bytes or 1, *(size for _, size, _ in known)])
    ends = [end for _, _, loss in known for end in (loss.low_points, loss.high_points)]
    low, high = min([0.0, *ends]), max([1.0, *ends])

    def x(size: float) -> float:
        return left + width * size / largest

    def y(points: float) -> float:
        return top + height * (high - points) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 130} '
        f'{top + height + 50}" role="img" aria-label="Drop of each recipe over its size">',
        "<style>text{font:12px system-ui,sans-serif;fill:#1f2328}.axis{stroke:#8c959f}"
        ".bar{stroke:#0969da}.dot{stroke:#0969da;fill:none;stroke-width:2}.ships{fill:#0969da}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.bar,.dot{stroke:#4493f8}"
        ".ships{fill:#4493f8}}</style>",
        f'<text x="{left}" y="18">largest drop in points over the weights in MB; '
        f"filled: may ship</text>",
        f'<path class="axis" d="M{left} {top}V{top + height}M{left} {y(0):.1f}H{left + width}"/>',
    ]
    for points in (low, 0.0, high):
        label = signed(points)
        parts.append(
            f'<text x="{left - 6}" y="{y(points) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for share in (0.0, 0.5, 1.0):
        place = top + height + 20
        parts.append(
            f'<text x="{x(share * largest):.1f}" y="{place}" text-anchor="middle">'
            f"{share * largest / 1e6:.1f}</text>"
        )
    for candidate, size, loss in known:
        name = escape(candidate.recipe)
        ships = " ships" if candidate.status is Status.PASS else ""
        at, middle = x(size), y(loss.drop_points)
        parts.append(
            f"<g><title>{name}: {escape(candidate.sentence)}</title>"
            f'<path class="bar" d="M{at:.1f} {y(loss.low_points):.1f}V{y(loss.high_points):.1f}"/>'
            f'<circle class="dot{ships}" cx="{at:.1f}" cy="{middle:.1f}" r="4"/>'
            f'<text x="{at + 8:.1f}" y="{middle + 4:.1f}">{name}</text></g>'
        )
    return "\n".join([*parts, "</svg>", ""])
