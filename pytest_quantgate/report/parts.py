"""Small parts that every page is made of: badges, tables, lists of terms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from pytest_quantgate.report.markup import Child, Html, join, tag
from pytest_quantgate.report.model import StatusName, SuiteReport
from pytest_quantgate.report.svg import Chart, draw

#: Sign and words of a status; the sign is for those who do not see its colour.
STATUSES: Mapping[StatusName, tuple[str, str]] = {
    "PASS": ("\N{HEAVY CHECK MARK}", "pass"),
    "FAIL": ("\N{HEAVY MULTIPLICATION X}", "fail"),
    "INCONCLUSIVE": ("\N{ALMOST EQUAL TO}", "inconclusive"),
    "INCOMPARABLE": ("\N{NOT EQUAL TO}", "incomparable"),
    "NOT_MEASURED": ("\N{EN DASH}", "not measured"),
}
#: Of the worst, a page shows no more than this; the rest is folded away.
WORST = 8

#: A command in a sentence: its arguments are options, and paths, which have a dot or a slash.
_COMMAND = re.compile(
    r"\b(?:pytest|quantgate [a-z]+)"
    r"(?: (?:--?[a-z][\w-]*(?:=(?:'[^']*'|[^\s,;:]+))?|[\w/.@-]*[/.][\w/.@-]*\w))+"
)

GREEN_OR_UNKNOWN: tuple[StatusName, ...] = ("PASS", "NOT_MEASURED")


class Charts:
    """The charts of a page: places them, and remembers whether there are any."""

    def __init__(self) -> None:
        self.placed = 0

    def place(self, chart: Chart, *, caption: str) -> Html:
        self.placed += 1
        return tag("figure", tag("figcaption", caption), draw(chart))


def name_place(suite: SuiteReport, *parts: str) -> str:
    """Return the id of a place in the page: `clip/coverage`, `clip/failures/parity`.

    It stays the same from report to report, so that a link to it can be kept.
    """
    return "/".join(quote(part, safe="/[]@:,=+") for part in (suite.name, *(parts or ("",))))


def card(heading: Html, *content: Child, decides: bool) -> Html:
    """Return a section of a page; on a phone one that does not decide is folded below its heading.

    It is open without scripts: a style sheet cannot open what is folded.
    """
    if decides:
        return tag("section", heading, content, class_="card")
    return tag(
        "section",
        tag("details", tag("summary", heading), content, open=True, class_="section"),
        class_="card",
    )


def class_of(status: StatusName) -> str:
    return STATUSES[status][1].replace(" ", "-")


def badge(status: StatusName, *, text: str = "") -> Html:
    """Return a status as a coloured pill with its sign and its word."""
    sign, words = STATUSES[status]
    return tag(
        "span",
        tag("span", sign, aria_hidden="true"),
        f" {text or words}",
        class_=f"badge b-{class_of(status)}",
    )


def mark_commands(text: str) -> Html:
    """Return a sentence with its commands as code, beside which the page's script puts `Copy`."""
    parts: list[Child] = []
    end = 0
    for found in _COMMAND.finditer(text):
        parts += [text[end : found.start()], tag("code", found.group(), class_="command")]
        end = found.end()
    return join(parts, text[end:])


def row(head: Child, *cells: Child, class_: str | None = None) -> Html:
    """Return a row of a table whose first cell is its head."""
    return tag(
        "tr", tag("th", head, scope="row"), [tag("td", cell) for cell in cells], class_=class_
    )


def table(
    heads: Sequence[str],
    rows: Iterable[Html],
    *,
    caption: str,
    numeric: bool = False,
    quiet: bool = False,
    grouped: bool = False,
    class_: str = "",
) -> Html:
    """Return a table that scrolls by itself where it is too wide, by keyboard, too.

    `numeric` sets all columns but the first to the right; `quiet` hides the caption from eyes
    where a heading has just said the same. Rows that are `grouped` are bodies of a table already.
    """
    classes = [name for name in ("numeric" if numeric else "", class_) if name]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", tag("span", caption, class_="hidden" if quiet else None)),
            tag("thead", tag("tr", (tag("th", head, scope="col") for head in heads))),
            rows if grouped else tag("tbody", rows),
            class_=" ".join(classes) or None,
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def definitions(rows: Iterable[tuple[str, Child]]) -> Html:
    """Return a list of terms and what they are."""
    return tag("dl", (tag("div", tag("dt", name), tag("dd", value)) for name, value in rows))


def bullets(lines: Iterable[Child]) -> Html:
    return tag("ul", (tag("li", line) for line in lines), class_="plain")
