"""The bench on other families: its entries, what it keeps of a run, and the page of two runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.sabotage import run  # noqa: E402
from benchmarks.sabotage.bench import Bench, Entry  # noqa: E402
from benchmarks.sabotage.families import FAMILIES, SUITE  # noqa: E402
from benchmarks.sabotage.families_report import Runs, render_families  # noqa: E402
from benchmarks.sabotage.names import rename  # noqa: E402


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_thirty_sabotages_and_ten_controls(name: str) -> None:
    entries = FAMILIES[name].list_entries()

    assert sum(not entry.is_control for entry in entries) >= 30
    assert sum(entry.is_control for entry in entries) >= 10
    assert len({entry.title for entry in entries}) == len(entries)
    assert all(entry.code for entry in entries if not entry.is_control)
    assert "{recipe: fp8-attention" in rename(SUITE, FAMILIES[name].names)


def entry(name: str, *, good: bool = False) -> Entry:
    if good:
        return Entry(name=name, theme="control", make=lambda _: name)  # type: ignore[arg-type,return-value]
    return Entry(
        name=name,
        theme="recipe",
        make=lambda _: name,  # type: ignore[arg-type,return-value]
        gates=("coverage",),
        code="coverage.tower-off",
        finding="the gate is blind",
    )


ENTRIES = [entry("caught"), entry("missed"), entry("ends"), entry("fine", good=True)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let the gate say FAIL of these names and PASS of others, and return what it was asked."""

    def set_up(*red: str) -> list[str]:
        asked = []

        def judge(case: Any, *, entry: Entry) -> dict[str, Verdict]:
            asked.append(case)
            if case == "ends" and case not in red:
                raise KeyError("layer")
            status, code = Status.PASS, ""
            if case in red:
                status, code = Status.FAIL, "coverage.tower-off"
            verdict = Verdict(gate="coverage", status=status, headline="a tower | off", code=code)
            return {"coverage": verdict}

        monkeypatch.setattr(run, "judge", judge)
        return asked

    return set_up


def test_an_error_is_the_result_of_its_entry_and_the_others_follow(
    bench: Bench, answer: Callable[..., list[str]]
) -> None:
    answer("caught")

    caught, missed, ends, fine = run.run_without_rivals(bench, ENTRIES)

    assert (caught.named, missed.caught, ends.caught) == (True, False, False)
    assert ends.crash == "KeyError: 'layer'"
    assert not fine.red


def test_what_is_kept_is_run_again_only_where_it_was_not_named(
    bench: Bench, answer: Callable[..., list[str]]
) -> None:
    answer("caught")
    list(run.run_without_rivals(bench, ENTRIES))
    asked = answer("caught", "missed")

    list(run.run_without_rivals(bench, ENTRIES))
    assert asked == []
    list(run.run_without_rivals(bench, ENTRIES, again=True))

    assert asked == ["missed", "ends"]


def test_a_false_alarm_is_run_again(bench: Bench, answer: Callable[..., list[str]]) -> None:
    answer("caught", "fine")
    list(run.run_without_rivals(bench, ENTRIES))
    asked = answer("caught")

    *_, fine = run.run_without_rivals(bench, ENTRIES, again=True)

    assert asked == ["missed", "ends", "fine"]
    assert run.is_right(fine)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_known_of_missed_entries_is_of_entries_that_there_are(name: str) -> None:
    family = FAMILIES[name]
    titles = {entry.title for entry in family.list_entries()}

    assert {*family.findings, *family.codes} <= titles
    assert [e.title for e in family.revise_entries()] == [e.title for e in family.list_entries()]


def test_the_page_holds_the_first_run_and_the_last(
    bench: Bench, answer: Callable[..., list[str]]
) -> None:
    answer("caught")
    list(run.run_without_rivals(bench, ENTRIES))
    answer("caught", "missed")
    list(run.run_without_rivals(bench, ENTRIES, again=True))

    titles = {entry.title: entry for entry in ENTRIES}
    runs = Runs(
        first=run.read_results(bench.root, titles, first=True),
        last=run.read_results(bench.root, titles),
        missing=("recipe: later",),
    )
    page = "\n".join(render_families({"siglip": runs}, versions={"torch": "2"}))

    assert "| siglip | 3 | 1 | 1 | 2 | 1 | 0 | 0 |" in page
    assert "| all | 3 | 1 | 1 | 2 | 1 | 0 | 0 |" in page
    assert (
        "| siglip | recipe: missed | every gate passes | the gate is blind | named by coverage |"
        in page
    )
    ended = "ended in KeyError: 'layer'"
    assert f"| siglip | recipe: ends | {ended} | the gate is blind | {ended} |" in page
    assert "control: fine" not in page
    assert "Not run, siglip: recipe: later." in page
    assert "recipe: caught" not in page
