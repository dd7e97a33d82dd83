"""A suite's figures over its runs, and which of them drift; entries in, facts and lines out.

A figure drifts where it gets worse over its runs by more than chance (`find_fall`, at 5 % for all
figures of a suite together), and by enough to matter. No single step has to be large for that:
what each run is held against is the run before, and no run sees the sum.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pytest_quantgate.report.environment import read_clock, read_commit
from pytest_quantgate.report.model import HistoryFacts, HistoryPoint, Report, SuiteReport
from pytest_quantgate.report.numbers import show_bytes
from pytest_quantgate.statistics.trend import find_fall
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.history import (
    Entry,
    append_entry,
    figures_of_record,
    keep_figures,
    read_history,
)
from pytest_quantgate.store.records import AnyRecord
from pytest_quantgate.text.tables import align
from pytest_quantgate.text.words import count

#: What none of so many last runs has is a gate of the past.
RECENT = 5

#: The chance of a finding in a suite in which nothing drifts.
LEVEL = 0.05

Unit = Literal["%", "pp", "dB", "bytes", "x", ""]


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A kind of figure: `worse` is its bad direction, `matters` the change that anyone minds.

    `matters` is a share of the first value where the unit is of sizes or ratios.
    """

    figures: str
    worse: Literal["lower", "higher"]
    unit: Unit
    matters: float

    @property
    def is_share(self) -> bool:
        return self.unit in ("bytes", "x")


TRACKED = (
    Tracked(figures="(fp16|quantized)_value", worse="lower", unit="%", matters=0.002),
    Tracked(figures="drop_points", worse="higher", unit="pp", matters=0.2),
    Tracked(figures=r"\w+_sqnr_db", worse="lower", unit="dB", matters=0.5),
    Tracked(figures=r"\w+_cosine", worse="lower", unit="", matters=0.001),
    Tracked(figures=r"(\w+_)?\w+_bytes", worse="higher", unit="bytes", matters=0.02),
    Tracked(figures=r"(\w+_)?latency_ratio", worse="higher", unit="x", matters=0.05),
)


def trace_figures(entries: Sequence[Entry]) -> tuple[HistoryFacts, ...]:
    """Return every figure over the runs that have it; those alone that a recent run has.

    A figure starts anew where its gate judged another number of samples: then it is another one.
    """
    series = {
        (gate, name): tracked
        for entry in entries[-RECENT:]
        for gate, figures in entry.figures.items()
        for name in sorted(figures)
        if (tracked := find_tracked(name)) is not None
    }
    return tuple(
        _trace(entries, gate=gate, figure=name, tracked=tracked, tried=len(series))
        for (gate, name), tracked in series.items()
    )


def add_history(report: Report, *, store: Store) -> Report:
    """Return a report whose suites have their history, with this run as its end.

    Raises BaselineError for a damaged history.
    """
    return replace(report, suites=tuple(_add(suite, report, store) for suite in report.suites))


def _add(suite: SuiteReport, report: Report, store: Store) -> SuiteReport:
    known = read_history(store, suite.suite or suite.name)
    if not known:
        return suite
    now = entry_of(suite, report=report)
    before = [entry for entry in known if not now.commit or entry.commit != now.commit]
    return replace(suite, history=trace_figures([*before, now]))


def record_run(
    store: Store,
    suite: str,
    *,
    records: Sequence[AnyRecord],
    gates: Sequence[tuple[str, Mapping[str, object]]] = (),
    root: Path,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Path, ...]:
    """Add what was accepted to the history of its suite; return the files written.

    `records` are the baselines, `gates` the figures of the gates in the same run where they are
    known. Raises BaselineError as `append_entry`.
    """
    figures = keep_figures([*gates, *map(figures_of_record, records)])
    entry = Entry(
        time=read_clock(environ), commit=read_commit(root, environ=environ), figures=figures
    )
    return append_entry(store, suite, entry)


def entry_of(suite: SuiteReport, *, report: Report) -> Entry:
    """Return what a suite of a report measured, as an entry of its history."""
    return Entry(
        time=report.created,
        commit=report.environment.commit,
        figures=keep_figures((gate.name, gate.figures) for gate in suite.gates),
    )


def find_tracked(figure: str) -> Tracked | None:
    """Return what a figure is; None for one whose history says nothing."""
    return next((t for t in TRACKED if re.fullmatch(t.figures, figure)), None)


def _trace(
    entries: Sequence[Entry], *, gate: str, figure: str, tracked: Tracked, tried: int
) -> HistoryFacts:
    points: list[HistoryPoint] = []
    samples: float | None = None
    for entry in entries:
        found = entry.figures.get(gate, {})
        if figure not in found:
            continue
        if found.get("samples") != samples:
            points.clear()
        samples = found.get("samples")
        points.append(HistoryPoint(time=entry.time, commit=entry.commit, value=found[figure]))
    facts = HistoryFacts(gate=gate, figure=figure, unit=tracked.unit, points=tuple(points))
    return replace(facts, drift=_describe_drift(facts, tracked=tracked, tried=tried))


def _describe_drift(facts: HistoryFacts, *, tracked: Tracked, tried: int) -> str:
    """Return how a figure drifts, empty where it does not."""
    values = [point.value for point in facts.points]
    if len(values) < 2:
        return ""
    sign = 1.0 if tracked.worse == "lower" else -1.0
    found = find_fall([sign * value for value in values])
    scale = abs(values[0]) if tracked.is_share else 1.0
    if found.chance * tried > LEVEL or -found.change < tracked.matters * scale:
        return ""
    change, step = sign * found.change, sign * found.largest_step
    return (
        f"{facts.gate} {facts.figure} drifts: {show_figure(values[0], facts.unit)} -> "
        f"{show_figure(values[-1], facts.unit)} over {count(found.values, 'run')} "
        f"({_show_change(change, facts)} by its slope, largest step {_show_change(step, facts)}); "
        f"the chance of that without a trend is {found.chance:.2g} (Mann-Kendall)"
    )


def show_figure(value: float, unit: str) -> str:
    """Return a value as a reader sees it: `91.25 %`, `0.50 pp`, `31.2 dB`, `12.1 MiB`, `0.812x`."""
    if unit == "%":
        return f"{value * 100:.2f} %"
    if unit == "bytes":
        return show_bytes(round(value))
    digits = {"pp": 2, "dB": 1, "x": 3, "": 4}[unit]
    space = "" if unit in ("x", "") else " "
    return f"{value:.{digits}f}{space}{unit}"


def _show_change(value: float, facts: HistoryFacts) -> str:
    first = facts.points[0].value
    if facts.unit in ("bytes", "x"):
        return f"{value / first * 100:+.2f} %" if first else f"{value:+.2f}"
    if facts.unit == "%":
        return f"{value * 100:+.2f} pp"
    if facts.unit == "":
        return f"{value:+.4f}"
    return f"{value:+.2f} {facts.unit}"


def render_history(suite: str, entries: Sequence[Entry]) -> Iterator[str]:
    """Yield a table with a row a figure, what drifts below it, and what to do about it."""
    if not entries:
        yield (
            f"{suite}: no history: it begins with quantgate accept, --quantgate-baselines=update, "
            f"or quantgate history SUITE --add report.json"
        )
        return
    first, last = (entry.time[:10] for entry in (entries[0], entries[-1]))
    yield f"{suite}: {count(len(entries), 'run')}, {first} to {last}"
    facts = trace_figures(entries)
    rows = [("figure", "runs", "first", "before", "last")]
    rows += [_row(each) for each in facts]
    yield from (f"  {line}" for line in align(rows, right=range(1, 5)))
    drifting = [each.drift for each in facts if each.drift]
    for drift in drifting:
        yield f"  {drift} [history.drift]"
    if drifting:
        yield (
            "  next: no single run is to blame; compare the first variant with today's: "
            "quantgate diff OLD.json NEW.json"
        )


def _row(facts: HistoryFacts) -> tuple[str, str, str, str, str]:
    values = [show_figure(point.value, facts.unit) for point in facts.points]
    before = values[-2] if len(values) > 1 else "-"
    return f"{facts.gate} {facts.figure}", str(len(values)), values[0], before, values[-1]
