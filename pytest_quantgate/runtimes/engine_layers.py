"""What a built engine consists of, read from the texts that the builder prints.

Pure: strings in, frozen values out, no library needed. The builder of TensorRT (with detailed
profiling verbosity and a verbose logger) prints one message that starts with `Layers:`, a line a
kernel of the fused engine, and a few lines with its memory. They tell what was *planned*; which
code runs on a device is the device's own affair.

All values can be written by `evidence.codec.to_json` and read back by `from_json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.formats.table import (
    FP8_ATTENTION_MIN_TOKENS,
    computes_alone,
    find_precision,
    narrow_precisions,
)

#: `gemm` multiplies by weights, `matmul` two activations, `qdq` only quantizes or dequantizes.
Kind = Literal["gemm", "conv", "matmul", "attention", "qdq", "other"]

#: `half`, `bf16`, `float`, `other`, or the precision of a narrow format (`fp8`, `int8`, `fp4`).
#: `mixed` is a product of several: FP8 by INT4, or FP8 values in blocks of Microscaling.
Precision = str

AttentionState = Literal["fused-fp8", "fused-half", "not-fused"]

_WIDE: dict[str, Precision] = {
    "Half": "half",
    "FP16": "half",
    "BFloat16": "bf16",
    "BF16": "bf16",
    "Float": "float",
    "FP32": "float",
}

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>[^,\[\]{}]*), Inputs: \[(?P<inputs>.*?)\](?:,"
    r" Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>| .*?\})\]"
    r"(?P<rest>(?:, [A-Z]\w*: .*)?)"
)
_TENSOR = re.compile(
    r"Dimensions: \[(?P<shape>[^\]]*)\](?:(?!\{ Name: ).)*?, (?:Format/)?Datatype: (?P<dtype>\w+)"
)
_TACTIC = re.compile(r", TacticName: (.*?)(?=, [A-Z]\w*: |$)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\[\x1e\x1f]|$)")  # separated by an invisible 1F
_MEMORY = re.compile(
    r"(?:Total|Max) (Weights|Activation|Scratch|Host Persistent|Device Persistent) Memory: "
    r"(\d{1,18})(?: bytes)?(?!\d)"
)
_MATRIX_TYPE = re.compile(r"gemm|matmul|matrix|correlation|conv|\bfc\b", re.IGNORECASE)
_CHAIN = re.compile(r"__myl_([A-Za-z]+)_myl")
_MATRIX_STEP = re.compile(r"Fc|Gemm|Matmul|Corr|Conv(?!ert)")
_VECTOR_STEP = re.compile(r"MulSum")  # a matrix times one row is no GEMM kernel, but a sum
_CASTS_FIRST = re.compile(r"Cast.*(?:Fc|Gemm|Matmul|Corr|Conv|MulSum)")
_FUSED_ATTENTION = re.compile(r"(?<![a-z])f?mha(?![a-z])|flash_?att", re.IGNORECASE)
_BLOCK = re.compile(r"[A-Za-z_]\.(\d{1,6})(?![\w])")


class EngineError(QuantGateError):
    """An engine that cannot be built, read or run; the message says what, where and the mend."""


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One kernel of the engine, as the builder lists it.

    `inputs` are computed at run time (weights are `constants`); the dtypes are the library's own
    words (`Half`, `FP8`, `Float`, ...), the shapes have -1 for what is not known before a run.
    `onnx_nodes` are the nodes of the ONNX graph that the kernel computes, or a part of them.
    """

    name: str
    type: str
    tactic: str
    input_dtypes: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    constant_dtypes: tuple[str, ...]
    output_dtypes: tuple[str, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    onnx_nodes: tuple[str, ...]
    kind: Kind = "other"
    precision: Precision = "other"


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Memory of an engine in bytes, from the builder's log."""

    weights_bytes: int
    activation_bytes: int
    scratch_bytes: int


@dataclass(frozen=True, kw_only=True)
class OnnxAttention:
    """One attention block of the ONNX graph, in the order of the graph (`index` from 0).

    `block` is the number in the node's name (3 for `.../layers.3/...`), None if there is none.
    `scores`, `softmax` and `values` name the MatMul, the Softmax and the second MatMul.
    `q`, `k`, `v` and `probabilities` say through which Q/DQ pair that operand comes to its MatMul:
    `fp8`, `int8` or `none`.
    """

    index: int
    block: int | None
    scores: str
    softmax: str
    values: str
    q: str
    k: str
    v: str
    probabilities: str


@dataclass(frozen=True, kw_only=True)
class OnnxGraph:
    """What the report needs to know of the ONNX graph, nodes by name.

    `linear` multiply by a weight (MatMul, Gemm), `conv` convolve with one, `qdq` are
    QuantizeLinear and DequantizeLinear nodes.
    """

    linear: tuple[str, ...]
    conv: tuple[str, ...]
    qdq: tuple[str, ...]
    attentions: tuple[OnnxAttention, ...]


@dataclass(frozen=True, kw_only=True)
class NodePrecision:
    """In which precision the engine runs one linear or conv node of the ONNX graph.

    `layer` names the kernel; both are None where no kernel computes the node by itself.
    """

    node: str
    op: Literal["linear", "conv"]
    block: int | None
    precision: Precision | None
    layer: str | None


@dataclass(frozen=True, kw_only=True)
class EngineAttention:
    """How the engine runs one attention block; `reason` is empty for `fused-fp8`.

    `layers` are the kernels that compute its MatMul, Softmax and MatMul.
    """

    index: int
    block: int | None
    softmax: str
    state: AttentionState
    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """Everything that the gates need to know of one engine. Sizes in bytes, times in seconds.

    `fp8_gemms` counts kernels that multiply FP8 activations by FP8 weights, `fp8_gemm_nodes` the
    linear nodes of the ONNX graph that they cover: a library merges q, k and v into one kernel on
    one target and not on another, so only the second compares between targets. `qdq_layers`
    names the kernels that do nothing but quantize or dequantize.
    `build_s` is informative: it depends on the machine and its load. `given` names the report of an
    engine that was built elsewhere; without its log it has no figures of memory (`has_memory`).
    """

    target: str
    library: str
    library_version: str
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    weights_bytes: int
    activation_bytes: int
    scratch_bytes: int
    build_s: float
    layers: tuple[EngineLayer, ...]
    gemms: int
    fp8_gemms: int
    gemm_nodes: int
    fp8_gemm_nodes: int
    fp8_convs: int
    nodes: tuple[NodePrecision, ...]
    attentions: tuple[EngineAttention, ...]
    qdq_layers: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    has_memory: bool = True
    given: str = ""

    def count_gemm_nodes(self, precision: Precision) -> int:
        """Return how many linear nodes of the ONNX graph run in a precision."""
        if precision == "fp8":
            return self.fp8_gemm_nodes
        return sum(node.op == "linear" and node.precision == precision for node in self.nodes)


def parse_layers(listing: str) -> tuple[EngineLayer, ...]:
    """Return the kernels of a listing, the text that starts with `Layers:`.

    Raises EngineError where the listing or one of its lines cannot be read.
    """
    lines = listing.split("\n")  # not splitlines: names and metadata may hold other separators
    if lines[0].strip() != "Layers:":
        raise EngineError(f"the layer listing does not start with 'Layers:' but {listing[:40]!r}")
    layers = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            break  # what follows describes inputs and outputs
        layers.append(_parse_layer(line, number=number))
    if not layers:
        raise EngineError("the layer listing names no layer")
    return tuple(layers)


def _parse_layer(line: str, *, number: int) -> EngineLayer:
    match = _LAYER.fullmatch(line)
    if match is None:
        raise EngineError(
            f"line {number} of the layer listing is not in a known form: {line[:120]!r}; this "
            f"version of the library may print another one, please report it with the line"
        )
    tensors = {
        part: _parse_tensors(match[part] or "", part=part, number=number)
        for part in ("inputs", "constants", "outputs")
    }
    rest = match["rest"]
    tactic = _TACTIC.search(rest)
    _, _, metadata = rest.partition(", Metadata: ")
    return EngineLayer(
        name=match["name"],
        type=match["type"].strip(),
        tactic=tactic[1].strip() if tactic else "",
        input_dtypes=tuple(dtype for dtype, _ in tensors["inputs"]),
        input_shapes=tuple(shape for _, shape in tensors["inputs"]),
        constant_dtypes=tuple(dtype for dtype, _ in tensors["constants"]),
        output_dtypes=tuple(dtype for dtype, _ in tensors["outputs"]),
        output_shapes=tuple(shape for _, shape in tensors["outputs"]),
        onnx_nodes=tuple(_ONNX_NODE.findall(metadata)),
    )


def _parse_tensors(text: str, *, part: str, number: int) -> list[tuple[str, tuple[int, ...]]]:
    found = [(m["dtype"], _parse_shape(m["shape"])) for m in _TENSOR.finditer(text)]
    if text.strip() and not found:
        raise EngineError(
            f"line {number} of the layer listing: its {part} are not in a known form: {text[:80]!r}"
        )
    return found


def _parse_shape(text: str) -> tuple[int, ...]:
    sizes = [size.strip() for size in text.split(",") if size.strip()]
    return tuple(int(size) if re.fullmatch(r"[0-9]{1,12}", size) else -1 for size in sizes)


def parse_memory(log: Iterable[str]) -> EngineMemory:
    """Return the memory figures of the builder's log (the last of each, where it repeats).

    Raises EngineError where the log does not tell weights or activations.
    """
    figures: dict[str, int] = {}
    for message in log:
        for what, count in _MEMORY.findall(message):
            figures[what] = int(count)
    for what in ("Weights", "Activation"):
        if what not in figures:
            raise EngineError(
                f"the builder's log has no line 'Total {what} Memory': this version of the "
                f"library may print another one, please report it"
            )
    return EngineMemory(
        weights_bytes=figures["Weights"],
        activation_bytes=figures["Activation"],
        scratch_bytes=figures.get("Scratch", 0),
    )


def read_block(name: str) -> int | None:
    """Return the block number in a node's or module's name: 3 for `/encoder/layers.3/attn`."""
    match = _BLOCK.search(name)
    return int(match[1]) if match else None


def classify_layers(layers: Iterable[EngineLayer], *, graph: OnnxGraph) -> tuple[EngineLayer, ...]:
    """Return the layers with `kind` and `precision` filled in."""
    known = _Known(graph)
    return tuple(_classify(layer, known=known) for layer in layers)


class _Known:
    """The node names of a graph as sets."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.linear = frozenset(graph.linear)
        self.conv = frozenset(graph.conv)
        self.qdq = frozenset(graph.qdq)
        self.attentions = tuple(
            frozenset((a.scores, a.softmax, a.values)) for a in graph.attentions
        )


def _classify(layer: EngineLayer, *, known: _Known) -> EngineLayer:
    kind = _find_kind(layer, known=known)
    precision = _find_precision(layer, matrix=kind in ("gemm", "conv", "matmul"))
    values = {f: getattr(layer, f) for f in EngineLayer.__dataclass_fields__}
    return EngineLayer(**(values | {"kind": kind, "precision": precision}))


def _find_kind(layer: EngineLayer, *, known: _Known) -> Kind:
    nodes = frozenset(layer.onnx_nodes)
    if _FUSED_ATTENTION.search(layer.tactic) or any(a <= nodes for a in known.attentions):
        return "attention"
    chain = _read_chain(layer)
    if _MATRIX_TYPE.search(layer.type) or _MATRIX_STEP.search(chain):
        if nodes & known.conv:
            return "conv"
        return "gemm" if nodes & known.linear else "matmul"
    if _VECTOR_STEP.search(chain) and nodes & known.linear:
        return "gemm"
    if nodes & known.qdq and nodes <= known.qdq | known.linear | known.conv:
        return "qdq"
    return "other"


def _read_chain(layer: EngineLayer) -> str:
    """Return the steps of a generated kernel from its name, such as `CastMulFc`, or nothing."""
    match = _CHAIN.match(layer.name)
    return match[1] if match else ""


def _find_precision(layer: EngineLayer, *, matrix: bool) -> Precision:
    """Judge by what goes in: a kernel that dequantizes its operands computes in half precision."""
    inputs = [_precision_of(dtype) for dtype in layer.input_dtypes]
    operands = inputs + [_precision_of(dtype) for dtype in layer.constant_dtypes]
    casts_first = _CASTS_FIRST.search(_read_chain(layer)) is not None
    for narrow in narrow_precisions():
        enough = operands.count(narrow) >= 2 if matrix else narrow in inputs
        if narrow in inputs and enough and not (matrix and casts_first):
            dtypes = (*layer.input_dtypes, *layer.constant_dtypes)
            return narrow if not matrix or computes_alone(narrow, dtypes) else "mixed"
    wide: tuple[Precision, ...] = ("half", "bf16", "float")  # alpha and beta are always Float
    outputs = [_precision_of(dtype) for dtype in layer.output_dtypes]
    return next((p for p in wide if p in operands or p in outputs), "other")


def _precision_of(dtype: str) -> Precision:
    return find_precision(dtype) or _WIDE.get(dtype, "other")


def find_node_precisions(
    layers: Iterable[EngineLayer], *, graph: OnnxGraph
) -> tuple[NodePrecision, ...]:
    """Return for each linear and conv node of the graph in which precision it runs."""
    computing: dict[str, EngineLayer] = {}
    for layer in layers:
        if layer.kind in ("gemm", "conv", "matmul", "attention"):
            for node in layer.onnx_nodes:
                computing.setdefault(node, layer)
    found = []
    for op, names in (("linear", graph.linear), ("conv", graph.conv)):
        for name in names:
            layer_of = computing.get(name)
            found.append(
                NodePrecision(
                    node=name,
                    op="linear" if op == "linear" else "conv",
                    block=read_block(name),
                    precision=layer_of.precision if layer_of else None,
                    layer=layer_of.name if layer_of else None,
                )
            )
    return tuple(found)


def find_attentions(
    layers: Iterable[EngineLayer], *, graph: OnnxGraph
) -> tuple[EngineAttention, ...]:
    """Return how each attention block of the graph runs, and why not as one FP8 kernel."""
    by_node: dict[str, list[EngineLayer]] = {}
    for layer in layers:
        for node in layer.onnx_nodes:
            by_node.setdefault(node, []).append(layer)
    return tuple(_judge_attention(attention, by_node) for attention in graph.attentions)


def _judge_attention(
    attention: OnnxAttention, by_node: dict[str, list[EngineLayer]]
) -> EngineAttention:
    nodes = (attention.scores, attention.softmax, attention.values)
    involved = {layer.name: layer for node in nodes for layer in by_node.get(node, [])}
    fused = [layer for layer in by_node.get(attention.softmax, []) if layer.kind == "attention"]
    state: AttentionState = "not-fused"
    if fused:
        involved = {fused[0].name: fused[0]}
        inputs = [_precision_of(dtype) for dtype in fused[0].input_dtypes]
        quantized = inputs.count("fp8")
        floats = sum(precision != "other" for precision in inputs)
        # q, k and v are one, two or three inputs; a mask may be a further one in half precision
        state = "fused-fp8" if quantized >= 3 or 0 < quantized == floats else "fused-half"
    return EngineAttention(
        index=attention.index,
        block=attention.block,
        softmax=attention.softmax,
        state=state,
        layers=tuple(involved),
        reason="" if state == "fused-fp8" else _explain(attention, tuple(involved.values())),
    )


def _explain(attention: OnnxAttention, involved: tuple[EngineLayer, ...]) -> str:
    operands = {
        "q": attention.q,
        "k": attention.k,
        "v": attention.v,
        "softmax": attention.probabilities,
    }
    if not involved:
        return f"no kernel of the engine names {attention.softmax!r}"
    bare = [name for name, how in operands.items() if how == "none"]
    if bare:
        return f"no Q/DQ pair in the ONNX graph on {', '.join(bare)}"
    other = [f"{name} is {how}" for name, how in operands.items() if how != "fp8"]
    if other:
        return f"in the ONNX graph {', '.join(other)}, not fp8"
    shapes = [
        shape
        for layer in involved
        if attention.softmax in layer.onnx_nodes
        for shape in layer.input_shapes + layer.output_shapes
        if len(shape) >= 2
    ]
    if shapes:
        shape = max(shapes, key=lambda s: s[-1])  # batch, heads, tokens, tokens
        if 0 < shape[-1] < FP8_ATTENTION_MIN_TOKENS:
            return (
                f"{shape[-1]} tokens are too few: FP8 attention was seen to fuse from "
                f"{FP8_ATTENTION_MIN_TOKENS} tokens on"
            )
        if all(size == 1 for size in shape[:-2]):
            return "batch 1 with a single head was never seen to fuse, in no precision"
    kernels = "; ".join(f"{layer.name} ({layer.precision})" for layer in involved)
    return f"q, k, v and softmax are FP8 in the ONNX graph, but the library chose: {kernels}"


def summarize_engine(
    *,
    target: str,
    library: str,
    library_version: str,
    onnx_sha256: str,
    plan_sha256: str,
    plan_bytes: int,
    build_s: float,
    listing: str,
    log: Iterable[str],
    graph: OnnxGraph,
    warnings: tuple[str, ...] = (),
) -> EngineReport:
    """Return the report of one build from the builder's texts and the ONNX graph.

    Raises EngineError where the texts cannot be read.
    """
    return report_layers(
        layers=parse_layers(listing),
        graph=graph,
        memory=parse_memory(log),
        target=target,
        library=library,
        library_version=library_version,
        onnx_sha256=onnx_sha256,
        plan_sha256=plan_sha256,
        plan_bytes=plan_bytes,
        build_s=build_s,
        warnings=warnings,
    )


def report_layers(
    *, layers: Iterable[EngineLayer], graph: OnnxGraph, memory: EngineMemory, **facts: Any
) -> EngineReport:
    """Return the report of an engine from its kernels; `facts` are fields of it as they are."""
    layers = classify_layers(layers, graph=graph)
    nodes = find_node_precisions(layers, graph=graph)
    linear = [node for node in nodes if node.op == "linear"]
    gemms = [layer for layer in layers if layer.kind == "gemm"]
    return EngineReport(
        **facts,
        weights_bytes=memory.weights_bytes,
        activation_bytes=memory.activation_bytes,
        scratch_bytes=memory.scratch_bytes,
        layers=layers,
        gemms=len(gemms),
        fp8_gemms=sum(layer.precision == "fp8" for layer in gemms),
        gemm_nodes=len(linear),
        fp8_gemm_nodes=sum(node.precision == "fp8" for node in linear),
        fp8_convs=sum(layer.kind == "conv" and layer.precision == "fp8" for layer in layers),
        nodes=nodes,
        attentions=find_attentions(layers, graph=graph),
        qdq_layers=tuple(layer.name for layer in layers if layer.kind == "qdq"),
    )
