"""The page of the bench on other families. Pure: results in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.sabotage.report import describe, escape
from benchmarks.sabotage.run import Result, is_right


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The results of a family by title: of its first run, and the last ones; `missing` are the
    titles of entries that were not run."""

    first: Mapping[str, Result]
    last: Mapping[str, Result]
    missing: tuple[str, ...] = ()

    def count(self) -> tuple[int, int, int, int, int, int, int]:
        """Return how many sabotages there are, are caught, named, and named at last; how many
        controls there are, alarm, and alarm at last."""
        bad = [title for title, result in self.first.items() if not result.entry.is_control]
        good = [title for title in self.first if title not in bad]
        return (
            len(bad),
            sum(self.first[title].caught for title in bad),
            sum(self.first[title].named for title in bad),
            sum(self.last[title].named for title in bad),
            len(good),
            sum(not is_right(self.first[title]) for title in good),
            sum(not is_right(self.last[title]) for title in good),
        )


def render_families(found: Mapping[str, Runs], *, versions: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of families.md."""
    yield "# Sabotages of other families"
    yield ""
    yield "Written by `python -m benchmarks.sabotage --families` ("
    yield f"{', '.join(f'{name} {version}' for name, version in versions.items())})."
    yield "Entries of the catalogue that make sense for a family, in its own words, and some of its"
    yield "own, before the gates `sanity`, `coverage`, `calibration` and `fidelity`; `export` and"
    yield "`parity` where these alone see it. An entry is *named* where a gate that should be red"
    yield "has the code of the true cause and says where. The first run is of entries and limits"
    yield "that were frozen before it. After it, what was not named was looked into: some of it was"
    yield "mended in the product, some expectations of the bench were wrong; what was mended was"
    yield "run again (`--again`): the columns *at last*."
    yield ""
    yield (
        "| family | sabotages | caught | named | named at last | controls | false alarms | "
        "at last |"
    )
    yield "|---" * 8 + "|"
    counts = {name: runs.count() for name, runs in found.items()}
    for name, numbers in counts.items():
        yield f"| {name} | {' | '.join(map(str, numbers))} |"
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    yield f"| all | {' | '.join(map(str, total))} |"
    yield ""
    for name, runs in found.items():
        if runs.missing:
            yield f"Not run, {name}: {'; '.join(runs.missing)}."
            yield ""
    yield "## Not named in the first run, and false alarms"
    yield ""
    yield from _missed(found)


def _missed(found: Mapping[str, Runs]) -> Iterator[str]:
    rows = [
        (name, first, runs.last[title])
        for name, runs in found.items()
        for title, first in runs.first.items()
        if not (is_right(first) and is_right(runs.last[title]))
    ]
    if not rows:
        yield "None."
        return
    yield "| family | entry | first run | cause | at last |"
    yield "|---|---|---|---|---|"
    for name, first, last in rows:
        cause = last.entry.principle or last.entry.finding or "not known"
        cells = (name, first.entry.title, _said(first), cause, _now(last))
        yield f"| {' | '.join(map(escape, cells))} |"


def _now(last: Result) -> str:
    """Return what the last run made of what the first one did not."""
    if not is_right(last):
        return _said(last)
    return "green" if last.entry.is_control else f"named by {', '.join(last.namers)}"


def _said(result: Result) -> str:
    """Return what the gates said that were not green, or the error that ended the entry."""
    if result.crash:
        return f"ended in {result.crash}"
    names = (*result.red, *result.unmeasured)
    said = (f"{name}: {describe(result.verdicts[name])}" for name in names)
    return "; ".join(said) or "every gate passes"
