"""Red gates as annotations of a pull request: commands to the runner of GitHub Actions.

Each stands on the gate's line of its suite. What follows from another gate has none of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.report.terminal import Summary, render_failure
from pytest_quantgate.run.consequences import list_followers

#: A runner shows no more than ten errors of a step; the last of ours counts the others.
MOST = 10


def render_annotations(
    summary: Summary, *, root: Path, environ: Mapping[str, str]
) -> Iterator[str]:
    """Yield `::error file=suites/clip.quantgate.yaml,line=12,title=...::...`, a line a cause.

    Nothing in another place than a job of GitHub Actions. `root` is pytest's: paths are written
    below the checkout, which GITHUB_WORKSPACE names.
    """
    if environ.get("GITHUB_ACTIONS") != "true":
        return
    allowed = {(s.suite, gate) for s in summary.conclusion.suites for gate in s.allowed}
    verdicts = {(row.suite, row.gate): row.verdict for row in summary.results.rows}
    red = [
        (suite, gate, verdict)
        for (suite, gate), verdict in verdicts.items()
        if not (verdict.passed or verdict.follows or (suite, gate) in allowed)
        if verdict.status is not Status.NOT_MEASURED or summary.failed
    ]
    most = MOST if len(red) <= MOST else MOST - 1
    for suite, gate, verdict in red[:most]:
        beside = {name: found for (other, name), found in verdicts.items() if other == suite}
        followers = list_followers(beside, cause=gate)
        tail = f"\n{', '.join(followers)}: follow from it" if followers else ""
        text = render_failure(verdict) + tail
        yield _annotate(verdict, title=gate, text=text, root=root, environ=environ)
    if len(red) > most:
        yield f"::error title=quantgate::{len(red) - most} more red gates: see the log"


def _annotate(
    verdict: Verdict, *, title: str, text: str, root: Path, environ: Mapping[str, str]
) -> str:
    file, _, line = verdict.where.rpartition(":")
    checkout = Path(environ.get("GITHUB_WORKSPACE") or root)
    path = (root / file).resolve()
    if path.is_relative_to(checkout.resolve()):
        file = path.relative_to(checkout.resolve()).as_posix()
    properties = {"file": file, "line": line, "title": f"{verdict.status.value} {title}"}
    listed = ",".join(f"{name}={_escape(value, ':,')}" for name, value in properties.items())
    return f"::error {listed}::{_escape(text)}"


def _escape(text: str, more: str = "") -> str:
    """Return text as the runner takes it: with percent signs and ends of lines escaped."""
    for char in ("%", "\r", "\n", *more):
        text = text.replace(char, f"%{ord(char):02X}")
    return text
