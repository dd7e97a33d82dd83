"""A fast part of the sabotage bench: what needs no evaluation of a whole task, on few samples."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantgate.selftest.sabotage import whole_text
from pytest_quantgate.verdict import Status, Verdict

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.sabotage.bench import SUITE, Bench, Entry  # noqa: E402
from benchmarks.sabotage.catalogue import CATALOGUE, SABOTAGES  # noqa: E402
from benchmarks.sabotage.report import render_lines, render_page  # noqa: E402
from benchmarks.sabotage.rivals import Answer, list_rivals  # noqa: E402
from benchmarks.sabotage.run import Result, judge, keep_result, read_results  # noqa: E402

BY_TITLE = {entry.title: entry for entry in CATALOGUE}

#: One of each kind of damage that shows in a second or two.
FAST = (
    "recipe: every entry of the recipe is off",
    "recipe: the script ships the model that was never quantized",
    "recipe: text tower switched off after quantization",
    "recipe: only block 0 is quantized",
    "recipe: exclusion misspelt",
    "recipe: a bare *input_quantizer takes the LayerNorms along",
    "attention: attention was never registered",
    "attention: calibrated under sdpa, run in eager",
    "calibration: no batch was calibrated on",
    "calibration: NaN in a calibration image",
    "calibration: one range missing",
    "calibration: one range zero",
    "weights: fine-tuned after the calibration",
    "evaluation: samples that failed were skipped",
    "evaluation: losses hidden by gains",
    "baseline: value edited by hand",
    "speed: quantized slower than FP16",
    "speed: an absolute limit on another machine",
)
GOOD = (
    "control: the good release itself",
    "control: built twice from one suite",
    "control: the same recipe written out",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    small = (
        SUITE.replace("samples: 256, batch_size: 64, held_out_samples: 128", "samples: 32, "
                      "batch_size: 16, held_out_samples: 16")
        .replace("samples: 1000", "samples: 300")
        .replace("max_clipped: 0.1%", "max_clipped: 1%")
    )  # fmt: skip
    return Bench(tmp_path_factory.mktemp("sabotage"), suite=small, samples=300)


def ask(bench: Bench, entry: Entry, *, kinds: tuple[str, ...]) -> Mapping[str, Verdict]:
    return judge(entry.make(bench), entry=replace(entry, judged=kinds))


@pytest.mark.parametrize("title", FAST)
def test_sabotage_is_named(bench: Bench, title: str) -> None:
    entry = BY_TITLE[title]

    verdicts = ask(bench, entry, kinds=entry.gates)

    red = [v for v in verdicts.values() if v.status not in (Status.PASS, Status.NOT_MEASURED)]
    assert any(re.search(entry.cause, whole_text(verdict)) for verdict in red)


@pytest.mark.parametrize("title", GOOD)
def test_good_release_passes(bench: Bench, title: str) -> None:
    verdicts = ask(bench, BY_TITLE[title], kinds=("coverage", "calibration"))

    assert [verdict.headline for verdict in verdicts.values() if not verdict.passed] == []
    assert len(verdicts) == 2


def test_the_catalogue_is_whole() -> None:
    controls = [entry for entry in CATALOGUE if entry.is_control]

    assert len(SABOTAGES) >= 60
    assert len(controls) >= 30
    assert len(BY_TITLE) == len(CATALOGUE)
    assert {entry.theme for entry in SABOTAGES} == {
        *("recipe", "attention", "calibration", "weights", "evaluation"),
        *("baseline", "export", "engine", "speed"),
    }
    for entry in SABOTAGES:
        assert entry.gates, entry.title
        assert re.compile(entry.cause).pattern, entry.title
        assert set(entry.gates) & set(entry.judged), entry.title
    assert not any(entry.gates or entry.cause for entry in controls)


def result_of(title: str, *, status: Status, headline: str) -> Result:
    verdict = Verdict(gate="coverage", status=status, headline=headline)
    answers = {rival.name: Answer(red=False, words="") for rival in list_rivals()}
    return Result(
        entry=BY_TITLE[title], verdicts={"coverage": verdict}, answers=answers, seconds=1.0
    )


def test_the_page_counts_what_was_caught_named_and_alarmed(tmp_path: Path) -> None:
    misspelt, bare = FAST[4], FAST[5]
    results = [
        result_of(
            misspelt,
            status=Status.FAIL,
            headline="exclude 'x' matches none of 9: did you mean '*patch_embedding*'?",
        ),
        result_of(bare, status=Status.FAIL, headline="something else | <b>"),
        result_of(FAST[6], status=Status.PASS, headline="all is well"),
        result_of(GOOD[0], status=Status.PASS, headline="all is well"),
        result_of(GOOD[1], status=Status.FAIL, headline="an alarm"),
    ]
    for result in results:
        keep_result(tmp_path, result)

    kept = read_results(tmp_path, BY_TITLE)
    page = "\n".join(render_page(list(kept.values()), versions={"torch": "2"}))
    lines = "\n".join(render_lines(results))

    assert list(kept.values()) == results
    assert "| pytest-quantgate | 2 of 3 (67 %) | 1 of 3 (33 %) | 1 of 2 (50 %) |" in page
    assert "| vLLM | 0 of 3 (0 %) | names none | 0 of 2 (0 %) |" in page
    assert f"| {misspelt} | coverage | exclude 'x' matches none of 9:" in page
    assert "something else \\| &lt;b>" in page
    assert f"NOT NAMED (cause not named): {bare}" in lines
    assert f"NOT CAUGHT (cause not named): {FAST[6]}" in lines
    assert f"FALSE ALARM: {GOOD[1].removeprefix('control: ')}: coverage" in lines
