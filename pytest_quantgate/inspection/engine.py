"""What is right and wrong with an engine: its plan's first bytes, and the report of its layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_quantgate.artifacts.engine_files import LayerReport, Plan, block_of_layer
from pytest_quantgate.formats.table import narrow_precisions
from pytest_quantgate.inspection.findings import Finding, Inspection, Row, name_all
from pytest_quantgate.runtimes.engine_layers import EngineLayer, Precision
from pytest_quantgate.text.words import count, group, listed

DETAILED = "trtexec --loadEngine=PLAN --exportLayerInfo=layers.json --profilingVerbosity=detailed"

_WORDS: dict[Precision, str] = {
    **{precision: precision.upper() for precision in narrow_precisions()},
    "half": "FP16",
    "bf16": "BF16",
    "float": "FP32",
    "other": "other",
}
_NARROW = tuple(narrow_precisions())
_MULTIPLY = ("gemm", "matmul", "conv", "attention")
_KINDS = {
    "gemm": "GEMM with weights",
    "matmul": "product of activations",
    "conv": "convolution",
    "attention": "fused attention",
    "qdq": "Q/DQ alone",
}


def inspect_plan(plan: Plan, *, label: str) -> Inspection:
    """Return what the first bytes of a plan tell."""
    return Inspection(
        path=label,
        what="plan",
        tool=plan.library,
        headline=f"engine plan of {plan.description}, {plan.bytes / 1e6:.1f} MB",
        notes=("what an engine computes stands in its layer report, not in the plan",),
        next_steps=(f"{DETAILED.replace('PLAN', label)}; quantgate check layers.json",),
        bytes_by_type={"plan": plan.bytes},
    )


def inspect_layers(report: LayerReport, *, label: str) -> Inspection:
    """Return what is said of a layer report."""
    if not report.layers:
        return Inspection(
            path=label,
            what="layer-report",
            tool="TensorRT",
            headline=f"engine layer report of TensorRT: {count(len(report.names), 'name')} and "
            f"no types",
            findings=(
                Finding(
                    code="check.names-only",
                    headline="the report lists names of layers, and no types: nothing can be told "
                    "of their precision",
                    cause="the engine was built without --profilingVerbosity=detailed",
                    next_step="build again with --profilingVerbosity=detailed "
                    "--exportLayerInfo=layers.json",
                ),
            ),
        )
    layers = report.layers
    gemms = [layer for layer in layers if layer.kind == "gemm"]
    narrow = [layer for layer in gemms if layer.precision in _NARROW]
    found = Counter(_WORDS[layer.precision] for layer in narrow)
    words = " and ".join(f"{name}" for name in found) or "none in 8 bits"
    fused = [layer for layer in layers if layer.kind == "attention"]
    attention = f", {_count_fused(fused)}" if fused else ""
    return Inspection(
        path=label,
        what="layer-report",
        tool="TensorRT",
        headline=f"engine layer report of TensorRT: {len(narrow)} of {len(gemms)} GEMMs {words}"
        f"{attention}",
        rows=_make_rows(layers),
        findings=tuple(_find(layers)),
        notes=tuple(_list_notes(layers)),
        next_steps=("hold it against limits: the gates engine and trace, quantgate init",),
    )


def _count_fused(fused: Sequence[EngineLayer]) -> str:
    narrow = sum(layer.precision in _NARROW for layer in fused)
    return f"{narrow} of {len(fused)} fused attentions in 8 bits"


def _make_rows(layers: Sequence[EngineLayer]) -> tuple[Row, ...]:
    rows = []
    for kind, label in _KINDS.items():
        found = [layer for layer in layers if layer.kind == kind]
        if not found:
            continue
        precisions = Counter(_WORDS[layer.precision] for layer in found)
        rows.append(
            Row(
                tower="engine",
                what=label,
                quantized=sum(layer.precision in _NARROW for layer in found),
                total=len(found),
                format=", ".join(f"{number} {name}" for name, number in precisions.most_common()),
                scales="",
            )
        )
    return tuple(rows)


def _find(layers: Sequence[EngineLayer]) -> Iterator[Finding]:
    gemms = [layer for layer in layers if layer.kind == "gemm"]
    narrow = [layer for layer in gemms if layer.precision in _NARROW]
    multiply = [layer for layer in layers if layer.kind in _MULTIPLY]
    if not any(layer.precision in _NARROW for layer in gemms or multiply):
        kernels = count(len(layers), "kernel")
        yield Finding(
            code="check.not-quantized",
            headline=f"no GEMM of {len(gemms)} runs in 8 bits"
            if gemms
            else f"nothing in 8 bits multiplies, and no GEMM was recognised among {kernels}",
            cause="the ONNX file has no Q/DQ pairs, or only on weights, or this GPU has no kernel "
            "of that format",
            next_step="check the ONNX file that it was built from: quantgate check FILE.onnx",
        )
        return
    wide = [
        layer.name
        for layer in gemms
        if layer.precision not in _NARROW and block_of_layer(layer) is not None
    ]
    yield from name_all(
        "check.engine-fallback",
        wide,
        "GEMM",
        f"inside of blocks in full precision, where {len(narrow)} run in 8 bits",
        cause="an operand without a Q/DQ pair, or a fusion that the library preferred",
        next_step="check the ONNX file for these nodes: quantgate check FILE.onnx",
    )
    fused = [layer for layer in layers if layer.kind == "attention"]
    part = [layer.name for layer in fused if layer.precision not in _NARROW]
    if part and len(part) < len(fused):
        yield from name_all(
            "check.engine-fallback",
            part,
            "fused attention",
            f"of {len(fused)} in full precision",
            cause="q, k, v or softmax without a Q/DQ pair in these blocks",
            next_step="check the ONNX file: quantgate check FILE.onnx",
        )


def _list_notes(layers: Sequence[EngineLayer]) -> Iterator[str]:
    yield "planned kernels: what runs on a GPU is its own affair"
    left = [layer.name for layer in layers if layer.kind == "qdq"]
    if left:
        number = count(len(left), "kernel")
        yield f"{number} that only quantize or dequantize: {listed(group(left))}"
    products = [layer for layer in layers if layer.kind == "matmul"]
    if products and not any(layer.kind == "attention" for layer in layers):
        yield "attention is not fused: its products are kernels of their own"
