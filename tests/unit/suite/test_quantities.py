"""Quantities: exact with their unit, refused without it, and never read as something else."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pytest_quantgate.suite.quantities import (
    QuantityError,
    parse_bytes,
    parse_confidence,
    parse_cosine,
    parse_decibels,
    parse_percent,
    parse_points,
    parse_ratio,
)

#: Bytes by their unit: 1024 with an i, 1000 without.
BYTES = {
    f"{prefix}{unit}": base ** (power + 1)
    for unit, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMG")
}
PARSERS = [
    parse_points,
    parse_percent,
    parse_confidence,
    parse_decibels,
    parse_ratio,
    parse_bytes,
]
#: What each parser can give at most; the others are within 200 of zero.
RANGES: dict[Callable[[object], Any], tuple[int, int]] = {
    parse_ratio: (0, 1000),
    parse_bytes: (1, 10**9 * 2**30),
}
repeatable = settings(max_examples=150, deadline=None, derandomize=True, database=None)

#: Numbers as people write them: up to nine digits on either side of the point.
numbers = st.decimals(
    min_value=0, max_value=100, allow_nan=False, allow_infinity=False, places=6
).map(lambda value: format(value.normalize(), "f"))
spaces = st.sampled_from(["", " ", "  "])


def refusal(parse: Callable[[object], Any], value: object) -> str:
    with pytest.raises(QuantityError) as caught:
        parse(value)
    return str(caught.value)


@repeatable
@given(number=numbers, space=spaces)
@example(number="0.5", space="")
@example(number="100", space="")
def test_points_are_exact_hundredths(number: str, space: str) -> None:
    share = parse_points(f"{number}{space}pp")

    assert isinstance(share, Fraction)
    assert share * 100 == Fraction(Decimal(number))


@repeatable
@given(number=numbers, space=spaces, sign=st.sampled_from(["", "+"]))
def test_percent_is_exact_hundredths(number: str, space: str, sign: str) -> None:
    share = parse_percent(f"{sign}{number}{space}%")

    assert isinstance(share, Fraction)
    assert share * 100 == Fraction(Decimal(number))


@repeatable
@given(number=numbers, unit=st.sampled_from(["dB", "db", "DB"]), sign=st.sampled_from(["", "-"]))
def test_decibels_are_the_number(number: str, unit: str, sign: str) -> None:
    assert parse_decibels(f"{sign}{number} {unit}") == float(f"{sign}{number}")


@repeatable
@given(number=numbers, space=spaces, unit=st.sampled_from(["x", "X"]))
@example(number="0.6", space="", unit="x")
def test_ratio_is_the_exact_number(number: str, space: str, unit: str) -> None:
    assume(Decimal(number) > 0)

    ratio = parse_ratio(f"{number}{space}{unit}")

    assert isinstance(ratio, Fraction)
    assert ratio == Fraction(Decimal(number))


@repeatable
@given(number=numbers, space=spaces, unit=st.sampled_from(sorted(BYTES)))
@example(number="512", space="", unit="MiB")
@example(number="0.001", space="", unit="KB")
def test_bytes_are_whole_and_never_more_than_was_written(
    number: str, space: str, unit: str
) -> None:
    exact = Fraction(Decimal(number)) * BYTES[unit]
    assume(exact >= 1)

    found = parse_bytes(f"{number}{space}{unit}")

    assert type(found) is int
    assert 0 <= exact - found < 1


@repeatable
@given(value=st.floats(-1, 1))
def test_cosine_is_the_number(value: float) -> None:
    assert parse_cosine(value) == value


def test_cosine_of_a_whole_number_is_a_float() -> None:
    assert type(parse_cosine(1)) is float


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_points, "0pp", Fraction(0)),
        (parse_points, "0.1pp", Fraction(1, 1000)),
        (parse_points, " 100 pp ", Fraction(1)),
        (parse_percent, "33.3%", Fraction(333, 1000)),
        (parse_percent, "100%", Fraction(1)),
        (parse_confidence, "95%", Fraction(19, 20)),
        (parse_confidence, "50.000000001%", Fraction(50_000_000_001, 100_000_000_000)),
        (parse_confidence, "99.999999999%", Fraction(99_999_999_999, 100_000_000_000)),
        (parse_decibels, "-200dB", -200.0),
        (parse_decibels, "200 dB", 200.0),
        (parse_ratio, "0.000000001x", Fraction(1, 10**9)),
        (parse_ratio, "0.6x", Fraction(3, 5)),
        (parse_ratio, "+1 X", Fraction(1)),
        (parse_ratio, "1000x", Fraction(1000)),
        (parse_bytes, "512MiB", 536_870_912),
        (parse_bytes, "0.5 KiB", 512),
        (parse_bytes, "1.5GB", 1_500_000_000),
        (parse_bytes, "0.001KB", 1),
        (parse_bytes, "0.0019KB", 1),
        (parse_bytes, "999999999GiB", 999_999_999 * 2**30),
    ],
)
def test_limits_of_a_range_belong_to_it(
    parse: Callable[[object], Any], text: str, value: Fraction | float
) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "value", "words"),
    [
        (
            parse_points,
            0.5,
            "0.5 needs a unit: 0.5pp (0.5 percentage points) "
            "or 50pp (the share 0.5 of all samples)",
        ),
        (
            parse_points,
            "0.005",
            "0.005 needs a unit: 0.005pp (0.005 percentage points) "
            "or 0.5pp (the share 0.005 of all samples)",
        ),
        (
            parse_points,
            1,
            "1 needs a unit: 1pp (1 percentage points) or 100pp (the share 1 of all samples)",
        ),
        (parse_points, 1.5, "1.5 needs a unit: 1.5pp (1.5 percentage points)"),
        (parse_points, "2%", "2% is relative; write percentage points of all samples: 2pp"),
        (parse_points, "2dB", "2dB has the unit 'dB', wants pp, such as 0.5pp"),
        (parse_points, "2PP", "2PP has the unit 'PP', wants pp, such as 0.5pp"),
        (parse_points, "-0.1pp", "-0.1pp is out of range: 0pp to 100pp"),
        (parse_points, "100.1pp", "100.1pp is out of range: 0pp to 100pp"),
        (parse_percent, 0.95, "0.95 needs a unit: 0.95% or 95% (the share 0.95)"),
        (parse_percent, 95, "95 needs a unit: 95%"),
        (parse_percent, "95pp", "95pp has the unit 'pp', wants %, such as 95%"),
        (parse_percent, "-1%", "-1% is out of range: 0% to 100%"),
        (parse_percent, "100.000001%", "100.000001% is out of range: 0% to 100%"),
        (
            parse_confidence,
            "50%",
            "50% is out of range: a confidence is above 50% and below 100%",
        ),
        (
            parse_confidence,
            "100%",
            "100% is out of range: a confidence is above 50% and below 100%",
        ),
        (parse_confidence, 0.95, "0.95 needs a unit: 0.95% or 95% (the share 0.95)"),
        (parse_decibels, 20, "20 needs a unit: 20dB"),
        (parse_decibels, "20pp", "20pp has the unit 'pp', wants dB, such as 20dB"),
        (parse_decibels, "200.1dB", "200.1dB is out of range: -200dB to 200dB"),
        (parse_decibels, "-201dB", "-201dB is out of range: -200dB to 200dB"),
        (parse_ratio, 0.6, "0.6 needs a unit: 0.6x (times FP16)"),
        (parse_ratio, "60%", "60% has the unit '%'; write it as 0.6x"),
        (parse_ratio, "0.6pp", "0.6pp has the unit 'pp', wants x, such as 0.6x"),
        (parse_ratio, "0.6xx", "0.6xx has the unit 'xx', wants x, such as 0.6x"),
        (parse_ratio, "0x", "0x is out of range: above 0x, at most 1000x"),
        (parse_ratio, "-0.6x", "-0.6x is out of range: above 0x, at most 1000x"),
        (
            parse_ratio,
            "1000.000000001x",
            "1000.000000001x is out of range: above 0x, at most 1000x",
        ),
        (parse_bytes, 512, "512 needs a unit: 512MiB or 512MB"),
        (
            parse_bytes,
            "512B",
            "512B has the unit 'B', wants one of KiB, MiB, GiB, KB, MB, GB",
        ),
        (
            parse_bytes,
            "512mb",
            "512mb has the unit 'mb', wants one of KiB, MiB, GiB, KB, MB, GB",
        ),
        (
            parse_bytes,
            "512Mib",
            "512Mib has the unit 'Mib', wants one of KiB, MiB, GiB, KB, MB, GB",
        ),
        (parse_bytes, "1%", "1% has the unit '%', wants one of KiB, MiB, GiB, KB, MB, GB"),
        (parse_bytes, "0MiB", "0MiB is out of range: at least one byte"),
        (parse_bytes, "-1MiB", "-1MiB is out of range: at least one byte"),
        (parse_bytes, "0.0009KB", "0.0009KB is out of range: at least one byte"),
        (
            parse_cosine,
            "0.99",
            "'0.99' is no cosine: write a number from -1 to 1, such as 0.99",
        ),
        (parse_cosine, True, "True is no cosine: write a number from -1 to 1, such as 0.99"),
        (parse_cosine, None, "None is no cosine: write a number from -1 to 1, such as 0.99"),
        (parse_cosine, 1.01, "1.01 is out of range: a cosine is from -1 to 1"),
        (parse_cosine, -2, "-2 is out of range: a cosine is from -1 to 1"),
        (parse_cosine, float("nan"), "nan is out of range: a cosine is from -1 to 1"),
    ],
)
def test_refused_with_the_mend(parse: Callable[[object], Any], value: object, words: str) -> None:
    assert refusal(parse, value) == words


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "value",
    [
        "", "pp", "%", "one pp", "1,5pp", "1.pp", ".5pp", "1e3pp", "--1pp", "1pp2", "1 p p", "nan%",
        "infdB", "٥pp", "½%", "1_000dB", "1234567890%", "0.1234567890pp", float("nan"),
        float("inf"), 1e-9, True, False, None, [], {}, b"1pp", 1j, Fraction(1, 2),
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_number_with_a_unit_is_refused(
    parse: Callable[[object], Any], value: object
) -> None:
    assert "is no quantity: write a number with" in refusal(parse, value)


@pytest.mark.parametrize("parse", PARSERS)
def test_any_text_is_a_quantity_or_refused(parse: Callable[[object], Any]) -> None:
    @repeatable
    @given(
        text=st.one_of(st.text(max_size=12), st.from_regex(r"[+-]?\d{1,9}(\.\d{1,9})? ?\w{0,3}"))
    )
    def check(text: str) -> None:
        try:
            value = parse(text)
        except QuantityError:
            return
        assert text.strip().isascii()
        lowest, highest = RANGES.get(parse, (-200, 200))
        assert lowest <= value <= highest

    check()


@repeatable
@given(number=numbers)
def test_mend_of_a_bare_number_is_taken(number: str) -> None:
    """What the message says to write is what the parser then reads."""
    message = refusal(parse_points, number)
    readings = [word for word in message.split() if word.endswith("pp")]

    assert readings[0] == f"{number}pp"
    assert parse_points(readings[0]) == Fraction(Decimal(number)) / 100
    assert len(readings) == (2 if Decimal(number) <= 1 else 1)
    for reading in readings[1:]:
        assert float(parse_points(reading)) == pytest.approx(float(number), abs=1e-8)
