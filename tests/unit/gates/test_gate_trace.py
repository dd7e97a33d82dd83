"""The trace gate: for each quantizer the first stage that it did not reach, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.audit import Audit, Quantizer
from pytest_quantgate.evidence.onnx import OnnxAudit, OnnxOperation, QdqPair
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.scope import Waiver
from pytest_quantgate.gates.trace import (
    LOST,
    MENDS,
    STAGES,
    TraceGate,
    TraceRow,
    follow_quantizers,
    judge_trace,
    render_table,
)
from pytest_quantgate.runtimes.engine_layers import EngineLayer, EngineReport, NodePrecision
from pytest_quantgate.suite.where import Where
from tests.unit.gates.gate_builders import (
    ATTENTION_SLOTS,
    BLOCKS,
    FILE,
    SAME_EXAMPLES,
    all_text,
    change_quantizers,
    coverage_gate,
    exclude,
    make_audit,
    switch_off,
)

WHERE = Where(file=FILE, line=10, keys={"allow": 11})
TOWERS = ("vision", "text")
FC1 = "vision_model.layers.1.mlp.fc1.weight_quantizer"
SCORES = "vision_model.layers.0.self_attn.q_bmm_quantizer"
OUTPUT = "text_model.layers.1.self_attn.bmm2_output_quantizer"


def path(module: str) -> str:
    return "/" + module.replace(".", "/")


def make_pair(quantizer: Quantizer) -> QdqPair:
    return QdqPair(
        node=f"{path(quantizer.name)}/DQ",
        quantizer=quantizer.name,
        slot=quantizer.slot,
        format=quantizer.format,
        scale_type="float16",
        scale_min=1.0,
        scale_max=1.0,
        scale_count=1,
        scale_digest="e" * 64,
        amax_min=1.0,
        amax_max=1.0,
        symmetric=True,
        source="activation",
        complete=True,
        producer=None,
        consumers=(quantizer.module,),
        feeds_owner=True,
    )


def make_reader(module: str, operator: str, *operands: str) -> OnnxOperation:
    return OnnxOperation(
        node=f"{path(module)}/{operator}",
        module=module,
        operator="MatMul",
        operands_quantized=(True, True),
        quantizers=tuple(f"{module}.{operand}" for operand in operands),
        weights_count=0,
        weight_type=None,
    )


def make_onnx(audit: Audit, tower: str) -> OnnxAudit:
    """Return a faithful export: all pairs, and the operations that read them."""
    there = [q for q in audit.quantizers if q.enabled and q.tower == tower and q.calls]
    operations = []
    for module in dict.fromkeys(q.module for q in there):
        if module.endswith("self_attn"):
            operations.append(make_reader(module, "MatMul", "q_bmm_quantizer", "k_bmm_quantizer"))
            operations.append(
                make_reader(module, "MatMul_1", "softmax_quantizer", "v_bmm_quantizer")
            )
        else:
            operations.append(make_reader(module, "MatMul", "input_quantizer", "weight_quantizer"))
    return OnnxAudit(
        tower=tower,
        precision="float16",
        opset=20,
        domains=("",),
        file_bytes=1,
        digest="f" * 64,
        dynamic_batch=True,
        weights_bytes=(),
        declared=tuple(q.name for q in there),
        extra=(),
        pairs=tuple(make_pair(q) for q in there),
        operations=tuple(operations),
        problems=(),
    )


def make_layer(name: str, nodes: Sequence[str], **changes: Any) -> EngineLayer:
    values: dict[str, Any] = {
        "name": name,
        "type": "gemm",
        "tactic": "",
        "input_dtypes": ("FP8", "FP8"),
        "input_shapes": (),
        "constant_dtypes": (),
        "output_dtypes": ("FP8",),
        "output_shapes": (),
        "onnx_nodes": tuple(nodes),
        "kind": "matmul",
        "precision": "fp8",
        **changes,
    }
    return EngineLayer(**values)


def make_engine(onnx: OnnxAudit, **changes: Any) -> EngineReport:
    """Return an engine that does all of it in FP8: linear nodes, and a kernel for each matmul."""
    nodes, layers = [], []
    for operation in onnx.operations:
        if operation.module.endswith("self_attn"):
            covered = [operation.node]
            if operation.node.endswith("_1"):
                covered.append(f"{path(operation.module)}/bmm2_output_quantizer/Q")
            layers.append(make_layer(f"kernel of {operation.node}", covered))
        else:
            nodes.append(
                NodePrecision(
                    node=operation.node, op="linear", block=None, precision="fp8", layer="gemm"
                )
            )
    values: dict[str, Any] = {
        "target": "sm89",
        "library": "tensorrt_rtx",
        "library_version": "1.7",
        "onnx_sha256": "f" * 64,
        "plan_sha256": "b" * 64,
        "plan_bytes": 1,
        "weights_bytes": 1,
        "activation_bytes": 1,
        "scratch_bytes": 0,
        "build_s": 1.0,
        "layers": tuple(layers),
        "gemms": len(nodes),
        "fp8_gemms": len(nodes),
        "gemm_nodes": len(nodes),
        "fp8_gemm_nodes": len(nodes),
        "fp8_convs": 0,
        "nodes": tuple(nodes),
        "attentions": (),
        "qdq_layers": (),
        **changes,
    }
    return EngineReport(**values)


def follow(
    audit: Audit,
    *,
    approved: Audit | None = None,
    onnx: Mapping[str, OnnxAudit] | None = None,
    engines: Mapping[str, EngineReport] | None = None,
    **more: Any,
) -> tuple[TraceRow, ...]:
    onnx = onnx or {tower: make_onnx(approved or audit, tower) for tower in TOWERS}
    engines = engines or {tower: make_engine(found) for tower, found in onnx.items()}
    return follow_quantizers(audit, onnx=onnx, engines=engines, **{"towers": TOWERS, **more})


def judge(rows: Sequence[TraceRow], **changes: Any) -> Verdict:
    gate = TraceGate(**{"where": WHERE, "target": "sm89", **changes})
    return judge_trace(rows, engine="tensorrt_rtx 1.7 for sm89", gate=gate)


def lost(rows: Sequence[TraceRow]) -> dict[str, str | None]:
    return {row.name: row.lost_at for row in rows if row.lost_at is not None}


def change_node(engine: EngineReport, part: str, **changes: Any) -> EngineReport:
    hit = [node for node in engine.nodes if part in node.node]
    assert hit, part
    nodes = [replace(node, **changes) if node in hit else node for node in engine.nodes]
    return replace(engine, nodes=tuple(nodes))


def change_layer(engine: EngineReport, part: str, **changes: Any) -> EngineReport:
    hit = [layer for layer in engine.layers if any(part in node for node in layer.onnx_nodes)]
    assert hit, part
    layers = [replace(layer, **changes) if layer in hit else layer for layer in engine.layers]
    return replace(engine, layers=tuple(layers))


def test_everything_reaches_the_engine() -> None:
    rows = follow(make_audit())
    verdict = judge(rows)

    total = 2 * BLOCKS * (len(ATTENTION_SLOTS) + 2)
    assert len(rows) == total
    assert verdict.status is Status.PASS
    assert verdict.headline == (
        f"trace: {total} of {total} quantizers followed from the recipe into tensorrt_rtx 1.7 for "
        "sm89"
    )
    assert verdict.brief == f"{total} of {total} quantizers reach the engine"
    assert (verdict.gate, verdict.cause, verdict.next_step) == ("trace", "", "")
    assert verdict.evidence[0].split() == ["quantizers", "declared", *STAGES]
    assert verdict.evidence[-1].split() == ["all", *[str(total)] * 5]
    assert verdict.figures == {
        "quantizers_declared": total,
        **{f"quantizers_lost_at_{stage}": 0 for stage in STAGES},
        "quantizers_allowed": 0,
    }


def test_without_a_target_the_trace_ends_at_the_graph() -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    rows = follow_quantizers(audit, onnx=onnx, engines=None, towers=TOWERS)  # type: ignore[arg-type]
    verdict = judge_trace(rows, engine="", gate=TraceGate(where=WHERE))

    assert verdict.passed
    assert "into the ONNX graph" in verdict.headline
    assert verdict.brief == "24 of 24 quantizers reach ONNX"
    assert verdict.evidence[0].split() == ["quantizers", "declared", "model", "forward", "onnx"]


def test_a_quantizer_that_is_off_is_lost_in_the_model_and_names_its_pattern() -> None:
    rows = follow(switch_off(make_audit(), FC1, by="*fc1*"))
    verdict = judge(rows)

    assert lost(rows) == {FC1: "model"}
    assert verdict.status is Status.FAIL
    assert f"1 of 24 quantizers are switched off in the model: {FC1}" in verdict.headline
    assert "pattern '*fc1*' switched it off" in verdict.headline
    assert f"({FILE}:10)" in verdict.headline


def test_a_quantizer_that_never_runs_is_lost_in_the_forward() -> None:
    rows = follow(change_quantizers(make_audit(), SCORES, tower_calls={}))

    assert lost(rows) == {SCORES: "forward"}
    assert "no forward calls it" in all_text(judge(rows))


def test_attention_that_was_never_replaced_is_lost_in_the_model() -> None:
    audit = make_audit()
    kept = tuple(q for q in audit.quantizers if not (q.tower == "vision" and q.slot == "k"))
    rows = follow(replace(audit, quantizers=kept))
    names = {f"vision_model.layers.{block}.self_attn (k)" for block in range(BLOCKS)}

    assert lost(rows) == dict.fromkeys(names, "model")
    assert "the attention class was never replaced" in all_text(judge(rows))


def test_a_row_says_where_a_quantizer_belongs_and_why_it_was_lost() -> None:
    kept = tuple(q for q in make_audit().quantizers if "layers.1.self_attn.bmm2" not in q.name)
    rows = {row.name: row for row in follow(replace(make_audit(), quantizers=kept))}

    assert rows[FC1] == TraceRow(name=FC1, slot="weight", tower="vision")
    missing = "text_model.layers.1.self_attn (attention output)"
    assert rows[missing] == TraceRow(
        name=missing,
        slot="attention_output",
        tower="text",
        lost_at="model",
        reason="no such quantizer: the attention class was never replaced",
    )


def test_what_was_lost_at_later_stages_is_evidence() -> None:
    audit = change_quantizers(switch_off(make_audit(), FC1), SCORES, tower_calls={})

    verdict = judge(follow(audit))

    assert "are switched off in the model" in verdict.headline
    assert any(
        line.startswith("FAIL: trace: 1 of 24 quantizers never run in a forward: ")
        for line in verdict.evidence
    )


def test_an_excluded_quantizer_is_not_declared() -> None:
    rows = follow(exclude(make_audit(), "*layers.1.mlp.fc1*"))

    assert not lost(rows)
    assert not any("layers.1.mlp.fc1" in row.name for row in rows)


def test_a_waived_quantizer_is_not_declared() -> None:
    waiver = Waiver(
        where=WHERE, modules=("vision_model.layers.1.mlp",), reason="", until=date(2100, 1, 1)
    )
    audit = switch_off(make_audit(), "vision_model.layers.1.mlp.*", by="*")
    rows = follow(audit, coverage=coverage_gate(waive=(waiver,)))

    assert not lost(rows)
    assert judge(rows).passed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quantizer": None}, "no Q/DQ pair in the vision graph"),
        ({"complete": False}, "half a Q/DQ pair"),
        ({"feeds_owner": False}, "its Q/DQ pair stands at another place"),
    ],
)
def test_a_pair_that_is_not_there_is_lost_in_onnx(change: dict[str, Any], reason: str) -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    pairs = tuple(
        replace(pair, **change) if pair.quantizer == FC1 else pair for pair in onnx["vision"].pairs
    )
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    rows = follow(
        audit,
        onnx={**onnx, "vision": replace(onnx["vision"], pairs=pairs)},
        engines=engines,
    )

    assert lost(rows) == {FC1: "onnx"}
    assert reason in judge(rows).headline


def test_a_linear_layer_in_half_loses_its_quantizers_in_the_engine() -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    engines["vision"] = change_node(
        engines["vision"], "layers/1/mlp", precision="half", layer="gemm_half"
    )
    rows = follow(audit, onnx=onnx, engines=engines)
    verdict = judge(rows)

    assert set(lost(rows).values()) == {"engine"}
    assert set(lost(rows)) == {FC1, FC1.replace("weight", "input")}
    assert "/vision_model/layers/1/mlp/fc1/MatMul runs in half, in kernel gemm_half" in all_text(
        verdict
    )
    assert verdict.figures["quantizers_lost_at_engine"] == 2


def test_an_attention_matmul_in_half_loses_its_operands() -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    node = "/vision_model/layers/0/self_attn/MatMul"
    layers = tuple(
        replace(layer, precision="half") if layer.onnx_nodes == (node,) else layer
        for layer in engines["vision"].layers
    )
    engines["vision"] = replace(engines["vision"], layers=layers)
    rows = follow(audit, onnx=onnx, engines=engines)

    assert set(lost(rows)) == {SCORES, SCORES.replace("q_bmm", "k_bmm")}


def test_a_node_that_no_kernel_computes_is_lost() -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    engines["text"] = replace(engines["text"], layers=())
    rows = follow(audit, onnx=onnx, engines=engines)

    assert len(lost(rows)) == BLOCKS * len(ATTENTION_SLOTS)
    assert "no kernel computes" in all_text(judge(rows))


def test_an_output_that_is_written_wide_is_lost_in_the_engine() -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    engines["text"] = change_layer(
        engines["text"], "text_model/layers/1/self_attn/bmm2", output_dtypes=("Half",)
    )
    rows = follow(audit, onnx=onnx, engines=engines)

    assert lost(rows) == {OUTPUT: "engine"}
    assert judge(rows).headline.startswith(
        f"trace: 1 of 24 quantizers do not reach the engine: {OUTPUT}: kernel kernel of "
        "/text_model/layers/1/self_attn/MatMul_1 writes Half ("
    )


def test_an_output_inside_the_attention_kernel_is_there() -> None:
    """The fused kernel quantizes its own result; what it writes is the library's matter."""
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    engines["text"] = change_layer(
        engines["text"], "bmm2_output", output_dtypes=("Half",), kind="attention"
    )

    assert not lost(follow(audit, onnx=onnx, engines=engines))


def test_int8_wants_int8_kernels() -> None:
    audit = change_quantizers(make_audit(), "*", format="INT8")
    rows = follow(audit)
    assert set(lost(rows).values()) == {"engine"}

    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {}
    for tower, found in onnx.items():
        engine = change_node(make_engine(found), "", precision="int8")
        engines[tower] = change_layer(engine, "", precision="int8", output_dtypes=("Int8",))
    assert not lost(follow(audit, onnx=onnx, engines=engines))


def test_an_unknown_format_reaches_no_kernel() -> None:
    rows = follow(change_quantizers(make_audit(), FC1, format="INT3"))

    assert lost(rows) == {FC1: "engine"}
    assert "no kernel is known to compute in INT3" in judge(rows).headline


@pytest.mark.parametrize("name", ["INT4", "MXFP8", "MXFP6", "unknown(('x',))"])
def test_a_format_that_no_kernel_was_seen_to_compute_in(name: str) -> None:
    rows = follow(change_quantizers(make_audit(), FC1, format=name))

    assert f"no kernel is known to compute in {name}" in judge(rows).headline


def test_a_format_that_the_target_has_no_units_for() -> None:
    """A builder may take a graph and compute in half precision: the table says why."""
    audit = change_quantizers(make_audit(), FC1, format="NVFP4")
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    rows = follow(audit, onnx=onnx, engines=engines)

    assert "NVFP4 is not supported on sm89, but on sm120, sm121" in judge(rows).headline
    on_new = {
        tower: change_node(replace(engine, target="sm120"), "layers/1/mlp", precision="fp4")
        for tower, engine in engines.items()
    }
    reasons = {row.name: row.reason for row in follow(audit, onnx=onnx, engines=on_new)}
    assert reasons[FC1] == ""


def test_allow_covers_the_engine_alone() -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    engines["vision"] = change_node(engines["vision"], "layers/1/mlp", precision="half")
    in_engine = follow(audit, onnx=onnx, engines=engines)
    in_model = follow(switch_off(audit, FC1, by="*"))

    passed = judge(in_engine, allow=("vision_model.layers.1.mlp.*",))
    assert passed.passed
    assert "22 of 24 quantizers" in passed.headline
    assert "2 run wider there as allowed" in passed.headline
    assert passed.brief == "22 of 24 quantizers reach the engine, 2 allowed"
    assert passed.figures["quantizers_allowed"] == 2
    assert judge(in_model, allow=("vision_model.layers.1.mlp.*",)).status is Status.FAIL


def test_a_pattern_that_allows_nothing_fails() -> None:
    verdict = judge(follow(make_audit()), allow=("*patch_embedding*",))

    assert verdict.status is Status.FAIL
    assert "allow '*patch_embedding*' allows nothing" in verdict.headline
    assert f"{FILE}:11" in verdict.headline
    assert verdict.brief == "allow '*patch_embedding*' allows nothing"
    assert verdict.next_step == "remove the pattern"


def test_a_pattern_that_allows_all_fails() -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {
        tower: change_node(make_engine(found), "layers", precision="half")
        for tower, found in onnx.items()
    }
    lost = [
        replace(row, lost_at="engine", reason="runs in half")
        for row in follow(audit, onnx=onnx, engines=engines)
    ]

    verdict = judge(lost, allow=("*",))

    assert (verdict.status, verdict.code) == (Status.FAIL, "trace.allows-all")
    assert "allow lets all of 24 quantizers run wider in the engine" in verdict.headline
    assert judge([replace(lost[0], lost_at=None), *lost[1:]], allow=("*",)).passed


def test_nothing_to_follow_is_no_pass() -> None:
    verdict = judge(follow_quantizers(
        replace(make_audit(), quantizers=(), intended=(), modules=()),
        onnx={}, engines=None, towers=TOWERS,  # type: ignore[arg-type]
    ))  # fmt: skip

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"trace: no quantizer is declared in vision, text: there is nothing to follow ({FILE}:10)"
    )
    assert verdict.next_step == "look at the coverage gate"


def test_only_the_named_towers_are_followed() -> None:
    audit = switch_off(make_audit(), "text_model*", by="*text*")
    rows = follow(audit, towers=("vision",))

    assert {row.tower for row in rows} == {"vision"}
    assert not lost(rows)


STAGE = st.sampled_from([None, *STAGES])


@SAME_EXAMPLES
@given(st.lists(STAGE, min_size=1, max_size=30))
def test_the_table_counts_and_the_first_stage_leads(stages: list[Any]) -> None:
    rows = [
        TraceRow(name=f"layers.{i}.q", slot="q", tower="vision", lost_at=stage, reason="r")
        for i, stage in enumerate(stages)
    ]
    verdict = judge(rows)
    counts = [int(n) for n in render_table(rows, engine=True)[-1].split()[1:]]

    assert verdict.passed == all(stage is None for stage in stages)
    assert counts == sorted(counts, reverse=True)
    for index, stage in enumerate(STAGES):
        assert counts[index] - counts[index + 1] == stages.count(stage)
        assert verdict.figures[f"quantizers_lost_at_{stage}"] == stages.count(stage)
    reached = [stage for stage in STAGES if stage in stages]
    if reached:
        first = next(row for row in rows if row.lost_at == reached[0])
        assert first.name in verdict.headline


# -- what is declared ------------------------------------------------------------------------------


def test_what_is_on_or_meant_is_declared_and_nothing_else() -> None:
    audit = switch_off(make_audit(), FC1)  # meant and off
    extra = replace(audit, intended=tuple(name for name in audit.intended if name != SCORES))
    neither = replace(audit, intended=tuple(name for name in audit.intended if name != FC1))

    assert lost(follow(extra)) == {FC1: "model"}
    assert len(follow(extra)) == 24
    assert "it is off" in judge(follow(extra)).headline
    assert not lost(follow(neither))
    assert len(follow(neither)) == 23


@pytest.mark.parametrize(
    ("pattern", "waived"),
    [
        ("vision_model.layers.1.mlp.fc1.weight_quantizer", True),
        ("vision_model.layers.1.mlp.fc1", True),
        ("vision_model", True),
        ("*.1.mlp", True),
        ("layers.1.mlp", False),
        ("vision_model.layers.0", False),
    ],
)
def test_a_waiver_of_a_module_holds_for_all_inside(pattern: str, waived: bool) -> None:
    other = Waiver(where=WHERE, modules=("nothing", "none"), reason="", until=date(2100, 1, 1))
    waiver = replace(other, modules=("nothing", pattern))
    gate = coverage_gate(waive=(other, waiver))

    assert (FC1 in lost(follow(switch_off(make_audit(), FC1), coverage=gate))) is not waived


def without_keys(*towers: str) -> Audit:
    audit = make_audit()
    kept = tuple(q for q in audit.quantizers if not (q.tower in towers and q.slot == "k"))
    return replace(audit, quantizers=kept)


def test_only_attention_that_runs_in_a_followed_tower_lacks_a_quantizer() -> None:
    audit = without_keys("vision", "text")
    asleep = replace(
        audit, operations=tuple(op for op in audit.operations if "layers.0.self" not in op.module)
    )
    waiver = Waiver(where=WHERE, modules=("*layers.0*",), reason="", until=date(2100, 1, 1))

    promised = coverage_gate(attention=("q", "k"))
    assert len(lost(follow(audit, coverage=promised))) == 4
    assert set(lost(follow(audit, coverage=promised, towers=("text",)))) == {
        f"text_model.layers.{block}.self_attn (k)" for block in range(BLOCKS)
    }
    remaining = {f"{tower}_model.layers.1.self_attn (k)" for tower in TOWERS}
    assert set(lost(follow(asleep, coverage=promised))) == remaining
    waived = replace(promised, waive=(waiver,))
    assert set(lost(follow(audit, coverage=waived))) == remaining


@pytest.mark.parametrize("function", ["attention", "mha", "matmul", "linear"])
def test_attention_runs_where_something_multiplies(function: str) -> None:
    audit = without_keys("vision")
    operations = tuple(
        replace(op, function=function) if op.module.endswith("self_attn") else op
        for op in audit.operations
    )

    found = lost(follow(replace(audit, operations=operations)))

    assert len(found) == (0 if function == "linear" else BLOCKS)


@pytest.mark.parametrize("kind", ["attention", "mha", "linear"])
def test_only_attention_is_promised_quantizers_of_its_own(kind: str) -> None:
    audit = without_keys("vision")
    modules = tuple(
        replace(module, kind=kind) if module.kind == "attention" else module  # type: ignore[arg-type]
        for module in audit.modules
    )

    found = lost(follow(replace(audit, modules=modules)))

    assert len(found) == (0 if kind == "linear" else BLOCKS)


# -- where one is lost ----------------------------------------------------------------------------


def test_a_quantizer_of_both_towers_must_be_in_both_graphs() -> None:
    audit = change_quantizers(
        make_audit(), FC1, tower="other", tower_calls={"vision": 1, "text": 3}
    )
    found = {tower: make_onnx(make_audit(), tower) for tower in TOWERS}
    found["vision"] = make_onnx(make_audit(), "vision")
    engines = {tower: make_engine(onnx) for tower, onnx in found.items()}

    rows = follow(audit, onnx=found, engines=engines)

    assert lost(rows) == {FC1: "onnx"}
    assert "no Q/DQ pair in the text graph" in judge(rows).headline
    only_vision = follow(
        change_quantizers(audit, FC1, tower_calls={"vision": 1}), onnx=found, engines=engines
    )
    assert not lost(only_vision)


def test_one_whole_pair_among_halves_is_enough() -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    (pair,) = (pair for pair in onnx["vision"].pairs if pair.quantizer == FC1)
    half, elsewhere = replace(pair, complete=False), replace(pair, feeds_owner=False)

    def follow_pairs(*pairs: QdqPair) -> tuple[TraceRow, ...]:
        others = tuple(found for found in onnx["vision"].pairs if found is not pair)
        changed = replace(onnx["vision"], pairs=(*pairs, *others))
        return follow(audit, onnx={**onnx, "vision": changed}, engines=engines)

    assert not lost(follow_pairs(half, elsewhere, pair))
    assert "stands at another place" in judge(follow_pairs(half, elsewhere)).headline


@pytest.mark.parametrize(
    ("kind", "known"),
    [("matmul", True), ("attention", True), ("gemm", True), ("pointwise", False)],
)
def test_only_a_kernel_that_multiplies_computes_a_node(kind: str, known: bool) -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    node = "/vision_model/layers/0/self_attn/MatMul"
    layers = tuple(
        replace(layer, kind=kind) if layer.onnx_nodes == (node,) else layer  # type: ignore[arg-type]
        for layer in engines["vision"].layers
    )
    engines["vision"] = replace(engines["vision"], layers=layers)

    rows = follow(audit, onnx=onnx, engines=engines)

    assert bool(lost(rows)) is not known
    if not known:
        assert f"no kernel computes {node} by itself" in judge(rows).headline


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"onnx_nodes": ()}, "the builder took its Q/DQ pair out"),
        ({"output_dtypes": ("Half", "FP8")}, ""),
        ({"output_dtypes": ("Half", "Float")}, "writes Half, Float"),
        ({"output_dtypes": ("Half",), "kind": "attention", "precision": "half"}, "writes Half"),
        ({"output_dtypes": ("Half",), "precision": "fp8"}, "writes Half"),
    ],
)
def test_an_output_must_be_written_narrow_or_stay_inside(
    changes: dict[str, Any], reason: str
) -> None:
    audit = make_audit()
    onnx = {tower: make_onnx(audit, tower) for tower in TOWERS}
    engines = {tower: make_engine(found) for tower, found in onnx.items()}
    prefix = "/text_model/layers/1/self_attn/"
    writer = make_layer("writer", [f"{prefix}bmm2_output_quantizer/Q"], kind="pointwise")
    beside = make_layer("beside", ["/text_model/layers/0/other/Q"])
    layers = tuple(
        replace(layer, onnx_nodes=layer.onnx_nodes[:1]) if "/1/" in layer.name else layer
        for layer in engines["text"].layers
    )
    engines["text"] = replace(engines["text"], layers=(*layers, replace(writer, **changes), beside))

    rows = follow(audit, onnx=onnx, engines=engines)

    assert lost(rows) == ({OUTPUT: "engine"} if reason else {})
    assert reason in judge(rows).headline


# -- what the verdict says -------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_how_many_why_and_where_to_look(stage: Any) -> None:
    rows = [
        TraceRow(name=f"part{letter}.q", slot="q", tower="text", lost_at=stage, reason=f"r{i % 4}")
        for i, letter in enumerate("abcdefgh")
    ]
    rows.append(TraceRow(name="whole.q", slot="q", tower="text"))

    verdict = judge(rows)

    assert (verdict.gate, verdict.status) == ("trace", Status.FAIL)
    assert verdict.headline == f"trace: 8 of 9 quantizers {LOST[stage]}: parta.q: r0 ({FILE}:10)"
    assert verdict.brief == f"8 of 9 quantizers lost at {stage}"
    assert verdict.cause == "r0, r1, r2 and 1 more"
    assert verdict.next_step == MENDS[stage]
    assert verdict.evidence[-6:] == (*[f"part{letter}.q" for letter in "abcde"], "... and 3 groups")


def test_the_table_shows_each_kind_and_what_reached_each_stage() -> None:
    rows = [
        TraceRow(name="a", slot="weight", tower="vision"),
        TraceRow(name="b", slot="q", tower="vision", lost_at="onnx", reason="r"),
        TraceRow(name="c", slot="output", tower="text", lost_at="engine", reason="r"),
        TraceRow(name="d", slot="attention_output", tower="text"),
    ]

    assert render_table(rows, engine=True) == (
        "quantizers        declared    model  forward     onnx   engine",
        "vision layers            1        1        1        1        1",
        "vision attention         1        1        1        0        0",
        "text layers              1        1        1        1        0",
        "text attention           1        1        1        1        1",
        "all                      4        4        4        3        2",
    )
    assert render_table(rows[:1], engine=False) == (
        "quantizers     declared    model  forward     onnx",
        "vision layers         1        1        1        1",
        "all                   1        1        1        1",
    )
