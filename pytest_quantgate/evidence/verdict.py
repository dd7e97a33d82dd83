"""The answer of a gate: a status, the sentence that carries it, and the evidence behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum


class Status(Enum):
    """What a gate decided; only PASS is green."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    INCOMPARABLE = "INCOMPARABLE"
    NOT_MEASURED = "NOT_MEASURED"

    @property
    def severity(self) -> int:
        """Order for combining: the worst part of a gate decides the whole."""
        return _SEVERITY[self.value]


_SEVERITY = {"PASS": 0, "NOT_MEASURED": 1, "INCONCLUSIVE": 2, "INCOMPARABLE": 3, "FAIL": 4}

Figure = int | float | str | bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One gate's decision.

    `headline` is one line: what was measured, the numbers, the limit and its source line. `brief`
    is the same for a table: a phrase of at most 70 characters (empty: the headline is cut).
    `evidence` are further lines (which modules, which samples), worst first, already cut short.
    `cause` is the likely cause and `next_step` the command or edit to try; both may be empty.
    `figures` are the raw numbers by name (units in the names) for JUnit and other machines.
    `code` names what was found, `<gate>.<finding>` such as `coverage.tower-off`: it stays the same
    from release to release where the words around it do not, so suppressions, tests and docs refer
    to it. Empty where nothing was found. `other_codes` are those of further findings. `where` is
    the line of the suite that the gate stands on, `suites/clip.quantgate.yaml:12`; empty for what
    stands in no suite. `follows` names the gate whose finding explains this one: that one is to be
    mended. Empty for a finding of its own.
    """

    gate: str
    status: Status
    headline: str
    brief: str = ""
    evidence: tuple[str, ...] = ()
    cause: str = ""
    next_step: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    code: str = ""
    other_codes: tuple[str, ...] = ()
    where: str = ""
    follows: str = ""

    @property
    def passed(self) -> bool:
        return self.status is Status.PASS


def combine(*, gate: str, parts: tuple[Verdict, ...]) -> Verdict:
    """Return the verdict of a gate that has several checks: the worst part leads.

    Evidence of every part that is not green is kept, in the order of severity; figures of all
    parts are merged. Raises ValueError for no parts: a gate that checked nothing is never green.
    """
    if not parts:
        raise ValueError(f"gate {gate!r} has no checks to combine")
    ordered = sorted(parts, key=lambda part: -part.status.severity)  # stable: first stays first
    lead, rest = ordered[0], ordered[1:]
    others = tuple(
        line
        for part in rest
        if not part.passed
        for line in (f"{part.status.value}: {part.headline}", *part.evidence)
    )
    if lead.passed:
        others = tuple(line for part in rest for line in (part.headline, *part.evidence))
    figures: dict[str, Figure] = {}
    for part in parts:
        figures.update(part.figures)
    codes = (code for part in rest for code in (part.code, *part.other_codes))
    return replace(
        lead,
        gate=gate,
        evidence=lead.evidence + others,
        figures=figures,
        other_codes=(*lead.other_codes, *dict.fromkeys(filter(None, codes))),
    )
