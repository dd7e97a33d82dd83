"""An ONNX file of any tool, operand by operand: Q/DQ pairs, QOperator, integer operators.

Foreign pairs have no quantizer's name and weights of MatMul are anonymous: an operand is known by
the node that reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.onnx_file import (
    OnnxGraph,
    count_bytes_by_type,
    layer_of,
)
from pytest_quantgate.artifacts.onnx_packed import read_sizes
from pytest_quantgate.artifacts.onnx_reads import (
    CONVOLUTIONS,
    INTEGER,
    PRODUCTS,
    QUANTIZED,
    Read,
    can_scale,
    read_operands,
    read_scales,
)
from pytest_quantgate.artifacts.operands import Artifact, Kind, Operand, Slot, largest_of
from pytest_quantgate.artifacts.weight_summary import summarize
from pytest_quantgate.formats.table import find_format
from pytest_quantgate.quantization.quantizers import tower_of
from pytest_quantgate.runtimes.onnx_model import find_problems
from pytest_quantgate.runtimes.onnx_nodes import (
    MOVES,
    is_dequantize,
    is_quantize,
    label_of,
    zero_of,
)

if TYPE_CHECKING:
    from pytest_quantgate.artifacts.onnx_file import Array

#: What may stand between a product of attention and its softmax.
_SCORES = frozenset((*MOVES, "Add", "Mul", "Div", "Where", "QuantizeLinear", "DequantizeLinear"))


@dataclass(frozen=True, kw_only=True)
class OnnxPart:
    """What of the graph is neither layer nor number: what a runtime may refuse.

    `lone` and `unread` are halves of pairs, `unequal` pairs whose halves differ, `twice` operands
    that pass two pairs, `across` weights whose codes fill another axis than that of their scales,
    `biases` those of another scale than input times weight. `problems` are those of ONNX's checker,
    `repeated` the names that several nodes have.
    """

    lone: tuple[str, ...]
    unread: tuple[str, ...]
    unequal: tuple[str, ...]
    twice: tuple[str, ...]
    across: tuple[str, ...]
    biases: tuple[str, ...]
    asymmetric: tuple[str, ...]
    operators: tuple[str, ...]
    float_weights: tuple[str, ...]
    problems: tuple[str, ...]
    repeated: tuple[str, ...]


def describe_onnx(graph: OnnxGraph) -> tuple[Artifact, OnnxPart]:
    """Return what an ONNX file holds; raises ArtifactError where a tensor cannot be read."""
    found = [
        both
        for node in graph.nodes
        if node.op_type in PRODUCTS | CONVOLUTIONS and len(node.input) >= 2
        for both in _describe_node(graph, node)
    ]
    operands = [operand for operand, _ in found]
    weights = [(o, read) for o, read in found if o.slot == "weight" and o.is_quantized]
    names = Counter(node.name for node in graph.nodes if node.name)
    artifact = Artifact(
        what="ONNX file",
        tool=name_tool(graph),
        operands=tuple(operands),
        bytes_by_type=count_bytes_by_type(graph),
        facts={"opset": str(graph.opset), "operators": describe_style(graph)},
    )
    lone, unequal = find_pairs(graph)
    return artifact, OnnxPart(
        lone=lone,
        unread=tuple(_list_unread(graph)),
        unequal=unequal,
        twice=tuple(f"{o.layer}.{o.slot}" for o, read in found if _is_twice(graph, read)),
        across=tuple(o.layer for o, read in weights if _lies_across(graph, o, read)),
        biases=tuple(_list_odd_biases(graph)),
        asymmetric=tuple(dict.fromkeys(list_asymmetric(graph))),
        operators=tuple(sorted({n.op_type for n in graph.nodes if is_integer_operator(n)})),
        float_weights=tuple(o.layer for o, read in weights if graph.is_float(read.source)),
        problems=find_problems(graph.model, nodes=graph.nodes),
        repeated=tuple(name for name, number in names.items() if number > 1),
    )


def is_integer_operator(node: Any) -> bool:
    """Return whether a node computes quantized in a form that TensorRT does not take."""
    kind = node.op_type
    return (
        kind.startswith("QLinear")
        or kind in INTEGER
        or kind in QUANTIZED
        or kind in ("DynamicQuantizeLinear", "MatMulNBits", "DynamicQuantizeMatMul")
    )


def name_tool(graph: OnnxGraph) -> str:
    """Return what wrote a file, from what is in it: producers keep each other's name."""
    kinds = {node.op_type for node in graph.nodes}
    if any(key.startswith("onnx.quant") for key in graph.metadata) or any(
        map(is_integer_operator, graph.nodes)
    ):
        return "ONNX Runtime quantization"
    if graph.producer.startswith("onnx.quantize"):
        return "onnx.quantize (ONNX Runtime's, which ModelOpt uses too)"
    if "quantgate.tower" in graph.metadata:
        return "pytest-quantgate"
    if any(kind.startswith("TRT_") for kind in kinds) or "trt" in graph.domains:
        return "ModelOpt's exporter"
    return f"{graph.producer or 'unknown exporter'}"


def describe_style(graph: OnnxGraph) -> str:
    """Return in which way a graph is quantized: `Q/DQ`, `QOperator`, `dynamic`, `none`."""
    kinds = {node.op_type for node in graph.nodes}
    styles = []
    if any(kind.startswith("QLinear") or kind == "QGemm" for kind in kinds):
        styles.append("QOperator")
    if kinds & {"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"}:
        styles.append("dynamic integer operators")
    packed = sorted(
        {read_sizes(n)["accuracy_level"] for n in graph.nodes if n.op_type == "MatMulNBits"}
    )
    if packed:
        levels = "" if packed == [0] else f" (accuracy_level {', '.join(map(str, packed))})"
        styles.append(f"MatMulNBits{levels}")
    if not styles and any(kind.endswith("DequantizeLinear") for kind in kinds):
        styles.append("Q/DQ")
    return ", ".join(styles) or "none quantized"


def _describe_node(graph: OnnxGraph, node: Any) -> Iterator[tuple[Operand, Read]]:
    """Yield both operands of a layer or product, and how they come to it."""
    reads = read_operands(graph, node)
    weights = [place for place, read in enumerate(reads) if read.source in graph.tensors]
    slots = name_slots(graph, node, reads=reads, weights=weights)
    kind: Kind = "linear" if weights else "attention"
    if node.op_type in CONVOLUTIONS:
        kind = "conv"
    layer = layer_of(node)
    tower: str = tower_of(layer)
    if tower == "other":
        tower = find_tower(graph)
    for read, slot in zip(reads, slots, strict=True):
        if slot == "other":
            continue
        operand = Operand(layer=layer, tower=tower, kind=kind, slot=slot)
        is_weight = slot == "weight"
        yield _fill(graph, operand, read, is_weight=is_weight, node=node), read


def find_tower(graph: OnnxGraph) -> str:
    """Return the tower that a graph looks like by its inputs, `other` where they do not tell."""
    said = graph.metadata.get("quantgate.tower", "")
    if said in ("vision", "text"):
        return said
    names = " ".join(graph.inputs).lower()
    if "pixel" in names or "image" in names:
        return "vision"
    return "text" if "ids" in names or "token" in names else "other"


def name_slots(
    graph: OnnxGraph, node: Any, *, reads: Sequence[Read], weights: Sequence[int]
) -> tuple[Slot, Slot]:
    if weights:
        return ("input", "weight") if weights[-1] == 1 else ("weight", "input")
    if _comes_from_softmax(graph, reads[0].source):
        return ("softmax", "v")
    if _goes_to_softmax(graph, node.output[0]):
        return ("q", "k")
    return ("other", "other")


def _comes_from_softmax(graph: OnnxGraph, name: str) -> bool:
    node = graph.makers.get(name)
    for _ in range(8):
        if node is None:
            return False
        if node.op_type in ("Softmax", "QLinearSoftmax"):
            return True
        if node.op_type == "Where":  # PyTorch's way to keep NaN of a fully masked row out
            node = graph.makers.get(node.input[2])
            continue
        if node.op_type not in (*MOVES, "QuantizeLinear", "DequantizeLinear") or not node.input:
            return False
        node = graph.makers.get(node.input[0])
    return False


def _goes_to_softmax(graph: OnnxGraph, name: str) -> bool:
    seen, waiting = {name}, [name]
    for _ in range(32):
        if not waiting:
            return False
        for node in graph.readers.get(waiting.pop(), ()):
            if node.op_type in ("Softmax", "QLinearSoftmax"):
                return True
            passes = node.op_type in _SCORES or node.op_type.startswith(
                ("QLinearAdd", "QLinearMul")
            )
            new = set(node.output) - seen if passes else set()
            seen |= new
            waiting += sorted(new)
    return False


def _fill(graph: OnnxGraph, operand: Operand, read: Read, *, is_weight: bool, node: Any) -> Operand:
    """Return the operand with its numbers."""
    stored = graph.type_of(read.source) if is_weight else ""
    count = graph.count(read.source) if is_weight else 0
    if is_weight and read.block < 0:  # two codes in a byte
        count *= 2
    operand = replace(operand, stored=stored, values=count)
    if not read.format or not read.whole:
        return operand
    ranges = None
    scale = read_scales(graph, read) if read.scale else None
    zero = graph.values(read.zero) if read.zero else None
    if scale is not None and scale.size:
        largest = largest_of(read.format)
        if zero is not None and zero.size == 1 and not is_weight:
            middle = abs(float(zero.ravel()[0]))
            is_unsigned = read.format.startswith("U")
            largest = max(largest - middle, middle) if is_unsigned else largest + middle
        ends = scale.astype("f8").ravel() * largest
        # ONNX Runtime lets the sign of a block's scale be that of its largest value.
        ranges = tuple((abs(ends) if read.block else ends).tolist())
    operand = replace(
        operand,
        format=read.format,
        granularity=_name_granularity(ranges, block=read.block, dynamic=read.dynamic),
        dynamic=read.dynamic and not is_weight,
        symmetric=zero is None or not zero.any(),
        ranges=ranges,
        needs_range=bool(read.scale) and ranges is None and read.scale not in graph.makers,
        fits=not is_weight or read.block < 0 or ranges is None or can_scale(graph, read),
    )
    if is_weight and read.inner is None and not read.block and count:
        values = _arrange(graph, read, ranges=ranges)
        if values is not None:
            flat = values.ravel()
            operand = replace(
                operand,
                summary=summarize(
                    lambda start, stop: flat[start:stop],
                    count=flat.size,
                    stored=stored,
                    format=read.format,
                    ranges=ranges,
                ),
            )
    return operand


def _is_twice(graph: OnnxGraph, read: Read) -> bool:
    """Return whether an operand passes two pairs that round otherwise.

    Two that are the same do no harm: ONNX Runtime puts one on both sides of a Transpose.
    """
    inner = read.inner
    return inner is not None and not (
        inner.format == read.format
        and _same(graph, inner.scale, read.scale)
        and _same_zero(graph, inner.zero, read.zero)
    )


def _lies_across(graph: OnnxGraph, operand: Operand, read: Read) -> bool:
    """Return whether each slice of the other axis reaches the last code, and not of its own.

    A scale is that of the largest value under it: along its axis each slice reaches the end.
    """
    import numpy

    kind, largest = find_format(read.format), operand.summary.largest if operand.summary else ()
    if kind is None or len(largest) < 2 or min(largest) >= kind.largest:
        return False
    if not operand.fits or not operand.is_packed:
        return False
    values = graph.values(read.source)
    if values is None or values.ndim != 2 or len(largest) != values.shape[read.axis]:
        return False
    return bool((numpy.abs(values).max(axis=read.axis) >= kind.largest).all())


def _list_odd_biases(graph: OnnxGraph) -> Iterator[str]:
    """Yield layers with an INT32 bias of another scale than that of its input times its weight's.

    Kernels add it to the product before anything is scaled.
    """
    import numpy

    for node in graph.nodes:
        if node.op_type not in CONVOLUTIONS | {"Gemm"} or len(node.input) < 3:
            continue
        _, maker = graph.origin(node.input[2])
        if maker is None or not is_dequantize(maker):
            continue
        names = (*(read.scale for read in read_operands(graph, node)), str(maker.input[1]))
        one, two, found = (graph.values(name) for name in names)
        if graph.type_of(str(maker.input[0])) != "int32" or one is None or two is None:
            continue
        if found is None or 1 not in (one.size, two.size):
            continue
        wanted = one.ravel() * two.ravel()
        if found.size in (1, wanted.size) and not numpy.allclose(
            found.ravel(), wanted, rtol=0.01, atol=0
        ):
            yield layer_of(node)


def _name_granularity(ranges: tuple[float, ...] | None, *, block: int, dynamic: bool) -> str:
    if block:
        return "block"
    if ranges is None:
        return "per-tensor" if dynamic else ""
    return "per-tensor" if len(ranges) == 1 else "per-channel"


def _arrange(graph: OnnxGraph, read: Read, *, ranges: tuple[float, ...] | None) -> Array | None:
    """Return a stored weight with the axis that has the scales first."""
    import numpy

    values = graph.values(read.source)
    if values is None:
        return None
    axis = read.axis if -values.ndim <= read.axis < values.ndim else 0
    if ranges and len(ranges) > 1 and values.ndim and values.shape[axis] == len(ranges):
        return numpy.ascontiguousarray(numpy.moveaxis(values, axis, 0))
    return values


# -- pairs -----------------------------------------------------------------------------------------


def find_pairs(graph: OnnxGraph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return lone halves of pairs, and pairs whose halves differ in scale or zero point."""
    lone, unequal = [], []
    for node in graph.nodes:
        if is_quantize(node) and len(node.input) > 1:
            readers = graph.readers.get(node.output[0], ())
            undone = [
                reader
                for name in graph.follow(node.output[0])
                for reader in graph.readers.get(name, ())
                if is_dequantize(reader)
            ]
            if not undone and not any(is_integer_operator(r) for r in readers):
                lone.append(label_of(node))
            for other in undone:
                zeros = zero_of(node), zero_of(other)
                agree = _same_zero(graph, *zeros)
                if len(other.input) > 1 and not (
                    agree and _same(graph, node.input[1], other.input[1])
                ):
                    unequal.append(label_of(other))
    return tuple(lone), tuple(dict.fromkeys(unequal))


def _list_unread(graph: OnnxGraph) -> Iterator[str]:
    """Yield what dequantizes for nobody: no node reads it, and no branch could."""
    read = {*graph.readers, *graph.outputs}
    for node in () if graph.nested_nodes else graph.nodes:
        if is_dequantize(node) and node.output[0] not in read:
            yield label_of(node)


def _same(graph: OnnxGraph, one: str, two: str) -> bool:
    if one == two:
        return True
    first, second = graph.values(one), graph.values(two)
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and bool((first == second).all())


def _same_zero(graph: OnnxGraph, one: str, two: str) -> bool:
    """Return whether two zero points are one; one that is not there is 0."""
    if one and two:
        return _same(graph, one, two) and graph.type_of(one) == graph.type_of(two)
    values = graph.values(one or two)
    return values is None or not values.any()


def list_asymmetric(graph: OnnxGraph) -> Iterator[str]:
    """Yield the nodes with a zero point that is not 0."""
    for node in graph.nodes:
        if (is_quantize(node) or is_dequantize(node)) and zero_of(node):
            zero = graph.values(zero_of(node))
            if zero is not None and zero.any():
                yield label_of(node)
