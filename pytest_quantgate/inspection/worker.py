"""Inspects in a process of its own, which may have so much memory and time and no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_quantgate.bounded_process import answer_request, ask_module
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.evidence.codec import from_json
from pytest_quantgate.inspection.findings import Report


def inspect_paths(paths: Sequence[str], *, base: str | None, ignored: Sequence[str]) -> Report:
    """As `inspect.inspect_paths`; raises ArtifactError too where the process had no answer."""
    request = {"paths": list(paths), "base": base, "ignored": list(ignored)}
    answer = ask_module(__name__, request, noun="the check", of="what is checked")
    if isinstance(answer, str):
        raise ArtifactError(answer)
    return from_json(Report, answer)


def _answer(request: Any) -> Any:
    from pytest_quantgate.inspection import inspect

    return inspect.inspect_paths(
        [Path(path) for path in request["paths"]],
        base=Path(request["base"]) if request["base"] else None,
        ignored=frozenset(request["ignored"]),
    )


if __name__ == "__main__":
    answer_request(_answer, noun="the check", of="what is checked")
