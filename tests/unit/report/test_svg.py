"""Charts as markup: where marks stand, what axes say, and that nothing breaks out."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.report.svg import Chart, Mark, Scale, draw, draw_markers

NUMBERS = st.floats(-1e3, 1e3)


@given(low=NUMBERS, span=st.floats(1e-2, 1e4), share=st.floats(0, 1))
def test_places_keep_the_order_of_values_and_ticks_lie_inside(
    low: float, span: float, share: float
) -> None:
    scale = Scale(low=low, high=low + span)
    value = low + share * span

    assert 0 <= scale.place(low) <= scale.place(value) <= scale.place(low + span) <= 1
    ticks = scale.list_ticks()
    assert len(ticks) <= 12
    assert all(low - span * 1e-6 <= at <= low + span * (1 + 1e-6) for at, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("scale", "labels"),
    [
        (Scale(low=-1, high=4), ["-1", "0", "1", "2", "3", "4"]),
        (Scale(low=77.1, high=78.2), ["77.5", "78.0"]),
        (Scale(low=1, high=3, whole=True), ["1", "2", "3"]),
        (Scale(low=0.01, high=100, log=True), ["0.01", "0.1", "1", "10", "100"]),
        (Scale(low=0, high=5, labelled=False), []),
        (Scale(low=2, high=2), []),
    ],
)
def test_ticks_are_round(scale: Scale, labels: list[str]) -> None:
    assert [label for _, label in scale.list_ticks()] == labels


def parse(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(f"<p>{draw_markers()}{draw(chart)}</p>")


def test_every_mark_is_drawn_where_its_value_is_and_says_its_text() -> None:
    hostile = '"><script>alert(1)</script>\x1b'
    marks = [
        Mark(x=0, y=0, shape="interval", end=10, series="quantized", text="from 0 to 10"),
        Mark(x=5, y=0, shape="diamond", series="quantized", text=hostile),
        Mark(x=10, y=1, shape="tick", series="limit"),
        Mark(x=2, y=1, shape="bar", end=0, series="fp16"),
    ]
    root = parse(
        Chart(
            title=hostile,
            description="d",
            x=Scale(low=0, high=10),
            marks=marks,
            rows=["a", hostile * 4],
            legend=[("tick", "limit", hostile)],
        )
    )

    uses = [use for use in root.iter("use") if use.get("y") != "8"]
    assert [(use.get("href"), use.get("x")) for use in uses] == [
        ("#m-diamond", "50.00%"),
        ("#m-tick", "98.00%"),
    ]
    (interval,) = (line for line in root.iter("line") if line.get("class") == "interval")
    assert (interval.get("x1"), interval.get("x2")) == ("2.00%", "98.00%")
    (bar,) = root.iter("rect")
    assert (bar.get("x"), bar.get("width")) == ("2.00%", "19.20%")
    assert not list(root.iter("script"))
    assert "from 0 to 10" in {title.text for title in root.iter("title")}


def test_a_joined_plane_has_a_line_between_neighbours() -> None:
    values = (3.0, 1.0, 2.0)
    root = parse(
        Chart(
            title="t",
            description="d",
            x=Scale(low=1, high=3),
            y=Scale(low=1, high=3),
            marks=[
                Mark(x=n, y=value, shape="circle", series="quantized")
                for n, value in enumerate(values, start=1)
            ],
            joined=True,
        )
    )

    lines = [g for g in root.iter("g") if g.get("class") == "k-quantized line"]
    assert len(lines[0]) == 2
    heights = [float(use.get("y", "nan")) for use in root.iter("use")]
    assert heights[0] < heights[2] < heights[1]


def test_what_no_axis_holds_is_no_error() -> None:
    chart = Chart(
        title="t",
        description="d",
        x=Scale(low=5, high=5),
        marks=[Mark(x=math.nan, y=0, shape="circle", series="fp16")],
        rows=["a"],
    )

    assert re.search(r'class="chart"', draw(chart))
