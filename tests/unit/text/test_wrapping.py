"""Lines of whole words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.text.wrapping import terminal_width, wrap

WORDS = st.lists(st.text(st.sampled_from("abc[]:/-=*"), min_size=1, max_size=30), max_size=20)


@given(words=WORDS, indent=st.integers(0, 12), width=st.integers(20, 130))
def test_every_word_stays_whole_and_in_its_place(words: list[str], indent: int, width: int) -> None:
    line = " " * indent + " ".join(words)

    found = wrap(line, width=width)

    assert " ".join(found).split() == words
    for number, part in enumerate(found):
        start = indent + (2 if number else 0)
        assert len(part) <= width or len(part.split()) == 1
        assert not part.strip() or len(part) - len(part.lstrip()) == start


def test_a_log_gets_its_lines_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "word " * 60

    assert terminal_width() is None
    assert wrap(long, width=terminal_width()) == [long]


def test_columns_are_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")

    assert terminal_width() == 120


def test_what_goes_on_stands_below_the_last_column() -> None:
    assert wrap("  MISSING  tensorrt   needed for engines on a GPU; pip install it", width=40) == [
        "  MISSING  tensorrt   needed for engines",
        "                      on a GPU; pip",
        "                      install it",
    ]


def test_a_column_of_the_right_half_is_none_to_stand_below() -> None:
    assert wrap("a sentence of some words  [1] and more", width=30) == [
        "a sentence of some words  [1]",
        "  and more",
    ]
