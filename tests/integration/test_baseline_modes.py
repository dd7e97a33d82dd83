"""The life of a baseline: missing, created, checked, moved, updated, orphaned, proposed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.store.records import canonical_text, record_from_json

Run = Callable[..., pytest.RunResult]
WriteSuite = Callable[..., Path]
ONLY = ("-k", "regression")


def as_version_01(made: dict[str, Any]) -> str:
    """Return the text that version 0.1 wrote for a record of today."""
    new = ("kind", "digest", "first_fp16", "chains", "verdicts", "looks")
    old = {name: value for name, value in made.items() if name not in new}
    digests = ("model", "data", "calibration", "recipe")
    old["fingerprint"] = {name: made["fingerprint"][name] for name in digests}
    for name in ("fp16", "accepted", "first"):
        old[name] = {k: v for k, v in made[name].items() if k != "effective_samples"}
    return json.dumps({**old, "schema": 1}, sort_keys=True, indent=2) + "\n"


def stored(pytester: pytest.Pytester) -> Path:
    (path,) = (pytester.path / "baselines" / "suites" / "tiny").glob("*.json")
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
    created.stdout.fnmatch_lines(["baseline written: baselines/suites/tiny/*"])
    updated.stdout.no_fnmatch_line("baseline written*")
    assert stored(pytester).read_bytes() == first
    assert first.endswith(b"}\n")


#: 64 samples cannot show a drop of nothing: INCONCLUSIVE, and every other gate passes.
STRICTER = {"20pp, max_drop: 12pp,": "20pp, max_drop: 0pp,"}
RED = {"min_cosine: 0.5": "min_cosine: 0.999999"}


def test_a_moved_result_is_proposed_and_can_be_accepted(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    from pytest_quantgate.commands.cli import main

    write_suite(replace=STRICTER)
    run_gates(*ONLY, "--quantgate-baselines=create")
    path = stored(pytester)
    before = path.read_bytes()

    result = run_gates()

    result.assert_outcomes(failed=1, passed=6)
    result.stdout.fnmatch_lines(
        [
            "*INCONCLUSIVE regression: *",
            "obtained: obtained/suites/tiny/*; to accept it: quantgate accept obtained *",
        ]
    )
    assert path.read_bytes() == before
    assert main(["accept", "obtained", "--baselines", "baselines", "--reason", "looked at"]) == 0
    accepted = json.loads(path.read_text())
    assert accepted["reason"] == "looked at"
    assert accepted["verdicts"] == {
        "sanity": "PASS",
        "coverage": "PASS",
        "calibration": "PASS",
        "fidelity": "PASS",
        "accuracy[scenes/classification-acc1]": "PASS",
        "roundtrip": "PASS",
    }


def test_red_result_is_not_proposed_nor_created_nor_accepted(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    from pytest_quantgate.commands.cli import main

    path = write_suite(replace=STRICTER)
    run_gates(*ONLY, "--quantgate-baselines=create")
    run_gates()
    (proposed,) = (pytester.path / "obtained").rglob("*.json")
    before = stored(pytester).read_bytes()
    write_suite(replace=STRICTER | RED)

    red = run_gates()
    # Whatever the order: what runs last counts too.
    nodes = [f"{path}::{name}" for name in ("regression[scenes/classification-acc1]", "fidelity")]
    turned = run_gates(nodes[1], path=nodes[0])
    updated = run_gates(*ONLY, "--quantgate-baselines=update", "--quantgate-reason=why")

    words = "no baseline for suites/tiny scenes/classification-acc1: fidelity is FAIL"
    red.stdout.fnmatch_lines([words])
    turned.stdout.fnmatch_lines([f"{words}, coverage, *did not run"])
    for result in (red, turned):
        result.stdout.no_fnmatch_line("*to accept it*")
    assert not proposed.exists()  # the run before this one had proposed it
    updated.assert_outcomes(failed=1)
    updated.stdout.fnmatch_lines(
        ["*not accepted as a baseline: fidelity is FAIL: fidelity: *cosine*"]
    )
    assert main(["accept", "obtained", "--reason", "why"]) == 1
    assert stored(pytester).read_bytes() == before


def test_result_of_a_part_of_the_suite_is_not_proposed(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    write_suite(replace=STRICTER)
    run_gates(*ONLY, "--quantgate-baselines=create")

    result = run_gates(*ONLY)

    result.stdout.fnmatch_lines(
        ["no baseline for suites/tiny *: coverage, * and 1 more did not run"]
    )
    assert not (pytester.path / "obtained").exists()


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
    result.stdout.fnmatch_lines([f"*baselines/suites/tiny/{path.name}*"])
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
    write_suite(recipe="fp8", replace={'"}': '", dtype: float32, attn_implementation: eager}'})

    result = run_gates(*ONLY)
    updated = run_gates(*ONLY, "--quantgate-baselines=update", "--quantgate-reason=eager")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*INCOMPARABLE regression: *was made of something else*"
            "[[]regression.baseline-of-other-things[]]",
            "*dtype float16 -> float32",
            "*attention sdpa -> eager",
            "*INCOMPARABLE  regression*  dtype float16 -> float32, attention sdpa -> eager",
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
    gone = json.loads(kept.read_text())
    orphan = pytester.path / "baselines" / "suites" / "gone" / kept.name
    orphan.parent.mkdir()
    record = replace(record_from_json(gone), suite="suites/gone")
    orphan.write_text(canonical_text(record), encoding="utf-8")
    shown = f"baselines/suites/gone/{kept.name} (there is no suites/gone.quantgate.yaml)"

    selected = run_gates("-k", "coverage")
    strict = run_gates("-k", "coverage", "--quantgate-strict")
    pruned = run_gates("-k", "coverage", "--quantgate-baselines=prune")

    selected.stdout.fnmatch_lines([f"orphaned baseline: {shown}"])
    assert selected.ret == pytest.ExitCode.OK
    assert strict.ret == pytest.ExitCode.TESTS_FAILED
    pruned.stdout.fnmatch_lines([f"baseline deleted: {shown}"])
    assert not orphan.exists()
    assert kept.exists()


def test_suite_outside_of_suites_owns_its_baseline(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    path = write_suite()
    moved = pytester.path / "models" / "clip" / "quality.quantgate.yaml"
    moved.parent.mkdir(parents=True)
    path.rename(moved)

    run_gates(*ONLY, "--quantgate-baselines=create", path="models")
    (kept,) = (pytester.path / "baselines" / "models" / "clip" / "quality").glob("*.json")
    checked = run_gates(*ONLY, path="models")
    pruned = run_gates(*ONLY, "--quantgate-baselines=prune", path="models")
    empty = run_gates("--quantgate-baselines=prune", path="suites")

    checked.assert_outcomes(passed=1)
    assert checked.ret == pytest.ExitCode.OK
    for result in (checked, pruned, empty):
        result.stdout.no_fnmatch_line("*orphan*")
        result.stdout.no_fnmatch_line("baseline deleted*")
    assert kept.exists()


def test_suites_of_one_name_in_two_folders_are_two_suites(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    path = write_suite()
    text = path.read_text()
    for team in ("team_a", "team_b"):
        place = pytester.path / team / "tiny.quantgate.yaml"
        place.parent.mkdir()
        place.write_text(text, encoding="utf-8")
    path.unlink()

    created = run_gates("-k", "regression", "--quantgate-baselines=create", path=".")
    one = run_gates(path="team_a")
    both = run_gates("--deselect=team_b/tiny.quantgate.yaml::coverage", path=".")

    created.stdout.fnmatch_lines(
        ["baseline written: baselines/team_a/tiny/*", "baseline written: baselines/team_b/tiny/*"]
    )
    assert len(list((pytester.path / "baselines").rglob("*.json"))) == 2
    one.stdout.fnmatch_lines(["tiny", "tiny: may ship: * gates passed"])
    both.stdout.fnmatch_lines(
        [
            "team_a/tiny",
            "team_b/tiny",
            "team_a/tiny: may ship: * gates passed",
            "team_b/tiny: not decided: *",
        ]
    )


def test_what_version_0_1_left_is_used_and_the_command_that_moves_it_works(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: Run
) -> None:
    from pytest_quantgate.commands.cli import main

    path = write_suite()
    run_gates(*ONLY, "--quantgate-baselines=create")
    today = stored(pytester)
    old = pytester.path / "baselines" / "tiny" / today.name
    old.parent.mkdir()
    old.write_text(as_version_01({**json.loads(today.read_text()), "suite": "tiny"}))
    today.unlink()

    used = run_gates(*ONLY)
    other = pytester.path / "elsewhere" / path.name
    other.parent.mkdir()
    other.write_text(path.read_text(), encoding="utf-8")
    refused = run_gates(*ONLY)

    used.assert_outcomes(passed=1)
    used.stdout.fnmatch_lines(
        ["*note: *version 0.1 wrote it, below tiny/: quantgate migrate suites/tiny.quantgate.yaml"]
    )
    used.stdout.no_fnmatch_line("*orphan*")
    refused.assert_outcomes(failed=1)
    refused.stdout.fnmatch_lines(
        ["*version 0.1 kept it for every suite called tiny*quantgate migrate suites/tiny.*"]
    )
    assert main(["migrate", "suites/tiny.quantgate.yaml"]) == 0
    assert today.exists()
    assert not old.exists()
    run_gates(*ONLY).assert_outcomes(passed=1)
