"""The export gate's part on files that were handed over: whose they are, and what was proved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_quantgate.evidence.onnx import GivenGraph, OnnxAudit, OnnxOperation
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.given_graph import (
    describe_given,
    judge_fp16,
    judge_given,
    judge_graphs,
    name_tool,
)
from pytest_quantgate.inspection.findings import Against, Finding, Inspection, LayerError, Row
from tests.unit.gates.gate_builders import FILE, WHERE, make_audit
from tests.unit.gates.test_gate_export import make_onnx

PLAIN = replace(make_onnx(make_audit(), "vision"), pairs=(), declared=())


def given(**changes: Any) -> OnnxAudit:
    values: dict[str, Any] = {
        "name": "v.onnx",
        "digest": "a" * 64,
        "tool": "ModelOpt",
        "tensors": 10,
        "same": 10,
        **changes,
    }
    return replace(PLAIN, given=GivenGraph(**values))


def test_nothing_is_said_of_what_was_exported_here() -> None:
    assert name_tool(PLAIN) == ""
    assert describe_given(PLAIN) == []
    assert judge_given(PLAIN, where=WHERE, has_parity=False) == []
    assert judge_fp16(PLAIN, where=WHERE) == []


def test_a_file_of_this_model_passes_and_says_what_was_proved() -> None:
    found = given(same=9, unproven=("proj.weight",))

    assert name_tool(found) == "ModelOpt"
    assert name_tool(given(tool="pytest-quantgate")) == ""
    assert judge_given(found, where=WHERE, has_parity=True) == []
    assert judge_fp16(found, where=WHERE) == []
    first, second = describe_given(found)
    assert first.startswith("vision: 9 of 10 tensors of v.onnx (ModelOpt) are those of the model")
    assert second == "vision: not found in the graph, so left to parity: proj.weight"
    assert len(describe_given(given())) == 1


@pytest.mark.parametrize(
    ("changes", "code", "cause"),
    [
        ({"differing": ("a: others",)}, "weights-differ", "was changed after the export"),
        ({"differing": ("a: others",) * 6}, "weights-differ", "from another model"),
        ({"unmapped": ("/x/MatMul",)}, "not-mapped", "named otherwise"),
        ({"unproven": ("a",)}, "weights-unproven", "folded them"),
    ],
)
def test_a_file_of_another_model_fails(changes: dict[str, Any], code: str, cause: str) -> None:
    (verdict,) = judge_given(given(**changes), where=WHERE, has_parity=False)

    assert verdict.status is Status.FAIL
    assert verdict.code == f"export.{code}"
    assert cause in verdict.cause
    assert f"({FILE}:10)" in verdict.headline


def test_an_fp16_file_holds_no_quantized_operand_and_the_models_tensors() -> None:
    product = OnnxOperation(
        node="/fc1/MatMul",
        module="fc1",
        operator="MatMul",
        operands_quantized=(True, False),
        quantizers=(None, None),
        weights_count=4,
        weight_type="INT8",
    )

    quantized = judge_fp16(replace(given(), operations=(product,)), where=WHERE)
    assert [verdict.code for verdict in quantized] == ["export.fp16-quantized"]
    with_pairs = replace(given(), pairs=make_onnx(make_audit(), "vision").pairs)
    assert [v.code for v in judge_fp16(with_pairs, where=WHERE)] == ["export.fp16-quantized"]
    other = judge_fp16(given(differing=("a: others",)), where=WHERE)
    assert [verdict.code for verdict in other] == ["export.fp16-differs"]


# -- files that are all that there is ------------------------------------------------------------

ROW = Row(tower="vision", what="linear weights", quantized=3, total=4, format="E4M3", scales="one")
BARE = replace(ROW, what="conv weights", quantized=0, stored="float16")
FINDING = Finding(code="check.tower-off", headline="1 tower is off", next_step="look", cause="c")


GOOD = Verdict(gate="export", status=Status.PASS, headline="export: opset 20")


def judge_files(*findings: Finding, ignored: tuple[str, ...] = (), **more: Any) -> Verdict:
    inspection = Inspection(
        path="v.onnx",
        what="onnx",
        tool="ModelOpt",
        headline="v.onnx: 3 of 4 weights in E4M3",
        rows=(ROW, BARE),
        findings=findings,
        notes=("a note",),
        **more,
    )
    return judge_graphs({"vision": inspection}, rest=(GOOD,), ignored=ignored, where=WHERE)


def test_sound_files_pass_and_say_what_they_hold() -> None:
    layer = LayerError(layer="fc1", format="E4M3", sqnr_db=21.5, relative_error=0.1)
    against = Against(
        base="model/fp16.onnx",
        bytes=1,
        base_bytes=2,
        same=2,
        compared=2,
        layers=(layer,),
        found=3,
        sought=4,
    )

    verdict = judge_files(against=against)

    assert verdict.passed
    assert verdict.headline == "export: vision: v.onnx: 3 of 4 weights in E4M3; opset 20"
    assert verdict.brief == "3 of 4 weights in E4M3"
    assert verdict.evidence == (
        "vision: linear weights: 3 of 4 E4M3 one",
        "vision: conv weights: 0 of 4 not quantized, stored in float16",
        "vision: 3 of 4 layers are those of fp16.onnx, the noisiest fc1 (SQNR 21.5 dB)",
        "vision: 2 of 2 unquantized tensors are those of fp16.onnx",
        "vision: a note",
    )
    bare = judge_files(against=replace(against, layers=(), compared=0))
    assert "vision: 3 of 4 layers are those of fp16.onnx" in bare.evidence


def test_a_finding_is_red_under_its_own_code_until_it_is_ignored() -> None:
    verdict = judge_files(FINDING)

    assert (verdict.status, verdict.code) == (Status.FAIL, "check.tower-off")
    assert "export: {ignore: [check.tower-off]}" in verdict.next_step
    ignored = judge_files(FINDING, ignored=("check.tower-off",))
    assert ignored.passed
    assert "vision: 1 tower is off [check.tower-off]" in ignored.evidence


def test_what_tensorrt_alone_minds_is_said_and_not_red() -> None:
    verdict = judge_files(replace(FINDING, code="check.not-sorted"))

    assert verdict.passed
    assert "vision: 1 tower is off [check.not-sorted]" in verdict.evidence


def test_an_ignored_code_that_is_not_found_is_red() -> None:
    verdict = judge_files(ignored=("check.tower-off",))

    assert verdict.code == "export.ignores-nothing"
    assert judge_files(ignored=("check.float-behind-qdq",)).passed
