"""Collecting suites: node ids, selection, bad files, and what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: fp8-attention}
gates:
  coverage: {}
  accuracy:
    - {task: scenes/classification, metric: acc1, max_drop: 1pp}
    - {task: scenes/retrieval, metric: image_retrieval_recall@5, max_drop: 1pp}
  roundtrip: {}
"""


@pytest.fixture
def suite_path(pytester: pytest.Pytester) -> Path:
    path = pytester.path / "suites" / "clip.quantgate.yaml"
    path.parent.mkdir()
    path.write_text(SUITE, encoding="utf-8")
    return path


def collected(pytester: pytest.Pytester, *arguments: str) -> list[str]:
    result = pytester.runpytest_inprocess("--collect-only", "-q", "-p", "no:randomly", *arguments)
    return [line for line in result.outlines if "::" in line]


def test_each_gate_is_one_test_with_a_stable_id(
    pytester: pytest.Pytester, suite_path: Path
) -> None:
    assert collected(pytester, "suites") == [
        "suites/clip.quantgate.yaml::sanity",
        "suites/clip.quantgate.yaml::coverage",
        "suites/clip.quantgate.yaml::accuracy[scenes/classification-acc1]",
        "suites/clip.quantgate.yaml::accuracy[scenes/retrieval-image_retrieval_recall@5]",
        "suites/clip.quantgate.yaml::roundtrip",
    ]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["-k", "accuracy"], 2),
        (["-k", "coverage or roundtrip"], 2),
        (["-m", "quantgate(gate='accuracy')"], 2),
        (["-m", "quantgate(suite='other')"], 0),
        (["suites/clip.quantgate.yaml::accuracy[scenes/classification-acc1]"], 1),
    ],
)
def test_selection(
    pytester: pytest.Pytester, suite_path: Path, arguments: list[str], count: int
) -> None:
    path = [] if "::" in arguments[0] else ["suites"]

    assert len(collected(pytester, *path, *arguments)) == count


def test_gates_run_beside_ordinary_tests(pytester: pytest.Pytester, suite_path: Path) -> None:
    pytester.makepyfile("def test_ordinary(): pass")

    assert len(collected(pytester, ".")) == 6


def test_other_yaml_is_left_alone(pytester: pytest.Pytester) -> None:
    (pytester.path / "test_settings.yaml").write_text("a: [", encoding="utf-8")

    pytester.runpytest_inprocess().assert_outcomes()


def test_a_bad_suite_is_one_line_and_no_traceback(
    pytester: pytest.Pytester, suite_path: Path
) -> None:
    suite_path.write_text(SUITE.replace("max_drop: 1pp}", "max_dorp: 1pp}", 1), encoding="utf-8")

    result = pytester.runpytest_inprocess("suites")

    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["suites/clip.quantgate.yaml:8: accuracy.max_dorp: unknown key; did you mean max_drop?*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_markers_are_registered(pytester: pytest.Pytester) -> None:
    pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.quantgate(*"])


HEAVY = ("torch", "transformers", "modelopt", "numpy", "sklearn")


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], (*HEAVY, "yaml")),
        (["--version"], (*HEAVY, "yaml")),
        (["test_plain.py"], (*HEAVY, "yaml", "pytest_quantgate.suite.keys")),
        (["--collect-only", "suites"], HEAVY),
    ],
)
def test_a_run_imports_what_it_needs_alone(
    pytester: pytest.Pytester, suite_path: Path, arguments: list[str], absent: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_plain="def test_plain(): pass")
    script = (
        "import sys, pytest\n"
        f"pytest.main({arguments!r})\n"
        f"loaded = set({absent!r}) & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(loaded)}' if loaded else 0)\n"
    )
    environ = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "-p pytest_quantgate.plugin",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=pytester.path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]


def test_report_header_says_how_gates_are_judged(
    pytester: pytest.Pytester, suite_path: Path
) -> None:
    result = pytester.runpytest_inprocess("--collect-only", "suites", "--quantgate-strict")

    result.stdout.fnmatch_lines(["quantgate: baselines=check, device=auto, strict"])


def test_unset_environment_is_not_measured_and_strict_makes_it_red(
    pytester: pytest.Pytester, suite_path: Path, run_gates: Callable[..., pytest.RunResult]
) -> None:
    text = SUITE.replace("source: reference", 'source: transformers, id: "${QUANTGATE_NO_SUCH}"')
    suite_path.write_text(text, encoding="utf-8")

    loose, strict = run_gates("-rs"), run_gates("--quantgate-strict")

    loose.assert_outcomes(skipped=5)
    loose.stdout.fnmatch_lines(
        [
            "clip: not measured: suites/clip.quantgate.yaml:2: environment variable "
            "QUANTGATE_NO_SUCH is not set: export QUANTGATE_NO_SUCH=PATH",
            "5 gates: 5 not measured",
            "SKIPPED * not measured: suites/clip.quantgate.yaml:2: *",
        ]
    )
    strict.assert_outcomes(failed=5)
    assert strict.ret == pytest.ExitCode.TESTS_FAILED
