"""One cause, one failure: which red gates follow from another, so that only that one is mended.

Pure over verdicts, and no verdict becomes green by it: a gate that follows is as red as before.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.suite.gates import find_kind


def fold(verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Return the verdicts of one suite, by its gates in their order, with what each follows from.

    A red gate follows from an earlier one where every finding of it does: where its kind says so
    (`GateKind.follows`), or where both say the same sentence, as all do of a model that cannot be
    built. What it follows from is a gate with a finding of its own.
    """
    folded: dict[str, Verdict] = {}
    for gate, verdict in verdicts.items():
        cause = _find_cause(verdict, earlier=folded) if _is_red(verdict) else ""
        folded[gate] = replace(verdict, follows=cause)
    return folded


def list_followers(verdicts: Mapping[str, Verdict], *, cause: str) -> list[str]:
    """Return the gates whose verdicts follow from that of `cause`."""
    return [gate for gate, verdict in verdicts.items() if verdict.follows == cause]


def _find_cause(verdict: Verdict, *, earlier: Mapping[str, Verdict]) -> str:
    red = {gate: other for gate, other in earlier.items() if _is_red(other)}
    for gate, other in red.items():
        if _say(other) == _say(verdict) and verdict.code and other.code:
            return other.follows or gate
    kind = find_kind(verdict.gate.partition("[")[0])
    if kind is None or not verdict.code:
        return ""
    causes: list[str] = []
    for code in (verdict.code, *verdict.other_codes):
        explained = list(_explain(code, follows=kind.follows, red=red))
        if not explained:
            return ""
        causes += explained
    first = causes[0]
    return red[first].follows or first


def _explain(
    code: str, *, follows: Mapping[str, Sequence[str]], red: Mapping[str, Verdict]
) -> Iterator[str]:
    """Yield the red gates that have a finding which the one of this code follows from."""
    patterns = [one for mine, theirs in follows.items() if _fits(code, [mine]) for one in theirs]
    for gate, other in red.items():
        if any(_fits(found, patterns) for found in (other.code, *other.other_codes)):
            yield gate


def _fits(code: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(code, pattern) for pattern in patterns)


def _say(verdict: Verdict) -> str:
    return verdict.headline.removeprefix(f"{verdict.gate}: ")


def _is_red(verdict: Verdict) -> bool:
    return verdict.status.severity > Status.NOT_MEASURED.severity
