"""`quantgate limits`: what is proposed is what the data decides, for the worst calibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from pytest_quantgate.commands import limits
from pytest_quantgate.commands.cli import main
from pytest_quantgate.commands.proposing import DROPS, Measured, Proposal, propose
from pytest_quantgate.errors import DataError, SuiteError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.gates.sections import TaskGate
from pytest_quantgate.statistics.pairing import pair_outcomes
from pytest_quantgate.statistics.sizes import samples_to_settle
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.specs import Suite
from pytest_quantgate.tasks.contents import Contents
from tests.unit.gates.gate_builders import accuracy_gate, make_hits, make_pair, regression_gate

Captured = pytest.CaptureFixture[str]

SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 64, batch_size: 64}
quantize: {recipe: fp8}
gates:
  accuracy:
    - {task: scenes/classification, metric: acc1, max_drop: 1pp, samples: 500, confidence: 90%}
"""


def measured(
    *variants: tuple[int, int],
    samples: int = 5_000,
    gate: TaskGate | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> Measured:
    """Return what FP16 gives and variants that lost and won so many."""
    pairs = [make_pair(samples, lost=lost, won=won, both_wrong=500) for lost, won in variants]
    fp16 = make_pair(samples, both_wrong=500)[0]
    return Measured(
        gate=gate or accuracy_gate(),
        fp16=fp16,
        variants=tuple(_against(fp16, *pair) for pair in pairs),
        columns=columns or {},
    )


def _against(fp16: Outcomes, before: Outcomes, after: Outcomes) -> Outcomes:
    """Return a variant that differs from this FP16 where `after` differs from `before`."""
    lost = sum(bool(a and not b) for a, b in zip(before.correct, after.correct, strict=True))
    won = sum(bool(b and not a) for a, b in zip(before.correct, after.correct, strict=True))
    right = [i for i, hit in enumerate(fp16.correct) if hit][:lost]
    wrong = [i for i, hit in enumerate(fp16.correct) if not hit][:won]
    correct = list(fp16.correct)
    answers = list(fp16.answers)
    for i in (*right, *wrong):
        correct[i] = not correct[i]
        answers[i] = fp16.labels[i] if correct[i] else (fp16.labels[i] + 1) % 4
    return replace(
        fp16,
        variant="fp8-attention",
        correct=tuple(correct),
        answers=tuple(answers),
        value=sum(correct) / len(correct),
    )


def points(proposal: Proposal, name: str = "max_drop") -> float:
    return float(proposal.limits[name].removesuffix("pp").removesuffix("%"))


def needed(found: Measured, limit: float) -> int | None:
    pairs = pair_outcomes(before=found.fp16, after=found.variants[0])
    return samples_to_settle(pairs.flips, confidence=0.95, limit=limit / 100)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (25, 20), (120, 80), (300, 300)])
def test_the_strictest_limit_that_the_samples_decide_is_proposed(lost: int, won: int) -> None:
    found = measured((lost, won))

    proposal = propose(found)

    limit = points(proposal)
    assert limit in DROPS
    assert (needed(found, limit) or 0) <= 5_000
    for stricter in DROPS[: DROPS.index(limit)]:
        value = (lost - won) / 50
        more = needed(found, stricter)
        assert stricter <= value or more is None or more > 5_000
        if stricter == DROPS[DROPS.index(limit) - 1] and stricter > value:
            assert any(f"{stricter:g}pp takes {more} samples" in line for line in proposal.reasons)


def test_the_worst_calibration_decides() -> None:
    one, three = propose(measured((30, 28))), propose(measured((30, 28), (110, 30), (25, 30)))

    assert points(three) > points(one)
    assert any(
        "drop over 3 calibrations: 0.04, 1.60, -0.10 pp, a spread of 1.70 pp" in line
        for line in three.reasons
    )


def test_a_gain_is_luck_and_makes_no_limit_stricter() -> None:
    assert points(propose(measured((0, 100)))) == points(propose(measured((50, 50))))


def test_too_few_samples_say_what_it_takes() -> None:
    proposal = propose(measured((5, 5), samples=600))

    assert points(proposal) == 2
    tiny = propose(
        measured((2, 2), samples=500 + 4, gate=accuracy_gate(confidence=Fraction(999, 1000)))
    )
    assert any(line.startswith("max_drop") and "takes" in line for line in tiny.reasons)


def test_flips_and_floor_are_proposed_with_the_drop() -> None:
    proposal = propose(measured((60, 60)))

    assert proposal.limits["max_flips"] == "3%"
    assert proposal.limits["floor"] == "88%"  # of 90 %


def test_what_has_no_floor_gets_none() -> None:
    """Of neighbours FP16 is the truth: the drop says all."""
    gate = accuracy_gate(task="photos/neighbours", metric="top1")

    assert "floor" not in propose(measured((60, 0), gate=gate)).limits


# -- slices ---------------------------------------------------------------------------------------


def columns(samples: int = 5_000, rare: int = 0) -> dict[str, list[str]]:
    return {
        "camera": ["left" if i % 2 else "right" for i in range(samples)],
        "light": ["lamp" if i < rare else "day" if i % 3 else "night" for i in range(samples)],
        "taken": [f"{i}" for i in range(samples)],
    }


def test_slices_are_by_columns_of_few_values_at_what_they_can_show() -> None:
    proposal = propose(measured((40, 30), columns=columns(rare=20)))

    said = yaml.safe_load(proposal.limits["slices"])
    assert said["by"] == ["camera", "light"]
    assert said["min_samples"] > 20
    assert any("'taken' (5000 values)" in line for line in proposal.reasons)
    assert any("; left out: 1 smaller one" in line for line in proposal.reasons)


def test_a_slice_that_lost_more_makes_the_limit_wider() -> None:
    even = measured((150, 0), columns=columns())
    pushed = replace(even, columns={"light": ["night" if i < 900 else "day" for i in range(5_000)]})

    wide, narrow = propose(pushed), propose(even)

    limit, other = (yaml.safe_load(one.limits["slices"])["max_drop"] for one in (wide, narrow))
    assert float(limit[:-2]) > float(other[:-2])
    assert any("the nearest to it 'light=night'" in line for line in wide.reasons)


def test_samples_in_clusters_count_for_what_they_are_worth() -> None:
    """Five captions of a picture are found together: a thousand know as much as two hundred."""
    clusters = tuple(i // 5 for i in range(1_000))
    right = [i // 5 % 5 != 0 for i in range(1_000)]
    kept = [hit and i // 5 % 97 != 1 for i, hit in enumerate(right)]
    plain = (make_hits(right, variant="fp16"), make_hits(kept))
    together = tuple(replace(one, clusters=clusters) for one in plain)
    gate = accuracy_gate(task=plain[0].task, metric=plain[0].metric)

    alone, joined = (
        propose(
            Measured(
                gate=gate,
                fp16=fp16,
                variants=(quantized,),
                columns={"light": ["day" if i % 2 else "night" for i in range(1_000)]},
            )
        )
        for fp16, quantized in (plain, together)
    )

    assert points(joined) > points(alone)
    assert "slices" in alone.limits
    stricter = next(line for line in joined.reasons if line.startswith("max_drop"))
    assert int(stricter.partition(" takes ")[2].split()[0]) > 1_000


# -- regression -----------------------------------------------------------------------------------


def test_drift_is_what_one_calibration_is_against_another() -> None:
    """Each is close to FP16, but they flip other samples."""
    gate = regression_gate()
    same = propose(measured((60, 60), (60, 60), gate=gate))
    other = propose(measured((60, 60), (0, 0), gate=gate))

    assert same.limits["max_drop"] == "0.1pp"
    assert float(other.limits["max_drop"][:-2]) > 0.1
    assert same.limits["max_fp16_drop"] == "0.1pp"
    assert set(same.limits) == {"max_fp16_drop", "max_drop", "max_drop_since_first"}


def test_slices_against_a_baseline_are_proposed_as_calibrations_differ() -> None:
    gate, by = regression_gate(), columns()
    same = propose(measured((60, 60), (60, 60), gate=gate, columns=by))
    other = propose(measured((60, 60), (0, 0), gate=gate, columns=by))

    assert same.limits["slices"].startswith("{by: [")
    assert same.limits["slices"] != other.limits["slices"]
    assert not any("searched" in reason for reason in same.reasons)


# -- the command ----------------------------------------------------------------------------------


class StubCase:
    """A case of which outcomes are given by the number of its calibration."""

    def __init__(self, suite: Suite, measure: Callable[[int], tuple[Outcomes, Outcomes]]) -> None:
        self.suite, self.measure = suite, measure
        self.progress = SimpleNamespace(stage=self._stage)
        self.sanity = SimpleNamespace(tasks=())
        self.store = SimpleNamespace(read=lambda *_, **__: None)

    @contextmanager
    def _stage(self, *_: object, **__: object) -> Iterator[None]:
        yield

    def outcomes(self, **_: object) -> tuple[Outcomes, Outcomes]:
        return self.measure(self.suite.calibration.skip // self.suite.calibration.samples)

    def contents(self, *_: object, **__: object) -> Contents:
        ids = self.measure(0)[0].ids
        blank = ("",) * len(ids)
        return Contents(
            ids=ids, pixels=blank, looks=blank, columns={"camera": ("left",) * len(ids)}
        )


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    Path("s.quantgate.yaml").write_text(SUITE)

    def call(measure: Callable[[int], tuple[Outcomes, Outcomes]], *arguments: str) -> int:
        monkeypatch.setattr(
            limits, "open_case", lambda _parsed, *, environ, suite: StubCase(suite, measure)
        )
        return main(["limits", "s.quantgate.yaml", *arguments], environ={})

    return call


def test_what_is_printed_can_be_pasted_and_keeps_what_the_gate_is_on(
    stub: Callable[..., int], capsys: Captured
) -> None:
    assert (
        stub(lambda number: make_pair(500, lost=2 + number, won=2, both_wrong=50), "--seeds", "2")
        == 0
    )

    out = capsys.readouterr().out
    assert out.startswith("# quantgate limits s.quantgate.yaml --seeds 2: paste")
    (gate,) = yaml.safe_load(out)["accuracy"]
    assert (gate["samples"], gate["confidence"]) == (500, "90%")
    Path("p.quantgate.yaml").write_text(
        SUITE[: SUITE.index("gates:")]
        + "gates:\n"
        + "".join(f"  {line}\n" for line in out.splitlines())
    )
    (read,) = load_suite(Path("p.quantgate.yaml")).gates.all(TaskGate)
    assert (read.samples, read.confidence) == (500, Fraction(9, 10))


def test_of_fp16_that_guesses_nothing_is_proposed(
    stub: Callable[..., int], capsys: Captured
) -> None:
    def guess(_number: int) -> tuple[Outcomes, Outcomes]:
        fp16, quantized = make_pair(500, both_wrong=50)
        return replace(fp16, value=0.5), quantized

    assert stub(guess) == 1

    out = capsys.readouterr().out
    assert "# NO LIMITS: accuracy: scenes/classification acc1: the value of fp16" in out
    assert "- {" not in out
    assert stub(guess, "--json") == 1
    assert "the value of fp16" in json.loads(capsys.readouterr().out)["gates"][0]["refused"]


def test_as_json_it_is_the_same(stub: Callable[..., int], capsys: Captured) -> None:
    def measure(_number: int) -> tuple[Outcomes, Outcomes]:
        return make_pair(500, lost=2, won=2, both_wrong=50)

    assert stub(measure) == 0
    (pasted,) = yaml.safe_load(text := capsys.readouterr().out)["accuracy"]
    assert stub(measure, "--json") == 0
    found = json.loads(capsys.readouterr().out)

    (gate,) = found.pop("gates")
    assert found == {"format": 1, "suite": "s.quantgate.yaml", "seeds": 1}
    assert gate["gate"] == "accuracy[scenes/classification-acc1]"
    assert gate["limits"] == {name: pasted[name] for name in gate["limits"]}
    assert all(f"# {reason}" in text for reason in gate["reasons"])


def test_data_that_runs_out_names_the_calibration(
    stub: Callable[..., int], capsys: Captured
) -> None:
    def measure(number: int) -> tuple[Outcomes, Outcomes]:
        if number == 2:
            raise DataError("scenes/calibration has 200 samples, 320 are asked for")
        return make_pair(500, both_wrong=50)

    assert stub(measure, "--seeds", "3") == 1

    assert capsys.readouterr().err == (
        "quantgate: --seeds 3: calibration 3: scenes/calibration has 200 samples, 320 are asked "
        "for: take fewer seeds, or fewer samples to calibrate\n"
    )


def test_each_calibration_has_pairs_of_its_own(stub: Callable[..., int]) -> None:
    suite = load_suite(Path("s.quantgate.yaml"))

    assert [one.calibration.skip for one in limits.vary(suite, 3)] == [0, 64, 128]


def test_a_suite_without_what_is_to_be_proposed_is_refused(stub: Callable[..., int]) -> None:
    suite = load_suite(Path("s.quantgate.yaml"))
    empty = replace(suite, gates=replace(suite.gates, sections=()))
    given = replace(suite, quantize=None, quantized=cast(Any, suite.quantize))

    with pytest.raises(SuiteError, match="no accuracy and no regression gate: write one"):
        limits.vary(empty, 1)
    with pytest.raises(SuiteError, match="calibrated once: leave out --seeds"):
        limits.vary(given, 2)


@pytest.mark.parametrize("text", ["0", "21", "x", "-1"])
def test_seeds_are_a_small_number(text: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["limits", "s.quantgate.yaml", f"--seeds={text}"])

    assert f"{text!r} is no number from 1 to 20" in capsys.readouterr().err
