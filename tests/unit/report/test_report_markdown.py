"""The Markdown report: at most 60 lines, and nobody's text is markup in it."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.markdown import MAX_LINES, render_markdown
from pytest_quantgate.report.markdown_text import escape
from pytest_quantgate.text.printable import printable
from tests.report_builder import make_outcomes, make_run, verdict

markdown_it = pytest.importorskip("markdown_it")

HOSTILE = [
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "https://example.org and www.example.org",
    "a | b `code` **bold** _em_ ~~x~~ $x$",
    "two\nlines\u2028three",
    "@team and #12 &amp; &lt;b&gt;",
    "\\[x](y) \\` `` ` ``",
    "<!-- a --> --> <b>",
    "\x1b[31mred \u202egnp.exe",
]


def tokens_of(text: str) -> list[object]:
    parser = markdown_it.MarkdownIt("gfm-like", {"html": True, "linkify": False})
    found = []
    for token in parser.parse(text):
        found.append(token)
        found.extend(token.children or ())
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_is_text(text: str) -> None:
    kinds = {
        token.type  # type: ignore[attr-defined]
        for token in tokens_of(f"| head | x |\n|---|---|\n| {escape(text)} | y |\n")
        if not (token.type == "html_inline" and token.content == "<!-- -->")  # type: ignore[attr-defined]
    }

    assert kinds <= {
        "table_open", "thead_open", "tr_open", "th_open", "inline", "text", "th_close",
        "tr_close", "thead_close", "tbody_open", "td_open", "td_close", "tbody_close",
        "table_close", "text_special",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["a | b", "x\\", "two\nlines"])
def test_escaped_text_stays_in_its_cell(text: str) -> None:
    tokens = tokens_of(f"| head | x |\n|---|---|\n| {escape(text)} | y |\n")

    assert sum(token.type == "td_open" for token in tokens) == 2  # type: ignore[attr-defined]


def test_what_is_readable_stays_readable() -> None:
    assert escape("drop 0.46 pp -> ok, image_retrieval_recall@5") == (
        "drop 0.46 pp -> ok, image_retrieval_recall@5"
    )
    assert escape("@team") == "@<!-- -->team"
    assert escape("ViT-B 32, 4x5x6 at 12 % of -0.5") == "ViT-B 32, 4x5x6 at 12 % of -0.5"


#: What GitHub or GitLab would make a link, a reference or a ping of, as they document it.
ACTIVE = [
    *("GH-1", "owner/repo#2", "user#3", "#4", "owner/repo@abcdef0123", "@user", "@org/team"),
    *("a5c3785ed8d6a35868bc169f07e40e889087fd2e", "a5c3785", "GHSA-abcd-efgh-ijkl"),
    *("CVE-2026-1234", "JIRA-12", "mail.me@example.org", "a+b@example.co.uk", "mailto:x@y.z"),
    *("http://a.b", "https://a.b", "ftp://a.b", "ssh://a.b", "x-y://z", "www.a.b", "WWW.a.b"),
    *("xmpp:a@b.c", "tel:110", "!5", "group/project!6", "&7", "%8", "~9", "$10", "^alert#11"),
]


@pytest.mark.parametrize("text", ACTIVE)
@pytest.mark.parametrize("around", ["{}", "a {} b", "({})", "[{}]", "_{}_", "{},", "x\n {}"])
def test_nothing_becomes_a_link_or_a_ping(text: str, around: str) -> None:
    """Between the characters that make it one stands a comment, and what is seen is the text."""
    shown = escape(around.format(text))

    parts = re.split(r"<!-- -->", shown)
    assert len(parts) > 1
    for part in parts:
        plain = html.unescape(re.sub(r"\\(.)", r"\1", part))
        for pattern in (
            r"[#!&%~$]\d", r"@\w", r"\w@\S", r"://", r"(?i)www\.\w", r"(?i)(mailto|xmpp|tel):",
            r"[A-Za-z]-\d", r"(?i)GHSA-", r"(?<!\w)[0-9a-f]{7,40}(?!\w)",
        ):  # fmt: skip
            assert not re.search(pattern, plain), (pattern, part)
    seen = html.unescape("".join(parts)).replace("\\", "")
    assert seen == printable(around.format(text)).replace("\\", "")


@pytest.mark.parametrize("text", ["> x", ">x", "- x", "+ x", "---", "1. x", "2) x", "-", "  > x"])
def test_a_text_begins_no_quotation_and_no_list(text: str) -> None:
    kinds = {token.type for token in tokens_of(f"- {escape(text)}\n")}  # type: ignore[attr-defined]

    assert not kinds & {"blockquote_open", "ordered_list_open", "hr"}
    opened = [t for t in tokens_of(f"- {escape(text)}\n") if t.type == "bullet_list_open"]  # type: ignore[attr-defined]
    assert len(opened) == 1


def test_top_says_the_verdict_and_what_was_not_measured(tmp_path: Path) -> None:
    lines = render_markdown(make_run(tmp_path, not_run=["roundtrip"]).collect()).splitlines()

    assert lines[0] == "<!-- pytest-quantgate report version 4 -->"
    assert lines[1] == "## \N{EN DASH} Not decided: 2 passed, 1 gate did not run"
    assert lines[3].startswith(
        "**Not measured:** roundtrip (did not run: not reached); no gate asks for calibration,"
    )


def test_waiver_stands_in_the_verdict_and_on_the_line_of_its_gate(tmp_path: Path) -> None:
    figures = {"waivers": 1, "waived_until": "2027-03-01"}
    brief = "1 waiver until 2027-03-01, 2.9 % of at most 25 %"
    extra = [verdict("coverage[x]", Status.PASS, brief=brief, figures=figures)]
    lines = render_markdown(make_run(tmp_path, extra=extra).collect()).splitlines()

    assert lines[1].endswith("May ship: 3 gates passed, 1 waiver until 2027-03-01")
    assert any(line.endswith(f"| {brief} |") for line in lines)


def test_failure_stands_before_what_passed(tmp_path: Path) -> None:
    extra = [verdict("export", Status.FAIL, headline="export: 3 lost", next_step="export again")]
    text = render_markdown(make_run(tmp_path, extra=extra).collect())

    assert text.index("next step: export again") < text.index("| coverage |")
    assert text.index("| export |") < text.index("| coverage |")


def test_at_most_sixty_lines_and_the_worst_is_in_them(tmp_path: Path) -> None:
    extra = [
        verdict(f"engine[{n}]", Status.FAIL, evidence=("a", "b", "c", "d"), cause="c",
                next_step="n")
        for n in range(40)
    ]  # fmt: skip
    text = render_markdown(make_run(tmp_path, extra=extra).collect(errors=("x: crashed",) * 9))

    lines = text.splitlines()
    assert len(lines) <= MAX_LINES
    assert lines[1].startswith("## \N{HEAVY MULTIPLICATION X} Do not ship")
    assert "engine\\[0\\]" in text
    assert lines[-1].startswith("<sub>pytest-quantgate")


def test_many_green_gates_are_cut_with_their_number(tmp_path: Path) -> None:
    extra = [verdict(f"engine[{n}]", Status.PASS) for n in range(90)]
    text = render_markdown(make_run(tmp_path, extra=extra).collect())

    assert len(text.splitlines()) <= MAX_LINES
    assert "more: see the HTML report |" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_class_name_cannot_break_out(tmp_path: Path, name: str) -> None:
    outcomes = make_outcomes(samples=60, class_names=[name, "owl"], lost=9, won=0)
    extra = [verdict("export", Status.FAIL, headline=f"export: {name}", evidence=(name,))]
    text = render_markdown(make_run(tmp_path, outcomes=outcomes, extra=extra).collect())

    markup = [
        token.content  # type: ignore[attr-defined]
        for token in tokens_of(text)
        if token.type in ("html_inline", "html_block", "link_open", "image", "code_inline")  # type: ignore[attr-defined]
    ]
    allowed = {"<!-- -->", "<sub>", "</sub>", "<!-- pytest-quantgate report version 4 -->\n"}
    assert set(markup) <= allowed
