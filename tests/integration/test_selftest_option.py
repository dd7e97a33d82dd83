"""`--quantgate-selftest`: damage is planted, and each gate must turn red for the right reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., pytest.RunResult]
WriteSuite = Callable[..., Path]

SELFTEST = "--quantgate-selftest"


def test_each_gate_is_proven_or_not_and_nothing_is_changed(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    run_gates("--quantgate-baselines=create")
    stored = [path.read_bytes() for path in (pytester.path / "baselines").rglob("*.json")]

    result = run_gates(SELFTEST)
    afterwards = run_gates()

    # The tiny CLIP is right on few: no variant can lose the 50 points that its suite allows.
    result.assert_outcomes(passed=5, failed=2)
    result.stdout.fnmatch_lines(
        [
            "FAIL selftest: accuracy stays green on 1 of 5 sabotages, first: answers of another*",
            "    green  answers of another class: PASS accuracy: *",
            "  likely cause: a limit that nothing can exceed, *",
            "  next step: tighten the gate's limits in the suite",
            "*= quantgate =*",
            "tiny: selftest",
            "  PROVEN        sanity: red on 8 of 8 sabotages",
            "  PROVEN        coverage: red on 5 of 5 sabotages, green on the same varia*",
            "      red    a whole tower switched off: the whole vision tower is unquant*",
            "      red    one block switched off: *",
            "  PROVEN        calibration: red on 7 of 7 sabotages, green on the same va*",
            "      red    ranges of other data: *",
            "  PROVEN        fidelity: red on 3 of 3 sabotages",
            "  NOT PROVEN    accuracy[[]scenes/classification-acc1[]]: stays green: answers of*",
            "  NOT PROVEN    regression[[]scenes/classification-acc1[]]: another cause named:*",
            "  PROVEN        roundtrip: red on 3 of 3 sabotages",
            "tiny: 5 of 7 gates proven: red for the right reason on 32 of 35 sabotages",
        ]
    )
    result.stdout.no_fnmatch_line("*may ship*")
    assert [p.read_bytes() for p in (pytester.path / "baselines").rglob("*.json")] == stored
    assert not (pytester.path / "obtained").exists()
    # Real damage was done to the variant in memory, and undone.
    afterwards.assert_outcomes(passed=7)


def test_a_gate_that_is_red_already_proves_nothing(write_suite: WriteSuite, run_gates: Run) -> None:
    write_suite(replace={"min_cosine: 0.5": "min_cosine: 1"})

    result = run_gates(SELFTEST, "-k", "fidelity")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "INCONCLUSIVE selftest: fidelity is FAIL without any sabotage, *",
            "  next step: mend the gate first *",
            "  RED ALREADY   fidelity: *",
        ]
    )


@pytest.mark.parametrize("mode", ["create", "update", "prune"])
def test_no_baseline_may_be_written_in_such_a_run(pytester: pytest.Pytester, mode: str) -> None:
    reason = ["--quantgate-reason=why"] if mode == "update" else []

    result = pytester.runpytest_inprocess(SELFTEST, f"--quantgate-baselines={mode}", *reason)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*no baseline may be written*--quantgate-baselines={mode}*"])
