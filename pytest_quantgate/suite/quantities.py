"""Quantities with units, as suites and assertions write them: `0.5pp`, `95%`, `20dB`.

Fractions are exact, so that a limit can be compared with a count of samples.
"""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"([+-]?\d{1,9}(?:\.\d{1,9})?)\s*([A-Za-z%]*)", re.ASCII)


class QuantityError(ValueError):
    """A text that is not the quantity that was asked for; `str(error)` says why."""


def parse_points(value: object) -> Fraction:
    """Return percentage points as a fraction of one: `0.5pp` is 1/200.

    Raises QuantityError for a bare number, another unit, or what is not in 0pp to 100pp.
    """
    number, unit = _split(value, wants="pp", example="0.5pp")
    if unit == "":
        share = f" or {_plain(number * 100)}pp (the share {_plain(number)} of all samples)"
        raise QuantityError(
            f"{value} needs a unit: {value}pp ({_plain(number)} percentage points)"
            f"{share if number <= 1 else ''}"
        )
    if unit == "%":
        raise QuantityError(
            f"{value} is relative; write percentage points of all samples: {_plain(number)}pp"
        )
    if unit != "pp":
        raise QuantityError(f"{value} has the unit {unit!r}, wants pp, such as 0.5pp")
    return _within(number / 100, value, low="0pp", high="100pp")


def parse_percent(value: object) -> Fraction:
    """Return a percentage as a fraction of one: `95%` is 19/20.

    Raises QuantityError for a bare number, another unit, or what is not in 0% to 100%.
    """
    number, unit = _split(value, wants="%", example="95%")
    if unit == "":
        share = f" or {_plain(number * 100)}% (the share {_plain(number)})"
        raise QuantityError(f"{value} needs a unit: {value}%{share if number <= 1 else ''}")
    if unit != "%":
        raise QuantityError(f"{value} has the unit {unit!r}, wants %, such as 95%")
    return _within(number / 100, value, low="0%", high="100%")


def parse_confidence(value: object) -> Fraction:
    """Return a confidence as a fraction: more than 50 %, less than 100 %."""
    share = parse_percent(value)
    if not Fraction(1, 2) < share < 1:
        raise QuantityError(f"{value} is out of range: a confidence is above 50% and below 100%")
    return share


def parse_decibels(value: object) -> float:
    """Return decibels: `20dB` is 20.0. Raises QuantityError for a bare number or another unit."""
    number, unit = _split(value, wants="dB", example="20dB")
    if unit == "":
        raise QuantityError(f"{value} needs a unit: {value}dB")
    if unit.lower() != "db":
        raise QuantityError(f"{value} has the unit {unit!r}, wants dB, such as 20dB")
    if not -200 <= number <= 200:
        raise QuantityError(f"{value} is out of range: -200dB to 200dB")
    return float(number)


def parse_cosine(value: object) -> float:
    """Return a cosine, a bare number in [-1, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise QuantityError(f"{value!r} is no cosine: write a number from -1 to 1, such as 0.99")
    if not -1 <= value <= 1:
        raise QuantityError(f"{value} is out of range: a cosine is from -1 to 1")
    return float(value)


def parse_ratio(value: object) -> Fraction:
    """Return a ratio to FP16: `0.6x` is 3/5. Raises QuantityError for a bare number, another unit,
    or what is not above 0x and at most 1000x."""
    number, unit = _split(value, wants="x", example="0.6x")
    if unit == "":
        raise QuantityError(f"{value} needs a unit: {value}x (times FP16)")
    if unit == "%":
        raise QuantityError(f"{value} has the unit '%'; write it as {_plain(number / 100)}x")
    if unit.lower() != "x":
        raise QuantityError(f"{value} has the unit {unit!r}, wants x, such as 0.6x")
    if not 0 < number <= 1000:
        raise QuantityError(f"{value} is out of range: above 0x, at most 1000x")
    return number


_MILLISECONDS = {"us": Fraction(1, 1000), "ms": Fraction(1), "s": Fraction(1000)}


def parse_milliseconds(value: object) -> float:
    """Return a duration in ms: `3ms` is 3.0, `250us` 0.25, `0.5s` 500.0.

    Raises QuantityError for a bare number, another unit, or what is not above 0 and at most an
    hour.
    """
    number, unit = _split(value, wants="ms", example="3ms")
    if unit == "":
        raise QuantityError(f"{value} needs a unit: {value}ms or {value}s")
    if unit not in _MILLISECONDS:
        raise QuantityError(
            f"{value} has the unit {unit!r}, wants one of {', '.join(_MILLISECONDS)}"
        )
    duration = number * _MILLISECONDS[unit]
    if not 0 < duration <= 3_600_000:
        raise QuantityError(f"{value} is out of range: above 0ms, at most 3600s")
    return float(duration)


_BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_bytes(value: object) -> int:
    """Return bytes: `512MiB` is 536870912. Raises QuantityError for a bare number, another unit, or
    less than one byte; a part of a byte is dropped."""
    number, unit = _split(value, wants="MiB", example="512MiB")
    if unit == "":
        raise QuantityError(f"{value} needs a unit: {value}MiB or {value}MB")
    if unit not in _BYTES:
        raise QuantityError(f"{value} has the unit {unit!r}, wants one of {', '.join(_BYTES)}")
    if number * _BYTES[unit] < 1:
        raise QuantityError(f"{value} is out of range: at least one byte")
    return int(number * _BYTES[unit])


def _split(value: object, *, wants: str, example: str) -> tuple[Fraction, str]:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise QuantityError(
            f"{value!r} is no quantity: write a number with {wants}, such as {example}"
        )
    found = _NUMBER.fullmatch(str(value).strip())
    if found is None:
        raise QuantityError(
            f"{value!r} is no quantity: write a number with {wants}, such as {example}"
        )
    return Fraction(found.group(1)), found.group(2)


def _within(share: Fraction, value: object, *, low: str, high: str) -> Fraction:
    if not 0 <= share <= 1:
        raise QuantityError(f"{value} is out of range: {low} to {high}")
    return share


def _plain(number: Fraction) -> str:
    text = f"{float(number):.6f}".rstrip("0").rstrip(".")
    return text or "0"
