"""Running a whole suite on a tiny CLIP: verdicts, summary, JUnit, selection, other plugins."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., pytest.RunResult]
WriteSuite = Callable[..., Path]


def test_a_good_variant_ends_with_a_verdict_table(write_suite: WriteSuite, run_gates: Run) -> None:
    write_suite()
    run_gates("--quantgate-baselines=create")

    result = run_gates()

    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(
        [
            "*= quantgate =*",
            "tiny",
            "  PASS  sanity *  a pair runs, prompts of 100 classes differ, FP16 beats chance*",
            "  PASS  coverage *  E4M3 on *% of matrix weights, attention q k v output in 2*",
            "  PASS  calibration *",
            "  PASS  fidelity *",
            "  PASS  accuracy[[]scenes/classification-acc1[]] * -> * %, drop * within 100.00 pp",
            "  PASS  regression[[]scenes/classification-acc1[]] *",
            "  PASS  roundtrip *",
            "tiny: may ship: 7 gates passed",
        ]
    )


def test_junit_carries_the_figures(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    run_gates("-k", "accuracy", "--junitxml=report.xml")

    case = ElementTree.parse(pytester.path / "report.xml").getroot().find(".//testcase")

    assert case is not None
    assert case.get("name") == "accuracy[scenes/classification-acc1]"
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert properties["quantgate.status"] == "PASS"
    assert any(name != "quantgate.status" for name in properties)


def test_a_red_gate_fails_with_its_report_and_no_traceback(
    write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite(replace={"min_cosine: 0.5": "min_cosine: 1"})

    result = run_gates("-k", "fidelity")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*FAIL fidelity: *suites/tiny.quantgate.yaml:8*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.fnmatch_lines(["tiny: do not ship: fidelity"])


def test_last_failed_and_exitfirst(write_suite: WriteSuite, run_gates: Run) -> None:
    write_suite(replace={"min_cosine: 0.5": "min_cosine: 1"})

    first = run_gates("-x")
    again = run_gates("--lf")

    first.assert_outcomes(passed=3, failed=1)
    first.stdout.fnmatch_lines(["tiny: do not ship: fidelity"])
    again.assert_outcomes(failed=1)


def test_selected_gates_do_not_make_a_release(write_suite: WriteSuite, run_gates: Run) -> None:
    write_suite()

    result = run_gates("-k", "coverage")

    result.stdout.fnmatch_lines(["tiny: not decided: 1 passed, 6 gates did not run"])


def test_second_run_imports_no_torch(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run, shared_cache: Path
) -> None:
    write_suite()
    run_gates("--quantgate-baselines=create")
    pytester.makeconftest(
        """
        import sys

        def pytest_sessionfinish(session):
            print("torch imported:", "torch" in sys.modules)
        """
    )

    result = pytester.runpytest_subprocess(
        "suites", f"--quantgate-cache-dir={shared_cache}", "-p", "no:randomly", "-s"
    )

    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(["*torch imported: False"])


@pytest.mark.parametrize(
    "arguments", [["-n", "2"], ["-p", "no:benchmark"], ["-p", "randomly", "-p", "no:xdist"]]
)
def test_other_plugins(
    pytester: pytest.Pytester,
    write_suite: WriteSuite,
    run_gates: Run,
    shared_cache: Path,
    arguments: list[str],
) -> None:
    write_suite()
    run_gates("--quantgate-baselines=create")

    result = pytester.runpytest_subprocess(
        "suites", f"--quantgate-cache-dir={shared_cache}", *arguments
    )

    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(["tiny: may ship: 7 gates passed"])


def test_a_damaged_cache_is_named_and_built_again(
    write_suite: WriteSuite, run_gates: Run, tmp_path: Path
) -> None:
    write_suite()
    option = f"--quantgate-cache-dir={tmp_path}"
    run_gates(option, "-k", "coverage")
    (audit,) = (tmp_path / "v1" / "variant").rglob("audit.json")
    audit.write_text("{}", encoding="utf-8")

    result = run_gates(option, "-k", "coverage")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["warning: cache entry variant/*is damaged (the SHA-256 of audit.json differs*"]
    )


def test_quiet_runs_stay_quiet(write_suite: WriteSuite, run_gates: Run, tmp_path: Path) -> None:
    write_suite()

    loud = run_gates("-k", "coverage", f"--quantgate-cache-dir={tmp_path}")
    quiet = run_gates("-q", "-k", "coverage", f"--quantgate-cache-dir={tmp_path / 'other'}")

    loud.stdout.fnmatch_lines(["quantgate: calibrating fp8-attention (32)*"])
    quiet.stdout.no_fnmatch_line("quantgate: calibrating*")


def test_ctrl_c_during_calibration_leaves_nothing_to_read(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_forked: Run, tmp_path: Path
) -> None:
    write_suite()
    pytester.makeconftest(
        """
        import os, signal
        from pytest_quantgate.quantization import quantize as room

        calibrate = room.quantize

        def interrupted(model, *, batches, **options):
            def first_batch_then_ctrl_c():
                # A job in the background of a shell inherits a SIGINT that is ignored.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                yield next(iter(batches))
                os.kill(os.getpid(), signal.SIGINT)
                yield from batches

            return calibrate(model, batches=first_batch_then_ctrl_c(), **options)

        room.quantize = interrupted
        """
    )
    arguments = ("suites", f"--quantgate-cache-dir={tmp_path}", "-k", "coverage")

    stopped = run_forked(*arguments)
    (pytester.path / "conftest.py").unlink()
    again = run_forked(*arguments)

    assert stopped.ret == pytest.ExitCode.INTERRUPTED
    again.assert_outcomes(passed=1)
    again.stdout.no_fnmatch_line("*damaged*")
