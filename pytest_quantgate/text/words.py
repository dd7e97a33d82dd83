"""Numbers and names in words: the same in every verdict."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from fractions import Fraction

from pytest_quantgate.evidence.verdict import Status

#: A list in a verdict shows no more than this.
MOST = 8


def code_of(gate: str, finding: str, status: Status) -> str:
    """Return the code of a limit that is broken, or that is open; empty where it is kept."""
    if status is Status.PASS:
        return ""
    return f"{gate}.{finding}{'-open' if status is Status.INCONCLUSIVE else ''}"


def percent(share: float | Fraction, digits: int = 2) -> str:
    """Return `61.84 %`."""
    return f"{float(share) * 100:.{digits}f} %"


def level(confidence: Fraction) -> str:
    """Return a confidence with all its digits: `95 %`, `99.9 %`; never rounded to `100 %`."""
    return f"{float(confidence * 100):.12g} %"


def towers(names: Collection[str]) -> str:
    """Return `both towers` for two, `the vision tower` for one."""
    return "both towers" if len(names) > 1 else f"the {', '.join(names)} tower"


def points(share: float | Fraction) -> str:
    """Return a difference of shares in percentage points: `1.18 pp`; never `-0.00`."""
    return f"{signed(float(share) * 100)} pp"


def signed(value: float) -> str:
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def brief_drop(
    before: float, after: float, *, drop: float, low: float, high: float, word: str, limit: float
) -> str:
    """Return `79.36 -> 78.90 %, drop 0.46 [0.08, 0.85] within 1.00 pp`."""
    return (
        f"{before * 100:.2f} -> {after * 100:.2f} %, drop {signed(drop * 100)} "
        f"[{signed(low * 100)}, {signed(high * 100)}] {word} {limit * 100:.2f} pp"
    )


def count(number: int, noun: str, plural: str = "") -> str:
    """Return `1 sample`, `2 samples`."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def tally(amount: float) -> str:
    """Return a count as it is, `3`, and a sum of grades with two digits, `3.25`."""
    return f"{amount:.2f}" if isinstance(amount, float) else str(amount)


def waivers_words(figures: Iterable[Mapping[str, object]]) -> str:
    """Return `2 waivers until 2027-03-01`, the day of the first to end; nothing without any.

    `figures` are those of coverage verdicts.
    """
    found = [each for each in figures if each.get("waivers")]
    if not found:
        return ""
    number = sum(int(str(each["waivers"])) for each in found)
    return f"{count(number, 'waiver')} until {min(str(each['waived_until']) for each in found)}"


def shorten(lines: Sequence[str], *, most: int = MOST, noun: str = "more") -> tuple[str, ...]:
    """Return the first lines, and one that counts the others."""
    if len(lines) <= most:
        return tuple(lines)
    return (*lines[:most], f"... and {len(lines) - most} {noun}")


def listed(names: Sequence[str], *, most: int = 4) -> str:
    """Return `a, b, c and 3 more`."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def group(names: Iterable[str]) -> tuple[str, ...]:
    """Return names with their block indices folded: `layers.{0-11}.mlp.fc1 (12)`, in order."""
    groups: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        numbers = tuple(int(n) for n in _NUMBER.findall(name))
        groups.setdefault(_NUMBER.sub("\0", name), []).append(numbers)
    folded = []
    for pattern, found in groups.items():
        text = pattern
        for place in range(pattern.count("\0")):
            text = text.replace("\0", _ranges(sorted({n[place] for n in found})), 1)
        folded.append(text if len(found) == 1 else f"{text} ({len(found)})")
    return tuple(folded)


def list_groups(names: Iterable[str], *, most: int = MOST) -> tuple[str, ...]:
    """Return the first groups of names, and a line that counts the others."""
    return shorten(group(names), most=most, noun="groups")


def list_groups_of(parts: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Return the first groups of names, each behind what it is of: `off: layers.{0-11}.fc1`."""
    lines = [f"{what}: {line}" for what, names in parts.items() for line in group(names)]
    return shorten(lines, noun="groups")


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` was probably meant to be, or None."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def _ranges(numbers: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
    return text if text.isdigit() else f"{{{text}}}"
