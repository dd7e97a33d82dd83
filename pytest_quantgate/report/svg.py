"""Charts as SVG: axes, points, intervals, bars, lines. Pure: values in, markup out.

Lengths along a chart are percentages and heights pixels, so that a chart takes the width that there
is, on a phone, too, and its text stays as large as the text around it; no script draws anything.
Colours are CSS classes (`k-quantized`), so that a chart follows light, dark and print. Shape or
place always says what colour says, every mark says its numbers on hover, and each chart has a name
and a description for who does not see it. A table beside it holds the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pytest_quantgate.report.markup import Html, join, tag

Shape = Literal["circle", "dot", "ring", "diamond", "triangle", "square", "tick", "bar", "interval"]

#: Each shape around (0, 0), in pixels; a page holds them once.
_PATHS = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "dot": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "ring": "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0zM-4 0a4 4 0 1 1 8 0a4 4 0 1 1-8 0z",
    "diamond": "M0-5 5 0 0 5-5 0z",
    "triangle": "M0-5 5 4-5 4z",
    "square": "M-4-4h8v8h-8z",
    "tick": "M-1.5-9h3v18h-3z",
}

#: Pixels: of a row with its name above its marks, of a chart without rows, below and above it.
ROW, PLOT, FOOT, HEAD = 40, 190, 36, 30
_TRACK = 27

#: Of a chart that is a file of its own: its width in pixels, and its colours in light and dark.
ALONE = 760
_STYLE = (
    ".chart{color:#0b6e99}text{font:12px system-ui,sans-serif;fill:#4d5b69}.grid{stroke:#e6eaee}"
    ".zero{stroke:#4d5b69}use,rect{fill:currentColor}.interval{stroke:currentColor;stroke-width:2.5}"
    "@media(prefers-color-scheme:dark){.chart{color:#58c1ea}text{fill:#a9b6c2}.grid{stroke:#26313b}"
    ".zero{stroke:#a9b6c2}}"
)

#: What a chart leaves free on the right for labels, as a share of what its values span.
LABEL_ROOM = 0.2

#: Percent of the width that stay free on either side, so that a mark at the end is whole.
_EDGE = 2.0
_TICKS = 5
#: Longer names of rows do not fit on a phone; their marks say the whole name.
_NAME = 52


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The values along one side of a chart, from `low` to `high`.

    `log` is by powers of ten; `whole` labels whole numbers alone.
    """

    low: float
    high: float
    title: str = ""
    log: bool = False
    labelled: bool = True
    whole: bool = False

    def place(self, value: float) -> float:
        """Return where a value is, from 0 (at `low`) to 1; what lies outside is at the end."""
        low, high, at = (
            (math.log10(each) if self.log else each) for each in (self.low, self.high, value)
        )
        return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5

    def list_ticks(self) -> list[tuple[float, str]]:
        """Return round values inside the scale, each with its label."""
        if not self.labelled or self.high <= self.low:
            return []
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            return [(10.0**power, f"{10.0**power:g}") for power in range(first, last + 1)]
        rough = max((self.high - self.low) / _TICKS, 1.0 if self.whole else 0.0)
        base = 10.0 ** math.floor(math.log10(rough))
        step = next(base * times for times in (1, 2, 5, 10) if base * times >= rough * 0.999)
        digits = max(0, -math.floor(math.log10(step)))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [(n * step, f"{n * step + 0:.{digits}f}") for n in range(first, last + 1)]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One value: at `x`, in the row `y` or at the value `y`.

    A `bar` and an `interval` come from `end`. `series` is what it is of, a CSS class without `k-`;
    `text` is said on hover, `label` stands to the right of `x`.
    """

    x: float
    y: float
    shape: Shape
    series: str
    text: str = ""
    end: float | None = None
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of `rows`, or, with a scale `y`, of a plane; `joined` marks of a series are a line.

    `title` is its name and `description` what it shows, for who does not see it. `legend` gives
    the shape and the series behind each word.
    """

    title: str
    description: str
    x: Scale
    marks: Sequence[Mark]
    y: Scale | None = None
    rows: Sequence[str] = ()
    legend: Sequence[tuple[Shape, str, str]] = ()
    joined: bool = False

    @property
    def height(self) -> int:
        return HEAD + PLOT + FOOT if self.y is not None else ROW * len(self.rows) + FOOT


def draw(chart: Chart) -> Html:
    """Return a chart for a page that holds `draw_markers`, with its legend."""
    legend = [
        tag("li", tag("svg", _use(shape, x="8", y=8), class_=f"key k-{series}",
                      aria_hidden="true"), word)
        for shape, series, word in chart.legend
    ]  # fmt: skip
    return join(
        tag(
            "svg",
            *_draw_inside(chart),
            class_="chart",
            width="100%",
            height=chart.height,
            role="img",
        ),
        tag("ul", legend, class_="legend") if legend else None,
    )


def draw_alone(chart: Chart) -> str:
    """Return a chart as an SVG document of its own, without its legend."""
    size = {"width": ALONE, "height": chart.height}
    about = {"xmlns": "http://www.w3.org/2000/svg", "class_": "chart", "role": "img"}
    inside = (tag("style", Html(_STYLE)), _define_markers(), *_draw_inside(chart))
    return f"{tag('svg', *inside, **about, **size)}\n"


def draw_markers() -> Html:
    """Return the shapes that charts of a page refer to, not shown themselves."""
    return tag("svg", _define_markers(), class_="hidden", aria_hidden="true")


def _define_markers() -> Html:
    return tag("defs", (tag("path", id=f"m-{name}", d=path) for name, path in _PATHS.items()))


def _draw_inside(chart: Chart) -> Iterator[Html]:
    yield tag("title", chart.title)
    yield tag("desc", chart.description)
    yield from _draw_axes(chart)
    for row, name in enumerate(chart.rows):
        yield tag("text", _shorten(name), x="0", y=row * ROW + 13, class_="row")
    if chart.joined:
        yield from _draw_lines(chart)
    for series in dict.fromkeys(mark.series for mark in chart.marks):
        found = (_draw_mark(mark, chart) for mark in chart.marks if mark.series == series)
        yield tag("g", found, class_=f"k-{series}")


def _draw_axes(chart: Chart) -> Iterator[Html]:
    top, bottom = (HEAD if chart.y is not None else 0), chart.height - FOOT
    for value, label in chart.x.list_ticks():
        x = _across(chart.x, value)
        kind = "zero" if value == 0 else "grid"
        yield tag("line", x1=x, x2=x, y1=top, y2=bottom, class_=kind)
        yield tag("text", label, x=x, y=bottom + 15, text_anchor="middle")
    if chart.x.title:
        yield tag("text", chart.x.title, x="50%", y=bottom + 31, text_anchor="middle")
    if chart.y is None:
        return
    yield tag("text", chart.y.title, x="0", y=10)
    for value, label in chart.y.list_ticks():
        y = _down(chart, value)
        kind = "zero" if value == 0 else "grid"
        yield tag("line", x1="0", x2="100%", y1=y, y2=y, class_=kind)
        yield tag("text", label, x="0", y=_px(float(y) - 3))


def _draw_lines(chart: Chart) -> Iterator[Html]:
    for series in dict.fromkeys(mark.series for mark in chart.marks):
        found = [mark for mark in chart.marks if mark.series == series]
        lines = (
            tag("line", x1=_across(chart.x, a.x), y1=_down(chart, a.y),
                x2=_across(chart.x, b.x), y2=_down(chart, b.y))
            for a, b in pairwise(found)
        )  # fmt: skip
        yield tag("g", lines, class_=f"k-{series} line")


def _draw_mark(mark: Mark, chart: Chart) -> Html:
    x, y = _across(chart.x, mark.x), _down(chart, mark.y)
    told = tag("title", mark.text) if mark.text else None
    label = tag("text", mark.label, x=x, y=_px(float(y) + 4), dx=9) if mark.label else None
    if mark.end is None:
        return join(_use(mark.shape, told, x=x, y=y), label)
    end = _across(chart.x, mark.end)
    if mark.shape == "interval":
        return join(tag("line", told, x1=x, x2=end, y1=y, y2=y, class_="interval"), label)
    low, high = sorted((_share(chart.x, mark.x), _share(chart.x, mark.end)))
    width = f"{max(high - low, 0.2):.2f}%"
    bar = tag("rect", told, x=f"{low:.2f}%", y=_px(float(y) - 6), width=width, height=12)
    return join(bar, label)


def _use(shape: Shape, told: Html | None = None, *, x: str, y: str | int) -> Html:
    return tag("use", told, href=f"#m-{shape}", x=x, y=y)


def _share(scale: Scale, value: float) -> float:
    return _EDGE + (100 - 2 * _EDGE) * scale.place(value)


def _across(scale: Scale, value: float) -> str:
    return f"{_share(scale, value):.2f}%"


def _down(chart: Chart, value: float) -> str:
    if chart.y is None:
        return _px(value * ROW + _TRACK)
    return _px(HEAD + PLOT * (1 - chart.y.place(value)))


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _shorten(name: str) -> str:
    if len(name) <= _NAME:
        return name
    return f"{name[: _NAME // 2 - 1]}\N{HORIZONTAL ELLIPSIS}{name[-_NAME // 2 :]}"
