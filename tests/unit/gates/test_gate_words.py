"""Numbers and names as verdicts write them."""

from __future__ import annotations

import ast
from fractions import Fraction
from pathlib import Path

import pytest

from pytest_quantgate.text.words import (
    brief_drop,
    closest,
    count,
    group,
    level,
    list_groups,
    list_groups_of,
    listed,
    percent,
    points,
    shorten,
    signed,
    waivers_words,
)

GATES = Path(__file__).parents[3] / "pytest_quantgate" / "gates"


def test_shares_are_written_in_percent() -> None:
    assert percent(0.61842) == "61.84 %"
    assert percent(Fraction(19, 20), 0) == "95 %"
    assert percent(Fraction(1, 1000), 3) == "0.100 %"


@pytest.mark.parametrize(
    ("confidence", "text"),
    [
        (Fraction(19, 20), "95 %"),
        (Fraction(39, 40), "97.5 %"),
        (Fraction(9999, 10_000), "99.99 %"),
        (1 - Fraction(1, 10**11), "99.999999999 %"),
    ],
)
def test_confidence_is_never_rounded_to_certainty(confidence: Fraction, text: str) -> None:
    assert level(confidence) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0118, "1.18 pp"), (-0.0118, "-1.18 pp"), (Fraction(1, 200), "0.50 pp")],
)
def test_differences_are_written_in_points(share: float | Fraction, text: str) -> None:
    assert points(share) == text


def test_nothing_has_no_sign() -> None:
    assert signed(-0.001) == "0.00"
    assert signed(0.0) == "0.00"
    assert signed(-0.01) == "-0.01"


def test_brief_drop_holds_its_numbers_in_order() -> None:
    text = brief_drop(
        0.7936, 0.7890, drop=0.0046, low=0.0008, high=0.0085, word="within", limit=0.01
    )

    assert text == "79.36 -> 78.90 %, drop 0.46 [0.08, 0.85] within 1.00 pp"
    assert (
        brief_drop(1.0, 0.5, drop=0.5, low=0.25, high=0.75, word="over", limit=0.4)
        == "100.00 -> 50.00 %, drop 50.00 [25.00, 75.00] over 40.00 pp"
    )


def test_nouns_follow_their_number() -> None:
    assert [count(n, "sample") for n in (0, 1, 2)] == ["0 samples", "1 sample", "2 samples"]
    assert [count(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


def test_waivers_are_counted_up_to_the_day_of_the_first_to_end() -> None:
    figures: list[dict[str, object]] = [
        {"waivers": 1, "waived_until": "2027-05-01"},
        {"samples": 3},
        {"waivers": 0},
        {"waivers": 2, "waived_until": "2027-03-01"},
    ]

    assert waivers_words(figures) == "3 waivers until 2027-03-01"
    assert waivers_words(figures[:1]) == "1 waiver until 2027-05-01"
    assert waivers_words(figures[1:3]) == waivers_words([]) == ""


def test_long_lists_say_how_much_was_left_out() -> None:
    lines = [f"line {n}" for n in range(10)]

    assert shorten(lines, most=10) == tuple(lines)
    assert shorten(lines[:8]) == tuple(lines[:8])
    assert shorten(lines) == (*lines[:8], "... and 2 more")
    assert shorten(lines, most=2, noun="groups") == ("line 0", "line 1", "... and 8 groups")


def test_names_are_listed_up_to_four() -> None:
    assert listed(["a", "b", "c", "d"]) == "a, b, c, d"
    assert listed(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d and 2 more"
    assert listed([]) == ""
    assert listed(["a", "b", "c"], most=2) == "a, b and 1 more"


def test_blocks_are_folded_into_ranges() -> None:
    names = [f"layers.{n}.mlp.fc1" for n in (0, 1, 2, 5, 11)]

    assert group(names) == ("layers.{0-2,5,11}.mlp.fc1 (5)",)


def test_single_names_stay_as_they_are() -> None:
    assert group(["layers.3.mlp.fc1", "visual_projection"]) == (
        "layers.3.mlp.fc1",
        "visual_projection",
    )


def test_every_index_of_a_name_is_folded_by_itself() -> None:
    names = ["stages.0.blocks.0.fc", "stages.0.blocks.1.fc", "stages.0.blocks.2.fc"]

    assert group(names) == ("stages.0.blocks.{0-2}.fc (3)",)


def test_groups_keep_the_order_of_their_first_names() -> None:
    assert group(["b.1", "a.1", "b.2"]) == ("b.{1-2} (2)", "a.1")


def test_numbers_inside_a_word_are_no_block() -> None:
    assert group(["mlp.fc1", "mlp.fc2"]) == ("mlp.fc1", "mlp.fc2")


def test_typing_error_finds_what_was_meant() -> None:
    assert closest("visual_projektion", ["visual_projection", "fc1"]) == "visual_projection"
    # The nearest of several, and only one that is alike by half.
    assert closest("fc1.weight", ["fc1", "fc2.weight", "fc1.weights"]) == "fc1.weights"
    assert closest("abcd", ["abxy"]) == "abxy"
    assert closest("abcd", ["axyz"]) is None
    assert closest("zzz", ["visual_projection", "fc1"]) is None


def test_every_red_verdict_of_a_gate_has_a_cause_and_a_next_step() -> None:
    """Where a call has neither, a reader is left alone with a number."""
    lacking = []
    for path in sorted(GATES.glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            status = given.get("status") or (ast.unparse(call.args[0]) if call.args else "")
            if call.func.id not in ("Verdict", "_verdict", "_fail") or None in given:
                continue
            green = status.endswith((".PASS", ".NOT_MEASURED"))
            if not green and not {"cause", "next_step"} <= given.keys():
                lacking.append(f"{path.name}:{call.lineno}")

    assert lacking == []


def test_groups_are_listed_and_the_others_counted() -> None:
    names = [f"part_{letter}.{number}.fc" for letter in "abcdefghijkl" for number in range(3)]

    found = list_groups(names)
    assert found[0] == "part_a.{0-2}.fc (3)"
    assert found[-1] == f"... and {12 - len(found) + 1} groups"
    assert list_groups(names, most=1) == (found[0], "... and 11 groups")
    assert list_groups_of({"off": names[:3], "on": names[3:4]}) == (
        "off: part_a.{0-2}.fc (3)",
        "on: part_b.0.fc",
    )
    assert list_groups_of({"off": names})[-1] == found[-1]
