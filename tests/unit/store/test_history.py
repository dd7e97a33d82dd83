"""The history of a suite: lines that are only added, joined by git, and read in order."""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.errors import BaselineError
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.history import (
    Entry,
    append_entry,
    figures_of_record,
    history_path,
    keep_figures,
    read_history,
    to_line,
)
from tests.unit.store.test_baselines import make_record
from tests.unit.store.test_latency_records import make_record as make_timed_record

GATE = "accuracy[scenes/classification-acc1]"


def make_entry(day: int = 1, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "time": f"2026-11-{day:02}T10:00:00Z",
        "commit": f"{day:040x}",
        "figures": {GATE: {"quantized_value": 0.9, "samples": 500.0}},
        **changes,
    }
    return Entry(**values)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "baselines", project=tmp_path)


def test_runs_are_read_by_time_whatever_the_order_of_their_lines(store: Store) -> None:
    for day in (3, 1, 2):
        append_entry(store, "suites/clip", make_entry(day))

    found = read_history(store, "suites/clip")
    assert [entry.time[8:10] for entry in found] == ["01", "02", "03"]
    assert history_path(store, "suites/clip") == store.root / "suites/clip/history.jsonl"


def test_lines_are_only_added_and_none_twice(store: Store) -> None:
    first = append_entry(store, "clip", make_entry(1))
    text = first[0].read_text()
    assert append_entry(store, "clip", make_entry(1)) == ()
    append_entry(store, "clip", make_entry(2))

    assert first[0].read_text().startswith(text)
    assert len(first[0].read_text().splitlines()) == 2
    assert [path.name for path in first] == ["history.jsonl", ".gitattributes"]


def test_the_last_run_of_a_revision_counts(store: Store) -> None:
    later = make_entry(1, time="2026-11-09T10:00:00Z", figures={GATE: {"quantized_value": 0.8}})
    for entry in (make_entry(1), make_entry(2), later):
        append_entry(store, "clip", entry)

    assert read_history(store, "clip") == (make_entry(2), later)


def test_runs_without_a_revision_are_all_kept(store: Store) -> None:
    for day in (1, 2):
        append_entry(store, "clip", make_entry(day, commit=""))
    assert len(read_history(store, "clip")) == 2


def test_git_joins_two_branches_without_a_conflict(store: Store, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def commit(day: int) -> None:
        append_entry(store, "clip", make_entry(day))
        git("add", "-A")
        git("commit", "-qm", f"day {day}")

    git("init", "-qb", "main")
    commit(1)
    git("checkout", "-qb", "other")
    commit(3)
    git("checkout", "-q", "main")
    commit(2)
    git("merge", "-q", "other")

    assert [entry.time[8:10] for entry in read_history(store, "clip")] == ["01", "02", "03"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("<<<<<<< HEAD", "keep the lines of both sides, and put 'history.jsonl merge=union'"),
        ("{", "not JSON|JSON|Expecting"),
        ("[]", "restore the line with git, or delete it"),
        (to_line(make_entry(time="yesterday")), "time 'yesterday' is none"),
        (to_line(make_entry(commit="$(x)")), "commit"),
        (to_line(make_entry(figures={GATE: {"colour": 1.0}})), "is no figure of a gate"),
        (to_line(make_entry(figures={"a\x1b[2J": {"samples": 1.0}})), "is no figure of a gate"),
    ],
)
def test_a_damaged_line_is_named_with_its_mend(store: Store, line: str, said: str) -> None:
    (path, _) = append_entry(store, "clip", make_entry())
    path.write_text(f"{path.read_text()}{line}\n")
    before = path.read_text()

    with pytest.raises(BaselineError, match=said) as caught:
        read_history(store, "clip")
    assert str(caught.value).startswith(f"{path}:2: damaged history: ")
    with pytest.raises(BaselineError):
        append_entry(store, "clip", make_entry(2))
    assert path.read_text() == before


def test_a_history_is_no_baseline_and_no_orphan(store: Store) -> None:
    append_entry(store, "clip", make_entry())
    assert store.list_files() == ()
    assert store.orphans() == ()


def test_nothing_is_written_through_a_link(store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store.root.mkdir()
    (store.root / "clip").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BaselineError, match="leads out of"):
        append_entry(store, "clip", make_entry())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_nothing_is_read_through_a_link_that_leads_out(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret\n")
    path = history_path(store, "clip")
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(BaselineError, match="leads out of") as caught:
        read_history(store, "clip")
    assert "a secret" not in str(caught.value)


def test_attributes_that_are_there_are_left_alone(store: Store) -> None:
    store.root.mkdir()
    (store.root / ".gitattributes").write_text("* text\n")
    assert [path.name for path in append_entry(store, "clip", make_entry())] == ["history.jsonl"]
    assert (store.root / ".gitattributes").read_text() == "* text\n"


def test_what_is_no_number_of_interest_is_left_out() -> None:
    figures = {"quantized_value": 0.5, "samples": 3, "passed": True, "drop_points": float("nan")}
    assert keep_figures([(GATE, figures), ("sanity", {"samples": 4})]) == {
        GATE: {"quantized_value": 0.5, "samples": 3.0}
    }


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.text(max_size=60))
def test_any_line_is_an_entry_or_an_error_of_its_own(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "baselines")
        path = history_path(store, "clip")
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        with suppress(BaselineError):
            assert isinstance(read_history(store, "clip"), tuple)


def test_an_entry_says_the_same_in_any_order_of_its_keys() -> None:
    entry = make_entry()
    turned = replace(entry, figures=json.loads(json.dumps(entry.figures)))
    assert to_line(turned) == to_line(entry)


def test_a_baseline_gives_the_figures_of_its_gate() -> None:
    times = make_timed_record()
    record = make_record()

    assert figures_of_record(times) == (f"latency[{times.key}]", {"latency_ratio": 0.625})
    assert figures_of_record(record) == (
        f"regression[{record.key}]",
        {
            "samples": 10,
            "fp16_value": 0.8,
            "quantized_value": 0.7,
            "drop_points": pytest.approx(10.0),
        },
    )


def test_lines_without_a_text_are_passed_over(store: Store) -> None:
    append_entry(store, "clip", make_entry())
    path = history_path(store, "clip")
    path.write_text(f"\n{path.read_text()}\n \n")

    assert read_history(store, "clip") == (make_entry(),)
    assert read_history(store, "other") == ()


def test_a_history_that_is_no_text_is_refused(store: Store) -> None:
    append_entry(store, "clip", make_entry())
    history_path(store, "clip").write_bytes(b"\xff\n")

    with pytest.raises(BaselineError, match=r"history\.jsonl: cannot be read: "):
        read_history(store, "clip")


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="quantized_value is inf"):
        make_entry(figures={GATE: {"quantized_value": float("inf")}}).check()
