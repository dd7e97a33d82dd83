"""An ONNX file of any tool, operand by operand: Q/DQ pairs, QOperator, integer operators.

Foreign pairs have no quantizer's name and weights of MatMul are anonymous: an operand is known by
the node that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.onnx_file import (
    OnnxGraph,
    count_bytes_by_type,
    label_of,
    layer_of,
    name_data_type,
)
from pytest_quantgate.artifacts.operands import Artifact, Kind, Operand, Slot, largest_of
from pytest_quantgate.artifacts.rounding import round_to
from pytest_quantgate.artifacts.weight_summary import summarize
from pytest_quantgate.formats.table import find_format, name_onnx_element
from pytest_quantgate.models.quantizers import tower_of
from pytest_quantgate.runtimes.onnx_graph import MOVES

if TYPE_CHECKING:
    from pytest_quantgate.artifacts.onnx_file import Array

_PRODUCTS = frozenset(
    (
        *("MatMul", "Gemm", "QLinearMatMul", "QGemm", "MatMulInteger", "FusedMatMul"),
        *("MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "FusedGemm"),
    )
)
_CONVOLUTIONS = frozenset(("Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "FusedConv"))

#: Operators that hold their scales themselves: places of (value, scale, zero point), two operands.
_QUANTIZED = {
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5)),
    "QLinearConv": ((0, 1, 2), (3, 4, 5)),
    "QGemm": ((0, 1, 2), (3, 4, 5)),
    "MatMulIntegerToFloat": ((0, 2, 4), (1, 3, 5)),
}
_INTEGER = {"MatMulInteger": (2, 3), "ConvInteger": (2, 3)}

#: What may stand between a product of attention and its softmax.
_SCORES = frozenset((*MOVES, "Add", "Mul", "Div", "Where", "QuantizeLinear", "DequantizeLinear"))


@dataclass(frozen=True, kw_only=True)
class _Read:
    """How an operand comes to its node: where it is from, and what it is quantized by."""

    source: str
    format: str = ""
    scale: str = ""
    zero: str = ""
    axis: int = 0
    block: int = 0
    dynamic: bool = False
    whole: bool = True


@dataclass(frozen=True, kw_only=True)
class OnnxPart:
    """What of the graph is neither layer nor number: what a runtime may refuse."""

    lone: tuple[str, ...]
    unequal: tuple[str, ...]
    asymmetric: tuple[str, ...]
    operators: tuple[str, ...]
    float_weights: tuple[str, ...]


def describe_onnx(graph: OnnxGraph) -> tuple[Artifact, OnnxPart]:
    """Return what an ONNX file holds; raises ArtifactError where a tensor cannot be read."""
    operands: list[Operand] = []
    floats: list[str] = []
    for node in graph.nodes:
        if node.op_type in _PRODUCTS | _CONVOLUTIONS and len(node.input) >= 2:
            for operand, is_float in _describe_node(graph, node):
                operands.append(operand)
                if is_float:
                    floats.append(operand.layer)
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
        unequal=unequal,
        asymmetric=tuple(dict.fromkeys(_list_asymmetric(graph))),
        operators=tuple(sorted({n.op_type for n in graph.nodes if _is_odd(n)})),
        float_weights=tuple(floats),
    )


def _is_odd(node: Any) -> bool:
    """Return whether a node computes quantized in a form that TensorRT does not take."""
    kind = node.op_type
    return (
        kind.startswith("QLinear")
        or kind in _INTEGER
        or kind in _QUANTIZED
        or kind in ("DynamicQuantizeLinear", "MatMulNBits", "DynamicQuantizeMatMul")
    )


def name_tool(graph: OnnxGraph) -> str:
    """Return what wrote a file, from what is in it: producers keep each other's name."""
    kinds = {node.op_type for node in graph.nodes}
    if "quantgate.tower" in graph.metadata:
        return "pytest-quantgate"
    if any(key.startswith("onnx.quant") for key in graph.metadata) or any(
        map(_is_odd, graph.nodes)
    ):
        return "ONNX Runtime quantization"
    if graph.producer.startswith("onnx.quantize"):
        return "ModelOpt ONNX quantization"
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
    if "MatMulNBits" in kinds:
        styles.append("MatMulNBits")
    if not styles and any(kind.endswith("DequantizeLinear") for kind in kinds):
        styles.append("Q/DQ")
    return ", ".join(styles) or "none quantized"


def _describe_node(graph: OnnxGraph, node: Any) -> Iterator[tuple[Operand, bool]]:
    """Yield both operands of a layer or product, and whether a float weight stands behind Q/DQ."""
    reads = _read_operands(graph, node)
    weights = [place for place, read in enumerate(reads) if read.source in graph.tensors]
    slots = _name_slots(graph, node, reads=reads, weights=weights)
    kind: Kind = "linear" if weights else "attention"
    if node.op_type in _CONVOLUTIONS:
        kind = "conv"
    layer = layer_of(node)
    tower: str = tower_of(layer)
    if tower == "other":
        tower = _tower_of_inputs(graph)
    for read, slot in zip(reads, slots, strict=True):
        if slot == "other":
            continue
        operand = Operand(layer=layer, tower=tower, kind=kind, slot=slot)
        is_weight = slot == "weight"
        yield _fill(graph, operand, read, is_weight=is_weight, node=node)


def _tower_of_inputs(graph: OnnxGraph) -> str:
    said = graph.metadata.get("quantgate.tower", "")
    if said in ("vision", "text"):
        return said
    names = " ".join(graph.inputs).lower()
    if "pixel" in names or "image" in names:
        return "vision"
    return "text" if "ids" in names or "token" in names else "other"


def _name_slots(
    graph: OnnxGraph, node: Any, *, reads: Sequence[_Read], weights: Sequence[int]
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


# -- how an operand is quantized -------------------------------------------------------------------


def _read_operands(graph: OnnxGraph, node: Any) -> tuple[_Read, _Read]:
    def name(place: int) -> str:
        return str(node.input[place]) if place < len(node.input) else ""

    if node.op_type in _QUANTIZED:
        one, two = (
            _Read(
                source=graph.origin(name(value))[0],
                format=_type_behind(graph, name(value), zero=name(zero)),
                scale=name(scale),
                zero=name(zero),
                axis=0 if node.op_type == "QLinearConv" else 1,
            )
            for value, scale, zero in _QUANTIZED[node.op_type]
        )
        return one, two
    if node.op_type in _INTEGER:
        zeros = _INTEGER[node.op_type]
        scale = _find_scale_behind(graph, node)
        one, two = (_read_integer(graph, name(p), zero=name(zeros[p]), scale=scale) for p in (0, 1))
        return one, two
    if node.op_type == "DynamicQuantizeMatMul":
        weight = _Read(
            source=name(1), format=graph.type_of(name(1)), scale=name(2), zero=name(3), axis=1
        )
        return _Read(source=name(0), format="INT8", dynamic=True), weight
    if node.op_type == "MatMulNBits":
        bits = next((int(a.i) for a in node.attribute if a.name == "bits"), 4)
        weight = _Read(source=name(1), format=f"INT{bits}", scale=name(2), zero=name(3), block=1)
        return _read_value(graph, name(0)), weight
    return _read_value(graph, name(0)), _read_value(graph, name(1))


def _find_scale_behind(graph: OnnxGraph, node: Any) -> str:
    """Return the weight's scale of an integer operator: it is multiplied on behind it."""
    for value in _follow(graph, node.output[0]):
        for reader in graph.readers.get(value, ()):
            others = [name for name in reader.input if name != value]
            maker = graph.makers.get(others[0]) if reader.op_type == "Mul" and others else None
            if maker is not None and maker.op_type == "Mul":
                found = [name for name in maker.input if name in graph.tensors]
                return found[0] if len(found) == 1 else ""
    return ""


def _read_integer(graph: OnnxGraph, value: str, *, zero: str, scale: str) -> _Read:
    """Return an operand of MatMulInteger: computed by DynamicQuantizeLinear, or stored."""
    source, maker = graph.origin(value)
    if maker is not None and maker.op_type == "DynamicQuantizeLinear":
        return _Read(source=graph.origin(maker.input[0])[0], format="UINT8", dynamic=True)
    kind = graph.type_of(source) or "INT8"
    return _Read(source=source, format=kind, scale=scale, zero=zero, axis=1, dynamic=True)


def _read_value(graph: OnnxGraph, value: str) -> _Read:
    """Return an operand of an ordinary node, quantized where a DequantizeLinear makes it."""
    source, maker = graph.origin(value)
    if maker is None:
        return _Read(source=source)
    if maker.op_type == "Mul":
        return _read_scaled(graph, maker) or _Read(source=value)
    if not maker.op_type.endswith("DequantizeLinear") or len(maker.input) < 2:
        return _Read(source=source)
    zero = str(maker.input[2]) if len(maker.input) > 2 else ""
    inner, quantize = graph.origin(maker.input[0])
    attributes = {a.name: int(a.i) for a in maker.attribute if a.name in ("axis", "block_size")}
    read = _Read(
        source=inner,
        format=_type_behind(graph, str(maker.input[0]), zero=zero),
        scale=str(maker.input[1]),
        zero=zero,
        axis=attributes.get("axis", 1),
        block=attributes.get("block_size", 0),
    )
    if quantize is not None and _is_quantize(quantize):
        origin = graph.origin(quantize.input[0])[0]
        if not read.format:
            read = replace(
                read, format=_type_behind(graph, quantize.output[0], zero=_zero_of(quantize))
            )
        return replace(read, source=origin)
    return replace(read, whole=inner in graph.tensors)


def _read_scaled(graph: OnnxGraph, node: Any) -> _Read | None:
    """Return a weight that Cast and Mul dequantize, as some tools write it, None if it is none."""
    for one, two in ((0, 1), (1, 0)):
        source, maker = graph.origin(node.input[one])
        is_coded = maker is None and graph.type_of(source) in ("INT8", "UINT8", "E4M3")
        if is_coded and node.input[two] in graph.tensors:
            return _Read(source=source, format=graph.type_of(source), scale=node.input[two])
    return None


def _is_quantize(node: Any) -> bool:
    name = str(node.op_type)
    return name.endswith("QuantizeLinear") and name != "DynamicQuantizeLinear"


def _zero_of(node: Any) -> str:
    return str(node.input[2]) if len(node.input) > 2 else ""


def _type_behind(graph: OnnxGraph, value: str, *, zero: str) -> str:
    """Return the type of a quantized value: of its zero point or its codes, or ONNX's rule."""
    found = graph.type_of(zero) or graph.type_of(graph.origin(value)[0])
    if find_format(found) is not None:
        return found
    maker = graph.makers.get(value)
    if maker is not None and _is_quantize(maker):
        if "FP8" in maker.op_type:
            return "E4M3"
        kind = graph.type_of(_zero_of(maker)) if _zero_of(maker) else ""
        said = next((int(a.i) for a in maker.attribute if a.name == "output_dtype"), 0)
        return kind or name_onnx_element(name_data_type(said)) or "UINT8"
    return "INT8" if maker is not None else ""


def _fill(
    graph: OnnxGraph, operand: Operand, read: _Read, *, is_weight: bool, node: Any
) -> tuple[Operand, bool]:
    """Return the operand with its numbers, and whether it is a float weight behind Q/DQ."""
    stored = graph.type_of(read.source) if is_weight else ""
    count = graph.count(read.source) if is_weight else 0
    if is_weight and node.op_type == "MatMulNBits":
        count *= 2
    operand = replace(operand, stored=stored, values=count)
    if not read.format or not read.whole:
        return operand, False
    ranges = None
    scale = graph.values(read.scale) if read.scale else None
    if scale is not None and scale.size:
        ranges = tuple((scale.astype("f8").ravel() * largest_of(read.format)).tolist())
    zero = graph.values(read.zero) if read.zero else None
    operand = replace(
        operand,
        format=read.format,
        granularity=_name_granularity(ranges, block=read.block, dynamic=read.dynamic),
        dynamic=read.dynamic and not is_weight,
        symmetric=zero is None or not zero.any(),
        ranges=ranges,
        needs_range=False,
    )
    if is_weight and not read.block and count:
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
    return operand, is_weight and stored.startswith(("float", "bfloat"))


def _name_granularity(ranges: tuple[float, ...] | None, *, block: int, dynamic: bool) -> str:
    if block:
        return "block"
    if ranges is None:
        return "per-tensor" if dynamic else ""
    return "per-tensor" if len(ranges) == 1 else "per-channel"


def _arrange(graph: OnnxGraph, read: _Read, *, ranges: tuple[float, ...] | None) -> Array | None:
    """Return a stored weight with the axis that has the scales first."""
    import numpy

    values = graph.values(read.source)
    if values is None:
        return None
    axis = read.axis if -values.ndim <= read.axis < values.ndim else 0
    if ranges and len(ranges) > 1 and values.shape[axis] == len(ranges):
        return numpy.ascontiguousarray(numpy.moveaxis(values, axis, 0))
    return values


# -- pairs -----------------------------------------------------------------------------------------


def find_pairs(graph: OnnxGraph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return lone halves of pairs, and pairs whose two halves have different scales."""
    lone, unequal = [], []
    for node in graph.nodes:
        if _is_quantize(node) and len(node.input) > 1:
            readers = graph.readers.get(node.output[0], ())
            undone = [
                reader
                for name in _follow(graph, node.output[0])
                for reader in graph.readers.get(name, ())
                if reader.op_type.endswith("DequantizeLinear")
            ]
            if not undone and not any(_is_odd(r) for r in readers):
                lone.append(label_of(node))
            for other in undone:
                if len(other.input) > 1 and not _same(graph, node.input[1], other.input[1]):
                    unequal.append(label_of(other))
    return tuple(lone), tuple(dict.fromkeys(unequal))


def _follow(graph: OnnxGraph, name: str) -> Iterator[str]:
    seen, waiting = {name}, [name]
    while waiting:
        value = waiting.pop()
        yield value
        for node in graph.readers.get(value, ()):
            moved = set(node.output) - seen if node.op_type in MOVES else set()
            seen |= moved
            waiting += sorted(moved)


def _same(graph: OnnxGraph, one: str, two: str) -> bool:
    if one == two:
        return True
    first, second = graph.values(one), graph.values(two)
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and bool((first == second).all())


def _list_asymmetric(graph: OnnxGraph) -> Iterator[str]:
    """Yield the nodes with a zero point that is not 0."""
    for node in graph.nodes:
        if (_is_quantize(node) or node.op_type.endswith("DequantizeLinear")) and _zero_of(node):
            zero = graph.values(_zero_of(node))
            if zero is not None and zero.any():
                yield label_of(node)


# -- weights ---------------------------------------------------------------------------------------


def read_weights(graph: OnnxGraph) -> Iterator[tuple[str, str, str, Callable[[], Array]]]:
    """Yield layer, format, stored type and a reader of every weight, as [out, in]."""
    for node in graph.nodes:
        if node.op_type not in _PRODUCTS | _CONVOLUTIONS or len(node.input) < 2:
            continue
        for read in _read_operands(graph, node):
            is_known = read.source in graph.tensors and not read.block
            if is_known and (not read.format or graph.values(read.scale) is not None):
                stored = graph.type_of(read.source)
                yield layer_of(node), read.format, stored, _make_reader(graph, node, read)


def _make_reader(graph: OnnxGraph, node: Any, read: _Read) -> Callable[[], Array]:
    def dequantize() -> Array:
        import numpy

        values = graph.values(read.source)
        assert values is not None
        scale = graph.values(read.scale) if read.scale else None
        if scale is not None:
            shape = [1] * values.ndim
            if scale.size > 1 and -values.ndim <= read.axis < values.ndim:
                shape[read.axis] = -1
            scale = scale.reshape(shape)
            zero = graph.values(read.zero) if read.zero else None
            if graph.type_of(read.source).startswith(("float", "bfloat")):
                with numpy.errstate(all="ignore"):
                    values = round_to(values / scale, format=read.format) * scale
            else:
                offset = 0 if zero is None else zero.reshape(shape if zero.size > 1 else ())
                values = (values - offset) * scale
        turned = node.op_type in _PRODUCTS and not _is_transposed(node)
        return values.T if turned and values.ndim == 2 else values

    return dequantize


def _is_transposed(node: Any) -> bool:
    return any(a.name == "transB" and a.i for a in node.attribute)
