"""Compares in a process of its own, which may have so much memory and time and no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_quantgate.bounded_process import answer_request, ask_module
from pytest_quantgate.comparison.changes import Comparison, DiffError
from pytest_quantgate.evidence.codec import from_json

_WORDS = {"noun": "the comparison", "of": "what is compared"}


def compare_paths(before: str, after: str) -> Comparison:
    """As `things.compare_paths`."""
    return _ask([before, after])


def compare_trees(text: str, *, baselines: str, suites: str, room: Path) -> Comparison:
    """As `things.compare_trees`, of the folder that this process works in."""
    return _ask([text, baselines, suites, str(room)])


def _ask(request: Sequence[str]) -> Comparison:
    """Return the answer of a new process; raises DiffError where it has none."""
    answer = ask_module(__name__, request, **_WORDS)
    if isinstance(answer, str):
        raise DiffError(answer)
    return from_json(Comparison, answer)


def _answer(request: Any) -> Comparison:
    from pytest_quantgate.comparison import things

    if len(request) == 2:
        return things.compare_paths(*map(Path, request))
    text, baselines, suites, room = request
    return things.compare_trees(
        text, baselines=baselines, suites=suites, here=Path.cwd(), room=Path(room)
    )


if __name__ == "__main__":
    answer_request(_answer, **_WORDS)
