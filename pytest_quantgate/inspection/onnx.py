"""What is right and wrong with an ONNX file of any tool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_quantgate.artifacts.onnx_file import OnnxGraph
from pytest_quantgate.artifacts.onnx_operands import OnnxPart, describe_onnx
from pytest_quantgate.artifacts.operands import Artifact
from pytest_quantgate.inspection.coverage import find_coverage, list_notes
from pytest_quantgate.inspection.findings import Finding, Inspection, name_all
from pytest_quantgate.inspection.headline import list_facts, make_rows, write_headline
from pytest_quantgate.inspection.ranges import find_ranges, list_wide
from pytest_quantgate.text.words import count, listed


def inspect_onnx(graph: OnnxGraph, *, label: str) -> tuple[Inspection, Artifact]:
    """Return what is said of an ONNX file, and what was read of it; raises ArtifactError."""
    artifact, parts = describe_onnx(graph)
    findings = [
        *_find_form(graph, parts),
        *find_coverage(artifact.operands),
        *find_ranges(artifact.operands, pre_scaled=False, by_max=False),
        *_find_pairs(parts),
    ]
    return (
        Inspection(
            path=label,
            what="onnx",
            tool=artifact.tool,
            headline=write_headline(artifact),
            rows=make_rows(artifact.operands),
            operands=list_facts(artifact.operands),
            findings=tuple(findings),
            notes=tuple(_list_notes(graph, artifact)),
            next_steps=tuple(
                _list_steps(artifact, label=label, is_for_tensorrt=not parts.operators)
            ),
            facts=artifact.facts,
            bytes_by_type=artifact.bytes_by_type,
        ),
        artifact,
    )


def _find_form(graph: OnnxGraph, parts: OnnxPart) -> Iterator[Finding]:
    """Yield what a runtime refuses whatever the numbers are."""
    if not graph.was_sorted:
        yield Finding(
            code="check.not-sorted",
            headline="nodes are not in order: some read a value before it is made, which ONNX "
            "does not allow",
            cause="ONNX Runtime's float16 converter appends its Cast nodes",
            next_step="sort it (onnx_graphsurgeon: graph.toposort()) before TensorRT and the "
            "checker read it",
        )
    if parts.problems:
        yield Finding(
            code="check.graph-invalid",
            headline=f"ONNX's own checker refuses the graph: {parts.problems[0]}",
            cause="a node or a type that this opset does not have, or a node that was edited",
            next_step="export again, for an opset that has them: INT4 and blocks are of 21, FP8 of "
            "19, scales per channel of 13",
            subjects=parts.problems,
        )
    yield from name_all(
        "check.names-repeated",
        parts.repeated,
        "name",
        "that several nodes have",
        cause="a pass over the graph that copied nodes",
        next_step="name each node once: profiles and layer reports tell nodes by their names",
    )
    if parts.operators:
        yield Finding(
            code="check.operators-refused",
            headline=f"TensorRT takes Q/DQ pairs only, and this file has {listed(parts.operators)}",
            cause="quantize_dynamic, or quantize_static with QuantFormat.QOperator",
            next_step="for TensorRT quantize with QuantFormat.QDQ and symmetric types, or with "
            "ModelOpt; for ONNX Runtime on a CPU it is well",
            subjects=parts.operators,
        )
    if parts.asymmetric and not parts.operators:
        yield from name_all(
            "check.asymmetric",
            parts.asymmetric,
            "Q/DQ node",
            "with a zero point that is not 0, which TensorRT refuses",
            cause="ONNX Runtime's default for activations",
            next_step="quantize_static(..., extra_options={'ActivationSymmetric': True, "
            "'WeightSymmetric': True})",
        )


def _find_pairs(parts: OnnxPart) -> Iterator[Finding]:
    yield from name_all(
        "check.half-pair",
        parts.lone,
        "QuantizeLinear",
        "that nothing dequantizes",
        cause="a pass over the graph that removed one half of a pair",
        next_step="export again without that pass",
    )
    yield from name_all(
        "check.pair-unread",
        parts.unread,
        "DequantizeLinear",
        "that nothing reads",
        cause="a pass over the graph that put the value in full precision back in its place",
        next_step="export again without that pass",
    )
    yield from name_all(
        "check.pair-disagrees",
        parts.unequal,
        "Q/DQ pair",
        "with another scale or zero point behind than in front",
        cause="one half was edited, rounded or quantized by another tool",
        next_step="export again; what comes out is scaled by the quotient, or moved",
    )
    yield from name_all(
        "check.quantized-twice",
        parts.twice,
        "operand",
        "that two Q/DQ pairs round, each with another scale",
        cause="a file that was quantized already was quantized again, by another tool",
        next_step="quantize the FP16 file once",
    )
    yield from name_all(
        "check.scale-axis",
        parts.across,
        "weight",
        "with scales along one axis and codes that were made along the other",
        cause="axis of DequantizeLinear was left out or edited, or the weight was transposed "
        "after it was quantized",
        next_step="export again; a MatMul's weight has its outputs on axis 1",
    )
    yield from name_all(
        "check.bias-scale",
        parts.biases,
        "INT32 bias",
        "of another scale than input times weight",
        cause="a scale of the input or the weight that was changed after the bias was "
        "quantized, or a bias that was edited",
        next_step="export again: kernels take the bias to be in the scale of the product",
    )
    yield from name_all(
        "check.float-behind-qdq",
        parts.float_weights,
        "weight",
        "stored in full precision behind Q/DQ",
        cause="the exporter wrote QuantizeLinear in front of the weight and did not fold it",
        next_step="the engine folds it and runs as meant; for a file that is smaller, fold "
        "QuantizeLinear into the weights when exporting",
    )


def _list_notes(graph: OnnxGraph, artifact: Artifact) -> Iterator[str]:
    yield from list_notes(artifact.operands)
    yield from list_wide(artifact.operands)
    own = [domain for domain in graph.domains if domain != "com.microsoft"]
    if own:
        yield f"operators of other domains, which ONNX Runtime does not have: {listed(own)}"
    if graph.external:
        yield f"tensors lie in {listed(graph.external)}: copy it with the model"
    if graph.nested_nodes:
        yield (
            f"{count(graph.nested_nodes, 'node')} and {graph.nested_bytes / 1e6:.2f} MB of "
            f"tensors lie in branches and loops, which were not looked into"
        )
    if graph.opset < 23 and any(o.format == "E4M3" for o in artifact.operands):
        yield (
            "below opset 23 ONNX Runtime computes FP8 Q/DQ rightly only with graph optimization "
            "disabled (ORT_DISABLE_ALL)"
        )


def _list_steps(artifact: Artifact, *, label: str, is_for_tensorrt: bool) -> Iterator[str]:
    if not any(o.is_quantized for o in artifact.operands):
        return
    yield f"compare with what it was made from: quantgate check {label} --base FP16"
    if is_for_tensorrt:
        engine = Path(label).with_suffix(".plan").name
        yield (
            f"see what an engine makes of it: trtexec --onnx={label} --saveEngine={engine} "
            f"--exportLayerInfo=layers.json --profilingVerbosity=detailed; "
            f"quantgate check layers.json"
        )
