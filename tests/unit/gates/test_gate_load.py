"""The load gate: decisions, words, and its error rates on simulated servers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.audit import BatchInvariance
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.latency import LatencyRun, Machine, RunnerTimes
from pytest_quantgate.evidence.load import Answer, Load, LoadRun, Served
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.load import LoadGate, judge_load, least_queries
from pytest_quantgate.gates.load import judge as judge_gate
from pytest_quantgate.suite.keys import BadKey
from pytest_quantgate.suite.where import Where
from tests.unit.gates.gate_builders import SAME_EXAMPLES

FILE = "suites/clip.quantgate.yaml"
KEYS = {"rate": 31, "p99_ratio": 32, "max_p99": 33, "queries": 34, "max_late": 35}
WHERE = Where(file=FILE, line=30, keys=KEYS)
MACHINE = Machine(system="Linux x86_64", processor="A", cores=2, threads=1, device="cpu")
#: What the first rounds of a real run of the reference suite were like, as to noise.
SHAPES = ("quiet", "drift", "bursts", "sticky")
SERVICE_MS, RATE = 6.0, 60


def make_gate(**changes: Any) -> LoadGate:
    values: dict[str, Any] = {
        "where": WHERE,
        "tower": "vision",
        "rate": RATE,
        "p99_ratio": Fraction(11, 10),
        **changes,
    }
    return LoadGate(**values)


def make_served(times_ms: np.ndarray[Any, Any] | None = None, **changes: Any) -> Served:
    found = np.full(459, 10.0) if times_ms is None else times_ms
    ordered = np.sort(found)
    p50, p90, p99 = (float(ordered[int(share * len(ordered))]) for share in (0.5, 0.9, 0.99))
    values: dict[str, Any] = {
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "queries": len(found),
        "late": 0,
        "dropped": 0,
        "batches": len(found),
        "scheduled_per_s": float(RATE),
        "completed_per_s": float(RATE),
        "offline_ms": SERVICE_MS,
        "answers": tuple(Answer(input=i, nearest=i, distance=1e-6, batch=(i,)) for i in range(4)),
        **changes,
    }
    return Served(**values)


def make_run(fp16: Any, quantized: Any, again: Any = None, *, processes: int = 5) -> LoadRun:
    sides = {"fp16": fp16, "quantized": quantized, "fp16 again": again or fp16}
    times = {
        name: RunnerTimes(
            name=name,
            times_ms=tuple(s.p99_ms for s in rounds),
            runs=459,
            first_run_ms=0.0,
            warm_up_batches=0,
            warm=True,
        )
        for name, rounds in sides.items()
    }
    return LoadRun(
        load=make_gate().load,
        timed=LatencyRun(
            runtime="onnxruntime",
            machine=MACHINE,
            tower="vision",
            batch_size=8,
            fp16=times["fp16"],
            quantized=times["quantized"],
            fp16_again=times["fp16 again"],
            processes=processes,
            pause_rounds=1.0,
        ),
        fp16=tuple(fp16),
        quantized=tuple(quantized),
        fp16_again=tuple(again or fp16),
    )


def simulate(*, shape: str, tail: float, seed: int, rounds: int = 20) -> LoadRun:
    """Return a run of a server with one worker, on a machine with noise of one shape.

    Arrivals of a round are the same for all three. `tail` is by how much the slowest tenth of the
    quantized variant's requests is slower. `drift`: services get slower as the run goes; `bursts`:
    now and then a round has a neighbour that takes a third of the machine; `sticky`: two clock
    speeds that last for some rounds.
    """
    stream = np.random.default_rng([seed, SHAPES.index(shape)])
    speed, slow = 1.0, False
    sides: dict[str, list[Served]] = {"fp16": [], "quantized": [], "again": []}
    for _ in range(rounds):
        arrivals = np.cumsum(stream.exponential(1e3 / RATE, 459))
        for name in stream.permutation(list(sides)):
            if shape == "drift":
                speed *= math.exp(stream.normal(0.002, 0.01))
            slow ^= bool(stream.random() < 0.05)
            factor = speed * (1.3 if shape == "sticky" and slow else 1.0)
            factor *= 1.5 if shape == "bursts" and stream.random() < 0.1 else 1.0
            service = SERVICE_MS * factor * np.exp(stream.normal(0, 0.03, 459))
            ends = np.cumsum(service)
            waits = ends + np.maximum.accumulate(arrivals - np.concatenate([[0], ends[:-1]]))
            times_ms = waits - arrivals
            if name == "quantized":
                late = times_ms > np.sort(times_ms)[413]
                times_ms = np.where(late, times_ms * tail, times_ms)
            sides[name].append(make_served(times_ms))
    return make_run(sides["fp16"], sides["quantized"], sides["again"])


def count_statuses(shape: str, *, tail: float, runs: int = 100) -> Counter[Status]:
    gate = make_gate()
    return Counter(
        judge_load(simulate(shape=shape, tail=tail, seed=seed), gate).status for seed in range(runs)
    )


def judge(run: LoadRun, gate: LoadGate | None = None, **more: Any) -> Verdict:
    return judge_load(run, gate or make_gate(), **more)


# -- error rates -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_fp16_against_itself_never_fails(shape: str) -> None:
    assert count_statuses(shape, tail=1.0)[Status.FAIL] == 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["quiet", "drift"])
def test_a_tail_that_is_a_fifth_slower_is_caught_where_the_noise_permits(shape: str) -> None:
    found = count_statuses(shape, tail=1.2)

    assert found[Status.FAIL] >= 95
    assert found[Status.PASS] == 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["bursts", "sticky"])
def test_a_tail_that_is_half_slower_never_passes_on_a_noisy_machine(shape: str) -> None:
    assert count_statuses(shape, tail=1.5, runs=40)[Status.PASS] == 0


# -- decisions -------------------------------------------------------------------------------------


def test_a_pass_says_the_ratio_and_that_the_answers_are_right() -> None:
    verdict = judge(simulate(shape="quiet", tail=0.9, seed=0))

    assert verdict.status is Status.PASS
    assert "load: p99 at 60 requests a second, vision, batch 8, onnxruntime on cpu" in str(
        (verdict.headline, *verdict.evidence)
    )
    assert any("answers under load are those alone" in line for line in verdict.evidence)
    assert float(verdict.figures["p99_latency_ratio"]) < 1
    assert all(math.isfinite(v) for v in verdict.figures.values() if isinstance(v, float))


def test_the_p99_has_its_own_limit_beside_a_good_median() -> None:
    run = simulate(shape="quiet", tail=1.4, seed=0)
    verdict = judge(run, make_gate(p50_ratio=Fraction(11, 10)))

    assert verdict.status is Status.FAIL
    assert verdict.code == "load.ratio"
    assert f"over p99_ratio 1.1 ({FILE}:32)" in verdict.headline
    assert verdict.figures["p50_latency_ratio"] == pytest.approx(1, abs=0.05)


def test_too_few_requests_decide_nothing_and_the_number_is_named() -> None:
    few = [make_served(np.full(200, 10.0))] * 10
    verdict = judge(make_run(few, few), make_gate(queries=200))

    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.code == "load.too-few-queries"
    assert "200 requests in a round cannot decide p99_ratio, that takes 459" in verdict.headline
    assert f"{FILE}:34" in verdict.headline
    assert verdict.next_step == "set queries: 459, or leave it out"


def test_a_rate_that_fp16_does_not_keep_up_with_is_inconclusive() -> None:
    slow = [make_served(completed_per_s=40.0)] * 10
    verdict = judge(make_run(slow, slow))

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "load.rate-too-high")
    assert "FP16 answers 40 a second" in verdict.headline
    assert verdict.next_step.startswith("set a rate of at most 36")


def test_requests_that_fp16_drops_are_not_answered() -> None:
    """LoadGen is told at the end of a round that they are: the rate looks as if it were kept."""
    drops = [make_served(dropped=200, late=200)] * 10
    gate = make_gate(p99_ratio=None, max_late=Fraction(1, 100), queue=1, bound_ms=30.0)
    verdict = judge(make_run(drops, drops), gate)

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "load.rate-too-high")
    assert "FP16 answers 34 a second, so it drops the others" in verdict.headline
    assert verdict.next_step.startswith("set a rate of at most 30")


def test_a_rate_that_quantized_alone_does_not_keep_up_with_fails_by_its_tail() -> None:
    good, slow = [make_served()] * 10, [make_served(np.full(459, 900.0), completed_per_s=40.0)] * 10
    assert judge(make_run(good, slow)).status is Status.FAIL


def test_too_few_rounds_decide_nothing() -> None:
    rounds = [make_served()] * 4
    verdict = judge(make_run(rounds, rounds, processes=4))
    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "load.too-few-rounds")


def test_no_round_is_not_measured_and_a_time_that_is_none_fails() -> None:
    assert judge(make_run([], [])).status is Status.NOT_MEASURED
    broken = [make_served()] * 9 + [make_served(p99_ms=math.nan)]
    verdict = judge(make_run([make_served()] * 10, broken))
    assert (verdict.status, verdict.code) == (Status.FAIL, "load.no-time")


def test_offline_throughput_has_a_limit_of_its_own() -> None:
    fp16, slow = [make_served()] * 10, [make_served(offline_ms=SERVICE_MS * 1.5)] * 10
    gate = make_gate(p99_ratio=None, offline_ratio=Fraction(12, 10))

    assert judge(make_run(fp16, fp16), gate).status is Status.PASS
    verdict = judge(make_run(fp16, slow), gate)
    assert verdict.status is Status.FAIL
    assert verdict.figures["offline_latency_ratio"] == pytest.approx(1.5)
    unmeasured = [make_served(offline_ms=None)] * 10
    assert judge(make_run(fp16, unmeasured), gate).status is Status.FAIL


@pytest.mark.parametrize(
    ("late", "status"),
    [(0, Status.PASS), (5, Status.PASS), (50, Status.FAIL)],
)
def test_late_and_dropped_requests_are_held_against_fp16s(late: int, status: Status) -> None:
    gate = make_gate(p99_ratio=None, max_late=Fraction(5, 100), bound_ms=50.0)
    fp16, quantized = [make_served(late=2)] * 10, [make_served(late=late, dropped=late)] * 10
    verdict = judge(make_run(fp16, quantized), gate)

    assert verdict.status is status
    assert verdict.figures["quantized_late_share"] == pytest.approx(late / 459)
    assert verdict.figures["quantized_dropped"] == 10 * late


def test_late_requests_that_differ_from_round_to_round_are_open() -> None:
    gate = make_gate(p99_ratio=None, max_late=Fraction(5, 100), bound_ms=50.0)
    fp16 = [make_served()] * 10
    quantized = [make_served(late=60 * (number // 2 % 2)) for number in range(10)]
    verdict = judge(make_run(fp16, quantized), gate)
    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "load.late-open")


def test_a_bound_that_fp16_never_keeps_decides_nothing() -> None:
    gate = make_gate(p99_ratio=None, max_late=Fraction(5, 100), bound_ms=1.0)
    all_late, most_late = [make_served(late=459)] * 10, [make_served(late=437)] * 10

    verdict = judge(make_run(all_late, all_late), gate)
    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "load.late-open")
    assert verdict.cause.startswith("FP16 is late so often that 5.00 pp more cannot be")
    assert verdict.next_step == "set a larger bound, or a lower rate"
    assert judge(make_run(most_late, most_late), gate).status is Status.INCONCLUSIVE
    fewer = [make_served(late=436)] * 10
    assert judge(make_run(fewer, fewer), gate).status is Status.PASS


def test_rounds_of_one_side_that_are_missing_are_no_pairs() -> None:
    gate = make_gate(p99_ratio=None, max_late=Fraction(5, 100), bound_ms=50.0)
    run = make_run([make_served()] * 10, [make_served()] * 10)
    verdict = judge(replace(run, quantized=run.quantized[:9]), gate)
    assert (verdict.status, verdict.code) == (Status.FAIL, "load.rounds-unpaired")


def test_a_limit_in_ms_holds_on_the_machine_of_the_baseline_alone() -> None:
    run, gate = make_run([make_served()] * 10, [make_served()] * 10), make_gate(max_p99_ms=20.0)

    assert judge(run, gate, baseline_machine=MACHINE).status is Status.PASS
    missing = judge(run, gate)
    assert (missing.status, missing.code) == (Status.FAIL, "load.no-baseline")
    assert missing.next_step.endswith(f"pytest {FILE} --quantgate-baselines=create")
    other = judge(run, gate, baseline_machine=replace(MACHINE, cores=8))
    assert (other.status, other.code) == (Status.INCOMPARABLE, "load.other-machine")
    tight = judge(run, make_gate(max_p99_ms=5.0), baseline_machine=MACHINE)
    assert (tight.status, tight.code) == (Status.FAIL, "load.absolute")


# -- answers ---------------------------------------------------------------------------------------


def answered(*distances: float, nearest: int | None = None) -> Served:
    return make_served(
        answers=tuple(
            Answer(
                input=i,
                nearest=nearest if nearest is not None and i == 0 else i,
                distance=distance,
                batch=(i, 7, 3),
            )
            for i, distance in enumerate(distances)
        )
    )


def test_an_answer_that_is_anothers_names_the_batch_that_mixed_them() -> None:
    good, bad = [make_served()] * 10, answered(1.3, 1e-6, 1e-6, nearest=3)
    verdict = judge(make_run(good, [*good[:9], bad]))

    assert (verdict.status, verdict.code) == (Status.FAIL, "load.answers-swapped")
    assert (
        "quantized answered input 0 with the embedding of input 3, in the batch of inputs 0, 7, 3"
        in verdict.headline
    )


@pytest.mark.parametrize("distance", [0.8, math.inf])
def test_a_single_answer_that_is_nobodys_fails(distance: float) -> None:
    good = [make_served()] * 10
    verdict = judge(make_run(good, [*good[:9], answered(distance, 1e-6, 1e-6)]))
    assert (verdict.status, verdict.code) == (Status.FAIL, "load.answers-lost")


@pytest.mark.parametrize("place", [0, 5, 9])
def test_an_answer_that_is_no_number_is_the_worst_in_whatever_round(place: int) -> None:
    rounds = [answered(1e-6, 1e-6)] * 10
    rounds[place] = answered(math.nan, 1e-6)
    verdict = judge(make_run([make_served()] * 10, rounds))
    assert (verdict.status, verdict.code) == (Status.FAIL, "load.answers-lost")


def test_embeddings_that_move_with_their_batch_fail_beyond_the_floor() -> None:
    moved = [answered(0.02, 0.03, 0.01)] * 10
    run = make_run([make_served()] * 10, moved)
    floor = BatchInvariance(tower="vision", samples=4, change=0.01, floor=0.01)

    verdict = judge(run)
    assert (verdict.status, verdict.code) == (Status.FAIL, "load.batch-dependent")
    assert "differ by 2.00 % from those alone (limit 0.10 %)" in verdict.headline
    assert judge(run, invariance=floor).status is Status.PASS
    assert judge(run, invariance=replace(floor, samples=0)).status is Status.FAIL


def test_one_input_that_rounding_moves_is_no_finding() -> None:
    run = make_run([make_served()] * 10, [answered(0.05, 1e-6, 1e-6)] * 10)
    assert judge(run).status is Status.PASS


def test_no_answers_at_all_fail() -> None:
    run = make_run([make_served()] * 10, [make_served(answers=())] * 10)
    assert judge(run).status is Status.FAIL


def test_wrong_answers_are_red_though_the_rate_is_too_high() -> None:
    bad = [replace(answered(1.3, nearest=3), completed_per_s=1.0)] * 10
    assert judge(make_run(bad, bad)).status is Status.FAIL


def test_the_highest_rates_are_reported_and_decide_nothing() -> None:
    run = make_run([make_served()] * 10, [make_served()] * 10)
    load = replace(run.load, bound_ms=30.0)
    verdict = judge(replace(run, load=load, highest_rates={"fp16": 200, "quantized": 0}))

    assert verdict.status is Status.PASS
    assert (
        "highest rates with a p99 within 30 ms, in requests a second: fp16 200, quantized 0; from "
        "one search each, so they decide nothing"
    ) in verdict.evidence
    assert verdict.figures["fp16_highest_per_s"] == 200


class OnnxAlone:
    """A run of ONNX files that were handed over: there is nothing to audit."""

    class suite:
        is_onnx_alone = True

    latency_runs: dict[str, LatencyRun]
    load_runs: dict[str, LoadRun]

    def __init__(self) -> None:
        self.latency_runs, self.load_runs = {}, {}

    def load(self, _gate: LoadGate) -> LoadRun:
        return make_run([make_served()] * 10, [make_served()] * 10)


def test_files_that_were_handed_over_alone_are_judged_without_an_audit() -> None:
    run: Any = OnnxAlone()
    assert judge_gate(run, make_gate()).verdict.status is Status.PASS
    assert run.latency_runs[make_gate().name].fp16.median_ms == 10.0


# -- any run ---------------------------------------------------------------------------------------


@SAME_EXAMPLES
@given(
    st.lists(st.tuples(*[st.floats(1e-3, 1e5)] * 3), min_size=5, max_size=12),
    st.floats(1.0, 1e3),
)
def test_any_times_give_a_verdict_and_getting_faster_never_hurts(
    times: list[tuple[float, float, float]], factor: float
) -> None:
    sides = [[make_served(p99_ms=row[side]) for row in times] for side in range(3)]
    slower = [replace(s, p99_ms=s.p99_ms * factor) for s in sides[1]]
    order = [Status.PASS, Status.INCONCLUSIVE, Status.FAIL]
    found = [
        judge(make_run(sides[0], quantized, sides[2], processes=len(times))).status
        for quantized in (sides[1], slower)
    ]
    assert order.index(found[0]) <= order.index(found[1])


def test_a_round_survives_its_way_between_processes() -> None:
    served = answered(math.inf, 0.5)
    assert from_json(Served, to_json(served)) == served


# -- the section -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percentile", "needed"), [(Fraction(99, 100), 459), (Fraction(9, 10), 44), (Fraction(1, 2), 7)]
)
def test_the_requests_that_early_stopping_asks_for(percentile: Fraction, needed: int) -> None:
    assert least_queries(percentile) == needed


def test_a_round_has_what_the_strictest_limit_takes() -> None:
    assert make_gate().load.queries == 459
    assert make_gate(p99_ratio=None, p90_ratio=Fraction(1)).load.queries == 44
    assert make_gate(p99_ratio=None, offline_ratio=Fraction(1)).load.queries == 100
    assert make_gate(queries=7).load.queries == 7
    # One late request in a thousand takes 4,603, over all 20 rounds.
    late = make_gate(p99_ratio=None, max_late=Fraction(1, 1000), bound_ms=1.0)
    assert late.load.queries == 231


def test_the_inputs_are_those_of_all_requests() -> None:
    assert make_gate().inputs == 32
    assert make_gate(sizes=(1, 3), batch=4).inputs == 64


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"p99_ratio": None}, "", "sets no limit"),
        ({"sizes": (1, 4)}, "sizes", "a request of 4 is larger than batch"),
        ({"sizes": ()}, "sizes", "is empty"),
        ({"max_late": Fraction(1, 100)}, "max_late", "nothing is late without a bound: set bound"),
        # A server that drops what waits answers the others fast: only lateness shows it.
        ({"queue": 4}, "queue", "drops requests, which no percentile shows: set bound and max_l"),
        ({"queue": 4, "max_late": Fraction(1, 100)}, "queue", "set bound and max_late"),
        ({"queue": 4, "bound_ms": 3.0, "search": True}, "queue", "set bound and max_late"),
        ({"max_late": Fraction(0), "bound_ms": 3.0}, "max_late", "no number of requests shows it"),
        ({"max_late": Fraction(1), "bound_ms": 3.0}, "max_late", "no number of requests shows it"),
        ({"bound_ms": 3.0}, "bound", "is about max_late and search"),
        ({"search": True}, "search", "set bound"),
        ({"window_ms": 3.0}, "window", "set batch above 1"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(
    changes: dict[str, Any], key: str, said: str
) -> None:
    with pytest.raises(BadKey, match=said) as caught:
        make_gate(**changes).check()
    assert caught.value.key == key


def test_calls_at_a_time_are_of_a_runtime_on_the_cpu() -> None:
    where = replace(WHERE, keys={**WHERE.keys, "concurrency": 35})
    make_gate(where=where, concurrency=2).check()
    with pytest.raises(BadKey, match="tensorrt runs on the GPU"):
        make_gate(where=where, concurrency=2, runtime="tensorrt").check()


def test_the_server_is_what_the_section_says() -> None:
    gate = make_gate(
        sizes=(1, 2),
        batch=8,
        window_ms=2.0,
        concurrency=3,
        queue=5,
        bound_ms=30.0,
        max_late=Fraction(1, 100),
        offline_ratio=Fraction(1),
    )

    assert gate.load == Load(
        rate=RATE,
        queries=459,
        sizes=(1, 2),
        batch=8,
        window_ms=2.0,
        concurrency=3,
        queue=5,
        bound_ms=30.0,
        offline=True,
    )
    assert not make_gate().load.offline
    assert gate.key == "onnxruntime-vision-60-per-s-batch8"
    assert make_gate().key == "onnxruntime-vision-60-per-s"
    where = replace(WHERE, keys={**WHERE.keys, "threads": 36})
    with pytest.raises(BadKey, match="tensorrt runs on the GPU"):
        make_gate(where=where, threads=2, runtime="tensorrt").check()
    make_gate(max_late=Fraction(1, 2), queue=4, bound_ms=3.0).check()


# -- words and figures -----------------------------------------------------------------------------

ABOUT = "60 requests a second, vision, batch 8, onnxruntime on cpu"


def test_a_pass_says_what_each_limit_was_held_against() -> None:
    rounds = [make_served(late=3, dropped=1, batches=100)] * 10
    gate = make_gate(
        p50_ratio=Fraction(11, 10),
        offline_ratio=Fraction(12, 10),
        max_late=Fraction(5, 100),
        bound_ms=50.0,
        max_p99_ms=20.0,
    )
    verdict = judge(make_run([make_served(late=2)] * 10, rounds), gate, baseline_machine=MACHINE)

    assert (verdict.gate, verdict.cause, verdict.next_step) == ("load", "", "")
    assert [line.partition(": ")[2] for line in verdict.evidence if line.startswith("load: ")] == [
        f"p99 at {ABOUT}: quantized 10.0 ms vs FP16 10.0 ms over 10 rounds in 5 processes: ratio "
        f"1.000, one-sided 95 % limits [1.000, 1.000] with A/A noise 0.0 %, within p99_ratio 1.1 "
        f"({FILE}:32)",
        f"a request when all are there at {ABOUT}: quantized 6.00 ms vs FP16 6.00 ms over 10 "
        f"rounds in 5 processes: ratio 1.000, one-sided 95 % limits [1.000, 1.000] with A/A noise "
        f"0.0 %, within offline_ratio 1.2 ({FILE}:30)",
        f"{ABOUT}: 0.65 % late or dropped vs FP16 0.44 %: 0.22 pp more, one-sided 95 % limits "
        f"[0.22 pp, 0.22 pp], within max_late 5.00 pp ({FILE}:35)",
        f"p99 at {ABOUT}: quantized 10.0 ms over 10 rounds in 5 processes, one-sided 95 % limits "
        f"[10.0 ms, 10.0 ms] with A/A noise 0.0 %, within max_p99 20 ms ({FILE}:33)",
        f"{ABOUT}: answers under load are those alone: FP16 0.00 %, quantized 0.00 % (limit "
        f"0.10 %), 4.58 requests a batch ({FILE}:30)",
    ]
    assert sum(line.startswith("A/A: ") for line in verdict.evidence) == 1
    assert {name: verdict.figures[name] for name in LATE} == pytest.approx(
        dict(zip(LATE, (2 / 459, 3 / 459, 10, 100 / 459, 100 / 459, 5), strict=True))
    )
    assert verdict.figures["p99_max_p99_ms"] == 20
    assert verdict.figures["answers_limit"] == 0.001
    assert verdict.figures["quantized_answers_change"] == 1e-6
    assert verdict.figures["fp16_answers_change"] == 1e-6


LATE = (
    *("fp16_late_share", "quantized_late_share", "quantized_dropped"),
    *("late_points_low", "late_points_high", "max_late_points"),
)


def test_a_limit_in_ms_alone_brings_the_noise_along() -> None:
    gate = make_gate(p99_ratio=None, max_p99_ms=5.0)
    verdict = judge(make_run([make_served()] * 10, [make_served()] * 10), gate)
    assert verdict.headline == (
        f"load: p99 at {ABOUT}: max_p99 5 ms holds on the machine of the baseline, and there is no "
        f"baseline: here 10.0 ms ({FILE}:33)"
    )
    found = judge(
        make_run([make_served()] * 10, [make_served()] * 10), gate, baseline_machine=MACHINE
    )
    assert any(line.startswith("A/A: ") for line in found.evidence)
    other = replace(MACHINE, cores=8)
    there = judge(
        make_run([make_served()] * 10, [make_served()] * 10), gate, baseline_machine=other
    )
    assert "or set p99_ratio, which holds anywhere" in there.next_step


def test_too_few_requests_are_said_of_each_limit() -> None:
    few = [make_served(np.full(6, 10.0))] * 10
    gate = make_gate(max_late=Fraction(1, 1000), bound_ms=5.0, max_p99_ms=20.0)
    verdict = judge(make_run(few, few), gate)
    words = "by LoadGen's early stopping at 99 %"

    assert verdict.brief == "p99_ratio: 6 requests in a round, it takes 459"
    assert verdict.cause.startswith("a percentile of few requests")
    assert verdict.evidence == (
        f"INCONCLUSIVE: load: {ABOUT}: 6 requests in a round cannot decide max_late, that takes "
        f"231 {words} ({FILE}:34)",
        f"INCONCLUSIVE: load: p99 at {ABOUT}: 6 requests in a round cannot decide max_p99, that "
        f"takes 459 {words} ({FILE}:34)",
    )
    without = replace(WHERE, keys={"p99_ratio": 32})
    assert f"({FILE}:32)" in judge(make_run(few, few), make_gate(where=without)).headline


def test_a_rate_that_is_too_high_is_told_with_what_is_kept() -> None:
    slow = [make_served(completed_per_s=1.5)] * 10
    verdict = judge(make_run(slow, slow))

    assert verdict.headline == (
        f"load: {ABOUT}: FP16 answers 2 a second, so what waits grows all the time ({FILE}:31)"
    )
    assert verdict.brief == "FP16 keeps up with 2 of 60 requests a second"
    assert verdict.cause.startswith("the rate is more than this machine can serve")
    assert verdict.next_step == "set a rate of at most 1, or a larger batch"
    assert verdict.figures["fp16_completed_per_s"] == 1.5
    enough = [make_served(completed_per_s=54.0)] * 10
    assert judge(make_run(enough, enough)).passed


def test_late_requests_over_their_limit_are_counted() -> None:
    gate = make_gate(p99_ratio=None, max_late=Fraction(5, 100), bound_ms=50.0)
    late = [make_served(late=50, dropped=50)] * 10
    verdict = judge(make_run([make_served(late=2)] * 10, late), gate)

    assert verdict.headline == (
        f"load: {ABOUT}: 10.89 % late or dropped vs FP16 0.44 %: 10.46 pp more, one-sided 95 % "
        f"limits [10.46 pp, 10.46 pp], over max_late 5.00 pp ({FILE}:35)"
    )
    assert verdict.brief == "10.89 % late or dropped, FP16 0.44 %; 500 dropped"
    assert verdict.cause == "the tail of the quantized variant is longer"
    assert verdict.next_step == "look at p99_ratio, or measure more rounds"
    most = replace(gate, max_late=Fraction(457, 459))
    assert judge(make_run([make_served(late=2)] * 10, late), most).code == "load.late-open"


@pytest.mark.parametrize("again", [20, 0])
def test_what_fp16_differs_from_itself_opens_both_limits_of_late(again: int) -> None:
    gate = make_gate(p99_ratio=None, max_late=Fraction(5, 100), bound_ms=50.0)
    fp16, quantized = [make_served(late=10)] * 10, [make_served(late=12)] * 10
    figures = judge(make_run(fp16, quantized, [make_served(late=again)] * 10), gate).figures

    assert figures["late_points_low"] == pytest.approx((2 - 10) * 100 / 459)
    assert figures["late_points_high"] == pytest.approx((2 + 10) * 100 / 459)


@pytest.mark.parametrize(
    ("distances", "nearest", "brief", "cause", "next_step"),
    [
        ((0.8, 1e-6), None, "lost the answer to input 0", "calls that run at once", "try concu"),
        ((1.3, 1e-6), 3, "gave input 0 the answer of 3", "the runtime mixes up", "try concurrency"),
        (
            (0.02, 0.03, 0.01),
            None,
            "under load is 2.00 % from alone",
            "an embedding depends",
            "look",
        ),
    ],
)
@pytest.mark.parametrize("side", ["FP16", "quantized"])
def test_a_wrong_answer_says_whose_it_is_and_what_to_try(
    side: str,
    distances: tuple[float, ...],
    nearest: int | None,
    brief: str,
    cause: str,
    next_step: str,
) -> None:
    good, bad = [make_served()] * 10, [answered(*distances, nearest=nearest)] * 10
    verdict = judge(make_run(bad, good) if side == "FP16" else make_run(good, bad))

    assert verdict.headline.startswith(f"load: {ABOUT}: ")
    assert verdict.headline.endswith(f" ({FILE}:30)")
    assert verdict.brief == f"{side} {brief}"
    assert verdict.cause.startswith(cause)
    assert verdict.next_step.startswith(next_step)
    assert verdict.figures["answers_limit"] == 0.001


def test_answers_are_wrong_just_beyond_what_is_allowed() -> None:
    """The first input may be right and the second one not."""
    good = [make_served()] * 10
    at_half = judge(make_run(good, [answered(1e-6, 0.5, 1e-6)] * 10))
    assert at_half.passed
    swapped = make_served(
        answers=(
            Answer(input=0, nearest=0, distance=1e-6, batch=(0,)),
            Answer(input=1, nearest=2, distance=0.002, batch=(1, 2)),
        )
    )
    verdict = judge(make_run(good, [swapped] * 10))
    assert (verdict.code, verdict.brief) == (
        "load.answers-swapped",
        "quantized gave input 1 the answer of 2",
    )
    most = judge(make_run(good, [answered(0.02, 0.03, 0.01)] * 10))
    assert "most in the batch of inputs 1, 7, 3 (" in most.headline
    none = judge(make_run(good, [make_served(answers=())] * 10))
    assert f"differ by inf % from those alone (limit 0.10 %) ({FILE}:30)" in none.headline
    idle = judge(make_run(good, [make_served(batches=0)] * 10))
    assert "4590.00 requests a batch" in idle.evidence[-1]
