"""Figures over runs: which drift, how they are told, and how a report gets them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.errors import BaselineError
from pytest_quantgate.report.charts import draw_history
from pytest_quantgate.report.history import (
    add_history,
    find_tracked,
    record_run,
    render_history,
    show_figure,
    trace_figures,
)
from pytest_quantgate.report.html import render_html
from pytest_quantgate.report.json_report import read_report, render_json
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.history import KEPT, Entry, append_entry, read_history
from tests.report_builder import make_run

GATE = "accuracy[scenes/classification-acc1]"


def make_entries(
    values: list[float], *, figure: str = "quantized_value", **more: Any
) -> list[Entry]:
    return [
        Entry(
            time=f"2026-{number // 28 + 1:02}-{number % 28 + 1:02}T10:00:00Z",
            commit=f"{number:040x}",
            figures={GATE: {figure: value, "samples": 500.0, **more}},
        )
        for number, value in enumerate(values)
    ]


def drift_of(values: list[float], *, figure: str = "quantized_value") -> str:
    (facts,) = trace_figures(make_entries(values, figure=figure))
    return facts.drift


def test_small_steps_that_add_up_are_a_finding_of_their_own() -> None:
    drift = drift_of([0.912, 0.9115, 0.911, 0.911, 0.9105, 0.910, 0.9095])

    assert drift.startswith(
        f"{GATE} quantized_value drifts: 91.20 % -> 90.95 % over 7 runs (-0.24 pp by its slope, "
        "largest step -0.05 pp)"
    )
    assert "Mann-Kendall" in drift


@pytest.mark.parametrize(
    ("figure", "values", "drifts"),
    [
        ("quantized_value", [0.90 + 0.001 * run for run in range(8)], False),  # gets better
        ("quantized_value", [0.912] * 8, False),
        ("quantized_value", [0.912 - 1e-6 * run for run in range(8)], False),  # nobody minds
        ("quantized_value", [0.912, 0.90, 0.89], False),  # too few to tell
        ("quantized_value", [0.90, 0.91, 0.89, 0.905, 0.90, 0.91, 0.895], False),
        ("drop_points", [0.1 * run for run in range(6)], True),
        ("drop_points", [0.6 - 0.1 * run for run in range(6)], False),
        ("vision_sqnr_db", [30 - 0.3 * run for run in range(6)], True),
        ("text_worst_cosine", [0.99 - 0.001 * run for run in range(6)], True),
        ("checkpoint_bytes", [1e6 * (1 + 0.01 * run) for run in range(6)], True),
        ("onnx_file_bytes", [1e6 + run for run in range(6)], False),
        ("p99_latency_ratio", [0.8 + 0.02 * run for run in range(6)], True),
        ("latency_ratio", [0.8, 0.85, 0.79, 0.82, 0.8, 0.84], False),
    ],
)
def test_what_drifts_gets_worse_clearly_and_by_enough(
    figure: str, values: list[float], drifts: bool
) -> None:
    assert bool(drift_of(values, figure=figure)) is drifts


def test_noise_drifts_no_more_often_than_the_level_says_for_all_figures_together() -> None:
    stream, alarms = random.Random(1), 0
    for _ in range(200):
        rows = [
            {f"{tower}_sqnr_db": stream.gauss(30, 1) for tower in ("vision", "text", "a", "b")}
            for _ in range(10)
        ]
        entries = [
            replace(entry, figures={GATE: row})
            for entry, row in zip(make_entries([0.0] * 10), rows, strict=True)
        ]
        alarms += any(facts.drift for facts in trace_figures(entries))
    assert alarms <= 0.05 * 200 + 3 * (200 * 0.05 * 0.95) ** 0.5


def test_a_figure_starts_anew_with_another_number_of_samples() -> None:
    before = make_entries([0.95, 0.94, 0.93], samples=100.0)
    after = make_entries([0.5] * 5)[3:]
    (facts,) = trace_figures([*before, *after])

    assert [point.value for point in facts.points] == [0.5, 0.5]


def test_a_gate_that_no_recent_run_has_is_of_the_past() -> None:
    old = make_entries([0.9, 0.8])
    new = [replace(entry, figures={}) for entry in make_entries([0.0] * 8)[2:]]
    assert trace_figures([*old, *new]) == ()
    assert trace_figures([]) == ()


def test_every_figure_that_is_kept_is_tracked_but_the_samples() -> None:
    names = [
        *("fp16_value", "drop_points", "text_cosine", "vision_worst_sqnr_db", "latency_ratio"),
        *("checkpoint_bytes", "sm89_quantized_plan_bytes", "offline_latency_ratio"),
    ]
    for name in names:
        assert KEPT.fullmatch(name)
        assert find_tracked(name) is not None
    assert find_tracked("samples") is None
    assert not KEPT.fullmatch("max_latency_ratio")
    assert not KEPT.fullmatch("p99_max_latency_ratio")


def test_the_table_says_first_before_and_last_and_what_to_do() -> None:
    lines = list(render_history("clip", make_entries([0.9 - 0.001 * run for run in range(6)])))

    assert lines[0] == "clip: 6 runs, 2026-01-01 to 2026-01-06"
    assert lines[2].split()[-6:] == ["90.00", "%", "89.60", "%", "89.50", "%"]
    assert lines[3].endswith("[history.drift]")
    assert lines[4].startswith("  next: ")
    (empty,) = render_history("clip", [])
    assert empty.startswith("clip: no history: it begins with quantgate accept")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(0.5, "%", "50.00 %"), (1.5, "pp", "1.50 pp"), (30.04, "dB", "30.0 dB"),
     (2048.0, "bytes", "2.0 KiB"), (0.8, "x", "0.800x"), (0.99, "", "0.9900")],
)  # fmt: skip
def test_figures_are_shown_with_their_unit(value: float, unit: str, shown: str) -> None:
    assert show_figure(value, unit) == shown


def test_a_report_ends_its_history_with_this_run(tmp_path: Path) -> None:
    store, report = Store(tmp_path / "baselines"), make_run(tmp_path / "run").collect()
    suite = report.suites[0]
    assert add_history(report, store=store) == report
    for entry in make_entries([0.9, 0.8]):
        append_entry(store, suite.name, entry)

    found = add_history(report, store=store)
    again = add_history(report, store=store)
    facts = {(each.gate, each.figure): each for each in found.suites[0].history}
    assert found == again
    assert len(facts[GATE, "quantized_value"].points) == 2
    now = next(g for g in suite.gates if "quantized_value" in g.figures)
    assert facts[now.name, "quantized_value"].points[-1].value == now.figures["quantized_value"]
    assert "History" in render_html(found)
    assert read_report(render_json(found), name="r").suites[0].history == found.suites[0].history


def test_a_chart_has_a_point_for_each_run_with_its_revision() -> None:
    (facts,) = trace_figures(make_entries([0.9, 0.8, 0.7]))
    marks = draw_history(facts).marks
    assert [mark.y for mark in marks] == pytest.approx([90, 80, 70])
    assert f"revision {'0' * 12}: 90" in marks[0].text


def test_what_is_accepted_is_recorded_with_its_revision(tmp_path: Path) -> None:
    store = Store(tmp_path / "baselines", project=tmp_path)
    environ = {"GITHUB_SHA": "a" * 40, "SOURCE_DATE_EPOCH": "0"}
    gates = [(GATE, {"drop_points": 0.5, "samples": 500})]
    record_run(store, "clip", records=[], gates=gates, root=tmp_path, environ=environ)

    (entry,) = read_history(store, "clip")
    assert (entry.time, entry.commit) == ("1970-01-01T00:00:00Z", "a" * 40)
    assert entry.figures == {GATE: {"drop_points": 0.5, "samples": 500.0}}
    with pytest.raises((BaselineError, ValueError)):
        record_run(store, "clip", records=[], root=tmp_path, environ={"GITHUB_SHA": "$(rm)"})
