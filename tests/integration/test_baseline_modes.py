"""The life of a baseline: missing, created, checked, moved, updated, orphaned, proposed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., pytest.RunResult]
WriteSuite = Callable[..., Path]
ONLY = ("-k", "regression")


def as_version_01(made: dict[str, Any]) -> str:
    """Return the text that version 0.1 wrote for a record of today."""
    new = ("kind", "digest", "first_fp16", "chains", "verdicts", "floor_status", "looks")
    old = {name: value for name, value in made.items() if name not in new}
    digests = ("model", "data", "calibration", "recipe")
    old["fingerprint"] = {name: made["fingerprint"][name] for name in digests}
    for name in ("fp16", "accepted", "first"):
        old[name] = {k: v for k, v in made[name].items() if k != "effective_samples"}
    return json.dumps({**old, "schema": 1}, sort_keys=True, indent=2) + "\n"


def stored(pytester: pytest.Pytester) -> Path:
    (path,) = (pytester.path / "baselines" / "tiny").glob("*.json")
    return path


def test_missing_is_a_failure_that_names_the_command_and_writes_nothing(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()

    result = run_gates(*ONLY)

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*pytest suites/tiny.quantgate.yaml --quantgate-baselines=create*"]
    )
    assert not (pytester.path / "baselines").exists()


def test_create_then_check_then_nothing_to_do(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()

    created = run_gates(*ONLY, "--quantgate-baselines=create")
    first = stored(pytester).read_bytes()
    checked = run_gates(*ONLY)
    again = run_gates(*ONLY, "--quantgate-baselines=create")
    updated = run_gates(*ONLY, "--quantgate-baselines=update", "--quantgate-reason=again")

    for result in (created, checked, again, updated):
        result.assert_outcomes(passed=1)
    created.stdout.fnmatch_lines(["baseline written: baselines/tiny/*"])
    updated.stdout.no_fnmatch_line("baseline written*")
    assert stored(pytester).read_bytes() == first
    assert first.endswith(b"}\n")


def test_a_moved_result_is_proposed_and_can_be_accepted(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    from pytest_quantgate.cli import main

    write_suite(replace={"20pp, max_drop: 20pp,": "20pp, max_drop: 0pp,"})
    run_gates(*ONLY, "--quantgate-baselines=create")
    path = stored(pytester)
    before = path.read_bytes()

    result = run_gates(*ONLY)  # 64 samples cannot show a drop of nothing

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INCONCLUSIVE regression: *", "obtained: obtained/tiny/*"])
    assert path.read_bytes() == before
    assert main(["accept", "obtained", "--baselines", "baselines", "--reason", "looked at"]) == 0
    assert json.loads(path.read_text())["reason"] == "looked at"


def test_damaged_baseline_is_named_and_kept(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    run_gates(*ONLY, "--quantgate-baselines=create")
    path = stored(pytester)
    path.write_text(path.read_text()[:-40], encoding="utf-8")
    damaged = path.read_bytes()

    result = run_gates(*ONLY)

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*baselines/tiny/{path.name}*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert path.read_bytes() == damaged


def test_baseline_of_another_recipe_is_incomparable(
    write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    run_gates(*ONLY, "--quantgate-baselines=create")
    write_suite(recipe="fp8")

    result = run_gates(*ONLY)

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*INCOMPARABLE regression: *",
            "*recipe fp8-attention -> fp8: now without ?q_bmm_quantizer: *",
        ]
    )


def test_baseline_of_other_settings_is_incomparable_and_they_are_named(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    """All digests are the same: weights, data, calibration and recipe did not change."""
    write_suite(recipe="fp8")
    run_gates(*ONLY, "--quantgate-baselines=create")
    before = stored(pytester).read_bytes()
    write_suite(recipe="fp8", replace={'"}': '", dtype: bfloat16, attn_implementation: eager}'})

    result = run_gates(*ONLY)
    updated = run_gates(*ONLY, "--quantgate-baselines=update", "--quantgate-reason=eager")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*INCOMPARABLE regression: *was made of something else*"
            "[[]regression.baseline-of-other-things[]]",
            "*dtype float16 -> bfloat16",
            "*attention sdpa -> eager",
            "*INCOMPARABLE  regression*",
            "*dtype float16 -> bfloat16, attention sdpa -> eager",
        ]
    )
    assert "model weights" not in result.stdout.str()
    updated.assert_outcomes(passed=1)
    assert json.loads(stored(pytester).read_text())["first"] == json.loads(before)["first"]


def test_other_data_starts_anew_only_where_that_is_said(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    run_gates(*ONLY, "--quantgate-baselines=create")
    before = stored(pytester).read_bytes()
    write_suite(replace={"samples: 64,\n": "samples: 60,\n"})
    update = ("--quantgate-baselines=update", "--quantgate-reason=fewer samples")

    checked = run_gates(*ONLY)
    refused = run_gates(*ONLY, *update)
    kept = stored(pytester).read_bytes()
    allowed = run_gates(*ONLY, *update, "--quantgate-new-data")

    checked.stdout.fnmatch_lines(
        ["*INCOMPARABLE regression: *", "*evaluation data differ in *", "*--quantgate-new-data"]
    )
    refused.assert_outcomes(failed=1)
    refused.stdout.fnmatch_lines(
        [
            "*FAIL regression: baseline of * is not updated: the evaluation data is not that on "
            "which the first variant was accepted *[[]regression.new-data[]]",
            "*accepted so far: *64 samples*drop 0.00 pp",
            "*next step: *update --quantgate-reason='why' --quantgate-new-data",
        ]
    )
    assert kept == before
    allowed.assert_outcomes(passed=1)
    record = json.loads(stored(pytester).read_text())
    assert record["accepted"]["samples"] == record["first"]["samples"] == 60
    assert [chain["samples"] for chain in record["chains"]] == [64]
    assert record["chains"][0]["reason"] == "fewer samples"
    run_gates(*ONLY, "-rP").stdout.fnmatch_lines(["*accepted before: *64 samples*drop 0.00 pp"])


def test_what_an_old_baseline_does_not_say_is_named(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    run_gates(*ONLY, "--quantgate-baselines=create")
    path = stored(pytester)
    made = json.loads(path.read_text())
    path.write_text(as_version_01(made), encoding="utf-8")

    checked = run_gates(*ONLY)
    updated = run_gates(*ONLY, "--quantgate-baselines=update", "--quantgate-reason=settings")

    checked.assert_outcomes(passed=1)
    checked.stdout.fnmatch_lines(
        [
            "*note: the baseline of scenes/classification-acc1 does not say: dtype, attention, "
            "device, *recipe content; they were not compared. To record them: pytest *update*"
        ]
    )
    updated.assert_outcomes(passed=1)
    now = json.loads(path.read_text())
    assert (now["schema"], now["fingerprint"]) == (2, made["fingerprint"])
    assert (now["first"], now["first_accepted"]) == (made["first"], made["first_accepted"])


def test_orphans_come_from_the_suites_not_from_what_ran(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite()
    run_gates("--quantgate-baselines=create")
    kept = stored(pytester)
    orphan = pytester.path / "baselines" / "gone" / "regression-old.json"
    orphan.parent.mkdir()
    orphan.write_text("{}", encoding="utf-8")

    selected = run_gates("-k", "coverage")
    strict = run_gates("-k", "coverage", "--quantgate-strict")
    pruned = run_gates("-k", "coverage", "--quantgate-baselines=prune")

    selected.stdout.fnmatch_lines(["orphaned baseline: baselines/gone/regression-old.json"])
    assert selected.ret == pytest.ExitCode.OK
    assert strict.ret == pytest.ExitCode.TESTS_FAILED
    pruned.stdout.fnmatch_lines(["baseline deleted: baselines/gone/regression-old.json (orphan)"])
    assert not orphan.exists()
    assert kept.exists()


def test_failed_coverage_is_never_accepted(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite(recipe="FP8_DEFAULT_CFG")

    result = run_gates(*ONLY, "--quantgate-baselines=create")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*coverage*"])
    assert not (pytester.path / "baselines").exists()


def test_result_under_the_floor_is_never_accepted(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite(replace={"max_drop: 50pp, samples": "max_drop: 50pp, floor: 90%, samples"})

    result = run_gates(*ONLY, "--quantgate-baselines=create")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*floor*"])
    assert not (pytester.path / "baselines").exists()
