"""The fixtures of hand-written tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., pytest.RunResult]
WriteSuite = Callable[..., Path]

MARK = '@pytest.mark.quantgate(suite="suites/tiny.quantgate.yaml")'


def test_variants_case_and_gates_are_the_suites_own(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    pytester.makepyfile(
        f"""
        import pytest

        {MARK}
        def test_variants(quantgate_fp16, quantgate_quantized, quantgate_case):
            assert quantgate_quantized.weights_digest == quantgate_fp16.weights_digest
            assert quantgate_case.audit.recipe_name == "fp8-attention"
            assert quantgate_case.judge(kind="coverage").verdict.passed
        """
    )

    run_gates(path=".").assert_outcomes(passed=7, failed=1)  # the regression has no baseline
    run_gates("-k", "test_variants", path=".").assert_outcomes(passed=1, deselected=7)


def test_the_suite_can_come_from_the_ini_file_or_an_option(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    test = pytester.makepyfile(
        "def test_name(quantgate_case): assert quantgate_case.suite.name == 'suites/tiny'"
    )
    option = "--quantgate-suite=suites/tiny.quantgate.yaml"

    run_gates(option, path=str(test)).assert_outcomes(passed=1)
    unnamed = run_gates(path=str(test))
    pytester.makeini("[pytest]\nquantgate_suite = suites/tiny.quantgate.yaml")
    run_gates(path=str(test)).assert_outcomes(passed=1)

    unnamed.assert_outcomes(errors=1)
    unnamed.stdout.fnmatch_lines(
        ["*uses a quantgate fixture but names no suite: add @pytest.mark*"]
    )


def test_baseline_check_is_the_suites_regression_gate(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    test = pytester.makepyfile(
        f"""
        from dataclasses import replace
        import pytest

        TASK = {{"task": "scenes/classification", "metric": "acc1"}}

        {MARK}
        def test_measured_by_the_suite(quantgate_baseline):
            quantgate_baseline(**TASK)

        {MARK}
        def test_measured_here(quantgate_baseline, quantgate_case):
            fp16, quantized = quantgate_case.outcomes(**TASK, samples=64)
            wrong = replace(quantized, correct=(False,) * 64, answers=(-1,) * 64, value=0.0)
            right = replace(fp16, correct=(True,) * 64, answers=fp16.labels, value=1.0)
            same = replace(right, variant=quantized.variant)
            quantgate_baseline(**TASK, fp16=right, quantized=same)
            with pytest.raises(pytest.fail.Exception, match=r"acc1 0\\.00 % against the variant"):
                quantgate_baseline(**TASK, fp16=right, quantized=wrong)

        {MARK}
        def test_no_such_gate(quantgate_baseline):
            quantgate_baseline(task="scenes/classification", metric="acc5")
        """
    )

    missing = run_gates("-k", "by_the_suite", path=str(test))
    created = run_gates("-k", "by_the_suite", "--quantgate-baselines=create", path=str(test))
    checked = run_gates(path=str(test))

    missing.assert_outcomes(failed=1, deselected=2)
    missing.stdout.fnmatch_lines(["*no baseline of scenes/classification acc1*"])
    created.assert_outcomes(passed=1, deselected=2)
    created.stdout.fnmatch_lines(["baseline written: baselines/suites/tiny/*"])
    assert len(list((pytester.path / "baselines" / "suites" / "tiny").glob("*.json"))) == 1
    checked.assert_outcomes(passed=2, failed=1)
    checked.stdout.fnmatch_lines(
        ["*tiny.quantgate.yaml has no regression gate of scenes/classification acc5 (it has: *"]
    )


def test_a_hand_written_red_check_proposes_what_it_obtained(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    test = pytester.makepyfile(
        f"""
        import pytest

        {MARK}
        def test_it(quantgate_baseline):
            quantgate_baseline(task="scenes/classification", metric="acc1")
        """
    )

    alone = run_gates(path=str(test))
    result = run_gates("suites", path=str(test))

    alone.assert_outcomes(failed=1)
    alone.stdout.fnmatch_lines(["no baseline for suites/tiny *: *coverage, * did not run"])
    result.assert_outcomes(failed=2, passed=6)
    result.stdout.fnmatch_lines(
        ["obtained: obtained/suites/tiny/*; to accept it: quantgate accept *"]
    )
    assert len(list((pytester.path / "obtained" / "suites" / "tiny").glob("*.json"))) == 1


def test_what_is_absent_skips_and_what_is_bad_fails(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run, tiny_clip: Path
) -> None:
    suite = write_suite(replace={f'"{tiny_clip}"': '"${QUANTGATE_NO_SUCH}"'})
    test = pytester.makepyfile(
        f"""
        import pytest

        {MARK}
        def test_model(quantgate_fp16):
            raise AssertionError("never reached")

        {MARK}
        def test_baseline(quantgate_baseline):
            quantgate_baseline(task="scenes/classification", metric="acc1")
        """
    )

    absent = run_gates("-rs", path=str(test))
    strict = run_gates("--quantgate-strict", "-k", "baseline", path=str(test))
    suite.write_text("quantgate: 2\n", encoding="utf-8")
    bad = run_gates(path=str(test))

    absent.assert_outcomes(skipped=2)
    absent.stdout.fnmatch_lines(["SKIPPED *environment variable QUANTGATE_NO_SUCH is not set*"])
    strict.assert_outcomes(failed=1, deselected=1)
    bad.assert_outcomes(errors=2)
    bad.stdout.no_fnmatch_line("*Traceback*")
