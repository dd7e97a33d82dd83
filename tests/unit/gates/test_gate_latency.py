"""The latency gate: decisions, words, and its error rates on simulated noisy machines."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_quantgate.evidence.latency import LatencyRun, Machine, RunnerTimes
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.latency import LatencyGate, judge_latency
from pytest_quantgate.gates.timed import BRIEF_LENGTH, machine_differences, show_ms, show_ratio
from pytest_quantgate.measure.rounds import first_look
from pytest_quantgate.statistics.intervals import Interval
from pytest_quantgate.statistics.rounds import (
    Levels,
    confidence_of_look,
    least_rounds,
    noise_factor,
    rounds_to_settle,
    student_quantile,
)
from pytest_quantgate.suite.where import Where
from tests.unit.gates.gate_builders import SAME_EXAMPLES, all_text, number_in

FILE = "suites/clip.quantgate.yaml"
WHERE = Where(file=FILE, line=30, keys={"max_ratio": 31, "max_latency": 32})
MACHINE = Machine(system="Linux x86_64", processor="A", cores=2, threads=1, device="cpu")
NINETY_FIVE = Fraction(95, 100)

SHAPES = ("quiet", "drift", "bursts", "bimodal", "sticky")


def make_times(name: str, times_ms: list[float], **changes: Any) -> RunnerTimes:
    values: dict[str, Any] = {
        "name": name,
        "times_ms": tuple(times_ms),
        "runs": 3,
        "first_run_ms": 50.0,
        "warm_up_batches": 10,
        "warm": True,
        **changes,
    }
    return RunnerTimes(**values)


def make_run(
    fp16: list[float],
    quantized: list[float],
    again: list[float] | None = None,
    **changes: Any,
) -> LatencyRun:
    values: dict[str, Any] = {
        "runtime": "onnxruntime",
        "machine": MACHINE,
        "tower": "vision",
        "batch_size": 8,
        "fp16": make_times("fp16", fp16),
        "quantized": make_times("quantized", quantized),
        "fp16_again": make_times("fp16 again", fp16 if again is None else again),
        **changes,
    }
    return LatencyRun(**values)


def simulate(*, shape: str, ratio: float, rounds: int, seed: int) -> LatencyRun:
    """Return a run of 10 ms FP16 times on a machine with noise of one shape, over 1 % of jitter.

    `drift`: everything slows down as it goes. `bursts`: now and then the next 1 to 12 batches are
    up to three times slower. `bimodal` and `sticky`: two clock speeds, changed often or rarely.
    """
    stream = random.Random(f"{shape} {seed}")
    drift, burst, slow = 1.0, 0, False
    times: dict[str, list[float]] = {"fp16": [], "quantized": [], "again": []}
    for _ in range(rounds):
        order = list(times)
        stream.shuffle(order)
        for name in order:
            time_ms = 10.0 * (ratio if name == "quantized" else 1.0)
            time_ms *= math.exp(stream.gauss(0, 0.01))
            if shape == "drift":
                drift *= math.exp(stream.gauss(0.002, 0.01))
                time_ms *= drift
            elif shape == "bursts":
                if not burst and stream.random() < 0.05:
                    burst = stream.randint(1, 12)
                if burst:
                    burst, time_ms = burst - 1, time_ms * stream.uniform(1.3, 3)
            elif shape in ("bimodal", "sticky"):
                slow ^= stream.random() < (0.3 if shape == "bimodal" else 0.03)
                time_ms *= 1.3 if slow else 1.0
            times[name].append(time_ms)
    return make_run(times["fp16"], times["quantized"], times["again"])


@pytest.mark.parametrize(
    ("processes", "planned", "said"),
    [
        (5, 0, "over 30 rounds in 5 processes: ratio 0.500, one-sided 95 % limits"),
        (3, 5, "over 18 rounds in 3 of 5 processes: ratio 0.500, one-sided 99.5 % limits"),
        (5, 5, "over 30 rounds in 5 processes: ratio 0.500, one-sided 95.5 % limits"),
    ],
)
def test_the_looks_at_a_run_share_its_error_chance(processes: int, planned: int, said: str) -> None:
    rounds = 6 * processes
    run = make_run([10.0] * rounds, [5.0] * rounds, processes=processes, planned=planned)

    found = judge(run)

    assert found.status is Status.PASS
    assert said in found.headline


@given(
    confidence=st.fractions(min_value=Fraction(1, 2), max_value=Fraction(999, 1000)),
    planned=st.integers(min_value=2, max_value=100),
)
def test_both_looks_together_are_wrong_in_at_most_the_chance(
    confidence: Fraction, planned: int
) -> None:
    first = first_look(planned)

    chances = [
        1 - confidence_of_look(confidence, processes=done, planned=planned)
        for done in {first, planned}
    ]

    assert 0 < first <= planned
    assert sum(chances) <= 1 - confidence


def judge(run: LatencyRun, *, baseline_machine: Machine | None = None, **changes: Any) -> Verdict:
    keys: dict[str, Any] = {
        "max_ratio": Fraction(1),
        "confidence": NINETY_FIVE,
        "where": WHERE,
        **changes,
    }
    gate = LatencyGate(tower="vision", **keys)
    return judge_latency(run, gate, baseline_machine=baseline_machine)


def check_words(verdict: Verdict) -> None:
    """A table has room for the brief, and a verdict says where its limit stands."""
    assert len(verdict.brief) <= BRIEF_LENGTH
    assert f"{FILE}:3" in verdict.headline
    assert all(math.isfinite(v) for v in verdict.figures.values() if isinstance(v, float))


# -- the ratio -----------------------------------------------------------------------------------


def test_a_faster_variant_passes_with_both_sides_and_the_noise() -> None:
    verdict = judge(simulate(shape="quiet", ratio=0.46, rounds=30, seed=0))
    assert verdict.status is Status.PASS
    assert "vision, batch 8, onnxruntime on cpu" in verdict.headline
    assert "vs FP16 9.99 ms over 30 rounds: ratio 0.46" in verdict.headline
    assert "one-sided 95 % limits [0.4" in verdict.headline
    assert f"within max_ratio 1 ({FILE}:31)" in verdict.headline
    assert "A/A: FP16 against itself in the same rounds gives" in verdict.evidence[0]
    assert "within 1x" in verdict.brief
    assert "A/A" in verdict.brief
    assert verdict.figures["rounds"] == 30
    assert verdict.figures["fp16_samples_per_s"] == pytest.approx(800, rel=0.02)
    assert verdict.figures["latency_ratio_low"] < verdict.figures["latency_ratio_high"]  # type: ignore[operator]
    check_words(verdict)


def test_a_slower_variant_fails_with_a_next_step() -> None:
    verdict = judge(simulate(shape="quiet", ratio=1.5, rounds=30, seed=0))
    assert verdict.status is Status.FAIL
    assert "over max_ratio 1 " in verdict.headline
    assert "full precision" in verdict.cause
    assert "kernels" in verdict.next_step
    check_words(verdict)


def test_at_the_limit_it_is_inconclusive_and_says_how_many_rounds_it_takes() -> None:
    run = simulate(shape="quiet", ratio=0.985, rounds=10, seed=3)
    verdict = judge(run)
    assert verdict.status is Status.INCONCLUSIVE
    needed = number_in(r"about (\d+) rounds with this noise", verdict.evidence)
    assert needed > 10
    assert "A/A noise" in verdict.headline
    assert "more rounds, or on a quieter machine" in verdict.next_step
    check_words(verdict)
    more = simulate(shape="quiet", ratio=0.985, rounds=4 * needed, seed=3)
    assert judge(more).status is Status.PASS


def test_noise_larger_than_the_distance_is_the_cause() -> None:
    fp16 = [10.0] * 12
    noisy = judge(make_run(fp16, [9.8] * 12, [10.0, 11.0] * 6))
    assert noisy.status is Status.INCONCLUSIVE
    assert "the machine's own noise (A/A) is larger" in noisy.cause
    few = judge(make_run(fp16, [9.0, 9.0, 11.0, 11.0, 9.5, 9.5] * 2))
    assert few.status is Status.INCONCLUSIVE
    assert "too few rounds" in few.cause


def test_a_result_at_the_limit_is_settled_by_no_number_of_rounds() -> None:
    steps = [9.0, 9.5, 10.0, 10.0 / 0.95, 10.0 / 0.9]
    verdict = judge(make_run([10.0] * 10, [step for step in steps for _ in range(2)], processes=5))
    assert verdict.status is Status.INCONCLUSIVE
    assert "no practical number of rounds" in all_text(verdict)


def test_the_interval_is_widened_by_fp16_against_itself() -> None:
    fp16, quantized = [10.0] * 12, [9.6] * 12
    quiet, noisy = judge(make_run(fp16, quantized)), judge(make_run(fp16, quantized, [9.5] * 12))
    assert quiet.status is Status.PASS
    assert quiet.figures["latency_ratio_high"] == pytest.approx(0.96)
    assert noisy.status is Status.INCONCLUSIVE
    assert noisy.figures["latency_ratio_high"] == pytest.approx(0.96 / 0.95)
    assert noisy.figures["latency_ratio_low"] == pytest.approx(0.96 * 0.95)
    assert noisy.figures["noise_share"] == pytest.approx(1 / 0.95 - 1)


def test_a_runner_that_never_got_warm_is_named() -> None:
    run = make_run([10.0] * 12, [5.0] * 12)
    run = replace(run, quantized=replace(run.quantized, warm=False))
    assert "quantized did not settle during the warm-up" in judge(run).evidence


# -- error rates ---------------------------------------------------------------------------------

#: Of 100 runs of a gate at 95 %, 5 may be wrong.
SEEDS = 100
WRONG = 5


def tally(*, shape: str, ratio: float, max_ratio: str, rounds: int) -> Counter[Status]:
    return Counter(
        judge(
            simulate(shape=shape, ratio=ratio, rounds=rounds, seed=seed),
            max_ratio=Fraction(max_ratio),
        ).status
        for seed in range(SEEDS)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_runner_twice_is_not_failed(shape: str) -> None:
    found = tally(shape=shape, ratio=1.0, max_ratio="1.05", rounds=30)
    assert found[Status.FAIL] <= WRONG
    assert found[Status.PASS] >= 30  # and that is not because nothing is ever decided


@pytest.mark.parametrize("shape", SHAPES)
def test_half_as_slow_again_is_not_passed(shape: str) -> None:
    found = tally(shape=shape, ratio=1.5, max_ratio="1", rounds=30)
    assert found[Status.PASS] == 0
    assert found[Status.FAIL] >= 90


@pytest.mark.parametrize("shape", SHAPES)
def test_exactly_at_the_limit_either_error_is_rare(shape: str) -> None:
    found = tally(shape=shape, ratio=0.8, max_ratio="0.8", rounds=12)
    assert found[Status.FAIL] <= WRONG
    assert found[Status.PASS] <= WRONG


def draw_machine(noise: str, *, seed: int) -> LatencyRun:
    """Return sides that are the same, 30 rounds in 5 processes, with noise of one kind.

    `each`: every runner its own; `sides`: FP16 one that is the same in both of its processes,
    and quantized another. `AR`: correlation 0.95 of neighbours; `clock`: 10 % slower in a third of
    the time, in states that stay with probability 0.95; both begin anew in a process, or `go on`
    over all of them, 20 rounds apart. `level`: one of each process.
    """
    who, kind, *more = noise.split(" ", 2)
    stream = random.Random(f"{noise} {seed}")
    pause = 20 if more else 0

    def line(length: int) -> list[float]:
        found: list[float] = []
        for _ in range(length):
            fresh = (
                0.03 * stream.gauss(0, 1) if kind != "clock" else 0.1 * (stream.random() < 1 / 3)
            )
            if found and kind == "AR":
                fresh = 0.95 * found[-1] + math.sqrt(1 - 0.95**2) * fresh
            elif found and (kind == "level" or stream.random() < 0.95):
                fresh = found[-1]
            found.append(fresh)
        return found

    def side() -> list[float]:
        if more:
            whole = line(5 * (6 + pause))
            return [value for part in range(5) for value in whole[part * 26 : part * 26 + 6]]
        return [value for _ in range(5) for value in line(6)]

    fp16, quantized = side(), side()
    again = side() if who == "each" else fp16
    times = [
        [10.0 * math.exp(value + stream.gauss(0, 0.003)) for value in values]
        for values in (fp16, quantized, again)
    ]
    return make_run(*times, processes=5, pause_rounds=float(pause))


@pytest.mark.parametrize(
    "noise",
    ["each AR", "each clock", "each level", "sides AR", "sides clock", "sides level",
     "each AR goes on", "sides AR goes on", "sides clock goes on"],
)  # fmt: skip
def test_no_noise_of_a_side_fails_sides_that_are_the_same(noise: str) -> None:
    """Both limits hold as often as they say; all figures: docs/statistics.md."""
    found = [judge(draw_machine(noise, seed=seed)).figures for seed in range(200)]

    too_high = sum(float(figures["latency_ratio_low"]) > 1 for figures in found)
    too_low = sum(float(figures["latency_ratio_high"]) < 1 for figures in found)
    assert max(too_high, too_low) <= 10  # 5 %
    assert any(float(figures["latency_ratio_high"]) < 1.5 for figures in found)


@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 10**6),
    rounds=st.integers(5, 60),
    confidence=st.sampled_from(("0.9", "0.95", "0.99")),
)
@SAME_EXAMPLES
def test_no_machine_passes_what_is_half_as_slow_again(
    shape: str, seed: int, rounds: int, confidence: str
) -> None:
    run = simulate(shape=shape, ratio=1.5, rounds=rounds, seed=seed)
    verdict = judge(run, confidence=Fraction(confidence))
    assert verdict.status in (Status.FAIL, Status.INCONCLUSIVE)
    check_words(verdict)


times = st.floats(1e-12, 1e12)

#: From these a reach of hundreds of orders of magnitude is computed, more than a float holds.
WILD_TIMES = [
    (1.0, 308069544766.0, 603439219678.0),
    (106545375360.0, 1330931.5, 65577.0),
    (1210724646.0, 1.0, 1.0),
    (1e-12, 2.0, 2554800.0),
    (976026708.0, 1.0, 1.0),
    (1.0, 1.0, 1.0),
]


@given(
    rows=st.lists(st.tuples(times, times, times), min_size=5, max_size=20),
    limit=st.fractions("0.01", 100, max_denominator=1000),
    faster=st.floats(0.01, 1.0),
)
@example(rows=WILD_TIMES, limit=Fraction(1, 100), faster=1.0)
@settings(SAME_EXAMPLES, max_examples=150)
def test_any_times_give_a_verdict_and_getting_faster_never_hurts(
    rows: list[tuple[float, float, float]], limit: Fraction, faster: float
) -> None:
    fp16, quantized, again = (list(column) for column in zip(*rows, strict=True))
    believe_all = Fraction(1, 10**30)
    verdict = judge(make_run(fp16, quantized, again), max_ratio=limit, min_ratio=believe_all)
    check_words(verdict)
    low, high = (verdict.figures[f"latency_ratio_{end}"] for end in ("low", "high"))
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert low <= verdict.figures["latency_ratio"] <= high  # type: ignore[operator]
    quicker = judge(
        make_run(fp16, [max(1e-12, t * faster) for t in quantized], again),
        max_ratio=limit,
        min_ratio=believe_all,
    )
    rank = (Status.FAIL, Status.INCONCLUSIVE, Status.PASS)
    if min(quantized) * faster > 1e-12:
        assert rank.index(quicker.status) >= rank.index(verdict.status)


# -- what cannot be ------------------------------------------------------------------------------


@given(
    rows=st.lists(st.tuples(times, times, times), min_size=5, max_size=20),
    limit=st.fractions("0.01", 100, max_denominator=1000),
    gain=st.sampled_from((1, 4, 8, 32)),
)
@settings(SAME_EXAMPLES, max_examples=150)
@example(  # its interval ends beyond what a float holds
    rows=[
        (1.0, 1.0, 1.0),
        (2.0, 1.0, 1.0),
        (1e-05, 651744298211.0, 415257540004.0),
        (1.192092896e-07, 42949672961.0, 913717553853.0),
        (1000000000000.0, 1.0, 0.5),
        (6316724.0, 1.0, 1.0),
    ],
    limit=Fraction(1, 100),
    gain=1,
)
def test_a_ratio_below_what_arithmetic_gains_is_never_green_and_others_are_judged_as_ever(
    rows: list[tuple[float, float, float]], limit: Fraction, gain: int
) -> None:
    fp16, quantized, again = (list(column) for column in zip(*rows, strict=True))
    run = make_run(fp16, quantized, again, arithmetic_gain=gain)
    verdict = judge(run, max_ratio=limit)
    check_words(verdict)
    believed = judge(run, max_ratio=limit, min_ratio=Fraction(1, 10**30))
    ratio = believed.figures["latency_ratio"]
    assert isinstance(ratio, float)
    if ratio < 1 / (2 * gain):
        assert verdict.status is Status.INCOMPARABLE
        assert verdict.figures["latency_ratio"] == ratio
    else:
        assert verdict == believed


@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 10**6),
    rounds=st.integers(5, 60),
    gain=st.sampled_from((1, 4, 8, 32)),
    slower=st.floats(1, 10),
)
@SAME_EXAMPLES
def test_what_arithmetic_can_gain_is_believed_on_any_machine(
    shape: str, seed: int, rounds: int, gain: int, slower: float
) -> None:
    run = simulate(shape=shape, ratio=slower / gain, rounds=rounds, seed=seed)
    verdict = judge(replace(run, arithmetic_gain=gain))
    assert verdict.status is not Status.INCOMPARABLE


@pytest.mark.parametrize(
    ("gain", "quantized_ms", "words"),
    [
        (4, 1.24, "ratio 0.124, below 0.125: not the same work"),
        (4, 1.2499, "ratio 0.12499, below 0.125: not the same work"),
        (1, 4.0, "ratio 0.400, below 0.5: not the same work"),
        (8, 0.6, "ratio 0.060, below 0.0625: not the same work"),
    ],
)
def test_too_fast_a_model_says_what_was_expected_and_what_to_check(
    gain: int, quantized_ms: float, words: str
) -> None:
    verdict = judge(make_run([10.0] * 9, [quantized_ms] * 9, arithmetic_gain=gain))
    assert verdict.status is Status.INCOMPARABLE
    assert f"implausible: quantized {show_ms(quantized_ms)} vs FP16 10.0 ms" in verdict.headline
    assert f"{words} ({FILE}:30)" in verdict.headline
    reason = "simulates quantization" if gain == 1 else f"at most {gain} times as fast as FP16's"
    assert reason in verdict.evidence[0]
    assert "smaller batch" in verdict.cause
    assert verdict.next_step.endswith("if the ratio is right, set min_ratio below it")
    assert verdict.brief.endswith("x; not the same work")
    check_words(verdict)


@pytest.mark.parametrize(("gain", "ratio"), [(4, 0.125), (1, 0.5), (32, 1 / 64)])
def test_a_ratio_at_the_end_of_what_is_believed_is_judged(gain: int, ratio: float) -> None:
    run = make_run([10.0] * 9, [10.0 * ratio] * 9, arithmetic_gain=gain)
    assert judge(run).status is Status.PASS


def test_a_suite_may_believe_less_or_more() -> None:
    run = make_run([10.0] * 9, [1.0] * 9)
    assert judge(run, min_ratio=Fraction(1, 10)).status is Status.PASS
    verdict = judge(make_run([10.0] * 9, [2.0] * 9), min_ratio=Fraction(1, 4))
    assert verdict.status is Status.INCOMPARABLE
    assert "ratio 0.200, below 0.25: not the same work" in verdict.headline
    assert verdict.evidence == ("the suite believes no smaller one",)


def test_too_fast_a_model_is_not_green_by_its_limit_in_ms_either() -> None:
    verdict = judge(
        make_run([10.0] * 9, [0.5] * 9),
        max_ratio=None,
        max_latency_ms=12.0,
        baseline_machine=MACHINE,
    )
    assert verdict.status is Status.INCOMPARABLE
    assert "implausible" in verdict.headline


@pytest.mark.parametrize(("fp16", "quantized"), [(8, 4), (4, 4), (None, 16), (8, 0)])
def test_a_run_that_gives_another_number_of_embeddings_is_not_compared(
    fp16: int | None, quantized: int
) -> None:
    run = make_run([10.0] * 9, [5.0] * 9)
    run = replace(
        run,
        fp16=replace(run.fp16, samples=fp16),
        quantized=replace(run.quantized, samples=quantized),
    )
    verdict = judge(run)
    assert verdict.status is Status.INCOMPARABLE
    assert "not the same work: a run gives other than 8 embeddings: " in verdict.headline
    assert f"quantized {quantized} ({FILE}:30)" in verdict.headline
    assert "batch" in verdict.cause
    check_words(verdict)


def test_a_run_that_gives_the_batch_is_judged() -> None:
    run = make_run([10.0] * 9, [5.0] * 9)
    whole = replace(run, quantized=replace(run.quantized, samples=8))
    assert judge(whole) == judge(run)


# -- the limit in ms -----------------------------------------------------------------------------


def test_a_limit_in_ms_holds_on_the_machine_of_the_baseline() -> None:
    run = simulate(shape="quiet", ratio=1.0, rounds=30, seed=0)
    limits: dict[str, Any] = {"max_ratio": None, "baseline_machine": MACHINE}
    passed = judge(run, max_latency_ms=12.0, **limits)
    assert passed.status is Status.PASS
    assert f"within max_latency 12 ms ({FILE}:32)" in passed.headline
    assert "10.0 ms within 12 ms; A/A" in passed.brief
    assert "A/A" in passed.evidence[0]
    failed = judge(run, max_latency_ms=8.0, **limits)
    assert failed.status is Status.FAIL
    between = judge(run, max_latency_ms=10.0, **limits)
    assert between.status is Status.INCONCLUSIVE
    assert "rounds" in between.evidence[-1]
    for verdict in (passed, failed, between):
        check_words(verdict)


def test_a_limit_in_ms_without_a_baseline_fails_with_the_command() -> None:
    verdict = judge(
        make_run([10.0] * 9, [5.0] * 9),
        max_ratio=None,
        max_latency_ms=12.0,
    )
    assert verdict.status is Status.FAIL
    assert "there is no baseline: here 5.00 ms" in verdict.headline
    assert verdict.next_step.endswith(f": pytest {FILE} --quantgate-baselines=create")
    check_words(verdict)


def test_a_limit_in_ms_on_another_machine_names_all_that_differs() -> None:
    other = replace(MACHINE, processor="B", cores=8)
    verdict = judge(
        make_run([10.0] * 9, [5.0] * 9),
        max_ratio=None,
        max_latency_ms=12.0,
        baseline_machine=other,
    )
    assert verdict.status is Status.INCOMPARABLE
    assert "processor differs: baseline B, now A" in verdict.headline
    assert f"({other.fingerprint}, here {MACHINE.fingerprint})" in verdict.headline
    assert "--quantgate-baselines=update" in verdict.next_step
    assert verdict.evidence == ("number of cores differs: baseline 8, now 2",)
    check_words(verdict)


def test_a_ratio_decides_though_the_limit_in_ms_cannot() -> None:
    elsewhere: dict[str, Any] = {
        "max_latency_ms": 12.0,
        "baseline_machine": replace(MACHINE, cores=8),
    }
    slow = judge(make_run([10.0] * 9, [15.0] * 9), **elsewhere)
    assert slow.status is Status.FAIL
    assert "INCOMPARABLE" in all_text(slow)
    fast = judge(make_run([10.0] * 9, [5.0] * 9), **elsewhere)
    assert fast.status is Status.INCOMPARABLE


def test_both_limits_pass_together_and_tell_the_noise_once() -> None:
    verdict = judge(make_run([10.0] * 9, [5.0] * 9), max_latency_ms=12.0, baseline_machine=MACHINE)
    assert verdict.status is Status.PASS
    assert verdict.brief == "0.500x FP16 [0.500, 0.500] within 1x; 5.00 vs 10.0 ms; A/A 0.0 %"
    assert len([line for line in verdict.evidence if line.startswith("A/A")]) == 1
    assert verdict.figures["max_latency_ms"] == 12.0


def test_machines_differ_in_any_property() -> None:
    assert machine_differences(MACHINE, MACHINE) == ()
    others = [
        replace(MACHINE, system="x"),
        replace(MACHINE, processor="x"),
        replace(MACHINE, cores=9),
        replace(MACHINE, threads=9),
        replace(MACHINE, device="x"),
    ]
    assert all(len(machine_differences(other, MACHINE)) == 1 for other in others)


# -- what is no measurement ----------------------------------------------------------------------


def test_no_rounds_are_not_measured() -> None:
    verdict = judge(make_run([], []))
    assert verdict.status is Status.NOT_MEASURED
    assert "no round was measured" in verdict.headline
    check_words(verdict)


def test_unequal_rounds_fail() -> None:
    verdict = judge(make_run([1.0] * 9, [1.0] * 8))
    assert verdict.status is Status.FAIL
    assert "not paired: fp16 9, quantized 8, fp16 again 9" in verdict.headline


@pytest.mark.parametrize("side", ["fp16", "quantized", "again"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, 0.0, 1e300])
def test_a_time_that_is_none_fails(side: str, wrong: float) -> None:
    times_ms = {"fp16": [10.0] * 9, "quantized": [5.0] * 9, "again": [10.0] * 9}
    times_ms[side] = [*times_ms[side][:8], wrong]
    verdict = judge(make_run(**times_ms))
    assert verdict.status is Status.FAIL
    assert f"no valid time in 1 of 9 rounds, the first is {wrong} ms" in verdict.headline
    check_words(verdict)


def test_too_few_rounds_decide_nothing() -> None:
    verdict = judge(make_run([10.0] * 4, [5.0] * 4))
    assert verdict.status is Status.INCONCLUSIVE
    assert "4 rounds cannot decide at 95 %, that takes 5" in verdict.headline
    assert judge(make_run([10.0] * 5, [5.0] * 5)).status is Status.PASS
    check_words(verdict)


def test_a_gate_without_limits_gives_no_verdict() -> None:
    """Its suite is refused when it is read; nothing is green that checked nothing."""
    with pytest.raises(ValueError, match="has no checks to combine"):
        judge(make_run([10.0] * 9, [5.0] * 9), max_ratio=None)


# -- statistics and words ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("confidence", "rounds"), [("0.6", 2), ("0.75", 2), ("0.95", 5), ("0.99", 7)]
)
def test_the_least_rounds_of_a_confidence(confidence: str, rounds: int) -> None:
    assert least_rounds(Fraction(confidence)) == rounds


@pytest.mark.parametrize(
    ("degrees", "at_95", "at_999"),
    [(1, 6.3138, 318.3088), (2, 2.9200, 22.3271), (3, 2.3534, 10.2145), (4, 2.1318, 7.1732),
     (9, 1.8331, 4.2968), (30, 1.6973, 3.3852)],
)  # fmt: skip
def test_student_quantiles_are_those_of_the_tables(
    degrees: int, at_95: float, at_999: float
) -> None:
    assert student_quantile(0.95, degrees=degrees) == pytest.approx(at_95, abs=1e-4)
    assert student_quantile(0.999, degrees=degrees) == pytest.approx(at_999, abs=1e-3)
    assert student_quantile(0.5, degrees=degrees) == pytest.approx(0, abs=1e-9)


def levels(values: list[float], *, processes: int = 1, pause_rounds: float = 0.0) -> Levels:
    return Levels.of(values, processes=processes, pause_rounds=pause_rounds)


def test_limits_are_students_over_the_levels_of_processes() -> None:
    """Each process says one number, whatever its rounds do: 1.0, 1.1 and 1.21, as medians."""
    values = [1.0, 1.0, 9.0, 1.1, 1.1, 0.1, 1.21, 1.21, 5.0]
    found = levels(values, processes=3, pause_rounds=1e9)

    assert found.typical == pytest.approx(1.1)
    interval = found.limits(confidence=0.95)
    reach = 2.9200 * math.log(1.1) / math.sqrt(3)
    assert interval.low == pytest.approx(1.1 * math.exp(-reach), rel=1e-4)
    assert interval.high == pytest.approx(1.1 * math.exp(reach), rel=1e-4)
    assert found.spread_share == pytest.approx(0.1)


def test_rounds_that_hang_together_widen_the_limits_unless_processes_are_far_apart() -> None:
    rising = [1.0 + 0.001 * number for number in range(30)]
    near, far = (levels(rising, processes=5, pause_rounds=pause) for pause in (0, 1000))

    assert near.limits(confidence=0.95).high > far.limits(confidence=0.95).high + 0.05
    mixed = random.Random(0).sample(rising, k=30)
    independent = levels(mixed, processes=5).limits(confidence=0.95)
    assert independent.high - independent.low < 0.05


def test_rounds_of_one_process_are_cut_into_parts() -> None:
    values = [1.0 + 0.01 * (number % 7) for number in range(30)]
    assert levels(values) == levels(values, processes=5)
    with pytest.raises(ValueError, match="1 values are too few"):
        levels([1.0])


def test_the_noise_factor_looks_to_both_sides() -> None:
    assert noise_factor(levels([1.0] * 9), confidence=0.95) == 1.0
    assert noise_factor(levels([1.1] * 9), confidence=0.95) == pytest.approx(1.1)
    assert noise_factor(levels([0.8] * 9), confidence=0.95) == pytest.approx(1.25)


def test_rounds_to_settle_grow_with_the_square_of_the_width() -> None:
    interval = Interval(low=0.9 * math.exp(-0.2), high=0.9 * math.exp(0.2))
    limit = 0.9 * math.exp(0.1)
    assert rounds_to_settle(0.9, interval, limit=limit, rounds=10) == pytest.approx(40, abs=1)
    above = 0.9 * math.exp(-0.1)
    assert rounds_to_settle(0.9, interval, limit=above, rounds=10) == pytest.approx(40, abs=1)
    assert rounds_to_settle(0.9, interval, limit=0.9, rounds=10) is None
    assert rounds_to_settle(0.9, interval, limit=0.9001, rounds=10) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(28.04, "28.0 ms"), (9.9999, "10.0 ms"), (0.01234, "0.0123 ms"), (1234.5, "1234 ms")],
)
def test_times_have_three_digits(value: float, shown: str) -> None:
    assert show_ms(value) == shown


@pytest.mark.parametrize(
    ("value", "limit", "shown"),
    [
        (Fraction("0.5804"), "0.58", "0.5804"),
        (Fraction("0.57999999"), "0.58", "0.57999999"),
        (0.46, "1", "0.460"),
        (1.0, "1", "1.000"),
        (Fraction(1) + Fraction(1, 10**30), "1", "1.00000000"),
    ],
)
def test_a_ratio_shows_on_which_side_of_its_limit_it_is(
    value: float | Fraction, limit: str, shown: str
) -> None:
    assert show_ratio(value, limit=Fraction(limit)) == shown
