"""What comes from outside cannot forge a line, paint the terminal or command a CI runner."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.report.terminal import Summary, render_failure, render_summary
from pytest_quantgate.run.conclusion import OwnTest, Results, Row, SuiteGates
from pytest_quantgate.text.printable import printable

EVIL = (
    "otter\n::error::forged\x1b[2J\x1b[32mPASS\r##[error]x ##vso[task.complete]\u202e\x9b1A\u2028"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("drop 0.46 [0.08, 0.85] pp — ä, 猫, 😀", "drop 0.46 [0.08, 0.85] pp — ä, 猫, 😀"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
        ("a\u202eb\u2028c\u200dd\xa0e", "a\\u202eb\\u2028c\\u200dd\\xa0e"),
        ("::error file=a::b", ":\\:error file=a::b"),
        ("   ::warning::b", "   :\\:warning::b"),
        ("a ::b", "a ::b"),
        ("see ##[error]b", "see #\\#[error]b"),
        ("##vso[task.setvariable]", "#\\#vso[task.setvariable]"),
        ("###[x", "##\\#[x"),
        ("## heading", "## heading"),
        ("", ""),
    ],
)
def test_what_is_no_visible_text_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters() | st.sampled_from("\x1b\n\r:#[\x9b\u202e")))
def test_any_text_becomes_one_visible_line_without_commands(text: str) -> None:
    shown = printable(text)

    assert shown.isprintable()
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert not shown.lstrip().startswith("::")
    assert "##[" not in shown
    assert "##vso[" not in shown
    assert printable(shown) == shown


def evil_verdict() -> Verdict:
    return Verdict(
        gate="accuracy",
        status=Status.FAIL,
        headline=EVIL,
        brief=EVIL,
        evidence=("::error::evidence", f"worst class {EVIL}"),
        cause=EVIL,
        next_step=EVIL,
    )


def check_line(line: str) -> None:
    assert line.isprintable(), ascii(line)
    assert not line.lstrip().startswith("::"), line
    assert "##[" not in line
    assert "##vso[" not in line


def test_a_failure_has_as_many_lines_as_it_was_given() -> None:
    lines = render_failure(evil_verdict()).split("\n")

    assert len(lines) == 5
    for line in lines:
        check_line(line)


@pytest.mark.parametrize("width", [80, 2000])
def test_no_line_of_the_summary_can_be_forged(width: int) -> None:
    row = Row(suite=EVIL, gate=f"accuracy[{EVIL}]", verdict=evil_verdict(),
              notes=("::notice::x", EVIL))  # fmt: skip
    summary = Summary(
        results=Results(
            suites=(SuiteGates(suite=EVIL, file=EVIL, gates=(row.gate, EVIL)),),
            rows=(row,),
            not_run={(EVIL, EVIL): EVIL},
            own_tests=(OwnTest(test=EVIL, verdict=evil_verdict()),),
            errors=(EVIL,),
            stopped=EVIL,
        ),
        orphans=("::a::", EVIL),
        written=("::b::",),
        obtained=(EVIL,),
        warnings=(EVIL,),
    )

    lines = [line for line, _ in render_summary(summary, width=width)]

    assert lines
    for line in lines:
        check_line(line)
