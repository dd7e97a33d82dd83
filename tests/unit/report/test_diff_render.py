"""A comparison as text, Markdown, HTML and JSON: whole, cut where it must be, and never forged."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser

import pytest

from pytest_quantgate.comparison.changes import Change, Comparison, Table
from pytest_quantgate.comparison.render import (
    MOST_ROWS,
    render_html,
    render_json,
    render_markdown,
    render_text,
)

HOSTILE = "x\n::error::forged <script>alert(1)</script> \x1b[2J @team [a](http://b) `c`"


def make(*changes: Change) -> Comparison:
    return Comparison(kind="suite", before="a", after="b", changes=changes)


DRIFT = Change(
    area="ranges",
    kind="re-ranged",
    subjects=tuple(f"q{i}" for i in range(50)),
    text="50 of 50 quantizers re-ranged",
    lines=tuple(f"line {i}" for i in range(30)),
    table=Table(columns=("quantizer", "factor"), rows=tuple((f"q{i}", f"x{i}") for i in range(50))),
    figures={"quantizers": 50, "largest": math.inf},
)
RECIPE = Change(area="recipe", kind="removed", subjects=("*",), text="recipe entry removed: *")
LIMIT = Change(area="limits", kind="loosened", subjects=("m",), text="max_drop: 1pp -> 2pp")


def test_nothing_is_said_in_one_word() -> None:
    assert render_text(make()) == "--- a\n+++ b\n\nno difference\n"


def test_areas_stand_in_the_order_of_a_review() -> None:
    text = render_text(make(DRIFT, RECIPE, LIMIT))

    assert [
        line for line in text.splitlines() if line in ("Limits", "Recipe", "Ranges (amax)")
    ] == [
        "Limits",
        "Ranges (amax)",
        "Recipe",
    ]
    assert "  ! max_drop: 1pp -> 2pp" in text
    assert "  - recipe entry removed: *" in text
    assert text.endswith("\n3 changes: limits 1, ranges (amax) 1, recipe 1\n")


def test_long_tables_are_cut_and_say_so() -> None:
    text = render_text(make(DRIFT))

    assert f"q{MOST_ROWS - 1} " in text
    assert f"q{MOST_ROWS} " not in text
    assert f"... and {50 - MOST_ROWS} more (--all shows them)" in text
    assert "... and 18 more" in text


def test_everything_is_shown_on_demand() -> None:
    text = render_text(make(DRIFT), most_rows=None)

    assert "q49" in text
    assert "line 29" in text
    assert "more" not in text


def test_json_is_strict_and_whole() -> None:
    found = json.loads(render_json(make(DRIFT)), parse_constant=pytest.fail)

    assert found["different"] is True
    assert found["changes"][0]["subjects"] == [f"q{i}" for i in range(50)]
    assert found["changes"][0]["figures"]["largest"] == "inf"
    assert json.loads(render_json(make()))["different"] is False


def test_names_from_outside_forge_nothing() -> None:
    hostile = Change(
        area="other",
        kind="changed",
        subjects=(HOSTILE,),
        text=HOSTILE,
        lines=(HOSTILE,),
        table=Table(columns=("a|b",), rows=((HOSTILE,),)),
    )
    found = Comparison(
        kind="suite", before=HOSTILE, after=HOSTILE, changes=(hostile,), same=(HOSTILE,)
    )

    for text in (render_text(found), render_markdown(found), render_html(found)):
        assert "\x1b" not in text
        assert not any(line.lstrip().startswith("::") for line in text.splitlines())
    lines = render_markdown(found).splitlines()
    assert lines[2].count("`") == 4  # two code spans, in which nothing else is markup
    rest = "\n".join(lines[3:])
    assert "<script>" not in rest
    assert "@team" not in rest
    assert "[a](" not in rest.replace("\\[", "").replace("\\]", "")
    assert "<script>" not in render_html(found)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(name in ("src", "href", "onclick") for name, _ in attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_is_well_formed_complete_and_needs_no_network() -> None:
    page = Page()
    page.feed(render_html(make(DRIFT, RECIPE, LIMIT)))

    assert page.open == []
    assert "script" not in page.seen
    assert page.seen.count("tr") == 51
    text = " ".join(page.text)
    assert "max_drop: 1pp -> 2pp" in text
    assert "3 changes" in text


def test_markdown_holds_a_table_that_github_reads() -> None:
    lines = render_markdown(make(DRIFT)).splitlines()

    start = lines.index("| quantizer | factor |")
    assert lines[start + 1] == "|---|---:|"
    assert lines[start + 2] == "| q0 | x0 |"
    assert lines[start - 1] == ""
