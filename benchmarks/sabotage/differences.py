"""`quantgate diff` between the good release and each other one: does it name the true change?"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sabotage.bench import Entry
from benchmarks.sabotage.changes import TRUTHS, Route, Truth
from benchmarks.sabotage.releases import GOOD, ONNX, TREE, VARIANT, Releases, commit_trees
from pytest_quantgate.commands.cli import main as quantgate

SAME, DIFFERENT = 0, 1

#: A page shows no more than this of what a diff says.
WORDS_LENGTH = 200


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the command said of one pair: its exit status, its text as printed, and its changes.

    The changes stand one by one where that was asked for, else the text stands for them.
    """

    route: Route
    status: int
    text: str
    changes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Everything that was said of one entry, beside what really was changed."""

    entry: Entry
    truth: Truth
    said: tuple[Said, ...]

    @property
    def names(self) -> dict[Route, bool]:
        """Return for every route that holds the change whether the text says it."""
        texts = {said.route: said for said in self.said}
        return {
            route: route in texts
            and texts[route].status != SAME
            and bool(re.search(pattern, texts[route].text, re.MULTILINE))
            for route, pattern in self.truth.said.items()
        }

    @property
    def surplus(self) -> tuple[str, ...]:
        """Return what is said of a control that was not changed in it."""
        if not self.entry.is_control:
            return ()
        return tuple(
            f"{said.route}: {change}"
            for said in self.said
            for change in said.changes
            if not (self.truth.only and re.search(self.truth.only, change))
        )

    @property
    def is_named(self) -> bool:
        """Return whether every route that holds the change names it, and nothing else is said."""
        return all(self.names.values()) and not self.surplus

    @property
    def symptoms(self) -> tuple[Route, ...]:
        """Return the routes that differ by what the change did alone."""
        return tuple(
            said.route
            for said in self.said
            if said.status != SAME and said.route not in self.truth.said
        )

    def quote(self, route: Route) -> str:
        """Return the words of a text that name the change: the lines that the pattern matches."""
        text = next(said.text for said in self.said if said.route == route)
        found = re.search(self.truth.said[route], text, re.MULTILINE)
        if found is None:
            return ""
        start = text.rfind("\n", 0, found.start()) + 1
        ends = (text.find("\n", found.end()), len(text))
        lines = text[start : min(end for end in ends if end >= 0)].splitlines()
        shown = [lines[0], *lines[-1:]] if len(lines) > 2 else lines
        words = " ... ".join(line.strip().lstrip("~+-! ") for line in shown)
        words = re.sub(r"(?<![\w*])/\S+/(?=[\w.-]+)", "", words)  # no folder of this machine
        return words if len(words) <= WORDS_LENGTH else words[: WORDS_LENGTH - 3].rstrip() + "..."


def compare_entries(releases: Releases, entries: Sequence[Entry]) -> Iterator[Difference]:
    """Yield what the command says of every entry, from what is kept of its release."""
    for entry in entries:
        yield Difference(
            entry=entry,
            truth=TRUTHS[entry.title],
            said=tuple(compare_release(releases, entry)),
        )


def compare_release(releases: Releases, entry: Entry) -> Iterator[Said]:
    """Yield what the command says of every pair of things that a reviewer has in hand."""
    good, other = releases.folder(GOOD), releases.folder(entry.title)
    repository = other / "repository"
    revisions = commit_trees(repository, good / TREE, other / TREE)
    whole = entry.is_control
    yield _run_diff("revisions", revisions, folder=repository, whole=whole)
    routes: tuple[tuple[Route, str], ...] = (("checkpoint", VARIANT), ("onnx", ONNX))
    for route, part in routes:
        if (other / part).is_dir():
            yield _run_diff(route, str(good / part), str(other / part), folder=other, whole=whole)
    reports = [
        releases.write_report(title, other / name, kinds=entry.judged)
        for title, name in ((GOOD, "good.json"), (entry.title, "report.json"))
    ]
    yield _run_diff("report", *map(str, reports), folder=other, whole=whole)


def _run_diff(route: Route, *arguments: str, folder: Path, whole: bool) -> Said:
    """Run the command in `folder`, as a reviewer does; `whole`: every change too, for itself."""
    status, text = _call("diff", *arguments, folder=folder)
    changes: tuple[str, ...] = (text,)
    if whole and status in (SAME, DIFFERENT):
        found = json.loads(_call("diff", *arguments, "--json", folder=folder)[1])
        changes = tuple(change["text"] for change in found["changes"])
    return Said(route=route, status=status, text=text, changes=changes)


def _call(*arguments: str, folder: Path) -> tuple[int, str]:
    out = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        status = quantgate(arguments, environ=os.environ)
    return status, out.getvalue()


# -- the page -------------------------------------------------------------------------------------


def render_page(differences: Sequence[Difference]) -> Iterator[str]:
    """Yield the lines of diff.md."""
    sabotages = [found for found in differences if not found.entry.is_control]
    controls = [found for found in differences if found.entry.is_control]
    named = sum(found.is_named and not found.truth.principle for found in sabotages)
    explained = sum(found.is_named and bool(found.truth.principle) for found in sabotages)
    silent = sum(not found.truth.said for found in controls)
    quiet = sum(found.is_named for found in controls)
    pairs = sum(len(found.said) for found in differences)
    yield "# What `quantgate diff` says of every sabotage"
    yield ""
    yield (
        f"The good release against each of {len(sabotages)} sabotages and {len(controls)} good "
        f"releases: {pairs} runs of the command on what a reviewer has in hand (two git revisions "
        "of suites and baselines, two checkpoints, two folders of ONNX files, two JSON reports). "
        "Written by `python -m benchmarks.sabotage --diff`."
    )
    yield ""
    yield (
        f"**The true change is named in {named} of {len(sabotages)} sabotages**, by every pair "
        "that holds it (a regular expression each in `changes.py`, checked by machine). In "
        f"{explained} more it is in no file by principle: there the diff shows what moved, "
        f"what did not, and what the gate says of it. Of the {len(controls)} good releases "
        f"{silent} must show no difference, the others their allowed change and nothing else: "
        f"{quiet} do."
    )
    yield ""
    yield from _list_failures(differences)
    yield "## By principle in no file"
    yield ""
    yield "| sabotage | why |"
    yield "|---|---|"
    for found in sabotages:
        if found.truth.principle:
            yield f"| {found.entry.title} | {found.truth.principle} |"
    yield ""
    for title, members in (("Every sabotage", sabotages), ("Good releases", controls)):
        yield f"## {title}"
        yield ""
        yield "| entry | compared | words of the diff | named |"
        yield "|---|---|---|---|"
        for found in members:
            yield from _rows(found)
        yield ""


def _rows(found: Difference) -> Iterator[str]:
    for said in found.said:
        if said.route in found.names:
            named = "yes" if found.names[said.route] else "**no**"
            words = _escape(found.quote(said.route))
        elif said.status == SAME:
            named, words = "", "no difference"
        else:
            named = "" if not found.surplus else "**no**"
            words = "what the change did"
        yield f"| {found.entry.title} | {said.route} | {words} | {named} |"


def _list_failures(differences: Sequence[Difference]) -> Iterator[str]:
    failed = [found for found in differences if not found.is_named]
    if not failed:
        return
    yield "## Not named"
    yield ""
    for found in failed:
        yield f"- {describe_failure(found)}"
    yield ""


def describe_failure(found: Difference) -> str:
    """Return in one line what is not said of an entry, or said of a control that should not be."""
    missing = [route for route, named in found.names.items() if not named]
    parts = [f"not named by {', '.join(missing)}"] if missing else []
    parts += [f"said without reason: {change}" for change in found.surplus[:3]]
    return f"{found.entry.title}: {'; '.join(parts)}"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
