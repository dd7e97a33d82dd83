"""A fast part of the sabotage bench: what needs no evaluation of a whole task, on few samples."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.selftest.sabotage import whole_text

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.false_alarms import VariantCase  # noqa: E402
from benchmarks.sabotage.bench import SUITE, Bench, Entry  # noqa: E402
from benchmarks.sabotage.catalogue import CATALOGUE, SABOTAGES  # noqa: E402
from benchmarks.sabotage.changes import TRUTHS  # noqa: E402
from benchmarks.sabotage.differences import (  # noqa: E402
    Difference,
    Said,
    compare_entries,
    describe_failure,
)
from benchmarks.sabotage.differences import render_page as render_differences  # noqa: E402
from benchmarks.sabotage.pipeline import PipelineCase  # noqa: E402
from benchmarks.sabotage.releases import Releases  # noqa: E402
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
    "overflow: an embedding depends on what else is in its batch",
    "hidden: quantizers that run, and a product of what they were given",
    "hidden: another scale of the logits",
    "hidden: a dropout that is on",
    "hidden: FP16 is the quantized model",
    "evaluation: samples that failed were skipped",
    "evaluation: losses hidden by gains",
    "baseline: value edited by hand",
    "speed: quantized slower than FP16",
    "speed: quantized timed at batch 1, FP16 at batch 8",
    "speed: quantized exported with a fixed batch of 4, FP16 timed at batch 8",
    "speed: a timer that does not wait for the device",
    "speed: an absolute limit on another machine",
)
GOOD = (
    "control: the good release itself",
    "control: built twice from one suite",
    "control: the same recipe written out",
)


#: One of each kind of thing that a reviewer compares, and of what diff is asked to say of it.
REVIEWED = (
    "recipe: the script ships the model that was never quantized",
    "recipe: exclusion misspelt",
    "attention: calibrated under sdpa, run in eager",
    "calibration: no batch was calibrated on",
    "calibration: one range zero",
    "weights: fine-tuned after the calibration",
    "baseline: baseline of another model",
    "baseline: older schema",
    "evaluation: labels shuffled",
    "speed: quantized slower than FP16",
    "speed: rounds of one variant are missing",
    "control: calibration order 0",
    "control: the same recipe written out",
    "control: samples in another order",
    "control: latency on a machine with 1 % noise, 1",
)
#: What needs no export and no search for suspects; the first two of these that an entry has.
REVIEWED_BY = ("coverage", "calibration", "regression", "latency")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    small = (
        SUITE.replace("samples: 256, batch_size: 64, held_out_samples: 128", "samples: 32, "
                      "batch_size: 16, held_out_samples: 16")
        .replace("samples: 1000", "samples: 300")
        .replace("max_clipped: 0.1%", "max_clipped: 1%")
    )  # fmt: skip
    return Bench(tmp_path_factory.mktemp("sabotage"), suite=small, samples=300)


Make = Callable[[str], Case]


@pytest.fixture(scope="module")
def make(bench: Bench) -> Make:
    """Make the case of an entry, once for all that look at it."""
    return functools.cache(lambda title: BY_TITLE[title].make(bench))


@pytest.fixture(scope="module")
def releases(bench: Bench) -> Releases:
    return Releases(bench, kinds=REVIEWED_BY)


def test_stand_ins_take_what_a_case_is_given() -> None:
    """The bench replaces methods of a case, and no type checker reads it."""
    compared = 0
    for stand_in in (PipelineCase, VariantCase):
        for name, own in vars(stand_in).items():
            if inspect.isfunction(own) and hasattr(Case, name) and name != "__init__":
                given, taken = (
                    list(inspect.signature(f).parameters) for f in (getattr(Case, name), own)
                )
                assert given == taken, f"{stand_in.__name__}.{name}"
                compared += 1
    assert compared


def ask(make: Make, entry: Entry, *, kinds: tuple[str, ...]) -> Mapping[str, Verdict]:
    return judge(make(entry.title), entry=replace(entry, judged=kinds))


@pytest.mark.parametrize("title", FAST)
def test_sabotage_is_named(make: Make, title: str) -> None:
    entry = BY_TITLE[title]

    verdicts = ask(make, entry, kinds=entry.gates)

    red = [v for v in verdicts.values() if v.status not in (Status.PASS, Status.NOT_MEASURED)]
    assert any(
        verdict.code == entry.code and re.search(entry.cause, whole_text(verdict))
        for verdict in red
    )


@pytest.mark.parametrize("title", GOOD)
def test_good_release_passes(make: Make, title: str) -> None:
    verdicts = ask(make, BY_TITLE[title], kinds=("coverage", "calibration"))

    assert [verdict.headline for verdict in verdicts.values() if not verdict.passed] == []
    assert len(verdicts) == 2


@pytest.mark.parametrize("title", REVIEWED)
def test_diff_names_the_true_change(releases: Releases, make: Make, title: str) -> None:
    judged = [kind for kind in BY_TITLE[title].judged if kind in REVIEWED_BY]
    entry = replace(BY_TITLE[title], judged=tuple(judged[:2]))
    assert releases.good
    case = make(title)

    releases.publish(title, case=case, verdicts=judge(case, entry=entry))
    (found,) = compare_entries(releases, [entry])

    texts = "\n".join(said.text for said in found.said)
    assert found.is_named, f"{describe_failure(found)}\n{texts}"
    assert all(found.quote(route) for route in found.names)


def difference(title: str, **texts: str) -> Difference:
    return Difference(
        entry=BY_TITLE[title],
        truth=TRUTHS[title],
        said=tuple(
            Said(
                route=route,  # type: ignore[arg-type]
                status=int(text != "no difference"),
                text=text,
                changes=(text,) if text != "no difference" else (),
            )
            for route, text in texts.items()
        ),
    )


WHOLE_TOWER = "Quantizers\n  - the whole text tower is unquantized now: 50 -> 0 quantizers on\n"


def test_the_page_of_differences_counts_what_is_named(tmp_path: Path) -> None:
    off, zero = "recipe: text tower switched off after quantization", "calibration: one range zero"
    order, good = "control: calibration order 0", "control: the good release itself"
    another = "calibration images: the same ones in another order"
    found = [
        difference(off, revisions="no difference", checkpoint=WHOLE_TOWER, report=WHOLE_TOWER),
        difference(zero, checkpoint="1 of 116 quantizers re-ranged", report="no difference"),
        difference(order, checkpoint=another, report=another),
        difference(good, report=another),
    ]

    page = "\n".join(render_differences(found))

    assert [item.is_named for item in found] == [True, False, True, False]
    assert "**The true change is named in 1 of 2 sabotages**" in page
    assert (
        "1 must show no difference, the others their allowed change and nothing else: 1 do" in page
    )
    assert f"| {off} | checkpoint | the whole text tower is unquantized now: 50 -> 0 quant" in page
    assert f"| {off} | revisions | no difference |  |" in page
    assert f"- {zero}: not named by checkpoint, report" in page
    assert f"- {good}: said without reason: report: {another}" in page


def test_every_entry_has_its_true_change() -> None:
    assert set(TRUTHS) == {title for title, entry in BY_TITLE.items() if entry.compared}
    for title, truth in TRUTHS.items():
        entry = BY_TITLE[title]
        assert entry.is_control or truth.said, title
        assert not (entry.is_control and truth.said and not truth.only), title
        assert not (truth.only and re.search(truth.only, "something else")), title
        for pattern in truth.said.values():
            assert not re.search(pattern, "1 change: gates 1"), title


def test_the_catalogue_is_whole() -> None:
    controls = [entry for entry in CATALOGUE if entry.is_control]

    assert len(SABOTAGES) >= 60
    assert len(controls) >= 30
    assert len(BY_TITLE) == len(CATALOGUE)
    assert {entry.theme for entry in SABOTAGES} == {
        *("sanity", "data", "recipe", "attention", "calibration", "weights", "overflow"),
        *("evaluation", "baseline", "export", "engine", "speed", "formats", "hidden"),
    }
    for entry in SABOTAGES:
        assert entry.gates, entry.title
        assert entry.code or entry.principle, entry.title
        assert re.compile(entry.cause), entry.title
        assert set(entry.gates) & set(entry.judged), entry.title
    assert not any(entry.gates or entry.code or entry.cause for entry in controls)


def result_of(title: str, *, status: Status, headline: str, code: str = "") -> Result:
    verdict = Verdict(gate="coverage", status=status, headline=headline, code=code)
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
            code="coverage.exclude-matches-nothing",
        ),
        result_of(bare, status=Status.FAIL, headline="something else | <b>", code="coverage.x"),
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
