"""Two JSON reports: verdicts, recipe, quantizers, accuracy, files and engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.comparison.changes import Change, DiffError
from pytest_quantgate.comparison.report_files import compare_reports, read_report
from pytest_quantgate.errors import ReportError
from pytest_quantgate.evidence.outcomes import pack_scores
from pytest_quantgate.report.json_report import render_json
from pytest_quantgate.report.model import (
    AuditFacts,
    CalibrationFacts,
    ClassFacts,
    Conclusion,
    EngineFacts,
    Environment,
    GateResult,
    ModelFacts,
    OnnxFacts,
    OutcomeFacts,
    QuantizerFacts,
    RecipeFacts,
    Report,
    SuiteReport,
    TaskFacts,
)
from tests.unit.comparison.mirrored import mirror

RIGHT = (True,) * 90 + (False,) * 10
Q = "vision_model.encoder.layers.0.self_attn.q_bmm_quantizer"


def outcome(variant: str, correct: tuple[bool, ...]) -> OutcomeFacts:
    return OutcomeFacts(
        variant=variant,
        value=sum(correct) / len(correct),
        right=sum(correct),
        correct_bits=pack_scores(correct),
        answers_digest="a" * 64,
        nonfinite=0,
    )


PARTS = {"images": "1", "labels": "2", "templates": "3"}
CLASS = ClassFacts(
    name="a", samples=10, fp16_right=9, quantized_right=9, right_to_wrong=0, wrong_to_right=0
)
TASK = TaskFacts(
    task="scenes/classification",
    metric="acc1",
    stage="torch",
    gates=("accuracy[scenes/classification-acc1]",),
    samples=100,
    ids_digest="i" * 64,
    data_digest="d" * 64,
    fp16=outcome("FP16", RIGHT),
    quantized=outcome("fp8", RIGHT),
    right_to_wrong=0,
    wrong_to_right=0,
    answers_changed=3,
    classes=(CLASS, replace(CLASS, name="b")),
    flips=(),
    data_parts=PARTS,
)
CALIBRATION = CalibrationFacts(
    data="scenes/calibration",
    samples=512,
    batch_size=64,
    batches=8,
    held_out_samples=128,
    nonfinite=(),
    digest="c" * 64,
    tower_batches={"vision": 8, "text": 8},
    sources={"scenes/calibration": 512},
    contents_digest="1",
    order_digest="1",
)
QUANTIZER = QuantizerFacts(
    name=Q,
    module=Q.rpartition(".")[0],
    kind="attention",
    slot="q",
    tower="vision",
    block=0,
    state="on",
    reason="",
    enabled=True,
    format="E4M3",
    granularity="per-tensor",
    dynamic=False,
    amax_min=1.0,
    amax_max=1.0,
    amax_count=1,
    calls=1,
    clipped=0,
    seen=100,
)
ENGINE = EngineFacts(
    variant="quantized",
    tower="vision",
    target="sm89",
    batch=1,
    library="tensorrt_rtx",
    library_version="1.7.1",
    plan_digest="p" * 64,
    onnx_digest="f" * 64,
    plan_bytes=1000,
    weights_bytes=800,
    activation_bytes=200,
    gemm_nodes=25,
    fp8_gemm_nodes=25,
    attentions=4,
    attentions_fused_fp8=4,
    precisions={"FP8": 25},
    layers={"layers.0.fc1": "FP8"},
)
ONNX = OnnxFacts(
    variant="quantized",
    tower="vision",
    precision="float16",
    opset=20,
    file_bytes=5000,
    digest="f" * 64,
    pairs=60,
    lost=(),
    undeclared=0,
    weights_bytes={"FLOAT8E4M3FN": 4000},
)
GATE = GateResult(
    name="coverage",
    kind="coverage",
    key="",
    status="PASS",
    headline="coverage: all on",
    brief="all on",
    evidence=(),
    cause="",
    next_step="",
    figures={},
)
SUITE = SuiteReport(
    name="clip",
    file="suites/clip.quantgate.yaml",
    conclusion=Conclusion(status="PASS", sentence="may ship: 1 gate passed"),
    gates=(GATE,),
    not_run=(),
    notes=(),
    device="cpu",
    versions={"torch": "2.15.0"},
    model=ModelFacts(
        source="reference",
        description="the reference model",
        revision="",
        dtype="float16",
        attn_implementation="sdpa",
        digest="m" * 64,
    ),
    recipe=RecipeFacts(
        name="fp8", lines=("fp8",), exclude=("*patch*",), formats=("E4M3",), digest="r" * 64
    ),
    calibration=CALIBRATION,
    audit=AuditFacts(towers=("vision",), quantizers=(QUANTIZER,), excludes={}, stages=(), notes=()),
    tasks=(TASK,),
    onnx=(ONNX,),
    engines=(ENGINE,),
)
REPORT = Report(
    product_version="0.1.0",
    created="2026-11-21T10:00:00Z",
    conclusion=SUITE.conclusion,
    suites=(SUITE,),
    environment=Environment(
        python="3.11.7", system="Linux", processor="x86_64", cores=2, packages={}, commit="abc"
    ),
)
LABELS = ("old", "new")

Plant = tuple[Callable[[SuiteReport], SuiteReport], str]


def audit(**changes: Any) -> Callable[[SuiteReport], SuiteReport]:
    def plant(suite: SuiteReport) -> SuiteReport:
        assert suite.audit is not None
        return replace(
            suite, audit=replace(suite.audit, quantizers=(replace(QUANTIZER, **changes),))
        )

    return plant


def part(field: str, facts: Any) -> Callable[[SuiteReport], SuiteReport]:
    return lambda suite: replace(suite, **{field: facts})


WORSE = (False,) * 9 + (True,) * 81 + (False,) * 10
PLANTS: list[Plant] = [
    (audit(enabled=False), f"1 quantizer switched off: {Q}"),
    (audit(calls=0), f"1 quantizer still on that never run any more: {Q}"),
    (audit(amax_min=4.0, amax_max=4.0), f"most {Q}: amax 1 -> 4 (x4)"),
    (audit(amax_min=None, amax_max=None), "1 quantizer on without amax now"),
    (audit(format="INT8"), f"format E4M3 -> INT8 in 1 quantizer: {Q}"),
    (audit(lost_at="onnx"), f"1 quantizer lost nowhere before, lost at stage onnx now: {Q}"),
    (
        part("tasks", (replace(TASK, quantized=outcome("fp8", WORSE)),)),
        "clip: scenes/classification acc1: quantized 90.00 % -> 81.00 %, change -9.00",
    ),
    (
        part("tasks", (replace(TASK, answers_changed=9),)),
        "clip: scenes/classification acc1: answers that differ from FP16's 3 -> 9 of 100",
    ),
    (
        part("onnx", (replace(ONNX, lost=(Q,)),)),
        f"clip: ONNX quantized vision: 1 quantizer lost in the export now: {Q}",
    ),
    (part("onnx", (replace(ONNX, pairs=61),)), "clip: ONNX quantized vision: Q/DQ pairs: 60 -> 61"),
    (
        part("engines", (replace(ENGINE, fp8_gemm_nodes=24),)),
        "clip: engine sm89 quantized vision batch 1: linear in FP8: 25 -> 24",
    ),
    (
        part("engines", (replace(ENGINE, layers={"layers.0.fc1": "Half"}),)),
        "clip: engine sm89 quantized vision batch 1: 1 layer FP8 -> Half: layers.0.fc1",
    ),
    (
        part("engines", (replace(ENGINE, plan_bytes=1500),)),
        "clip: engine sm89 quantized vision batch 1: plan bytes: 1000 -> 1500 (1.500x)",
    ),
    (
        part(
            "recipe", RecipeFacts(name="int8", lines=("int8",), exclude=(), formats=(), digest="")
        ),
        "clip: recipe: fp8 -> int8",
    ),
    (
        part(
            "recipe",
            RecipeFacts(name="fp8", lines=("fp8",), exclude=(), formats=(), digest=""),
        ),
        "recipe entry removed: exclude *patch*",
    ),
    (
        part(
            "recipe",
            RecipeFacts(
                name="inline quant_cfg",
                lines=(
                    '{"enable": false, "quantizer_name": "*"}',
                    '{"cfg": {"axis": null, "num_bits": [5, 2]}, "quantizer_name": "*input_q*"}',
                ),
                exclude=("*patch*",),
                formats=(),
                digest="",
            ),
        ),
        "recipe entry added: *input_q*: E5M2 per-tensor",
    ),
    (
        part("tasks", (replace(TASK, quantized=replace(TASK.quantized, nonfinite=2)),)),
        "clip: scenes/classification acc1: quantized: samples with NaN or Inf: 0 -> 2",
    ),
    (
        part("tasks", (replace(TASK, quantized=replace(TASK.quantized, value=0.95)),)),
        "quantized: the value reported: what its samples say -> 95.00 %, but 90 of 100 samples are "
        "right, 90.00 %",
    ),
    (
        part("tasks", (replace(TASK, data_digest="e" * 64, data_parts={**PARTS, "labels": "9"}),)),
        "clip: scenes/classification acc1: other labels; images, templates are the same",
    ),
    (
        part(
            "tasks", (replace(TASK, classes=(CLASS, replace(CLASS, name="b", quantized_right=1))),)
        ),
        "1 class lost at least half of the samples: 'b' 9 -> 1 right of 10",
    ),
    (
        part("calibration", replace(CALIBRATION, tower_batches={"vision": 8, "text": 0})),
        "clip: calibration batches through the text tower: 8 -> 0",
    ),
    (part("calibration", replace(CALIBRATION, batches=0)), "clip: calibration batches: 8 -> 0"),
    (
        part(
            "calibration", replace(CALIBRATION, contents_digest="2", sources={"scenes/test": 512})
        ),
        "clip: calibration images: others than before: 512 of scenes/calibration -> "
        "512 of scenes/test",
    ),
    (
        part("calibration", replace(CALIBRATION, order_digest="2")),
        "clip: calibration images: the same ones in another order",
    ),
    (
        part("calibration", replace(CALIBRATION, held_out_overlap=128)),
        "clip: calibration images that are also held-out ones: 0 -> 128",
    ),
    (
        part("engines", (replace(ENGINE, onnx_digest="x" * 64),)),
        "batch 1: built from: the exported ONNX file -> another ONNX file than the one exported",
    ),
    (part("onnx", (replace(ONNX, digest="x" * 64),)), "ONNX quantized vision: file: f"),
    (part("versions", {"torch": "2.16.0"}), "clip: torch: 2.15.0 -> 2.16.0"),
    (part("device", "cuda"), "clip: device: cpu -> cuda"),
    (
        part("gates", (replace(GATE, status="FAIL", headline="coverage: q is off"),)),
        "clip: coverage: PASS -> FAIL",
    ),
    (part("gates", ()), "clip: gate coverage removed: PASS all on"),
]


def compare(plant: Callable[[SuiteReport], SuiteReport]) -> tuple[Change, ...]:
    after = replace(REPORT, suites=(plant(SUITE),))
    return compare_reports(REPORT, after, labels=LABELS).changes


def test_report_is_the_same_as_itself_at_another_time() -> None:
    later = replace(REPORT, created="2026-11-22T10:00:00Z")

    found = compare_reports(REPORT, later, labels=LABELS)

    assert found.changes == ()
    assert found.same == ("clip: may ship: 1 gate passed",)


def named(name: str, **changes: Any) -> SuiteReport:
    return replace(SUITE, name=name, file=f"suites/{name}.quantgate.yaml", **changes)


def test_suites_of_other_names_are_compared_where_they_are_matched() -> None:
    two = replace(REPORT, suites=(named("fp8"), named("int8", device="cuda")))

    plain = compare_reports(REPORT, two, labels=LABELS).changes
    matched = compare_reports(two, two, labels=LABELS, match=[("fp8", "int8")])

    assert {change.text.partition(":")[0] for change in plain} == {"suite removed", "suite added"}
    assert [change.text for change in matched.changes] == ["int8: device: cpu -> cuda"]
    assert f"fp8 of {LABELS[0]} is compared with int8 of {LABELS[1]}" in matched.notes


@pytest.mark.parametrize("name", ["fp8", "suites/fp8.quantgate.yaml"])
def test_a_suite_is_matched_by_name_or_file(name: str) -> None:
    two = replace(REPORT, suites=(named("fp8"), named("int8")))

    assert compare_reports(two, two, labels=LABELS, match=[(name, "int8")]).changes == ()


def test_a_match_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(DiffError, match=r"--match: .* has no suite 'fp4' \(it has: suites/clip"):
        compare_reports(REPORT, REPORT, labels=LABELS, match=[("clip", "fp4")])


@pytest.mark.parametrize(("plant", "words"), PLANTS, ids=[words for _, words in PLANTS])
def test_planted_change_is_named_and_mirrored(
    plant: Callable[[SuiteReport], SuiteReport], words: str
) -> None:
    after = replace(REPORT, suites=(plant(SUITE),))
    there = compare_reports(REPORT, after, labels=LABELS).changes
    back = compare_reports(after, REPORT, labels=LABELS).changes

    assert any(words in change.text for change in there), [change.text for change in there]
    assert {(c.area, c.kind, c.subjects) for c in there} == {
        (c.area, mirror(c.kind), c.subjects) for c in back
    }


def test_gate_that_turned_red_brings_its_headline() -> None:
    (change,) = compare(part("gates", (replace(GATE, status="FAIL", headline="q is off"),)))

    assert change.lines == ("q is off",)


def test_gates_that_say_the_same_stand_together_with_their_cause() -> None:
    red = replace(
        GATE, status="FAIL", headline="q is off", evidence=("a", "b", "c"), cause="disabled"
    )
    gates = tuple(replace(red, name=name) for name in ("coverage", "export"))
    before = replace(REPORT, suites=(replace(SUITE, gates=(GATE, replace(GATE, name="export"))),))

    (change,) = compare_reports(
        before, replace(REPORT, suites=(replace(SUITE, gates=gates),)), labels=LABELS
    ).changes

    assert change.text == "clip: coverage, export: PASS -> FAIL"
    assert change.subjects == ("clip coverage", "clip export")
    assert change.lines == ("q is off", "a", "b", "likely cause: disabled")


def test_gate_that_stays_red_for_another_reason_is_named() -> None:
    red, other = (replace(GATE, status="FAIL", headline=text) for text in ("q is off", "k is off"))
    before, after = (
        replace(REPORT, suites=(replace(SUITE, gates=(gate,)),)) for gate in (red, other)
    )

    (change,) = compare_reports(before, after, labels=LABELS).changes

    assert change.text == "clip: coverage: still FAIL, for another reason"
    assert change.lines == ("k is off",)
    assert compare_reports(before, before, labels=LABELS).changes == ()


def test_gate_that_is_new_and_red_says_why() -> None:
    added = replace(GATE, name="engine[sm86]", status="FAIL", headline="sm86 has no FP8")

    (change,) = compare(part("gates", (GATE, added)))

    assert change.lines == ("sm86 has no FP8",)


def test_quantizer_that_the_model_lacks_is_removed_and_not_switched_off() -> None:
    changes = compare(audit(enabled=False, format="", state="missing"))

    assert [change.kind for change in changes] == ["removed"]


def test_recipe_that_is_written_out_is_the_same() -> None:
    lines = (
        '{"enable": false, "quantizer_name": "*"}',
        *(
            f'{{"cfg": {{"axis": null, "num_bits": [4, 3]}}, "parent_class": "{parent}", '
            f'"quantizer_name": "*{slot}_quantizer"}}'
            for parent in ("nn.Linear", "nn.Conv2d")
            for slot in ("weight", "input")
        ),
    )
    inline = RecipeFacts(
        name="inline quant_cfg", lines=lines, exclude=("*patch*",), formats=(), digest=""
    )

    (change,) = compare(part("recipe", inline))

    assert change.text == "clip: recipe: fp8 -> inline quant_cfg"


def test_exclude_that_matches_nothing_is_said_so() -> None:
    assert SUITE.recipe is not None
    assert SUITE.audit is not None

    def with_exclude(pattern: str, matched: int) -> Report:
        assert SUITE.recipe is not None
        assert SUITE.audit is not None
        suite = replace(
            SUITE,
            recipe=replace(SUITE.recipe, exclude=(pattern,)),
            audit=replace(SUITE.audit, excludes={pattern: matched}),
        )
        return replace(REPORT, suites=(suite,))

    found = compare_reports(with_exclude("*a*", 3), with_exclude("*b*", 0), labels=LABELS)

    assert [change.text for change in found.changes] == [
        "recipe entry removed: exclude *a* (3 quantizers)",
        "recipe entry added: exclude *b* (it matches none)",
    ]


def test_model_that_was_not_built_is_a_note_and_no_change() -> None:
    after = replace(SUITE, model=None, calibration=None, versions={}, device="")

    found = compare_reports(REPORT, replace(REPORT, suites=(after,)), labels=LABELS)

    assert found.changes == ()
    assert "clip: the model not compared: not measured after" in found.notes


def test_report_of_an_older_release_is_read_without_the_newer_fields(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    data = json.loads(render_json(REPORT))
    (suite,) = data["suites"]
    for name in ("sources", "contents_digest", "tower_batches"):
        del suite["calibration"][name]
    del suite["tasks"][0]["data_parts"]
    path.write_text(json.dumps(data), encoding="utf-8")

    found = compare_reports(read_report(path), REPORT, labels=LABELS)

    assert found.changes == ()


def test_what_was_not_measured_is_a_note() -> None:
    after = replace(REPORT, suites=(replace(SUITE, engines=(), audit=None),))

    found = compare_reports(REPORT, after, labels=LABELS)

    assert found.changes == ()
    assert found.notes == (
        "clip: the quantizers not compared: not measured after",
        "clip: engines not compared: not measured after",
    )


def test_suites_that_came_or_went_are_named() -> None:
    two = replace(REPORT, suites=(SUITE, replace(SUITE, name="other", file="suites/o.yaml")))

    (change,) = compare_reports(REPORT, two, labels=LABELS).changes

    assert change.text == "suite added: other: may ship: 1 gate passed"


def test_suites_of_one_name_are_told_apart_by_their_files() -> None:
    """Their labels differ from run to run, by which others ran."""
    elsewhere = replace(SUITE, name="b/clip", file="b/clip.quantgate.yaml")
    here = replace(SUITE, name="a/clip", file="a/clip.quantgate.yaml")
    worse = replace(elsewhere, conclusion=replace(SUITE.conclusion, sentence="do not ship"))
    before = replace(REPORT, suites=(here, elsewhere))
    after = replace(REPORT, suites=(replace(here, name="clip"), worse))

    assert compare_reports(before, before, labels=LABELS).changes == ()
    kinds = {change.kind for change in compare_reports(before, after, labels=LABELS).changes}
    assert not {"removed", "added"} & kinds


def test_written_report_is_read(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(render_json(REPORT), encoding="utf-8")

    assert read_report(path) == REPORT


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('"version": 4', '"version": 99', ReportError),
        ('"samples": 100', '"samples": 10', DiffError),
        ('"clip"', "7", ReportError),
    ],
)
def test_other_reports_are_refused(
    tmp_path: Path, old: str, new: str, error: type[Exception]
) -> None:
    path = tmp_path / "report.json"
    text = render_json(REPORT)
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")

    with pytest.raises(error, match="report"):
        read_report(path)
