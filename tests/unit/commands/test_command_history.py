"""`quantgate history`: the table, what is added, what drifts, and the exit status."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.report.json_report import render_json
from pytest_quantgate.report.model import Conclusion
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.history import Entry, append_entry, read_history
from tests.report_builder import make_run

Captured = pytest.CaptureFixture[str]
SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: int8}
gates:
  coverage: {}
"""
ARGUMENTS = ["history", "suites/made.quantgate.yaml"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("suites").mkdir()
    Path("suites/made.quantgate.yaml").write_text(SUITE)
    return tmp_path


@pytest.fixture
def store(project: Path) -> Store:
    return Store(project / "baselines", project=project)


def fill(store: Store, values: list[float]) -> None:
    for day, value in enumerate(values, start=1):
        entry = Entry(
            time=f"2026-11-{day:02}T10:00:00Z",
            commit=f"{day:040x}",
            figures={"fidelity": {"vision_sqnr_db": value}},
        )
        append_entry(store, "suites/made", entry)


def write_report(path: Path, project: Path, **changes: Any) -> None:
    report = make_run(project / "run", suite="suites/made").collect()
    (suite,) = report.suites
    path.write_text(render_json(replace(report, suites=(replace(suite, **changes),))))


def test_without_a_history_the_ways_to_begin_one_are_said(capsys: Captured) -> None:
    assert main(ARGUMENTS, environ={}) == 0
    assert "suites/made: no history: it begins with quantgate accept" in capsys.readouterr().out


def test_a_drift_is_told_and_makes_the_status(store: Store, capsys: Captured) -> None:
    fill(store, [30, 29.8, 29.6, 29.4, 29.2])
    assert main([*ARGUMENTS, "--json", "history.json"], environ={}) == 1

    assert "fidelity vision_sqnr_db drifts: 30.0 dB -> 29.2 dB over 5 runs" in " ".join(
        capsys.readouterr().out.split()
    )
    written = json.loads(Path("history.json").read_text())
    assert (written["suite"], written["runs"]) == ("suites/made", 5)
    (figure,) = written["figures"]
    assert [point["value"] for point in figure["points"]] == [30, 29.8, 29.6, 29.4, 29.2]
    assert main([*ARGUMENTS, "--json", "history.json"], environ={}) == 1  # its own file


def test_what_does_not_drift_is_status_0(store: Store) -> None:
    fill(store, [30, 30.1, 29.9, 30, 30.1])
    assert main(ARGUMENTS, environ={}) == 0


def test_a_report_is_added_once(store: Store, project: Path, capsys: Captured) -> None:
    write_report(Path("report.json"), project)
    for _ in range(2):
        assert main([*ARGUMENTS, "--add", "report.json"], environ={}) == 0
    assert "history written: baselines/suites/made/history.jsonl" in capsys.readouterr().out

    (entry,) = read_history(store, "suites/made")
    assert entry.commit == "c0ffee" * 6
    assert entry.figures["accuracy[made/classification-acc1]"]["samples"] == 300


def test_a_red_report_and_one_of_another_suite_are_refused(
    store: Store, project: Path, capsys: Captured
) -> None:
    red = Conclusion(status="FAIL", sentence="may not ship: coverage failed")
    write_report(Path("red.json"), project, conclusion=red)
    assert main([*ARGUMENTS, "--add", "red.json"], environ={}) == 1
    assert "red.json: may not ship: coverage failed: a history is of what may ship" in (
        capsys.readouterr().err
    )
    write_report(Path("other.json"), project, suite="suites/other")
    assert main([*ARGUMENTS, "--add", "other.json"], environ={}) == 1
    assert "says nothing of suites/made (it has: suites/other)" in capsys.readouterr().err
    assert read_history(store, "suites/made") == ()


def test_adding_under_ci_is_refused(project: Path, store: Store, capsys: Captured) -> None:
    write_report(Path("report.json"), project)
    arguments = [*ARGUMENTS, "--add", "report.json"]
    assert main(arguments, environ={"CI": "1"}) == 1
    assert "quantgate history --add would write baselines under CI" in capsys.readouterr().err
    assert main([*arguments, "--allow-ci-write"], environ={"CI": "1"}) == 0
    assert len(read_history(store, "suites/made")) == 1


def test_a_damaged_history_is_an_error_with_its_line(store: Store, capsys: Captured) -> None:
    fill(store, [30.0])
    path = store.folder("suites/made") / "history.jsonl"
    path.write_text(path.read_text() + "{\n")
    assert main(ARGUMENTS, environ={}) == 1
    assert "history.jsonl:2: damaged history" in capsys.readouterr().err
