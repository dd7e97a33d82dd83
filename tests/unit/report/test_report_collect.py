"""What a run left behind -> the facts of a report."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from pytest_quantgate.evidence.outcomes import unpack_scores
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates.coverage import CoverageGate
from pytest_quantgate.gates.scope import Waiver
from pytest_quantgate.report.evidence import Evidence, Use, read_evidence, recipe_lines
from pytest_quantgate.report.model import Attempt, Conclusion, OwnTestResult
from pytest_quantgate.run.conclusion import OwnTest
from pytest_quantgate.store.baselines import store_outcomes
from pytest_quantgate.suite.where import Where
from tests.report_builder import make_audit, make_outcomes, make_run, verdict


def test_report_of_a_run(tmp_path: Path) -> None:
    report = make_run(tmp_path).collect()

    (found,) = report.suites
    assert report.conclusion.status == "PASS"
    assert report.created == "2026-09-21T14:13:20Z"
    assert report.environment.commit == "c0ffee" * 6
    assert found.recipe is not None
    assert found.recipe.name == "fp8-attention"
    assert found.recipe.formats == ("E4M3",)
    assert found.fidelity is not None
    assert found.calibration is not None
    assert found.audit is not None
    assert len(found.audit.quantizers) == 2 * 2 * (6 * 3 + 4)


def test_versions_are_those_of_what_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    ((suite_name, evidence),) = run.evidence.items()
    measured = {"torch": "0.0.1+patched", "onnxruntime-gpu": "9.9"}
    evidence = replace(evidence, versions=measured)

    report = replace(run, evidence={suite_name: evidence}).collect()

    packages = dict(report.environment.packages)
    assert packages.items() >= measured.items()
    assert packages.keys() - measured.keys() <= {"pytest", "pytest-quantgate", "pytest-benchmark"}
    assert report.suites[0].versions == measured


def test_task_counts_flips_and_keeps_outcomes_as_a_baseline_does(tmp_path: Path) -> None:
    fp16, quantized = make_outcomes(samples=50, class_names=["a", "b"], lost=4, won=2)
    shuffled = [
        replace(o, ids=o.ids[::-1], correct=o.correct[::-1], answers=o.answers[::-1],
                labels=o.labels[::-1])
        for o in (fp16, quantized)
    ]  # fmt: skip
    (found,) = make_run(tmp_path, outcomes=(shuffled[0], shuffled[1])).collect().suites
    (task,) = found.tasks

    stored = store_outcomes(quantized)
    assert (task.right_to_wrong, task.wrong_to_right, task.answers_changed) == (4, 2, 6)
    assert task.ids_digest == stored.ids_digest
    assert unpack_scores(task.quantized.correct_bits, count=50) == stored.correct
    assert [flip.right_to_wrong for flip in task.flips] == [True] * 4 + [False] * 2
    assert sum(facts.right_to_wrong for facts in task.classes) == 4
    assert sum(facts.samples for facts in task.classes) == 50
    assert task.flips[0].fp16_answer == task.flips[0].label != task.flips[0].quantized_answer
    assert task.flips[0].image.startswith("data:image/")


def test_damaged_evidence_is_left_out_and_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for path in run.cache.path(kind="outcomes", key="c" * 64).glob("value.json"):
        path.write_text(path.read_text().replace("true", "false", 1))
    before = sorted(tmp_path.rglob("*"))

    (found,) = run.collect().suites

    assert found.tasks == ()
    assert found.audit is not None
    assert sorted(tmp_path.rglob("*")) == before


def test_gates_that_did_not_run_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, not_run=["roundtrip", "export"])
    report = run.collect(not_run={("made", "roundtrip"): "wip"})

    assert report.suites[0].not_run == ("roundtrip", "export")
    assert report.suites[0].not_run_because == {"roundtrip": "wip", "export": "not reached"}
    assert report.conclusion == Conclusion(
        status="NOT_MEASURED", sentence="Not decided: 2 passed, 2 gates did not run"
    )


def test_suite_that_is_not_measured_at_all_is_not_decided(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rows = tuple(
        replace(row, verdict=verdict(row.gate, Status.NOT_MEASURED, headline="NAME is not set"))
        for row in run.summary.results.rows
    )
    report = run.collect(rows=rows)

    assert report.conclusion == Conclusion(
        status="NOT_MEASURED", sentence="Not decided: none of 2 gates could be measured"
    )
    assert report.suites[0].conclusion.sentence == "not measured: NAME is not set"


def test_red_gate_makes_the_report_red(tmp_path: Path) -> None:
    report = make_run(tmp_path, extra=[verdict("export", Status.FAIL)]).collect()

    assert report.conclusion == Conclusion(status="FAIL", sentence="Do not ship: export")


def test_attempts_and_tests_of_the_project_are_in_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    red = verdict("test", Status.FAIL, headline="test: failed: no", code="test.failed")
    (first, *rest) = run.summary.results.rows
    tried = replace(first, attempts=(first.verdict, first.verdict))

    report = run.collect(
        rows=(tried, *rest), own_tests=(OwnTest(test="test_a.py::test_x", verdict=red),)
    )

    assert report.conclusion == Conclusion(
        status="FAIL", sentence="Do not ship: own test test_a.py::test_x"
    )
    assert report.own_tests == (
        OwnTestResult(
            test="test_a.py::test_x", status="FAIL", headline="test: failed: no", code="test.failed"
        ),
    )
    passed = Attempt(status="PASS", headline=first.verdict.headline)
    assert report.suites[0].gates[0].attempts == (passed, passed)
    assert report.suites[0].gates[1].attempts == ()


def test_evidence_of_two_workers_is_joined() -> None:
    def used(*kinds: str) -> Evidence:
        return Evidence(
            suite="x",
            file="f",
            used=tuple(Use(about=(kind,), key=kind) for kind in kinds),
        )

    joined = read_evidence(used("variant", "fidelity").to_json()).joined(used("fidelity", "parity"))

    assert [use.key for use in joined.used] == ["variant", "fidelity", "parity"]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("fp8", ("fp8",)),
        ("a: 1\nb: 2\n", ("a: 1", "b: 2")),
        (({"quantizer_name": "*", "enable": False},),
         ('{"enable": false, "quantizer_name": "*"}',)),
        ({"quant_cfg": {"default": {"enable": False}}, "algorithm": "max"},
         ('algorithm: "max"', 'default: {"enable": false}')),
        ({"quant_cfg": [{"a": 1}, {"b": 2}]}, ('{"a": 1}', '{"b": 2}')),
    ],
)  # fmt: skip
def test_recipe_as_lines(content: object, lines: tuple[str, ...]) -> None:
    assert recipe_lines(content) == lines


def test_audit_of_another_module_order_keeps_the_models_order(tmp_path: Path) -> None:
    audit = make_audit()
    (found,) = make_run(tmp_path, audit=audit).collect().suites

    assert found.audit is not None
    assert [q.name for q in found.audit.quantizers] == [q.name for q in audit.quantizers]


def test_report_explains_the_gate_that_was_judged(tmp_path: Path) -> None:
    """The gate travels with the evidence: no file is read for it."""
    gate = CoverageGate(
        where=Where(file="suites/x.quantgate.yaml", line=6, keys={"attention": 7}),
        attention=("softmax",),
        towers=("text",),
        waive=(
            Waiver(
                where=Where(file="suites/x.quantgate.yaml", line=8),
                modules=("vision_model*fc1",),
                reason="until the next calibration",
                until=date(2026, 12, 1),
            ),
        ),
    )
    run = make_run(tmp_path)
    ((suite_name, evidence),) = run.evidence.items()
    evidence = replace(evidence, coverage=gate, calibration_batch_size=24)
    travelled = read_evidence(json.loads(json.dumps(evidence.to_json())))

    (found,) = replace(run, evidence={suite_name: travelled}).collect().suites

    assert travelled == evidence
    assert found.calibration is not None
    assert found.calibration.batch_size == 24
    before = run.collect().suites[0]
    assert found.audit is not None
    assert found.audit != before.audit
