"""Every option: the command line over the ini file over the default, and the words of a refusal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

HEADER = "quantgate: baselines={mode}, device={device}"


def header(pytester: pytest.Pytester, *arguments: str) -> str:
    result = pytester.runpytest_inprocess("--collect-only", *arguments)
    return next(line for line in result.outlines if line.startswith("quantgate: "))


@pytest.mark.parametrize(
    ("ini", "arguments", "expected"),
    [
        ("", [], "quantgate: baselines=check, device=auto"),
        ("quantgate_device = cpu", [], "quantgate: baselines=check, device=cpu"),
        (
            "quantgate_device = cpu",
            ["--quantgate-device=cuda"],
            "quantgate: baselines=check, device=cuda",
        ),
        ("quantgate_baselines = prune", [], "quantgate: baselines=prune, device=auto"),
        (
            "quantgate_baselines = prune",
            ["--quantgate-baselines=check"],
            "quantgate: baselines=check, device=auto",
        ),
        ("quantgate_strict = true", [], "quantgate: baselines=check, device=auto, strict"),
        ("quantgate_cache = off", [], "quantgate: baselines=check, device=auto, cache=off"),
        (
            "quantgate_cache = off",
            ["--quantgate-cache=on"],
            "quantgate: baselines=check, device=auto",
        ),
        ("", ["--quantgate-strict"], "quantgate: baselines=check, device=auto, strict"),
        (
            "quantgate_allow_unmeasured = engine, latency",
            ["--quantgate-strict"],
            "quantgate: baselines=check, device=auto, strict, may be missing: engine latency",
        ),
        (
            "quantgate_allow_unmeasured = engine",
            ["--quantgate-strict", "--quantgate-allow-unmeasured="],
            "quantgate: baselines=check, device=auto, strict",
        ),
    ],
)
def test_command_line_over_ini_over_default(
    pytester: pytest.Pytester, ini: str, arguments: list[str], expected: str
) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")

    assert header(pytester, *arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--quantgate-baselines=chekc"],
            "'chekc' is not a valid quantgate baselines mode. "
            "Valid modes: check, create, update, prune.",
        ),
        (
            ["--quantgate-device=tpu"],
            "'tpu' is not a valid quantgate device. Valid devices: auto, cpu, cuda.",
        ),
        (
            ["--quantgate-cache=of"],
            "'of' is not a valid quantgate cache. Valid modes: on, off.",
        ),
        (
            ["--quantgate-allow-unmeasured=engine,latencies"],
            "--quantgate-allow-unmeasured: 'latencies' is not a kind of gate. Valid kinds: sanity, "
            "coverage, calibration, fidelity, accuracy, regression, roundtrip, serves, export, "
            "parity, engine, memory, trace, latency, load, tests.",
        ),
        (
            ["--quantgate-baselines=update"],
            "--quantgate-baselines=update needs --quantgate-reason='why': the reason is kept in "
            "the baseline and read in its review",
        ),
    ],
)
def test_bad_values_are_usage_errors(
    pytester: pytest.Pytester, arguments: list[str], words: str
) -> None:
    result = pytester.runpytest_inprocess(*arguments)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {words}"])


@pytest.mark.parametrize("variable", ["CI", "BUILD_NUMBER"])
@pytest.mark.parametrize("mode", ["create", "update", "prune"])
def test_ci_writes_nothing_unless_told(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, variable: str, mode: str
) -> None:
    monkeypatch.setenv(variable, "1")
    arguments = [f"--quantgate-baselines={mode}", "--quantgate-reason=x"]

    refused = pytester.runpytest_inprocess(*arguments)
    allowed = pytester.runpytest_inprocess(*arguments, "--quantgate-allow-ci-write")

    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines([f"ERROR: *{mode}*{variable}*--quantgate-allow-ci-write*"])
    assert allowed.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_cache_in_the_checkout_is_refused_in_ci(
    pytester: pytest.Pytester,
    write_suite: Callable[..., Path],
    run_gates: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pull request could bring along what its gates then find."""
    write_suite()
    (pytester.path / ".git").mkdir()
    monkeypatch.setenv("CI", "1")

    result = run_gates("-k", "coverage", "--quantgate-cache-dir=cache")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [f"*the cache {pytester.path}/cache lies in the checkout {pytester.path}, where a pull*"]
    )
    assert not (pytester.path / "cache").exists()


def test_temporary_cache_goes_with_a_run_that_could_not_start(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    result = pytester.runpytest_inprocess("--quantgate-cache=off", "--quantgate-json=.")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert list(tmp_path.glob("quantgate-*")) == []


def test_ci_demands_all_and_the_header_says_so(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILD_NUMBER", "7")

    assert header(pytester) == (
        "quantgate: baselines=check, device=auto, BUILD_NUMBER is set: what is not measured fails"
    )
