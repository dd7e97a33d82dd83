"""Compares in a process of its own, which may have so much memory and time and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantgate.bounded_process import answer_request, ask_module
from pytest_quantgate.comparison.changes import Comparison, DiffError
from pytest_quantgate.evidence.codec import from_json

_WORDS = {"noun": "the comparison", "of": "what is compared"}


def compare_paths(before: str, after: str, *, match: Sequence[tuple[str, str]] = ()) -> Comparison:
    """As `paths.compare_paths`."""
    return _ask({"paths": [before, after], "match": [list(pair) for pair in match]})


def compare_trees(text: str, *, baselines: str, suites: str, room: Path) -> Comparison:
    """As `paths.compare_trees`, of the folder that this process works in."""
    return _ask({"text": text, "baselines": baselines, "suites": suites, "room": str(room)})


def _ask(request: Mapping[str, Any]) -> Comparison:
    """Return the answer of a new process; raises DiffError where it has none."""
    answer = ask_module(__name__, request, **_WORDS)
    if isinstance(answer, str):
        raise DiffError(answer)
    return from_json(Comparison, answer)


def _answer(request: Any) -> Comparison:
    from pytest_quantgate.comparison import paths

    if "paths" in request:
        match = [(old, new) for old, new in request["match"]]
        return paths.compare_paths(*map(Path, request["paths"]), match=match)
    return paths.compare_trees(
        request["text"],
        baselines=request["baselines"],
        suites=request["suites"],
        here=Path.cwd(),
        room=Path(request["room"]),
    )


if __name__ == "__main__":
    answer_request(_answer, **_WORDS)
