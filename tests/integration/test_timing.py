"""Latency gates in pytest: measured, recorded by pytest-benchmark, and never green unmeasured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WriteSuite = Callable[..., Path]


@pytest.fixture
def timed_suite(write_suite: WriteSuite) -> Path:
    """A latency gate that no machine can fail: what is timed is not the matter here."""
    return write_suite(
        recipe="int8",
        replace={
            "  roundtrip: {}\n": "  latency: {tower: vision, max_ratio: 1000x, rounds: 8}\n",
        },
    )


def test_times_are_in_pytest_benchmarks_results(
    pytester: pytest.Pytester,
    timed_suite: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark stops under it
    result = pytester.runpytest_subprocess(
        "suites",
        "-k",
        "latency",
        "--benchmark-json=times.json",
        f"--quantgate-cache-dir={shared_cache}",
    )

    result.assert_outcomes(passed=1, deselected=5)
    result.stdout.fnmatch_lines(
        ["*x FP16 [[]*within 1000x; *", "latency[[]onnxruntime-vision-batch1[]]*"]
    )
    (benchmark,) = json.loads((pytester.path / "times.json").read_text("utf-8"))["benchmarks"]
    assert benchmark["stats"]["rounds"] == 8
    assert benchmark["group"] == "tiny: latency"
    assert benchmark["extra_info"]["status"] == "PASS"
    assert benchmark["extra_info"]["fp16_median_ms"] > 0


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--benchmark-disable", "nothing is timed in this run"),
        ("-n2", "2 workers share this machine: run it without -n"),
    ],
)
def test_what_was_not_timed_is_not_green(
    pytester: pytest.Pytester,
    timed_suite: Path,
    shared_cache: Path,
    argument: str,
    reason: str,
) -> None:
    result = pytester.runpytest_subprocess(
        "suites", "-k", "latency", "-rs", argument, f"--quantgate-cache-dir={shared_cache}"
    )

    assert "passed" not in result.parseoutcomes()
    assert result.parseoutcomes()["skipped"] == 1
    result.stdout.fnmatch_lines([f"*latency: *{reason}*"])


def test_it_is_timed_without_the_benchmark_plugin_too(
    pytester: pytest.Pytester, timed_suite: Path, shared_cache: Path
) -> None:
    result = pytester.runpytest_subprocess(
        "suites", "-k", "latency", "-p", "no:benchmark", f"--quantgate-cache-dir={shared_cache}"
    )

    result.assert_outcomes(passed=1, deselected=5)
