"""Latency gates in pytest: measured, recorded by pytest-benchmark, and never green unmeasured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.evidence.latency import LatencyRun, Machine, RunnerTimes
from pytest_quantgate.gates.latency import LatencyGate
from pytest_quantgate.measure.latency import Footprint  # type: ignore[attr-defined]

WriteSuite = Callable[..., Path]
Run = Callable[..., pytest.RunResult]

LATENCY = "  latency: {tower: vision, max_ratio: 1000x, rounds: 8}\n"
WARNINGS = "error::pytest_benchmark.logger.PytestBenchmarkWarning"
MACHINE = Machine(system="Linux x86_64", processor="A", cores=2, threads=1, device="cpu")


@pytest.fixture
def timed_suite(write_suite: WriteSuite) -> Path:
    """A latency gate that no machine can fail: what is timed is not the matter here."""
    return write_suite(recipe="int8", replace={"  roundtrip: {}\n": LATENCY})


@dataclass
class Bench:
    """Stands for the measurement: times and a machine that a test sets."""

    fp16_ms: float = 10.0
    quantized_ms: float = 5.0
    machine: Machine = MACHINE
    asked: list[str] = field(default_factory=list)

    def measure(self, gate: LatencyGate) -> LatencyRun:
        self.asked.append(gate.key)

        def times(name: str, time_ms: float) -> RunnerTimes:
            return RunnerTimes(
                name=name,
                times_ms=(time_ms,) * gate.rounds,
                runs=1,
                first_run_ms=time_ms,
                warm_up_batches=10,
                warm=True,
            )

        return LatencyRun(
            runtime=gate.runtime,
            machine=self.machine,
            tower=gate.tower,
            batch_size=gate.batch,
            fp16=times("fp16", self.fp16_ms),
            quantized=times("quantized", self.quantized_ms),
            fp16_again=times("fp16 again", self.fp16_ms),
            quantized_footprint=Footprint(file_bytes=123),
        )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The measurement of every latency gate in this process."""
    from pytest_quantgate.run.measured import Measured

    bench = Bench()
    monkeypatch.setattr(Measured, "latency", lambda _case, gate, **_: bench.measure(gate))
    # pytest-benchmark asks these whether it runs in a worker, or on CI.
    for name in ("PYTEST_XDIST_WORKER", "CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    return bench


@pytest.fixture
def run_timed(run_gates: Run) -> Run:
    """Run the latency gates alone in this process."""
    return lambda *arguments: run_gates("-k", "latency", "-W", WARNINGS, *arguments)


def test_times_are_in_pytest_benchmarks_results(
    pytester: pytest.Pytester,
    timed_suite: Path,
    run_forked: Run,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole way once, with nothing in the place of anything."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark stops under it
    result = run_forked(
        "suites",
        "--benchmark-only",
        "--benchmark-json=times.json",
        f"--quantgate-cache-dir={shared_cache}",
    )

    result.assert_outcomes(passed=1, skipped=6)
    # Which of the two tables comes first is the order in which the plugins are installed.
    for line in ("*x FP16 [[]*within 1000x; *", "latency[[]onnxruntime-vision-batch1[]]*"):
        result.stdout.fnmatch_lines([line])
    (benchmark,) = json.loads((pytester.path / "times.json").read_text("utf-8"))["benchmarks"]
    info = benchmark["extra_info"]
    assert benchmark["stats"]["rounds"] == 10  # 8 in five processes, each of as many
    assert benchmark["group"] == "suites/tiny: latency"
    assert benchmark["stats"]["median"] * 1e3 == pytest.approx(info["quantized_median_ms"])
    assert info["status"] == "PASS"
    assert info["latency_ratio_low"] <= info["latency_ratio"] <= info["latency_ratio_high"]
    assert info["latency_ratio"] > 0
    assert info["noise_share"] >= 0
    assert info["fp16_median_ms"] > 0
    assert info["runtime_version"]
    # The tiny model's weights, in 8 bits and in 32.
    assert 0 < info["quantized_weights_bytes"] < info["fp16_weights_bytes"]
    assert info["quantized_weights_bytes"] < info["quantized_file_bytes"]
    assert info["process_peak_rss_bytes"] > info["fp16_file_bytes"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--benchmark-disable",), "nothing is timed in this run"),
        (("-n2",), "2 workers share this machine: run it without -n"),
        (("-n2", "-p", "no:benchmark"), "2 workers share this machine: run it without -n"),
    ],
)
def test_what_was_not_timed_is_not_green(
    pytester: pytest.Pytester,
    timed_suite: Path,
    shared_cache: Path,
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    result = pytester.runpytest_subprocess(
        "suites", "-k", "latency", "-rs", *arguments, f"--quantgate-cache-dir={shared_cache}"
    )

    assert "passed" not in result.parseoutcomes()
    assert result.parseoutcomes()["skipped"] == 1
    result.stdout.fnmatch_lines([f"*latency: *{reason}*"])


def test_strict_fails_what_was_not_timed_with_no_word_of_an_unused_fixture(
    timed_suite: Path, bench: Bench, run_timed: Run
) -> None:
    result = run_timed("--benchmark-disable", "--quantgate-strict")

    result.assert_outcomes(failed=7, deselected=6)  # those that were left out are not green
    result.stdout.no_fnmatch_line("*not used at all*")
    assert bench.asked == []


def test_enable_is_stronger_than_disable(timed_suite: Path, bench: Bench, run_timed: Run) -> None:
    run_timed("--benchmark-disable", "--benchmark-enable").assert_outcomes(passed=1, deselected=6)


def test_it_is_timed_without_the_benchmark_plugin_too(
    timed_suite: Path, bench: Bench, run_timed: Run
) -> None:
    run_timed("-p", "no:benchmark").assert_outcomes(passed=1, deselected=6)
    assert bench.asked == ["onnxruntime-vision-batch1"]


def test_benchmarks_are_skipped_when_asked(timed_suite: Path, bench: Bench, run_timed: Run) -> None:
    run_timed("--benchmark-skip").assert_outcomes(skipped=1, deselected=6)
    assert bench.asked == []


def test_a_list_of_batch_sizes_is_a_test_and_a_benchmark_each(
    pytester: pytest.Pytester, write_suite: WriteSuite, bench: Bench, run_timed: Run
) -> None:
    write_suite(replace={"  roundtrip: {}\n": LATENCY.replace("rounds", "batch: [1, 8], rounds")})

    result = run_timed("--benchmark-json=times.json")

    result.assert_outcomes(passed=2, deselected=6)
    found = json.loads((pytester.path / "times.json").read_text("utf-8"))["benchmarks"]
    assert [b["extra_info"]["batch_size"] for b in found] == [1, 8]
    assert [b["stats"]["median"] for b in found] == pytest.approx([0.005, 0.005])
    assert found[0]["extra_info"]["quantized_file_bytes"] == 123


def test_saved_times_are_compared_by_pytest_benchmark(
    timed_suite: Path, bench: Bench, run_timed: Run
) -> None:
    run_timed("--benchmark-save=first").assert_outcomes(passed=1, deselected=6)
    bench.quantized_ms = 7.0

    result = run_timed("--benchmark-compare")

    result.assert_outcomes(passed=1, deselected=6)
    result.stdout.fnmatch_lines(["*(0001_first) *5.0000 (1.0) *", "*(NOW) *7.0000 (1.40) *"])


def test_a_slow_variant_is_red_and_its_times_are_kept(
    pytester: pytest.Pytester, write_suite: WriteSuite, bench: Bench, run_timed: Run
) -> None:
    write_suite(replace={"  roundtrip: {}\n": LATENCY.replace("1000x", "0.4x")})

    result = run_timed("--benchmark-json=times.json")

    result.assert_outcomes(failed=1, deselected=6)
    (benchmark,) = json.loads((pytester.path / "times.json").read_text("utf-8"))["benchmarks"]
    assert benchmark["extra_info"]["status"] == "FAIL"
    assert benchmark["extra_info"]["latency_ratio"] == 0.5


@pytest.mark.parametrize(
    "runtime", ["tensorrt-rtx", "tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt"]
)
def test_without_a_device_the_reason_is_told_and_nothing_is_built(
    write_suite: WriteSuite, run_timed: Run, runtime: str, tmp_path: Path
) -> None:
    text = LATENCY.replace("tower:", f"runtime: {runtime}, tower:")
    write_suite(replace={"  roundtrip: {}\n": text})
    cache = f"--quantgate-cache-dir={tmp_path / 'cache'}"

    loose = run_timed("-rs", "--quantgate-device=cpu", cache)
    strict = run_timed("--quantgate-device=cpu", "--quantgate-strict", cache)

    loose.assert_outcomes(skipped=1, deselected=6)
    loose.stdout.fnmatch_lines([f"SKIPPED*{runtime}* needs an NVIDIA GPU: --quantgate-device=cpu*"])
    strict.assert_outcomes(failed=7, deselected=6)
    # The sanity gate runs in every suite; it builds nothing.
    kept = {path.name for path in (tmp_path / "cache" / "v1").iterdir()}
    assert kept == {"sanity", "locks"}


# -- limits in ms --------------------------------------------------------------------------------

ABSOLUTE = "  latency: {tower: vision, max_latency: 6ms, rounds: 8}\n"
KEY = "onnxruntime-vision-batch1"


@pytest.fixture
def absolute_suite(write_suite: WriteSuite) -> Path:
    return write_suite(replace={"  roundtrip: {}\n": ABSOLUTE})


@pytest.fixture
def record_path(pytester: pytest.Pytester) -> Path:
    return pytester.path / "baselines" / "suites" / "tiny" / f"latency-{KEY}.json"


def test_a_limit_in_ms_goes_from_missing_to_created_to_kept(
    pytester: pytest.Pytester,
    absolute_suite: Path,
    record_path: Path,
    bench: Bench,
    run_timed: Run,
) -> None:
    missing = run_timed()
    missing.assert_outcomes(failed=1, deselected=6)
    missing.stdout.no_fnmatch_line("*traceback*")
    missing.stdout.fnmatch_lines(
        [
            "FAIL latency: *there is no baseline: here 5.00 ms (suites/tiny.quantgate.yaml:*",
            "*pytest suites/tiny.quantgate.yaml --quantgate-baselines=create*",
        ]
    )
    assert not record_path.exists()

    run_timed("--quantgate-baselines=create").assert_outcomes(passed=1, deselected=6)
    written = json.loads(record_path.read_text("utf-8"))
    assert written["machine"] == {
        "system": "Linux x86_64",
        "processor": "A",
        "cores": 2,
        "threads": 1,
        "device": "cpu",
    }
    assert (written["quantized_ms"], written["fp16_ms"], written["rounds"]) == (5.0, 10.0, 8)

    bench.quantized_ms = 5.5
    run_timed().assert_outcomes(passed=1, deselected=6)
    again = run_timed("--quantgate-baselines=update", "--quantgate-reason=why")
    again.assert_outcomes(passed=1, deselected=6)
    assert json.loads(record_path.read_text("utf-8")) == written, "the same machine: nothing new"

    bench.quantized_ms = 7.0
    slow = run_timed()
    slow.assert_outcomes(failed=1, deselected=6)
    slow.stdout.fnmatch_lines(
        ["FAIL latency: *quantized 7.00 ms over 8 rounds*over max_latency 6*"]
    )


def test_another_machine_is_incomparable_and_can_be_accepted(
    pytester: pytest.Pytester,
    absolute_suite: Path,
    record_path: Path,
    bench: Bench,
    run_timed: Run,
    run_gates: Run,
) -> None:
    from pytest_quantgate.commands.cli import main

    run_timed("--quantgate-baselines=create").assert_outcomes(passed=1, deselected=6)
    bench.machine = Machine(system="Linux x86_64", processor="B", cores=8, threads=1, device="cpu")

    alone = run_timed()
    # What is proposed passed every other gate; regression has no baseline, and is none of them.
    result = run_gates("-W", WARNINGS)

    alone.stdout.fnmatch_lines([f"*no baseline for suites/tiny {KEY}: * did not run"])
    result.assert_outcomes(failed=2, passed=5)
    result.stdout.fnmatch_lines(
        [
            "INCOMPARABLE latency: *holds on another machine (*, here *): processor differs: "
            "baseline A, now B (*",
            "*number of cores differs: baseline 2, now 8",
            "*--quantgate-baselines=update --quantgate-reason='why'*",
            f"*obtained: obtained/suites/tiny/latency-{KEY}.json*",
        ]
    )
    before = record_path.read_text("utf-8")
    assert main(["accept", "obtained", "--reason", "new machines"]) == 0
    assert record_path.read_text("utf-8") != before
    assert json.loads(record_path.read_text("utf-8"))["reason"] == "new machines"
    run_timed().assert_outcomes(passed=1, deselected=6)


def test_what_is_over_its_limit_is_neither_written_nor_proposed(
    pytester: pytest.Pytester,
    absolute_suite: Path,
    record_path: Path,
    bench: Bench,
    run_timed: Run,
) -> None:
    bench.quantized_ms = 7.0

    run_timed("--quantgate-baselines=create").assert_outcomes(failed=1, deselected=6)
    run_timed().assert_outcomes(failed=1, deselected=6)

    assert not record_path.exists()
    assert not (pytester.path / "obtained").exists()


def test_a_machine_is_not_recorded_while_coverage_is_red(
    absolute_suite: Path,
    record_path: Path,
    bench: Bench,
    run_timed: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pytest_quantgate.evidence.verdict import Status, Verdict
    from pytest_quantgate.gates import coverage
    from pytest_quantgate.gates.run import Judged

    red = Verdict(gate="coverage", status=Status.FAIL, headline="half of it is missing")
    kind = replace(coverage.KIND, judge=lambda _run, _gate: Judged(verdict=red))
    monkeypatch.setattr(coverage, "KIND", kind)

    result = run_timed("--quantgate-baselines=create")

    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines(
        ["*not accepted as a baseline: coverage is FAIL: half of it is missing*"]
    )
    assert not record_path.exists()


def test_nothing_is_written_on_ci_or_untimed(
    absolute_suite: Path,
    record_path: Path,
    bench: Bench,
    run_timed: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    untimed = run_timed("--quantgate-baselines=create", "--benchmark-disable")
    untimed.assert_outcomes(skipped=1, deselected=6)
    monkeypatch.setenv("CI", "1")
    refused = run_timed("--quantgate-baselines=create")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    assert not record_path.exists()


def test_a_record_without_a_limit_is_an_orphan(
    absolute_suite: Path,
    write_suite: WriteSuite,
    record_path: Path,
    bench: Bench,
    run_timed: Run,
) -> None:
    run_timed("--quantgate-baselines=create").assert_outcomes(passed=1, deselected=6)
    kept = run_timed("-k", "coverage and latency", "--quantgate-baselines=prune")
    assert kept.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert record_path.exists(), "orphans come from the suites, not from what ran"
    write_suite(replace={"  roundtrip: {}\n": LATENCY})

    run_timed("--quantgate-baselines=prune").assert_outcomes(passed=1, deselected=6)

    assert not record_path.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine": {"system": "x"}}, "'processor' is missing"),
        ({"quantized_ms": -1}, "quantized_ms: -1.0 is no time in ms"),
        ({"rounds": 0}, "rounds: 0 is no count"),
        ({"kind": "speed"}, "kind is 'speed', expected 'latency'"),
        ({"more": 1}, "unknown fields*'more'"),
        ({"suite": "other"}, "expected suites/tiny"),
        ({"created": "yesterday"}, "'yesterday' is no day"),
    ],
)
def test_a_damaged_record_is_red_and_left_alone(
    absolute_suite: Path,
    record_path: Path,
    bench: Bench,
    run_timed: Run,
    change: dict[str, Any],
    words: str,
) -> None:
    good = {
        "schema": 1,
        "kind": "latency",
        "suite": "tiny",
        "key": KEY,
        "runtime": "onnxruntime",
        "machine": {
            "system": "Linux x86_64",
            "processor": "A",
            "cores": 2,
            "threads": 1,
            "device": "cpu",
        },
        "rounds": 8,
        "fp16_ms": 10.0,
        "quantized_ms": 5.0,
        "versions": {},
        "created": "2026-11-01",
        "updated": "2026-11-01",
        "reason": "r",
    }
    record_path.parent.mkdir(parents=True)
    record_path.write_text(json.dumps(good | change), "utf-8")
    before = record_path.read_bytes()

    result = run_timed()

    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines([f"*latency-{KEY}.json*{words}*"])
    assert record_path.read_bytes() == before
