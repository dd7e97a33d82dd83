"""A `Verification` as terminal text and as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pytest_quantgate.evidence.codec import to_json
from pytest_quantgate.release.verify import Difference, Verification
from pytest_quantgate.text.printable import printable
from pytest_quantgate.text.words import count, listed

#: A text names no more files than this of those that were not judged; JSON has all.
NAMED = 5

#: So much of a digest tells two files apart for a reader.
SHOWN = 12


def render_verification(found: Verification) -> str:
    """Return what a terminal shows, the conclusion last."""
    return "".join(f"{printable(line)}\n" for line in _lines(found))


def render_verification_json(found: Verification) -> str:
    """Return all that was found as strict JSON in ASCII; `verified` is the answer."""
    verified = not (found.differences or found.unread)
    plain = {"schema": 1, "verified": verified, **to_json(found)}
    return json.dumps(plain, indent=1) + "\n"


def _lines(found: Verification) -> Iterator[str]:
    manifest = found.manifest
    yield f"{manifest.path}: {manifest.sentence} ({manifest.created[:10]})"
    width = max((len(match.path) for match in found.matches), default=0)
    for match in found.matches:
        yield f"  judged   {match.path:<{width}}  {match.subject}"
    for difference in found.differences:
        yield _describe(difference)
    for reason in found.unread:
        yield f"  UNREAD   {reason}"
    if found.others:
        yield f"  not judged, no weights: {listed(list(found.others), most=NAMED)}"
    if found.ignored:
        yield f"  not looked at (--ignore): {listed(list(found.ignored), most=NAMED)}"
    yield _conclude(found)


def _describe(difference: Difference) -> str:
    if difference.what == "differs":
        judged = ", ".join(each[:SHOWN] for each in difference.judged.split(", "))
        return (
            f"  DIFFERS  {difference.path} is {difference.sha256[:SHOWN]}, judged was "
            f"{difference.subject} ({judged})"
        )
    if difference.what == "missing":
        return f"  MISSING  {difference.subject}: another part of it is there"
    if difference.what == "extra":
        return f"  EXTRA    {difference.path}: nobody judged it"
    return "  MISSING  none of the judged files is here"


def _conclude(found: Verification) -> str:
    if found.unread:
        return f"not verified: {count(len(found.unread), 'file')} cannot be read"
    if found.differences:
        number = count(len(found.differences), "difference")
        return f"these are not the files that were judged: {number}"
    return f"these are files that were judged: {count(len(found.matches), 'file')}"
